/** Long work in many short turns of the event loop, so that acknowledgements and heartbeats come through between. */
import { sleep, type Clock } from './clock.js';

/**
 * Calls `each` for every item in order, at most `most` of them in one turn. What the items are taken from may change
 * between two turns, as far as its iterator allows that.
 *
 * @param most  so many that a turn takes a few milliseconds
 */
export async function inTurns<T>(
  clock: Clock,
  items: Iterable<T>,
  most: number,
  each: (item: T) => void,
): Promise<void> {
  let done = 0;
  for (const item of items) {
    if (done === most) {
      done = 0;
      await sleep(clock, 0);
    }
    each(item);
    done++;
  }
}
