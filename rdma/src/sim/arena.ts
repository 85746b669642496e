/**
 * Chunks that small copies are cut from: a typed array with memory of its own costs several times as much as a view.
 */
const CHUNK_BYTES = 1 << 18;
let chunk = new Uint8Array(CHUNK_BYTES);
let used = 0;

/** @returns `source`'s bytes [from, to), copied to memory that nothing else uses */
export function copyOf(source: Uint8Array, from: number, to: number): Uint8Array {
  const length = to - from;
  if (length > CHUNK_BYTES / 8) return source.slice(from, to);
  if (used + length > CHUNK_BYTES) {
    chunk = new Uint8Array(CHUNK_BYTES);
    used = 0;
  }
  const copy = chunk.subarray(used, used + length);
  used += length;
  copy.set(length === source.length ? source : source.subarray(from, to));
  return copy;
}
