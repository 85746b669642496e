/**
 * The files of an embedded cluster store, by name: whether a directory holds one is asked by commands that have no need
 * to load a database.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';

export const DATABASE_FILE = 'cluster.sqlite';
/** Bytes that are given up when the file system is full. */
export const RESERVE_FILE = 'reserve';
/** Of the format before this one; it gets another name when it has become one of this. */
export const LMDB_FILE = 'data.mdb';

/** Whether a directory holds a cluster store, of this format or of the one before. */
export function holdsStore(dir: string): boolean {
  return [DATABASE_FILE, LMDB_FILE].some((name) => existsSync(join(dir, name)));
}
