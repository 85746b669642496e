/**
 * The ClusterStore of many machines: etcd (API version 3), under a prefix of its own.
 *
 *   revision here = etcd's − 1        an empty etcd is at 1, an empty store at 0; other users of the same etcd leave
 *   gaps
 *   lease here    = etcd's lease      in whole seconds, at least what etcd grants (2 s as it is delivered)
 *
 * Every read is linearizable: it waits for a majority. Without one, calls reject with ERR_MAP_UNAVAILABLE; a
 * transaction that rejected so may still take effect.
 */
import { randomInt } from 'node:crypto';
import { TartanError, codeOf } from '../wire/errors.js';
import {
  KVService,
  LeaseService,
  type KeyValue as EtcdKeyValue,
  type RangeResponse,
  type RequestOp,
} from '../wire/generated/etcd.js';
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
import { EtcdConnection, closedError } from './etcd-connection.js';
import { parseEtcdLocation, type EtcdLocation } from './etcd-location.js';
import { EtcdWatch, endOf, startOf } from './etcd-watch.js';
import { checkTransaction, checkTtl } from './store-engine.js';

export interface EtcdStoreOptions {
  /** Of each call, milliseconds; default 5,000. */
  readonly deadlineMs?: number;
}

const DEADLINE_MS = 5_000;
const PAGE_ROWS = 512;
const EQUAL = 0,
  MOD_REVISION = 2;

/**
 * Opens the cluster store at `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`.
 *
 * @throws {TartanError} ERR_ARGUMENT: not of that form · ERR_MAP_UNAVAILABLE: no member answers
 */
export async function openEtcdStore(location: string, options: EtcdStoreOptions = {}): Promise<ClusterStore> {
  const store = new EtcdStore(parseEtcdLocation(location), options.deadlineMs ?? DEADLINE_MS);
  try {
    await store.revision();
  } catch (error) {
    await store.close();
    throw error;
  }
  return store;
}

class EtcdStore implements ClusterStore {
  readonly #connection: EtcdConnection;
  readonly #prefix: Buffer;
  readonly #watches = new Set<EtcdWatch>();

  constructor({ endpoints, prefix }: EtcdLocation, deadlineMs: number) {
    this.#connection = new EtcdConnection(endpoints, deadlineMs);
    this.#prefix = Buffer.from(prefix);
  }

  async get(key: string): Promise<KeyValue | undefined> {
    const row = (await this.#range({ key: this.#key(key) }, `read '${key}'`)).kvs[0];
    return row && this.#toKeyValue(row);
  }

  async range(prefix: string): Promise<KeyValue[]> {
    await this.#watchesOpened(`read '${prefix}*'`);
    const { rows } = await this.#pages(this.#key(prefix), 0, false);
    return rows.map((row) => this.#toKeyValue(row));
  }

  async revision(): Promise<number> {
    return revisionOf(headerOf(await this.#range({ key: this.#prefix, countOnly: true }, 'read the revision')));
  }

  async transact(compares: readonly Compare[], mutations: readonly Mutation[]): Promise<TransactionResult> {
    checkTransaction(compares, mutations);
    const request = {
      compare: compares.map(({ key, modRevision }) => ({
        result: EQUAL,
        target: MOD_REVISION,
        key: this.#key(key),
        modRevision: toEtcd(modRevision),
      })),
      success: mutations.map(
        (mutation): RequestOp => ({
          request:
            'put' in mutation
              ? {
                  $case: 'requestPut',
                  value: {
                    key: this.#key(mutation.put),
                    value: Buffer.from(mutation.value),
                    lease: mutation.lease === undefined ? 0 : leaseNumber(mutation.lease),
                  },
                }
              : { $case: 'requestDeleteRange', value: { key: this.#key(mutation.delete) } },
        }),
      ),
    };
    await this.#watchesOpened('run a transaction');
    const response = await this.#connection.call(KVService.txn, request, 'run a transaction', false);
    return { succeeded: response.succeeded, revision: revisionOf(headerOf(response)) };
  }

  async grantLease(ttlMs: number): Promise<Lease> {
    checkTtl(ttlMs);
    await this.#watchesOpened('grant a lease');
    // A number of ours: etcd's own may not fit a JavaScript number.
    const number = randomInt(1, 2 ** 48 - 1),
      id = number.toString(16);
    await this.#connection.call(
      LeaseService.leaseGrant,
      { TTL: Math.ceil(ttlMs / 1000), ID: number },
      'grant a lease',
      false,
    );
    const gone = (): TartanError => new TartanError('ERR_NOT_FOUND', `Cannot keep lease ${id} alive: it has expired`);
    return {
      id,
      keepAlive: async () => {
        this.#requireOpen(`keep lease ${id} alive`);
        const { TTL } = await this.#connection.exchange(
          LeaseService.leaseKeepAlive,
          { ID: number },
          `keep lease ${id} alive`,
        );
        if (TTL <= 0) throw gone();
      },
      revoke: async () => {
        this.#requireOpen(`revoke lease ${id}`);
        await this.#connection
          .call(LeaseService.leaseRevoke, { ID: number }, `revoke lease ${id}`, true)
          .catch((error: unknown) => {
            if (codeOf(error) !== 'ERR_NOT_FOUND') throw error; // gone already
          });
      },
    };
  }

  watch(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision?: number): Watch {
    this.#requireOpen(`watch '${prefix}*'`);
    const watch = new EtcdWatch(this.#connection, {
      prefix: this.#key(prefix),
      start: fromRevision === undefined ? 0 : fromRevision + 2,
      onEvents,
      keyOf: (key) => this.#name(key),
      revisionOf,
      readRange: (key, revision, keysOnly) => this.#pages(key, revision, keysOnly),
      readRevision: async () =>
        headerOf(await this.#range({ key: this.#prefix, countOnly: true }, `watch '${prefix}*'`)),
    });
    this.#watches.add(watch);
    return {
      close: () => {
        this.#watches.delete(watch);
        watch.close();
      },
    };
  }

  close(): Promise<void> {
    for (const watch of this.#watches) watch.close();
    this.#watches.clear();
    if (!this.#connection.isClosed) this.#connection.close();
    return Promise.resolve();
  }

  #requireOpen(attempt: string): void {
    if (this.#connection.isClosed) throw closedError(attempt);
  }

  /** A watch "from now" has to ask which revision that is: what this client does comes after the answer. */
  async #watchesOpened(attempt: string): Promise<void> {
    this.#requireOpen(attempt);
    for (const watch of this.#watches) await this.#connection.within(watch.opened, attempt);
    this.#requireOpen(attempt);
  }

  async #range(
    request: {
      key: Buffer;
      rangeEnd?: Buffer;
      limit?: number;
      revision?: number;
      keysOnly?: boolean;
      countOnly?: boolean;
    },
    attempt: string,
  ): Promise<RangeResponse> {
    await this.#watchesOpened(attempt);
    return this.#connection.call(
      KVService.range,
      { rangeEnd: Buffer.alloc(0), limit: 0, revision: 0, keysOnly: false, countOnly: false, ...request },
      attempt,
      true,
    );
  }

  /** All rows under a key prefix, at one revision of etcd's. */
  async #pages(prefix: Buffer, at: number, keysOnly: boolean): Promise<{ rows: EtcdKeyValue[]; revision: number }> {
    const rows: EtcdKeyValue[] = [];
    let key = startOf(prefix),
      revision = at;
    for (;;) {
      const page = await this.#connection.call(
        KVService.range,
        { key, rangeEnd: endOf(prefix), limit: PAGE_ROWS, revision, keysOnly, countOnly: false },
        `read '${this.#name(prefix)}*'`,
        true,
      );
      if (revision === 0) revision = headerOf(page);
      for (const row of page.kvs) rows.push(row);
      const last = page.kvs.at(-1);
      if (!page.more || last === undefined) return { rows, revision };
      key = Buffer.concat([last.key, Buffer.from([0])]);
    }
  }

  #key(key: string): Buffer {
    return Buffer.concat([this.#prefix, Buffer.from(key)]);
  }
  #name(key: Buffer): string {
    return key.toString('utf8', this.#prefix.length);
  }

  #toKeyValue(row: EtcdKeyValue): KeyValue {
    return {
      key: this.#name(row.key),
      value: row.value.toString(),
      createRevision: revisionOf(row.createRevision),
      modRevision: revisionOf(row.modRevision),
      lease: row.lease === 0 ? undefined : row.lease.toString(16),
    };
  }
}

function revisionOf(etcd: number): number {
  return etcd - 1;
}
/** 0 stands for no key in both. */
function toEtcd(modRevision: number): number {
  return modRevision === 0 ? 0 : modRevision + 1;
}

function headerOf(response: { readonly header?: { readonly revision: number } | undefined }): number {
  if (response.header === undefined) throw new TartanError('ERR_STORE', 'Cannot use etcd: an answer has no revision');
  return response.header.revision;
}

/** @throws {TartanError} ERR_NOT_FOUND when it can't be a lease of ours */
function leaseNumber(id: string): number {
  const number = Number.parseInt(id, 16);
  if (!(Number.isSafeInteger(number) && number > 0))
    throw new TartanError('ERR_NOT_FOUND', `Cannot put a key under lease ${id}: there is no such lease`);
  return number;
}
