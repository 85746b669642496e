/**
 * Work on the index that nobody waits for, such as freeing the units of a file that was deleted: so much in a turn of
 * the event loop that what must be answered, heartbeats and acknowledgements, is answered between.
 *
 * Invariant: whatever a chore has not done yet is invisible already, or harmless to see; the index may be changed, and
 * a checkpoint of it taken, between any two steps.
 */
import { realClock, sleep, type Clock } from '../wire/clock.js';
import { detach } from '../wire/front-door.js';

/** Steps of one turn: each frees one unit, a microsecond or a few. */
export const STEPS_A_TURN = 1000;

export class Chores {
  private readonly queue: Iterator<unknown>[] = [];
  private running: Promise<void> | undefined;
  private isStopped = false;

  /** @param onDone  all that there was has been done, and it took more than one turn */
  constructor(
    private readonly clock: Clock = realClock,
    private readonly onDone: () => void = () => undefined,
  ) {}

  /** Does one turn's worth at once when nothing else is waiting, the rest later. */
  add(chore: Iterator<unknown>): void {
    if (this.isStopped) return;
    this.queue.push(chore);
    if (this.running !== undefined) return;
    this.turn();
    if (this.queue.length === 0) return;
    this.running = this.run();
    detach(this.running);
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    await this.running;
  }

  /** What is left is not done: the index is about to go. */
  stop(): void {
    this.isStopped = true;
    this.queue.length = 0;
  }

  private async run(): Promise<void> {
    while (this.queue.length > 0) {
      await sleep(this.clock, 0);
      this.turn();
    }
    this.running = undefined;
    if (!this.isStopped) this.onDone();
  }

  private turn(): void {
    for (let i = 0; i < STEPS_A_TURN; i++) {
      const first = this.queue[0];
      if (first === undefined) return;
      if (first.next().done === true) this.queue.shift();
    }
  }
}
