/**
 * The machines of a random run: storage nodes, switches and clients, each a host that can be killed and started again.
 *
 * Every life of a machine gets a store client, a device, a clock and randomness of its own. What starts a machine again
 * after a failure (an init system, in life) is the world's own event, so it survives whatever happens to the machine.
 */
import { SimWorld } from 'tartan-rdma';
import type { SimRandom } from 'tartan-rdma';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { createCluster, readIdentity } from '../../cluster/membership.js';
import { Hub } from '../../pipeline/hub.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { QUEUED, type UnitStore } from '../../storage-node/unit-store.js';
import { SwitchCore } from '../../switch-agent/switch-core.js';
import type { Clock } from '../../wire/clock.js';
import { codeOf, isOperating } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { W } from '../../wire/unit-header.js';
import type { Client } from '../../writer/client.js';
import { connect } from '../../writer/client.js';
import type { EventName } from './fault-kinds.js';
import { afterPowerLoss, attachDisk, noTrouble } from './host-disk.js';
import { wholeUnits } from './checker.js';
import { HostStore } from './host-store.js';
import { Losses } from './losses.js';
import type { Plan } from './plan.js';

const DEADLINE_MS = 150;
const DISK_BYTES = 256 << 20;
const RING_MEMORY_BYTES = 8 << 20;
const READ_MEMORY_BYTES = 5 << 20;
/** Rings as small as they may be found anywhere: writers wait for credits often. */
const MAX_SLOTS = 32;
const CLIENT_RING_BYTES = 1 << 20;
const RESTART_MS = 60;
const UUID = '00000000-0000-4000-8000-0000cafef00d';

/**
 * Looks at every unit that a node lets through its door: none may have been sent under a map older than the node's own.
 */
function watchDoor(node: StorageNode, site: Site): void {
  const { store } = node as unknown as { store: UnitStore };
  const append = store.append.bind(store);
  store.append = (client, token, words, w, headerBytes, payload, rebuilt) => {
    const mapEpoch = words[w + W.MAP_EPOCH]!;
    if (mapEpoch < node.mapEpoch)
      site.misconduct ??= `${node.id} takes a unit sent under map epoch ${mapEpoch}, it holds ${node.mapEpoch}`;
    const refusal = append(client, token, words, w, headerBytes, payload, rebuilt);
    if (refusal === QUEUED) site.unitsTaken.set(node.id, (site.unitsTaken.get(node.id) ?? 0) + 1);
    if (refusal === Refusal.NONE) site.see('late-copies');
    else if (refusal === Refusal.NAME_CONFLICT) site.see('name-conflict');
    return refusal;
  };
  const inventory = store.inventory.bind(store);
  store.inventory = (...args) => {
    site.listed.set(node.id, (site.listed.get(node.id) ?? 0) + 1);
    return inventory(...args);
  };
}

/** What all machines share. */
export class Site {
  readonly world: SimWorld;
  readonly memory: MemoryCluster;
  readonly plan: Plan;
  readonly nodes = new Map<string, NodeMachine>();
  readonly switches = new Map<string, SwitchMachine>();
  clusterId = 0;
  /** Events seen, by name. */
  readonly seen = new Map<EventName, number>();
  /** Units that each node has let through its door and into its log's next batch. */
  readonly unitsTaken = new Map<string, number>();
  /** How often each node has told what it holds of a file: to a takeover, for one. */
  readonly listed = new Map<string, number>();
  /** The first rule that somebody broke, if any. */
  misconduct: string | undefined;
  /** Hosts whose cluster store client is cut off. */
  readonly cutOff = new Set<string>();
  /** What the run destroyed. */
  readonly losses = new Losses((node, disk) => wholeUnits(node, disk, UUID, this.clusterId));
  private readonly stores = new Map<string, HostStore>();
  private readonly drifts = new Map<string, { rate: number; offset: number }>();
  private lives = 0;

  constructor(plan: Plan) {
    this.plan = plan;
    this.world = new SimWorld({ seed: plan.seed, bytesPerMs: plan.bytesPerMs });
    const latency = this.world.fork('store latency');
    this.memory = new MemoryCluster(this.clock('store'), {
      latencyMs: () => 0.001 + latency.random() * plan.storeLatencyMs,
    });
    for (const id of plan.nodes) this.nodes.set(id, new NodeMachine(this, id));
    for (const id of plan.switches) this.switches.set(id, new SwitchMachine(this, id));
  }

  see(event: EventName): void {
    this.seen.set(event, (this.seen.get(event) ?? 0) + 1);
  }

  async start(): Promise<void> {
    if (this.plan.drift > 0) this.see('clock-drift');
    const store = this.memory.client();
    await createCluster(store, { uuid: UUID });
    this.clusterId = (await readIdentity(store)).clusterId;
    for (const machine of [...this.nodes.values(), ...this.switches.values()]) {
      machine.start();
      // In the order of the plan, so that files lie where a script says they do.
      while (this.plan.script !== undefined && !machine.isUp) await this.pause(1);
    }
    while (![...this.nodes.values(), ...this.switches.values()].every((machine) => machine.isUp)) await this.pause(1);
  }

  /** Resolves after so much of the world's own time. */
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.world.schedule(ms, undefined, resolve);
    });
  }

  /** The clock of a host's present life; it drifts, and its timers die with the host. */
  clock(host: string): Clock {
    const { world } = this;
    let drift = this.drifts.get(host);
    if (drift === undefined) {
      const random = world.fork(`drift ${host}`);
      this.drifts.set(
        host,
        (drift = { rate: 1 + (random.random() * 2 - 1) * this.plan.drift, offset: random.random() * 1000 }),
      );
    }
    const { rate, offset } = drift;
    const random = world.fork(`clock ${host} ${this.lives++}`);
    return {
      now: () => world.now() * rate + offset,
      setTimer: (ms, fn) => world.setTimer(ms / rate, fn, host),
      clearTimer: (handle) => {
        world.clearTimer(handle as Parameters<SimWorld['clearTimer']>[0]);
      },
      random: () => random.random(),
    };
  }

  storeOf(host: string): HostStore {
    const store = new HostStore(this.world, host, this.memory.client());
    this.stores.set(host, store);
    if (this.cutOff.has(host)) store.inner.cutOff();
    return store;
  }

  cutOffStore(host: string): void {
    this.cutOff.add(host);
    this.stores.get(host)?.inner.cutOff();
  }

  healStore(host: string): void {
    this.cutOff.delete(host);
    this.stores.get(host)?.inner.heal();
  }

  fork(label: string): SimRandom {
    return this.world.fork(`${label} ${this.lives++}`);
  }

  /** A client on a host that must not have a process already. */
  connect(host: string): Promise<Client> {
    return connect({
      cluster: this.storeOf(host),
      device: this.world.openDevice(host),
      clock: this.clock(host),
      name: host,
      deadlineMs: DEADLINE_MS,
      holdMs: 30,
      ringMemoryBytes: CLIENT_RING_BYTES,
    });
  }
}

/** Something that runs until it is killed, and is started again when it fails. */
abstract class Machine {
  readonly id: string;
  isUp = false;
  /** Was asked to leave, and has not yet. */
  isLeaving = false;
  protected readonly site: Site;
  /** Counts lives; what belongs to an older one is ignored. */
  protected life = 0;
  private wanted = false;

  constructor(site: Site, id: string) {
    this.site = site;
    this.id = id;
  }

  start(): void {
    if (this.wanted) return;
    this.wanted = true;
    this.boot();
  }

  /** The process is gone at once. */
  kill(): void {
    this.wanted = false;
    this.end();
  }

  /** Starts anew, now or after a while. */
  restart(afterMs: number): void {
    this.end();
    const life = this.life;
    this.wanted = true;
    this.site.world.schedule(afterMs, undefined, () => {
      if (this.wanted && life === this.life) this.boot();
    });
  }

  protected boot(): void {
    const life = ++this.life;
    this.run().then(
      () => {
        if (life === this.life) this.isUp = true;
      },
      (error: unknown) => {
        if (!isOperating(error)) throw error;
        this.site.world.note(`${this.id} could not start: ${String(error)}`);
        if (life === this.life) this.couldNotStart(error);
        if (life === this.life) this.restart(RESTART_MS);
      },
    );
  }

  protected end(): void {
    this.life++;
    this.isUp = false;
    this.isLeaving = false;
    this.site.world.killHost(this.id);
    this.ended();
  }

  /** Begins a life; resolves when it serves. */
  protected abstract run(): Promise<void>;
  protected abstract ended(): void;
  protected couldNotStart(_error: unknown): void {
    /* it is tried again */
  }
  /** Ends as asked to. */
  protected abstract leave(): Promise<void> | undefined;

  /** Leaves as asked, and is started again some time after. */
  async stop(forMs: number): Promise<void> {
    const { life } = this;
    if (!this.isUp || this.isLeaving) return;
    this.isLeaving = true;
    await this.leave();
    if (life === this.life) this.restart(forMs);
  }
}

class NodeMachine extends Machine {
  disk = new MemoryDisk(DISK_BYTES);
  node: StorageNode | undefined;
  readonly trouble = noTrouble();

  /** @param unsynced  nothing that was not synced is left; without it, what chance leaves */
  powerLoss(unsynced?: 'lost'): void {
    const random = this.site.fork(`power ${this.id}`);
    const after = unsynced === 'lost' ? this.disk.crash() : afterPowerLoss(this.disk, random);
    this.kill();
    this.disk = after;
  }

  /** The process is gone, and so is its disk: a blank one is in its place. */
  loseDisk(): MemoryDisk {
    this.kill();
    return (this.disk = new MemoryDisk(DISK_BYTES));
  }

  /** A store that knows that it was damaged is replaced by a blank one, as its operator would. */
  protected override couldNotStart(error: unknown): void {
    if (codeOf(error) !== 'ERR_CHECKSUM' || !this.site.losses.nodes.has(this.id)) return;
    this.site.losses.destroyed(this.id);
    this.disk = new MemoryDisk(DISK_BYTES);
  }

  protected leave(): Promise<void> | undefined {
    return this.node?.stop();
  }

  protected async run(): Promise<void> {
    const { site, id, disk } = this;
    attachDisk(disk, site.world, id, site.fork(`disk ${id}`), this.trouble);
    const life = this.life;
    this.node = new StorageNode({
      id,
      device: site.world.openDevice(id),
      clock: site.clock(id),
      clusterStore: site.storeOf(id),
      disk,
      host: id,
      port: 7000,
      ringMemoryBytes: RING_MEMORY_BYTES,
      readMemoryBytes: READ_MEMORY_BYTES,
      maxSlots: MAX_SLOTS,
      leaseMs: 500,
      rejoinMs: 100,
      silentMs: 2000,
      log: (message) => {
        site.world.note(`${id}: ${message}`);
      },
      onDisplaced: () => {
        if (life === this.life) this.restart(RESTART_MS);
      },
    });
    await this.node.start();
    watchDoor(this.node, site);
  }

  protected ended(): void {
    this.node = undefined;
    this.disk = this.disk.restart();
  }
}

class SwitchMachine extends Machine {
  core: SwitchCore | undefined;

  protected leave(): Promise<void> | undefined {
    return this.core?.stop();
  }

  protected async run(): Promise<void> {
    const { site, id } = this;
    const device = site.world.openDevice(id),
      clock = site.clock(id);
    this.core = new SwitchCore({
      context: { device, hub: new Hub(device), clock, secret: undefined, clusterId: site.clusterId },
      store: site.storeOf(id),
      id,
      host: id,
      port: 7100,
      controlPort: 0,
      ringMemoryBytes: RING_MEMORY_BYTES,
      transport: 'auto',
      heartbeatMs: DEADLINE_MS / 10,
      deadlineMs: DEADLINE_MS,
      log: (message) => {
        site.world.note(`${id}: ${message}`);
      },
    });
    await this.core.start();
  }

  protected ended(): void {
    this.core = undefined;
  }
}
