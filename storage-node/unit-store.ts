/**
 * The unit store: a log of units on one disk, and an index of it in memory (docs/store-format.md).
 *
 * Intuition: append() checks a unit against the index and puts it into the batch being filled; while one batch is
 * written and synced, the next fills; when it is on disk everybody in it is told at once. So the disk is always given
 * all there is.
 *
 * Invariants: a unit is reported durable only after its batch and every batch before it are (with `sync` durability);
 * nothing on disk is overwritten; entries take effect in the order they were queued, so a fence that is durable has
 * every unit that was accepted before it settled, durable or refused; a refused unit leaves no trace in the index.
 */
import { Refusal } from '../wire/ring-messages.js';
import { codeOf, TartanError, type ErrorCode } from '../wire/errors.js';
import { roundUp } from '../wire/slot-layout.js';
import { compareVersions, headerFileId, headerStripe, headerUnit, W } from '../wire/unit-header.js';
import type { AlignedMemory, AppendClient, Batch, MovedEntry } from './batch.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { Checkpointer } from './checkpointer.js';
import { Cleaner } from './cleaner.js';
import type { FileIndex } from './file-index.js';
import type { FileMark, HeldUnit } from './held-unit.js';
import { E, EntryFlag, IndexTable, type EntryFields } from './index-table.js';
import { EntryKind, missingEntry, unitEntryWords, writePair } from './log-format.js';
import { LogWriter, type Durability } from './log-writer.js';
import { openLog, type OpenedLog, type StoreRecovery } from './open-log.js';
import { SegmentsKeeper } from './segments-keeper.js';
import type { Segments } from './segments.js';
import type { StoreIdentity, Superblock } from './superblock.js';
import { TailCheck } from './tail-check.js';
import { discardVersions, freeSuperseded } from './versions.js';

export type { AlignedMemory, AppendClient } from './batch.js';
export type { Durability } from './log-writer.js';
export type { FileMark, HeldUnit } from './held-unit.js';
export type { StoreIdentity } from './superblock.js';
export type { StoreRecovery } from './open-log.js';

/** What append() returns for a unit whose fate a callback will tell; anything else it returns is a `Refusal`. */
export const QUEUED = -1;

export interface UnitStoreOptions extends StoreIdentity {
  readonly disk: Disk;
  /** Default 'sync'. */
  readonly durability?: Durability;
  /** Page-aligned memory where the disk needs it. Default: ordinary memory. */
  readonly allocate?: (bytes: number) => AlignedMemory;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  /** ms since 1970, for a new store. Default 0. */
  readonly nowMs?: number;
  /** Bounds of one batch. Default 256 units, 16 MiB of payload (at most 16 MiB). */
  readonly maxBatchUnits?: number;
  readonly maxBatchBytes?: number;
  /** A checkpoint of the index is due after so many bytes of log, and at least 16 times its own. Default 256 MiB. */
  readonly checkpointBytes?: number;
}

/** Where a unit lies and what it is called; copied out of the index, so it stays true across awaits. */
export interface UnitLocation {
  writerEpoch: number;
  counter: number;
  unitLength: number;
  payloadCrc: number;
  headerBlock: number;
  headerByte: number;
  headerBytes: number;
  payloadBlock: number;
}

/** A unit that append() took and could not place yet. */
interface ParkedUnit {
  readonly client: AppendClient;
  readonly token: number;
  readonly words: Uint32Array;
  readonly headerBytes: number;
  readonly rebuilt: boolean;
  readonly payload: Uint8Array;
}

export interface StoreStats {
  readonly durability: Durability;
  readonly failed: boolean;
  readonly units: number;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly liveBytes: number;
  readonly deadBytes: number;
  readonly batches: number;
  readonly unitsStored: number;
  readonly duplicates: number;
  readonly refused: number;
  readonly damaged: number;
  /** Units that wait for room, and what the cleaner copied. */
  readonly parked: number;
  readonly movedUnits: number;
  readonly movedBytes: number;
  /** Bytes written to the disk by those that were asked to be. */
  readonly writeAmplification: number;
  /** Of the log: free, with nothing dead in them, and the others that the log has filled. */
  readonly segmentsFree: number;
  readonly segmentsClean: number;
  readonly segmentsDirty: number;
  readonly checkpoints: number;
  readonly checkpointBytes: number;
  readonly recovery: StoreRecovery;
}

export class UnitStore {
  readonly superblock: Superblock;
  /** What opening found. */
  readonly recovery: StoreRecovery;
  /** Called after the callbacks of each batch. */
  onBatch: (() => void) | undefined;
  private readonly disk: Disk;
  private readonly durability: Durability;
  private readonly index: IndexTable;
  private readonly log: LogWriter;
  /** Files whose deletion is queued. */
  private readonly deleting = new Set<number>();
  private readonly segments: Segments;
  private readonly checkpointer: Checkpointer;
  private readonly cleaner: Cleaner;
  private readonly keeper: SegmentsKeeper;
  private readonly tail: TailCheck;
  private parked: ParkedUnit[] = [];
  private closed: Promise<void> | undefined;
  private readonly counts = { unitsStored: 0, duplicates: 0, refused: 0, damaged: 0 };

  /**
   * Opens the store on a disk, making it when the disk is blank.
   *
   * @throws {TartanError} ERR_FOREIGN_STORE, ERR_STORE_VERSION, ERR_DISK; ERR_CHECKSUM for a log damaged amid;
   *         ERR_ARGUMENT for a store that holds units when
   *         durability is 'discard'
   */
  static async open(options: UnitStoreOptions): Promise<UnitStore> {
    const allocate = options.allocate ?? ordinaryMemory;
    const opened = await openLog(options.disk, options, options.random, options.nowMs ?? 0, allocate);
    if (options.durability === 'discard' && opened.end.position.sequence > 1) {
      throw new TartanError(
        'ERR_ARGUMENT',
        `Cannot open the store with durability 'discard': units held: ${opened.index.count}, expected a new store`,
      );
    }
    const store = new UnitStore(options, allocate, opened);
    if (await store.settleTorn(opened)) store.log.trustTail();
    store.keep();
    return store;
  }

  private constructor(options: UnitStoreOptions, allocate: (bytes: number) => AlignedMemory, opened: OpenedLog) {
    const { end, superblock } = opened;
    this.disk = options.disk;
    this.durability = options.durability ?? 'sync';
    this.superblock = superblock;
    this.index = opened.index;
    this.recovery = opened.recovery;
    this.segments = opened.segments;
    this.log = new LogWriter({
      disk: options.disk,
      superblock,
      durability: this.durability,
      allocate,
      salt: Math.floor(options.random() * 0x1_0000_0000),
      maxBatchUnits: options.maxBatchUnits ?? 256,
      maxBatchBytes: options.maxBatchBytes ?? 16 << 20,
      position: end.position,
      segments: opened.segments,
      synced: end.uncertain.length === 0 ? end.position.sequence - 1 : end.synced,
      reserveOf: (room) => this.keeper.reserveOf(room),
      onSettled: (batch, refusal) => {
        this.settle(batch, refusal);
      },
    });
    this.checkpointer = new Checkpointer({
      disk: options.disk,
      index: this.index,
      segments: this.segments,
      log: this.log,
      tag: superblock,
      allocate,
      base: opened.base,
      slot: opened.slot,
      otherArea: opened.otherArea,
      highestGeneration: opened.highestGeneration,
      empty: opened.empty,
    });
    this.cleaner = new Cleaner({
      disk: options.disk,
      index: this.index,
      segments: this.segments,
      log: this.log,
      tag: superblock,
      allocate,
      onDamaged: (entry) => {
        this.flagDamaged(entry);
      },
    });
    this.keeper = new SegmentsKeeper({
      segments: this.segments,
      log: this.log,
      checkpointer: this.checkpointer,
      cleaner: this.cleaner,
      onProgress: (isLast) => {
        this.retryParked(isLast);
      },
      checkpointBytes: options.checkpointBytes ?? 256 << 20,
      tailBytes: end.blocks * BLOCK_BYTES,
    });
    this.tail = new TailCheck({
      disk: options.disk,
      tag: superblock,
      segments: this.segments,
      log: this.log,
      checkpointer: this.checkpointer,
      keeper: this.keeper,
      allocate,
    });
  }

  /**
   * Takes a unit whose header and payload have been checked (seal, CRC, shape).
   *
   * @param words, w, headerBytes  its header; copied before this returns
   * @param payload  whole blocks, zero-padded; must stay as it is until the callback, if one comes
   * @param rebuilt  a unit of a committed version: older owners' are welcome too
   * @returns QUEUED: `client.onAppended(token, …)` will be called, never from within this call. Otherwise a Refusal,
   *         final:
   *          NONE when the same unit is durable already
   */
  append(
    client: AppendClient,
    token: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
    payload: Uint8Array,
    rebuilt = false,
  ): number {
    const refusal = this.tryAppend(client, token, words, w, headerBytes, payload, rebuilt);
    if (
      refusal === Refusal.DISK_FULL &&
      this.park({ client, token, words: words.slice(w, w + (headerBytes >> 2)), headerBytes, payload, rebuilt })
    )
      return QUEUED;
    if (refusal === Refusal.NONE) this.counts.duplicates++;
    else if (refusal !== QUEUED) this.counts.refused++;
    return refusal;
  }

  /** Keeps a unit for which there is no room while some is being made. @returns false: none is */
  private park(unit: ParkedUnit): boolean {
    this.keep();
    if (this.durability === 'discard' || !this.keeper.isRunning) return false;
    this.parked.push(unit);
    return true;
  }

  /** @param isLast  no more room will be made now */
  private retryParked(isLast: boolean): void {
    for (const unit of this.parked.splice(0)) {
      const refusal = this.tryAppend(
        unit.client,
        unit.token,
        unit.words,
        0,
        unit.headerBytes,
        unit.payload,
        unit.rebuilt,
      );
      if (refusal === QUEUED) continue;
      if (refusal === Refusal.DISK_FULL && !isLast) {
        this.parked.push(unit);
        continue;
      }
      if (refusal === Refusal.NONE) this.counts.duplicates++;
      else this.counts.refused++;
      unit.client.onAppended(unit.token, refusal);
    }
  }

  private tryAppend(
    client: AppendClient,
    token: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
    payload: Uint8Array,
    rebuilt: boolean,
  ): number {
    if (this.log.refusal !== Refusal.NONE) return this.log.refusal;
    const fileId = headerFileId(words, w),
      stripe = headerStripe(words, w),
      unit = headerUnit(words, w);
    if (this.index.isDeleted(fileId) || this.deleting.has(fileId)) return Refusal.NO_UNIT;
    const file = this.index.file(fileId);
    const writerEpoch = words[w + W.WRITER_EPOCH]!,
      counter = words[w + W.COUNTER]!;
    if (writerEpoch < file.fence && !rebuilt) return Refusal.STALE_WRITER_EPOCH;
    file.fence = Math.max(file.fence, writerEpoch);
    if (file.raiseMark(writerEpoch, words[w + W.COMMIT_MARK]!)) this.freeSuperseded(file);

    const held = this.index.find(file, stripe, unit, writerEpoch, counter);
    if (held !== 0) {
      const flags = this.index.flags(held);
      const same =
        this.index.get(held, E.PAYLOAD_CRC) === words[w + W.PAYLOAD_CRC] &&
        this.index.get(held, E.UNIT_LENGTH) === words[w + W.UNIT_LENGTH] &&
        this.index.get(held, E.STRIPE_LENGTH) === words[w + W.STRIPE_LENGTH];
      // Whoever rebuilds has shown that the unit of this name is another one than the damaged copy says.
      if (!same && !(rebuilt && (flags & EntryFlag.DAMAGED) !== 0)) return Refusal.NAME_CONFLICT;
      const missing = this.newlyMissing(file, stripe, held, words, w);
      if (missing !== 0n && (flags & EntryFlag.DAMAGED) === 0)
        return this.appendMissing(client, token, fileId, file, stripe, unit, writerEpoch, counter, missing);
      if ((flags & EntryFlag.PENDING) !== 0) {
        // Durable when the first copy is, not before.
        this.log.batch(this.index.get(held, E.HEADER_BLOCK)).waiters.push({ client, token });
        return QUEUED;
      }
      if ((flags & EntryFlag.DAMAGED) === 0) return Refusal.NONE;
    } else {
      const newest = this.index.highest(file, stripe, unit, 0xffffffff, 0xffffffff, 0);
      if (
        newest !== 0 &&
        compareVersions(
          writerEpoch,
          counter,
          this.index.get(newest, E.WRITER_EPOCH),
          this.index.get(newest, E.COUNTER),
        ) < 0
      )
        return Refusal.STALE_VERSION;
    }

    const batch = this.log.batchForUnit(unitEntryWords(headerBytes), payload.length / BLOCK_BYTES);
    if (batch === undefined) return Refusal.DISK_FULL;
    // A damaged copy stays until the new one is durable: it is known to have been stored.
    const entry = this.index.insert(
      file,
      stripe,
      this.fieldsOf(file, stripe, unit, words, w, headerBytes),
      EntryFlag.PENDING,
    );
    this.index.setBatch(entry, batch.id);
    batch.addUnit(client, token, file, stripe, entry, words, w, headerBytes, payload);
    this.log.kick();
    return QUEUED;
  }

  /** Units that a duplicate's header calls missing and what is held does not. */
  private newlyMissing(file: FileIndex, stripe: number, entry: number, words: Uint32Array, w: number): bigint {
    if (words[w + W.MISSING_LO] === 0 && words[w + W.MISSING_HI] === 0) return 0n;
    const wanted = BigInt(words[w + W.MISSING_LO]!) | (BigInt(words[w + W.MISSING_HI]!) << 32n);
    const known = this.index.missing(entry) | file.missingOf(stripe, words[w + W.WRITER_EPOCH]!, words[w + W.COUNTER]!);
    return wanted & ~known;
  }

  /**
   * Answers a duplicate once what it adds is durable. The unit, queued before, has then been settled: it may have
   * failed.
   */
  private appendMissing(
    client: AppendClient,
    token: number,
    fileId: number,
    file: FileIndex,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    missing: bigint,
  ): number {
    const refusal = this.log.addControl(
      EntryKind.MISSING,
      missingEntry(fileId, stripe, writerEpoch, counter, missing),
      {
        apply: () => {
          file.recordMissing(stripe, writerEpoch, counter, missing);
        },
        resolve: () => {
          client.onAppended(
            token,
            this.index.find(file, stripe, unit, writerEpoch, counter) === 0 ? Refusal.DISK : Refusal.NONE,
          );
        },
        reject: () => {
          client.onAppended(token, this.log.refusal === Refusal.NONE ? Refusal.DISK : this.log.refusal);
        },
      },
    );
    return refusal === Refusal.NONE ? QUEUED : refusal;
  }

  /**
   * The highest version of a unit at or below the given one that can be read.
   *
   * @returns true with `out` filled, false: none
   */
  lookup(
    fileId: number,
    stripe: number,
    unit: number,
    maxEpoch: number,
    maxCounter: number,
    out: UnitLocation,
  ): boolean {
    const file = this.index.peekFile(fileId);
    const entry =
      file === undefined
        ? 0
        : this.index.highest(file, stripe, unit, maxEpoch, maxCounter, EntryFlag.PENDING | EntryFlag.NO_PAYLOAD);
    return this.locate(entry, out);
  }

  /** As lookup(), for exactly this version. */
  lookupExact(
    fileId: number,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    out: UnitLocation,
  ): boolean {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, writerEpoch, counter);
    return this.locate(
      entry !== 0 && (this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.NO_PAYLOAD)) === 0 ? entry : 0,
      out,
    );
  }

  /**
   * Reads a unit; nothing is checked here.
   *
   * @param header   two blocks; the unit's header begins at `location.headerByte` in it
   * @param payload  at least the unit's length, rounded up to blocks
   * @throws {TartanError} ERR_DISK
   */
  async read(location: UnitLocation, header: Uint8Array, payload: Uint8Array): Promise<void> {
    const headerBlocks = location.headerByte + location.headerBytes > BLOCK_BYTES ? 2 : 1,
      segment = this.segments.of(location.headerBlock);
    // The unit may be moved or freed meanwhile; its old place must not be written anew before it has been read.
    this.segments.pin(segment);
    const reads = [this.disk.read(header.subarray(0, headerBlocks * BLOCK_BYTES), location.headerBlock * BLOCK_BYTES)];
    if (location.unitLength > 0)
      reads.push(
        this.disk.read(
          payload.subarray(0, roundUp(location.unitLength, BLOCK_BYTES)),
          location.payloadBlock * BLOCK_BYTES,
        ),
      );
    // Both must have settled before the memory is anybody else's.
    const results = await Promise.allSettled(reads);
    this.segments.unpin(segment);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /**
   * A read found the unit's checksum wrong: a new copy of the same name will be stored, no longer taken for a
   * duplicate.
   */
  markDamaged(fileId: number, stripe: number, unit: number, location: UnitLocation): void {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, location.writerEpoch, location.counter);
    if (
      entry === 0 ||
      this.index.headerBlock(entry) !== location.headerBlock ||
      this.index.headerByte(entry) !== location.headerByte
    )
      return;
    if ((this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.DAMAGED)) !== 0) return;
    this.flagDamaged(entry);
  }

  /**
   * A unit is sound and yet not its stripe's: from now on it counts as damaged, if it is held with exactly this
   * payload.
   */
  condemn(
    fileId: number,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    payloadCrc: number,
  ): void {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, writerEpoch, counter);
    if (
      entry === 0 ||
      this.index.get(entry, E.PAYLOAD_CRC) !== payloadCrc ||
      (this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.DAMAGED)) !== 0
    )
      return;
    this.flagDamaged(entry);
  }

  private flagDamaged(entry: number): void {
    this.index.setFlag(entry, EntryFlag.DAMAGED, true);
    this.counts.damaged++;
    // Read again at the next opening, its batch would pass for lost, and all after it.
    if (this.durability !== 'discard' && this.checkpointer.isInTail(this.index.headerBlock(entry)))
      this.keeper.wantCheckpoint();
  }

  /**
   * The units held durably from a stripe on, ascending; whole stripes, at most `limit` units (a first stripe that alone
   * exceeds it is cut). Damaged units are listed: they were stored, and their lack must not be taken for a hole.
   */
  inventory(fileId: number, fromStripe: number, limit: number): { units: HeldUnit[]; more: boolean } {
    const units: HeldUnit[] = [];
    const file = this.index.peekFile(fileId);
    if (file === undefined) return { units, more: false };
    for (const stripe of this.index.stripesFrom(file, fromStripe)) {
      const here = this.heldUnits(file, stripe);
      if (here.length === 0) continue;
      if (units.length + here.length > limit) {
        if (units.length === 0) units.push(...here.slice(0, limit));
        return { units, more: true };
      }
      units.push(...here);
    }
    return { units, more: false };
  }

  /** The fence in force and the highest commit mark known. */
  fileMark(fileId: number): FileMark {
    const file = this.index.peekFile(fileId);
    return { writerEpoch: file?.fence ?? 0, commitEpoch: file?.markEpoch ?? 0, commitCounter: file?.markCounter ?? 0 };
  }

  /** Raises the fence in memory only: for epochs that the cluster store holds durably. */
  adoptFence(fileId: number, writerEpoch: number): void {
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    file.fence = Math.max(file.fence, writerEpoch);
  }

  /** Whether the file was deleted here. */
  isDeleted(fileId: number): boolean {
    return this.index.isDeleted(fileId) || this.deleting.has(fileId);
  }

  /**
   * Refuses lower writer epochs of a file from this call on, durably when it resolves; every unit accepted before it is
   * then durable or refused. A higher fence stays.
   *
   * @returns the fence in force: whoever asked for a lower one has lost the file
   * @throws {TartanError} ERR_NO_UNIT for a deleted file; ERR_DISK, ERR_DISK_FULL, ERR_CLOSED
   */
  async fence(fileId: number, writerEpoch: number): Promise<number> {
    const file = this.liveFile(fileId, 'fence');
    const fence = (file.fence = Math.max(file.fence, writerEpoch));
    if (file.durableFence >= writerEpoch) return fence;
    await this.control(
      EntryKind.FENCE,
      (words, w) => {
        writePair(words, w, fileId);
        words[w + 2] = fence;
      },
      () => {
        file.durableFence = Math.max(file.durableFence, fence);
      },
    );
    return file.fence;
  }

  /**
   * Records units of a version as missing, durably when it resolves.
   *
   * @param ownerEpoch  writer epoch of who asks
   * @throws {TartanError} ERR_STALE_EPOCH below the fence; otherwise as fence()
   */
  async recordMissing(
    fileId: number,
    stripe: number,
    writerEpoch: number,
    counter: number,
    mask: bigint,
    ownerEpoch = writerEpoch,
  ): Promise<void> {
    const file = this.liveFile(fileId, 'record missing units of');
    this.checkEpoch(file, fileId, ownerEpoch, 'record missing units of');
    await this.control(EntryKind.MISSING, missingEntry(fileId, stripe, writerEpoch, counter, mask), () => {
      file.recordMissing(stripe, writerEpoch, counter, mask);
    });
  }

  /**
   * Drops versions of writer epochs below `writerEpoch` in stripes from `fromStripe` on, durably when it resolves.
   * Raises the fence to `writerEpoch`. @throws {TartanError} as recordMissing()
   */
  async discard(fileId: number, fromStripe: number, writerEpoch: number): Promise<void> {
    const file = this.liveFile(fileId, 'discard stripes of');
    this.checkEpoch(file, fileId, writerEpoch, 'discard stripes of');
    file.fence = writerEpoch;
    await this.control(
      EntryKind.DISCARD,
      (words, w) => {
        writePair(words, w, fileId);
        writePair(words, w + 2, fromStripe);
        words[w + 4] = writerEpoch;
      },
      () => {
        discardVersions(this.index, file, fromStripe, writerEpoch, (stripe, entry) => {
          this.removeEntry(file, stripe, entry);
        });
        file.durableFence = Math.max(file.durableFence, writerEpoch);
      },
    );
  }

  /**
   * Forgets a file for ever, durably when it resolves; again is no error.
   * @throws {TartanError} ERR_DISK, ERR_DISK_FULL, ERR_CLOSED
   */
  async deleteFile(fileId: number): Promise<void> {
    if (this.index.isDeleted(fileId)) return;
    this.deleting.add(fileId);
    try {
      await this.control(
        EntryKind.DELETE,
        (words, w) => {
          writePair(words, w, fileId);
        },
        () => {
          if (!this.index.isDeleted(fileId))
            this.index.deleteFile(fileId, (entry) => {
              this.segments.remove(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
            });
        },
      );
    } finally {
      this.deleting.delete(fileId);
    }
  }

  /**
   * Reads back the log's own headers, as opening would.
   * @returns false: some were damaged, and a checkpoint takes their place
   */
  checkTail(): Promise<boolean> {
    return this.durability === 'discard' ? Promise.resolve(true) : this.tail.check();
  }

  /** A sync failed: nothing is written any more until the store is opened again. */
  get failed(): boolean {
    return this.log.state === 'failed';
  }

  stats(): StoreStats {
    const { segments } = this,
      { used, clean, dirty } = segments.summary(this.log.inUse),
      movedBytes = this.cleaner.movedBlocks * BLOCK_BYTES;
    return {
      durability: this.durability,
      failed: this.failed,
      units: this.index.count,
      capacityBytes: segments.count * segments.bytes,
      usedBytes: used * BLOCK_BYTES,
      liveBytes: segments.liveBlocks * BLOCK_BYTES,
      deadBytes: (used - segments.liveBlocks) * BLOCK_BYTES,
      batches: this.log.batches,
      ...this.counts,
      parked: this.parked.length,
      movedUnits: this.cleaner.movedUnits,
      movedBytes,
      writeAmplification:
        this.log.bytesWritten === 0
          ? 1
          : (this.log.bytesWritten + this.checkpointer.bytesWritten) /
            Math.max(BLOCK_BYTES, this.log.bytesWritten - movedBytes),
      segmentsFree: segments.freeCount,
      segmentsClean: clean,
      segmentsDirty: dirty,
      checkpoints: this.checkpointer.taken,
      checkpointBytes: this.checkpointer.bytesWritten,
      recovery: this.recovery,
    };
  }

  /** Resolves when nothing is queued or being written, and no checkpoint or cleaning is under way. */
  async drained(): Promise<void> {
    do {
      await this.log.drained();
      await this.keeper.idle();
    } while (!this.log.isIdle);
  }

  /** Writes what is queued, marks the log's end when it can, closes the disk. Idempotent. */
  close(): Promise<void> {
    return (this.closed ??= this.keeper
      .close()
      .then(() => this.log.close())
      .then(() => this.disk.close()));
  }

  private control(
    kind: Parameters<LogWriter['addControl']>[0],
    fill: (words: Uint32Array, w: number) => void,
    apply: () => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const refusal = this.log.addControl(kind, fill, { apply, resolve, reject });
      if (refusal !== Refusal.NONE) reject(this.refused(refusal));
    });
  }

  /**
   * Makes durable what opening found torn: by VOID entries; without room for them by a checkpoint, this or (false) a
   * later one.
   */
  private async settleTorn(opened: OpenedLog): Promise<boolean> {
    try {
      await this.writeVoids(opened);
      return true;
    } catch (error) {
      if (codeOf(error) !== 'ERR_DISK_FULL') throw error;
      return this.checkpointer.take();
    }
  }

  private async writeVoids(opened: OpenedLog): Promise<void> {
    await Promise.all(
      opened.torn.map((unit) =>
        this.control(
          EntryKind.VOID,
          (words, w) => {
            writePair(words, w, unit.fileId);
            writePair(words, w + 2, unit.stripe);
            words[w + 4] = unit.headerBlock;
            words[w + 5] = unit.headerByte;
            if (unit.fallback !== undefined)
              words.set([unit.fallback.headerBlock, unit.fallback.headerByte, unit.fallback.payloadBlock], w + 6);
          },
          () => undefined,
        ),
      ),
    );
  }

  /** Updates the index, then tells everybody in the batch. */
  private settle(batch: Batch, refusal: number): void {
    for (let i = 0; i < batch.units; i++) {
      if (refusal === Refusal.NONE) this.becomeDurable(batch, i);
      else this.index.remove(batch.files[i]!, batch.stripes[i]!, batch.entries[i]!);
    }
    if (refusal === Refusal.NONE) for (const move of batch.moves) this.applyMove(batch, move);
    if (refusal === Refusal.NONE) for (const control of batch.controls) control.apply();
    for (let i = 0; i < batch.units; i++) batch.clients[i]!.onAppended(batch.tokens[i]!, refusal);
    for (const move of batch.moves) move.onMoved(refusal);
    for (const { client, token } of batch.waiters) client.onAppended(token, refusal);
    if (refusal === Refusal.NONE) this.counts.unitsStored += batch.units;
    else this.counts.refused += batch.units + batch.waiters.length;
    for (const control of batch.controls) {
      if (refusal === Refusal.NONE) control.resolve();
      else control.reject(this.refused(refusal));
    }
    this.onBatch?.();
    this.keep();
  }

  /** A store that discards writes nothing, so there is nothing to keep. */
  private keep(): void {
    if (this.durability !== 'discard') this.keeper.kick();
  }

  private becomeDurable(batch: Batch, i: number): void {
    const file = batch.files[i]!,
      stripe = batch.stripes[i]!,
      entry = batch.entries[i]!;
    this.index.setFlag(entry, EntryFlag.PENDING, false);
    if (this.durability === 'discard') this.index.setFlag(entry, EntryFlag.NO_PAYLOAD, true);
    this.index.setPlace(entry, batch.headerBlockOf(i), batch.headerByteOf(i), batch.payloadBlockOf(i));
    this.segments.add(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
    file.durableFence = Math.max(file.durableFence, this.index.get(entry, E.WRITER_EPOCH));
    if (this.index.get(this.index.first(file, stripe), E.NEXT) !== 0) {
      this.removeReplaced(file, stripe, entry);
      file.superseded.add(stripe);
      this.freeSuperseded(file);
    }
  }

  /** The index follows a copy, if the unit is still held where it was copied from. */
  private applyMove(batch: Batch, move: MovedEntry): void {
    const file = this.index.peekFile(move.fileId);
    const entry = file === undefined ? 0 : this.index.findAt(file, move.stripe, move.headerBlock, move.headerByte);
    if (entry === 0) return;
    const place = batch.placeOfMove(move),
      blocks = this.index.payloadBlocks(entry);
    this.segments.remove(move.headerBlock, blocks);
    this.index.setPlace(entry, place.headerBlock, place.headerByte, place.payloadBlock);
    // What was copied had been checked.
    this.index.setFlag(entry, EntryFlag.DAMAGED, false);
    this.segments.add(place.headerBlock, blocks);
  }

  private fieldsOf(
    file: FileIndex,
    stripe: number,
    unit: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
  ): EntryFields {
    fields.unit = unit;
    fields.headerWords = headerBytes >> 2;
    fields.writerEpoch = words[w + W.WRITER_EPOCH]!;
    fields.counter = words[w + W.COUNTER]!;
    fields.unitLength = words[w + W.UNIT_LENGTH]!;
    fields.payloadCrc = words[w + W.PAYLOAD_CRC]!;
    fields.stripeLength = words[w + W.STRIPE_LENGTH]!;
    fields.missingLow = words[w + W.MISSING_LO]!;
    fields.missingHigh = words[w + W.MISSING_HI]!;
    fields.mapEpoch = words[w + W.MAP_EPOCH]!;
    return fields;
  }

  private locate(entry: number, out: UnitLocation): boolean {
    if (entry === 0) return false;
    const words = this.index.words(entry),
      w = this.index.at(entry);
    out.writerEpoch = words[w + E.WRITER_EPOCH]!;
    out.counter = words[w + E.COUNTER]!;
    out.unitLength = words[w + E.UNIT_LENGTH]!;
    out.payloadCrc = words[w + E.PAYLOAD_CRC]!;
    out.headerBlock = this.index.headerBlock(entry);
    out.headerByte = this.index.headerByte(entry);
    out.headerBytes = this.index.headerBytes(entry);
    out.payloadBlock = this.index.payloadBlock(entry);
    return true;
  }

  private heldUnits(file: FileIndex, stripe: number): HeldUnit[] {
    const units: HeldUnit[] = [];
    for (let entry = this.index.first(file, stripe); entry !== 0; entry = this.index.get(entry, E.NEXT)) {
      if ((this.index.flags(entry) & EntryFlag.PENDING) !== 0) continue;
      const writerEpoch = this.index.get(entry, E.WRITER_EPOCH),
        counter = this.index.get(entry, E.COUNTER);
      units.push({
        stripe,
        unit: this.index.unit(entry),
        writerEpoch,
        counter,
        stripeLength: this.index.get(entry, E.STRIPE_LENGTH),
        payloadCrc: this.index.get(entry, E.PAYLOAD_CRC),
        mapEpoch: this.index.get(entry, E.MAP_EPOCH),
        damaged: (this.index.flags(entry) & EntryFlag.DAMAGED) !== 0,
        missing: this.index.missing(entry) | file.missingOf(stripe, writerEpoch, counter),
      });
    }
    return units.sort((a, b) => a.unit - b.unit || compareVersions(b.writerEpoch, b.counter, a.writerEpoch, a.counter));
  }

  /** Removes the damaged copy that a durable one of the same name has replaced. */
  private removeReplaced(file: FileIndex, stripe: number, entry: number): void {
    const unit = this.index.unit(entry),
      writerEpoch = this.index.get(entry, E.WRITER_EPOCH),
      counter = this.index.get(entry, E.COUNTER);
    for (let other = this.index.first(file, stripe), next = 0; other !== 0; other = next) {
      next = this.index.get(other, E.NEXT);
      if (
        other === entry ||
        this.index.unit(other) !== unit ||
        this.index.get(other, E.WRITER_EPOCH) !== writerEpoch ||
        this.index.get(other, E.COUNTER) !== counter
      )
        continue;
      this.removeEntry(file, stripe, other);
    }
  }

  private freeSuperseded(file: FileIndex): void {
    if (file.superseded.size > 0)
      freeSuperseded(this.index, file, (stripe, entry) => {
        this.removeEntry(file, stripe, entry);
      });
  }

  /** Removes a durable entry. */
  private removeEntry(file: FileIndex, stripe: number, entry: number): void {
    this.segments.remove(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
    this.index.remove(file, stripe, entry);
  }

  private liveFile(fileId: number, what: string): FileIndex {
    if (this.isDeleted(fileId)) throw new TartanError('ERR_NO_UNIT', `Cannot ${what} file ${fileId}: it was deleted`);
    return this.index.file(fileId);
  }

  private checkEpoch(file: FileIndex, fileId: number, writerEpoch: number, what: string): void {
    if (writerEpoch < file.fence)
      throw new TartanError(
        'ERR_STALE_EPOCH',
        `Cannot ${what} file ${fileId} with writer epoch ${writerEpoch}: ${file.fence} is required`,
      );
  }

  private refused(refusal: number): TartanError {
    const code: ErrorCode =
      refusal === Refusal.DISK_FULL ? 'ERR_DISK_FULL' : refusal === Refusal.CLOSED ? 'ERR_CLOSED' : 'ERR_DISK';
    const why = { ERR_DISK_FULL: 'the log is full', ERR_CLOSED: 'it is closed', ERR_DISK: 'its disk failed' }[code];
    return new TartanError(code, `Cannot write to the unit store of '${this.superblock.nodeId}': ${why}`);
  }
}

/** One object for all insertions: insert() copies it. */
const fields: EntryFields = {
  unit: 0,
  headerWords: 0,
  writerEpoch: 0,
  counter: 0,
  unitLength: 0,
  payloadCrc: 0,
  stripeLength: 0,
  missingLow: 0,
  missingHigh: 0,
  mapEpoch: 0,
};

/** A place for lookup() to fill. */
export function emptyLocation(): UnitLocation {
  return {
    writerEpoch: 0,
    counter: 0,
    unitLength: 0,
    payloadCrc: 0,
    headerBlock: 0,
    headerByte: 0,
    headerBytes: 0,
    payloadBlock: 0,
  };
}

function ordinaryMemory(bytes: number): AlignedMemory {
  return { bytes: new Uint8Array(bytes), release: () => undefined };
}
