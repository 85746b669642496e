/**
 * Reads the log from its beginning and tells what it holds (docs/store-format.md, "Opening a store").
 *
 * Intuition: a batch belongs to the log when it carries the store's tag, the next sequence and the CRC of its
 * predecessor; the first that doesn't is the end. Whether its payloads made it is known from later batches (`synced`), and
 * must be checked only for those after the highest `synced` seen.
 */
import { checkHeader, digestLayout, headerFileId, headerStripe, W } from '../wire/unit-header.js';
import type { AlignedMemory } from './batch.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import {
  B, BATCH_HEADER_BYTES, batchHolds, claimsDurable, EntryKind, headerBlocksOf, MAX_HEADER_AREA_BYTES, MAX_HEADER_BLOCKS, MAX_PAYLOAD_BLOCKS, plausibleBatch,
  readPair, UNIT_ENTRY_HEAD_WORDS, unitSeal, type Expected,
} from './log-format.js';
import { LOG_FIRST_BLOCK, type Superblock } from './superblock.js';

/** What the log tells, in its order. */
export interface LogReader {
  /** A unit whose header is whole; `w` is the first word of its header. */
  unit(words: Uint32Array, w: number, headerBytes: number, headerBlock: number, headerByte: number, payloadBlock: number): void;
  missing(fileId: number, stripe: number, writerEpoch: number, counter: number, mask: bigint): void;
  fence(fileId: number, writerEpoch: number): void;
  discard(fileId: number, fromStripe: number, writerEpoch: number): void;
  deleted(fileId: number): void;
  voided(fileId: number, stripe: number, headerBlock: number, headerByte: number): void;
}

/** A unit of a batch that may have been cut off. */
export interface UncertainUnit {
  readonly fileId: number; readonly stripe: number; readonly headerBlock: number; readonly headerByte: number;
  readonly payloadBlock: number; readonly unitLength: number; readonly payloadCrc: number;
}

export interface LogEnd {
  /** Where the next batch goes. */
  readonly nextBlock: number;
  readonly nextSequence: number;
  readonly chain: number;
  readonly batches: number;
  /** Units of batches not known to be synced, in the log's order. */
  readonly uncertain: readonly UncertainUnit[];
  /** Unit headers whose own seal failed inside a batch that holds: silent damage. */
  readonly badHeaders: number;
  /** A batch that was on disk once and can't be read: the block where it should be. What followed it is out of reach. */
  readonly damagedBlock: number | undefined;
}

/**
 * @param window  memory of at least MAX_HEADER_AREA_BYTES + one block, aligned as the disk needs it
 * @throws {TartanError} ERR_DISK when the disk can't be read: that is not the end of the log
 */
export async function readLog(disk: Disk, superblock: Superblock, window: AlignedMemory, reader: LogReader): Promise<LogEnd> {
  const blocks = disk.size / BLOCK_BYTES;
  const source = new Window(disk, window.bytes);
  let block = LOG_FIRST_BLOCK, sequence = 1, chain = 0, synced = 0, badHeaders = 0;
  let uncertain: (UncertainUnit & { sequence: number })[] = [];
  while (block < blocks) {
    const expected = { tagLow: superblock.tagLow, tagHigh: superblock.tagHigh, sequence, chain, blocksLeft: blocks - block };
    const headerBytes = plausibleBatch(await source.words(block, 1), expected);
    if (headerBytes === 0) break;
    const words = await source.words(block, headerBlocksOf(headerBytes));
    if (!batchHolds(words)) break;
    const payloads = block + headerBlocksOf(headerBytes);
    const syncedHere = readPair(words, B.SYNCED_LOW);
    if (syncedHere > synced) {
      synced = syncedHere;
      uncertain = uncertain.filter((unit) => unit.sequence > syncedHere);
    }
    badHeaders += readEntries(words, headerBytes, block, payloads, reader, (unit) => { uncertain.push({ ...unit, sequence }); });
    chain = words[B.CRC]!;
    block = payloads + words[B.PAYLOAD_BLOCKS]!;
    sequence++;
  }
  const isDamaged = await wasDurable(source, blocks, block, { tagLow: superblock.tagLow, tagHigh: superblock.tagHigh, sequence, chain, blocksLeft: 0 });
  return { nextBlock: block, nextSequence: sequence, chain, batches: sequence - 1, uncertain, badHeaders, damagedBlock: isDamaged ? block : undefined };
}

/**
 * Whether the batch that isn't at `block` was durable once: then some batch after it says so. Looks as far as the next
 * batch can be. Without it, one bad block amid the log would pass for its end, and all after it for never stored.
 */
async function wasDurable(source: Window, blocks: number, block: number, expected: Expected): Promise<boolean> {
  const last = Math.min(blocks - 1, block + MAX_HEADER_BLOCKS + MAX_PAYLOAD_BLOCKS);
  for (let at = block + 1; at <= last; at++) {
    const headerBytes = claimsDurable(await source.words(at, 1), { ...expected, blocksLeft: blocks - at });
    if (headerBytes > 0 && batchHolds(await source.words(at, headerBlocksOf(headerBytes)))) return true;
  }
  return false;
}

/** @returns how many units had a bad header */
function readEntries(words: Uint32Array, headerBytes: number, block: number, payloads: number, reader: LogReader, onUnit: (unit: UncertainUnit) => void): number {
  let bad = 0;
  const end = headerBytes >> 2;
  for (let w = BATCH_HEADER_BYTES >> 2; w < end;) {
    const kind = words[w]! & 0xffff, size = words[w]! >>> 16;
    if (size === 0 || w + size > end) break; // only a program's fault can seal such a batch
    const a = w + 1;
    switch (kind) {
      case EntryKind.UNIT: if (!readUnit(words, w, size, block, payloads, reader, onUnit)) bad++; break;
      case EntryKind.MISSING:
        reader.missing(readPair(words, a), readPair(words, a + 2), words[a + 4]!, words[a + 5]!, BigInt(words[a + 6]!) | (BigInt(words[a + 7]!) << 32n));
        break;
      case EntryKind.FENCE: reader.fence(readPair(words, a), words[a + 2]!); break;
      case EntryKind.DISCARD: reader.discard(readPair(words, a), readPair(words, a + 2), words[a + 4]!); break;
      case EntryKind.DELETE: reader.deleted(readPair(words, a)); break;
      case EntryKind.VOID: reader.voided(readPair(words, a), readPair(words, a + 2), words[a + 4]!, words[a + 5]!); break;
      default: break; // MARK
    }
    w += size;
  }
  return bad;
}

function readUnit(words: Uint32Array, w: number, size: number, block: number, payloads: number, reader: LogReader, onUnit: (unit: UncertainUnit) => void): boolean {
  const header = w + UNIT_ENTRY_HEAD_WORDS;
  const headerBytes = 64 + ((words[header + W.UNIT]! >>> 24) << 2);
  if (headerBytes > (size - UNIT_ENTRY_HEAD_WORDS) << 2) return false;
  if (checkHeader(words, header, headerBytes, words[header + W.UNIT_LENGTH]!) !== undefined) return false;
  const bytes = new Uint8Array(words.buffer, words.byteOffset + header * 4, headerBytes);
  if (unitSeal(bytes, digestLayout.sealOffset) !== words[header + W.SEAL]) return false;
  const headerBlock = block + Math.floor((header * 4) / BLOCK_BYTES), headerByte = (header * 4) % BLOCK_BYTES;
  const payloadBlock = payloads + words[w + 1]!;
  reader.unit(words, header, headerBytes, headerBlock, headerByte, payloadBlock);
  onUnit({
    fileId: headerFileId(words, header), stripe: headerStripe(words, header), headerBlock, headerByte, payloadBlock,
    unitLength: words[header + W.UNIT_LENGTH]!, payloadCrc: words[header + W.PAYLOAD_CRC]!,
  });
  return true;
}

/** The log's blocks through one buffer: small batches that lie together cost one read. */
class Window {
  private from = 0;
  private count = 0;
  constructor(private readonly disk: Disk, private readonly bytes: Uint8Array) {}

  /** Words of `count` blocks from `block` on; valid until the next call. */
  async words(block: number, count: number): Promise<Uint32Array> {
    if (block < this.from || block + count > this.from + this.count) {
      const left = this.disk.size / BLOCK_BYTES - block;
      this.count = Math.min(Math.floor(this.bytes.length / BLOCK_BYTES), left);
      this.from = block;
      await this.disk.read(this.bytes.subarray(0, this.count * BLOCK_BYTES), block * BLOCK_BYTES);
    }
    const offset = this.bytes.byteOffset + (block - this.from) * BLOCK_BYTES;
    return new Uint32Array(this.bytes.buffer, offset, (Math.min(count, this.from + this.count - block) * BLOCK_BYTES) >> 2);
  }
}

export const RECOVERY_WINDOW_BYTES = 16 * MAX_HEADER_AREA_BYTES;
