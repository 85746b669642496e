/**
 * What a checkpoint says: the index as it was after some batch, and what each segment was used for. Sections of words,
 * each begun by its kind and the number of its records (docs/store-format.md lists them).
 */
import { TartanError } from '../wire/errors.js';
import type { CheckpointReader, CheckpointWriter } from './checkpoint-stream.js';
import { ENTRY_WORDS, type IndexTable, type IndexSnapshot } from './index-table.js';
import { readPair, writePair } from './log-format.js';
import { SegmentState, type Segments } from './segments.js';

const Section = { END: 0, SEGMENTS: 1, FILES: 2, DELETED: 3, MISSING: 4, ENTRIES: 5, MASKS: 6 } as const;
/** Words of a record in each. */
const recordWords: Readonly<Record<number, number>> = {
  [Section.SEGMENTS]: 4,
  [Section.FILES]: 6,
  [Section.DELETED]: 2,
  [Section.MISSING]: 7,
  [Section.ENTRIES]: ENTRY_WORDS,
  [Section.MASKS]: 3,
};
const RECORDS_AT_ONCE = 4096;

/** The segments as they are between two batches. */
export interface SegmentSnapshot {
  readonly words: Uint32Array;
  readonly empty: readonly number[];
}

/**
 * @param inUse  segments that the log is in, or has announced
 * @param soon   segments that are free once this checkpoint is durable: whoever reads it finds them so
 */
export function snapshotSegments(
  segments: Segments,
  inUse: readonly number[],
  soon: readonly number[],
): SegmentSnapshot {
  const words = new Uint32Array(segments.count * 4),
    empty: number[] = [],
    freed = new Set(soon),
    busy = new Set(inUse);
  for (let segment = 0; segment < segments.count; segment++) {
    const isEmpty =
      segments.states[segment] === SegmentState.LOG && segments.units[segment] === 0 && !busy.has(segment);
    if (isEmpty) empty.push(segment);
    words[segment * 4] = freed.has(segment)
      ? SegmentState.FREE
      : isEmpty
        ? SegmentState.EMPTY
        : segments.states[segment]!;
    words[segment * 4 + 1] = segments.filled[segment]!;
    writePair(words, segment * 4 + 2, segments.sequences[segment]!);
  }
  return { words, empty };
}

/** At least as many words as a checkpoint of this index takes. */
export function checkpointWords(index: IndexTable, segments: Segments): number {
  return segments.count * 4 + index.snapshotWords + 64;
}

/** Writes all sections, in pieces; the index may change meanwhile. */
export async function writeCheckpoint(
  writer: CheckpointWriter,
  index: IndexSnapshot,
  segments: SegmentSnapshot,
): Promise<void> {
  const section = async (kind: number, words: ArrayLike<number>): Promise<void> => {
    if (words.length > 0) {
      await writer.put([kind, words.length / recordWords[kind]!]);
      await writer.put(words);
    }
  };
  await section(Section.SEGMENTS, segments.words);
  await section(Section.FILES, index.files);
  await section(Section.DELETED, index.deleted);
  await section(Section.MISSING, index.missing);
  const masks: number[] = [];
  for (const entries of index.entries(masks)) await section(Section.ENTRIES, entries);
  await section(Section.MASKS, masks);
  await writer.put([Section.END, index.written]);
  await writer.finish();
}

/**
 * Fills an empty index, and what the segments held.
 *
 * @returns the state of each segment when it was taken
 * @throws {TartanError} ERR_CHECKSUM when it doesn't hold, ERR_DISK
 */
export async function readCheckpoint(
  reader: CheckpointReader,
  index: IndexTable,
  segments: Segments,
): Promise<Uint8Array> {
  const states = new Uint8Array(segments.count);
  const restore: Readonly<Record<number, (words: Uint32Array, w: number, i: number) => void>> = {
    [Section.SEGMENTS]: (words, w, i) => {
      states[i] = words[w]!;
      segments.filled[i] = words[w + 1]!;
      segments.sequences[i] = readPair(words, w + 2);
    },
    [Section.FILES]: (words, w) => {
      index.restoreFile(words, w);
    },
    [Section.DELETED]: (words, w) => {
      index.restoreDeleted(readPair(words, w));
    },
    [Section.MISSING]: (words, w) => {
      index.restoreMissing(words, w);
    },
    [Section.ENTRIES]: (words, w) => {
      index.restoreEntry(words, w);
    },
    [Section.MASKS]: (words, w) => {
      index.restoreMask(words, w);
    },
  };
  for (;;) {
    const [kind, count] = (await reader.words(2)) as unknown as [number, number];
    if (kind === Section.END) {
      if (count !== index.count)
        throw new TartanError(
          'ERR_CHECKSUM',
          `Cannot read the checkpoint: it holds ${index.count} units, expected ${count}`,
        );
      index.restored();
      return states;
    }
    const size = recordWords[kind],
      take = restore[kind];
    if (size === undefined || take === undefined)
      throw new TartanError('ERR_CHECKSUM', `Cannot read the checkpoint: there is a section of kind ${kind}`);
    for (let done = 0; done < count; ) {
      const some = Math.min(RECORDS_AT_ONCE, count - done),
        words = await reader.words(some * size);
      for (let i = 0; i < some; i++) take(words, i * size, done + i);
      done += some;
    }
  }
}
