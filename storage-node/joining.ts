/**
 * A node's place in the cluster: presence under a lease, an entry in the map, and the way to 'up'.
 *
 *     present (lease) ─▶ registered ─▶ map read, open files' writer epochs adopted ─▶ marked up ─▶ both read again ─▶
 *     serving
 *                                              ▲                                                                     │
 *                                              └──────────── found itself marked down ◀──────────────────────────────┘
 *
 * Why twice: a takeover that began while the map still called this node down fences the others only. Once the map calls
 * it up, every later takeover fences it too; so the epochs read after that are at least what was missed.
 */
import type { ClusterStore, Lease } from '../cluster/cluster-store.js';
import { listOpen } from '../cluster/file-states.js';
import { nodeLeaseKey } from '../cluster/keys.js';
import { readMap, registerNode, setNodeState } from '../cluster/membership.js';
import { sleep, type Clock, type TimerHandle } from '../wire/clock.js';
import { inTurns } from '../wire/turns.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { PacketAddress } from '../cluster/records.js';
import type { MapKeeper } from './map-keeper.js';
import type { UnitStore } from './unit-store.js';
import { detach } from '../wire/front-door.js';

export interface JoiningOptions {
  readonly clusterStore: ClusterStore;
  readonly clock: Clock;
  readonly id: string;
  readonly maps: MapKeeper;
  readonly log: (message: string) => void;
  /** The date, for those who ask since when this node runs. */
  readonly nowMs?: number | undefined;
  /** Presence: time to live without renewal. Default 5000. */
  readonly leaseMs?: number;
  /** A node marked down by others waits so long before it marks itself up again. Default 1000. */
  readonly rejoinMs?: number;
  /** Another process has taken this node's id, while this one was stopped or cut off: it must not go on. */
  readonly onDisplaced: () => void;
}

const LEASE_MS = 5000;
const REJOIN_MS = 1000;
const POLL_MS = 100;
const MOST_BACKOFF_MS = 60_000;
/** A few milliseconds' worth. */
const FENCES_A_TURN = 2000;

export class Joining {
  private lease: Lease | undefined;
  /**
   * Granted to this process, with an unknown fate: a transaction that was never answered may have put the key under
   * one.
   */
  private readonly granted = new Map<string, Lease>();
  private readonly timers = new Set<TimerHandle>();
  private store: UnitStore | undefined;
  /** On the way to 'up', or about to be. */
  private rejoining = true;
  private stopped = false;
  private retired = false;
  /** Times in a row that the disk could not be written, or still can't; and when it came back the last time. */
  private troubles = 0;
  private recoveredAt = -Infinity;

  constructor(private readonly options: JoiningOptions) {}

  /**
   * Says that this node runs. A predecessor that died lets go of its lease soon; one that lives doesn't.
   *
   * @throws {TartanError} ERR_IN_USE when a process with this id runs; ERR_MAP_UNAVAILABLE
   */
  async appear(): Promise<void> {
    const { clock, id } = this.options;
    const leaseMs = this.options.leaseMs ?? LEASE_MS;
    const deadline = clock.now() + 2 * leaseMs;
    while (!(await this.tryAppear(leaseMs))) {
      if (clock.now() >= deadline)
        throw new TartanError('ERR_IN_USE', `Cannot start node '${id}': a process with that id runs in this cluster`);
      await sleep(clock, POLL_MS);
    }
    this.every(leaseMs / 3, () => this.renew(leaseMs));
  }

  /**
   * Registers the address, adopts map and writer epochs, and marks the node up.
   * @throws {TartanError} ERR_MAP_UNAVAILABLE, ERR_ARGUMENT
   */
  async join(
    store: UnitStore,
    host: string,
    port: number,
    controlPort: number,
    packets?: PacketAddress,
  ): Promise<void> {
    const { clusterStore, id, maps } = this.options;
    this.store = store;
    maps.adopt(
      await registerNode(clusterStore, {
        id,
        host,
        port,
        controlPort,
        store: store.superblock.storeUuid,
        ...(packets !== undefined && { packets }),
      }),
    );
    await this.comeUp();
    await this.joined();
  }

  /** It is up. What has happened on the way is looked at now. */
  private async joined(): Promise<void> {
    this.rejoining = false;
    if (this.store!.ailing && !this.retired && !this.stopped) {
      this.rejoining = true;
      await this.goDown();
      this.later(this.backoffMs, () => this.rejoin());
    } else if (this.retired) await this.goDown();
    else this.onMap();
  }

  /** A newer map: if it calls this node down, it comes up again after a while. */
  onMap(): void {
    const { maps, id, log } = this.options;
    if (
      this.stopped ||
      this.retired ||
      this.rejoining ||
      maps.map.nodes.find((node) => node.id === id)?.state !== 'down'
    )
      return;
    this.rejoining = true;
    log(`node ${id} was marked down in map epoch ${maps.epoch}; it adopts what it missed and comes up again`);
    this.later(this.options.rejoinMs ?? REJOIN_MS, () => this.rejoin());
  }

  /** The disk takes no more writes: marks the node down, and it does not come up again in this life. */
  async retire(why: string): Promise<void> {
    if (this.retired) return;
    this.retired = true;
    this.options.log(
      `node ${this.options.id}: the disk takes no more writes; the node goes down and serves what it holds: ${why}`,
    );
    await this.goDown();
  }

  /**
   * The disk could be written nowhere: marks the node down, and up again when a probe of the disk has succeeded. Each
   * time sooner than ten waits after the last, it waits twice as long: a node that comes and goes costs every writer
   * more than one that is gone.
   */
  async withdraw(why: string): Promise<void> {
    if (this.stopped || this.retired) return;
    const { clock, id, log } = this.options;
    if (clock.now() - this.recoveredAt > 10 * this.backoffMs) this.troubles = 0;
    this.troubles++;
    log(`node ${id}: the disk can't be written; the node goes down, and tries it in ${this.backoffMs} ms: ${why}`);
    // Already on its way to 'up': it finds the trouble at the end.
    if (this.rejoining) return;
    this.rejoining = true;
    await this.goDown();
    this.later(this.backoffMs, () => this.rejoin());
  }

  private get backoffMs(): number {
    const first = this.options.rejoinMs ?? REJOIN_MS;
    return Math.min(Math.max(MOST_BACKOFF_MS, first), first * 2 ** Math.min(this.troubles, 20));
  }

  private async goDown(): Promise<void> {
    const { clusterStore, id, maps, log } = this.options;
    try {
      maps.adopt(await setNodeState(clusterStore, id, 'down'));
    } catch (error) {
      if (!isOperating(error)) throw error;
      // Its refusals say as much to every writer, and they will propose it down.
      log(`node ${id} cannot be marked down: ${error.message}`);
    }
  }

  /** Marks the node down, for others need not find out by a deadline, and lets go of the lease. Never throws. */
  async leave(): Promise<void> {
    this.stopped = true;
    for (const timer of this.timers) this.options.clock.clearTimer(timer);
    this.timers.clear();
    // Without the lease the id is somebody else's, and so is the entry in the map.
    if (this.lease === undefined) return;
    try {
      await setNodeState(this.options.clusterStore, this.options.id, 'down');
      await this.lease?.revoke();
    } catch (error) {
      this.options.log(`node ${this.options.id} leaves without a word: ${String(error)}`);
    }
  }

  private async comeUp(): Promise<void> {
    const { clusterStore, id, maps } = this.options;
    await this.adoptEpochs();
    maps.adopt(await setNodeState(clusterStore, id, 'up'));
    await this.adoptEpochs();
    maps.adopt(await readMap(clusterStore));
  }

  /**
   * Of the open files alone: where a file was closed, whoever sends units of it, of whatever epoch, makes this node
   * read its record first (Placements), and adopt that epoch.
   */
  private async adoptEpochs(): Promise<void> {
    const open = await listOpen(this.options.clusterStore);
    await inTurns(this.options.clock, open, FENCES_A_TURN, ({ id, writerEpoch }) => {
      this.store!.adoptFence(id, writerEpoch);
    });
  }

  private async rejoin(): Promise<void> {
    if (this.stopped || this.retired) return;
    try {
      if (this.store!.ailing) {
        if (!(await this.store!.probe())) {
          this.troubles++;
          this.later(this.backoffMs, () => this.rejoin());
          return;
        }
        this.recoveredAt = this.options.clock.now();
        this.options.log(`node ${this.options.id}: the disk can be written again`);
      }
      if (this.stopped || this.retired) return;
      await this.comeUp();
      await this.joined();
    } catch (error) {
      if (!isOperating(error)) throw error;
      this.later(this.options.rejoinMs ?? REJOIN_MS, () => this.rejoin());
    }
  }

  private async tryAppear(leaseMs: number): Promise<boolean> {
    const { clusterStore, id } = this.options;
    const lease = await clusterStore.grantLease(leaseMs);
    this.granted.set(lease.id, lease);
    const { nowMs } = this.options,
      since = nowMs === undefined ? {} : { since: new Date(nowMs).toISOString() };
    const { succeeded } = await clusterStore.transact(
      [{ key: nodeLeaseKey(id), modRevision: 0 }],
      [{ put: nodeLeaseKey(id), value: JSON.stringify({ id, ...since }), lease: lease.id }],
    );
    this.lease = succeeded ? lease : this.granted.get((await clusterStore.get(nodeLeaseKey(id)))?.lease ?? '');
    for (const other of this.granted.values()) {
      if (other === this.lease) continue;
      await other.revoke();
      this.granted.delete(other.id);
    }
    return this.lease !== undefined;
  }

  private async renew(leaseMs: number): Promise<void> {
    try {
      await this.lease?.keepAlive();
    } catch (error) {
      // The store may be away for a while; only when it says that the lease is gone is it.
      if (codeOf(error) !== 'ERR_NOT_FOUND') return;
      this.granted.delete(this.lease!.id);
      this.lease = undefined;
    }
    if (this.lease !== undefined || this.stopped) return;
    // A store that goes away in between is asked again at the next renewal.
    const taken = await this.tryAppear(leaseMs).then(
      (appeared) => !appeared,
      () => false,
    );
    if (taken && !this.stopped) this.options.onDisplaced();
  }

  private every(ms: number, run: () => Promise<void>): void {
    this.later(ms, async () => {
      await run();
      if (!this.stopped) this.every(ms, run);
    });
  }

  private later(ms: number, run: () => Promise<void>): void {
    const timer = this.options.clock.setTimer(ms, () => {
      this.timers.delete(timer);
      detach(run());
    });
    this.timers.add(timer);
  }
}
