/**
 * Who is rebuilding, scrubbing or moving files' shares, and how far it is: one at a time in a cluster, told under a lease, so that it vanishes
 * with whoever did it. What was restored stays restored: the next one finds less to do.
 */
import { hostname } from 'node:os';
import { TartanError, codeOf } from '../wire/errors.js';
import type { ClusterStore, Lease } from './cluster-store.js';
import { parseJson } from './compare-and-swap.js';
import { REPAIR_KEY } from './keys.js';

export interface RepairState {
  readonly what: 'rebuild' | 'scrub' | 'drain' | 'rebalance';
  readonly host: string;
  readonly pid: number;
  /** ISO time. */
  readonly startedAt: string;
  readonly files: number;
  readonly filesDone: number;
  /** Committed stripes in all files, and how many of them have been looked at. */
  readonly stripes: number;
  readonly stripesDone: number;
  readonly bytesRestored: number;
}

export type RepairProgress = Pick<RepairState, 'filesDone' | 'stripesDone' | 'bytesRestored'>;

const LEASE_MS = 10_000;
/** Progress is told so often at most. */
const TELL_MS = 500;

export class RepairHold {
  #state: RepairState;
  #revision: number;
  #telling: Promise<void> = Promise.resolve();
  #toldMs = 0;
  readonly #keeping: NodeJS.Timeout;

  private constructor(private readonly store: ClusterStore, private readonly lease: Lease, state: RepairState, revision: number) {
    this.#state = state;
    this.#revision = revision;
    // A store that is away for a while does not end a rebuild; that another begins meanwhile does no harm but work.
    this.#keeping = setInterval(() => { this.lease.keepAlive().catch(() => {}); }, LEASE_MS / 3);
    this.#keeping.unref();
  }

  /** @throws {TartanError} ERR_IN_USE while another rebuilds or scrubs; ERR_MAP_UNAVAILABLE */
  static async take(store: ClusterStore, what: RepairState['what'], files: number, stripes: number): Promise<RepairHold> {
    const state: RepairState = { what, host: hostname(), pid: process.pid, startedAt: new Date().toISOString(), files, filesDone: 0, stripes, stripesDone: 0, bytesRestored: 0 };
    const lease = await store.grantLease(LEASE_MS);
    const { succeeded, revision } = await store.transact([{ key: REPAIR_KEY, modRevision: 0 }], [{ put: REPAIR_KEY, value: JSON.stringify(state), lease: lease.id }]);
    if (succeeded) return new RepairHold(store, lease, state, revision);
    await lease.revoke();
    const other = await readRepair(store);
    throw new TartanError('ERR_IN_USE', `Cannot ${what}: ${other === undefined ? 'another has just ended; try again' : `process ${other.pid} on ${other.host} is at it (${other.what}, ${percentOf(other)} %)`}`);
  }

  /** Tells how far it is, now and then. Never throws: progress is only for people. */
  tell(progress: RepairProgress): void {
    this.#state = { ...this.#state, ...progress };
    if (performance.now() - this.#toldMs < TELL_MS) return;
    this.#toldMs = performance.now();
    this.#telling = this.#telling.then(() => this.#write());
  }

  async release(): Promise<void> {
    clearInterval(this.#keeping);
    await this.#telling;
    await this.lease.revoke().catch((error: unknown) => { if (codeOf(error) === undefined) throw error; });
  }

  async #write(): Promise<void> {
    try {
      const { succeeded, revision } = await this.store.transact([{ key: REPAIR_KEY, modRevision: this.#revision }], [{ put: REPAIR_KEY, value: JSON.stringify(this.#state), lease: this.lease.id }]);
      if (succeeded) this.#revision = revision;
    } catch (error) {
      if (codeOf(error) === undefined) throw error;
    }
  }
}

/** @returns undefined when nobody rebuilds or scrubs */
export async function readRepair(store: ClusterStore): Promise<RepairState | undefined> {
  const row = await store.get(REPAIR_KEY);
  return row && parseJson<RepairState>(row);
}

/** Whole per cent of the stripes that have been looked at. */
export function percentOf({ stripes, stripesDone }: RepairState): number { return stripes === 0 ? 100 : Math.floor((100 * stripesDone) / stripes); }
