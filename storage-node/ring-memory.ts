import { TartanError } from '../wire/errors.js';

/** The budget that all rings of a node share: granted rings and the ring for reads, in bytes. */
export class RingMemory {
  used = 0;
  constructor(readonly limit: number) {}

  /**
   * Takes up to `wanted` bytes in multiples of `step`.
   *
   * @returns the bytes taken, at least `least`
   * @throws {TartanError} ERR_RING_MEMORY when less than `least` is left; `attempt` begins the message
   */
  take(wanted: number, step: number, least: number, attempt: string): number {
    const bytes = Math.floor(Math.min(wanted, this.limit - this.used) / step) * step;
    if (bytes < least) throw new TartanError('ERR_RING_MEMORY', `Cannot ${attempt}: ${this.limit - this.used} of ${this.limit} bytes of ring memory are left, at least ${least} are required`);
    this.used += bytes;
    return bytes;
  }

  give(bytes: number): void { this.used -= bytes; }
}
