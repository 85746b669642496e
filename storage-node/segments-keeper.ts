/**
 * Keeps the log short and segments free: says when a checkpoint is taken and when segments are cleaned, one thing after
 * the other, beside the log's own work.
 *
 * Invariant: what `reserveOf` leaves is enough for a checkpoint, always; and what units leave beyond that, for the
 * cleaner to go on and for deletions to be recorded. So a full store becomes free again when something in it is no
 * longer needed.
 */
import { isOperating } from '../wire/errors.js';
import type { Checkpointer } from './checkpointer.js';
import type { Cleaner } from './cleaner.js';
import type { LogWriter, Room } from './log-writer.js';
import { SegmentState, type Segments } from './segments.js';

/** Segments beyond the checkpoints' own: for entries that are no units, and for the cleaner to copy to. */
const CONTROL_SEGMENTS = 1;
const CLEANER_SEGMENTS = 2;

export interface KeeperOptions {
  readonly segments: Segments;
  readonly log: LogWriter;
  readonly checkpointer: Checkpointer;
  readonly cleaner: Cleaner;
  /** Called after each step; `isLast`: it rests now. */
  readonly onProgress: (isLast: boolean) => void;
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
  private isWanted = false;

  constructor(private readonly options: KeeperOptions) {
    this.tailAtOpening = options.tailBytes;
  }

  /** Below so many free segments more are made. */
  private get low(): number {
    return this.reserveOf('unit') + Math.max(2, this.options.segments.count >> 5);
  }

  reserveOf(room: Room): number {
    const { reserve } = this.options.checkpointer;
    return room === 'control'
      ? reserve
      : room === 'move'
        ? reserve + CONTROL_SEGMENTS
        : reserve + CONTROL_SEGMENTS + CLEANER_SEGMENTS;
  }

  /** Damage was found in what opening would read: it must not find it. */
  wantCheckpoint(): void {
    this.isWanted = true;
    this.kick();
  }

  /** Looks whether there is something to do; never waits. */
  kick(): void {
    if (this.running !== undefined || this.isClosing || this.options.log.state !== 'open' || !this.isNeeded()) return;
    this.running = this.run()
      .catch((error: unknown) => {
        // The log has failed, and says so itself.
        if (!isOperating(error)) throw error;
      })
      .finally(() => {
        this.running = undefined;
        this.options.onProgress(true);
      });
  }

  get isRunning(): boolean {
    return this.running !== undefined;
  }

  /** Resolves when it has nothing to do. */
  async idle(): Promise<void> {
    while (this.running !== undefined) await this.running;
  }

  /** Ends after the step it is in. */
  async close(): Promise<void> {
    this.isClosing = true;
    await this.running;
  }

  private isNeeded(): boolean {
    return this.isCheckpointDue() || (this.isLow() && (this.stalledAt !== this.progress || this.emptySegments > 0));
  }

  /** Changes with what there is to clean. */
  private get progress(): number {
    return this.options.segments.liveBlocks * 4096 + (this.options.segments.liveUnits % 4096);
  }

  private isCheckpointDue(): boolean {
    const { checkpointer, checkpointBytes } = this.options;
    return (
      this.isWanted ||
      this.tailAtOpening + checkpointer.tailBytes > Math.max(checkpointBytes, 16 * checkpointer.newestBytes)
    );
  }

  private isLow(): boolean {
    return this.options.segments.freeCount < this.low;
  }

  private async run(): Promise<void> {
    const before = this.options.cleaner.movedBlocks;
    while (!this.isClosing && this.options.log.state === 'open' && this.isNeeded()) {
      // Whoever waits for room tries again before everybody is told that there is none.
      const isDone = this.isCheckpointDue() ? await this.checkpoint() : await this.makeFree(before);
      this.options.onProgress(false);
      if (isDone) continue;
      this.stalledAt = this.progress;
      return;
    }
  }

  private async checkpoint(): Promise<boolean> {
    this.isWanted = false;
    const isTaken = await this.options.checkpointer.take();
    if (isTaken) this.tailAtOpening = 0;
    return isTaken;
  }

  /**
   * Empties a segment, or takes the checkpoints that make empty ones free. Some are emptied for each checkpoint.
   *
   * @param before  blocks moved when this run began: it moves no more than the log has, so that it ends where units
   *         don't pack
   * @returns false when nothing can be freed
   */
  private async makeFree(before: number): Promise<boolean> {
    const { segments, checkpointer, cleaner, log } = this.options,
      empty = this.emptySegments;
    const enough = Math.min(8, Math.max(1, segments.count >> 4)),
      moved = cleaner.movedBlocks - before;
    const hasRoom = segments.freeCount + (log.position.after >= 0 ? 1 : 0) > this.reserveOf('move');
    // The less there is, the less a segment has to give.
    const leastGain = Math.max(1, segments.blocks >> (segments.freeCount > this.reserveOf('unit') ? 3 : 5));
    if (empty < enough && hasRoom && moved < segments.count * segments.blocks) {
      const victim = cleaner.choose(leastGain);
      if (victim >= 0 && (await cleaner.clean(victim))) return true;
    }
    return empty + checkpointer.freeSoon > 0 && this.checkpoint();
  }

  /** Segments that the log has left and in which nothing is live. */
  private get emptySegments(): number {
    const { segments, log } = this.options,
      { segment: filling, next, after } = log.position;
    let count = 0;
    for (let segment = 0; segment < segments.count; segment++) {
      if (
        segments.states[segment] === SegmentState.LOG &&
        segments.units[segment] === 0 &&
        segment !== filling &&
        segment !== next &&
        segment !== after
      )
        count++;
    }
    return count;
  }
}
