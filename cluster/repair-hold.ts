/**
 * Who is rebuilding, scrubbing or moving files' shares, and how far it is: one at a time in a cluster, told under a
 * lease, so that it vanishes with whoever did it. What was restored stays restored: the next one finds less to do.
 *
 * Who does it by itself, in the background, gives way to an operator's command: that leaves a wish, and waits a moment.
 */
import { hostname } from 'node:os';
import { realClock, sleep, type Clock, type TimerHandle } from '../wire/clock.js';
import { TartanError, isOperating } from '../wire/errors.js';
import type { ClusterStore, Lease } from './cluster-store.js';
import { parseJson } from './compare-and-swap.js';
import { REPAIR_KEY, REPAIR_WISH_KEY } from './keys.js';
import { detach, tolerate } from '../wire/front-door.js';

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
  /** Ends soon when somebody wishes. */
  readonly givesWay?: boolean;
}

export type RepairProgress = Pick<RepairState, 'filesDone' | 'stripesDone' | 'bytesRestored'>;

const LEASE_MS = 10_000;
/** A command waits so long for one that gives way. */
const PATIENCE_MS = 30_000;
const WAIT_MS = 100;
/** Progress is told so often at most. */
const TELL_MS = 500;

export class RepairHold {
  #state: RepairState;
  #revision: number;
  #telling: Promise<void> = Promise.resolve();
  #toldMs = -TELL_MS;
  #keeping: TimerHandle;

  private constructor(
    private readonly store: ClusterStore,
    private readonly lease: Lease,
    state: RepairState,
    revision: number,
    private readonly clock: Clock,
  ) {
    this.#state = state;
    this.#revision = revision;
    // A store that is away for a while does not end a rebuild; that another begins meanwhile does no harm but work.
    this.#keep();
  }

  #keep(): void {
    this.#keeping = this.clock.setTimer(LEASE_MS / 3, () => {
      detach(this.lease.keepAlive().catch(tolerate));
      this.#keep();
    });
  }

  /**
   * @param options.givesWay  to whoever does not: look at isWished() now and then
   * @throws {TartanError} ERR_IN_USE while another rebuilds or scrubs, or while one waits to whom this should give way;
   *         ERR_MAP_UNAVAILABLE
   */
  static async take(
    store: ClusterStore,
    what: RepairState['what'],
    files: number,
    stripes: number,
    { clock = realClock, givesWay = false }: { readonly clock?: Clock; readonly givesWay?: boolean } = {},
  ): Promise<RepairHold> {
    const state: RepairState = {
      ...(givesWay && { givesWay }),
      what,
      host: hostname(),
      pid: process.pid,
      startedAt: new Date().toISOString(),
      files,
      filesDone: 0,
      stripes,
      stripesDone: 0,
      bytesRestored: 0,
    };
    const lease = await store.grantLease(LEASE_MS),
      deadline = clock.now() + PATIENCE_MS;
    for (;;) {
      const free = [
        { key: REPAIR_KEY, modRevision: 0 },
        ...(givesWay ? [{ key: REPAIR_WISH_KEY, modRevision: 0 }] : []),
      ];
      const { succeeded, revision } = await store.transact(free, [
        { put: REPAIR_KEY, value: JSON.stringify(state), lease: lease.id },
        ...(givesWay ? [] : [{ delete: REPAIR_WISH_KEY }]),
      ]);
      if (succeeded) return new RepairHold(store, lease, state, revision, clock);
      const other = await readRepair(store);
      if (givesWay || (other !== undefined && other.givesWay !== true) || clock.now() >= deadline) {
        await lease.revoke();
        throw new TartanError(
          'ERR_IN_USE',
          `Cannot ${what}: ` +
            (other === undefined
              ? 'another has just ended, or is about to begin; try again'
              : `process ${other.pid} on ${other.host} is at it (${other.what}, ${percentOf(other)} %)`),
        );
      }
      await store.transact(
        [{ key: REPAIR_WISH_KEY, modRevision: 0 }],
        [{ put: REPAIR_WISH_KEY, value: JSON.stringify({ what, pid: process.pid }), lease: lease.id }],
      );
      await lease.keepAlive();
      await sleep(clock, WAIT_MS);
    }
  }

  /** Tells how far it is, now and then. Never throws: progress is only for people. */
  tell(progress: RepairProgress): void {
    this.#state = { ...this.#state, ...progress };
    if (this.clock.now() - this.#toldMs < TELL_MS) return;
    this.#toldMs = this.clock.now();
    this.#telling = this.#telling.then(() => this.#write());
  }

  async release(): Promise<void> {
    this.clock.clearTimer(this.#keeping);
    await this.#telling;
    await this.lease.revoke().catch((error: unknown) => {
      if (!isOperating(error)) throw error;
    });
  }

  async #write(): Promise<void> {
    try {
      const { succeeded, revision } = await this.store.transact(
        [{ key: REPAIR_KEY, modRevision: this.#revision }],
        [{ put: REPAIR_KEY, value: JSON.stringify(this.#state), lease: this.lease.id }],
      );
      if (succeeded) this.#revision = revision;
    } catch (error) {
      if (!isOperating(error)) throw error;
    }
  }
}

/** Whether a command waits for whoever gives way. */
export async function isWished(store: ClusterStore): Promise<boolean> {
  return (await store.get(REPAIR_WISH_KEY)) !== undefined;
}

/** @returns undefined when nobody rebuilds or scrubs */
export async function readRepair(store: ClusterStore): Promise<RepairState | undefined> {
  const row = await store.get(REPAIR_KEY);
  return row && parseJson<RepairState>(row);
}

/** Whole per cent of the stripes that have been looked at. */
export function percentOf({ stripes, stripesDone }: RepairState): number {
  return stripes === 0 ? 100 : Math.floor((100 * stripesDone) / stripes);
}
