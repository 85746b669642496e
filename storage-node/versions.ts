/**
 * Which versions of a unit go, by the file's commit mark or its owner's decision. The same at run time and when the log
 * is replayed.
 */
import { compareVersions } from '../wire/unit-header.js';
import type { FileIndex } from './file-index.js';
import { E, EntryFlag, type IndexTable } from './index-table.js';

/**
 * Frees versions that a newer one, durable here and at or below the commit mark, has replaced: those of one stripe a
 * step, up to the mark as it is then.
 *
 * @param remove  takes a durable entry out of the index
 */
export function* freeSuperseded(
  index: IndexTable,
  file: FileIndex,
  remove: (stripe: number, entry: number) => void,
): Generator<void> {
  // A file that is deleted meanwhile is freed as a whole.
  while (index.peekFile(file.id) === file) {
    const stripe = file.superseded.takeUpTo(file.markEpoch, file.markCounter);
    if (stripe < 0) return;
    freeStripe(index, file, stripe, remove);
    yield;
  }
}

function freeStripe(
  index: IndexTable,
  file: FileIndex,
  stripe: number,
  remove: (stripe: number, entry: number) => void,
): void {
  const old: number[] = [];
  for (let entry = index.first(file, stripe); entry !== 0; entry = index.get(entry, E.NEXT)) {
    const committed = index.highest(
      file,
      stripe,
      index.unit(entry),
      file.markEpoch,
      file.markCounter,
      EntryFlag.PENDING,
    );
    if (committed === 0 || (index.flags(entry) & EntryFlag.PENDING) !== 0) continue;
    const older =
      compareVersions(
        index.get(entry, E.WRITER_EPOCH),
        index.get(entry, E.COUNTER),
        index.get(committed, E.WRITER_EPOCH),
        index.get(committed, E.COUNTER),
      ) < 0;
    if (older) old.push(entry);
  }
  for (const entry of old) {
    const writerEpoch = index.get(entry, E.WRITER_EPOCH),
      counter = index.get(entry, E.COUNTER);
    remove(stripe, entry);
    if (!holds(index, file, stripe, writerEpoch, counter)) file.forgetMissing(stripe, writerEpoch, counter);
  }
}

/** Whether any unit of this version is held. */
function holds(index: IndexTable, file: FileIndex, stripe: number, writerEpoch: number, counter: number): boolean {
  for (let entry = index.first(file, stripe); entry !== 0; entry = index.get(entry, E.NEXT)) {
    if (index.get(entry, E.WRITER_EPOCH) === writerEpoch && index.get(entry, E.COUNTER) === counter) return true;
  }
  return false;
}

/**
 * Drops versions of writer epochs below `writerEpoch` in stripes from `fromStripe` on, and what was recorded of them.
 */
export function discardVersions(
  index: IndexTable,
  file: FileIndex,
  fromStripe: number,
  writerEpoch: number,
  remove: (stripe: number, entry: number) => void,
): void {
  for (const stripe of index.stripesFrom(file, fromStripe)) {
    for (let entry = index.first(file, stripe), next = 0; entry !== 0; entry = next) {
      next = index.get(entry, E.NEXT);
      if (index.get(entry, E.WRITER_EPOCH) < writerEpoch) remove(stripe, entry);
    }
  }
  for (const [key, missing] of file.missing)
    if (missing.stripe >= fromStripe && missing.writerEpoch < writerEpoch) file.missing.delete(key);
}
