/**
 * A disk that neither fails nor answers is a disk that has failed: operations that take longer than a bound say so.
 *
 * Writes and syncs are given up: their promise rejects, though the system may still be at it; so nothing may be written
 * any more, and their memory is not to be used again. Reads are only reported: their memory is for whoever asked.
 */
import type { Clock } from '../wire/clock.js';
import { TartanError } from '../wire/errors.js';
import type { Disk } from './disk.js';
import type { UnitStoreOptions } from './store-types.js';

class BoundedDisk implements Disk {
  readonly size: number;
  readonly direct: boolean;
  /** Some operation took too long. */
  isHung = false;

  /** @param onHung  called at most once */
  constructor(
    private readonly disk: Disk,
    private readonly clock: Clock,
    private readonly mostMs: number,
    private readonly onHung: (why: string) => void,
  ) {
    this.size = disk.size;
    this.direct = disk.direct === true;
  }

  read(into: Uint8Array, position: number): Promise<void> {
    const timer = this.clock.setTimer(this.mostMs, () => {
      this.hang(`a read at ${position}`);
    });
    return this.disk.read(into, position).finally(() => {
      this.clock.clearTimer(timer);
    });
  }

  writev(views: readonly Uint8Array[], position: number): Promise<void> {
    return this.bounded(this.disk.writev(views, position), `a write at ${position}`);
  }

  sync(): Promise<void> {
    return this.bounded(this.disk.sync(), 'a sync');
  }

  /** Of a disk that hangs it waits for nothing: closing would wait for what is under way. */
  close(): Promise<void> {
    const closing = this.disk.close();
    if (!this.isHung) return closing;
    closing.catch(() => undefined); // it had failed already
    return Promise.resolve();
  }

  private bounded(work: Promise<void>, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = this.clock.setTimer(this.mostMs, () => {
        this.hang(what);
        reject(new TartanError('ERR_DISK', `Cannot go on: ${what} has not been answered for ${this.mostMs} ms`));
      });
      work.then(resolve, reject).finally(() => {
        this.clock.clearTimer(timer);
      });
    });
  }

  private hang(what: string): void {
    if (this.isHung) return;
    this.isHung = true;
    this.onHung(`${what} has not been answered for ${this.mostMs} ms`);
  }
}

/** Whether some operation of the disk took too long. */
export function isHung(disk: Disk): boolean {
  return disk instanceof BoundedDisk && disk.isHung;
}

/**
 * The disk of a store, bounded where there is a clock.
 * @param onHung  told what took too long
 */
export function boundedDisk(
  { disk, clock, diskDeadlineMs }: Pick<UnitStoreOptions, 'disk' | 'clock' | 'diskDeadlineMs'>,
  onHung: (why: string) => void,
): Disk {
  if (clock === undefined) return disk;
  return new BoundedDisk(disk, clock, diskDeadlineMs ?? DISK_DEADLINE_MS, (why) => {
    onHung(`the disk hangs: ${why}`);
  });
}

/** Far beyond what a disk at its limit takes, and short enough that nobody waits for a dead one. */
const DISK_DEADLINE_MS = 10_000;
