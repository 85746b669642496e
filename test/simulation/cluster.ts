/**
 * A whole cluster in one process, in virtual time: the very writer, switch and nodes of production on the sim device,
 * memory disks, the memory cluster store and the world's clock.
 */
import type { SimWorldOptions } from 'tartan-rdma';
import { SimWorld } from 'tartan-rdma';
import { MemoryCluster } from '../../cluster/memory-store.js';
import type { MemoryClient } from '../../cluster/memory-store.js';
import { createCluster, readIdentity, readMap } from '../../cluster/membership.js';
import { SwitchPresence } from '../../cluster/presence.js';
import { Hub } from '../../pipeline/hub.js';
import { NodeSet } from '../../pipeline/node-set.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { SwitchCore } from '../../switch-agent/switch-core.js';
import type { Clock } from '../../wire/clock.js';
import type { UnitEntry } from '../../wire/generated/ring.js';
import type { Client, ConnectOptions } from '../../writer/client.js';
import { connect } from '../../writer/client.js';
import type { FileWriter } from '../../writer/file-writer.js';

export interface SimClusterOptions {
  readonly seed: number;
  readonly nodes?: number;
  /** Id of the i-th node, from 1. Default: 'n' and the number. */
  readonly idOf?: (i: number) => string;
  readonly withSwitch?: boolean;
  readonly diskBytes?: number;
  readonly network?: Omit<SimWorldOptions, 'seed'>;
  readonly ringMemoryBytes?: number;
  readonly deadlineMs?: number;
}

export interface SimNode {
  readonly id: string;
  readonly host: string;
  disk: MemoryDisk;
  node: StorageNode | undefined;
  store: MemoryClient;
  lives?: number;
}

export class SimCluster {
  readonly world: SimWorld;
  readonly memory: MemoryCluster;
  readonly nodes: SimNode[] = [];
  readonly log: string[] = [];
  switchCore: SwitchCore | undefined;
  clusterId = 0;
  private readonly options: SimClusterOptions;
  private readonly deadlineMs: number;

  constructor(options: SimClusterOptions) {
    this.options = options;
    this.deadlineMs = options.deadlineMs ?? 100;
    this.world = new SimWorld({ seed: options.seed, ...options.network });
    this.memory = new MemoryCluster(this.clock('store'));
  }

  /** A host's clock: its timers wait while the host is paused and die with it. */
  clock(host: string, life = 1): Clock {
    const { world } = this;
    const random = world.fork(life === 1 ? `clock ${host}` : `clock ${host} ${life}`);
    return {
      now: () => world.now(),
      setTimer: (ms, fn) => world.setTimer(ms, fn, host),
      clearTimer: (handle) => {
        world.clearTimer(handle as Parameters<SimWorld['clearTimer']>[0]);
      },
      random: () => random.random(),
    };
  }

  async start(): Promise<void> {
    const store = this.memory.client();
    await createCluster(store, { uuid: '00000000-0000-4000-8000-0000cafef00d' });
    this.clusterId = (await readIdentity(store)).clusterId;
    for (let i = 1; i <= (this.options.nodes ?? 3); i++) {
      this.nodes.push({
        id: this.options.idOf?.(i) ?? `n${i}`,
        host: `n${i}`,
        disk: new MemoryDisk(this.options.diskBytes ?? 8 << 20),
        node: undefined,
        store: this.memory.client(),
      });
    }
    for (const entry of this.nodes) await this.startNode(entry);
    if (this.options.withSwitch !== false) await this.startSwitch();
  }

  async startNode(entry: SimNode): Promise<void> {
    const device = this.world.openDevice(entry.host);
    entry.store = this.memory.client();
    const node = new StorageNode({
      // Another life draws other numbers: a blank disk gets another identity than the one before.
      id: entry.id,
      device,
      clock: this.clock(entry.host, (entry.lives = (entry.lives ?? 0) + 1)),
      clusterStore: entry.store,
      disk: entry.disk,
      host: entry.host,
      port: 7000,
      ringMemoryBytes: this.options.ringMemoryBytes ?? 8 << 20,
      readMemoryBytes: 4 << 20,
      log: (message) => {
        this.log.push(`${entry.id}: ${message}`);
      },
      leaseMs: 500,
      rejoinMs: 200,
    });
    entry.node = node;
    await node.start();
  }

  async startSwitch(): Promise<void> {
    const host = 's1';
    const device = this.world.openDevice(host);
    await SwitchPresence.take(this.memory.client(), 's1', { clock: this.clock(host, 2), onDisplaced: () => {} });
    this.switchCore = new SwitchCore({
      context: { device, hub: new Hub(device), clock: this.clock(host), secret: undefined, clusterId: this.clusterId },
      store: this.memory.client(),
      id: 's1',
      host,
      port: 7100,
      controlPort: 0,
      ringMemoryBytes: this.options.ringMemoryBytes ?? 8 << 20,
      transport: 'auto',
      heartbeatMs: this.deadlineMs / 10,
      deadlineMs: this.deadlineMs,
      log: (message) => {
        this.log.push(`s1: ${message}`);
      },
    });
    await this.switchCore.start();
  }

  /** All units that a node holds of a file, asked for over the ring protocol. */
  async inventory(nodeId: string, fileId: number): Promise<UnitEntry[]> {
    const host = `asks-${nodeId}`;
    const device = this.world.openDevice(host),
      store = this.memory.client();
    const set = new NodeSet(await readMap(store), {
      context: { device, hub: new Hub(device), clock: this.clock(host), secret: undefined, clusterId: this.clusterId },
      nodes: [nodeId],
      role: 'reader',
      name: host,
      fileId,
      unitBytes: 0,
      slots: 0,
      receiveSlots: 0,
      transport: 'auto',
      heartbeatMs: 10,
      deadlineMs: 100,
      owner: { locate: () => {}, onWritten: () => {}, onAnswer: () => {}, onLinkDown: () => {} },
    });
    const link = await set.connect(0, 100);
    const units: UnitEntry[] = [];
    for (let fromStripe = 0, more = true; more; ) {
      const reply = await link.request({ $case: 'inventory', value: { fileId, fromStripe, limit: 40 } });
      units.push(...reply.units);
      more = reply.more;
      fromStripe = (reply.units.at(-1)?.stripe ?? 0) + 1;
    }
    await set.destroy('done');
    return units;
  }

  client(host: string, options: Partial<ConnectOptions> = {}): Promise<Client> {
    return connect({
      cluster: this.memory.client(),
      device: this.world.openDevice(host),
      clock: this.clock(host),
      name: host,
      deadlineMs: this.deadlineMs,
      holdMs: 50,
      ringMemoryBytes: this.options.ringMemoryBytes ?? 8 << 20,
      ...options,
    });
  }
}

/** `length` bytes drawn from the world's seed. */
export function randomBytes(world: SimWorld, label: string, length: number): Buffer {
  const random = world.fork(label);
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = Math.floor(random.random() * 256);
  return bytes;
}

export type ClusterBody = (cluster: SimCluster) => Promise<void>;

/** Runs `body` on a cluster that has started, for an hour of virtual time at most. */
export async function inCluster(options: SimClusterOptions, body: ClusterBody): Promise<void> {
  const cluster = new SimCluster(options);
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      await body(cluster);
    })(),
    3_600_000,
  );
}

/** Ends a file, and waits until it is closed. */
export function end(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('close', resolve);
    writer.end();
  });
}
