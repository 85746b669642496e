/**
 * The log's batches and entries as words (docs/store-format.md draws them): where each field lies, how a batch header
 * is sealed and checked. No I/O.
 */
import { crc32c } from '../erasure/code/index.js';
import { BLOCK_BYTES } from './disk.js';

const BATCH_MAGIC = 0x54414254; // "TBAT" in memory
/** Of the superblock, the pointers and every batch. 2: segments, checkpoints, moved units. */
export const STORE_FORMAT_VERSION = 2;
export const BATCH_HEADER_BYTES = 64;
/** Entries of one batch, its header included, in bytes. */
export const MAX_HEADER_AREA_BYTES = 65536;
export const MAX_HEADER_BLOCKS = MAX_HEADER_AREA_BYTES / BLOCK_BYTES;
/** Payloads of one batch: 16 MiB. Bounds where the next batch can begin. */
export const MAX_PAYLOAD_BLOCKS = 4096;

/** Word indexes in a batch header. */
export const B = {
  MAGIC: 0,
  FORMAT: 1,
  TAG_LOW: 2,
  TAG_HIGH: 3,
  SEQUENCE_LOW: 4,
  SEQUENCE_HIGH: 5,
  ENTRIES: 6,
  HEADER_BYTES: 7,
  PAYLOAD_BLOCKS: 8,
  SYNCED_LOW: 9,
  SYNCED_HIGH: 10,
  CHAIN: 11,
  SALT: 12,
  /** First blocks of the two segments that come after this one; 0: not chosen yet. */
  NEXT: 13,
  AFTER: 14,
  CRC: 15,
} as const;

export const EntryKind = { UNIT: 1, MISSING: 2, FENCE: 3, DISCARD: 4, DELETE: 5, MARK: 6, VOID: 7, MOVED: 8 } as const;

/** Words of each entry but UNIT and MOVED; even, so that every entry begins on 8 bytes. */
export const entryWords = {
  [EntryKind.MISSING]: 10,
  [EntryKind.FENCE]: 4,
  [EntryKind.DISCARD]: 6,
  [EntryKind.DELETE]: 4,
  [EntryKind.MARK]: 2,
  [EntryKind.VOID]: 10,
} as const;

/** A UNIT entry: head, payload block, the unit's header; padded to an even number of words. */
export const UNIT_ENTRY_HEAD_WORDS = 2;
export function unitEntryWords(headerBytes: number): number {
  return (UNIT_ENTRY_HEAD_WORDS + (headerBytes >> 2) + 1) & ~1;
}

/** A MOVED entry: head, payload block, block and byte of the header it replaces, the unit's header; padded likewise. */
export const MOVED_ENTRY_HEAD_WORDS = 4;
export function movedEntryWords(headerBytes: number): number {
  return (MOVED_ENTRY_HEAD_WORDS + (headerBytes >> 2) + 1) & ~1;
}

export function entryHead(kind: number, words: number): number {
  return (kind | (words << 16)) >>> 0;
}

const TWO_32 = 0x1_0000_0000;
export function readPair(words: Uint32Array, w: number): number {
  return words[w + 1]! * TWO_32 + words[w]!;
}
export function writePair(words: Uint32Array, w: number, value: number): void {
  words[w] = value % TWO_32;
  words[w + 1] = Math.floor(value / TWO_32);
}

export interface BatchSeal {
  readonly tagLow: number;
  readonly tagHigh: number;
  readonly sequence: number;
  readonly entries: number;
  readonly headerBytes: number;
  readonly payloadBlocks: number;
  readonly synced: number;
  readonly chain: number;
  readonly salt: number;
  readonly next: number;
  readonly after: number;
}

/**
 * Writes the batch header in front of entries that are in place, zeroes the rest of the last block, and seals it.
 *
 * @param words  the header blocks, from the batch's first word
 * @returns the CRC, the next batch's chain
 */
export function sealBatch(words: Uint32Array, seal: BatchSeal): number {
  words.fill(0, seal.headerBytes >> 2, headerBlocksOf(seal.headerBytes) * (BLOCK_BYTES >> 2));
  words.fill(0, 0, BATCH_HEADER_BYTES >> 2);
  words[B.MAGIC] = BATCH_MAGIC;
  words[B.FORMAT] = STORE_FORMAT_VERSION;
  words[B.TAG_LOW] = seal.tagLow;
  words[B.TAG_HIGH] = seal.tagHigh;
  writePair(words, B.SEQUENCE_LOW, seal.sequence);
  words[B.ENTRIES] = seal.entries;
  words[B.HEADER_BYTES] = seal.headerBytes;
  words[B.PAYLOAD_BLOCKS] = seal.payloadBlocks;
  writePair(words, B.SYNCED_LOW, seal.synced);
  words[B.CHAIN] = seal.chain;
  words[B.SALT] = seal.salt;
  words[B.NEXT] = seal.next;
  words[B.AFTER] = seal.after;
  return (words[B.CRC] = batchCrc(words, seal.headerBytes));
}

export function headerBlocksOf(headerBytes: number): number {
  return Math.ceil(headerBytes / BLOCK_BYTES);
}

/** The CRC of a batch header area, its own word taken as 0. */
function batchCrc(words: Uint32Array, headerBytes: number): number {
  const bytes = new Uint8Array(words.buffer, words.byteOffset, headerBytes);
  const upTo = crc32c(bytes.subarray(0, B.CRC * 4));
  return crc32c(bytes.subarray(BATCH_HEADER_BYTES), crc32c(zeroWord, upTo));
}
const zeroWord = new Uint8Array(4);

/** @property blocksLeft  in the segment */
export interface Expected {
  readonly tagLow: number;
  readonly tagHigh: number;
  readonly sequence: number;
  readonly chain: number;
  readonly blocksLeft: number;
}

/**
 * Whether the first block of a batch is the one expected here, by all that can be known before the rest of its header
 * is read.
 *
 * @returns header bytes to read and check with {@link batchHolds}, or 0: the log ends here
 */
export function plausibleBatch(words: Uint32Array, expected: Expected): number {
  const headerBytes = words[B.HEADER_BYTES]!;
  const fits =
    words[B.MAGIC] === BATCH_MAGIC &&
    words[B.FORMAT] === STORE_FORMAT_VERSION &&
    words[B.TAG_LOW] === expected.tagLow &&
    words[B.TAG_HIGH] === expected.tagHigh &&
    readPair(words, B.SEQUENCE_LOW) === expected.sequence &&
    words[B.CHAIN] === expected.chain &&
    headerBytes >= BATCH_HEADER_BYTES &&
    headerBytes <= MAX_HEADER_AREA_BYTES &&
    headerBytes % 8 === 0 &&
    words[B.PAYLOAD_BLOCKS]! <= MAX_PAYLOAD_BLOCKS &&
    headerBlocksOf(headerBytes) + words[B.PAYLOAD_BLOCKS]! <= expected.blocksLeft;
  return fits ? headerBytes : 0;
}

/**
 * Whether this may be a batch of the same store that was written when `sequence` was known to be on disk.
 * @returns header bytes, or 0
 */
export function claimsDurable(words: Uint32Array, { tagLow, tagHigh, sequence, blocksLeft }: Expected): number {
  const headerBytes = words[B.HEADER_BYTES]!;
  const fits =
    words[B.MAGIC] === BATCH_MAGIC &&
    words[B.TAG_LOW] === tagLow &&
    words[B.TAG_HIGH] === tagHigh &&
    readPair(words, B.SEQUENCE_LOW) > sequence &&
    readPair(words, B.SYNCED_LOW) >= sequence &&
    headerBytes >= BATCH_HEADER_BYTES &&
    headerBytes <= MAX_HEADER_AREA_BYTES &&
    headerBlocksOf(headerBytes) <= blocksLeft;
  return fits ? headerBytes : 0;
}

/** Whether the whole header area is as it was sealed. */
export function batchHolds(words: Uint32Array): boolean {
  return words[B.CRC] === batchCrc(words, words[B.HEADER_BYTES]!);
}

/** The seal of a unit's header, as the devices compute it: CRC32C over the header without the seal's own word. */
export function unitSeal(header: Uint8Array, sealOffset: number): number {
  return crc32c(header.subarray(sealOffset + 4), crc32c(header.subarray(0, sealOffset)));
}

/** What a MISSING entry holds. */
export function missingEntry(
  fileId: number,
  stripe: number,
  writerEpoch: number,
  counter: number,
  mask: bigint,
): (words: Uint32Array, w: number) => void {
  return (words, w) => {
    writePair(words, w, fileId);
    writePair(words, w + 2, stripe);
    words[w + 4] = writerEpoch;
    words[w + 5] = counter;
    words[w + 6] = Number(mask & 0xffffffffn);
    words[w + 7] = Number((mask >> 32n) & 0xffffffffn);
  };
}
