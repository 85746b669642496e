/**
 * A cluster store of the format before this one, in LMDB, becomes one of this: all its rows in the transaction that
 * makes the new database, once. The old file is kept under another name; until it has that, whoever opens the store
 * begins here again, and of several one makes the database. Nobody may have the old store open: what a process of an
 * older version writes to it afterwards is lost.
 */
import { existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { open } from 'lmdb';
import { TartanError } from '../wire/errors.js';
import { asStoreError, openDatabase, type Connection } from './sqlite-database.js';
import { LMDB_FILE } from './store-files.js';
import type { Table, Tables } from './store-tables.js';

const FORMAT_KEY = ['format', 'tartan-cluster-store'];
const STORE_FORMAT_VERSION = 1;
const MAP_BYTES = 16 * 2 ** 30;

/**
 * @returns the new database, open
 * @throws {TartanError} ERR_FOREIGN_STORE · ERR_STORE_VERSION · ERR_STORE
 */
export async function migrate(dir: string): Promise<Connection> {
  const file = join(dir, LMDB_FILE);
  let database: Connection;
  try {
    database = await copied(dir);
  } catch (error) {
    // Another process has just done all this.
    if (!existsSync(file)) return openDatabase(dir, false);
    throw asStoreError(dir, error);
  }
  if (existsSync(file)) renameSync(file, `${file}.migrated`);
  rmSync(join(dir, 'lock.mdb'), { force: true });
  return database;
}

async function copied(dir: string): Promise<Connection> {
  const old = open<unknown, (string | number)[]>({
    path: dir,
    noSubdir: false,
    encoding: 'json',
    readOnly: true,
    mapSize: MAP_BYTES,
  });
  try {
    const format = old.get(FORMAT_KEY) as { version?: unknown } | undefined;
    if (typeof format?.version !== 'number')
      throw new TartanError(
        'ERR_FOREIGN_STORE',
        `Cannot open '${dir}' as a cluster store: its LMDB database was written by something else`,
      );
    if (format.version !== STORE_FORMAT_VERSION)
      throw new TartanError(
        'ERR_STORE_VERSION',
        `Cannot open the cluster store '${dir}': its LMDB format is version ${format.version}, this program knows ` +
          `${STORE_FORMAT_VERSION}`,
      );
    return openDatabase(dir, true, (tables) => {
      const byName = byOldName(tables);
      for (const { key, value } of old.getRange({})) byName.get(String(key[0]))?.put(key[1] as never, value as never);
    });
  } finally {
    await old.close();
  }
}

function byOldName(tables: Tables): Map<string, Table<never, never>> {
  return new Map<string, Table<never, never>>([
    ['number', tables.numbers],
    ['key', tables.keys],
    ['log', tables.log],
    ['tombstone', tables.tombstones],
    ['lease', tables.leases],
  ] as [string, Table<never, never>][]);
}
