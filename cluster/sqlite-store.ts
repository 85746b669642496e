/**
 * The embedded ClusterStore: SQLite in a directory of one local file system, opened directly by several processes of
 * one machine (one boot, one pid namespace).
 *
 * Reads run on the caller's thread, on a snapshot, and wait for nobody. Changes go to a thread of their own
 * (sqlite-worker.ts), wait there for the write lock, and are on disk before they resolve, or are seen by any process. A
 * process that ends anywhere leaves nothing behind, and no lock; a stopped one that holds the write lock blocks
 * writers, whose calls then reject with ERR_MAP_UNAVAILABLE while reads go on. On a full file system changes take from
 * what was laid aside (reserve()); when that is used up they reject, and nothing else happens. A call that rejected at
 * its deadline may still take effect later.
 */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { errorFromPeer, TartanError } from '../wire/errors.js';
import { detach, tolerate } from '../wire/front-door.js';
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
import { monotonicMs } from './process-identity.js';
import { asUnavailable, canonicalDirectory, engineOn, openDatabase, type Connection } from './sqlite-database.js';
import type { Answer, Operation, Order, WorkerOptions } from './sqlite-worker.js';
import { type StoreEngine, checkTransaction, checkTtl } from './store-engine.js';
import { DATABASE_FILE, LMDB_FILE } from './store-files.js';

export interface SqliteStoreOptions {
  /** Creates directory and store when they are not there. */
  readonly create?: boolean;
  /** How long a change may wait for the write lock and the disk, milliseconds; default 10,000. */
  readonly deadlineMs?: number;
  /** Revisions kept in the log; all processes should agree. */
  readonly logRevisions?: number;
}

/** Each open store looks for expired leases so often: what a dead process leaves behind goes within a second. */
const SWEEP_MS = 500;
const DEADLINE_MS = 10_000;
/** A snapshot waits for nobody but a process that is just recovering the log of one that died, or clearing it away. */
const READ_BUSY_MS = 250;
/** Beyond its deadline an operation may have begun: its answer then decides, if it comes so soon. */
const GRACE_MS = 200;

/** Compiled beside this file, or, when this file runs uncompiled in a test, where the build puts it: workers have no
 * loader of their own. */
const WORKER = new URL(
  import.meta.url.endsWith('.ts') ? '../dist/cluster/sqlite-worker.js' : './sqlite-worker.js',
  import.meta.url,
);

/** By real path: what the stores on one directory of this process share. */
const shared = new Map<string, Promise<SharedStore>>();

/**
 * Opens the cluster store in a directory. Several opens in one process share one environment.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no store there and `create` is not set · ERR_FOREIGN_STORE: the directory holds
 * something else · ERR_STORE_VERSION: a newer format · ERR_STORE: cannot be opened
 */
export async function openSqliteStore(dir: string, options: SqliteStoreOptions = {}): Promise<ClusterStore> {
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
      // Whoever awaits it is told; the next one tries anew.
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
    if (store.join()) return new SqliteStore(store, options.deadlineMs ?? DEADLINE_MS);
    await store.closed; // its last user closed it while we waited
  }
}

/** What all stores on one directory of this process share. */
class SharedStore {
  readonly engine: StoreEngine;
  readonly feed: ChangeFeed;
  readonly dir: string;
  readonly #database: Connection;
  readonly #begin: () => void;
  readonly #end: () => void;
  readonly #inode: number;
  readonly #changes: Changes;
  readonly #forget: () => void;
  readonly #sweeper: NodeJS.Timeout;
  #users = 0;
  /** Settles when closed; set when closing begins. */
  closed: Promise<void> | undefined;
  #isSweeping = false;
  #failure: string | undefined;

  static async open(dir: string, options: SqliteStoreOptions, forget: () => void): Promise<SharedStore> {
    const database = existsSync(join(dir, LMDB_FILE))
      ? await (await import('./lmdb-migration.js')).migrate(dir)
      : openDatabase(dir, options.create ?? false);
    database.pragma('query_only = ON');
    database.pragma(`busy_timeout = ${READ_BUSY_MS}`);
    return new SharedStore(database, dir, options, forget);
  }

  private constructor(database: Connection, dir: string, options: SqliteStoreOptions, forget: () => void) {
    this.#database = database;
    this.dir = dir;
    this.#inode = statSync(join(dir, DATABASE_FILE)).ino;
    this.#forget = forget;
    const [begin, end] = [database.prepare('BEGIN'), database.prepare('COMMIT')];
    this.#begin = () => {
      begin.run();
    };
    this.#end = () => {
      end.run();
    };
    this.engine = engineOn(database, options.logRevisions);
    this.#changes = new Changes({ dir, logRevisions: options.logRevisions });
    this.feed = new ChangeFeed(dir, (fn) => this.read('look for changes', () => fn(this.engine)));
    this.#sweeper = setInterval(() => {
      detach(this.#sweep());
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
      await this.#changes.close();
      this.#database.close();
    } finally {
      this.#forget();
    }
  }

  /** Runs `fn` on a snapshot that shows every commit made before. */
  read<T>(attempt: string, fn: () => T): T {
    this.#checkHealth(attempt);
    try {
      this.#begin();
      try {
        return fn();
      } finally {
        this.#end();
      }
    } catch (error) {
      throw asUnavailable(this.dir, attempt, error);
    }
  }

  /** Runs an operation alone, atomically (nothing of it stays when it fails); resolves when it is on disk. */
  async change<T>(attempt: string, deadlineMs: number, operation: Operation): Promise<T> {
    this.#checkHealth(attempt);
    const result = await this.#changes.run(attempt, deadlineMs, operation);
    this.feed.check();
    return result as T;
  }

  /** Any process ends what any process left; the transaction looks again, so two sweepers do no harm. */
  async #sweep(): Promise<void> {
    if (this.#isSweeping || this.closed) return;
    this.#isSweeping = true;
    try {
      this.#checkInode();
      if (!this.read('look for expired leases', () => this.engine.hasExpiredLeases())) return;
      await this.change('end expired leases', DEADLINE_MS, { kind: 'endExpiredLeases' });
    } catch (error) {
      tolerate(error); // Whoever calls next gets the error; the next sweep tries again.
    } finally {
      this.#isSweeping = false;
    }
  }

  /** A store deleted and made anew under us would otherwise be two stores, each half right. */
  #checkInode(): void {
    let inode: number | undefined;
    try {
      inode = statSync(join(this.dir, DATABASE_FILE)).ino;
    } catch {
      /* gone */
    }
    this.#failure =
      inode === this.#inode
        ? undefined
        : `its ${DATABASE_FILE} was ${inode === undefined ? 'removed' : 'replaced'} while it was open`;
  }

  #checkHealth(attempt: string): void {
    if (this.#failure !== undefined)
      throw new TartanError('ERR_MAP_UNAVAILABLE', `Cannot ${attempt} in '${this.dir}': ${this.#failure}`);
  }
}

class SqliteStore implements ClusterStore {
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
    return this.#change('run a transaction', { kind: 'transact', compares, mutations });
  }

  async grantLease(ttlMs: number): Promise<Lease> {
    checkTtl(ttlMs);
    const lease = await this.#change<string>('grant a lease', { kind: 'grantLease', ttlMs });
    return {
      id: lease,
      keepAlive: async () => {
        if (await this.#change<boolean>(`keep lease ${lease} alive`, { kind: 'keepLeaseAlive', lease })) return;
        throw new TartanError('ERR_NOT_FOUND', `Cannot keep lease ${lease} alive: it has expired`);
      },
      revoke: () => this.#change(`revoke lease ${lease}`, { kind: 'endLease', lease }),
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

  async #change<T>(attempt: string, operation: Operation): Promise<T> {
    this.#checkOpen(attempt);
    return this.#shared.change<T>(attempt, this.#deadlineMs, operation);
  }

  #checkOpen(attempt: string): void {
    if (this.#isClosed)
      throw new TartanError('ERR_CLOSED', `Cannot ${attempt} in '${this.#shared.dir}': this cluster store is closed`);
  }
}

/** The thread that changes the store; it begins with the first change, as many a process only reads. */
class Changes {
  readonly #options: WorkerOptions;
  readonly #waiting = new Map<
    number,
    { resolve: (result: unknown) => void; reject: (error: Error) => void; timer: NodeJS.Timeout }
  >();
  #worker: Worker | undefined;
  #last = 0;

  constructor(options: WorkerOptions) {
    this.#options = options;
  }

  run(attempt: string, deadlineMs: number, operation: Operation): Promise<unknown> {
    this.#worker ??= this.#start();
    const worker = this.#worker,
      id = ++this.#last;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#take(id)?.reject(
          new TartanError(
            'ERR_MAP_UNAVAILABLE',
            `Cannot ${attempt} in '${this.#options.dir}': no commit for ${deadlineMs} ms; a process that holds the ` +
              'write lock may be stopped',
          ),
        );
      }, deadlineMs + GRACE_MS);
      this.#waiting.set(id, { resolve, reject, timer });
      worker.ref();
      const order: Order = { id, attempt, untilMs: monotonicMs() + deadlineMs, operation };
      worker.postMessage(order);
    });
  }

  /** After what is under way. */
  async close(): Promise<void> {
    const worker = this.#worker;
    if (worker === undefined) return;
    const ended = new Promise((resolve) => worker.once('exit', resolve));
    worker.ref();
    worker.postMessage('close');
    await ended;
    this.#worker = undefined;
  }

  #take(id: number): { resolve: (result: unknown) => void; reject: (error: Error) => void } | undefined {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return undefined;
    clearTimeout(waiting.timer);
    this.#waiting.delete(id);
    // Nothing is awaited: the process may end.
    if (this.#waiting.size === 0) this.#worker?.unref();
    return waiting;
  }

  #start(): Worker {
    const worker = new Worker(WORKER, { workerData: this.#options, execArgv: [], env: {} });
    worker.on('message', ({ id, result, error }: Answer) => {
      const waiting = this.#take(id);
      if (error === undefined) waiting?.resolve(result);
      else waiting?.reject(errorFromPeer(error.code, error.message));
    });
    // A bug: it ends this process, as it would on this thread.
    worker.on('error', (error) => {
      setImmediate(() => {
        throw error;
      });
    });
    return worker;
  }
}
