/**
 * What the store holds, in memory: a chain of unit versions for each stripe of each file. Knows nothing of disks.
 *
 * Intuition: an entry is 12 words in a slab of typed arrays, named by a number; a hash finds the first entry of a
 * stripe's chain. So a unit costs 48 bytes and its share of the hash, at most 64 in all, and no object.
 *
 * Invariants: an entry marked PENDING is known for checks of names and versions, and invisible to reads and
 * inventories; entry numbers are reused after remove(), so whoever keeps one across an await must copy what it needs.
 */
import { TartanError } from '../wire/errors.js';
import { compareVersions } from '../wire/unit-header.js';
import { ChainMap } from './chain-map.js';
import { BLOCK_BYTES } from './disk.js';
import { FileIndex, PAGE_STRIPES } from './file-index.js';
import { MaskTable } from './mask-table.js';
import { readPair, writePair } from './log-format.js';

/** Words of an entry. */
export const E = {
  /** unit: 6 bits | flags: 4 | header words: 6 | payload block, counted from the header's: 13 */
  UNIT: 0,
  /** Block where the unit's header begins. While PENDING: the batch's id. */
  HEADER_BLOCK: 1,
  /** {@link FileIndex.number}; FREE_FILE in an entry that is not in use. */
  FILE: 2,
  STRIPE_LOW: 3,
  /** header byte in its block / 8: 9 bits | stripe's high 21 bits */
  PLACE: 4,
  WRITER_EPOCH: 5,
  COUNTER: 6,
  UNIT_LENGTH: 7,
  PAYLOAD_CRC: 8,
  STRIPE_LENGTH: 9,
  MAP_EPOCH: 10,
  NEXT: 11,
} as const;

export const EntryFlag = {
  /** Not durable yet. */
  PENDING: 1,
  /** Its payload failed its checksum when read. */
  DAMAGED: 2,
  /** Acknowledged by a store that discards: there is no payload. */
  NO_PAYLOAD: 4,
  /** Its header called units missing: the mask table has them. */
  MASKED: 8,
} as const;

export const ENTRY_WORDS = 12;
const FREE_FILE = 0xffffffff;
/** Of a file's record in a snapshot. */
const FILE_WORDS = 6;
const CHUNK_ENTRIES = 1 << 12;
const CHUNK_SHIFT = 12;
const TWO_32 = 0x1_0000_0000;
/** Numbers are given again as files go: a checkpoint that names a higher one is no checkpoint of ours. */
const MOST_FILES = 1 << 22;
const FLAG_SHIFT = 6,
  HEADER_SHIFT = 10,
  OFFSET_SHIFT = 16,
  PLACE_BITS = 9;

/** One entry to insert or compare. */
export interface EntryFields {
  unit: number;
  headerWords: number;
  writerEpoch: number;
  counter: number;
  unitLength: number;
  payloadCrc: number;
  stripeLength: number;
  missingLow: number;
  missingHigh: number;
  mapEpoch: number;
}

/** The index as it was at one moment. Entries are copied only when somebody changes them before they were written. */
export interface IndexSnapshot {
  /** Records as {@link IndexTable.restoreFile}, restoreDeleted, restoreMissing take them. */
  readonly files: Uint32Array;
  readonly deleted: Uint32Array;
  readonly missing: Uint32Array;
  /**
   * Entries that were durable, some at a time, each valid until the next; masks as restoreMask takes them go into
   * `masks`.
   */
  entries(masks: number[]): Generator<Uint32Array>;
  /** Entries given so far. */
  readonly written: number;
  /** To be called when it is no longer needed. */
  release(): void;
}

export class IndexTable {
  /** Entries held. */
  count = 0;
  private readonly chunks: Uint32Array[] = [];
  private free = 0;
  private used = 1; // entry 0 means "none"
  private readonly chains = new ChainMap({
    fileOf: (entry) => this.get(entry, E.FILE),
    stripeLowOf: (entry) => this.get(entry, E.STRIPE_LOW),
    stripeHighOf: (entry) => this.get(entry, E.PLACE) >>> PLACE_BITS,
  });
  private readonly masks = new MaskTable();
  private readonly files = new Map<number, FileIndex>();
  private readonly byNumber: (FileIndex | undefined)[] = [];
  private readonly freeNumbers: number[] = [];
  /** Numbers of deleted files whose entries are still being released. */
  private readonly dying = new Set<number>();
  /** Deleted files: their ids are never reused. */
  private readonly deleted = new Set<number>();
  /** Chunks that a snapshot still has to read. */
  private frozen: (Uint32Array | undefined)[] | undefined;

  /** Words of an entry, for reading: the array, whose words begin at {@link at}. */
  words(entry: number): Uint32Array {
    return this.chunks[entry >>> CHUNK_SHIFT]!;
  }
  at(entry: number): number {
    return (entry & (CHUNK_ENTRIES - 1)) * ENTRY_WORDS;
  }
  get(entry: number, word: number): number {
    return this.chunks[entry >>> CHUNK_SHIFT]![(entry & (CHUNK_ENTRIES - 1)) * ENTRY_WORDS + word]!;
  }
  private set(entry: number, word: number, value: number): void {
    this.writable(entry)[(entry & (CHUNK_ENTRIES - 1)) * ENTRY_WORDS + word] = value;
  }

  unit(entry: number): number {
    return this.get(entry, E.UNIT) & 0x3f;
  }
  flags(entry: number): number {
    return (this.get(entry, E.UNIT) >>> FLAG_SHIFT) & 0xf;
  }
  headerBytes(entry: number): number {
    return ((this.get(entry, E.UNIT) >>> HEADER_SHIFT) & 0x3f) << 2;
  }
  stripe(entry: number): number {
    return (this.get(entry, E.PLACE) >>> PLACE_BITS) * TWO_32 + this.get(entry, E.STRIPE_LOW);
  }
  headerBlock(entry: number): number {
    return this.get(entry, E.HEADER_BLOCK);
  }
  headerByte(entry: number): number {
    return (this.get(entry, E.PLACE) & ((1 << PLACE_BITS) - 1)) << 3;
  }
  payloadBlock(entry: number): number {
    return this.headerBlock(entry) + (this.get(entry, E.UNIT) >>> OFFSET_SHIFT);
  }
  /** Blocks of the payload on disk. */
  payloadBlocks(entry: number): number {
    return (this.flags(entry) & (EntryFlag.PENDING | EntryFlag.NO_PAYLOAD)) !== 0
      ? 0
      : Math.ceil(this.get(entry, E.UNIT_LENGTH) / BLOCK_BYTES);
  }
  /** The units that the entry's header called missing. */
  missing(entry: number): bigint {
    return (this.flags(entry) & EntryFlag.MASKED) === 0 ? 0n : this.masks.get(entry);
  }

  setFlag(entry: number, flag: number, on: boolean): void {
    const word = this.get(entry, E.UNIT);
    this.set(entry, E.UNIT, on ? word | (flag << FLAG_SHIFT) : word & ~(flag << FLAG_SHIFT));
  }

  /** Where the unit lies; its payload begins at most 8191 blocks behind its header. */
  setPlace(entry: number, headerBlock: number, headerByte: number, payloadBlock: number): void {
    this.set(entry, E.HEADER_BLOCK, headerBlock);
    this.set(entry, E.PLACE, (((this.get(entry, E.PLACE) >>> PLACE_BITS) << PLACE_BITS) | (headerByte >>> 3)) >>> 0);
    this.set(
      entry,
      E.UNIT,
      ((this.get(entry, E.UNIT) & 0xffff) | ((payloadBlock - headerBlock) << OFFSET_SHIFT)) >>> 0,
    );
  }

  /** For a PENDING entry: the batch that takes it. */
  setBatch(entry: number, batch: number): void {
    this.set(entry, E.HEADER_BLOCK, batch);
  }

  isDeleted(fileId: number): boolean {
    return this.deleted.has(fileId);
  }
  peekFile(fileId: number): FileIndex | undefined {
    return this.files.get(fileId);
  }
  file(fileId: number): FileIndex {
    let file = this.files.get(fileId);
    if (file === undefined) {
      const number = this.freeNumbers.pop() ?? this.byNumber.length;
      this.files.set(fileId, (file = this.byNumber[number] = new FileIndex(fileId, number)));
    }
    return file;
  }
  fileIds(): IterableIterator<number> {
    return this.files.keys();
  }

  /** The first entry of a stripe's chain, or 0. */
  first(file: FileIndex, stripe: number): number {
    return this.chains.first(file.number, stripe % TWO_32, Math.floor(stripe / TWO_32));
  }

  /** Stripes held from `from` on, ascending; those that come or go meanwhile may be seen or not. */
  *stripesFrom(file: FileIndex, from: number): Generator<number> {
    for (let page = file.pages.from(Math.floor(from / PAGE_STRIPES)); page >= 0; page = file.pages.from(page + 1)) {
      // beyond 2^53 a stripe's number plus one is itself: what is counted is exact
      for (let i = 0, last = -1; i < PAGE_STRIPES; i++) {
        const stripe = page * PAGE_STRIPES + i;
        if (stripe >= from && stripe !== last && this.first(file, stripe) !== 0) yield stripe;
        last = stripe;
      }
    }
  }

  /** The entry of exactly this name, or 0; of two, while a damaged one is being replaced, the new one. */
  find(file: FileIndex, stripe: number, unit: number, writerEpoch: number, counter: number): number {
    for (let entry = this.first(file, stripe); entry !== 0; entry = this.get(entry, E.NEXT)) {
      if (
        this.unit(entry) === unit &&
        this.get(entry, E.WRITER_EPOCH) === writerEpoch &&
        this.get(entry, E.COUNTER) === counter
      )
        return entry;
    }
    return 0;
  }

  /** The entry whose header lies at this place, or 0. */
  findAt(file: FileIndex, stripe: number, headerBlock: number, headerByte: number): number {
    for (let entry = this.first(file, stripe); entry !== 0; entry = this.get(entry, E.NEXT)) {
      if (
        this.headerBlock(entry) === headerBlock &&
        this.headerByte(entry) === headerByte &&
        (this.flags(entry) & EntryFlag.PENDING) === 0
      )
        return entry;
    }
    return 0;
  }

  /** The highest version of a unit at or below the given one, without entries that have any of `withoutFlags`; or 0. */
  highest(
    file: FileIndex,
    stripe: number,
    unit: number,
    maxEpoch: number,
    maxCounter: number,
    withoutFlags: number,
  ): number {
    let best = 0;
    for (let entry = this.first(file, stripe); entry !== 0; entry = this.get(entry, E.NEXT)) {
      if (this.unit(entry) !== unit || (this.flags(entry) & withoutFlags) !== 0) continue;
      const epoch = this.get(entry, E.WRITER_EPOCH),
        counter = this.get(entry, E.COUNTER);
      if (compareVersions(epoch, counter, maxEpoch, maxCounter) > 0) continue;
      if (best === 0 || compareVersions(epoch, counter, this.get(best, E.WRITER_EPOCH), this.get(best, E.COUNTER)) > 0)
        best = entry;
    }
    return best;
  }

  /**
   * A durable entry has joined its stripe's chain: remembers by which versions' commit older ones may go. Where it is
   * the newest, the others have been seen when they came; if it is late, the newer ones' turn may have been missed.
   */
  noteVersions(file: FileIndex, stripe: number, entry: number): void {
    if (this.get(this.first(file, stripe), E.NEXT) === 0) return;
    const epoch = this.get(entry, E.WRITER_EPOCH),
      counter = this.get(entry, E.COUNTER);
    file.superseded.add(epoch, counter, stripe);
    for (let other = this.first(file, stripe); other !== 0; other = this.get(other, E.NEXT)) {
      const otherEpoch = this.get(other, E.WRITER_EPOCH),
        otherCounter = this.get(other, E.COUNTER);
      const isNewer = compareVersions(otherEpoch, otherCounter, epoch, counter) > 0;
      if (isNewer && (this.flags(other) & EntryFlag.PENDING) === 0)
        file.superseded.add(otherEpoch, otherCounter, stripe);
    }
  }

  /** Adds an entry in front of its stripe's chain. @returns its number */
  insert(file: FileIndex, stripe: number, fields: EntryFields, flags: number): number {
    const next = this.first(file, stripe);
    const entry = this.take(),
      words = this.writable(entry),
      w = this.at(entry);
    const isMasked = fields.missingLow !== 0 || fields.missingHigh !== 0;
    words[w + E.UNIT] =
      fields.unit | ((flags | (isMasked ? EntryFlag.MASKED : 0)) << FLAG_SHIFT) | (fields.headerWords << HEADER_SHIFT);
    words[w + E.HEADER_BLOCK] = 0;
    words[w + E.FILE] = file.number;
    words[w + E.STRIPE_LOW] = stripe % TWO_32;
    words[w + E.PLACE] = Math.floor(stripe / TWO_32) << PLACE_BITS;
    words[w + E.WRITER_EPOCH] = fields.writerEpoch;
    words[w + E.COUNTER] = fields.counter;
    words[w + E.UNIT_LENGTH] = fields.unitLength;
    words[w + E.PAYLOAD_CRC] = fields.payloadCrc;
    words[w + E.STRIPE_LENGTH] = fields.stripeLength;
    words[w + E.MAP_EPOCH] = fields.mapEpoch;
    words[w + E.NEXT] = next;
    if (isMasked) this.masks.set(entry, fields.missingLow, fields.missingHigh);
    this.link(file, stripe, entry, next);
    return entry;
  }

  /** Takes an entry out of its stripe's chain; its number may be reused. */
  remove(file: FileIndex, stripe: number, entry: number): void {
    const next = this.get(entry, E.NEXT);
    let before = this.first(file, stripe);
    if (before !== entry) {
      while (this.get(before, E.NEXT) !== entry) before = this.get(before, E.NEXT);
      this.set(before, E.NEXT, next);
    } else if (next !== 0) this.chains.set(next);
    else {
      this.chains.delete(entry);
      file.stripes--;
      this.thin(file);
    }
    if ((this.flags(entry) & EntryFlag.MASKED) !== 0) this.masks.delete(entry);
    this.set(entry, E.FILE, FREE_FILE);
    this.set(entry, E.NEXT, this.free);
    this.free = entry;
    this.count--;
  }

  /**
   * Forgets a file, for ever: from now on nothing of it is found, nor part of a snapshot. Its entries are released by
   * the steps of the generator, one each; until they all are its number is taken.
   *
   * @param onEntry  called with each entry before it is released
   */
  deleteFile(fileId: number, onEntry: (entry: number) => void): Generator<void> {
    const file = this.files.get(fileId);
    this.deleted.add(fileId);
    this.files.delete(fileId);
    if (file !== undefined) this.dying.add(file.number);
    return this.release(file, onEntry);
  }

  private *release(file: FileIndex | undefined, onEntry: (entry: number) => void): Generator<void> {
    if (file === undefined) return;
    for (const stripe of this.stripesFrom(file, 0)) {
      for (let entry = this.first(file, stripe); entry !== 0; entry = this.first(file, stripe)) {
        onEntry(entry);
        this.remove(file, stripe, entry);
        yield;
      }
    }
    this.dying.delete(file.number);
    this.byNumber[file.number] = undefined;
    this.freeNumbers.push(file.number);
  }

  /**
   * The index as it is now, without entries that are PENDING, for a checkpoint. One at a time; release() it.
   *
   * The fence is the durable one. The commit mark may be that of a header which is not durable yet: it is true all the
   * same.
   */
  snapshot(): IndexSnapshot {
    const files = new Uint32Array(this.files.size * FILE_WORDS),
      missing: number[] = [],
      deleted = new Uint32Array(this.deleted.size * 2);
    let known = 0,
      gone = 0;
    for (const id of this.deleted) writePair(deleted, 2 * gone++, id);
    for (const file of this.files.values()) {
      if (file.durableFence === 0 && file.markEpoch === 0 && file.stripes === 0 && file.missing.size === 0) continue;
      const w = known++ * FILE_WORDS;
      files[w] = file.number;
      writePair(files, w + 1, file.id);
      files[w + 3] = file.durableFence;
      files[w + 4] = file.markEpoch;
      files[w + 5] = file.markCounter;
      for (const { stripe, writerEpoch, counter, mask } of file.missing.values()) {
        missing.push(
          file.number,
          stripe % TWO_32,
          Math.floor(stripe / TWO_32),
          writerEpoch,
          counter,
          Number(mask & 0xffffffffn),
          Number(mask >> 32n),
        );
      }
    }
    const frozen: (Uint32Array | undefined)[] = (this.frozen = [...this.chunks]),
      masks = this.masks.copy(),
      dying = this.dying.size === 0 ? undefined : new Set(this.dying),
      { used } = this;
    const snapshot = {
      files: files.subarray(0, known * FILE_WORDS),
      deleted,
      missing: Uint32Array.from(missing),
      written: 0,
      *entries(into: number[]): Generator<Uint32Array> {
        const out = new Uint32Array(CHUNK_ENTRIES * ENTRY_WORDS);
        for (let chunk = 0; chunk < frozen.length; chunk++) {
          const words = frozen[chunk]!,
            last = Math.min(CHUNK_ENTRIES, used - chunk * CHUNK_ENTRIES);
          let count = 0;
          for (let i = chunk === 0 ? 1 : 0; i < last; i++) {
            const w = i * ENTRY_WORDS,
              flags = (words[w + E.UNIT]! >>> FLAG_SHIFT) & 0xf;
            if (words[w + E.FILE] === FREE_FILE || (flags & EntryFlag.PENDING) !== 0) continue;
            if (dying?.has(words[w + E.FILE]!) === true) continue;
            for (let j = 0; j < ENTRY_WORDS; j++) out[count * ENTRY_WORDS + j] = words[w + j]!;
            count++;
            if ((flags & EntryFlag.MASKED) === 0) continue;
            const mask = masks.get(chunk * CHUNK_ENTRIES + i);
            into.push(snapshot.written + count, Number(mask & 0xffffffffn), Number(mask >> 32n));
          }
          frozen[chunk] = undefined;
          snapshot.written += count;
          if (count > 0) yield out.subarray(0, count * ENTRY_WORDS);
        }
      },
      release: () => {
        if (this.frozen === frozen) this.frozen = undefined;
      },
    };
    return snapshot;
  }

  /** At least as many words as a snapshot of it takes. */
  get snapshotWords(): number {
    let missing = 0;
    for (const file of this.files.values()) missing += file.missing.size;
    return (
      this.count * ENTRY_WORDS +
      this.chunks.length * 2 +
      this.masks.size * 3 +
      this.files.size * 6 +
      this.deleted.size * 2 +
      missing * 7
    );
  }

  restoreFile(words: Uint32Array, w: number): void {
    const id = readPair(words, w + 1),
      file = new FileIndex(id, words[w]!);
    if (id > Number.MAX_SAFE_INTEGER || file.number >= MOST_FILES)
      throw senseless(`file ${id} has number ${file.number}`);
    file.fence = file.durableFence = words[w + 3]!;
    file.markEpoch = words[w + 4]!;
    file.markCounter = words[w + 5]!;
    this.files.set(id, (this.byNumber[file.number] = file));
  }
  restoreDeleted(fileId: number): void {
    this.deleted.add(fileId);
  }
  private restoredFile(number: number): FileIndex {
    const file = this.byNumber[number];
    if (file === undefined) throw senseless(`nothing was said of file number ${number}`);
    return file;
  }
  restoreMissing(words: Uint32Array, w: number): void {
    this.restoredFile(words[w]!).recordMissing(
      readPair(words, w + 1),
      words[w + 3]!,
      words[w + 4]!,
      BigInt(words[w + 5]!) | (BigInt(words[w + 6]!) << 32n),
    );
  }
  restoreEntry(words: Uint32Array, w: number): void {
    const entry = this.take(),
      at = this.at(entry),
      own = this.words(entry);
    own.set(words.subarray(w, w + ENTRY_WORDS), at);
    const stripe = this.stripe(entry);
    // such a number cannot even be counted up
    if (stripe > Number.MAX_SAFE_INTEGER) throw senseless(`a unit is of stripe ${stripe}`);
    const file = this.restoredFile(words[w + E.FILE]!),
      next = this.first(file, stripe);
    own[at + E.NEXT] = next;
    this.link(file, stripe, entry, next);
    this.noteVersions(file, stripe, entry);
  }
  restoreMask(words: Uint32Array, w: number): void {
    if (words[w]! === 0 || words[w]! >= this.used) throw senseless(`a mask is of entry ${words[w]} of ${this.used}`);
    this.masks.set(words[w]!, words[w + 1]!, words[w + 2]!);
  }
  /** All of a snapshot has been given back. */
  restored(): void {
    for (let number = 0; number < this.byNumber.length; number++)
      if (this.byNumber[number] === undefined) this.freeNumbers.push(number);
  }

  /** Calls `visit` with every durable entry. */
  forEach(visit: (entry: number) => void): void {
    for (let entry = 1; entry < this.used; entry++) {
      if (this.get(entry, E.FILE) !== FREE_FILE && (this.flags(entry) & EntryFlag.PENDING) === 0) visit(entry);
    }
  }

  /** Bytes of the typed arrays. */
  get bytes(): number {
    return this.chunks.length * CHUNK_ENTRIES * ENTRY_WORDS * 4 + this.chains.bytes + this.masks.bytes;
  }

  private link(file: FileIndex, stripe: number, entry: number, next: number): void {
    this.chains.set(entry);
    this.count++;
    if (next !== 0) return;
    file.stripes++;
    file.pages.add(Math.floor(stripe / PAGE_STRIPES));
  }

  /** Drops pages that have become empty, when they are many. */
  private thin(file: FileIndex): void {
    if (file.pages.length <= 64 + 2 * file.stripes) return;
    file.pages.filter((page) => {
      for (let i = 0; i < PAGE_STRIPES; i++) if (this.first(file, page * PAGE_STRIPES + i) !== 0) return true;
      return false;
    });
  }

  /** The chunk of an entry, for writing: what a snapshot has still to read is copied first. */
  private writable(entry: number): Uint32Array {
    const chunk = entry >>> CHUNK_SHIFT,
      words = this.chunks[chunk]!;
    if (this.frozen === undefined || this.frozen[chunk] !== words) return words;
    return (this.chunks[chunk] = words.slice());
  }

  private take(): number {
    if (this.free !== 0) {
      const entry = this.free;
      this.free = this.get(entry, E.NEXT);
      return entry;
    }
    const entry = this.used++;
    if (entry >>> CHUNK_SHIFT === this.chunks.length) this.chunks.push(new Uint32Array(CHUNK_ENTRIES * ENTRY_WORDS));
    return entry;
  }
}

/** A checkpoint whose checksums hold, and which can't be. */
function senseless(what: string): TartanError {
  return new TartanError('ERR_CHECKSUM', `Cannot read the checkpoint: ${what}`);
}
