/**
 * That a process with an id runs, under a lease: a key that vanishes with it, and that only one can hold.
 *
 *     take() ─▶ held ──every third of its time──▶ renewed
 *                  └─ the store forgot it ─▶ taken again, or another has the id: onDisplaced, once
 */
import { realClock, sleep, type Clock, type TimerHandle } from '../wire/clock.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import type { ClusterStore, Lease } from './cluster-store.js';
import { parseJson } from './compare-and-swap.js';
import { NODE_LEASES, SWITCH_LEASES } from './keys.js';

const LEASE_MS = 5000;
const POLL_MS = 100;

export interface PresenceOptions {
  readonly clock?: Clock;
  readonly leaseMs?: number;
  /** Another process has taken the id, while this one was stopped or cut off: it must not go on. */
  readonly onDisplaced: () => void;
}

export class SwitchPresence {
  private timer: TimerHandle | undefined;
  private lease: Lease | undefined;
  /** With an unknown fate: a transaction that was never answered may have put the key under one. */
  private readonly granted = new Map<string, Lease>();
  private isReleased = false;

  private constructor(
    private readonly store: ClusterStore,
    private readonly id: string,
    private readonly options: Required<PresenceOptions>,
  ) {}

  /**
   * Says that the switch `id` runs. A predecessor that died lets go of its lease soon; one that lives doesn't.
   *
   * @throws {TartanError} ERR_IN_USE when a process with this id runs; ERR_MAP_UNAVAILABLE
   */
  static async take(store: ClusterStore, id: string, given: PresenceOptions): Promise<SwitchPresence> {
    const options = { clock: realClock, leaseMs: LEASE_MS, ...given };
    const { clock, leaseMs } = options,
      presence = new SwitchPresence(store, id, options);
    for (const deadline = clock.now() + 2 * leaseMs; !(await presence.tryTake()); await sleep(clock, POLL_MS)) {
      if (clock.now() >= deadline)
        throw new TartanError('ERR_IN_USE', `Cannot start switch '${id}': a process with that id runs in this cluster`);
    }
    presence.keep();
    return presence;
  }

  async release(): Promise<void> {
    this.isReleased = true;
    this.options.clock.clearTimer(this.timer);
    try {
      await this.lease?.revoke();
    } catch (error) {
      if (!isOperating(error)) throw error; // it runs out by itself
    }
  }

  private async tryTake(): Promise<boolean> {
    const { store, id, granted } = this,
      key = SWITCH_LEASES + id,
      lease = await store.grantLease(this.options.leaseMs),
      since = new Date().toISOString();
    granted.set(lease.id, lease);
    const { succeeded } = await store.transact(
      [{ key, modRevision: 0 }],
      [{ put: key, value: JSON.stringify({ id, since }), lease: lease.id }],
    );
    this.lease = succeeded ? lease : granted.get((await store.get(key))?.lease ?? '');
    for (const other of granted.values()) {
      if (other === this.lease) continue;
      await other.revoke();
      granted.delete(other.id);
    }
    return this.lease !== undefined;
  }

  private keep(): void {
    if (this.isReleased) return;
    const { clock, leaseMs } = this.options;
    this.timer = clock.setTimer(leaseMs / 3, () => {
      detach(
        this.renew().then(() => {
          this.keep();
        }),
      );
    });
  }

  private async renew(): Promise<void> {
    try {
      await this.lease?.keepAlive();
      if (this.lease !== undefined) return;
    } catch (error) {
      // The store may be away for a while; only when it says that the lease is gone is it.
      if (!isOperating(error)) throw error;
      if (codeOf(error) !== 'ERR_NOT_FOUND') return;
      this.granted.delete(this.lease!.id);
      this.lease = undefined;
    }
    try {
      if ((await this.tryTake()) || this.isReleased) return;
    } catch (error) {
      if (!isOperating(error)) throw error;
      return; // asked again at the next renewal
    }
    this.isReleased = true;
    this.options.onDisplaced();
  }
}

/** Ids of the nodes and switches whose leases stand, and since when; '': not told. */
export async function presentSince(store: ClusterStore): Promise<Map<string, string>> {
  const rows = await Promise.all([NODE_LEASES, SWITCH_LEASES].map((prefix) => store.range(prefix)));
  return new Map(
    rows.flat().map((row) => {
      const { id, since = '' } = parseJson<{ id: string; since?: string }>(row);
      return [id, since];
    }),
  );
}
