/**
 * An index of the files by what few of them are: open, or deleted and not forgotten yet. One small key per such file,
 * changed in the transaction that changes the record, so that a node which joins reads what is open, and whoever frees
 * what was deleted reads that, however many closed files there are.
 *
 *     files/by-state/open/ID     → the owner's writer epoch
 *     files/by-state/deleted/ID  → the epoch that fences its last owner
 *
 * Stores of format 1 lack it: it is made once (buildStateIndex), before anybody who keeps it up works with the store.
 */
import type { ClusterStore, Compare, KeyValue, Mutation } from './cluster-store.js';
import { parseJson } from './compare-and-swap.js';
import { DELETED_FILES, FILES_BY_ID, OPEN_FILES, fileStateKey } from './keys.js';
import type { FileRecord } from './records.js';

/** One entry of the index. */
export interface IndexedFile {
  readonly id: number;
  readonly writerEpoch: number;
}

/** Records of one transaction while the index is made: etcd takes 128 operations by default. */
const RECORDS_AT_ONCE = 60;

/** What goes into the index with a change of a record; undefined: there was none, there is none any more. */
export function indexed(before: FileRecord | undefined, after: FileRecord | undefined): Mutation[] {
  const old = before && entryOf(before),
    next = after && entryOf(after);
  if (old?.put === next?.put && old?.value === next?.value) return [];
  return [...(old && old.put !== next?.put ? [{ delete: old.put }] : []), ...(next ? [next] : [])];
}

/** Files whose record says 'open', ascending by id. */
export async function listOpen(store: ClusterStore): Promise<IndexedFile[]> {
  return (await store.range(OPEN_FILES)).map((row) => parsed(row, OPEN_FILES));
}

/** Files whose record says 'deleted', ascending by id. */
export async function listDeleted(store: ClusterStore): Promise<IndexedFile[]> {
  return (await store.range(DELETED_FILES)).map((row) => parsed(row, DELETED_FILES));
}

/**
 * Makes the index of a store that lacks it. Several may do so at once, and one that is killed has done no harm.
 *
 * @param guard  holds as long as nobody has finished the index: from then on others change it
 * @returns false when somebody else has finished it meanwhile
 */
export async function buildStateIndex(store: ClusterStore, guard: Compare): Promise<boolean> {
  const rows = await store.range(FILES_BY_ID);
  for (let i = 0; i < rows.length; i += RECORDS_AT_ONCE) {
    const mutations = rows.slice(i, i + RECORDS_AT_ONCE).flatMap((row) => indexed(undefined, parseJson(row)));
    if (mutations.length > 0 && !(await store.transact([guard], mutations)).succeeded) return false;
  }
  return true;
}

function entryOf({ id, state, writerEpoch }: FileRecord): { put: string; value: string } | undefined {
  return state === 'closed' ? undefined : { put: fileStateKey(state, id), value: String(writerEpoch) };
}

function parsed(row: KeyValue, prefix: string): IndexedFile {
  return { id: Number.parseInt(row.key.slice(prefix.length), 16), writerEpoch: parseJson<number>(row) };
}
