/**
 * The store for the little that must be agreed on: the cluster map and the files. After etcd's semantics, so that the
 * embedded backend (SQLite) and etcd stand behind one interface: one revision counter for the whole store, transactions
 * that compare then write, leases whose keys vanish with them, watches that resume from a revision.
 *
 * Invariants: a transaction is atomic and durable before it resolves; revisions only grow; a watch delivers every
 * change after its start revision, in order, at least once; a lease's keys are deleted in one transaction when it
 * expires.
 */
export interface KeyValue {
  readonly key: string;
  /** JSON text in all of Tartan's keys. */
  readonly value: string;
  readonly createRevision: number;
  /** Revision of the last change of this key. */
  readonly modRevision: number;
  readonly lease: string | undefined;
}

export type Compare =
  /** Holds when the key's last change is `modRevision`; 0: the key does not exist. */
  { readonly key: string; readonly modRevision: number };

export type Mutation =
  | { readonly put: string; readonly value: string; readonly lease?: string }
  | { readonly delete: string };

export interface TransactionResult {
  readonly succeeded: boolean;
  readonly revision: number;
}

export interface WatchEvent {
  readonly type: 'put' | 'delete';
  readonly key: string;
  readonly value: string | undefined;
  readonly revision: number;
}

export interface Watch {
  close(): void;
}

export interface Lease {
  readonly id: string;
  /** Extends the lease by its time to live. @throws {TartanError} ERR_NOT_FOUND once it has expired */
  keepAlive(): Promise<void>;
  revoke(): Promise<void>;
}

export interface ClusterStore {
  get(key: string): Promise<KeyValue | undefined>;
  /** All keys that begin with `prefix`, ascending. */
  range(prefix: string): Promise<KeyValue[]>;
  /** Applies all mutations when every compare holds, else none. */
  transact(compares: readonly Compare[], mutations: readonly Mutation[]): Promise<TransactionResult>;
  /** @param ttlMs time to live without keepAlive, milliseconds */
  grantLease(ttlMs: number): Promise<Lease>;
  /**
   * Changes of keys under `prefix` after `fromRevision` (default: now). Another process sees a change within 50 ms.
   * Where "now" has to be asked for over a network, it is at the latest when this client's next range or transaction
   * is answered.
   */
  watch(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision?: number): Watch;
  revision(): Promise<number>;
  close(): Promise<void>;
}
