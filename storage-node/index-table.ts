/**
 * What the store holds, in memory: for each file its stripes, for each stripe a chain of unit versions. Rebuilt from the
 * log at every start; knows nothing of disks.
 *
 * Intuition: an entry is 16 words in a slab of typed arrays, named by a number; a file maps a stripe to the first entry of its
 * chain. So a unit costs 64 bytes and a Map slot, about 110 bytes, and no object.
 *
 * Invariants: an entry marked PENDING is known for checks of names and versions, and invisible to reads and inventories;
 * entry numbers are reused after release(), so whoever keeps one across an await must copy what it needs.
 */
import { compareVersions } from '../wire/unit-header.js';
import { FileIndex } from './file-index.js';

/** Words of an entry. */
export const E = {
  NEXT: 0,
  /** unit | flags << 8 | header words << 16 */
  UNIT: 1,
  WRITER_EPOCH: 2, COUNTER: 3,
  /** First block of the payload, from the disk's start. */
  PAYLOAD_BLOCK: 4, UNIT_LENGTH: 5,
  /** Block and byte in it where the unit's header begins. */
  HEADER_BLOCK: 6, HEADER_BYTE: 7,
  PAYLOAD_CRC: 8, STRIPE_LENGTH: 9, MISSING_LOW: 10, MISSING_HIGH: 11, MAP_EPOCH: 12,
} as const;

export const EntryFlag = {
  /** Not durable yet. */
  PENDING: 1,
  /** Its payload failed its checksum when read. */
  DAMAGED: 2,
  /** Acknowledged by a store that discards: there is no payload. */
  NO_PAYLOAD: 4,
} as const;

const ENTRY_WORDS = 16;
const CHUNK_ENTRIES = 1 << 14;
const CHUNK_SHIFT = 14;

/** One entry to insert or compare. */
export interface EntryFields {
  unit: number; headerWords: number; writerEpoch: number; counter: number; unitLength: number; payloadCrc: number;
  stripeLength: number; missingLow: number; missingHigh: number; mapEpoch: number;
}

export class IndexTable {
  private readonly chunks: Uint32Array[] = [];
  private free = 0;
  private used = 1; // entry 0 means "none"
  private readonly files = new Map<number, FileIndex>();
  /** Deleted files: their ids are never reused. */
  private readonly deleted = new Set<number>();
  /** Entries held. */
  count = 0;

  /** Words of an entry: the array, whose words begin at {@link at}. */
  words(entry: number): Uint32Array { return this.chunks[entry >>> CHUNK_SHIFT]!; }
  at(entry: number): number { return (entry & (CHUNK_ENTRIES - 1)) * ENTRY_WORDS; }
  get(entry: number, word: number): number { return this.words(entry)[this.at(entry) + word]!; }
  set(entry: number, word: number, value: number): void { this.words(entry)[this.at(entry) + word] = value; }

  unit(entry: number): number { return this.get(entry, E.UNIT) & 0xff; }
  flags(entry: number): number { return (this.get(entry, E.UNIT) >>> 8) & 0xff; }
  headerBytes(entry: number): number { return (this.get(entry, E.UNIT) >>> 16) << 2; }
  setFlag(entry: number, flag: number, on: boolean): void {
    const word = this.get(entry, E.UNIT);
    this.set(entry, E.UNIT, on ? word | (flag << 8) : word & ~(flag << 8));
  }

  isDeleted(fileId: number): boolean { return this.deleted.has(fileId); }
  peekFile(fileId: number): FileIndex | undefined { return this.files.get(fileId); }
  file(fileId: number): FileIndex {
    let file = this.files.get(fileId);
    if (file === undefined) this.files.set(fileId, file = new FileIndex());
    return file;
  }
  fileIds(): IterableIterator<number> { return this.files.keys(); }

  /** The entry of exactly this name, or 0. */
  find(file: FileIndex, stripe: number, unit: number, writerEpoch: number, counter: number): number {
    for (let entry = file.first(stripe); entry !== 0; entry = this.get(entry, E.NEXT)) {
      if (this.unit(entry) === unit && this.get(entry, E.WRITER_EPOCH) === writerEpoch && this.get(entry, E.COUNTER) === counter) return entry;
    }
    return 0;
  }

  /** The highest version of a unit at or below the given one, without entries that have any of `withoutFlags`; or 0. */
  highest(file: FileIndex, stripe: number, unit: number, maxEpoch: number, maxCounter: number, withoutFlags: number): number {
    let best = 0;
    for (let entry = file.first(stripe); entry !== 0; entry = this.get(entry, E.NEXT)) {
      if (this.unit(entry) !== unit || (this.flags(entry) & withoutFlags) !== 0) continue;
      const epoch = this.get(entry, E.WRITER_EPOCH), counter = this.get(entry, E.COUNTER);
      if (compareVersions(epoch, counter, maxEpoch, maxCounter) > 0) continue;
      if (best === 0 || compareVersions(epoch, counter, this.get(best, E.WRITER_EPOCH), this.get(best, E.COUNTER)) > 0) best = entry;
    }
    return best;
  }

  /** Adds an entry in front of its stripe's chain. @returns its number */
  insert(file: FileIndex, stripe: number, fields: EntryFields, flags: number): number {
    const entry = this.take(), words = this.words(entry), w = this.at(entry);
    words.fill(0, w, w + ENTRY_WORDS);
    words[w + E.NEXT] = file.first(stripe);
    words[w + E.UNIT] = fields.unit | (flags << 8) | (fields.headerWords << 16);
    words[w + E.WRITER_EPOCH] = fields.writerEpoch;
    words[w + E.COUNTER] = fields.counter;
    words[w + E.UNIT_LENGTH] = fields.unitLength;
    words[w + E.PAYLOAD_CRC] = fields.payloadCrc;
    words[w + E.STRIPE_LENGTH] = fields.stripeLength;
    words[w + E.MISSING_LOW] = fields.missingLow;
    words[w + E.MISSING_HIGH] = fields.missingHigh;
    words[w + E.MAP_EPOCH] = fields.mapEpoch;
    file.setFirst(stripe, entry);
    this.count++;
    return entry;
  }

  /** Takes an entry out of its stripe's chain; its number may be reused. */
  remove(file: FileIndex, stripe: number, entry: number): void {
    const next = this.get(entry, E.NEXT);
    let before = file.first(stripe);
    if (before === entry) file.setFirst(stripe, next);
    else {
      while (this.get(before, E.NEXT) !== entry) before = this.get(before, E.NEXT);
      this.set(before, E.NEXT, next);
    }
    this.set(entry, E.NEXT, this.free);
    this.free = entry;
    this.count--;
  }

  /** Forgets a file and everything of it, for ever. @returns its entries' numbers, already released */
  deleteFile(fileId: number, onEntry: (entry: number) => void): void {
    const file = this.files.get(fileId);
    this.files.delete(fileId);
    this.deleted.add(fileId);
    if (file === undefined) return;
    for (const stripe of file.stripesFrom(0)) {
      for (let entry = file.first(stripe); entry !== 0; entry = file.first(stripe)) {
        onEntry(entry);
        this.remove(file, stripe, entry);
      }
    }
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
