/**
 * The file of an embedded cluster store, and its door: nothing is opened that is not a Tartan cluster store of a
 * version we know.
 *
 *   DIR/cluster.sqlite        one SQLite database in write-ahead-log mode; values are JSON
 *     number, key, log, tombstone, lease: the engine's tables, each `key` → `row`
 *     PRAGMA application_id: 'TRTN'; PRAGMA user_version: the format, 1
 *   DIR/cluster.sqlite-wal, -shm   SQLite's own, there while somebody has it open
 *   DIR/reserve               bytes that are given up, little by little, when the file system is full
 *
 * A connection belongs to one thread. Locks are SQLite's, on the file: they end with their process, however it ends.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  statfsSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { TartanError, codeOf } from '../wire/errors.js';
import { isRunning, monotonicMs, ownIdentity } from './process-identity.js';
import { StoreEngine } from './store-engine.js';
import { DATABASE_FILE, LMDB_FILE, RESERVE_FILE } from './store-files.js';
import type { Table, Tables } from './store-tables.js';

export type Connection = Database.Database;

/** The smallest page of a SQLite database. */
const LEAST_BYTES = 512;
const APPLICATION_ID = 0x4e545254; // 'TRTN'
const FORMAT_VERSION = 1;
/** How long an opening waits for another process that is creating or recovering the database, milliseconds. */
const OPEN_MS = 5_000;
/** Of the reserve, at a time. A transaction of the largest size writes little more. */
const RESERVE_STEP_BYTES = 1 << 20;

const TABLES = ['number', 'key', 'log', 'tombstone', 'lease'] as const;
type TableName = (typeof TABLES)[number];

const SCHEMA = TABLES.map(
  (name) =>
    `CREATE TABLE IF NOT EXISTS ${name} (key ${name === 'log' ? 'INTEGER' : 'TEXT'} PRIMARY KEY NOT NULL, ` +
    'row TEXT NOT NULL)',
).join(';');

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
 * Opens the database of a directory, and makes a store in it when asked to and it is empty.
 *
 * @param fill  what a new store begins with, in the transaction that makes it
 * @throws {TartanError} ERR_NOT_FOUND: no store there and `create` is false · ERR_FOREIGN_STORE: the directory holds
 * something else · ERR_STORE_VERSION: a newer format · ERR_STORE: cannot be opened (the cause says why)
 */
export function openDatabase(dir: string, create: boolean, fill: (tables: Tables) => void = () => {}): Connection {
  let database: Connection | undefined;
  try {
    checkDirectory(dir, create);
    database = new Database(join(dir, DATABASE_FILE), { fileMustExist: !create, timeout: OPEN_MS });
    const opened = database;
    if (create) withReserve(dir, () => makeStore(opened, fill));
    withReserve(dir, () => checkFormat(opened, dir));
    // Each commit is on disk before anybody sees it; the log is not kept longer than it was needed.
    database.pragma('synchronous = FULL');
    database.pragma('journal_size_limit = 4194304');
    return database;
  } catch (error) {
    database?.close();
    throw asStoreError(dir, error);
  }
}

function makeStore(database: Connection, fill: (tables: Tables) => void): void {
  if (readNumber(database, 'application_id') !== 0 || readNumber(database, 'schema_version') !== 0) return;
  database.pragma('journal_mode = WAL');
  database.pragma('synchronous = FULL');
  const make = database.transaction(() => {
    // Two creators: the second finds what the first has made.
    if (readNumber(database, 'application_id') !== 0) return;
    database.exec(SCHEMA);
    fill(tablesOf(database));
    database.pragma(`application_id = ${APPLICATION_ID}`);
    database.pragma(`user_version = ${FORMAT_VERSION}`);
  });
  make.immediate();
}

function checkFormat(database: Connection, dir: string): void {
  const id = readNumber(database, 'application_id');
  if (id === 0 && readNumber(database, 'schema_version') === 0) throw absent(dir, 'its database is empty');
  if (id !== APPLICATION_ID) throw foreign(dir, `its ${DATABASE_FILE} was written by something else`);
  const version = readNumber(database, 'user_version');
  if (version !== FORMAT_VERSION)
    throw new TartanError(
      'ERR_STORE_VERSION',
      `Cannot open the cluster store '${dir}': its format is version ${version}, this program knows ${FORMAT_VERSION}`,
    );
}

function readNumber(database: Connection, pragma: string): number {
  return database.pragma(pragma, { simple: true }) as number;
}

/**
 * The engine's tables: reads see the transaction under way on this connection, else what was committed when they begin.
 */
export function tablesOf(database: Connection): Tables {
  return {
    numbers: new SqliteTable(database, 'number'),
    keys: new SqliteTable(database, 'key'),
    log: new SqliteTable(database, 'log'),
    tombstones: new SqliteTable(database, 'tombstone'),
    leases: new SqliteTable(database, 'lease'),
  };
}

/** The engine on a connection, with this machine's clock and processes. */
export function engineOn(database: Connection, logRevisions: number | undefined): StoreEngine {
  return new StoreEngine(tablesOf(database), { nowMs: monotonicMs, owner: ownIdentity(), isRunning }, logRevisions);
}

/** SQLite compares texts by their UTF-8 bytes, as the engine wants. */
class SqliteTable<K extends string | number, V> implements Table<K, V> {
  readonly #get: Database.Statement;
  readonly #put: Database.Statement;
  readonly #delete: Database.Statement;
  readonly #from: Database.Statement;

  constructor(database: Connection, name: TableName) {
    this.#get = database.prepare(`SELECT row FROM ${name} WHERE key = ?`).pluck();
    this.#put = database.prepare(
      `INSERT INTO ${name} (key, row) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET row = excluded.row`,
    );
    this.#delete = database.prepare(`DELETE FROM ${name} WHERE key = ?`);
    this.#from = database.prepare(`SELECT key, row FROM ${name} WHERE key >= ? ORDER BY key`).raw();
  }

  get(key: K): V | undefined {
    const row = this.#get.get(key) as string | undefined;
    return row === undefined ? undefined : (JSON.parse(row) as V);
  }
  put(key: K, row: V): void {
    this.#put.run(key, JSON.stringify(row));
  }
  delete(key: K): void {
    this.#delete.run(key);
  }
  *from(start: K): Iterable<readonly [K, V]> {
    for (const [key, row] of this.#from.iterate(start) as IterableIterator<[K, string]>)
      yield [key, JSON.parse(row) as V];
  }
}

// --- the reserve

/**
 * Lays bytes aside, so that a full file system still lets nodes be marked down and files be removed. They are written,
 * not only claimed. What is there already counts.
 *
 * @throws {TartanError} ERR_DISK_FULL: there is no room for them · ERR_STORE: they cannot be written
 */
export function reserve(dir: string, bytes: number): void {
  let file: number;
  try {
    file = openSync(join(dir, RESERVE_FILE), 'a', 0o600);
  } catch (error) {
    throw asStoreError(dir, error);
  }
  const before = fstatSync(file).size;
  try {
    const zeros = Buffer.alloc(RESERVE_STEP_BYTES);
    for (let at = before; at < bytes; ) at += writeSync(file, zeros, 0, Math.min(zeros.length, bytes - at));
  } catch (error) {
    ftruncateSync(file, before);
    if (!isNoSpace(error)) throw asStoreError(dir, error);
    throw new TartanError(
      'ERR_DISK_FULL',
      `Cannot lay ${bytes} bytes aside for the cluster store '${dir}': ${freeBytes(dir)} are free on its file system`,
      { cause: error },
    );
  } finally {
    closeSync(file);
  }
}

function freeBytes(dir: string): number {
  const { bavail, bsize } = statfsSync(dir);
  return bavail * bsize;
}

/** Does something that may find the file system full: then room is made from the reserve, and it is done again. */
export function withReserve<T>(dir: string, attempt: () => T): T {
  for (;;) {
    try {
      return attempt();
    } catch (error) {
      if (!isFull(error) || !giveUpReserve(dir)) throw error;
    }
  }
}

/** @returns whether there was something to give up */
function giveUpReserve(dir: string): boolean {
  try {
    const file = openSync(join(dir, RESERVE_FILE), 'r+');
    try {
      const { size } = fstatSync(file);
      if (size === 0) return false;
      ftruncateSync(file, Math.max(0, size - RESERVE_STEP_BYTES));
      return true;
    } finally {
      closeSync(file);
    }
  } catch {
    return false;
  }
}

/** Of what SQLite says; the space for its shared index counts, too. */
export function isFull(error: unknown): boolean {
  const code = codeOf(error);
  return code === 'SQLITE_FULL' || code === 'SQLITE_IOERR_SHMSIZE' || code === 'SQLITE_IOERR_WRITE' || isNoSpace(error);
}

function isNoSpace(error: unknown): boolean {
  return codeOf(error) === 'ENOSPC' || codeOf(error) === 'EDQUOT';
}

/** What of SQLite's errors a caller is told. */
export function asUnavailable(dir: string, attempt: string, error: unknown): Error {
  if (error instanceof TartanError) return error;
  const code = codeOf(error) ?? '';
  // Anything else is a bug of ours.
  if (!code.startsWith('SQLITE_') && !isNoSpace(error))
    return error instanceof Error ? error : new Error(String(error));
  const observation = isFull(error)
    ? `its file system is full (${oneLine(error)})`
    : code.startsWith('SQLITE_BUSY')
      ? 'another process holds the write lock; it may be stopped'
      : `${oneLine(error)} (${code})`;
  return new TartanError(
    code === 'SQLITE_CORRUPT' || code === 'SQLITE_NOTADB' ? 'ERR_STORE' : 'ERR_MAP_UNAVAILABLE',
    `Cannot ${attempt} in '${dir}': ${observation}`,
    { cause: error },
  );
}

export function oneLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]!;
}

/** What can be known before SQLite touches the files. */
function checkDirectory(dir: string, create: boolean): void {
  const path = join(dir, DATABASE_FILE);
  if (existsSync(path)) {
    // One that is empty is being created, or its creator died; SQLite takes any this short for empty.
    const { size } = statSync(path);
    if (size > 0 && size < LEAST_BYTES) throw foreign(dir, `its ${DATABASE_FILE} is not a SQLite database`);
    return;
  }
  const other = readdirSync(dir).find((name) => !isOurs(name));
  if (other !== undefined) throw foreign(dir, `it holds '${other}' and no ${DATABASE_FILE}`);
  if (!create) throw absent(dir, 'the directory is empty');
}

function isOurs(name: string): boolean {
  return name.startsWith(DATABASE_FILE) || name === RESERVE_FILE || name.startsWith(LMDB_FILE) || name === 'lock.mdb';
}

export function asStoreError(dir: string, error: unknown): TartanError {
  if (error instanceof TartanError) return error;
  const code = codeOf(error);
  if (code === 'ENOTDIR' || code === 'EEXIST') return foreign(dir, 'it is not a directory');
  if (code === 'SQLITE_NOTADB') return foreign(dir, `its ${DATABASE_FILE} is not a SQLite database`);
  return new TartanError('ERR_STORE', `Cannot open the cluster store '${dir}': ${oneLine(error)}`, { cause: error });
}

function foreign(dir: string, observation: string): TartanError {
  return new TartanError('ERR_FOREIGN_STORE', `Cannot open '${dir}' as a cluster store: ${observation}`);
}

function absent(dir: string, observation: string): TartanError {
  return new TartanError('ERR_NOT_FOUND', `Cannot open the cluster store '${dir}': ${observation}`);
}
