/**
 * The meaning of a ClusterStore, over a backend's tables: pure, synchronous, no I/O of its own. The backend runs each
 * changing call inside one atomic durable step, and each reading call on one snapshot.
 *
 * One revision counter for the store: a transaction that changes something takes the next revision, all its changes
 * share it, and the log keeps them. The log is bounded: the oldest revisions are pruned, their deletions kept as
 * tombstones. So a watch that lags behind the pruning misses no key's latest change, only intermediate ones.
 *
 *   revision   1 ……… horizon │ horizon+1 ……… revision
 *              keys' own modRevision,  │ log: every change
 *              tombstones: latest changes only
 */
import { TartanError } from '../wire/errors.js';
import type { Compare, KeyValue, Mutation, TransactionResult, WatchEvent } from './cluster-store.js';
import type { ProcessIdentity } from './process-identity.js';
import type { KeyRow, LeaseRow, LoggedChange, Tables } from './store-tables.js';

/** Revisions kept in the log: tens of seconds at full tilt, hours of ordinary life; some MiB. */
const LOG_REVISIONS = 16_384;
/** Prunes at most so many revisions in one transaction, so that none gets slow. */
const PRUNE_BATCH = 64;
const MAX_KEY_BYTES = 1024;
const MAX_VALUE_BYTES = 1 << 20;
const MAX_MUTATIONS = 128;

/** How a backend tells time and life. */
export interface LeaseClock {
  /** Monotonic milliseconds. */
  nowMs(): number;
  /** Recorded in new leases. */
  readonly owner?: ProcessIdentity;
  /** Whether the owner recorded in a lease still runs. */
  isRunning(owner: ProcessIdentity): boolean;
}

export class StoreEngine {
  readonly #tables: Tables;
  readonly #clock: LeaseClock;
  readonly #logRevisions: number;

  constructor(tables: Tables, clock: LeaseClock, logRevisions = LOG_REVISIONS) {
    this.#tables = tables;
    this.#clock = clock;
    this.#logRevisions = logRevisions;
  }

  // ---- reading

  revision(): number {
    return this.#tables.numbers.get('revision') ?? 0;
  }

  get(key: string): KeyValue | undefined {
    const row = this.#tables.keys.get(key);
    return row && toKeyValue(key, row);
  }

  range(prefix: string): KeyValue[] {
    return [...this.#under(prefix)].map(([key, row]) => toKeyValue(key, row));
  }

  /** Changes under `prefix` after revision `from`, oldest first. */
  changesSince(prefix: string, from: number): WatchEvent[] {
    const horizon = this.#tables.numbers.get('horizon') ?? 0;
    const events = from < horizon ? this.#catchUp(prefix, from, horizon) : [];
    for (const [revision, changes] of this.#tables.log.from(Math.max(from, horizon) + 1)) {
      for (const change of changes) {
        if (change.key.startsWith(prefix))
          events.push({ type: change.type, key: change.key, value: change.value, revision });
      }
    }
    return events;
  }

  // ---- changing

  /** @throws {TartanError} ERR_NOT_FOUND when a put names a lease that is not there; nothing is applied */
  transact(compares: readonly Compare[], mutations: readonly Mutation[]): TransactionResult {
    const holds = compares.every(
      ({ key, modRevision }) => (this.#tables.keys.get(key)?.modRevision ?? 0) === modRevision,
    );
    if (!holds) return { succeeded: false, revision: this.revision() };
    for (const mutation of mutations) {
      if ('put' in mutation && mutation.lease !== undefined)
        this.#requireLease(mutation.lease, `put '${mutation.put}' under it`);
    }
    return { succeeded: true, revision: this.#apply(mutations) };
  }

  /** @returns the new lease's id, never given before */
  grantLease(ttlMs: number): string {
    const number = (this.#tables.numbers.get('last-lease') ?? 0) + 1;
    this.#tables.numbers.put('last-lease', number);
    const id = number.toString(16);
    const owner = this.#clock.owner;
    this.#tables.leases.put(id, { ttlMs, deadlineMs: this.#clock.nowMs() + ttlMs, keys: [], ...(owner && { owner }) });
    return id;
  }

  /** Extends a lease, or ends one that nobody has swept yet. @returns false when it is gone */
  keepLeaseAlive(id: string): boolean {
    const lease = this.#tables.leases.get(id);
    if (!lease) return false;
    if (this.#isOver(lease)) {
      this.endLease(id);
      return false;
    }
    this.#tables.leases.put(id, { ...lease, deadlineMs: this.#clock.nowMs() + lease.ttlMs });
    return true;
  }

  /** Deletes the lease and its keys, in one revision. Harmless when it is gone. */
  endLease(id: string): void {
    const lease = this.#tables.leases.get(id);
    if (!lease) return;
    this.#apply(lease.keys.map((key) => ({ delete: key })));
    this.#tables.leases.delete(id);
  }

  /** Whether endExpiredLeases() would do something. */
  hasExpiredLeases(): boolean {
    for (const [, lease] of this.#tables.leases.from('')) if (this.#isOver(lease)) return true;
    return false;
  }

  /** When the lease that ends first ends, on the backend's clock; undefined without leases. */
  nextDeadlineMs(): number | undefined {
    let next: number | undefined;
    for (const [, lease] of this.#tables.leases.from('')) next = Math.min(next ?? Infinity, lease.deadlineMs);
    return next;
  }

  endExpiredLeases(): void {
    const over = [...this.#tables.leases.from('')].filter(([, lease]) => this.#isOver(lease));
    for (const [id] of over) this.endLease(id);
  }

  // ---- helpers

  *#under(prefix: string): Iterable<readonly [string, KeyRow]> {
    for (const entry of this.#tables.keys.from(prefix)) {
      if (!entry[0].startsWith(prefix)) return;
      yield entry;
    }
  }

  #isOver(lease: LeaseRow): boolean {
    return (
      this.#clock.nowMs() >= lease.deadlineMs || (lease.owner !== undefined && !this.#clock.isRunning(lease.owner))
    );
  }

  /** @returns the revision of the changes, or the present one when nothing changed */
  #apply(mutations: readonly Mutation[]): number {
    const { keys, numbers, log, tombstones } = this.#tables;
    const revision = this.revision() + 1;
    const changes: LoggedChange[] = [];
    for (const mutation of mutations) {
      if ('put' in mutation) {
        const key = mutation.put,
          old = keys.get(key);
        if (old?.lease !== mutation.lease) {
          this.#detach(old?.lease, key);
          this.#attach(mutation.lease, key);
        }
        keys.put(key, {
          value: mutation.value,
          createRevision: old?.createRevision ?? revision,
          modRevision: revision,
          ...(mutation.lease !== undefined && { lease: mutation.lease }),
        });
        tombstones.delete(key);
        changes.push({ type: 'put', key, value: mutation.value });
      } else {
        const key = mutation.delete,
          old = keys.get(key);
        if (!old) continue;
        this.#detach(old.lease, key);
        keys.delete(key);
        changes.push({ type: 'delete', key });
      }
    }
    if (changes.length === 0) return revision - 1;
    numbers.put('revision', revision);
    log.put(revision, changes);
    this.#prune(revision);
    return revision;
  }

  #attach(id: string | undefined, key: string): void {
    const lease = id === undefined ? undefined : this.#tables.leases.get(id);
    if (id !== undefined && lease) this.#tables.leases.put(id, { ...lease, keys: [...lease.keys, key] });
  }

  #detach(id: string | undefined, key: string): void {
    const lease = id === undefined ? undefined : this.#tables.leases.get(id);
    if (id !== undefined && lease)
      this.#tables.leases.put(id, { ...lease, keys: lease.keys.filter((other) => other !== key) });
  }

  #requireLease(id: string, attempt: string): void {
    const lease = this.#tables.leases.get(id);
    if (!lease || this.#isOver(lease))
      throw new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: lease ${id} has expired or was never granted`);
  }

  #prune(revision: number): void {
    const { keys, numbers, log, tombstones } = this.#tables;
    const before = numbers.get('horizon') ?? 0;
    const horizon = Math.min(revision - this.#logRevisions, before + PRUNE_BATCH);
    if (horizon <= before) return;
    for (let r = before + 1; r <= horizon; r++) {
      for (const change of log.get(r) ?? []) {
        if (change.type === 'delete' && !keys.get(change.key)) tombstones.put(change.key, r);
      }
      log.delete(r);
    }
    numbers.put('horizon', horizon);
  }

  /** The latest change of every key last changed after `from` and up to `horizon`, in order. */
  #catchUp(prefix: string, from: number, horizon: number): WatchEvent[] {
    const events: WatchEvent[] = [];
    for (const [key, row] of this.#under(prefix)) {
      if (row.modRevision > from && row.modRevision <= horizon)
        events.push({ type: 'put', key, value: row.value, revision: row.modRevision });
    }
    for (const [key, revision] of this.#tables.tombstones.from(prefix)) {
      if (!key.startsWith(prefix)) break;
      if (revision > from) events.push({ type: 'delete', key, value: undefined, revision });
    }
    return events.sort((a, b) => a.revision - b.revision);
  }
}

/**
 * Checks a transaction before it goes anywhere.
 * @throws {TartanError} ERR_ARGUMENT: a key that is empty, over 1024 bytes or not well-formed, a value over 1 MiB,
 * more than 128 mutations, or one key mutated twice (which of the two would win?)
 */
export function checkTransaction(compares: readonly Compare[], mutations: readonly Mutation[]): void {
  if (mutations.length > MAX_MUTATIONS) refuse(`${mutations.length} mutations, at most ${MAX_MUTATIONS} are taken`);
  const mutated = new Set<string>();
  for (const { key } of compares) checkKey(key);
  for (const mutation of mutations) {
    const key = 'put' in mutation ? mutation.put : mutation.delete;
    checkKey(key);
    if (mutated.has(key)) refuse(`key '${key}' is mutated twice`);
    mutated.add(key);
    if ('put' in mutation && Buffer.byteLength(mutation.value) > MAX_VALUE_BYTES)
      refuse(`the value of '${key}' is over ${MAX_VALUE_BYTES} bytes`);
  }
}

/** @throws {TartanError} ERR_ARGUMENT unless ttlMs is a positive finite number of milliseconds */
export function checkTtl(ttlMs: number): void {
  if (!(ttlMs > 0 && Number.isFinite(ttlMs)))
    throw new TartanError('ERR_ARGUMENT', `Cannot grant a lease of ${ttlMs} ms: expected a positive number`);
}

function checkKey(key: string): void {
  const bytes = Buffer.from(key, 'utf8');
  if (bytes.length === 0 || bytes.length > MAX_KEY_BYTES)
    refuse(`a key of ${bytes.length} bytes, 1 to ${MAX_KEY_BYTES} are taken`);
  if (bytes.toString('utf8') !== key) refuse('a key is not well-formed Unicode');
}

function refuse(observation: string): never {
  throw new TartanError('ERR_ARGUMENT', `Cannot run a cluster store transaction: ${observation}`);
}

function toKeyValue(key: string, row: KeyRow): KeyValue {
  return { key, value: row.value, createRevision: row.createRevision, modRevision: row.modRevision, lease: row.lease };
}
