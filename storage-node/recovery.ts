/**
 * Reads the log from a checkpoint on and tells what it holds (docs/store-format.md, "Opening a store").
 *
 * Intuition: a batch belongs to the log when it carries the store's tag, the next sequence and the CRC of its
 * predecessor; it lies behind its predecessor or at the beginning of the segment that this announced. Where neither
 * does, is the end. Whether its payloads made it is known from later batches (`synced`), and must be checked only for
 * those after the highest `synced` seen.
 */
import { codeOf } from '../wire/errors.js';
import { checkHeader, digestLayout, headerFileId, headerStripe, W } from '../wire/unit-header.js';
import type { AlignedMemory } from './batch.js';
import type { LogPosition } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import {
  B,
  BATCH_HEADER_BYTES,
  batchHolds,
  claimsDurable,
  EntryKind,
  headerBlocksOf,
  MAX_HEADER_AREA_BYTES,
  MAX_HEADER_BLOCKS,
  MAX_PAYLOAD_BLOCKS,
  MOVED_ENTRY_HEAD_WORDS,
  plausibleBatch,
  readPair,
  UNIT_ENTRY_HEAD_WORDS,
  unitSeal,
  type Expected,
} from './log-format.js';
import { SegmentState, type Segments } from './segments.js';
import type { Superblock } from './superblock.js';

/** What the log tells, in its order. */
export interface LogReader {
  /**
   * A unit whose header is whole; `w` is the first word of its header.
   * @returns where the copy lies that it replaces, if any
   */
  unit(
    words: Uint32Array,
    w: number,
    headerBytes: number,
    headerBlock: number,
    headerByte: number,
    payloadBlock: number,
  ): UnitPlace | undefined;
  missing(fileId: number, stripe: number, writerEpoch: number, counter: number, mask: bigint): void;
  fence(fileId: number, writerEpoch: number): void;
  discard(fileId: number, fromStripe: number, writerEpoch: number): void;
  deleted(fileId: number): void;
  /** The unit whose header lies at `place` isn't held; `fallback`: but its older copy is. */
  voided(fileId: number, stripe: number, place: HeaderPlace, fallback: UnitPlace | undefined): void;
  /**
   * The unit whose header lay at `from` has been copied.
   * @returns where the old copy lies, undefined: it wasn't held, so nothing moved
   */
  moved(words: Uint32Array, w: number, from: HeaderPlace, to: UnitPlace): UnitPlace | undefined;
}

export interface HeaderPlace {
  readonly headerBlock: number;
  readonly headerByte: number;
}
export interface UnitPlace extends HeaderPlace {
  readonly payloadBlock: number;
}

/** A unit of a batch that may have been cut off. */
export interface UncertainUnit extends UnitPlace {
  readonly fileId: number;
  readonly stripe: number;
  readonly unitLength: number;
  readonly payloadCrc: number;
  /** Its older copy: of a unit that was moved, or stored again because the older was damaged. */
  readonly fallback: UnitPlace | undefined;
}

export interface LogEnd {
  /** Where the next batch goes. */
  readonly position: LogPosition;
  /** The highest sequence that some batch said was on disk. */
  readonly synced: number;
  readonly batches: number;
  /** Blocks of the batches read. */
  readonly blocks: number;
  /** Batches not known to be synced, in the log's order: their blocks. */
  readonly tail: readonly { readonly block: number; readonly blocks: number }[];
  /** Units of batches not known to be synced, in the log's order. */
  readonly uncertain: readonly UncertainUnit[];
  /** Unit headers whose own seal failed inside a batch that holds: silent damage. */
  readonly badHeaders: number;
  /**
   * A batch that was on disk once and can't be read: the block where it should be. What followed it is out of reach.
   */
  readonly damagedBlock: number | undefined;
}

/**
 * @param from    where to begin
 * @param window  memory of at least MAX_HEADER_AREA_BYTES + one block, aligned as the disk needs it
 * @throws {TartanError} ERR_DISK when the disk can't be read: that is not the end of the log
 */
export async function readLog(
  disk: Disk,
  superblock: Superblock,
  segments: Segments,
  from: LogPosition,
  window: AlignedMemory,
  reader: LogReader,
): Promise<LogEnd> {
  const source = new Window(disk, window.bytes),
    { tagLow, tagHigh } = superblock;
  let { segment, block, sequence, chain, next, after } = from,
    synced = from.sequence - 1,
    badHeaders = 0,
    read = 0;
  let uncertain: (UncertainUnit & { sequence: number })[] = [],
    tail: { readonly block: number; readonly blocks: number; readonly sequence: number }[] = [];
  for (;;) {
    let headerBytes = 0;
    let unreadable: unknown;
    for (const [at, inside] of placesOf(segments, block, segment, next, after)) {
      const blocksLeft = segments.first(inside) + segments.blocks - at;
      if (blocksLeft <= 0) continue;
      let size: number;
      try {
        size = plausibleBatch(await source.words(at, 1), { tagLow, tagHigh, sequence, chain, blocksLeft });
        if (size === 0 || !batchHolds(await source.words(at, headerBlocksOf(size)))) continue;
      } catch (error) {
        if (codeOf(error) !== 'ERR_DISK') throw error;
        unreadable ??= error;
        continue;
      }
      headerBytes = size;
      block = at;
      segment = inside;
      break;
    }
    // The log may have stepped over a place that can't be read. Where it goes on nowhere, that is not its end.
    if (headerBytes === 0 && unreadable !== undefined) throw unreadable as Error;
    if (headerBytes === 0) break;
    const words = await source.words(block, headerBlocksOf(headerBytes));
    const payloads = block + headerBlocksOf(headerBytes),
      syncedHere = readPair(words, B.SYNCED_LOW);
    if (syncedHere > synced) {
      synced = syncedHere;
      uncertain = uncertain.filter((unit) => unit.sequence > syncedHere);
      tail = tail.filter((batch) => batch.sequence > syncedHere);
    }
    next = announced(segments, words[B.NEXT]!);
    after = announced(segments, words[B.AFTER]!);
    badHeaders += readEntries(words, headerBytes, block, payloads, reader, (unit) => {
      uncertain.push({ ...unit, sequence });
    });
    chain = words[B.CRC]!;
    tail.push({ block, blocks: payloads + words[B.PAYLOAD_BLOCKS]! - block, sequence });
    read += payloads + words[B.PAYLOAD_BLOCKS]! - block;
    block = payloads + words[B.PAYLOAD_BLOCKS]!;
    segments.mark(segment, SegmentState.LOG);
    segments.sequences[segment] = sequence++;
    segments.filled[segment] = block - segments.first(segment);
  }
  const position = { segment, block, sequence, chain, next, after };
  const isDamaged = await wasDurable(source, segments, position, { tagLow, tagHigh, sequence, chain, blocksLeft: 0 });
  return {
    position,
    synced,
    batches: sequence - from.sequence,
    blocks: read,
    tail,
    uncertain,
    badHeaders,
    damagedBlock: isDamaged ? block : undefined,
  };
}

/**
 * Whether the batch that isn't at the end was durable once: then some batch after it says so. Looks as far as the next
 * batch can be: behind it in its segment, or at the beginning of one of the two after it. Without it, one bad block
 * amid the log would pass for its end, and all after it for never stored.
 */
async function wasDurable(source: Window, segments: Segments, end: LogPosition, expected: Expected): Promise<boolean> {
  const places = [
    [end.segment, end.block],
    ...[end.next, end.after].filter((segment) => segment >= 0).map((segment) => [segment, segments.first(segment)]),
  ] as [number, number][];
  for (const [segment, first] of places) {
    const limit = segments.first(segment) + segments.blocks,
      last = Math.min(limit - 1, first + MAX_HEADER_BLOCKS + MAX_PAYLOAD_BLOCKS);
    for (let at = first; at <= last; at++) {
      try {
        const headerBytes = claimsDurable(await source.words(at, 1), { ...expected, blocksLeft: limit - at });
        if (headerBytes > 0 && batchHolds(await source.words(at, headerBlocksOf(headerBytes)))) return true;
      } catch (error) {
        if (codeOf(error) !== 'ERR_DISK') throw error; // what can't be read says nothing
      }
    }
  }
  return false;
}

/** Where the next batch may lie: behind the last, or where the log stepped over what it could not write. */
export function placesOf(
  segments: Segments,
  block: number,
  segment: number,
  next: number,
  after: number,
): [block: number, segment: number][] {
  return [
    [block, segment],
    ...[next, after].filter((each) => each >= 0).map((each): [number, number] => [segments.first(each), each]),
  ];
}

/** The segment that a batch names by its first block, −1: none. */
function announced(segments: Segments, block: number): number {
  const segment = segments.of(block);
  return block > 0 && segment >= 0 && segment < segments.count && segments.first(segment) === block ? segment : -1;
}

/** @returns how many units had a bad header */
function readEntries(
  words: Uint32Array,
  headerBytes: number,
  block: number,
  payloads: number,
  reader: LogReader,
  onUnit: (unit: UncertainUnit) => void,
): number {
  let bad = 0;
  const end = headerBytes >> 2;
  for (let w = BATCH_HEADER_BYTES >> 2; w < end; ) {
    const kind = words[w]! & 0xffff,
      size = words[w]! >>> 16;
    if (size === 0 || w + size > end) break; // only a program's fault can seal such a batch
    const a = w + 1;
    switch (kind) {
      case EntryKind.UNIT:
        if (!readUnit(words, w, size, block, payloads, reader, onUnit)) bad++;
        break;
      case EntryKind.MISSING:
        reader.missing(
          readPair(words, a),
          readPair(words, a + 2),
          words[a + 4]!,
          words[a + 5]!,
          BigInt(words[a + 6]!) | (BigInt(words[a + 7]!) << 32n),
        );
        break;
      case EntryKind.FENCE:
        reader.fence(readPair(words, a), words[a + 2]!);
        break;
      case EntryKind.DISCARD:
        reader.discard(readPair(words, a), readPair(words, a + 2), words[a + 4]!);
        break;
      case EntryKind.DELETE:
        reader.deleted(readPair(words, a));
        break;
      case EntryKind.MOVED:
        if (!readMoved(words, w, size, block, payloads, reader, onUnit)) bad++;
        break;
      case EntryKind.VOID:
        reader.voided(
          readPair(words, a),
          readPair(words, a + 2),
          { headerBlock: words[a + 4]!, headerByte: words[a + 5]! },
          words[a + 6] === 0
            ? undefined
            : { headerBlock: words[a + 6]!, headerByte: words[a + 7]!, payloadBlock: words[a + 8]! },
        );
        break;
      default:
        break; // MARK
    }
    w += size;
  }
  return bad;
}

function readUnit(
  words: Uint32Array,
  w: number,
  size: number,
  block: number,
  payloads: number,
  reader: LogReader,
  onUnit: (unit: UncertainUnit) => void,
): boolean {
  const header = w + UNIT_ENTRY_HEAD_WORDS,
    headerBytes = soundHeader(words, header, w + size, words[w + 1]!);
  if (headerBytes === 0) return false;
  const place = placeOf(header, block, payloads + words[w + 1]!);
  const replaced = reader.unit(words, header, headerBytes, place.headerBlock, place.headerByte, place.payloadBlock);
  onUnit(uncertainUnit(words, header, place, replaced));
  return true;
}

function readMoved(
  words: Uint32Array,
  w: number,
  size: number,
  block: number,
  payloads: number,
  reader: LogReader,
  onUnit: (unit: UncertainUnit) => void,
): boolean {
  const header = w + MOVED_ENTRY_HEAD_WORDS;
  if (soundHeader(words, header, w + size, words[w + 1]!) === 0) return false;
  const place = placeOf(header, block, payloads + words[w + 1]!);
  const fallback = reader.moved(words, header, { headerBlock: words[w + 2]!, headerByte: words[w + 3]! }, place);
  if (fallback !== undefined) onUnit(uncertainUnit(words, header, place, fallback));
  return true;
}

/** Length of the unit header at a word, 0: it isn't whole, or its payload isn't one of the batch's. */
function soundHeader(words: Uint32Array, header: number, end: number, payload: number): number {
  const headerBytes = 64 + ((words[header + W.UNIT]! >>> 24) << 2);
  if (header + (headerBytes >> 2) > end) return 0;
  if (checkHeader(words, header, headerBytes, words[header + W.UNIT_LENGTH]!) !== undefined) return 0;
  if (payload + Math.ceil(words[header + W.UNIT_LENGTH]! / BLOCK_BYTES) > words[B.PAYLOAD_BLOCKS]!) return 0;
  const bytes = new Uint8Array(words.buffer, words.byteOffset + header * 4, headerBytes);
  const isNamable =
    headerFileId(words, header) <= Number.MAX_SAFE_INTEGER && headerStripe(words, header) <= Number.MAX_SAFE_INTEGER;
  return isNamable && unitSeal(bytes, digestLayout.sealOffset) === words[header + W.SEAL] ? headerBytes : 0;
}

function placeOf(header: number, block: number, payloadBlock: number): UnitPlace {
  return {
    headerBlock: block + Math.floor((header * 4) / BLOCK_BYTES),
    headerByte: (header * 4) % BLOCK_BYTES,
    payloadBlock,
  };
}

function uncertainUnit(
  words: Uint32Array,
  header: number,
  place: UnitPlace,
  fallback: UnitPlace | undefined,
): UncertainUnit {
  return {
    ...place,
    fileId: headerFileId(words, header),
    stripe: headerStripe(words, header),
    unitLength: words[header + W.UNIT_LENGTH]!,
    payloadCrc: words[header + W.PAYLOAD_CRC]!,
    fallback,
  };
}

/**
 * The log's blocks through one buffer: small batches that lie together cost one read. Where batches lie far apart, as
 * their payloads between them are large, less is read at a time.
 */
class Window {
  private from = 0;
  private count = 0;
  /** Calls since the last read: a batch takes three. */
  private calls = FAR_APART + 1;
  constructor(
    private readonly disk: Disk,
    private readonly bytes: Uint8Array,
  ) {}

  /** Words of `count` blocks from `block` on; valid until the next call. */
  async words(block: number, count: number): Promise<Uint32Array> {
    if (block < this.from || block + count > this.from + this.count) {
      const left = this.disk.size / BLOCK_BYTES - block,
        most = this.calls > FAR_APART ? this.bytes.length / BLOCK_BYTES : MAX_HEADER_BLOCKS;
      this.count = Math.min(Math.floor(most), left);
      this.calls = 0;
      this.from = block;
      await this.load(count);
    }
    this.calls++;
    const offset = this.bytes.byteOffset + (block - this.from) * BLOCK_BYTES;
    return new Uint32Array(
      this.bytes.buffer,
      offset,
      (Math.min(count, this.from + this.count - block) * BLOCK_BYTES) >> 2,
    );
  }

  /** One block that can't be read is not to hide those before it: then only what was asked for is read. */
  private async load(wanted: number): Promise<void> {
    const position = this.from * BLOCK_BYTES;
    try {
      await this.disk.read(this.bytes.subarray(0, this.count * BLOCK_BYTES), position);
    } catch (error) {
      const whole = this.count;
      this.count = Math.min(wanted, whole);
      if (codeOf(error) === 'ERR_DISK' && wanted < whole)
        try {
          await this.disk.read(this.bytes.subarray(0, this.count * BLOCK_BYTES), position);
          return;
        } catch {
          /* as before */
        }
      this.count = 0;
      throw error;
    }
  }
}

const FAR_APART = 3;
export const RECOVERY_WINDOW_BYTES = 16 * MAX_HEADER_AREA_BYTES;
