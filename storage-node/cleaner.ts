/**
 * Empties segments of which little is still needed: copies their live units to the log's end, as MOVED entries beside
 * everybody else's (docs/store-format.md, "Cleaning").
 *
 * Invariants: a unit is copied only if its payload holds, and the index follows only when the copy is durable and the
 * unit is still held where it was; a segment with a unit that cannot be copied keeps what it has and is
 * left alone for a while (`stuck`).
 */
import { crc32c } from '../erasure/code/index.js';
import { codeOf } from '../wire/errors.js';
import { Refusal } from '../wire/ring-messages.js';
import { headerFileId, headerStripe, MAX_UNIT_BYTES, W } from '../wire/unit-header.js';
import type { AlignedMemory } from './batch.js';
import type { Tag } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { EntryFlag, type IndexTable } from './index-table.js';
import {
  B,
  BATCH_HEADER_BYTES,
  batchHolds,
  EntryKind,
  headerBlocksOf,
  MAX_HEADER_AREA_BYTES,
  MOVED_ENTRY_HEAD_WORDS,
  movedEntryWords,
  plausibleBatch,
  readPair,
  UNIT_ENTRY_HEAD_WORDS,
} from './log-format.js';
import type { LogWriter } from './log-writer.js';
import { SegmentState, type Segments } from './segments.js';

export interface CleanerOptions {
  readonly disk: Disk;
  readonly index: IndexTable;
  readonly segments: Segments;
  readonly log: LogWriter;
  readonly tag: Tag;
  readonly allocate: (bytes: number) => AlignedMemory;
  /** A unit was found damaged. */
  readonly onDamaged: (entry: number) => void;
}

/** A live unit of the segment being emptied. */
interface Live {
  readonly fileId: number;
  readonly stripe: number;
  readonly headerBlock: number;
  readonly headerByte: number;
  readonly payloadBlock: number;
  readonly unitLength: number;
  readonly payloadCrc: number;
  readonly header: Uint32Array;
}

const FIRST_RETRY_BATCHES = 32;

export class Cleaner {
  /** Units copied, the blocks of their payloads, and segments emptied. */
  movedUnits = 0;
  movedBlocks = 0;

  constructor(private readonly options: CleanerOptions) {}

  /**
   * The segment that is best emptied now, by cost and benefit: what becomes free, times how long it has been left
   * alone, by what must be read and written for it. −1: none is worth it.
   *
   * @param leastGain  blocks that must become free
   */
  choose(leastGain: number): number {
    const { segments, log } = this.options,
      { segment: filling, sequence, next, after } = log.position;
    let best = -1,
      most = 0;
    for (const segment of segments.withState(SegmentState.LOG)) {
      if (
        segment === filling ||
        segment === next ||
        segment === after ||
        (segments.stuck[segment] !== 0 && sequence < segments.retryAt[segment]!) ||
        segments.units[segment] === 0
      )
        continue;
      // The copies share blocks of headers, 128 bytes each.
      const needed = segments.live[segment]! + Math.ceil(segments.units[segment]! / 32),
        gain = segments.blocks - needed;
      if (gain < leastGain) continue;
      const score = (gain * (sequence - segments.sequences[segment]!)) / (segments.blocks + needed);
      if (score > most) {
        most = score;
        best = segment;
      }
    }
    return best;
  }

  /**
   * Copies what is live in a segment.
   * @returns false when the log took no more, or failed: nothing is lost, and it may be tried again
   */
  async clean(segment: number): Promise<boolean> {
    const memory = this.options.allocate(MAX_HEADER_AREA_BYTES),
      payloads = this.options.allocate(Math.min(MAX_UNIT_BYTES, this.options.segments.bytes));
    try {
      return await this.empty(segment, memory.bytes, payloads.bytes);
    } catch (error) {
      if (codeOf(error) !== 'ERR_DISK') throw error;
      // What can't be read can't be copied; later perhaps.
      this.leave(segment);
      return true;
    } finally {
      memory.release();
      payloads.release();
    }
  }

  private async empty(segment: number, memory: Uint8Array, payloads: Uint8Array): Promise<boolean> {
    const { segments, disk, tag, log } = this.options,
      first = segments.first(segment),
      end = first + segments.filled[segment]!;
    let sequence = 0,
      chain = 0;
    for (let block = first; block < end && segments.units[segment]! > 0; ) {
      await disk.read(memory.subarray(0, BLOCK_BYTES), block * BLOCK_BYTES);
      const words = new Uint32Array(memory.buffer, memory.byteOffset, MAX_HEADER_AREA_BYTES >> 2);
      // The first batch is taken as it is; the others must follow one another.
      if (sequence === 0) {
        sequence = readPair(words, B.SEQUENCE_LOW);
        chain = words[B.CHAIN]!;
      }
      const headerBytes = plausibleBatch(words, { ...tag, sequence, chain, blocksLeft: end - block }),
        headerBlocks = headerBlocksOf(headerBytes);
      if (headerBlocks > 1)
        await disk.read(memory.subarray(BLOCK_BYTES, headerBlocks * BLOCK_BYTES), (block + 1) * BLOCK_BYTES);
      if (headerBytes === 0 || !batchHolds(words)) break;
      sequence++;
      chain = words[B.CRC]!;
      const next = block + headerBlocks + words[B.PAYLOAD_BLOCKS]!;
      if (!(await this.moveAll(this.liveUnits(words, headerBytes, block), payloads))) return false;
      if (log.state !== 'open') return false;
      block = next;
    }
    // Damaged units, or units whose batch can't be read any more: they stay, and so does the segment.
    if (segments.units[segment]! > 0) this.leave(segment);
    return true;
  }

  /** It is tried again, ever more rarely: after so many batches. */
  private leave(segment: number): void {
    const { segments, log } = this.options,
      times = Math.min(20, segments.stuck[segment]! + 1);
    segments.stuck[segment] = times;
    segments.retryAt[segment] = log.position.sequence + FIRST_RETRY_BATCHES * 2 ** times;
  }

  /** Units of a batch that the index holds here. */
  private liveUnits(words: Uint32Array, headerBytes: number, block: number): Live[] {
    const { index } = this.options,
      live: Live[] = [],
      end = headerBytes >> 2;
    for (let w = BATCH_HEADER_BYTES >> 2; w < end; ) {
      const kind = words[w]! & 0xffff,
        size = words[w]! >>> 16;
      if (size === 0) break;
      if (kind === EntryKind.UNIT || kind === EntryKind.MOVED) {
        const at = w + (kind === EntryKind.UNIT ? UNIT_ENTRY_HEAD_WORDS : MOVED_ENTRY_HEAD_WORDS);
        const place = {
          fileId: headerFileId(words, at),
          stripe: headerStripe(words, at),
          headerBlock: block + Math.floor((at * 4) / BLOCK_BYTES),
          headerByte: (at * 4) % BLOCK_BYTES,
        };
        const entry = this.find(place);
        if (entry !== 0 && (index.flags(entry) & EntryFlag.DAMAGED) === 0) {
          live.push({
            ...place,
            payloadBlock: index.payloadBlock(entry),
            unitLength: words[at + W.UNIT_LENGTH]!,
            payloadCrc: words[at + W.PAYLOAD_CRC]!,
            header: words.slice(at, at + (index.headerBytes(entry) >> 2)),
          });
        }
      }
      w += size;
    }
    return live;
  }

  /** Copies units, as many at a time as the memory takes. */
  private async moveAll(units: readonly Live[], payloads: Uint8Array): Promise<boolean> {
    for (let from = 0; from < units.length; ) {
      let upTo = from,
        bytes = 0;
      while (upTo < units.length && (upTo === from || bytes + paddedLength(units[upTo]!) <= payloads.length))
        bytes += paddedLength(units[upTo++]!);
      if (!(await this.moveSome(units.slice(from, upTo), payloads))) return false;
      from = upTo;
    }
    return true;
  }

  private async moveSome(units: readonly Live[], payloads: Uint8Array): Promise<boolean> {
    const { disk, log } = this.options;
    let at = 0;
    const views = units.map((unit) => payloads.subarray(at, (at += paddedLength(unit))));
    const reads = await Promise.allSettled(
      units.map((unit, i) =>
        views[i]!.length === 0 ? undefined : disk.read(views[i]!, unit.payloadBlock * BLOCK_BYTES),
      ),
    );
    for (const { status, reason } of reads as PromiseRejectedResult[])
      if (status === 'rejected' && codeOf(reason) !== 'ERR_DISK') throw reason;
    const moves: Promise<number>[] = [];
    let isFull = false;
    for (const [i, unit] of units.entries()) {
      const entry = this.find(unit),
        payload = views[i]!;
      if (entry === 0) continue; // gone meanwhile
      // What can't be read is damaged, as for a scrub: repaired, it lies elsewhere, and holds up nobody here.
      if (reads[i]!.status === 'rejected' || crc32c(payload.subarray(0, unit.unitLength)) !== unit.payloadCrc) {
        this.options.onDamaged(entry);
        continue;
      }
      const batch = log.batchForMove(movedEntryWords(unit.header.length * 4), payload.length / BLOCK_BYTES);
      if (batch === undefined) {
        isFull = true;
        break;
      }
      moves.push(
        new Promise((resolve) => {
          batch.addMoved(
            {
              fileId: unit.fileId,
              stripe: unit.stripe,
              headerBlock: unit.headerBlock,
              headerByte: unit.headerByte,
              start: 0,
              onMoved: resolve,
            },
            unit.header,
            0,
            unit.header.length * 4,
            payload,
          );
        }),
      );
      this.movedUnits++;
      this.movedBlocks += payload.length / BLOCK_BYTES;
    }
    if (moves.length > 0) log.kick();
    // The payloads' memory is the log's until then.
    const refusals = await Promise.all(moves);
    return !isFull && refusals.every((refusal) => refusal === Refusal.NONE);
  }

  private find({
    fileId,
    stripe,
    headerBlock,
    headerByte,
  }: {
    fileId: number;
    stripe: number;
    headerBlock: number;
    headerByte: number;
  }): number {
    const file = this.options.index.peekFile(fileId);
    return file === undefined ? 0 : this.options.index.findAt(file, stripe, headerBlock, headerByte);
  }
}

function paddedLength(unit: Live): number {
  return Math.ceil(unit.unitLength / BLOCK_BYTES) * BLOCK_BYTES;
}
