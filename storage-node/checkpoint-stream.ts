/**
 * A checkpoint's words on disk: pieces of up to 1 MiB, each sealed, one after the other in the segments of its pointer.
 *
 *     ┌────────────────── piece ──────────────────┬─────────────── piece ───────────┬ ─ ─
 *     │ magic, tag, generation, index, words, CRC │ words …   │ zero to the block's end │
 *     └───────────────────────────────────────────┴───────────┴─────────────────────────┘
 *
 * A piece never straddles segments; all but the last are full.
 */
import { crc32c } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import type { AlignedMemory } from './batch.js';
import type { Tag } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { readPair, writePair } from './log-format.js';
import type { Segments } from './segments.js';

const PIECE_MAGIC = 0x504b4354; // "TCKP" in memory
const PIECE_BLOCKS = 256;
const HEADER_WORDS = 8;
const CRC_WORD = 7;

export function pieceBlocks(segmentBlocks: number): number {
  return Math.min(PIECE_BLOCKS, segmentBlocks);
}
const wordsOf = (blocks: number): number => (blocks * BLOCK_BYTES) >> 2;

/** Segments that so many words take. */
export function segmentsFor(words: number, segmentBlocks: number): number {
  const blocks = pieceBlocks(segmentBlocks),
    pieces = Math.ceil(words / (wordsOf(blocks) - HEADER_WORDS));
  return Math.max(1, Math.ceil(pieces / Math.floor(segmentBlocks / blocks)));
}

/** Takes words, writes pieces. */
export class CheckpointWriter {
  /** Words taken. */
  total = 0;
  bytesWritten = 0;
  readonly taken: number[] = [];
  private readonly piece: Uint32Array;
  private readonly blocks: number;
  private filled = HEADER_WORDS;
  private pieces = 0;

  /** @param take  a free segment, or −1 */
  constructor(
    private readonly disk: Disk,
    private readonly segments: Segments,
    private readonly tag: Tag,
    private readonly generation: number,
    private readonly memory: AlignedMemory,
    private readonly take: () => number,
  ) {
    this.blocks = pieceBlocks(segments.blocks);
    this.piece = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, wordsOf(this.blocks));
  }

  /** @throws {TartanError} ERR_DISK; ERR_DISK_FULL: no segment is free */
  async put(words: ArrayLike<number> & { readonly length: number }, count = words.length): Promise<void> {
    for (let from = 0; from < count; ) {
      const some = Math.min(count - from, this.piece.length - this.filled);
      for (let i = 0; i < some; i++) this.piece[this.filled + i] = words[from + i]!;
      this.filled += some;
      from += some;
      this.total += some;
      if (this.filled === this.piece.length) await this.flush();
    }
  }

  async finish(): Promise<void> {
    if (this.filled > HEADER_WORDS) await this.flush();
  }

  private async flush(): Promise<void> {
    const perSegment = Math.floor(this.segments.blocks / this.blocks),
      index = this.pieces++;
    if (index % perSegment === 0) {
      const segment = this.take();
      if (segment < 0) throw new TartanError('ERR_DISK_FULL', 'Cannot write a checkpoint: no segment is free');
      this.taken.push(segment);
    }
    const { piece, filled } = this,
      blocks = Math.ceil((filled * 4) / BLOCK_BYTES);
    piece.fill(0, filled, wordsOf(blocks));
    piece.set([PIECE_MAGIC, this.tag.tagLow, this.tag.tagHigh, 0, 0, index, filled - HEADER_WORDS]);
    writePair(piece, 3, this.generation);
    piece[CRC_WORD] = pieceCrc(piece);
    const at = this.segments.first(this.taken[this.taken.length - 1]!) + (index % perSegment) * this.blocks;
    await this.disk.writev([this.memory.bytes.subarray(0, blocks * BLOCK_BYTES)], at * BLOCK_BYTES);
    this.bytesWritten += blocks * BLOCK_BYTES;
    this.filled = HEADER_WORDS;
  }
}

/** Gives the words back, in whatever lengths are asked for. */
export class CheckpointReader {
  private readonly piece: Uint32Array;
  private readonly blocks: number;
  private at = 0;
  private end = 0;
  private pieces = 0;
  private scratch = new Uint32Array(64);

  constructor(
    private readonly disk: Disk,
    private readonly segments: Segments,
    private readonly tag: Tag,
    private readonly generation: number,
    private readonly memory: AlignedMemory,
    private left: number,
    private readonly areas: readonly number[],
  ) {
    this.blocks = pieceBlocks(segments.blocks);
    this.piece = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, wordsOf(this.blocks));
  }

  /** @returns `count` words, valid until the next call @throws {TartanError} ERR_CHECKSUM, ERR_DISK */
  async words(count: number): Promise<Uint32Array> {
    if (this.at + count <= this.end) return this.piece.subarray(this.at, (this.at += count));
    if (this.scratch.length < count) this.scratch = new Uint32Array(count);
    for (let done = 0; done < count; ) {
      if (this.at === this.end) await this.load();
      const some = Math.min(count - done, this.end - this.at);
      this.scratch.set(this.piece.subarray(this.at, this.at + some), done);
      this.at += some;
      done += some;
    }
    return this.scratch.subarray(0, count);
  }

  private async load(): Promise<void> {
    const perSegment = Math.floor(this.segments.blocks / this.blocks),
      index = this.pieces++,
      area = this.areas[Math.floor(index / perSegment)];
    const expected = Math.min(this.left, this.piece.length - HEADER_WORDS);
    if (area === undefined || area >= this.segments.count || expected === 0) throw this.bad('it ends too early');
    const blocks = Math.ceil(((expected + HEADER_WORDS) * 4) / BLOCK_BYTES),
      at = this.segments.first(area) + (index % perSegment) * this.blocks;
    await this.disk.read(this.memory.bytes.subarray(0, blocks * BLOCK_BYTES), at * BLOCK_BYTES);
    const { piece } = this;
    const holds =
      piece[0] === PIECE_MAGIC &&
      piece[1] === this.tag.tagLow &&
      piece[2] === this.tag.tagHigh &&
      readPair(piece, 3) === this.generation &&
      piece[5] === index &&
      piece[6] === expected &&
      piece[CRC_WORD] === pieceCrc(piece);
    if (!holds) throw this.bad(`piece ${index} at block ${at} is damaged`);
    this.left -= expected;
    this.at = HEADER_WORDS;
    this.end = HEADER_WORDS + expected;
  }

  private bad(what: string): TartanError {
    return new TartanError('ERR_CHECKSUM', `Cannot read checkpoint ${this.generation}: ${what}`);
  }
}

function pieceCrc(piece: Uint32Array): number {
  const upTo = crc32c(new Uint8Array(piece.buffer, piece.byteOffset, CRC_WORD * 4));
  return crc32c(new Uint8Array(piece.buffer, piece.byteOffset + HEADER_WORDS * 4, piece[6]! * 4), upTo);
}
