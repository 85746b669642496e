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
import { Appender } from './appender.js';
import type { AlignedMemory, AppendClient, Batch } from './batch.js';
import { BatchEffects } from './batch-effects.js';
import { boundedDisk, isHung } from './bounded-disk.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { Chores } from './chores.js';
import { Checkpointer } from './checkpointer.js';
import { Cleaner } from './cleaner.js';
import type { FileIndex } from './file-index.js';
import type { FileMark, HeldUnit } from './held-unit.js';
import type { IndexTable } from './index-table.js';
import { IndexView } from './index-view.js';
import { EntryKind, missingEntry, writePair } from './log-format.js';
import { LogWriter, type Durability } from './log-writer.js';
import { openLog, type OpenedLog, type StoreRecovery } from './open-log.js';
import { PendingDiscards } from './pending-discards.js';
import { SegmentsKeeper } from './segments-keeper.js';
import type { Segments } from './segments.js';
import { ordinaryMemory, type StoreStats, type UnitLocation, type UnitStoreOptions } from './store-types.js';
import type { Superblock } from './superblock.js';
import { TailCheck } from './tail-check.js';
import { discardVersions } from './versions.js';

export type { AlignedMemory, AppendClient } from './batch.js';
export type { Durability } from './log-writer.js';
export type { FileMark, HeldUnit } from './held-unit.js';
export type { StoreIdentity } from './superblock.js';
export type { StoreRecovery } from './open-log.js';
export { emptyLocation, QUEUED, type StoreStats, type UnitLocation, type UnitStoreOptions } from './store-types.js';

export class UnitStore {
  readonly superblock: Superblock;
  /** What opening found. */
  readonly recovery: StoreRecovery;
  /** The disk takes no more units: `failed` says whether for ever, or `ailing` until a probe() succeeds. */
  onTrouble: ((why: string) => void) | undefined;
  private readonly durability: Durability;
  private readonly index: IndexTable;
  private readonly log: LogWriter;
  /** Files whose deletion is queued. */
  private readonly deleting = new Map<number, Promise<void>>();
  private readonly discards = new PendingDiscards();
  private readonly segments: Segments;
  private readonly checkpointer: Checkpointer;
  private readonly cleaner: Cleaner;
  private readonly keeper: SegmentsKeeper;
  private readonly tail: TailCheck;
  private readonly chores: Chores;
  private readonly effects: BatchEffects;
  private readonly view: IndexView;
  private readonly appender: Appender;
  private closed: Promise<void> | undefined;
  private readonly counts = { unitsStored: 0, refused: 0 };

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
    const store: UnitStore = new UnitStore(
      options,
      boundedDisk(options, (why) => {
        store.log.fail(why);
      }),
      allocate,
      opened,
    );
    if (await store.settleTorn(opened)) store.log.trustTail();
    store.keep();
    return store;
  }

  private constructor(
    options: UnitStoreOptions,
    private readonly disk: Disk,
    allocate: (bytes: number) => AlignedMemory,
    opened: OpenedLog,
  ) {
    const { end, superblock } = opened;
    this.durability = options.durability ?? 'sync';
    this.superblock = superblock;
    this.index = opened.index;
    this.recovery = opened.recovery;
    this.segments = opened.segments;
    this.log = new LogWriter({
      disk: this.disk,
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
      onTrouble: (why) => {
        this.onTrouble?.(why);
      },
      onSettled: (batch, refusal) => {
        this.settle(batch, refusal);
      },
    });
    this.chores = new Chores(options.clock, () => {
      this.keep();
    });
    this.effects = new BatchEffects(this.index, this.segments, this.durability, this.chores);
    this.view = new IndexView(this.disk, this.index, this.segments, (headerBlock) => {
      // Read again at the next opening, its batch would pass for lost, and all after it.
      if (this.durability !== 'discard' && this.checkpointer.isInTail(headerBlock)) this.keeper.wantCheckpoint();
    });
    this.appender = new Appender({
      index: this.index,
      log: this.log,
      isDeleted: (fileId) => this.isDeleted(fileId),
      discards: this.discards,
      onMark: (file) => {
        this.effects.freeSuperseded(file);
      },
      makeRoom: () => {
        this.keep();
        return this.durability !== 'discard' && this.keeper.isRunning;
      },
    });
    this.checkpointer = new Checkpointer({
      disk: this.disk,
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
      disk: this.disk,
      index: this.index,
      segments: this.segments,
      log: this.log,
      tag: superblock,
      allocate,
      onDamaged: (entry) => {
        this.view.flagDamaged(entry);
      },
    });
    this.keeper = new SegmentsKeeper({
      segments: this.segments,
      log: this.log,
      checkpointer: this.checkpointer,
      cleaner: this.cleaner,
      onProgress: (isLast) => {
        this.appender.retryParked(isLast);
      },
      checkpointBytes: options.checkpointBytes ?? 256 << 20,
      tailBytes: end.blocks * BLOCK_BYTES,
    });
    this.tail = new TailCheck({
      disk: this.disk,
      tag: superblock,
      segments: this.segments,
      log: this.log,
      checkpointer: this.checkpointer,
      keeper: this.keeper,
      allocate,
      now: () => options.clock?.now() ?? Infinity,
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
    return this.appender.append(client, token, words, w, headerBytes, payload, rebuilt);
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
    return this.view.lookup(fileId, stripe, unit, maxEpoch, maxCounter, out);
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
    return this.view.lookupExact(fileId, stripe, unit, writerEpoch, counter, out);
  }

  /**
   * Reads a unit; nothing is checked here.
   *
   * @param header   two blocks; the unit's header begins at `location.headerByte` in it
   * @param payload  at least the unit's length, rounded up to blocks
   * @throws {TartanError} ERR_DISK
   */
  read(location: UnitLocation, header: Uint8Array, payload: Uint8Array): Promise<void> {
    return this.view.read(location, header, payload);
  }

  /**
   * A read found the unit's checksum wrong: a new copy of the same name will be stored, no longer taken for a
   * duplicate.
   */
  markDamaged(fileId: number, stripe: number, unit: number, location: UnitLocation): void {
    this.view.markDamaged(fileId, stripe, unit, location);
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
    this.view.condemn(fileId, stripe, unit, writerEpoch, counter, payloadCrc);
  }

  /**
   * The units held durably from a stripe on, ascending; whole stripes, at most `limit` units (a first stripe that alone
   * exceeds it is cut). Damaged units are listed: they were stored, and their lack must not be taken for a hole.
   */
  inventory(fileId: number, fromStripe: number, limit: number): { units: HeldUnit[]; more: boolean } {
    return this.view.inventory(fileId, fromStripe, limit);
  }

  /** The fence in force and the highest commit mark known. */
  fileMark(fileId: number): FileMark {
    return this.view.fileMark(fileId);
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
    const pending = this.discards.begin(fileId, fromStripe, writerEpoch);
    const settled = (): void => {
      pending.end();
      this.appender.retryCovered();
    };
    await this.control(
      EntryKind.DISCARD,
      (words, w) => {
        writePair(words, w, fileId);
        writePair(words, w + 2, fromStripe);
        words[w + 4] = writerEpoch;
      },
      () => {
        discardVersions(this.index, file, fromStripe, writerEpoch, (stripe, entry) => {
          this.effects.removeEntry(file, stripe, entry);
        });
        file.durableFence = Math.max(file.durableFence, writerEpoch);
      },
      settled,
    );
  }

  /** Resolves when the discards of a file that are queued now have settled: what they are about is still listed. */
  discardsSettled(fileId: number): Promise<void> {
    return this.discards.settled(fileId);
  }

  /**
   * Forgets a file for ever, durably when it resolves; again is no error. Where it has many units the room of the last
   * ones comes free some turns later.
   * @throws {TartanError} ERR_DISK, ERR_DISK_FULL, ERR_CLOSED
   */
  deleteFile(fileId: number): Promise<void> {
    if (this.index.isDeleted(fileId)) return Promise.resolve();
    let deleting = this.deleting.get(fileId);
    if (deleting === undefined) {
      // Whoever asks meanwhile shares it: were one of two to fail, units would be taken before the other removes them.
      let isSettled = false;
      deleting = this.control(
        EntryKind.DELETE,
        (words, w) => {
          writePair(words, w, fileId);
        },
        () => {
          this.chores.add(
            this.index.deleteFile(fileId, (entry) => {
              this.segments.remove(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
            }),
          );
        },
        () => {
          isSettled = true;
          this.deleting.delete(fileId);
        },
      );
      if (!isSettled) this.deleting.set(fileId, deleting);
    }
    return deleting;
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

  /** Nowhere on the disk could be written: everything new is refused until a probe() succeeds. */
  get ailing(): boolean {
    return this.log.state === 'ailing';
  }

  /** Writes, syncs and reads back something that says nothing. @returns whether units are taken again */
  probe(): Promise<boolean> {
    return this.log.probe();
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
      unitsStored: this.counts.unitsStored,
      duplicates: this.appender.counts.duplicates,
      refused: this.counts.refused + this.appender.counts.refused,
      damaged: this.view.damaged,
      parked: this.appender.parkedUnits,
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
      await this.chores.idle();
    } while (!this.log.isIdle);
  }

  /** Writes what is queued, marks the log's end when it can, closes the disk. Idempotent. */
  close(): Promise<void> {
    return (this.closed ??= this.end());
  }

  private async end(): Promise<void> {
    this.chores.stop();
    // A disk that does not answer answers no cleaner either, and must not hold up whoever closes the store.
    if (!isHung(this.disk)) await this.keeper.close();
    await this.log.close(isHung(this.disk));
    await this.disk.close();
  }

  private control(
    kind: Parameters<LogWriter['addControl']>[0],
    fill: (words: Uint32Array, w: number) => void,
    apply: () => void,
    onSettled: () => void = () => undefined,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const control = {
        apply,
        resolve: () => {
          onSettled();
          resolve();
        },
        reject: (error: unknown) => {
          onSettled();
          reject(error as Error);
        },
      };
      const refusal = this.log.addControl(kind, fill, control);
      if (refusal !== Refusal.NONE) control.reject(this.refused(refusal));
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
      if (refusal === Refusal.NONE) this.effects.becomeDurable(batch, i);
      else this.index.remove(batch.files[i]!, batch.stripes[i]!, batch.entries[i]!);
    }
    if (refusal === Refusal.NONE) for (const move of batch.moves) this.effects.applyMove(batch, move);
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
    this.keep();
  }

  /** A store that discards writes nothing, so there is nothing to keep. */
  private keep(): void {
    if (this.durability !== 'discard') this.keeper.kick();
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
