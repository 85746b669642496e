import { TartanError } from '../wire/errors.js';

/**
 * The budget that all rings of a process share, in bytes. A ring that could do with less gets at most an eighth of
 * what is left, so that those who come later find something too.
 */
export class RingMemory {
  readonly limit: number;
  used = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  /**
   * Takes up to `wanted` bytes in multiples of `step`.
   *
   * @returns the bytes taken, at least `least`
   * @throws {TartanError} ERR_RING_MEMORY when less than `least` is left; `attempt` begins the message
   */
  take(wanted: number, step: number, least: number, attempt: string): number {
    const left = this.limit - this.used;
    const bytes = Math.floor(Math.min(wanted, Math.max(least, left / 8)) / step) * step;
    if (bytes < least || bytes > left) {
      throw new TartanError(
        'ERR_RING_MEMORY',
        `Cannot ${attempt}: ${left} of ${this.limit} bytes of ring memory are left, at least ${least} are required`,
      );
    }
    this.used += bytes;
    return bytes;
  }

  give(bytes: number): void {
    this.used -= bytes;
  }
}
