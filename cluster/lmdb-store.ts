/**
 * The embedded ClusterStore: LMDB in a directory of one local file system, opened directly by several processes of one
 * machine (one boot, one pid namespace).
 *
 * A change waits for LMDB's write lock on a thread of LMDB's own and is synced to disk before it resolves, or is seen
 * by any process. A process killed inside a transaction leaves nothing behind; a stopped one blocks writers, whose
 * calls then reject with ERR_MAP_UNAVAILABLE while reads go on. A call that rejected so may still take effect later.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { TartanError } from '../wire/errors.js';
import { ChangeFeed } from './change-feed.js';
import type {
  ClusterStore,
  Compare,
  KeyValue,
  Lease,
  Mutation,
  TransactionResult,
  Watch,
  WatchEvent,
} from './cluster-store.js';
import { canonicalDirectory, lmdbTables, oneLine, openEnvironment, type Environment } from './lmdb-environment.js';
import { isRunning, monotonicMs, ownIdentity } from './process-identity.js';
import { StoreEngine, checkTransaction, checkTtl } from './store-engine.js';

export interface LmdbStoreOptions {
  /** Creates directory and store when they are not there. */
  readonly create?: boolean;
  /** How long a change may wait for the write lock and the disk, milliseconds; default 10,000. */
  readonly deadlineMs?: number;
  /** Revisions kept in the log; all processes should agree. */
  readonly logRevisions?: number;
}

/** Each open store looks for expired leases so often: what a dead process leaves behind goes within a second. */
const SWEEP_MS = 500;
/** Reader slots of killed processes hold back the reuse of pages: looked for at every so many sweeps. */
const READER_CHECK_SWEEPS = 20;
const DEADLINE_MS = 10_000;

/** By real path: LMDB forbids to open an environment twice in one process. */
const shared = new Map<string, Promise<SharedStore>>();

/**
 * Opens the cluster store in a directory. Several opens in one process share one environment.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no store there and `create` is not set · ERR_FOREIGN_STORE: the directory holds
 * something else · ERR_STORE_VERSION: a newer format · ERR_STORE: cannot be opened
 */
export async function openLmdbStore(dir: string, options: LmdbStoreOptions = {}): Promise<ClusterStore> {
  const path = canonicalDirectory(dir, options.create ?? false);
  for (;;) {
    const present = shared.get(path);
    const opening =
      present ??
      SharedStore.open(path, options, () => {
        shared.delete(path);
      });
    if (!present) {
      shared.set(path, opening);
      opening.catch(() => {
        shared.delete(path);
      });
    }
    let store: SharedStore;
    try {
      store = await opening;
    } catch (error) {
      if (!present) throw error;
      continue; // another caller's attempt, with that caller's options
    }
    if (store.join()) return new LmdbStore(store, options.deadlineMs ?? DEADLINE_MS);
    await store.closed; // its last user closed it while we waited
  }
}

/** What all stores on one directory of this process share. */
class SharedStore {
  readonly engine: StoreEngine;
  readonly feed: ChangeFeed;
  readonly dir: string;
  readonly #environment: Environment;
  readonly #inode: number;
  readonly #forget: () => void;
  readonly #sweeper: NodeJS.Timeout;
  #users = 0;
  /** Settles when closed; set when closing begins. */
  closed: Promise<void> | undefined;
  #sweeps = 0;
  #isSweeping = false;
  #failure: string | undefined;

  static async open(dir: string, options: LmdbStoreOptions, forget: () => void): Promise<SharedStore> {
    const { environment, inode } = await openEnvironment(dir, options.create ?? false);
    return new SharedStore(environment, dir, inode, options, forget);
  }

  private constructor(
    environment: Environment,
    dir: string,
    inode: number,
    options: LmdbStoreOptions,
    forget: () => void,
  ) {
    this.#environment = environment;
    this.dir = dir;
    this.#inode = inode;
    this.#forget = forget;
    const clock = { nowMs: monotonicMs, owner: ownIdentity(), isRunning };
    this.engine = new StoreEngine(lmdbTables(environment), clock, options.logRevisions);
    this.feed = new ChangeFeed(dir, () => {
      this.#environment.resetReadTxn();
      return this.engine;
    });
    this.#sweeper = setInterval(() => {
      void this.#sweep();
    }, SWEEP_MS);
    this.#sweeper.unref();
  }

  join(): boolean {
    if (this.closed) return false;
    this.#users++;
    return true;
  }

  async leave(): Promise<void> {
    if (--this.#users === 0) this.closed = this.#close();
    await this.closed;
  }

  async #close(): Promise<void> {
    clearInterval(this.#sweeper);
    this.feed.close();
    try {
      await this.#environment.close();
    } finally {
      this.#forget();
    }
  }

  /** Runs `fn` on a snapshot that shows every commit made before. */
  read<T>(attempt: string, fn: () => T): T {
    this.#checkHealth(attempt);
    try {
      this.#environment.resetReadTxn();
      return fn();
    } catch (error) {
      throw unavailable(this.dir, attempt, error);
    }
  }

  /** Runs `fn` alone, atomically (nothing of it stays when it throws); resolves when that is on disk. */
  async change<T>(attempt: string, deadlineMs: number, fn: () => T): Promise<T> {
    this.#checkHealth(attempt);
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(
          new TartanError(
            'ERR_MAP_UNAVAILABLE',
            `Cannot ${attempt} in '${this.dir}': no commit for ${deadlineMs} ms; a process that holds the ` +
              'write lock may be stopped',
          ),
        );
      }, deadlineMs);
    });
    try {
      const commit = this.#environment.childTransaction(fn);
      commit.catch(() => undefined); // after the deadline nobody listens any more
      const result = await Promise.race([commit, deadline]);
      this.feed.check();
      return result;
    } catch (error) {
      throw unavailable(this.dir, attempt, error);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Any process ends what any process left; the transaction looks again, so two sweepers do no harm. */
  async #sweep(): Promise<void> {
    if (this.#isSweeping || this.closed) return;
    this.#isSweeping = true;
    try {
      this.#checkInode();
      if (this.#sweeps++ % READER_CHECK_SWEEPS === 0) this.#environment.readerCheck();
      if (!this.read('look for expired leases', () => this.engine.hasExpiredLeases())) return;
      await this.change('end expired leases', DEADLINE_MS, () => {
        this.engine.endExpiredLeases();
      });
    } catch {
      // Whoever calls next gets the error; the next sweep tries again.
    } finally {
      this.#isSweeping = false;
    }
  }

  /** A store deleted and made anew under us would otherwise be two stores, each half right. */
  #checkInode(): void {
    let inode: number | undefined;
    try {
      inode = statSync(join(this.dir, 'data.mdb')).ino;
    } catch {
      /* gone */
    }
    this.#failure =
      inode === this.#inode
        ? undefined
        : `its data.mdb was ${inode === undefined ? 'removed' : 'replaced'} while it was open`;
  }

  #checkHealth(attempt: string): void {
    if (this.#failure !== undefined)
      throw new TartanError('ERR_MAP_UNAVAILABLE', `Cannot ${attempt} in '${this.dir}': ${this.#failure}`);
  }
}

class LmdbStore implements ClusterStore {
  readonly #shared: SharedStore;
  readonly #deadlineMs: number;
  readonly #watches = new Set<Watch>();
  #isClosed = false;

  constructor(store: SharedStore, deadlineMs: number) {
    this.#shared = store;
    this.#deadlineMs = deadlineMs;
  }

  async get(key: string): Promise<KeyValue | undefined> {
    return this.#read(`read '${key}'`, () => this.#shared.engine.get(key));
  }
  async range(prefix: string): Promise<KeyValue[]> {
    return this.#read(`read '${prefix}*'`, () => this.#shared.engine.range(prefix));
  }
  async revision(): Promise<number> {
    return this.#read('read the revision', () => this.#shared.engine.revision());
  }

  async transact(compares: readonly Compare[], mutations: readonly Mutation[]): Promise<TransactionResult> {
    checkTransaction(compares, mutations);
    return this.#change('run a transaction', () => this.#shared.engine.transact(compares, mutations));
  }

  async grantLease(ttlMs: number): Promise<Lease> {
    checkTtl(ttlMs);
    const { engine } = this.#shared;
    const id = await this.#change('grant a lease', () => engine.grantLease(ttlMs));
    return {
      id,
      keepAlive: async () => {
        if (await this.#change(`keep lease ${id} alive`, () => engine.keepLeaseAlive(id))) return;
        throw new TartanError('ERR_NOT_FOUND', `Cannot keep lease ${id} alive: it has expired`);
      },
      revoke: () =>
        this.#change(`revoke lease ${id}`, () => {
          engine.endLease(id);
        }),
    };
  }

  watch(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision?: number): Watch {
    const from = fromRevision ?? this.#read(`watch '${prefix}*'`, () => this.#shared.engine.revision());
    this.#checkOpen(`watch '${prefix}*'`);
    const subscription = this.#shared.feed.subscribe(prefix, onEvents, from);
    const watch: Watch = {
      close: () => {
        this.#watches.delete(watch);
        subscription.close();
      },
    };
    this.#watches.add(watch);
    return watch;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const watch of this.#watches) watch.close();
    await this.#shared.leave();
  }

  #read<T>(attempt: string, fn: () => T): T {
    this.#checkOpen(attempt);
    return this.#shared.read(attempt, fn);
  }

  #change<T>(attempt: string, fn: () => T): Promise<T> {
    try {
      this.#checkOpen(attempt);
    } catch (error) {
      return Promise.reject(error as Error);
    }
    return this.#shared.change(attempt, this.#deadlineMs, fn);
  }

  #checkOpen(attempt: string): void {
    if (this.#isClosed)
      throw new TartanError('ERR_CLOSED', `Cannot ${attempt} in '${this.#shared.dir}': this cluster store is closed`);
  }
}

function unavailable(dir: string, attempt: string, error: unknown): Error {
  if (error instanceof TartanError) return error;
  return new TartanError('ERR_MAP_UNAVAILABLE', `Cannot ${attempt} in '${dir}': ${oneLine(error)}`, { cause: error });
}
