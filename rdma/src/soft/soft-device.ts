/**
 * The software device: TypeScript keeps the objects and dispatches completions, a native thread moves and codes bytes.
 *
 * Waking up costs microseconds: the engine wakes this thread only after `arm()`, and under load a little later, so that
 * batches grow. Otherwise completions are polled until there are none: poll, dispatch, `onBatchEnd`, ring. After some
 * batches the event loop gets its turn.
 */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import {
  Access,
  type Coder,
  type CoderSpec,
  type CodingQueue,
  type CompletionHandler,
  type ConnectOptions,
  type Device,
  type DeviceCounters,
  type Listener,
  type MemoryRegion,
  type QueuePair,
  RdmaError,
} from '../device.js';
import type { PacketSocket, PacketSocketOptions } from '../packets.js';
import { CQE_WORDS, Opcode } from '../records.js';
import { detach, rethrow } from '../rethrow.js';
import { SoftCoder } from './coder.js';
import { SoftCodingQueue } from './coding-queue.js';
import { SoftMemoryRegion } from './memory-region.js';
import {
  ConnectMode,
  COUNTER_NAMES,
  EventType,
  loadAddon,
  type NativeDevice,
  type NativeEvent,
  OPCODE_EVENT,
} from './native.js';
import { type PacketHandler, SoftPacketSocket } from './packet-socket.js';
import { SoftQueuePair } from './queue-pair.js';
import { SendQueue } from './send-queue.js';

export interface SoftDeviceOptions {
  /** For messages and metrics. Default 'soft'. */
  readonly name?: string;
  /** A power of two. Default 4096. */
  readonly sendQueueEntries?: number;
  /** A power of two. Default 8192. */
  readonly completionQueueEntries?: number;
  /** Coding kernel: 'gfni', 'avx2' or 'portable'. Default: TARTAN_KERNEL, else the best this CPU runs. */
  readonly kernel?: string;
}

const MAX_REGION_BYTES = 2 ** 31;
/** Batches handled before timers, disks and microtasks get their turn. */
const BATCHES_PER_TURN = 16;

interface Waiter {
  resolve(event: NativeEvent): void;
  reject(error: Error): void;
}

function powerOfTwo(name: string, entries: number): number {
  if (!Number.isInteger(entries) || entries < 2 || entries > 2 ** 20 || (entries & (entries - 1)) !== 0) {
    throw new RangeError(`Cannot open a soft device: ${name} is ${entries}, a power of two up to 2^20 is expected`);
  }
  return entries;
}

export class SoftDevice implements Device {
  readonly kind = 'soft';
  readonly name: string;
  readonly sendQueue: SendQueue;
  onBatchEnd: (() => void) | undefined;
  isDispatching = false;

  readonly #native: NativeDevice;
  readonly #kernel: string;
  readonly #completions: Uint32Array;
  readonly #completionMask: number;
  #cursor = 0; // completions dispatched, modulo 2^32
  #end = 0; // completions polled
  /** Whose completions they are, by qpn. */
  readonly #targets = new Map<number, SoftQueuePair | SoftCodingQueue>();
  readonly #listeners = new Map<number, (qp: SoftQueuePair) => void>();
  readonly #listenersOpen = new Set<Listener>();
  readonly #packetSockets = new Set<SoftPacketSocket>();
  /** Completions of packet senders and receivers, by qpn. */
  readonly #packetHandlers = new Map<number, PacketHandler>();
  readonly #regions = new Map<number, SoftMemoryRegion>();
  /** Who waits for an event, by its id: listen, connect, fence; regions and queue pairs by key and qpn below. */
  readonly #waiters = new Map<number, Waiter>();
  readonly #regionWaiters = new Map<number, () => void>();
  readonly #queuePairWaiters = new Map<number, () => void>();
  #nextId = 1;
  #codingOutstanding = 0;
  #queuePairs = 0;
  readonly #counters = new Float64Array(COUNTER_NAMES.length);
  #holds = 0;
  #closing: Promise<void> | undefined;
  #isClosed = false;

  constructor(options: SoftDeviceOptions = {}) {
    this.name = options.name ?? 'soft';
    this.#kernel = options.kernel ?? '';
    const completionEntries = powerOfTwo('completionQueueEntries', options.completionQueueEntries ?? 8192);
    this.sendQueue = new SendQueue(powerOfTwo('sendQueueEntries', options.sendQueueEntries ?? 4096));
    this.#completions = new Uint32Array(new SharedArrayBuffer(completionEntries * CQE_WORDS * 4));
    this.#completionMask = completionEntries - 1;
    this.#native = loadAddon().open(this.sendQueue.words, this.#completions, () => this.#drain());
    this.sendQueue.attach(this.#native);
    this.#native.arm();
  }

  allocate(byteLength: number, access: number = Access.LOCAL): MemoryRegion {
    this.#assertOpen('allocate memory');
    if (!Number.isInteger(byteLength) || byteLength < 1 || byteLength > MAX_REGION_BYTES) {
      throw new RdmaError(
        'ERR_REGISTRATION_REFUSED',
        `Cannot register ${byteLength} bytes: 1 to ${MAX_REGION_BYTES} are expected`,
      );
    }
    try {
      const [lkey, rkey, buffer] = this.#native.allocate(byteLength, access);
      const region = new SoftMemoryRegion(this, lkey, rkey, buffer);
      this.#regions.set(lkey, region);
      return region;
    } catch (cause) {
      throw new RdmaError(
        'ERR_REGISTRATION_REFUSED',
        `Cannot register ${byteLength} bytes: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  createCoder(spec: CoderSpec): Coder {
    this.#assertOpen('create a coder');
    return new SoftCoder(this.#native, spec, this.#kernel);
  }

  createCodingQueue(handler: CompletionHandler): CodingQueue {
    this.#assertOpen('create a coding queue');
    const queue = new SoftCodingQueue(this, this.#native.createCodingQueue(), handler);
    this.#targets.set(queue.qpn, queue);
    return queue;
  }

  async connect(host: string, port: number, options: ConnectOptions = {}): Promise<QueuePair> {
    this.#assertOpen('connect');
    const { transport = 'auto', timeoutMs = 5000 } = options;
    const how = transport === 'auto' ? '' : ` over ${transport}`;
    try {
      const address = await this.#resolve(host);
      const event = await this.#request((id) =>
        this.#native.connect(id, address, port, timeoutMs, ConnectMode[transport]),
      );
      return this.#targets.get(event[2]) as SoftQueuePair;
    } catch (cause) {
      if (this.#isClosed || this.#closing !== undefined)
        throw new RdmaError('ERR_CONNECT', `Cannot connect to ${host}:${port}${how}: the device was closed`, { cause });
      const { message } = cause as Error;
      if (message.startsWith('a verbs device'))
        throw new RdmaError('ERR_DEVICE_KIND', `Cannot connect to ${host}:${port}${how}: ${message}`, { cause });
      throw new RdmaError(
        'ERR_CONNECT',
        `Cannot connect to ${host}:${port}${how}: ${message}; a listening device was expected there`,
        { cause },
      );
    }
  }

  async listen(host: string, port: number, onConnection: (qp: QueuePair) => void): Promise<Listener> {
    this.#assertOpen('listen');
    try {
      const address = await this.#resolve(host);
      const event = await this.#request((id) => {
        this.#listeners.set(id, onConnection);
        this.#native.listen(id, address, port);
      });
      return this.#createListener(event[1], address, event[3]);
    } catch (cause) {
      throw new RdmaError(
        'ERR_LISTEN',
        `Cannot listen on ${host}:${port}: ${(cause as Error).message}; a free address of this machine was expected`,
        { cause },
      );
    }
  }

  async openPacketSocket(host: string, port: number, options: PacketSocketOptions = {}): Promise<PacketSocket> {
    this.#assertOpen('open a packet socket');
    const [seed = 0, lossPerMille = 0, reorderPerMille = 0] =
      options.impairment === undefined
        ? (process.env['TARTAN_PACKET_IMPAIRMENT'] ?? '').split(',').map(Number)
        : [options.impairment.seed, options.impairment.lossPerMille, options.impairment.reorderPerMille];
    try {
      const address = await this.#resolve(host);
      const event = await this.#request((id) => {
        this.#native.openPacketSocket(id, address, port, Uint32Array.of(seed, lossPerMille, reorderPerMille));
      });
      const socket = new SoftPacketSocket(
        {
          sendQueue: this.sendQueue,
          native: this.#native,
          keyOf: (region) => this.keyOf(region),
          setTarget: (qpn, handler) => {
            if (handler === undefined) this.#packetHandlers.delete(qpn);
            else this.#packetHandlers.set(qpn, handler);
          },
          command: async (send) => {
            await this.#request(send);
          },
          forget: (gone) => {
            this.#packetSockets.delete(gone);
            this.#release();
          },
        },
        event[1],
        address,
        event[3],
      );
      this.#packetSockets.add(socket);
      this.#hold();
      return socket;
    } catch (cause) {
      throw new RdmaError(
        'ERR_LISTEN',
        `Cannot open a packet socket on ${host}:${port}: ${(cause as Error).message}; a free IPv4 address of ` +
          'this machine was expected',
        { cause },
      );
    }
  }

  ring(): void {
    this.sendQueue.ring();
  }

  counters(): DeviceCounters {
    const values = this.#counters;
    if (!this.#isClosed) this.#native.counters(values); // closed: as they were last
    const counted = Object.fromEntries(COUNTER_NAMES.map((name, i) => [name, values[i]])) as unknown as DeviceCounters;
    return { ...counted, regions: this.#regions.size, queuePairs: this.#queuePairs };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  // ---- for the device's own objects ----

  toError(qp: SoftQueuePair, reason: string): void {
    this.ring(); // what was posted before is older than the error
    this.#native.toError(qp.qpn, reason);
  }

  async destroyQueuePair(qp: SoftQueuePair): Promise<void> {
    this.ring();
    await new Promise<void>((resolve) => {
      this.#queuePairWaiters.set(qp.qpn, resolve);
      this.#native.destroyQueuePair(qp.qpn);
    });
  }

  async destroyCodingQueue(queue: SoftCodingQueue): Promise<void> {
    this.ring();
    await this.#request((id) => this.#native.destroyCodingQueue(queue.qpn, id));
    this.#targets.delete(queue.qpn);
  }

  grant(region: SoftMemoryRegion, qp: QueuePair): void {
    if (this.#regions.has(region.lkey)) this.#native.grant(region.lkey, qp.qpn);
  }

  async deregister(region: SoftMemoryRegion): Promise<void> {
    if (!this.#regions.has(region.lkey)) return;
    this.ring();
    this.#hold();
    await new Promise<void>((resolve) => {
      this.#regionWaiters.set(region.lkey, resolve);
      this.#native.deregister(region.lkey);
    });
    this.#release();
  }

  /** @returns the region's local key; 0, which names nothing, for another device's region */
  keyOf(region: MemoryRegion): number {
    return region instanceof SoftMemoryRegion && region.device === this ? region.lkey : 0;
  }

  /** Something was posted on a queue pair that is gone: it is flushed, and somebody must hear of that. */
  revive(qp: SoftQueuePair): void {
    this.#targets.set(qp.qpn, qp);
  }

  codingPosted(): void {
    if (this.#codingOutstanding++ === 0) this.#hold();
  }

  // ---- completions and events ----

  #drain(): void {
    let armed = false;
    for (let batch = 0; batch < BATCHES_PER_TURN; batch++) {
      if (this.#isClosed) return;
      if (this.#cursor === this.#end) this.#end = (this.#cursor + this.#native.poll()) >>> 0;
      if (this.#cursor === this.#end) {
        if (armed) return;
        this.#native.arm();
        armed = true;
        continue;
      }
      try {
        armed = false;
        this.isDispatching = true;
        this.#dispatch();
        this.onBatchEnd?.();
      } catch (error) {
        rethrow(error);
        setImmediate(() => this.#drain());
        return;
      } finally {
        this.isDispatching = false;
        if (!this.#isClosed) this.ring();
      }
    }
    setImmediate(() => this.#drain());
  }

  #dispatch(): void {
    const words = this.#completions;
    while (this.#cursor !== this.#end) {
      const at = (this.#cursor & this.#completionMask) * CQE_WORDS;
      this.#cursor = (this.#cursor + 1) >>> 0;
      const kind = words[at + 1]!;
      const opcode = (kind >>> 8) & 0xff;
      if (opcode === OPCODE_EVENT) {
        this.#handleEvent(this.#native.takeEvent()!);
        continue;
      }
      if ((opcode === Opcode.ENCODE || opcode === Opcode.VERIFY) && --this.#codingOutstanding === 0) this.#release();
      const target = this.#targets.get(words[at + 2]!);
      if (target === undefined)
        this.#packetHandlers.get(words[at + 2]!)?.(
          opcode,
          kind & 0xff,
          words[at]!,
          words[at + 3]!,
          words[at + 4]!,
          words[at + 5]!,
          words[at + 6]!,
        );
      else target.handler(opcode, kind & 0xff, words[at]!, words[at + 3]!, words[at + 4]!, words[at + 5]!);
    }
  }

  #handleEvent(event: NativeEvent): void {
    const [type, id, qpn, , transport, text] = event;
    switch (type) {
      case EventType.LISTENING:
      case EventType.FENCE:
        return this.#settle(id)?.resolve(event);
      case EventType.LISTEN_FAILED:
        this.#listeners.delete(id);
        return this.#settle(id)?.reject(new Error(text));
      case EventType.CONNECT_FAILED:
        return this.#settle(id)?.reject(new Error(text));
      case EventType.CONNECTED: {
        const qp = this.#addQueuePair(qpn, transport, text);
        const waiter = this.#settle(id);
        if (waiter === undefined) detach(qp.destroy());
        else waiter.resolve(event);
        return;
      }
      case EventType.ACCEPTED: {
        const qp = this.#addQueuePair(qpn, transport, text);
        const onConnection = this.#listeners.get(id);
        if (onConnection === undefined) detach(qp.destroy());
        else onConnection(qp);
        return;
      }
      case EventType.QUEUE_PAIR_ERROR:
        return (this.#targets.get(qpn) as SoftQueuePair).failed(text);
      case EventType.QUEUE_PAIR_GONE:
        return this.#retire(this.#targets.get(qpn) as SoftQueuePair);
      case EventType.REGION_GONE: {
        const region = this.#regions.get(id)!;
        this.#regions.delete(id);
        this.#native.release(id, region.buffer);
        this.#regionWaiters.get(id)?.();
        this.#regionWaiters.delete(id);
      }
    }
  }

  #addQueuePair(qpn: number, transport: number, remote: string): SoftQueuePair {
    const qp = new SoftQueuePair(this, qpn, transport === 1 ? 'tcp' : 'shm', remote);
    this.#targets.set(qpn, qp);
    this.#queuePairs++;
    this.#hold();
    return qp;
  }

  /**
   * What was posted while the queue pair went away still flushes: a fence tells when the last of it has been delivered.
   */
  #retire(qp: SoftQueuePair): void {
    qp.closed();
    this.ring();
    detach(
      this.#request((id) => this.#native.fence(0, id)).then(() => {
        this.#targets.delete(qp.qpn);
        this.#queuePairs--;
        this.#release();
        this.#queuePairWaiters.get(qp.qpn)?.();
        this.#queuePairWaiters.delete(qp.qpn);
      }),
    );
  }

  // ---- control ----

  async #resolve(host: string): Promise<string> {
    return isIP(host) === 0 ? (await lookup(host)).address : host;
  }

  /** Sends a command that an event with the same id answers; the process lives until then. */
  async #request(send: (id: number) => void): Promise<NativeEvent> {
    const id = this.#nextId++;
    this.#hold();
    try {
      return await new Promise<NativeEvent>((resolve, reject) => {
        this.#waiters.set(id, { resolve, reject });
        send(id);
      });
    } finally {
      this.#release();
    }
  }

  #settle(id: number): Waiter | undefined {
    const waiter = this.#waiters.get(id);
    this.#waiters.delete(id);
    return waiter;
  }

  #createListener(id: number, address: string, port: number): Listener {
    this.#hold();
    let closed: Promise<void> | undefined;
    const listener: Listener = {
      address,
      port,
      close: () =>
        (closed ??= this.#request((fence) => {
          this.#listeners.delete(id);
          this.#native.closeListener(id, fence);
        }).then(() => {
          this.#listenersOpen.delete(listener);
          this.#release();
        })),
    };
    this.#listenersOpen.add(listener);
    return listener;
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#listenersOpen].map((listener) => listener.close()));
    await Promise.all([...this.#packetSockets].map((socket) => socket.close()));
    await Promise.all([...this.#targets.values()].map((target) => target.destroy()));
    await Promise.all([...this.#regions.values()].map((region) => region.deregister()));
    this.#native.counters(this.#counters);
    this.#isClosed = true;
    this.sendQueue.close();
    this.#native.close();
    for (const waiter of this.#waiters.values()) waiter.reject(new Error('the device was closed'));
    this.#waiters.clear();
  }

  #hold(): void {
    if (this.#holds++ === 0) this.#native.keepAlive(1);
  }

  #release(): void {
    if (--this.#holds === 0) this.#native.keepAlive(0);
  }

  #assertOpen(attempt: string): void {
    if (this.#closing !== undefined)
      throw new RdmaError('ERR_DEVICE_CLOSED', `Cannot ${attempt}: the device '${this.name}' is closed`);
  }
}

/**
 * Opens a software device with a thread of its own.
 *
 * @throws {RdmaError} ERR_NO_ADDON when the native addon was not built
 */
export function openSoftDevice(options: SoftDeviceOptions = {}): Device {
  return new SoftDevice(options);
}

/** Coding kernels that this CPU runs, best first. */
export function softKernels(): string[] {
  return loadAddon().kernels().split(',');
}
