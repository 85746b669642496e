/** Read, decide, write if nothing moved meanwhile; else again. */
import { TartanError } from '../wire/errors.js';
import type { ClusterStore, KeyValue, Mutation } from './cluster-store.js';

/** Each round that one loses another wins, so this many in a row means a store that lies. */
const MAX_ROUNDS = 1000;

/**
 * Edits the JSON value of one key atomically.
 *
 * @param attempt  for the error's message: "take over file 7"
 * @param edit  from the present value to the next one, or the very same object for no change; runs again after a
 *              conflict. What it throws ends the edit.
 * @param also  what changes with it, in the same transaction
 * @returns the value now in the store
 */
export async function editJson<T>(
  store: ClusterStore,
  key: string,
  attempt: string,
  edit: (present: T | undefined) => T,
  also: (present: T | undefined, next: T) => readonly Mutation[] = () => [],
): Promise<T> {
  return untilApplied(attempt, async () => {
    const row = await store.get(key);
    const present = row && parseJson<T>(row);
    const next = edit(present);
    if (next === present) return next;
    const { succeeded } = await store.transact(
      [{ key, modRevision: row?.modRevision ?? 0 }],
      [{ put: key, value: JSON.stringify(next) }, ...also(present, next)],
    );
    return succeeded ? next : undefined;
  });
}

/**
 * Runs `round` until it gives something else than undefined.
 * @throws {TartanError} ERR_MAP_UNAVAILABLE after 1000 rounds
 */
export async function untilApplied<T>(attempt: string, round: () => Promise<T | undefined>): Promise<T> {
  for (let i = 0; i < MAX_ROUNDS; i++) {
    const result = await round();
    if (result !== undefined) return result;
  }
  throw new TartanError(
    'ERR_MAP_UNAVAILABLE',
    `Cannot ${attempt}: the record changed under each of ${MAX_ROUNDS} attempts`,
  );
}

/** @throws {TartanError} ERR_STORE when the value is not JSON: somebody else wrote it */
export function parseJson<T>(row: KeyValue): T {
  try {
    return JSON.parse(row.value) as T;
  } catch (error) {
    throw new TartanError('ERR_STORE', `Cannot read '${row.key}' of the cluster store: its value is not JSON`, {
      cause: error,
    });
  }
}
