/**
 * A file's share on one node goes to another node: the record's part. Typed operations on any ClusterStore.
 *
 *     nodes: A B C ──beginMoves──▶ nodes: A B C, moves: B→D ── D is filled, B goes on serving ──▶ finishMoves ──▶
 *     nodes: A D C
 *
 * Only files move that nobody writes: closed, and everything in them decided. Whoever takes such a file over meanwhile
 * wins: its record changes, and finishMoves() passes it over, until it is closed again.
 *
 * Invariants: a record's nodes and moves change together with the map's epoch, in one transaction, so that what a node
 * knows of a record is never older than its map; an index changes its node only while the record is as it was when the
 * new node was filled, and that node is up with the store that was filled.
 */
import type { ClusterStore, KeyValue, Mutation } from './cluster-store.js';
import { parseJson, untilApplied } from './compare-and-swap.js';
import { isSettled, listFiles } from './files.js';
import { fileIdKey, MAP_KEY } from './keys.js';
import { purposeOf, readMap, setNodePurpose } from './membership.js';
import type { ClusterMap, FileRecord } from './records.js';

/** One index of one file. `file` is what the caller knows of it; `store` names the unit store that `to` has. */
export interface PlannedMove {
  readonly file: FileRecord;
  readonly index: number;
  /** The new node; '-': none, the share is spread over the file's other nodes. */
  readonly to: string;
  /** The unit stores of those that are filled, as the map had them before: 'n7=UUID …'. */
  readonly stores: string;
}

/** '-': as erasure/layout/ has it. */
const NOBODY = '-';

/** What PlannedMove.stores must be: of nodes that are up. */
export function storesOf({ nodes }: ClusterMap, { file, to }: Pick<PlannedMove, 'file' | 'to'>): string {
  return nodes
    .filter(({ id, state }) => state === 'up' && (to === NOBODY ? file.nodes.includes(id) : id === to))
    .map(({ id, store }) => `${id}=${store ?? ''}`)
    .join(' ');
}

/** Records in one transaction: etcd takes 128 operations by default. */
export const MOVES_AT_ONCE = 32;

/**
 * From now on the new nodes store, for these indexes, what a rebuilder sends. Beginning the same again is harmless;
 * another move of the same file is given up by it.
 *
 * @param moves  at most MOVES_AT_ONCE, of different files
 * @returns those that have begun, with their records as they are now; the others' files are not settled, or have
 *         changed
 * @throws {TartanError} ERR_NOT_FOUND: no cluster in this store
 */
export async function beginMoves(store: ClusterStore, moves: readonly PlannedMove[]): Promise<PlannedMove[]> {
  return edit(store, 'begin to move shares', moves, ({ index, to, file: known }, record, map) => {
    if (
      !isSettled(record) ||
      record.nodes[index] !== known.nodes[index] ||
      (to !== NOBODY && (record.nodes.includes(to) || !map.nodes.some(({ id }) => id === to)))
    )
      return undefined;
    const same = record.moves?.length === 1 && record.moves[0]!.index === index && record.moves[0]!.to === to;
    return same ? record : { ...record, moves: [{ index, to }] };
  });
}

/**
 * The indexes are the new nodes'.
 *
 * @param moves   as beginMoves() gave them; each new node holds all that is committed of its index
 * @param layout  the name under which all other places stay where they are
 * @returns those that were done; the others' records, or their new nodes, have changed since
 */
export async function finishMoves(
  store: ClusterStore,
  moves: readonly PlannedMove[],
  layout: (move: PlannedMove) => string | undefined,
): Promise<PlannedMove[]> {
  return edit(store, 'move shares', moves, (move, record, map) => {
    const { file, index, to, stores } = move;
    if (!isSame(record, file) || storesOf(map, move) !== stores || stores === '') return undefined;
    const { moves: pending = [], ...rest } = record,
      left = pending.filter((move) => move.index !== index),
      name = layout({ ...move, file: record }),
      epoch = map.epoch + 1;
    return {
      ...rest,
      ...(name !== undefined && { layout: name }),
      ...(left.length > 0 && { moves: left }),
      nodes: record.nodes.map((id, at) => (at === index ? to : id)),
      nodesSince: record.nodes.map((_, at) => (at === index || to === NOBODY ? epoch : (record.nodesSince?.[at] ?? 0))),
      // Nothing in it is undecided: what a later takeover has to judge will be written under this epoch or a later one.
      decidedMapEpoch: epoch,
    };
  });
}

/**
 * Spares that have taken shares are members, once no share is about to move any more: until then one spare takes all.
 */
export async function enlistSpares(store: ClusterStore): Promise<void> {
  const files = await listFiles(store);
  for (const node of (await readMap(store)).nodes)
    if (purposeOf(node) === 'spare' && files.some((file) => file.nodes.includes(node.id)))
      await setNodePurpose(store, node.id, 'member');
}

/**
 * Asks the owners of files whether they are there: one that is answers within moments, as answerPresence(). Nothing
 * depends on the answer: who is taken for gone and isn't is fenced, as by any new owner.
 */
export async function askOwners(store: ClusterStore, ids: readonly number[]): Promise<void> {
  await untilApplied('ask the owners of files', async () => {
    const map = await mapRow(store),
      rows = (await Promise.all(ids.map((id) => store.get(fileIdKey(id))))).filter((row) => row !== undefined);
    const held = parseJson<ClusterMap>(map);
    const { succeeded } = await store.transact(
      [map, ...rows].map(({ key, modRevision }) => ({ key, modRevision })),
      [
        {
          put: MAP_KEY,
          value: JSON.stringify({
            ...held,
            changes: held.changes + 1,
            questions: (held.questions ?? 0) + 1,
          } satisfies ClusterMap),
        },
        ...rows.map((row): Mutation => {
          const record = parseJson<FileRecord>(row);
          return {
            put: row.key,
            value: JSON.stringify({ ...record, asked: (record.asked ?? 0) + 1 } satisfies FileRecord),
          };
        }),
      ],
    );
    return succeeded || undefined;
  });
}

/** Edits records and the map in one transaction. @returns the moves whose edit gave a record, with it */
async function edit(
  store: ClusterStore,
  attempt: string,
  moves: readonly PlannedMove[],
  change: (move: PlannedMove, record: FileRecord, map: ClusterMap) => FileRecord | undefined,
): Promise<PlannedMove[]> {
  if (moves.length === 0) return [];
  return untilApplied(attempt, async () => {
    const row = await mapRow(store),
      map = parseJson<ClusterMap>(row);
    const rows = await Promise.all(moves.map(({ file }) => store.get(fileIdKey(file.id))));
    const done: PlannedMove[] = [],
      compares = [row],
      mutations: Mutation[] = [];
    for (const [i, move] of moves.entries()) {
      const found = rows[i],
        record = found && parseJson<FileRecord>(found),
        next = record && change(move, record, map);
      if (found === undefined || next === undefined) continue;
      done.push({ ...move, file: next });
      compares.push(found);
      if (next !== record) mutations.push({ put: found.key, value: JSON.stringify(next) });
    }
    if (mutations.length === 0) return done;
    const epoch = map.epoch + 1;
    mutations.push({
      put: MAP_KEY,
      value: JSON.stringify({ ...map, epoch, changes: map.changes + 1, moved: epoch } satisfies ClusterMap),
    });
    const { succeeded } = await store.transact(
      compares.map(({ key, modRevision }) => ({ key, modRevision })),
      mutations,
    );
    return succeeded ? done : undefined;
  });
}

/** Whether nothing was written to the file, nor moved, since. */
function isSame(now: FileRecord, then: FileRecord): boolean {
  return (
    isSettled(now) &&
    now.writerEpoch === then.writerEpoch &&
    now.length === then.length &&
    now.commitEpoch === then.commitEpoch &&
    now.commitCounter === then.commitCounter &&
    now.nodes.join(' ') === then.nodes.join(' ') &&
    JSON.stringify(now.moves) === JSON.stringify(then.moves)
  );
}

async function mapRow(store: ClusterStore): Promise<KeyValue> {
  const row = await store.get(MAP_KEY);
  if (row !== undefined) return row;
  await readMap(store); // says what is wrong
  throw new Error(`no ${MAP_KEY}`);
}
