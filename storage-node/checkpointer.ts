/**
 * Takes checkpoints: copies what must be copied between two batches, writes it beside the log, and names it in one of
 * the two pointer blocks, in turn.
 *
 *     snapshot at a batch boundary ─▶ pieces into free segments ─▶ sync ─▶ pointer ─▶ sync ─▶ free what two checkpoints
 *     no longer need
 *
 * Invariant: at any moment the two pointers name two checkpoints, or one that holds and one being overwritten; of no
 * checkpoint that a pointer may name is a segment reused, nor of the log behind it, nor one in which it holds a live
 * unit.
 */
import { codeOf, isOperating } from '../wire/errors.js';
import type { AlignedMemory } from './batch.js';
import { writePointer, type LogPosition, type Pointer, type Tag } from './checkpoint-pointer.js';
import { CheckpointWriter, pieceBlocks, segmentsFor } from './checkpoint-stream.js';
import { checkpointWords, snapshotSegments, writeCheckpoint } from './checkpoint.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import type { IndexTable } from './index-table.js';
import type { LogWriter } from './log-writer.js';
import { SegmentState, type Segments } from './segments.js';

export interface CheckpointerOptions {
  readonly disk: Disk;
  readonly index: IndexTable;
  readonly segments: Segments;
  readonly log: LogWriter;
  readonly tag: Tag;
  readonly allocate: (bytes: number) => AlignedMemory;
  /**
   * The checkpoint that the index was built from, the pointer block that names it, the area of the other one, the
   * highest number given.
   */
  readonly base: Pointer;
  readonly slot: number;
  readonly otherArea: readonly number[];
  readonly highestGeneration: number;
  /** Segments in which nothing was live when the base was taken. */
  readonly empty: readonly number[];
}

/** A checkpoint is written so often, each time elsewhere, before the disk is left alone with it. */
const MOST_TRIES = 3;

export class Checkpointer {
  /** Taken since the store was opened, and their bytes. */
  taken = 0;
  bytesWritten = 0;
  /** Bytes of the newest, and what the log had written when it was taken. */
  newestBytes: number;
  private logBytes = 0;
  private generation: number;
  private slot: number;
  /** By pointer block: segments that its checkpoint lies in. */
  private readonly areas: number[][] = [[], []];
  /** Left by the log, and nothing live in them, when the newest checkpoint was taken. */
  private empty: number[];
  /** Where the newest ends: what the log holds from there on is read when the store is opened. */
  private tail: LogPosition;
  /** Segments that the checkpoint being written has got so far. */
  private taking: readonly number[] = [];
  private needed = 1;
  private neededAt = -1;

  constructor(private readonly options: CheckpointerOptions) {
    this.generation = options.highestGeneration;
    this.slot = options.slot;
    this.areas[this.slot] = [...options.base.segments];
    this.areas[1 - this.slot] = [...options.otherArea];
    this.empty = [...options.empty];
    this.newestBytes = options.base.words * 4;
    this.tail = options.base;
  }

  /** Where the log that opening would read begins; another object after each checkpoint. */
  get tailStart(): LogPosition {
    return this.tail;
  }

  /** Whether opening would read this block of the log. */
  isInTail(block: number): boolean {
    const { segments } = this.options,
      segment = segments.of(block);
    return segment === this.tail.segment
      ? block >= this.tail.block
      : segments.sequences[segment]! >= this.tail.sequence;
  }

  /** Bytes of log that would be replayed on top of the newest; without those read at opening. */
  get tailBytes(): number {
    return this.options.log.bytesWritten - this.logBytes;
  }
  /** Segments that will be free when the next checkpoint is durable. */
  get freeSoon(): number {
    return this.empty.length;
  }

  /**
   * Free segments that must be left for checkpoints: three lie on the disk while one is being written. What that one
   * has yet to get stays set aside meanwhile: once the log had it, there would never be room for a checkpoint again.
   */
  get reserve(): number {
    const { index, segments } = this.options;
    // Counting files takes a while; units are what grows fast.
    if (this.neededAt < 0 || Math.abs(index.count - this.neededAt) > 256 + (this.neededAt >> 4)) {
      this.neededAt = index.count;
      this.needed = segmentsFor(checkpointWords(index, segments) * 1.1, segments.blocks);
    }
    return Math.max(0, 3 * this.needed - this.areas[0]!.length - this.areas[1]!.length - this.taking.length);
  }

  /**
   * @returns false when it could not be written, with everything as before
   * @throws {TartanError} ERR_DISK when a sync failed: the log has failed then
   */
  async take(): Promise<boolean> {
    const unwritable: number[] = [];
    for (let tries = 1; ; tries++) {
      const outcome = await this.tryTake();
      if (outcome === 'taken') {
        // Others could be written, so it is these.
        for (const segment of unwritable) this.options.segments.condemn(segment);
        return true;
      }
      if (outcome === 'full' || tries === MOST_TRIES) return false;
      unwritable.push(outcome);
    }
  }

  /** @returns the segment that could not be written, or 'full': there is no room, or the pointer can't be written */
  private async tryTake(): Promise<'taken' | 'full' | number> {
    const { disk, segments, tag, log, allocate } = this.options;
    this.neededAt = -1;
    const area: number[] = [],
      generation = ++this.generation;
    const shot = await this.snapshot();
    this.taking = area;
    const memory = allocate(pieceBlocks(segments.blocks) * BLOCK_BYTES);
    try {
      const writer = new CheckpointWriter(disk, segments, tag, generation, memory, () => {
        const segment = segments.take(SegmentState.CHECKPOINT);
        if (segment >= 0) area.push(segment);
        return segment;
      });
      await writeCheckpoint(writer, shot.index, shot.segments);
      await this.sync();
      const slot = 1 - this.slot;
      // From here on the pointer may name the new one, whatever happens: both areas are kept until the next is written
      // there.
      const old = this.areas[slot]!;
      this.areas[slot] = [...old, ...area];
      this.taking = [];
      await writePointer(
        disk,
        slot,
        { ...shot.position, generation, words: writer.total, segments: area },
        tag,
        memory.bytes.subarray(0, BLOCK_BYTES),
      );
      await this.sync();
      this.areas[slot] = area;
      this.slot = slot;
      this.release(old);
      this.taken++;
      this.bytesWritten += writer.bytesWritten + BLOCK_BYTES;
      this.newestBytes = writer.bytesWritten;
      this.logBytes = shot.logBytes;
      this.tail = shot.position;
      this.freeEmpty(shot.segments.empty);
      // Whatever opening found torn is not in this checkpoint, and the log before it is not read again.
      log.trustTail();
      return 'taken';
    } catch (error) {
      if (!isOperating(error) || log.state === 'failed') throw error;
      if (this.areas[1 - this.slot]!.includes(area[0]!)) return 'full';
      this.release(area);
      return codeOf(error) === 'ERR_DISK' ? area.at(-1)! : 'full';
    } finally {
      this.taking = [];
      shot.index.release();
      memory.release();
    }
  }

  /**
   * Segments in which nothing was live at the previous checkpoint either: whichever of the two is used, nothing there
   * is missed.
   */
  private freeEmpty(empty: readonly number[]): void {
    this.release(this.empty);
    this.empty = empty.filter((segment) => this.options.segments.states[segment] === SegmentState.LOG);
  }

  private release(segments: readonly number[]): void {
    for (const segment of segments) this.options.segments.release(segment);
  }

  private sync(): Promise<void> {
    return this.options.log.sync();
  }

  private snapshot(): Promise<{
    position: LogPosition;
    logBytes: number;
    index: ReturnType<IndexTable['snapshot']>;
    segments: ReturnType<typeof snapshotSegments>;
  }> {
    const { log, index, segments } = this.options;
    return new Promise((resolve) => {
      log.atBoundary(() => {
        resolve({
          position: log.position,
          logBytes: log.bytesWritten,
          index: index.snapshot(),
          segments: snapshotSegments(segments, log.inUse, this.empty),
        });
      });
    });
  }
}
