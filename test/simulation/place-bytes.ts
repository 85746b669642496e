/** Bytes of a file that depend on their place alone, so that whoever continues it writes what belongs there. */
const PERIOD = 65_521;
const period = Buffer.from(
  Uint8Array.from({ length: 2 * PERIOD }, (_, i) => {
    const x = Math.imul((i % PERIOD) + 1, 0x9e3779b1);
    return (x ^ (x >>> 15)) & 0xff;
  }),
);

/** @returns `length` bytes of the file from `offset` on */
export function bytesAt(offset: number, length: number): Buffer {
  const out = Buffer.allocUnsafe(length);
  for (let at = 0; at < length; ) {
    const from = (offset + at) % PERIOD,
      count = Math.min(length - at, PERIOD);
    period.copy(out, at, from, from + count);
    at += count;
  }
  return out;
}
