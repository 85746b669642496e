/**
 * Nodes that take packets and a writer that sends them, in one process, on real sockets and the real clock. Packets are
 * lost and overtake each other on arrival, drawn from a seed.
 */
import { openSoftDevice, type Device } from 'tartan-rdma';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { createCluster } from '../../cluster/membership.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { realClock } from '../../wire/clock.js';
import { connect, type Client, type ConnectOptions, type FileWriter } from '../../writer/index.js';

export interface Losses {
  readonly seed: number;
  readonly lossPerMille: number;
  readonly reorderPerMille: number;
}

export class PacketCluster {
  readonly store = new MemoryCluster(realClock);
  readonly nodes: { readonly id: string; readonly device: Device; disk: MemoryDisk; node: StorageNode | undefined }[] =
    [];
  private readonly devices: Device[] = [];
  private salt = 0;

  constructor(private readonly losses: Losses | undefined) {}

  async start(nodes: number): Promise<void> {
    await createCluster(this.store.client());
    for (let i = 0; i < nodes; i++) {
      this.nodes.push({ id: `n${i + 1}`, device: this.device(), disk: new MemoryDisk(64 << 20), node: undefined });
      await this.startNode(i);
    }
  }

  async startNode(index: number): Promise<void> {
    const entry = this.nodes[index]!;
    const node = new StorageNode({
      id: entry.id,
      device: entry.device,
      clock: realClock,
      clusterStore: this.store.client(),
      disk: entry.disk,
      host: '127.0.0.1',
      packetPort: 0,
      leaseMs: 2000,
      rejoinMs: 200,
    });
    await node.start();
    entry.node = node;
  }

  /** As a process that is killed: what its disk has not synced may be gone. */
  async stopNode(index: number): Promise<void> {
    const entry = this.nodes[index]!;
    await entry.node!.stop();
    entry.node = undefined;
    entry.disk = entry.disk.crash(() => true);
  }

  client(options: Partial<ConnectOptions> = {}): Promise<Client> {
    return connect({
      cluster: this.store.client(),
      device: this.device(),
      clock: realClock,
      deadlineMs: 2000,
      dataPath: 'packets',
      transport: 'tcp',
      ...options,
    });
  }

  async end(): Promise<void> {
    for (const { node } of this.nodes) await node?.stop();
    for (const device of this.devices) await device.close();
    this.store.close();
  }

  private device(): Device {
    const device = openSoftDevice();
    const open = device.openPacketSocket!.bind(device),
      losses = this.losses;
    if (losses !== undefined)
      device.openPacketSocket = (host, port) =>
        open(host, port, { impairment: { ...losses, seed: (losses.seed + 7919 * ++this.salt) % 2 ** 31 || 1 } });
    this.devices.push(device);
    return device;
  }
}

export const finish = (writer: FileWriter): Promise<void> =>
  new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('close', resolve);
    writer.end();
  });
