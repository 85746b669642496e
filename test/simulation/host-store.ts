/**
 * The cluster store as one simulated process sees it: answers and watch events come as events of its host, so that they
 * wait while it is stopped and never reach it once it is dead. What it asked for happens all the same: a request on its
 * way outlives its sender.
 */
import type { SimWorld } from 'tartan-rdma';
import type {
  ClusterStore,
  Compare,
  KeyValue,
  Lease,
  Mutation,
  TransactionResult,
  Watch,
  WatchEvent,
} from '../../cluster/cluster-store.js';
import type { MemoryClient } from '../../cluster/memory-store.js';

export class HostStore implements ClusterStore {
  readonly inner: MemoryClient;
  private readonly world: SimWorld;
  private readonly host: ReturnType<SimWorld['host']>;

  constructor(world: SimWorld, host: string, inner: MemoryClient) {
    this.world = world;
    this.host = world.host(host);
    this.inner = inner;
  }

  get(key: string): Promise<KeyValue | undefined> {
    return this.call(() => this.inner.get(key));
  }
  range(prefix: string): Promise<KeyValue[]> {
    return this.call(() => this.inner.range(prefix));
  }
  revision(): Promise<number> {
    return this.call(() => this.inner.revision());
  }
  close(): Promise<void> {
    return this.inner.close();
  }

  transact(compares: readonly Compare[], mutations: readonly Mutation[]): Promise<TransactionResult> {
    return this.call(() => this.inner.transact(compares, mutations));
  }

  async grantLease(ttlMs: number): Promise<Lease> {
    const lease = await this.call(() => this.inner.grantLease(ttlMs));
    return {
      id: lease.id,
      keepAlive: () => this.call(() => lease.keepAlive()),
      revoke: () => this.call(() => lease.revoke()),
    };
  }

  watch(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision?: number): Watch {
    let isClosed = false;
    const watch = this.inner.watch(
      prefix,
      (events) => {
        this.world.schedule(0, this.host, () => {
          if (!isClosed) onEvents(events);
        });
      },
      fromRevision,
    );
    return {
      close: () => {
        isClosed = true;
        watch.close();
      },
    };
  }

  private call<T>(ask: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (!this.host.isAlive) return;
      ask().then(
        (value) => {
          this.world.schedule(0, this.host, () => {
            resolve(value);
          });
        },
        (error: unknown) => {
          this.world.schedule(0, this.host, () => {
            reject(error as Error);
          });
        },
      );
    });
  }
}
