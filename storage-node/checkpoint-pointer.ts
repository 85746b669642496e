/**
 * The two pointer blocks: each names a checkpoint and the place from which the log is replayed on top of it. They are
 * written in turn, so one of them always holds (docs/store-format.md draws them).
 */
import { crc32c } from '../erasure/code/index.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { readPair, STORE_FORMAT_VERSION, writePair } from './log-format.js';

export const POINTER_BLOCKS = [2, 10] as const;
const POINTER_MAGIC = 0x52545054; // "TPTR" in memory
const CRC_WORD = 127;
const SEGMENTS_WORD = 128;
/** Segments that one checkpoint can take: 57 GiB of index, if they are 64 MiB each. */
const MOST_CHECKPOINT_SEGMENTS = BLOCK_BYTES / 4 - SEGMENTS_WORD;

/** Where the log goes on. Segments by number; −1: not chosen yet. */
export interface LogPosition {
  readonly segment: number;
  readonly block: number;
  readonly sequence: number;
  readonly chain: number;
  /** The segments after this one. */
  readonly next: number;
  readonly after: number;
}

export interface Pointer extends LogPosition {
  /** Counts checkpoints; 0 is the empty one of a new store. */
  readonly generation: number;
  /** Words of the checkpoint, and where they lie. */
  readonly words: number;
  readonly segments: readonly number[];
}

export interface Tag {
  readonly tagLow: number;
  readonly tagHigh: number;
}

/** @param block  BLOCK_BYTES of memory, aligned as the disk needs it */
export async function writePointer(
  disk: Disk,
  slot: number,
  pointer: Pointer,
  tag: Tag,
  block: Uint8Array,
): Promise<void> {
  const words = new Uint32Array(block.buffer, block.byteOffset, BLOCK_BYTES >> 2);
  words.fill(0);
  words.set([POINTER_MAGIC, STORE_FORMAT_VERSION, tag.tagLow, tag.tagHigh]);
  writePair(words, 4, pointer.generation);
  writePair(words, 6, pointer.sequence);
  words.set([pointer.chain, pointer.segment, pointer.block, pointer.next, pointer.after], 8);
  writePair(words, 13, pointer.words);
  words[15] = pointer.segments.length;
  words.set(pointer.segments, SEGMENTS_WORD);
  words[CRC_WORD] = pointerCrc(block);
  await disk.writev([block], POINTER_BLOCKS[slot]! * BLOCK_BYTES);
}

/** @returns the pointer, 'blank', or 'bad' */
export async function readPointer(
  disk: Disk,
  slot: number,
  tag: Tag,
  block: Uint8Array,
): Promise<Pointer | 'blank' | 'bad'> {
  await disk.read(block, POINTER_BLOCKS[slot]! * BLOCK_BYTES);
  const words = new Uint32Array(block.buffer, block.byteOffset, BLOCK_BYTES >> 2);
  if (words.every((word) => word === 0)) return 'blank';
  const holds =
    words[0] === POINTER_MAGIC &&
    words[1] === STORE_FORMAT_VERSION &&
    words[2] === tag.tagLow &&
    words[3] === tag.tagHigh &&
    words[15]! <= MOST_CHECKPOINT_SEGMENTS &&
    words[CRC_WORD] === pointerCrc(block);
  if (!holds) return 'bad';
  return {
    generation: readPair(words, 4),
    sequence: readPair(words, 6),
    chain: words[8]!,
    segment: words[9]!,
    block: words[10]!,
    next: words[11]! | 0,
    after: words[12]! | 0,
    words: readPair(words, 13),
    segments: Array.from(words.subarray(SEGMENTS_WORD, SEGMENTS_WORD + words[15]!)),
  };
}

/**
 * Whether the block begins as a pointer does. The first pointer of a store lies in one sector, so it is there wholly or
 * not at all.
 */
export function mayBePointer(block: Uint8Array): boolean {
  return new Uint32Array(block.buffer, block.byteOffset, 1)[0] === POINTER_MAGIC;
}

/** Of the whole block, its own word taken as 0. */
function pointerCrc(block: Uint8Array): number {
  const upTo = crc32c(new Uint8Array(4), crc32c(block.subarray(0, CRC_WORD * 4)));
  return crc32c(block.subarray(CRC_WORD * 4 + 4), upTo);
}
