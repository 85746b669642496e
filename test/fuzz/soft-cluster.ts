/** Three nodes and a switch in one process, on soft devices and the real clock; disks and cluster store in memory. */
import { openSoftDevice, type Device } from 'tartan-rdma';
import { createCluster, readIdentity } from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { Hub } from '../../pipeline/hub.js';
import type { SessionContext } from '../../pipeline/session.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { SwitchCore } from '../../switch-agent/switch-core.js';
import { realClock } from '../../wire/clock.js';
import { connect, type Client } from '../../writer/index.js';

const HOST = '127.0.0.1';
/** Far above what a loaded machine needs: here nobody is slow on purpose. */
const DEADLINE_MS = 60_000;
const NODE_IDS = ['n1', 'n2', 'n3'];

export class SoftCluster {
  readonly store = new MemoryCluster(realClock);
  readonly nodes: StorageNode[] = [];
  readonly log: string[] = [];
  switchCore!: SwitchCore;
  clusterId = 0;
  private readonly devices: Device[] = [];

  constructor(private readonly transport: 'tcp' | 'shm') {}

  async start(): Promise<void> {
    await createCluster(this.store.client());
    this.clusterId = (await readIdentity(this.store.client())).clusterId;
    for (const id of NODE_IDS) {
      const node = new StorageNode({
        id,
        device: this.device(id),
        clock: realClock,
        clusterStore: this.store.client(),
        disk: new MemoryDisk(32 << 20),
        host: HOST,
        ringMemoryBytes: 16 << 20,
        leaseMs: DEADLINE_MS,
        log: (line) => {
          this.log.push(line);
        },
      });
      this.nodes.push(node);
      await node.start();
    }
    this.switchCore = new SwitchCore({
      context: this.context('s1'),
      store: this.store.client(),
      id: 's1',
      host: HOST,
      port: 0,
      controlPort: 0,
      ringMemoryBytes: 16 << 20,
      transport: this.transport,
      heartbeatMs: DEADLINE_MS / 10,
      deadlineMs: DEADLINE_MS,
      log: (line) => {
        this.log.push(line);
      },
    });
    await this.switchCore.start();
  }

  get targets(): { kind: 'node' | 'switch'; host: string; port: number }[] {
    return [
      ...this.nodes.map((node) => ({ kind: 'node' as const, host: HOST, port: node.port })),
      { kind: 'switch', host: HOST, port: this.switchCore.port },
      { kind: 'switch', host: HOST, port: this.switchCore.port },
    ];
  }

  context(name: string): SessionContext {
    const device = this.device(name);
    return { device, hub: new Hub(device), clock: realClock, secret: undefined, clusterId: this.clusterId };
  }

  client(): Promise<Client> {
    return connect({
      cluster: this.store.client(),
      device: this.device('client'),
      clock: realClock,
      deadlineMs: DEADLINE_MS,
      transport: this.transport,
    });
  }

  async end(): Promise<void> {
    await this.switchCore.stop();
    for (const node of this.nodes) await node.stop();
    for (const device of this.devices) await device.close();
    this.store.close();
  }

  private device(name: string): Device {
    const device = openSoftDevice({ name });
    this.devices.push(device);
    return device;
  }
}
