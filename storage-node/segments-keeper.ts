/**
 * Keeps the log short and segments free: says when a checkpoint is taken and when segments are cleaned, one thing after the
 * other, beside the log's own work.
 *
 * Invariant: what `reserveOf` leaves is enough for a checkpoint, always; and what units leave beyond that, for the cleaner
 * to go on and for deletions to be recorded. So a full store becomes free again when something in it is no longer needed.
 */
import { codeOf } from '../wire/errors.js';
import type { Checkpointer } from './checkpointer.js';
import type { LogWriter, Room } from './log-writer.js';
import { SegmentState, type Segments } from './segments.js';

/** Segments beyond the checkpoints' own: for entries that are no units, and for the cleaner to copy to. */
const CONTROL_SEGMENTS = 1;
const CLEANER_SEGMENTS = 2;

export interface KeeperOptions {
  readonly segments: Segments; readonly log: LogWriter; readonly checkpointer: Checkpointer;
  /** Bytes of log after which a checkpoint is due. */
  readonly checkpointBytes: number;
  /** Bytes of log that opening had to read. */
  readonly tailBytes: number;
}

export class SegmentsKeeper {
  private running: Promise<void> | undefined;
  private isClosing = false;
  /** The {@link progress} at which nothing more could be freed; only when that changes is it tried again. */
  private stalledAt = -1;
  private tailAtOpening: number;

  constructor(private readonly options: KeeperOptions) { this.tailAtOpening = options.tailBytes; }

  /** Below so many free segments more are made. */
  private get low(): number { return this.reserveOf('unit') + Math.max(2, this.options.segments.count >> 5); }

  reserveOf(room: Room): number {
    const { reserve } = this.options.checkpointer;
    return room === 'control' ? reserve : room === 'move' ? reserve + CONTROL_SEGMENTS : reserve + CONTROL_SEGMENTS + CLEANER_SEGMENTS;
  }

  /** Looks whether there is something to do; never waits. */
  kick(): void {
    if (this.running !== undefined || this.isClosing || this.options.log.state !== 'open' || !this.isNeeded()) return;
    this.running = this.run().catch((error: unknown) => {
      // The log has failed, and says so itself.
      if (codeOf(error) === undefined) throw error;
    }).finally(() => { this.running = undefined; });
  }

  /** Resolves when it has nothing to do. */
  async idle(): Promise<void> { while (this.running !== undefined) await this.running; }

  /** Ends after the step it is in. */
  async close(): Promise<void> {
    this.isClosing = true;
    await this.running;
  }

  private isNeeded(): boolean { return this.isCheckpointDue() || (this.isLow() && this.stalledAt !== this.progress); }

  /** Changes when units come or go, and when the log enters a segment. */
  private get progress(): number { return this.options.segments.liveUnits * this.options.segments.count + this.options.log.position.segment; }

  private isCheckpointDue(): boolean {
    const { checkpointer, checkpointBytes } = this.options;
    return this.tailAtOpening + checkpointer.tailBytes > Math.max(checkpointBytes, 16 * checkpointer.newestBytes);
  }

  private isLow(): boolean { return this.options.segments.freeCount < this.low; }

  private async run(): Promise<void> {
    while (!this.isClosing && this.options.log.state === 'open' && this.isNeeded()) {
      const isDone = this.isCheckpointDue() ? await this.checkpoint() : await this.makeFree();
      if (!isDone) this.stalledAt = this.progress;
      // A failed checkpoint is not tried again at once; the next batch will ask.
      if (!isDone) return;
    }
  }

  private async checkpoint(): Promise<boolean> {
    const isTaken = await this.options.checkpointer.take();
    if (isTaken) this.tailAtOpening = 0;
    return isTaken;
  }

  /** @returns false when nothing can be freed */
  private async makeFree(): Promise<boolean> {
    const { segments, checkpointer, log } = this.options, inUse = log.inUse;
    const empty = [...segments.withState(SegmentState.LOG)].filter((segment) => segments.units[segment] === 0 && !inUse.includes(segment)).length;
    if (empty === 0 && checkpointer.freeSoon === 0) return false;
    return this.checkpoint();
  }
}
