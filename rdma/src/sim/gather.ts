/** The memory that a request names: parts of regions, read and written as one run of bytes. */
import { copyOf } from './arena.js';
import type { SimRegion } from './memory-region.js';

export interface Gather {
  readonly region: SimRegion;
  readonly offset: number;
  readonly length: number;
}

export const NOTHING: readonly Gather[] = [];

/** @returns a copy of bytes from … to of the gathered source */
export function readGather(gather: readonly Gather[], from: number, to: number): Uint8Array {
  const [first] = gather;
  if (first !== undefined && to <= first.length)
    return copyOf(first.region.all, first.offset + from, first.offset + to);
  const out = new Uint8Array(to - from);
  forEachPart(gather, from, to, (part, at) => out.set(part, at));
  return out;
}

/** Places bytes at `at` of the gathered memory. */
export function placeGather(gather: readonly Gather[], at: number, bytes: Uint8Array): void {
  forEachPart(gather, at, at + bytes.length, (part, start) => part.set(bytes.subarray(start, start + part.length)));
}

/**
 * Visits the memory behind bytes from … to of a gather list.
 * @param visit its memory, and where that starts within from … to
 */
function forEachPart(
  gather: readonly Gather[],
  from: number,
  to: number,
  visit: (part: Uint8Array, at: number) => void,
): void {
  let base = 0;
  for (const { region, offset, length } of gather) {
    const start = Math.max(from, base);
    const end = Math.min(to, base + length);
    if (start < end) visit(region.bytes(offset + start - base, end - start), start - from);
    base += length;
  }
}
