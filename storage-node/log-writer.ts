/**
 * The writing end of the log: batches fill, are sealed, written one after the other, synced, and handed back.
 *
 * States: open ─▶ failed (a sync failed, or the disk does not answer: nothing is written any more, all is refused)
 *         open ◀─▶ ailing (nowhere could be written: everything is refused until a probe succeeds)
 *
 * A place that can't be written is stepped over: the log goes on in the next segment announced, or in the one after it.
 *
 * Invariants: one batch is being written at a time; a batch begins where the last successful one ended, or in the
 * segment that this one announced; `onSettled` is called once for every batch, in order, after its views are free for
 * reuse.
 */
import { Refusal } from '../wire/ring-messages.js';
import { codeOf, isOperating, TartanError } from '../wire/errors.js';
import { Batch, type AlignedMemory, type ControlEntry } from './batch.js';
import type { LogPosition } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import {
  B,
  BATCH_HEADER_BYTES,
  batchHolds,
  EntryKind,
  entryWords,
  headerBlocksOf,
  MAX_HEADER_AREA_BYTES,
  MAX_PAYLOAD_BLOCKS,
  plausibleBatch,
  sealBatch,
} from './log-format.js';
import { SegmentState, type Segments } from './segments.js';
import type { Superblock } from './superblock.js';
import { detach } from '../wire/front-door.js';

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
  /** It is 'ailing' or 'failed' from now on. */
  readonly onTrouble: (why: string) => void;
  /** @param refusal NONE when the batch is as durable as this log makes it */
  readonly onSettled: (batch: Batch, refusal: number) => void;
}

/**
 * Who asks for room: units, the cleaner, or entries that are no units (fences, deletions). Each leaves some to the
 * next.
 */
export type Room = 'unit' | 'move' | 'control';

/** A batch announces two segments: whoever reads the log after it looks no further. */
const MOST_ENTERED = 2;
/** A volatile log is synced behind the writer's back this often, so that opening it has a bounded tail to check. */
const VOLATILE_SYNC_BYTES = 256 << 20;

export class LogWriter {
  state: 'open' | 'ailing' | 'failed' | 'closed' = 'open';
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
  /** Segments entered since the last batch: as many as that one announced can be found again. */
  private entered = 0;
  /** Segments stepped over since then. */
  private suspects: number[] = [];
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

  /** A sync failed, or the disk does not answer: nothing can be said of it any more. */
  fail(why: string): void {
    if (this.state === 'failed') return;
    this.state = 'failed';
    this.options.onTrouble(why);
  }

  /**
   * Makes durable what has been written, for the log and for checkpoints alike: the system tells of a failure once, and
   * whoever asks next must not take that for success.
   *
   * @throws {TartanError} ERR_DISK: the log has failed
   */
  async sync(): Promise<void> {
    try {
      await this.options.disk.sync();
    } catch (error) {
      if (!isOperating(error)) throw error;
      this.fail(error.message);
      throw error;
    }
    // `state` may have changed while the disk was at it
    if ((this.state as string) === 'failed')
      throw new TartanError('ERR_DISK', 'Cannot make the log durable: another sync has failed');
  }

  /**
   * Tries whether an ailing log can be written again: a batch that says nothing, synced and read back.
   * @returns whether it is open
   */
  async probe(): Promise<boolean> {
    if (this.state !== 'ailing' || this.running) return this.state === 'open';
    this.running = true;
    const memory = this.options.allocate(BLOCK_BYTES);
    try {
      const block = await this.writeMarkBatch();
      await this.sync();
      this.synced = this.sequence - 1;
      await this.options.disk.read(memory.bytes.subarray(0, BLOCK_BYTES), block * BLOCK_BYTES);
      const words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, BLOCK_BYTES >> 2);
      // closing, or a failure, may have come between
      if (words[B.CRC] === this.chain && (this.state as string) === 'ailing') this.state = 'open';
    } catch (error) {
      if (!isOperating(error)) throw error;
    } finally {
      memory.release();
      this.running = false;
      for (const resolve of this.waiting.splice(0)) resolve();
    }
    return (this.state as string) === 'open';
  }

  batch(id: number): Batch {
    return this.all[id]!;
  }

  /** Refusal of everything new, or NONE. */
  get refusal(): number {
    return this.state === 'open' ? Refusal.NONE : this.state === 'closed' ? Refusal.CLOSED : Refusal.DISK;
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
      detach(this.run());
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
  async close(isHung = false): Promise<void> {
    const wasAiling = this.state === 'ailing';
    if (this.state !== 'failed') this.state = 'closed';
    await this.drained();
    await this.backgroundSync;
    const broken = wasAiling || this.refusal === Refusal.DISK;
    try {
      // Without the MARK the next opening checks the last batches' payloads: slower, no less right. So a failure here
      // is no error.
      if (!broken && this.options.durability !== 'discard' && !this.tailMarked) await this.writeMark();
    } catch {
      /* as said above */
    }
    // what hangs may still read it
    if (!isHung) for (const batch of this.all) batch.memory.release();
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
      const refusal = this.state === 'failed' || this.state === 'ailing' ? Refusal.DISK : await this.commit(batch);
      this.options.onSettled(batch, refusal);
      this.committing = false;
      batch.reset();
      // A disk that does not answer may still be reading it.
      if ((this.state as string) !== 'failed') this.pool.push(batch);
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
    this.writingBlocks = sizeInBlocks(batch, 0);
    const refusal = await this.writeSomewhere(batch);
    this.writingBlocks = 0;
    if (refusal !== Refusal.NONE) return refusal;
    if (this.options.durability === 'volatile') {
      this.syncBehind();
      return Refusal.NONE;
    }
    try {
      await this.sync();
    } catch (error) {
      if (!isOperating(error)) throw error;
      // After a failed sync the system may have dropped the data and call the next sync a success: never try again.
      return Refusal.DISK;
    }
    this.synced = this.sequence - 1;
    return Refusal.NONE;
  }

  /**
   * Writes the batch where it can be written: at the log's end, there once more, then in the segments announced.
   * @returns NONE, or why not: nothing counts on this batch, and the next one takes its place
   */
  private async writeSomewhere(batch: Batch): Promise<number> {
    for (let tries = 1; ; tries++) {
      try {
        await this.write(batch);
        for (const segment of this.suspects.splice(0)) this.segments.condemn(segment);
        return Refusal.NONE;
      } catch (error) {
        if (!isOperating(error)) throw error;
        if (codeOf(error) === 'ERR_DISK_FULL') return Refusal.DISK_FULL;
        if (this.state === 'failed') return Refusal.DISK;
        if (tries % 2 === 1 || (await this.stepOver())) continue;
        this.suspects = [];
        // A disk that writes nowhere: what comes next would fail as this did, for as long as somebody sends.
        if (this.state === 'open') {
          this.state = 'ailing';
          this.options.onTrouble(error.message);
        }
        return Refusal.DISK;
      }
    }
  }

  /** Leaves a place that can't be written. @returns false: it can't be left so that the log is found again */
  private async stepOver(): Promise<boolean> {
    if (this.entered >= MOST_ENTERED) return false;
    const left = this.segment;
    try {
      if (this.isSoiled && this.roomInSegment > 0 && !(await this.isVoid())) return false;
      this.enterNext();
    } catch (error) {
      if (!isOperating(error)) throw error;
      return false;
    }
    this.suspects.push(left);
    return true;
  }

  /** Sees to it that what a failed write left is not found in the place of the batch written elsewhere. */
  private async isVoid(): Promise<boolean> {
    try {
      await this.writeMarkBatch();
      return true;
    } catch (error) {
      if (!isOperating(error) || this.state === 'failed') throw error;
    }
    const memory = this.options.allocate(MAX_HEADER_AREA_BYTES),
      { tagLow, tagHigh } = this.options.superblock,
      { sequence, chain, roomInSegment: blocksLeft } = this;
    try {
      const blocks = Math.min(MAX_HEADER_AREA_BYTES / BLOCK_BYTES, blocksLeft);
      await this.options.disk.read(memory.bytes.subarray(0, blocks * BLOCK_BYTES), this.nextBlock * BLOCK_BYTES);
      const words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, MAX_HEADER_AREA_BYTES >> 2);
      return plausibleBatch(words, { tagLow, tagHigh, sequence, chain, blocksLeft }) === 0 || !batchHolds(words);
    } catch (error) {
      if (!isOperating(error)) throw error;
      return true; // what can't be read is no batch
    } finally {
      memory.release();
    }
  }

  /** Seals the batch, writes it at the log's end and moves the end. @throws {TartanError} ERR_DISK, ERR_DISK_FULL */
  private async write(batch: Batch): Promise<void> {
    const headerBlocks = headerBlocksOf(batch.headerBytes),
      blocks = headerBlocks + batch.payloadBlocks;
    if (blocks > this.roomInSegment) {
      if (this.isSoiled && this.roomInSegment > 0 && !(await this.isVoid()))
        throw new TartanError('ERR_DISK', 'Cannot go on in the next segment: a failed write left a whole batch');
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
    this.entered = 0;
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
    this.entered++;
    this.isSoiled = false;
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
  private async writeMarkBatch(): Promise<number> {
    const batch = this.takeBatch();
    batch.addControl(EntryKind.MARK, entryWords[EntryKind.MARK], () => undefined, {
      apply: () => undefined,
      resolve: () => undefined,
      reject: () => undefined,
    });
    try {
      await this.write(batch);
      return batch.firstBlock;
    } finally {
      batch.reset();
      if (this.state !== 'failed') this.pool.push(batch);
    }
  }

  private async writeMark(): Promise<void> {
    await this.sync();
    this.synced = this.sequence - 1;
    await this.writeMarkBatch();
    await this.sync();
  }

  private syncBehind(): void {
    if (this.unsyncedBytes < VOLATILE_SYNC_BYTES || this.backgroundSync !== undefined) return;
    const upTo = this.sequence - 1;
    this.unsyncedBytes = 0;
    this.backgroundSync = this.sync()
      .then(
        () => {
          this.synced = Math.max(this.synced, upTo);
        },
        (error: unknown) => {
          if (!isOperating(error)) throw error; // else the log has failed, and has said so
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
