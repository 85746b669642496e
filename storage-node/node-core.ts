/**
 * A storage node: connections, their rings, the unit store behind them. Device, clock, cluster store and disk are
 * passed in, so that the same node runs in the simulation.
 *
 *     peer ══ring══▶ UnitRing ─▶ UnitStore ─▶ Disk          requests ─▶ answerRequest
 *     peer ◀═reads══ ReadServer ◀── UnitStore                map, lease ─▶ Joining, MapKeeper
 *
 * Nothing is served before the node holds the map and the open files' writer epochs. Ring memory is bounded by one
 * budget.
 */
import {
  Opcode,
  RdmaError,
  type Coder,
  type CodingQueue,
  type Device,
  type Listener,
  type PacketCounters,
  type PacketSocket,
  type QueuePair,
} from 'tartan-rdma';
import { readFile } from '../cluster/files.js';
import { readIdentity } from '../cluster/membership.js';
import type { ClusterMap } from '../cluster/records.js';
import type { MessageChannel } from '../pipeline/channel.js';
import { Hub } from '../pipeline/hub.js';
import { RingMemory } from '../pipeline/ring-memory.js';
import { acceptSession, answerProbe } from '../pipeline/session.js';
import type { TimerHandle } from '../wire/clock.js';
import { TartanError, isOperating } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import type { Control, Grant, Hello, Request } from '../wire/generated/ring.js';
import { MessageType, READ_WORDS } from '../wire/ring-messages.js';
import { digestLayout } from '../wire/unit-header.js';
import { deviceMemory } from './device-memory.js';
import { Joining } from './joining.js';
import { MapKeeper } from './map-keeper.js';
import type { NodeCounters, StorageNodeOptions } from './node-options.js';
import { Placements } from './placements.js';
import { ReadServer, type Reader } from './read-server.js';
import { answerRequest } from './requests.js';
import { RingGrants } from './ring-grants.js';
import { Scrubber } from './scrubber.js';
import type { UnitRing, RingHost } from './unit-ring.js';
import { UnitStore, type StoreStats } from './unit-store.js';

export type { NodeCounters, StorageNodeOptions } from './node-options.js';

export const NODE_PROGRAM = { name: 'node', version: '1' } as const;
const RING_MEMORY_BYTES = 256 << 20;
const READ_MEMORY_BYTES = 32 << 20;
const MAX_SLOTS = 256;
const SILENT_MS = 60_000;
const MAX_REQUESTS = 64;
/** VERIFY work request ids: ring id << 16 | slot, or this bit and a read slot. */
const READ_VERIFY = 0x8000_0000;

interface Connection extends Reader {
  /** Of a reader: the file that it reads; 0: none. */
  readonly readsFile: number;
  ring: UnitRing | undefined;
  requests: number;
  heardAt: number;
  name: string;
  ended: boolean;
}

export class StorageNode {
  readonly id: string;
  /** Removed files whose units are still read. */
  private readonly deferred = new Set<number>();
  readonly counters: NodeCounters = {
    unitsReceived: 0,
    bytesReceived: 0,
    unitsRefused: 0,
    unitsAcknowledged: 0,
    unitsRead: 0,
    bytesRead: 0,
    readsFailed: 0,
    checksumFailures: 0,
    protocolErrors: 0,
    requests: 0,
    connections: 0,
  };
  readonly memory: RingMemory;
  /** The port listened on, once started. */
  port = 0;
  private readonly hub: Hub;
  private readonly maxSlots: number;
  private readonly log: (message: string) => void;
  private readonly maps: MapKeeper;
  private readonly connections = new Set<Connection>();
  private readonly ending = new Set<Promise<void>>();
  private coding!: CodingQueue;
  private coder!: Coder;
  private store!: UnitStore;
  private placements!: Placements;
  private reads!: ReadServer;
  private scrubber!: Scrubber;
  private grants!: RingGrants;
  private joining: Joining | undefined;
  private listener: Listener | undefined;
  private packetSocket: PacketSocket | undefined;
  private silenceTimer: TimerHandle | undefined;
  private serving!: Promise<void>;
  private stopping: Promise<void> | undefined;

  constructor(private readonly options: StorageNodeOptions) {
    this.id = options.id;
    this.hub = options.hub ?? new Hub(options.device);
    this.maxSlots = options.maxSlots ?? MAX_SLOTS;
    this.log = options.log ?? (() => undefined);
    this.memory = new RingMemory(options.ringMemoryBytes ?? RING_MEMORY_BYTES);
    this.maps = new MapKeeper(options.clusterStore, (map) => {
      this.adopted(map);
    });
  }

  /**
   * Opens the store, joins the cluster and serves. When it rejects, nothing is left running; the disk is closed.
   *
   * @throws {TartanError} ERR_FOREIGN_STORE, ERR_STORE_VERSION, ERR_DISK, ERR_IN_USE, ERR_LISTEN, ERR_MAP_UNAVAILABLE,
   *         ERR_NOT_FOUND
   */
  async start(): Promise<void> {
    let served = (): void => undefined,
      failed: (error: unknown) => void = () => undefined;
    this.serving = new Promise<void>((resolve, reject) => {
      served = resolve;
      failed = reject;
    });
    this.serving.catch(() => undefined); // also told to whoever called start()
    try {
      await this.open();
      served();
    } catch (error) {
      failed(error);
      await this.stop();
      throw error;
    }
  }

  /** Leaves the cluster, writes what is queued, closes everything but the device. Idempotent. */
  stop(): Promise<void> {
    return (this.stopping ??= this.close());
  }

  get mapEpoch(): number {
    return this.maps.epoch;
  }
  get map(): ClusterMap {
    return this.maps.map;
  }
  /** As the map held here says. */
  get state(): 'up' | 'down' {
    return this.maps.map.nodes.find((node) => node.id === this.id)?.state ?? 'down';
  }
  storeStats(): StoreStats {
    return this.store.stats();
  }
  get connectionCount(): number {
    return this.connections.size;
  }
  /** Undefined when it takes no packets. */
  packetCounters(): PacketCounters | undefined {
    return this.packetSocket?.counters();
  }

  private async open(): Promise<void> {
    const { id, device, clock, clusterStore, disk, host, durability, nowMs } = this.options;
    const identity = await readIdentity(clusterStore);
    this.joining = new Joining({
      clusterStore,
      clock,
      id,
      maps: this.maps,
      log: this.log,
      nowMs,
      onDisplaced: () => {
        this.displaced();
      },
      ...(this.options.leaseMs !== undefined && { leaseMs: this.options.leaseMs }),
      ...(this.options.rejoinMs !== undefined && { rejoinMs: this.options.rejoinMs }),
    });
    // Before the disk is touched: two processes on one store would destroy it.
    await this.joining.appear();
    this.store = await UnitStore.open({
      disk,
      clusterUuid: identity.uuid,
      clusterId: identity.clusterId,
      nodeId: id,
      random: () => clock.random(),
      allocate: (bytes) => deviceMemory(device, bytes),
      clock,
      ...(this.options.diskDeadlineMs !== undefined && { diskDeadlineMs: this.options.diskDeadlineMs }),
      ...(durability !== undefined && { durability }),
      ...(nowMs !== undefined && { nowMs }),
    });
    this.store.onTrouble = (why) => {
      detach(this.store.failed ? this.joining?.retire(why) : this.joining?.withdraw(why));
    };
    const { recovery } = this.store;
    if (recovery.torn > 0 || recovery.badHeaders > 0)
      this.log(
        `node ${id}: ${recovery.torn} torn units dropped at the log's end, ${recovery.badHeaders} unit headers damaged`,
      );
    this.placements = new Placements(clusterStore, id, (record) => {
      this.store.adoptFence(record.id, record.writerEpoch);
    });
    this.coder = device.createCoder({
      k: 1,
      inputUnits: [0],
      outputUnits: [],
      matrix: new Uint8Array(0),
      digest: digestLayout,
    });
    this.coding = device.createCodingQueue((opcode, status, wrId) => {
      if (opcode === Opcode.VERIFY) this.verified(wrId, status);
    });
    const readBytes = this.options.readMemoryBytes ?? Math.min(READ_MEMORY_BYTES, this.memory.limit / 4);
    const onDamage = (fileId: number, stripe: number, unit: number): void => {
      this.log(`node ${id}: unit ${unit} of stripe ${stripe} of file ${fileId} fails its checksum on disk`);
    };
    this.reads = new ReadServer(
      this.store,
      device,
      this.coding,
      this.coder,
      this.memory,
      this.counters,
      readBytes,
      READ_VERIFY,
      onDamage,
    );
    this.scrubber = new Scrubber(this.store, device, this.coder, this.memory, onDamage);
    const ringHost: RingHost = {
      clusterId: identity.clusterId,
      store: this.store,
      maps: this.maps,
      placements: this.placements,
      counters: this.counters,
      verify: (ring, slot, headerOffset, headerBytes, payloadOffset, payloadBytes) => {
        this.coding.postVerify(
          ((ring.id << 16) | slot) >>> 0,
          this.coder,
          ring.region,
          headerOffset,
          headerBytes,
          payloadOffset,
          payloadBytes,
        );
        this.hub.wake();
      },
      violation: (channel, reason) => {
        this.violation(channel, reason);
      },
    };
    const { secret } = this.options;
    this.packetSocket = await this.openPackets();
    this.grants = new RingGrants(id, device, this.memory, this.maxSlots, ringHost, this.packetSocket);
    const context = { device, hub: this.hub, clock, secret, clusterId: identity.clusterId, log: this.log };
    this.listener = await listen(device, host, this.options.port ?? 0, (qp) => {
      acceptSession(context, qp, this.maxSlots, (hello, channel) => this.decide(hello, channel));
    });
    this.port = this.listener.port;
    await this.joining.join(
      this.store,
      host,
      this.port,
      this.options.controlPort ?? 0,
      this.packetSocket && { host: this.packetSocket.address, port: this.packetSocket.port },
    );
    this.maps.watch();
    this.dropSilent();
  }

  private async openPackets(): Promise<PacketSocket | undefined> {
    const { device, host, packetPort } = this.options;
    if (packetPort === undefined) return undefined;
    if (device.openPacketSocket === undefined)
      throw new TartanError(
        'ERR_DEVICE_KIND',
        `Cannot take packets on node ${this.id}: a ${device.kind} device has no packet sockets, a soft one has`,
      );
    try {
      return await device.openPacketSocket(host, packetPort);
    } catch (cause) {
      throw cause instanceof RdmaError ? new TartanError('ERR_LISTEN', cause.message, { cause }) : cause;
    }
  }

  private displaced(): void {
    this.log(`node ${this.id}: another process has taken this id; this one stops`);
    detach(
      this.stop().then(() => {
        this.options.onDisplaced?.();
      }),
    );
  }

  private async close(): Promise<void> {
    await this.joining?.leave();
    this.maps.close();
    if (this.silenceTimer !== undefined) this.options.clock.clearTimer(this.silenceTimer);
    await this.listener?.close();
    for (const connection of [...this.connections]) this.end(connection, 'the node is stopping');
    await Promise.all(this.ending);
    await this.packetSocket?.close();
    await this.reads?.stop();
    await this.scrubber?.stop();
    await this.coding?.destroy();
    this.coder?.destroy();
    await (this.store === undefined ? this.options.disk.close() : this.store.close());
  }

  // ---- connections

  private async decide(hello: Hello, channel: MessageChannel): Promise<Grant> {
    await this.serving.catch((cause: unknown) => {
      throw new TartanError('ERR_CLOSED', `Cannot serve '${hello.name}': node ${this.id} could not start`, { cause });
    });
    if (this.stopping !== undefined)
      throw new TartanError('ERR_CLOSED', `Cannot serve '${hello.name}': node ${this.id} is stopping`);
    const connection: Connection = {
      channel,
      ring: undefined,
      reads: 0,
      readSlots: 0,
      requests: 0,
      heardAt: this.options.clock.now(),
      name: hello.name,
      readsFile: hello.role === 'reader' ? hello.fileId : 0,
      ended: false,
    };
    const rebuilds = hello.role === 'rebuilder' ? await readFile(this.options.clusterStore, hello.fileId) : undefined;
    const peerAddress = this.grants.packetPeer(hello, channel);
    const ring = hello.unitBytes > 0 ? this.grants.grant(channel, hello, rebuilds) : undefined;
    connection.ring = ring;
    const granted = { rkey: ring?.region.rkey ?? 0, slots: ring?.slots ?? 0, slotBytes: ring?.slotBytes ?? 0 };
    let packets: Partial<Grant> = {};
    try {
      if (peerAddress !== undefined && ring !== undefined) packets = this.grants.takePackets(ring, hello, peerAddress);
    } catch (error) {
      await this.grants.takeBack(ring!, ring!.close());
      throw error;
    }
    this.connections.add(connection);
    this.counters.connections++;
    channel.mapEpoch = this.maps.epoch;
    channel.onControl = (message, mapEpoch) => {
      this.control(connection, message, mapEpoch);
    };
    channel.onRecords = (type, words, w, count, mapEpoch) => {
      this.records(connection, type, words, w, count, mapEpoch);
    };
    channel.onWrite = (imm, byteLength) => {
      connection.heardAt = this.options.clock.now();
      if (connection.ring === undefined) this.violation(channel, 'a write with immediate without a ring');
      else connection.ring.arrive(imm, byteLength);
    };
    channel.onWritten = (wrId) => {
      this.reads.written(wrId);
    };
    channel.onClosed = (reason) => {
      this.end(connection, reason);
    };
    if (channel.closed) this.end(connection, 'closed during the handshake');
    return { name: this.id, ...granted, ...packets, mapEpoch: this.maps.epoch, state: '' };
  }

  private control(connection: Connection, message: Control, mapEpoch: number): void {
    connection.heardAt = this.options.clock.now();
    const kind = message.kind;
    if (kind?.$case === 'probe') {
      answerProbe(connection.channel, kind.value.id, NODE_PROGRAM);
      return;
    }
    if (kind?.$case !== 'request') {
      this.violation(connection.channel, `an unexpected ${kind?.$case ?? 'empty'} message`);
      return;
    }
    if (connection.requests >= MAX_REQUESTS) {
      this.violation(connection.channel, `more than ${MAX_REQUESTS} requests at once`);
      return;
    }
    detach(this.serve(connection, kind.value, mapEpoch));
  }

  private async serve(connection: Connection, request: Request, mapEpoch: number): Promise<void> {
    connection.requests++;
    this.counters.requests++;
    const reply = await answerRequest(
      {
        store: this.store,
        maps: this.maps,
        placements: this.placements,
        scrubber: this.scrubber,
        id: this.id,
        log: this.log,
        deleteFile: (fileId) => this.deleteFile(fileId, connection),
      },
      request,
      mapEpoch,
    );
    connection.requests--;
    connection.channel.sendControl({ kind: { $case: 'reply', value: reply } });
  }

  private records(
    connection: Connection,
    type: number,
    words: Uint32Array,
    w: number,
    count: number,
    mapEpoch: number,
  ): void {
    connection.heardAt = this.options.clock.now();
    if (type !== MessageType.READ) {
      this.violation(connection.channel, `an unexpected message of type ${type}`);
      return;
    }
    for (let i = 0; i < count; i++) {
      if (!this.reads.request(connection, words, w + i * READ_WORDS, mapEpoch < this.maps.epoch)) {
        this.violation(connection.channel, 'more reads at once than a connection may have');
        return;
      }
    }
  }

  private verified(wrId: number, status: number): void {
    if (wrId >= READ_VERIFY) this.reads.verified(wrId - READ_VERIFY, status);
    else this.grants.ring(wrId >>> 16).verified(wrId & 0xffff, status);
  }

  private violation(channel: MessageChannel, reason: string): void {
    if (channel.qp.state !== 'connected') return;
    this.counters.protocolErrors++;
    const name = [...this.connections].find((connection) => connection.channel === channel)?.name;
    this.log(
      `node ${this.id}: '${name}' at ${channel.qp.remote} broke the protocol, its connection is closed: ${reason}`,
    );
    channel.qp.toError(reason);
  }

  /**
   * Who reads a file when it is removed, or replaced, reads on: its units go with the last reader's connection. What
   * this node forgets when it ends meanwhile is freed as other leftovers are.
   */
  private async deleteFile(fileId: number, asker: Connection): Promise<void> {
    if (this.isRead(fileId, asker)) this.deferred.add(fileId);
    else await this.store.deleteFile(fileId);
  }

  private isRead(fileId: number, asker?: Connection): boolean {
    for (const each of this.connections) if (each.readsFile === fileId && each !== asker) return true;
    return false;
  }

  private async deleteUnread(fileId: number): Promise<void> {
    if (!this.deferred.has(fileId) || this.isRead(fileId) || this.stopping !== undefined) return;
    this.deferred.delete(fileId);
    try {
      await this.store.deleteFile(fileId);
    } catch (error) {
      if (!isOperating(error)) throw error;
      this.log(`node ${this.id}: units of file ${fileId}, which was removed, stay for now: ${error.message}`);
    }
  }

  private end(connection: Connection, reason: string): void {
    if (connection.ended) return;
    connection.ended = true;
    this.connections.delete(connection);
    const ending = this.bury(connection, reason)
      .then(() => this.deleteUnread(connection.readsFile))
      .finally(() => {
        this.ending.delete(ending);
      });
    this.ending.add(ending);
    detach(ending);
  }

  /** The ring's memory goes when the connection is gone, and nobody here reads it any more: checks, disk writes. */
  private async bury({ channel, ring }: Connection, reason: string): Promise<void> {
    const idle = ring?.close();
    await ring?.packets?.destroy();
    await channel.destroy(reason);
    if (ring !== undefined) await this.grants.takeBack(ring, idle);
  }

  private dropSilent(): void {
    const { clock } = this.options;
    const silentMs = this.options.silentMs ?? SILENT_MS;
    this.silenceTimer = clock.setTimer(silentMs / 2, () => {
      const untaken = this.reads.untaken();
      for (const connection of [...this.connections])
        if (clock.now() - connection.heardAt > silentMs) this.end(connection, `nothing heard for ${silentMs} ms`);
        else if (untaken.has(connection))
          this.violation(connection.channel, `it took no answer for ${silentMs / 2} ms or more`);
      this.dropSilent();
    });
  }

  private adopted(map: ClusterMap): void {
    // A file's node list may change with a map; nothing else that is kept can.
    this.placements?.forgetAll();
    for (const { channel } of this.connections) channel.mapEpoch = map.epoch;
    this.joining?.onMap();
  }
}

async function listen(
  device: Device,
  host: string,
  port: number,
  onConnection: (qp: QueuePair) => void,
): Promise<Listener> {
  try {
    return await device.listen(host, port, onConnection);
  } catch (cause) {
    throw cause instanceof RdmaError ? new TartanError('ERR_LISTEN', cause.message, { cause }) : cause;
  }
}
