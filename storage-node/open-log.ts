/** Opening a store: superblock, log, the check of what may be torn, and one sync, in the order of docs/store-format.md. */
import { crc32c } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import { roundUp } from '../wire/slot-layout.js';
import { MAX_UNIT_BYTES, W, headerFileId, headerStripe, headerUnit } from '../wire/unit-header.js';
import type { AlignedMemory } from './batch.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import type { FileIndex } from './file-index.js';
import { E, IndexTable } from './index-table.js';
import { readLog, RECOVERY_WINDOW_BYTES, type LogEnd, type LogReader, type UncertainUnit } from './recovery.js';
import { openSuperblock, type StoreIdentity, type Superblock } from './superblock.js';
import { discardVersions, freeSuperseded } from './versions.js';

/** What opening found; for logs and status. */
export interface StoreRecovery {
  readonly batches: number;
  readonly units: number;
  /** Units of the unsynced tail whose payload was checked, and how many of them were torn and dropped. */
  readonly checked: number;
  readonly torn: number;
  /** Unit headers found damaged inside batches that hold. */
  readonly badHeaders: number;
}

export interface OpenedLog {
  readonly superblock: Superblock;
  readonly index: IndexTable;
  readonly end: LogEnd;
  readonly liveBlocks: number;
  /** Dropped from the index; the store records them as VOID. */
  readonly torn: readonly UncertainUnit[];
  readonly recovery: StoreRecovery;
}

export async function openLog(disk: Disk, identity: StoreIdentity, random: () => number, nowMs: number, allocate: (bytes: number) => AlignedMemory): Promise<OpenedLog> {
  const window = allocate(RECOVERY_WINDOW_BYTES);
  try {
    const superblock = await openSuperblock(disk, identity, random, nowMs, window.bytes);
    const replay = new Replay();
    const end = await readLog(disk, superblock, window, replay);
    if (end.damagedBlock !== undefined) {
      // Its units, and all later ones, were acknowledged. A node that came up without them would swear that it never had them.
      throw new TartanError('ERR_CHECKSUM', `Cannot open the store: batch ${end.nextSequence} at block ${end.damagedBlock} is damaged, and later batches show that it was durable; the units in them cannot be told from lost ones`);
    }
    const torn = await dropTorn(disk, replay, end.uncertain, allocate);
    // What was found may be in a cache only; from here on it is acknowledged when a duplicate comes.
    await disk.sync();
    const recovery = { batches: end.batches, units: replay.index.count, checked: end.uncertain.length, torn: torn.length, badHeaders: end.badHeaders };
    return { superblock, index: replay.index, end, liveBlocks: replay.liveBlocks, torn, recovery };
  } finally {
    window.release();
  }
}

/** Checks the payloads of units that may have been cut off; drops those that fail. */
async function dropTorn(disk: Disk, replay: Replay, uncertain: readonly UncertainUnit[], allocate: (bytes: number) => AlignedMemory): Promise<UncertainUnit[]> {
  const torn: UncertainUnit[] = [];
  if (uncertain.length === 0) return torn;
  const memory = allocate(MAX_UNIT_BYTES);
  try {
    for (const unit of uncertain) {
      const file = replay.index.peekFile(unit.fileId);
      const entry = file === undefined ? 0 : replay.index.findAt(file, unit.stripe, unit.headerBlock, unit.headerByte);
      if (file === undefined || entry === 0) continue;
      if (await payloadHolds(disk, unit, memory.bytes)) continue;
      replay.remove(file, unit.stripe, entry);
      torn.push(unit);
    }
  } finally {
    memory.release();
  }
  return torn;
}

async function payloadHolds(disk: Disk, unit: UncertainUnit, memory: Uint8Array): Promise<boolean> {
  const padded = roundUp(unit.unitLength, BLOCK_BYTES);
  // A sealed header says where; but a place beyond the disk can only be a torn tail.
  if (unit.payloadBlock * BLOCK_BYTES + padded > disk.size) return false;
  if (padded > 0) await disk.read(memory.subarray(0, padded), unit.payloadBlock * BLOCK_BYTES);
  return crc32c(memory.subarray(0, unit.unitLength)) === unit.payloadCrc;
}

/** Builds the index from the log. Nothing is checked against rules that were checked when it was written. */
class Replay implements LogReader {
  readonly index = new IndexTable();
  liveBlocks = 0;

  unit(words: Uint32Array, w: number, headerBytes: number, headerBlock: number, headerByte: number, payloadBlock: number): void {
    const fileId = headerFileId(words, w), stripe = headerStripe(words, w), unit = headerUnit(words, w);
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    const writerEpoch = words[w + W.WRITER_EPOCH]!, counter = words[w + W.COUNTER]!;
    file.fence = file.durableFence = Math.max(file.fence, writerEpoch);
    // The same name again: the first copy had been damaged, so the later one counts.
    const known = this.index.find(file, stripe, unit, writerEpoch, counter);
    if (known !== 0) this.remove(file, stripe, known);
    const entry = this.index.insert(file, stripe, {
      unit, headerWords: headerBytes >> 2, writerEpoch, counter, unitLength: words[w + W.UNIT_LENGTH]!, payloadCrc: words[w + W.PAYLOAD_CRC]!,
      stripeLength: words[w + W.STRIPE_LENGTH]!, missingLow: words[w + W.MISSING_LO]!, missingHigh: words[w + W.MISSING_HI]!, mapEpoch: words[w + W.MAP_EPOCH]!,
    }, 0);
    this.index.setPlace(entry, headerBlock, headerByte, payloadBlock);
    this.liveBlocks += this.blocksOf(entry);
    if (this.index.get(entry, E.NEXT) !== 0) file.superseded.add(stripe);
    const raised = file.raiseMark(writerEpoch, words[w + W.COMMIT_MARK]!);
    if (raised || file.superseded.has(stripe)) freeSuperseded(this.index, file, (at, old) => { this.remove(file, at, old); });
  }

  missing(fileId: number, stripe: number, writerEpoch: number, counter: number, mask: bigint): void {
    if (!this.index.isDeleted(fileId)) this.index.file(fileId).recordMissing(stripe, writerEpoch, counter, mask);
  }

  fence(fileId: number, writerEpoch: number): void {
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    file.fence = file.durableFence = Math.max(file.fence, writerEpoch);
  }

  discard(fileId: number, fromStripe: number, writerEpoch: number): void {
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    discardVersions(this.index, file, fromStripe, writerEpoch, (stripe, entry) => { this.remove(file, stripe, entry); });
    this.fence(fileId, writerEpoch);
  }

  deleted(fileId: number): void {
    if (!this.index.isDeleted(fileId)) this.index.deleteFile(fileId, (entry) => { this.liveBlocks -= this.blocksOf(entry); });
  }

  voided(fileId: number, stripe: number, headerBlock: number, headerByte: number): void {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.findAt(file, stripe, headerBlock, headerByte);
    if (file !== undefined && entry !== 0) this.remove(file, stripe, entry);
  }

  remove(file: FileIndex, stripe: number, entry: number): void {
    this.liveBlocks -= this.blocksOf(entry);
    this.index.remove(file, stripe, entry);
  }

  private blocksOf(entry: number): number { return Math.ceil(this.index.get(entry, E.UNIT_LENGTH) / BLOCK_BYTES); }
}
