import type { SimRandom } from './random.js';

/** A device moves memory in cache lines: within one nothing is ever half done. */
const LINE_BYTES = 64;
/** The smallest packets that RDMA knows carry so many bytes: no device moves less at a time, on average. */
const PACKET_BYTES = 256;

/**
 * Cuts a length into 1 to 4 pieces at random places, whole lines each but for the last; not more pieces than packets.
 *
 * @returns the bounds, ascending: 0, …, length. A length of 0 is one empty piece.
 */
export function cutPieces(random: SimRandom, length: number): number[] {
  const lines = Math.ceil(length / LINE_BYTES);
  if (lines <= 1) return [0, length];
  const count = Math.min(1 + random.int(4), lines, Math.ceil(length / PACKET_BYTES));
  const bounds = [0, length];
  while (bounds.length <= count) {
    const bound = LINE_BYTES * (1 + random.int(lines - 1));
    let at = 1;
    while (bounds[at]! < bound) at++;
    if (bounds[at] !== bound) bounds.splice(at, 0, bound);
  }
  return bounds;
}
