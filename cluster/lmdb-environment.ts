/**
 * One LMDB environment per directory and process, shared by every store opened on it, and its door: nothing is opened
 * that is not a Tartan cluster store of a version we know (LMDB itself crashes on some foreign files).
 *
 *   DIR/data.mdb   one database; keys are [table, key] in LMDB's ordered encoding, values JSON
 *     ['format', 'tartan-cluster-store'] → {"version":1}
 *     ['number' | 'key' | 'log' | 'tombstone' | 'lease', key] → the engine's rows
 *   DIR/lock.mdb   LMDB's own: write lock and reader slots
 */
import { closeSync, existsSync, mkdirSync, openSync, readSync, readdirSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { open, type RootDatabase } from 'lmdb';
import { TartanError, codeOf } from '../wire/errors.js';
import type { Table, Tables } from './store-tables.js';

export type Environment = RootDatabase<unknown, (string | number)[]>;

const STORE_FORMAT_VERSION = 1;
const FORMAT_KEY = ['format', 'tartan-cluster-store'];
/** Address space, not disk: room for millions of file records without growing the map while others have it open. */
const MAP_BYTES = 16 * 2 ** 30;
const MAX_READERS = 1024;
/** LMDB's magic number and data version, in the first meta page. */
const LMDB_MAGIC = 0xbeefc0de,
  LMDB_MAGIC_OFFSET = 24,
  LMDB_VERSION_OFFSET = 28,
  LMDB_VERSION = 2;
/** Two meta pages: no LMDB data file is shorter. */
const MIN_DATA_BYTES = 2 * 4096;

/**
 * The directory's one name, by which a process finds what it has open; makes the directory when asked to.
 * @throws {TartanError} ERR_NOT_FOUND · ERR_FOREIGN_STORE when it is not a directory · ERR_STORE
 */
export function canonicalDirectory(dir: string, create: boolean): string {
  try {
    if (create) mkdirSync(dir, { recursive: true });
    return realpathSync(dir);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') throw absent(dir, 'there is no such directory');
    throw asStoreError(dir, error);
  }
}

/**
 * Opens the environment of a directory, and makes a store in it when asked to and it is empty.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no store there and `create` is false · ERR_FOREIGN_STORE: the directory holds
 * something else · ERR_STORE_VERSION: a newer format · ERR_STORE: cannot be opened (the cause says why)
 */
export async function openEnvironment(
  dir: string,
  create: boolean,
): Promise<{ environment: Environment; inode: number }> {
  let environment: Environment | undefined;
  try {
    checkDirectory(dir, create);
    // Without overlappingSync a commit is on disk before any process sees it; noSubdir, or a dot in the name would mean
    // a file.
    environment = open<unknown, (string | number)[]>({
      path: dir,
      noSubdir: false,
      encoding: 'json',
      overlappingSync: false,
      mapSize: MAP_BYTES,
      maxReaders: MAX_READERS,
    });
    await checkFormat(environment, dir, create);
    return { environment, inode: statSync(join(dir, 'data.mdb')).ino };
  } catch (error) {
    await environment?.close();
    throw asStoreError(dir, error);
  }
}

/**
 * The engine's tables in the environment: reads see the write transaction under way on this thread, else the read
 * snapshot.
 */
export function lmdbTables(environment: Environment): Tables {
  return {
    numbers: new LmdbTable(environment, 'number'),
    keys: new LmdbTable(environment, 'key'),
    log: new LmdbTable(environment, 'log'),
    tombstones: new LmdbTable(environment, 'tombstone'),
    leases: new LmdbTable(environment, 'lease'),
  };
}

class LmdbTable<K extends string | number, V> implements Table<K, V> {
  readonly #environment: Environment;
  readonly #name: string;
  constructor(environment: Environment, name: string) {
    this.#environment = environment;
    this.#name = name;
  }

  get(key: K): V | undefined {
    return this.#environment.get([this.#name, key]) as V | undefined;
  }
  put(key: K, row: V): void {
    this.#environment.putSync([this.#name, key], row);
  }
  delete(key: K): void {
    this.#environment.removeSync([this.#name, key]);
  }

  *from(start: K): Iterable<readonly [K, V]> {
    for (const { key, value } of this.#environment.getRange({ start: [this.#name, start] })) {
      if (key[0] !== this.#name) return;
      yield [key[1] as K, value as V];
    }
  }
}

export function oneLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]!;
}

/** What can be known before LMDB touches the files. */
function checkDirectory(dir: string, create: boolean): void {
  const data = join(dir, 'data.mdb');
  if (existsSync(data)) {
    checkMagic(dir, data);
    return;
  }
  // LMDB makes lock.mdb first: another process may be creating the store at this moment.
  const other = readdirSync(dir).find((name) => name !== 'lock.mdb' && name !== 'data.mdb');
  if (other !== undefined) throw foreign(dir, `it holds '${other}' and no data.mdb`);
  if (!create) throw absent(dir, 'the directory is empty');
}

function checkMagic(dir: string, data: string): void {
  const size = statSync(data).size;
  if (size === 0) return; // being created, or its creator died: LMDB starts afresh
  const head = Buffer.alloc(LMDB_VERSION_OFFSET + 4);
  const file = openSync(data, 'r');
  try {
    readSync(file, head, 0, head.length, 0);
  } finally {
    closeSync(file);
  }
  if (size < MIN_DATA_BYTES || head.readUInt32LE(LMDB_MAGIC_OFFSET) !== LMDB_MAGIC)
    throw foreign(dir, 'its data.mdb is not an LMDB file');
  const version = head.readUInt32LE(LMDB_VERSION_OFFSET);
  if (version !== LMDB_VERSION) {
    throw new TartanError(
      'ERR_STORE_VERSION',
      `Cannot open the cluster store '${dir}': its LMDB data version is ${version}, expected ${LMDB_VERSION}`,
    );
  }
}

async function checkFormat(environment: Environment, dir: string, create: boolean): Promise<void> {
  environment.resetReadTxn();
  const stats = environment.getStats() as { entryCount: number };
  let format = stats.entryCount === 0 ? undefined : (environment.get(FORMAT_KEY) as { version?: unknown } | undefined);
  if (stats.entryCount === 0) {
    if (!create) throw absent(dir, 'its database is empty');
    // Two creators: both find the same after their transactions.
    format = await environment.childTransaction(() => {
      const present = environment.get(FORMAT_KEY) as { version?: unknown } | undefined;
      if (present) return present;
      const made = { version: STORE_FORMAT_VERSION };
      environment.putSync(FORMAT_KEY, made);
      return made;
    });
  }
  if (typeof format?.version !== 'number') throw foreign(dir, 'its LMDB database was written by something else');
  if (format.version !== STORE_FORMAT_VERSION) {
    throw new TartanError(
      'ERR_STORE_VERSION',
      `Cannot open the cluster store '${dir}': its format is version ${format.version}, this program ` +
        `knows ${STORE_FORMAT_VERSION}`,
    );
  }
}

function asStoreError(dir: string, error: unknown): TartanError {
  if (error instanceof TartanError) return error;
  if (codeOf(error) === 'ENOTDIR' || codeOf(error) === 'EEXIST') return foreign(dir, 'it is not a directory');
  return new TartanError('ERR_STORE', `Cannot open the cluster store '${dir}': ${oneLine(error)}`, { cause: error });
}

function foreign(dir: string, observation: string): TartanError {
  return new TartanError('ERR_FOREIGN_STORE', `Cannot open '${dir}' as a cluster store: ${observation}`);
}

function absent(dir: string, observation: string): TartanError {
  return new TartanError('ERR_NOT_FOUND', `Cannot open the cluster store '${dir}': ${observation}`);
}
