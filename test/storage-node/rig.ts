/** One storage node in a simulated world, and peers that speak the ring protocol by hand, truthfully or not. */
import { Access, Flag, SimWorld, type MemoryRegion } from 'tartan-rdma';
import { createFile } from '../../cluster/files.js';
import { createCluster, registerNode, setNodeState } from '../../cluster/membership.js';
import { MemoryCluster, type MemoryClient } from '../../cluster/memory-store.js';
import type { ClusterIdentity, FileRecord } from '../../cluster/records.js';
import { makeLayout, unitOfNode } from '../../erasure/layout/index.js';
import type { MessageChannel } from '../../pipeline/channel.js';
import { Hub } from '../../pipeline/hub.js';
import { connectSession, type HelloWishes } from '../../pipeline/session.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode, type StorageNodeOptions } from '../../storage-node/node-core.js';
import type { Clock } from '../../wire/clock.js';
import type { Grant, Reply, Request } from '../../wire/generated/ring.js';
import { ACK_WORDS, MessageType, unitImm } from '../../wire/ring-messages.js';
import { PAGE_BYTES } from '../../wire/slot-layout.js';
import { MAX_HEADER_BYTES } from '../../wire/unit-header.js';
import { makeUnit, type TestUnit, type UnitSpec } from './units.js';

export const MIB = 1 << 20;

export interface Ack {
  slot: number;
  refusal: number;
  writerEpoch: number;
  counter: number;
  mapEpoch: number;
  stripe: number;
}

export class Rig {
  readonly world: SimWorld;
  readonly cluster: MemoryCluster;
  readonly metadata: MemoryClient;
  identity!: ClusterIdentity;
  file!: FileRecord;
  node!: StorageNode;
  nodeStore!: MemoryClient;
  disk = new MemoryDisk(16 * MIB);
  readonly log: string[] = [];
  private peers = 0;

  constructor(seed: number) {
    this.world = new SimWorld({ seed });
    this.cluster = new MemoryCluster(this.clock());
    this.metadata = this.cluster.client();
  }

  /** A cluster of n1 (real), n2 and n3 (names only), a file xor(2+1) over them with 4 KiB units, and n1 running. */
  static async start(seed: number, options: Partial<StorageNodeOptions> = {}, disk?: MemoryDisk): Promise<Rig> {
    const rig = new Rig(seed);
    if (disk !== undefined) rig.disk = disk;
    await rig.run(rig.prepare());
    await rig.startNode(options);
    return rig;
  }

  clock(host?: string): Clock {
    const { world } = this;
    return {
      now: () => world.now(),
      setTimer: (ms, fn) => world.setTimer(ms, fn, host),
      clearTimer: (timer) => {
        world.clearTimer(timer as Parameters<SimWorld['clearTimer']>[0]);
      },
      random: () => world.random(),
    };
  }

  run<T>(promise: Promise<T>, maxMs = 60_000): Promise<T> {
    return this.world.complete(promise, maxMs);
  }
  /** Lets virtual time pass. */
  async pass(ms: number): Promise<void> {
    await this.world.run(() => false, ms);
  }

  private async prepare(): Promise<void> {
    this.identity = await createCluster(this.metadata, { uuid: '11111111-2222-3333-4444-5555c0ffee00' });
    for (const id of ['n1', 'n2', 'n3']) await registerNode(this.metadata, { id, host: id, port: 1, controlPort: 0 });
    await setNodeState(this.metadata, 'n2', 'up');
    this.file = await createFile(this.metadata, {
      name: 'a',
      code: 'xor(2+1)',
      unitBytes: 4096,
      nodes: ['n1', 'n2', 'n3'],
      modified: '2030-01-01T00:00:00.000Z',
    });
  }

  async startNode(options: Partial<StorageNodeOptions> = {}): Promise<void> {
    this.nodeStore = this.cluster.client();
    this.node = new StorageNode({
      id: 'n1',
      device: this.world.openDevice('n1'),
      clock: this.clock('n1'),
      clusterStore: this.nodeStore,
      disk: this.disk,
      host: 'n1',
      ringMemoryBytes: 16 * MIB,
      readMemoryBytes: 5 * MIB,
      log: (message) => {
        this.log.push(message);
      },
      ...options,
    });
    await this.run(this.node.start());
  }

  /** A unit of the file that belongs to n1, under the node's map unless told otherwise. */
  unit(spec: UnitSpec = {}): TestUnit {
    const stripe = spec.stripe ?? 0;
    const unit = unitOfNode(makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: 4096 }), stripe, 0);
    return makeUnit({
      fileId: this.file.id,
      unit,
      mapEpoch: this.node.mapEpoch,
      clusterId: this.identity.clusterId,
      ...spec,
    });
  }

  /** @param wishes role, unitBytes, slots … */
  async peer(wishes: Partial<HelloWishes> = {}, options: { secret?: string; clusterId?: number } = {}): Promise<Peer> {
    const name = `w${++this.peers}`;
    const device = this.world.openDevice(name);
    const context = {
      device,
      hub: new Hub(device),
      clock: this.clock(name),
      secret: options.secret,
      clusterId: options.clusterId ?? this.identity.clusterId,
    };
    const { channel, grant } = await this.run(
      connectSession(context, 'n1', this.node.port, { role: 'writer', name, unitBytes: 4096, slots: 8, ...wishes }),
    );
    return new Peer(
      this,
      channel,
      grant,
      device.allocate(Math.max(1, grant.slots) * Math.max(grant.slotBytes, 8192)),
      device.allocate(2 * MIB, Access.REMOTE_WRITE),
      name,
    );
  }
}

export interface ReadWish {
  fileId: number;
  stripe: number;
  unit: number;
  epoch?: number;
  counter?: number;
  exact?: boolean;
  capacity?: number;
  length?: number;
}

class Peer {
  readonly acks: Ack[] = [];
  closed: string | undefined;
  /** Receives on reads: request id → refusal, or 0. */
  readonly reads = new Map<number, number>();
  private readonly replies = new Map<number, (reply: Reply) => void>();
  private nextId = 1;

  constructor(
    private readonly rig: Rig,
    readonly channel: MessageChannel,
    readonly grant: Grant,
    readonly source: MemoryRegion,
    readonly target: MemoryRegion,
    readonly name: string,
  ) {
    channel.onRecords = (type, words, w, count) => {
      for (let i = 0; i < count; i++) {
        if (type === MessageType.ACK) {
          const at = w + i * ACK_WORDS;
          this.acks.push({
            slot: words[at]! & 0xffff,
            refusal: words[at]! >>> 16,
            writerEpoch: words[at + 1]!,
            counter: words[at + 2]!,
            mapEpoch: words[at + 3]!,
            stripe: words[at + 4]!,
          });
        } else if (type === MessageType.READ_FAILED) this.reads.set(words[w + i * 4]!, words[w + i * 4 + 1]!);
      }
    };
    channel.onWrite = (imm) => {
      this.reads.set(imm, 0);
    };
    channel.onControl = (message) => {
      if (message.kind?.$case === 'reply') this.replies.get(message.kind.value.id)?.(message.kind.value);
    };
    channel.onClosed = (reason) => {
      this.closed = reason;
      void channel.destroy(reason);
    };
  }

  /** Posts a unit into a slot of the node's ring, without waiting. `imm` and `offset` may lie. */
  post(slot: number, unit: TestUnit, lies: { imm?: number; offset?: number; rkey?: number } = {}): void {
    const at = (slot % Math.max(1, this.grant.slots)) * this.grant.slotBytes + PAGE_BYTES - unit.headerBytes;
    new Uint8Array(this.source.buffer, at, unit.headerBytes).set(
      new Uint8Array(unit.words.buffer, 0, unit.headerBytes),
    );
    new Uint8Array(this.source.buffer, at + unit.headerBytes, unit.payload.length).set(unit.payload);
    this.channel.qp.postWriteWithImm(
      slot,
      this.source,
      at,
      unit.headerBytes + unit.payload.length,
      lies.rkey ?? this.grant.rkey,
      lies.offset ?? slot * this.grant.slotBytes + PAGE_BYTES - unit.headerBytes,
      lies.imm ?? unitImm(slot, unit.headerBytes),
      Flag.SIGNALED,
    );
    this.channel.hub.wake();
  }

  /** Sends a unit and waits for its acknowledgement. */
  async send(unit: TestUnit, slot = 0): Promise<Ack> {
    const before = this.acks.length;
    this.post(slot, unit);
    await this.until(() => this.acks.length > before);
    return this.acks[before]!;
  }

  async until(condition: () => boolean, maxMs = 20_000): Promise<void> {
    if (!(await this.rig.world.run(condition, maxMs))) throw new Error(`nothing came within ${maxMs} virtual ms`);
  }

  request(op: NonNullable<Request['op']>): Promise<Reply> {
    return this.rig.run(this.requestSoon(op));
  }

  /** As request(), without driving the world. */
  requestSoon(op: NonNullable<Request['op']>): Promise<Reply> {
    const id = this.nextId++;
    const reply = new Promise<Reply>((resolve) => {
      this.replies.set(id, resolve);
    });
    this.channel.sendControl({ kind: { $case: 'request', value: { id, op } } });
    return reply;
  }

  /** Asks for a unit: header at 4096 - 256, payload at 4096 of the target. @returns the request's id */
  ask(wish: ReadWish): number {
    const id = this.nextId++;
    const queue = this.channel.records(MessageType.READ),
      w = queue.push(),
      words = queue.words;
    const epoch = wish.epoch ?? 0xffffffff,
      counter = wish.counter ?? 0xffffffff;
    words.set(
      [
        id,
        wish.fileId,
        0,
        wish.stripe,
        0,
        wish.unit,
        epoch,
        counter,
        this.target.rkey,
        PAGE_BYTES,
        wish.capacity ?? MIB,
        PAGE_BYTES - 256,
        ...(wish.exact === true ? [epoch, counter] : [0, 0]),
      ],
      w,
    );
    this.channel.touch();
    return id;
  }

  /** As ask(), and waits. @returns refusal, and header and payload when it is 0 */
  async read(wish: ReadWish): Promise<{ refusal: number; payload: Uint8Array; header: Uint32Array }> {
    const id = this.ask(wish);
    await this.until(() => this.reads.has(id));
    return {
      refusal: this.reads.get(id)!,
      payload: new Uint8Array(this.target.buffer, PAGE_BYTES, wish.length ?? 4096).slice(),
      header: new Uint32Array(this.target.buffer.slice(PAGE_BYTES - 256, PAGE_BYTES - 256 + MAX_HEADER_BYTES)),
    };
  }
}
