/**
 * The writing end of the log: batches fill, are sealed, written one after the other, synced, and handed back.
 *
 * States: open ─▶ failed (a sync failed: nothing is written any more, everything is refused) ─▶ closed
 *
 * Invariants: one batch is being written at a time; a batch begins where the last successful one ended, or in the
 * segment that this one announced; `onSettled` is called once for every batch, in order, after its views are free for
 * reuse.
 */
import { Refusal } from '../wire/ring-messages.js';
import { codeOf, TartanError } from '../wire/errors.js';
import { Batch, type AlignedMemory, type ControlEntry } from './batch.js';
import type { LogPosition } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import {
  BATCH_HEADER_BYTES,
  EntryKind,
  entryWords,
  headerBlocksOf,
  MAX_HEADER_AREA_BYTES,
  MAX_PAYLOAD_BLOCKS,
  sealBatch,
} from './log-format.js';
import { SegmentState, type Segments } from './segments.js';
import type { Superblock } from './superblock.js';

/**
 * sync: acknowledged units survive a crash. volatile: they may not (written, not synced). discard: nothing is written
 * and no unit can be read; for benches that leave the disk out.
 */
export type Durability = 'sync' | 'volatile' | 'discard';

export interface LogWriterOptions {
  readonly disk: Disk;
  readonly superblock: Superblock;
  readonly durability: Durability;
  readonly allocate: (bytes: number) => AlignedMemory;
  readonly salt: number;
  readonly maxBatchUnits: number;
  readonly maxBatchBytes: number;
  /** Where the log goes on. */
  readonly position: LogPosition;
  readonly segments: Segments;
  /** Batches up to this one need no check when the log is read again. */
  readonly synced: number;
  /** Free segments that a class of entries leaves alone. */
  readonly reserveOf: (room: Room) => number;
  /** @param refusal NONE when the batch is as durable as this log makes it */
  readonly onSettled: (batch: Batch, refusal: number) => void;
}

/**
 * Who asks for room: units, the cleaner, or entries that are no units (fences, deletions). Each leaves some to the
 * next.
 */
export type Room = 'unit' | 'move' | 'control';

/** A volatile log is synced behind the writer's back this often, so that opening it has a bounded tail to check. */
const VOLATILE_SYNC_BYTES = 256 << 20;

export class LogWriter {
  state: 'open' | 'failed' | 'closed' = 'open';
  /** Batches written, or accepted by a log that discards. */
  batches = 0;
  /** Bytes written to the log since it was opened. */
  bytesWritten = 0;
  private segment: number;
  private nextBlock: number;
  /** The segments after this one, −1: not chosen yet. What was announced stays. */
  private next: number;
  private after: number;
  private sequence: number;
  private chain: number;
  /** Every batch up to this sequence is on disk. */
  private synced: number;
  /** Batches may say so: not while units that opening found torn have no VOID yet. */
  private claimed: number;
  private tailMarked: boolean;
  /** Blocks of the batch being written. */
  private writingBlocks = 0;
  /** A write has failed at the log's end: what it left there must not be taken for a batch. */
  private isSoiled = false;
  private unsyncedBytes = 0;
  private backgroundSync: Promise<void> | undefined;
  private readonly segments: Segments;
  private readonly maxPayloadBlocks: number;
  /** Batches waiting, oldest first; the last one is being filled. Never empty. */
  private readonly queue: Batch[] = [];
  private readonly pool: Batch[] = [];
  /** All batches there are, by id. */
  private readonly all: Batch[] = [];
  private running = false;
  private committing = false;
  private waiting: (() => void)[] = [];
  private atBoundaries: (() => void)[] = [];

  constructor(private readonly options: LogWriterOptions) {
    this.segments = options.segments;
    this.maxPayloadBlocks = Math.min(MAX_PAYLOAD_BLOCKS, Math.max(1, Math.floor(options.maxBatchBytes / BLOCK_BYTES)));
    ({
      segment: this.segment,
      block: this.nextBlock,
      sequence: this.sequence,
      chain: this.chain,
      next: this.next,
      after: this.after,
    } = options.position);
    this.synced = this.sequence - 1;
    this.claimed = options.synced;
    this.tailMarked = options.synced === this.synced;
    this.queue.push(this.takeBatch());
  }

  get position(): LogPosition {
    return {
      segment: this.segment,
      block: this.nextBlock,
      sequence: this.sequence,
      chain: this.chain,
      next: this.next,
      after: this.after,
    };
  }
  /** The segment being filled, and those announced. */
  get inUse(): number[] {
    return [this.segment, this.next, this.after].filter((segment) => segment >= 0);
  }

  /** What opening found torn is voided: batches may call what is below them durable. */
  trustTail(): void {
    this.claimed = Infinity;
  }

  /**
   * Calls back between two batches: what was settled is in the index, and nothing else is durable. At once, if no batch
   * is being written.
   */
  atBoundary(call: () => void): void {
    if (this.committing) this.atBoundaries.push(call);
    else call();
  }

  /** A sync failed: nothing can be said of the disk any more. */
  fail(): void {
    if (this.state === 'open') this.state = 'failed';
  }

  batch(id: number): Batch {
    return this.all[id]!;
  }

  /** Refusal of everything new, or NONE. */
  get refusal(): number {
    return this.state === 'open' ? Refusal.NONE : this.state === 'failed' ? Refusal.DISK : Refusal.CLOSED;
  }

  /**
   * The batch that takes a unit's entry, or undefined: the log is full. Add to it at once, then call kick().
   *
   * @param size    words of the entry
   * @param blocks  of its payload
   */
  batchForUnit(size: number, blocks: number): Batch | undefined {
    return this.batchFor(size, blocks, 'unit');
  }

  /** As batchForUnit(), for the cleaner. */
  batchForMove(size: number, blocks: number): Batch | undefined {
    return this.batchFor(size, blocks, 'move');
  }

  /** Queues an entry that is not a unit; it may use the room set aside. @returns a refusal, or NONE when queued */
  addControl(
    kind: keyof typeof entryWords,
    fill: (words: Uint32Array, w: number) => void,
    control: ControlEntry,
  ): number {
    if (this.refusal !== Refusal.NONE) return this.refusal;
    const batch = this.batchFor(entryWords[kind], 0, 'control');
    if (batch === undefined) return Refusal.DISK_FULL;
    batch.addControl(kind, entryWords[kind], fill, control);
    this.kick();
    return Refusal.NONE;
  }

  /** Starts writing at the end of this turn, so that whatever arrives in one batch of completions goes together. */
  kick(): void {
    if (this.running) return;
    this.running = true;
    queueMicrotask(() => {
      void this.run();
    });
  }

  get isIdle(): boolean {
    return !this.running;
  }

  /** Resolves when nothing is queued or being written. */
  drained(): Promise<void> {
    if (!this.running) return Promise.resolve();
    return new Promise((resolve) => {
      this.waiting.push(resolve);
    });
  }

  /** Refuses what is new, writes what is queued, marks the log's end when it can. */
  async close(): Promise<void> {
    if (this.state === 'open') this.state = 'closed';
    await this.drained();
    await this.backgroundSync;
    const broken = this.refusal === Refusal.DISK;
    try {
      // Without the MARK the next opening checks the last batches' payloads: slower, no less right. So a failure here
      // is no error.
      if (!broken && this.options.durability !== 'discard' && !this.tailMarked) await this.writeMark();
    } catch {
      /* as said above */
    }
    for (const batch of this.all) batch.memory.release();
  }

  private batchFor(size: number, blocks: number, room: Room): Batch | undefined {
    let batch = this.queue[this.queue.length - 1]!;
    const alone = headerBlocksOf(BATCH_HEADER_BYTES + size * 4) + blocks;
    if (alone > this.segments.blocks) return undefined;
    if (this.options.durability === 'discard') {
      if (!batch.hasRoom(size, blocks, this.maxPayloadBlocks)) this.queue.push((batch = this.takeBatch()));
      return batch;
    }
    // Where the queue's batches will lie: each where the one before it ends, or at the beginning of another segment.
    let left = this.roomInSegment,
      entered = 0;
    for (let i = -1; i < this.queue.length - 1; i++) {
      const blocksHere = i < 0 ? this.writingBlocks : sizeInBlocks(this.queue[i]!, 0);
      if (blocksHere > left) {
        left = this.segments.blocks;
        entered++;
      }
      left -= blocksHere;
    }
    const now = batch.empty ? 0 : sizeInBlocks(batch, 0),
      grown = sizeInBlocks(batch, size) + blocks;
    const moves = now > left;
    // A batch that would outgrow the rest of the segment is left as it is, so that this rest is used.
    const fits = batch.hasRoom(size, blocks, this.maxPayloadBlocks) && grown <= (moves ? this.segments.blocks : left);
    if (!fits && moves) {
      left = this.segments.blocks;
      entered++;
    }
    if (!fits) left -= now;
    if ((fits ? grown : alone) > left) entered++;
    const free = this.segments.freeCount + (this.after >= 0 ? 1 : 0);
    if (entered > 0 && free - entered < this.options.reserveOf(room)) return undefined;
    if (!fits && !batch.empty) this.queue.push((batch = this.takeBatch()));
    return batch;
  }

  private get roomInSegment(): number {
    return this.segments.first(this.segment) + this.segments.blocks - this.nextBlock;
  }

  private takeBatch(): Batch {
    const pooled = this.pool.pop();
    if (pooled !== undefined) return pooled;
    const batch = new Batch(this.all.length, this.options.allocate(MAX_HEADER_AREA_BYTES), this.options.maxBatchUnits);
    this.all.push(batch);
    return batch;
  }

  private async run(): Promise<void> {
    while (!this.queue[0]!.empty) {
      const batch = this.queue.shift()!;
      if (this.queue.length === 0) this.queue.push(this.takeBatch());
      this.committing = true;
      const refusal = this.state === 'failed' ? Refusal.DISK : await this.commit(batch);
      this.options.onSettled(batch, refusal);
      this.committing = false;
      batch.reset();
      this.pool.push(batch);
      for (const call of this.atBoundaries.splice(0)) call();
    }
    this.running = false;
    for (const resolve of this.waiting.splice(0)) resolve();
  }

  private async commit(batch: Batch): Promise<number> {
    this.batches++;
    if (this.options.durability === 'discard') {
      await Promise.resolve();
      return Refusal.NONE;
    }
    try {
      this.writingBlocks = sizeInBlocks(batch, 0);
      await this.write(batch);
    } catch (error) {
      // An honest failure: nothing counts on this batch, and the next one takes its place on disk.
      return codeOf(error) === 'ERR_DISK_FULL' ? Refusal.DISK_FULL : Refusal.DISK;
    } finally {
      this.writingBlocks = 0;
    }
    if (this.options.durability === 'volatile') {
      this.syncBehind();
      return Refusal.NONE;
    }
    try {
      await this.options.disk.sync();
    } catch {
      // After a failed sync the system may have dropped the data and call the next sync a success: never try again.
      this.state = 'failed';
      return Refusal.DISK;
    }
    this.synced = this.sequence - 1;
    return Refusal.NONE;
  }

  /** Seals the batch, writes it at the log's end and moves the end. @throws {TartanError} ERR_DISK, ERR_DISK_FULL */
  private async write(batch: Batch): Promise<void> {
    const headerBlocks = headerBlocksOf(batch.headerBytes),
      blocks = headerBlocks + batch.payloadBlocks;
    if (blocks > this.roomInSegment) {
      if (this.isSoiled && this.roomInSegment > 0) await this.writeMarkBatch();
      this.enterNext();
    }
    this.announce();
    const { tagLow, tagHigh } = this.options.superblock;
    batch.firstBlock = this.nextBlock;
    const chain = sealBatch(batch.words, {
      tagLow,
      tagHigh,
      sequence: this.sequence,
      entries: batch.entryCount,
      headerBytes: batch.headerBytes,
      payloadBlocks: batch.payloadBlocks,
      synced: Math.min(this.synced, this.claimed),
      chain: this.chain,
      salt: this.options.salt,
      next: this.next < 0 ? 0 : this.segments.first(this.next),
      after: this.after < 0 ? 0 : this.segments.first(this.after),
    });
    batch.views[0] = batch.memory.bytes.subarray(0, headerBlocks * BLOCK_BYTES);
    this.isSoiled = true;
    await this.options.disk.writev(batch.views, this.nextBlock * BLOCK_BYTES);
    this.isSoiled = false;
    this.nextBlock += blocks;
    this.unsyncedBytes += blocks * BLOCK_BYTES;
    this.bytesWritten += blocks * BLOCK_BYTES;
    this.segments.filled[this.segment] = this.nextBlock - this.segments.first(this.segment);
    this.segments.sequences[this.segment] = this.sequence;
    this.chain = chain;
    this.sequence++;
    this.tailMarked =
      batch.units === 0 && batch.moves.length === 0 && Math.min(this.synced, this.claimed) === this.sequence - 2;
  }

  /** Goes on in the next segment, if another can be announced there. */
  private enterNext(): void {
    if (this.next < 0) this.announce();
    const following = this.after >= 0 ? this.after : this.takeSegment();
    if (this.next < 0 || following < 0)
      throw new TartanError('ERR_DISK_FULL', 'Cannot write to the log: no segment is free');
    this.segment = this.next;
    this.nextBlock = this.segments.first(this.segment);
    this.next = following;
    this.after = -1;
    this.announce();
  }

  /** Chooses the segments after this one, as far as there are any; those set aside for checkpoints are not touched. */
  private announce(): void {
    if (this.next < 0) this.next = this.takeSegment();
    if (this.after < 0) this.after = this.takeSegment();
  }

  private takeSegment(): number {
    return this.segments.freeCount > this.options.reserveOf('control') ? this.segments.take(SegmentState.LOG) : -1;
  }

  /** A batch that says nothing, of one block; with everything below it on disk, it marks a log closed in good order. */
  private async writeMarkBatch(): Promise<void> {
    const batch = this.takeBatch();
    batch.addControl(EntryKind.MARK, entryWords[EntryKind.MARK], () => undefined, {
      apply: () => undefined,
      resolve: () => undefined,
      reject: () => undefined,
    });
    try {
      await this.write(batch);
    } finally {
      batch.reset();
      this.pool.push(batch);
    }
  }

  private async writeMark(): Promise<void> {
    await this.options.disk.sync();
    this.synced = this.sequence - 1;
    await this.writeMarkBatch();
    await this.options.disk.sync();
  }

  private syncBehind(): void {
    if (this.unsyncedBytes < VOLATILE_SYNC_BYTES || this.backgroundSync !== undefined) return;
    const upTo = this.sequence - 1;
    this.unsyncedBytes = 0;
    this.backgroundSync = this.options.disk
      .sync()
      .then(
        () => {
          this.synced = Math.max(this.synced, upTo);
        },
        () => {
          this.state = 'failed';
        },
      )
      .finally(() => {
        this.backgroundSync = undefined;
      });
  }
}

/** Blocks a batch takes on disk with `more` words of entries added. */
function sizeInBlocks(batch: Batch, more: number): number {
  return headerBlocksOf(batch.headerBytes + more * 4) + batch.payloadBlocks;
}
