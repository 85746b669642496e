/**
 * Reads the log's own headers back, as the next opening would: a batch that doesn't hold there would pass for lost, and
 * the store could not be opened. What is in memory knows better; so a checkpoint is taken, and the damage lies before
 * it.
 *
 * One walk at a time, one batch at a time: nobody is disturbed.
 */
import { isOperating } from '../wire/errors.js';
import type { AlignedMemory } from './batch.js';
import type { LogPosition, Tag } from './checkpoint-pointer.js';
import type { Checkpointer } from './checkpointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { B, batchHolds, headerBlocksOf, MAX_HEADER_AREA_BYTES, plausibleBatch } from './log-format.js';
import type { LogWriter } from './log-writer.js';
import { placesOf } from './recovery.js';
import type { Segments } from './segments.js';
import type { SegmentsKeeper } from './segments-keeper.js';

export interface TailCheckOptions {
  readonly disk: Disk;
  readonly tag: Tag;
  readonly segments: Segments;
  readonly log: LogWriter;
  readonly checkpointer: Checkpointer;
  readonly keeper: SegmentsKeeper;
  readonly allocate: (bytes: number) => AlignedMemory;
  /** Monotonic ms; without a clock every walk begins at the beginning. */
  readonly now: () => number;
}

/**
 * A scrub asks at the beginning of each file. For so long a walk counts for all of them, and only what the log has
 * grown by is read: with many small files the tail would be read as often as there are files, and nothing else done.
 */
const COUNTS_FOR_MS = 600_000;

export class TailCheck {
  private running: Promise<boolean> | undefined;
  /** The last walk that found nothing: where it began, when, and where it ended. */
  private last: { readonly from: LogPosition; readonly at: number; readonly end: LogPosition } | undefined;

  constructor(private readonly options: TailCheckOptions) {}

  /**
   * @returns false: something was damaged, and a checkpoint has been asked for; whoever comes while it runs shares its
   *   answer
   */
  check(): Promise<boolean> {
    return (this.running ??= this.run().finally(() => {
      this.running = undefined;
    }));
  }

  private async run(): Promise<boolean> {
    const { checkpointer, keeper, log, allocate } = this.options;
    // What is being written now is not read: it may not be there yet.
    const from = checkpointer.tailStart,
      upTo = log.position.sequence,
      memory = allocate(MAX_HEADER_AREA_BYTES),
      now = this.options.now();
    const goesOn = this.last !== undefined && this.last.from === from && now - this.last.at < COUNTS_FOR_MS;
    try {
      const end = await this.walk(goesOn ? this.last!.end : from, upTo, memory.bytes);
      if (end !== undefined) {
        this.last = { from, at: goesOn ? this.last!.at : now, end };
        return true;
      }
      this.last = undefined;
      // a newer checkpoint: these may have been used again
      if (checkpointer.tailStart !== from) return true;
      keeper.wantCheckpoint();
      return false;
    } finally {
      memory.release();
    }
  }

  /** @returns where the log goes on after the last batch below `upTo`; undefined: one of them does not hold */
  private async walk(from: LogPosition, upTo: number, memory: Uint8Array): Promise<LogPosition | undefined> {
    const { disk, segments, tag } = this.options,
      words = new Uint32Array(memory.buffer, memory.byteOffset, MAX_HEADER_AREA_BYTES >> 2);
    let { segment, block, sequence, chain, next, after } = from;
    for (; sequence < upTo; sequence++) {
      let headerBytes = 0;
      for (const [at, inside] of placesOf(segments, block, segment, next, after)) {
        const blocksLeft = segments.first(inside) + segments.blocks - at;
        if (blocksLeft <= 0 || !(await this.read(disk, memory, 0, 1, at))) continue;
        const size = plausibleBatch(words, { ...tag, sequence, chain, blocksLeft }),
          more = headerBlocksOf(size) - 1;
        if (size === 0 || (more > 0 && !(await this.read(disk, memory, 1, more, at + 1))) || !batchHolds(words))
          continue;
        [headerBytes, block, segment] = [size, at, inside];
        break;
      }
      if (headerBytes === 0) return undefined;
      block += headerBlocksOf(headerBytes) + words[B.PAYLOAD_BLOCKS]!;
      chain = words[B.CRC]!;
      next = words[B.NEXT]! === 0 ? -1 : segments.of(words[B.NEXT]!);
      after = words[B.AFTER]! === 0 ? -1 : segments.of(words[B.AFTER]!);
    }
    return { segment, block, sequence, chain, next, after };
  }

  /** @returns false: it can't be read */
  private async read(disk: Disk, memory: Uint8Array, index: number, blocks: number, at: number): Promise<boolean> {
    try {
      await disk.read(memory.subarray(index * BLOCK_BYTES, (index + blocks) * BLOCK_BYTES), at * BLOCK_BYTES);
      return true;
    } catch (error) {
      if (!isOperating(error)) throw error;
      return false;
    }
  }
}
