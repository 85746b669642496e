import type { SimRandom } from './random.js';

/**
 * Cuts a length into 1 to 4 pieces at random places.
 *
 * @returns the bounds, ascending: 0, …, length. A length of 0 is one empty piece.
 */
export function cutPieces(random: SimRandom, length: number): number[] {
  const count = Math.min(1 + random.int(4), Math.max(1, length));
  const bounds = new Set<number>();
  while (bounds.size < count - 1) bounds.add(1 + random.int(length - 1));
  return [0, ...[...bounds].sort((a, b) => a - b), length];
}
