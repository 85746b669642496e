/**
 * A ClusterStore in memory, for simulation and tests: several clients of one shared state, on a Clock, deterministic.
 * A client can be cut off from the state, as by a dead network: its calls reject and its watches fall silent until it
 * is healed. A call that is cut off between its effect and its answer rejects although it took effect, as in life.
 */
import type { Clock, TimerHandle } from '../wire/clock.js';
import { TartanError } from '../wire/errors.js';
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
import { StoreEngine, checkTransaction, checkTtl } from './store-engine.js';
import { memoryTables } from './store-tables.js';

export interface MemoryClusterOptions {
  /** One way, milliseconds, asked for every message; 0 (the default) takes no timer, only a microtask. */
  readonly latencyMs?: () => number;
  /** Revisions kept in the log. */
  readonly logRevisions?: number;
}

/** The shared state. */
export class MemoryCluster {
  readonly engine: StoreEngine;
  readonly #clock: Clock;
  readonly #latencyMs: () => number;
  readonly #watches = new Set<MemoryWatch>();
  #expiryTimer: TimerHandle | undefined;

  constructor(clock: Clock, options: MemoryClusterOptions = {}) {
    this.#clock = clock;
    this.#latencyMs = options.latencyMs ?? (() => 0);
    this.engine = new StoreEngine(
      memoryTables(),
      { nowMs: () => clock.now(), isRunning: () => true },
      options.logRevisions,
    );
  }

  client(): MemoryClient {
    return new MemoryClient(this);
  }

  /** Ends the timer of leases, so that a test on the real clock can end. */
  close(): void {
    if (this.#expiryTimer !== undefined) this.#clock.clearTimer(this.#expiryTimer);
    this.#expiryTimer = undefined;
  }

  /** One message's way, then `fn`. */
  travel(fn: () => void): void {
    const ms = this.#latencyMs();
    if (ms > 0) this.#clock.setTimer(ms, fn);
    else queueMicrotask(fn);
  }

  addWatch(watch: MemoryWatch): void {
    this.#watches.add(watch);
    watch.wake();
  }
  removeWatch(watch: MemoryWatch): void {
    this.#watches.delete(watch);
  }
  wakeWatches(): void {
    for (const watch of this.#watches) watch.wake();
  }

  /** Makes sure that a timer ends the lease that ends next. */
  armExpiry(): void {
    const deadlineMs = this.engine.nextDeadlineMs();
    if (deadlineMs === undefined || this.#expiryTimer !== undefined) return;
    // A timer may fire a little early on a real clock: it then finds nothing and arms again.
    this.#expiryTimer = this.#clock.setTimer(Math.max(0, deadlineMs - this.#clock.now()), () => {
      this.#expiryTimer = undefined;
      this.engine.endExpiredLeases();
      this.wakeWatches();
      this.armExpiry();
    });
  }

  /** A lease that ends sooner than the one the timer waits for. */
  rearmExpiry(): void {
    this.close();
    this.armExpiry();
  }
}

export class MemoryClient implements ClusterStore {
  readonly #cluster: MemoryCluster;
  readonly #watches = new Set<MemoryWatch>();
  #isCutOff = false;
  #isClosed = false;

  constructor(cluster: MemoryCluster) {
    this.#cluster = cluster;
  }

  get isCutOff(): boolean {
    return this.#isCutOff;
  }

  /** From now on calls reject with ERR_MAP_UNAVAILABLE, those under way included. */
  cutOff(): void {
    this.#isCutOff = true;
  }

  /** Calls work again; watches deliver what they missed. */
  heal(): void {
    this.#isCutOff = false;
    for (const watch of this.#watches) watch.wake();
  }

  get(key: string): Promise<KeyValue | undefined> {
    return this.#call(`read '${key}'`, () => this.#cluster.engine.get(key));
  }
  range(prefix: string): Promise<KeyValue[]> {
    return this.#call(`read '${prefix}*'`, () => this.#cluster.engine.range(prefix));
  }
  revision(): Promise<number> {
    return this.#call('read the revision', () => this.#cluster.engine.revision());
  }

  async transact(compares: readonly Compare[], mutations: readonly Mutation[]): Promise<TransactionResult> {
    checkTransaction(compares, mutations);
    return this.#change('run a transaction', () => this.#cluster.engine.transact(compares, mutations));
  }

  async grantLease(ttlMs: number): Promise<Lease> {
    checkTtl(ttlMs);
    const cluster = this.#cluster;
    const id = await this.#change('grant a lease', () => {
      const granted = cluster.engine.grantLease(ttlMs);
      cluster.rearmExpiry();
      return granted;
    });
    return {
      id,
      keepAlive: () =>
        this.#change(`keep lease ${id} alive`, () => {
          if (!cluster.engine.keepLeaseAlive(id))
            throw new TartanError('ERR_NOT_FOUND', `Cannot keep lease ${id} alive: it has expired`);
        }),
      revoke: () =>
        this.#change(`revoke lease ${id}`, () => {
          cluster.engine.endLease(id);
        }),
    };
  }

  watch(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision?: number): Watch {
    if (this.#isClosed) throw closedError(`watch '${prefix}*'`);
    const watch = new MemoryWatch(
      this.#cluster,
      this,
      prefix,
      onEvents,
      fromRevision ?? this.#cluster.engine.revision(),
    );
    this.#watches.add(watch);
    this.#cluster.addWatch(watch);
    return {
      close: () => {
        this.#drop(watch);
      },
    };
  }

  close(): Promise<void> {
    this.#isClosed = true;
    for (const watch of this.#watches) this.#drop(watch);
    return Promise.resolve();
  }

  #drop(watch: MemoryWatch): void {
    watch.isClosed = true;
    this.#watches.delete(watch);
    this.#cluster.removeWatch(watch);
  }

  #change<T>(attempt: string, fn: () => T): Promise<T> {
    return this.#call(attempt, () => {
      try {
        return fn();
      } finally {
        this.#cluster.wakeWatches();
      }
    });
  }

  /** There, effect, and back; each may find the way cut. */
  #call<T>(attempt: string, fn: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) {
        reject(closedError(attempt));
        return;
      }
      const guarded = (step: () => void) => () => {
        if (this.#isCutOff) {
          reject(new TartanError('ERR_MAP_UNAVAILABLE', `Cannot ${attempt}: the cluster store does not answer`));
          return;
        }
        try {
          step();
        } catch (error) {
          reject(error as Error);
        }
      };
      this.#cluster.travel(
        guarded(() => {
          const result = fn();
          this.#cluster.travel(
            guarded(() => {
              resolve(result);
            }),
          );
        }),
      );
    });
  }
}

class MemoryWatch {
  isClosed = false;
  readonly #cluster: MemoryCluster;
  readonly #client: MemoryClient;
  readonly #prefix: string;
  readonly #onEvents: (events: readonly WatchEvent[]) => void;
  /** Everything up to this revision is delivered. */
  #seen: number;
  #isUnderWay = false;

  constructor(
    cluster: MemoryCluster,
    client: MemoryClient,
    prefix: string,
    onEvents: (events: readonly WatchEvent[]) => void,
    from: number,
  ) {
    this.#cluster = cluster;
    this.#client = client;
    this.#prefix = prefix;
    this.#onEvents = onEvents;
    this.#seen = from;
  }

  /** Sends one delivery on its way, unless one is: that will carry what happened meanwhile. */
  wake(): void {
    if (this.#isUnderWay || this.isClosed || this.#seen >= this.#cluster.engine.revision()) return;
    this.#isUnderWay = true;
    this.#cluster.travel(() => {
      this.#isUnderWay = false;
      if (this.isClosed || this.#client.isCutOff) return;
      const { engine } = this.#cluster;
      const events = engine.changesSince(this.#prefix, this.#seen);
      this.#seen = engine.revision();
      if (events.length > 0) this.#onEvents(events);
    });
  }
}

function closedError(attempt: string): TartanError {
  return new TartanError('ERR_CLOSED', `Cannot ${attempt}: this client of the cluster store is closed`);
}
