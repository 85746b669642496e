/**
 * What a store backend gives the engine (store-engine.ts): a few ordered tables, changed inside one atomic step. Rows
 * are plain JSON values. The embedded backend keeps them in SQLite; `SortedTable` keeps them in memory.
 */
import type { ProcessIdentity } from './process-identity.js';

/** Keys ascend: numbers by value, strings by their UTF-8 bytes (SQLite's and etcd's order). */
export interface Table<K extends string | number, V> {
  get(key: K): V | undefined;
  put(key: K, row: V): void;
  delete(key: K): void;
  /** Rows with keys at or after `start`, ascending. The table does not change during the walk. */
  from(start: K): Iterable<readonly [K, V]>;
}

export interface KeyRow {
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly lease?: string;
}

/** All changes of one revision. */
export type LogRow = readonly LoggedChange[];
export interface LoggedChange {
  readonly type: 'put' | 'delete';
  readonly key: string;
  readonly value?: string;
}

export interface LeaseRow {
  readonly ttlMs: number;
  /** On the backend's monotonic clock, milliseconds. */
  readonly deadlineMs: number;
  /** The process whose death ends the lease; absent where leases end by their deadline alone. */
  readonly owner?: ProcessIdentity;
  /** Keys put under the lease. */
  readonly keys: readonly string[];
}

export interface Tables {
  /** 'revision', 'horizon' (highest revision pruned from the log), 'last-lease'. */
  readonly numbers: Table<string, number>;
  readonly keys: Table<string, KeyRow>;
  readonly log: Table<number, LogRow>;
  /** Key → revision of its deletion, for deletions pruned from the log. */
  readonly tombstones: Table<string, number>;
  readonly leases: Table<string, LeaseRow>;
}

class SortedTable<K extends string | number, V> implements Table<K, V> {
  readonly #rows = new Map<K, V>();
  /** Ascending. */
  readonly #keys: K[] = [];

  get(key: K): V | undefined {
    return this.#rows.get(key);
  }

  put(key: K, row: V): void {
    if (!this.#rows.has(key)) this.#keys.splice(this.#position(key), 0, key);
    this.#rows.set(key, row);
  }

  delete(key: K): void {
    if (this.#rows.delete(key)) this.#keys.splice(this.#position(key), 1);
  }

  *from(start: K): Iterable<readonly [K, V]> {
    for (let i = this.#position(start); i < this.#keys.length; i++) {
      const key = this.#keys[i]!;
      yield [key, this.#rows.get(key)!];
    }
  }

  /** Index of the first key at or after `key`. */
  #position(key: K): number {
    let low = 0,
      high = this.#keys.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (compareKeys(this.#keys[middle]!, key) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

export function memoryTables(): Tables {
  return {
    numbers: new SortedTable(),
    keys: new SortedTable(),
    log: new SortedTable(),
    tombstones: new SortedTable(),
    leases: new SortedTable(),
  };
}

/** Orders numbers by value and strings by their UTF-8 bytes. */
function compareKeys<K extends string | number>(a: K, b: K): number {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  const left = String(a),
    right = String(b),
    length = Math.min(left.length, right.length);
  for (let i = 0; i < length; i++) {
    const x = left.charCodeAt(i),
      y = right.charCodeAt(i);
    if (x !== y) return utf8Rank(x) - utf8Rank(y);
  }
  return left.length - right.length;
}

/** Surrogates stand for code points above U+FFFF: they sort after U+E000…U+FFFF, not before. */
function utf8Rank(unit: number): number {
  if (unit < 0xd800) return unit;
  return unit >= 0xe000 ? unit - 0x800 : unit + 0x2000;
}
