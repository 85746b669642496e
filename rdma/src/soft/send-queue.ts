/** The producer's side of the send queue ring: fills 64-byte records, releases them in batches. */
import { WR_WORDS } from '../records.js';

/** The consumer's side. */
interface Consumer {
  ring(count: number): number;
}

export class SendQueue {
  readonly words: Uint32Array;
  readonly #mask: number;
  readonly #waiting = new Int32Array(new SharedArrayBuffer(4));
  #native!: Consumer;
  #tail = 0;
  #unreleased = 0;
  #free: number;
  #isClosed = false;

  constructor(entries: number) {
    this.words = new Uint32Array(new SharedArrayBuffer(entries * WR_WORDS * 4));
    this.#mask = entries - 1;
    this.#free = entries;
  }

  attach(native: Consumer): void {
    this.#native = native;
  }

  /** Reserves the next record and returns the index of its first word; it is released by the next `ring()`. */
  next(): number {
    if (this.#free === 0) this.#makeRoom();
    this.#free--;
    this.#unreleased++;
    return (this.#tail++ & this.#mask) * WR_WORDS;
  }

  /** The device is closed: what is still posted goes nowhere. */
  close(): void {
    this.#free = Infinity;
    this.#isClosed = true;
  }

  ring(): void {
    if (this.#unreleased === 0 || this.#isClosed) return;
    this.#free = this.#native.ring(this.#unreleased);
    this.#unreleased = 0;
  }

  /** The engine moves requests on to queues of its own without waiting for anybody: room comes within microseconds. */
  #makeRoom(): void {
    this.#free = this.#native.ring(this.#unreleased);
    this.#unreleased = 0;
    while (this.#free === 0) {
      Atomics.wait(this.#waiting, 0, 0, 0.05);
      this.#free = this.#native.ring(0);
    }
  }
}
