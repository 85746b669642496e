/**
 * The writing end of the log: batches fill, are sealed, written one after the other, synced, and handed back.
 *
 * States: open ─▶ failed (a sync failed: nothing is written any more, everything is refused) ─▶ closed
 *
 * Invariants: one batch is being written at a time; a batch begins where the last successful one ended; `onSettled` is called
 * once for every batch, in order, after its views are free for reuse.
 */
import { Refusal } from '../wire/ring-messages.js';
import { codeOf } from '../wire/errors.js';
import { Batch, type AlignedMemory, type ControlEntry } from './batch.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { BATCH_HEADER_BYTES, EntryKind, entryWords, headerBlocksOf, MAX_HEADER_AREA_BYTES, MAX_PAYLOAD_BLOCKS, sealBatch } from './log-format.js';
import { LOG_FIRST_BLOCK, type Superblock } from './superblock.js';

/**
 * sync: acknowledged units survive a crash. volatile: they may not (written, not synced). discard: nothing is written and no
 * unit can be read; for benches that leave the disk out.
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
  /** Where the log ends now. */
  readonly nextBlock: number; readonly nextSequence: number; readonly chain: number;
  /** Whether the last batch needs no check when the log is read again. */
  readonly tailMarked: boolean;
  /** @param refusal NONE when the batch is as durable as this log makes it */
  readonly onSettled: (batch: Batch, refusal: number) => void;
}

/** A volatile log is synced behind the writer's back this often, so that opening it has a bounded tail to check. */
const VOLATILE_SYNC_BYTES = 256 << 20;

export class LogWriter {
  state: 'open' | 'failed' | 'closed' = 'open';
  /** Batches written, or accepted by a log that discards. */
  batches = 0;
  private nextBlock: number;
  private sequence: number;
  private chain: number;
  /** Every batch up to this sequence is on disk. */
  private synced: number;
  private tailMarked: boolean;
  private unsyncedBytes = 0;
  private backgroundSync: Promise<void> | undefined;
  private readonly totalBlocks: number;
  private readonly reservedBlocks: number;
  private readonly maxPayloadBlocks: number;
  /** Batches waiting, oldest first; the last one is being filled. Never empty. */
  private readonly queue: Batch[] = [];
  private readonly pool: Batch[] = [];
  /** All batches there are, by id. */
  private readonly all: Batch[] = [];
  /** Blocks of batches that no longer grow and are not on disk yet. */
  private frozenBlocks = 0;
  private running = false;
  private waiting: (() => void)[] = [];

  constructor(private readonly options: LogWriterOptions) {
    this.totalBlocks = options.disk.size / BLOCK_BYTES;
    this.reservedBlocks = Math.min(256, Math.ceil((this.totalBlocks - LOG_FIRST_BLOCK) / 16));
    this.maxPayloadBlocks = Math.min(MAX_PAYLOAD_BLOCKS, Math.max(1, Math.floor(options.maxBatchBytes / BLOCK_BYTES)));
    this.nextBlock = options.nextBlock;
    this.sequence = options.nextSequence;
    this.chain = options.chain;
    this.synced = this.sequence - 1;
    this.tailMarked = options.tailMarked;
    this.queue.push(this.takeBatch());
  }

  get usedBlocks(): number { return this.nextBlock - LOG_FIRST_BLOCK; }
  get capacityBlocks(): number { return this.totalBlocks - LOG_FIRST_BLOCK; }

  batch(id: number): Batch { return this.all[id]!; }

  /** Refusal of everything new, or NONE. */
  get refusal(): number { return this.state === 'open' ? Refusal.NONE : this.state === 'failed' ? Refusal.DISK : Refusal.CLOSED; }

  /**
   * The batch that takes a unit's entry, or undefined: the log is full. Add to it at once, then call kick().
   *
   * @param size    words of the entry
   * @param blocks  of its payload
   */
  batchForUnit(size: number, blocks: number): Batch | undefined { return this.batchFor(size, blocks, this.reservedBlocks); }

  /** Queues an entry that is not a unit; it may use the room set aside. @returns a refusal, or NONE when queued */
  addControl(kind: keyof typeof entryWords, fill: (words: Uint32Array, w: number) => void, control: ControlEntry): number {
    if (this.refusal !== Refusal.NONE) return this.refusal;
    const batch = this.batchFor(entryWords[kind], 0, 0);
    if (batch === undefined) return Refusal.DISK_FULL;
    batch.addControl(kind, entryWords[kind], fill, control);
    this.kick();
    return Refusal.NONE;
  }

  /** Starts writing at the end of this turn, so that whatever arrives in one batch of completions goes together. */
  kick(): void {
    if (this.running) return;
    this.running = true;
    queueMicrotask(() => { void this.run(); });
  }

  /** Resolves when nothing is queued or being written. */
  drained(): Promise<void> {
    if (!this.running) return Promise.resolve();
    return new Promise((resolve) => { this.waiting.push(resolve); });
  }

  /** Refuses what is new, writes what is queued, marks the log's end when it can. */
  async close(): Promise<void> {
    if (this.state === 'open') this.state = 'closed';
    await this.drained();
    await this.backgroundSync;
    const broken = this.refusal === Refusal.DISK;
    try {
      // Without the MARK the next opening checks the last batches' payloads: slower, no less right. So a failure here is no error.
      if (!broken && this.options.durability !== 'discard' && !this.tailMarked) await this.writeMark();
    } catch { /* as said above */ }
    for (const batch of this.all) batch.memory.release();
  }

  private batchFor(size: number, blocks: number, reserve: number): Batch | undefined {
    let batch = this.queue[this.queue.length - 1]!;
    const fits = batch.hasRoom(size, blocks, this.maxPayloadBlocks);
    const frozen = this.frozenBlocks + (fits ? 0 : sizeInBlocks(batch, 0));
    const grown = fits ? sizeInBlocks(batch, size) : headerBlocksOf(BATCH_HEADER_BYTES + size * 4);
    if (this.options.durability !== 'discard' && this.nextBlock + frozen + grown + blocks > this.totalBlocks - reserve) return undefined;
    if (!fits) {
      this.frozenBlocks = frozen;
      this.queue.push(batch = this.takeBatch());
    }
    return batch;
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
      const size = sizeInBlocks(batch, 0);
      if (this.queue.length === 0) {
        this.frozenBlocks += size;
        this.queue.push(this.takeBatch());
      }
      const refusal = this.state === 'failed' ? Refusal.DISK : await this.commit(batch);
      this.frozenBlocks -= size;
      this.options.onSettled(batch, refusal);
      batch.reset();
      this.pool.push(batch);
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
      await this.write(batch);
    } catch (error) {
      // An honest failure: nothing counts on this batch, and the next one takes its place on disk.
      return codeOf(error) === 'ERR_DISK_FULL' ? Refusal.DISK_FULL : Refusal.DISK;
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

  /** Seals the batch, writes it at the log's end and moves the end. */
  private async write(batch: Batch): Promise<void> {
    const headerBlocks = headerBlocksOf(batch.headerBytes);
    const { tagLow, tagHigh } = this.options.superblock;
    batch.firstBlock = this.nextBlock;
    const chain = sealBatch(batch.words, {
      tagLow, tagHigh, sequence: this.sequence, entries: batch.entryCount, headerBytes: batch.headerBytes,
      payloadBlocks: batch.payloadBlocks, synced: this.synced, chain: this.chain, salt: this.options.salt,
    });
    batch.views[0] = batch.memory.bytes.subarray(0, headerBlocks * BLOCK_BYTES);
    await this.options.disk.writev(batch.views, this.nextBlock * BLOCK_BYTES);
    this.nextBlock += headerBlocks + batch.payloadBlocks;
    this.unsyncedBytes += (headerBlocks + batch.payloadBlocks) * BLOCK_BYTES;
    this.chain = chain;
    this.sequence++;
    this.tailMarked = batch.units === 0 && this.synced === this.sequence - 2;
  }

  private async writeMark(): Promise<void> {
    await this.options.disk.sync();
    this.synced = this.sequence - 1;
    const batch = this.queue[0]!;
    batch.addControl(EntryKind.MARK, entryWords[EntryKind.MARK], () => undefined, { apply: () => undefined, resolve: () => undefined, reject: () => undefined });
    if (this.nextBlock + headerBlocksOf(batch.headerBytes) > this.totalBlocks) return;
    await this.write(batch);
    await this.options.disk.sync();
  }

  private syncBehind(): void {
    if (this.unsyncedBytes < VOLATILE_SYNC_BYTES || this.backgroundSync !== undefined) return;
    const upTo = this.sequence - 1;
    this.unsyncedBytes = 0;
    this.backgroundSync = this.options.disk.sync().then(
      () => { this.synced = Math.max(this.synced, upTo); },
      () => { this.state = 'failed'; },
    ).finally(() => { this.backgroundSync = undefined; });
  }
}

/** Blocks a batch takes on disk with `more` words of entries added. */
function sizeInBlocks(batch: Batch, more: number): number { return headerBlocksOf(batch.headerBytes + more * 4) + batch.payloadBlocks; }
