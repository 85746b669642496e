/**
 * The verbs device: rdma-core behind the device interface.
 *
 * Intuition: an adapter moves bytes by itself, so there is no thread here. `ring()` posts to the adapter and `poll()`
 * takes its completions, both on this thread; a sleeping thread is woken through the event loop. What an adapter can't
 * do, it has a soft device for: that one maps the memory and codes in it, on its own thread (it never opens a
 * connection).
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
import { CQE_WORDS } from '../records.js';
import { detach, rethrow } from '../rethrow.js';
import { COUNTER_NAMES, OPCODE_EVENT } from '../soft/native.js';
import { type QueuePairOwner, SoftQueuePair as RingQueuePair } from '../soft/queue-pair.js';
import { SendQueue } from '../soft/send-queue.js';
import { SoftDevice } from '../soft/soft-device.js';
import { powerOfTwo, within, type AsyncEvent, type VerbsDeviceOptions } from './options.js';
import { closeDoor, knock, openDoor } from './door.js';
import { VerbsMemoryRegion } from './memory-region.js';
import { SharedReceiveQueue, type SharedReceiveQueueOwner } from './shared-receive-queue.js';
import { EventType, loadVerbsAddon, type NativeAdapter, type NativeEvent } from './native.js';

export type { AsyncEvent, VerbsDeviceOptions };

const MAX_REGION_BYTES = 2 ** 31;
/** Batches handled before timers, disks and microtasks get their turn. */
const BATCHES_PER_TURN = 16;
/** Receives of a shared receive queue that the adapter has at a time. */
const SHARED_RECEIVES = 1024;

export interface ReceiveOptions {
  /** Queue pairs made here take their receives from it, and have none of their own. */
  readonly sharedReceiveQueue?: SharedReceiveQueue;
}

/** Who gets the completions that name a number. */
type Target = RingQueuePair | SharedReceiveQueue;

interface Waiter {
  resolve(event: NativeEvent): void;
  reject(error: Error): void;
}

export class VerbsDevice implements Device, QueuePairOwner, SharedReceiveQueueOwner {
  readonly kind = 'verbs';
  readonly name: string;
  /** The RDMA device's own name. */
  readonly deviceName: string;
  readonly sendQueue: SendQueue;
  onBatchEnd: (() => void) | undefined;
  /** Port and device events; connections that they end tell so themselves. */
  onAsyncEvent: ((event: AsyncEvent) => void) | undefined;

  readonly #native: NativeAdapter;
  readonly #coder: SoftDevice;
  readonly #busyPollMicros: number;
  readonly #completions: Uint32Array;
  readonly #completionMask: number;
  #cursor = 0; // completions dispatched, modulo 2^32
  #end = 0; // completions polled
  readonly #targets: (Target | undefined)[] = [];
  readonly #listeners = new Map<number, (qp: QueuePair) => void>();
  readonly #listenersOpen = new Set<Listener>();
  readonly #regions = new Map<number, VerbsMemoryRegion>();
  /** Who waits for an event, by its id: listen, connect, fence; regions and queue pairs by key and qpn below. */
  readonly #waiters = new Map<number, Waiter>();
  readonly #regionWaiters = new Map<number, () => void>();
  readonly #queuePairWaiters = new Map<number, () => void>();
  #nextId = 1;
  #queuePairs = 0;
  readonly #counters = new Float64Array(COUNTER_NAMES.length);
  #holds = 0;
  #closing: Promise<void> | undefined;
  #isClosed = false;

  constructor(options: VerbsDeviceOptions = {}) {
    const limits = Uint32Array.of(
      within('sendDepth', options.sendDepth ?? 128, 1, 65535),
      within('receiveDepth', options.receiveDepth ?? 512, 1, 65535),
      within('adapterCompletions', options.adapterCompletions ?? 8192, 1, 2 ** 22),
      within('inlineBytes', options.inlineBytes ?? 64, 0, 1024),
      within('ackTimeout', options.ackTimeout ?? 16, 1, 31),
      options.reserveCompletions === false ? 0 : 1,
    );
    this.#busyPollMicros = within('busyPollMicros', options.busyPollMicros ?? 0, 0, 1_000_000);
    const completionEntries = powerOfTwo('completionQueueEntries', options.completionQueueEntries ?? 8192);
    this.sendQueue = new SendQueue(powerOfTwo('sendQueueEntries', options.sendQueueEntries ?? 4096));
    this.#completions = new Uint32Array(new SharedArrayBuffer(completionEntries * CQE_WORDS * 4));
    this.#completionMask = completionEntries - 1;
    const addon = loadVerbsAddon();
    // Opened first, so that it ends last: its memory is registered here.
    this.#coder = new SoftDevice({
      name: `${options.name ?? 'verbs'}-memory`,
      ...(options.kernel === undefined ? {} : { kernel: options.kernel }),
    });
    try {
      this.#native = addon.open(options.device ?? '', limits, this.sendQueue.words, this.#completions, () => {
        this.#drain();
      });
    } catch (cause) {
      detach(this.#coder.close());
      throw new RdmaError(
        'ERR_NO_VERBS',
        `Cannot open the verbs device ${options.device ?? ''}: ${(cause as Error).message}`.replace(' :', ':'),
        { cause },
      );
    }
    this.deviceName = this.#native.deviceName;
    this.name = options.name ?? this.deviceName;
    this.#coder.onBatchEnd = () => {
      this.onBatchEnd?.();
      this.ring();
    };
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
    const memory = this.#coder.allocate(byteLength);
    try {
      const rkey = this.#native.addRegion(memory.lkey, memory.buffer, access);
      const region = new VerbsMemoryRegion(this, this.#coder, memory, rkey);
      this.#regions.set(region.lkey, region);
      return region;
    } catch (cause) {
      detach(memory.deregister());
      throw new RdmaError(
        'ERR_REGISTRATION_REFUSED',
        `Cannot register ${byteLength} bytes with ${this.deviceName}: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  createCoder(spec: CoderSpec): Coder {
    this.#assertOpen('create a coder');
    return this.#coder.createCoder(spec);
  }

  createCodingQueue(handler: CompletionHandler): CodingQueue {
    this.#assertOpen('create a coding queue');
    return this.#coder.createCodingQueue(handler);
  }

  /**
   * Creates a shared receive queue.
   *
   * @param depth  receives that the adapter has at a time; more wait in memory. Default 1024, or the adapter's most
   * @throws {RdmaError} ERR_NOT_SUPPORTED: the adapter has none, or no more of them
   */
  createSharedReceiveQueue(depth = SHARED_RECEIVES): SharedReceiveQueue {
    this.#assertOpen('create a shared receive queue');
    within('depth', depth, 1, 65535);
    try {
      const queue = new SharedReceiveQueue(this, this.#native.createReceives(depth));
      this.#targets[queue.qpn] = queue;
      return queue;
    } catch (cause) {
      throw new RdmaError(
        'ERR_NOT_SUPPORTED',
        `Cannot create a shared receive queue of ${depth} receives on ${this.deviceName}: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  async connect(host: string, port: number, options: ConnectOptions & ReceiveOptions = {}): Promise<QueuePair> {
    this.#assertOpen('connect');
    const { transport = 'auto', timeoutMs = 5000 } = options;
    const fail = (reason: string, cause?: unknown, code = 'ERR_CONNECT'): RdmaError =>
      new RdmaError(code, `Cannot connect to ${host}:${port} over ${this.deviceName}: ${reason}`, { cause });
    if (transport !== 'auto')
      throw fail(`transport '${transport}' is the soft device's, a verbs device has only its own`);
    const id = this.#nextId++;
    const timer = setTimeout(() => {
      this.#native.abandon(id);
      this.#settle(id)?.reject(new Error(`no answer within ${timeoutMs} ms`));
    }, timeoutMs);
    let address: string | undefined;
    try {
      address = await this.#resolve(host);
      if (this.#closing !== undefined) throw new Error('the device was closed');
      const event = await this.#request((id) => {
        this.#native.connect(id, address!, port, timeoutMs, options.sharedReceiveQueue?.qpn ?? 0);
      }, id);
      return this.#targets[event[2]] as RingQueuePair;
    } catch (cause) {
      if (this.#isClosed || this.#closing !== undefined) throw fail('the device was closed', cause);
      const { message } = cause as Error;
      const who = address === undefined ? 'nobody' : await knock(address, port);
      if (who === 'other')
        throw fail(
          `${message}, but something answers over TCP: a soft device? All of a cluster must use the same kind ` +
            'of device (--device)',
          cause,
          'ERR_DEVICE_KIND',
        );
      throw fail(
        who === 'verbs'
          ? `${message}, but a verbs device listens there: is there an RDMA route to it?`
          : `${message}; a listening device was expected there`,
        cause,
      );
    } finally {
      clearTimeout(timer);
    }
  }

  async listen(
    host: string,
    port: number,
    onConnection: (qp: QueuePair) => void,
    options: ReceiveOptions = {},
  ): Promise<Listener> {
    this.#assertOpen('listen');
    try {
      const address = await this.#resolve(host);
      // With port 0 the port chosen for RDMA may be taken for TCP: then choose again.
      for (let attempts = port === 0 ? 8 : 1; ; attempts--) {
        const event = await this.#request((id) => {
          this.#listeners.set(id, onConnection);
          this.#native.listen(id, address, port, options.sharedReceiveQueue?.qpn ?? 0);
        });
        try {
          return this.#createListener(event[1], address, event[3], await openDoor(address, event[3]));
        } catch (error) {
          await this.#closeListener(event[1]);
          if (attempts === 1) throw error;
        }
      }
    } catch (cause) {
      throw new RdmaError(
        'ERR_LISTEN',
        `Cannot listen on ${host}:${port} with ${this.deviceName}: ${(cause as Error).message}; a free address ` +
          'of the device was expected',
        { cause },
      );
    }
  }

  ring(): void {
    this.sendQueue.ring();
    this.#coder.ring();
  }

  counters(): DeviceCounters {
    const values = this.#counters;
    if (!this.#isClosed) this.#native.counters(values); // closed: as they were last
    const coding = this.#coder.counters();
    const counted = Object.fromEntries(
      COUNTER_NAMES.map((name, i) => [name, values[i]! + coding[name]]),
    ) as unknown as DeviceCounters;
    return { ...counted, regions: this.#regions.size, queuePairs: this.#queuePairs };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  // ---- for the device's own objects ----

  toError(qp: RingQueuePair, reason: string): void {
    this.ring(); // what was posted before is older than the error
    this.#native.toError(qp.qpn, reason);
  }

  async destroyQueuePair(qp: RingQueuePair): Promise<void> {
    this.ring();
    await new Promise<void>((resolve) => {
      this.#queuePairWaiters.set(qp.qpn, resolve);
      this.#native.destroyQueuePair(qp.qpn);
    });
  }

  armReceives(number: number, limit: number): boolean {
    this.ring();
    return this.#native.armReceives(number, limit) !== 0;
  }

  async destroyReceives(queue: SharedReceiveQueue): Promise<void> {
    this.ring();
    this.#hold();
    try {
      await new Promise<void>((resolve, reject) => {
        this.#queuePairWaiters.set(queue.qpn, resolve);
        if (this.#native.destroyReceives(queue.qpn) !== 0) return;
        this.#queuePairWaiters.delete(queue.qpn);
        reject(new RdmaError('ERR_IN_USE', 'Cannot destroy a shared receive queue: queue pairs use it'));
      });
    } finally {
      this.#release();
    }
  }

  async deregister(region: VerbsMemoryRegion): Promise<void> {
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
    return region instanceof VerbsMemoryRegion && region.adapter === this ? region.lkey : 0;
  }

  /** Something was posted on a queue pair that is gone: it is flushed, and somebody must hear of that. */
  revive(qp: RingQueuePair): void {
    this.#targets[qp.qpn] = qp;
  }

  // ---- completions and events ----

  #drain(): void {
    let armed = false;
    for (let batch = 0; batch < BATCHES_PER_TURN; batch++) {
      if (this.#isClosed) return;
      if (this.#cursor === this.#end)
        this.#end = (this.#cursor + this.#native.poll(armed ? 0 : this.#busyPollMicros)) >>> 0;
      if (this.#cursor === this.#end) {
        if (armed) return;
        this.#native.arm();
        armed = true;
        continue;
      }
      try {
        armed = false;
        this.#dispatch();
        this.onBatchEnd?.();
      } catch (error) {
        rethrow(error);
        setImmediate(() => {
          this.#drain();
        });
        return;
      } finally {
        if (!this.#isClosed) this.ring();
      }
    }
    setImmediate(() => {
      this.#drain();
    });
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
      const target = this.#targets[words[at + 2]!];
      if (target !== undefined)
        target.handler(opcode, kind & 0xff, words[at]!, words[at + 3]!, words[at + 4]!, words[at + 5]!);
    }
  }

  #handleEvent(event: NativeEvent): void {
    const [type, id, qpn, value, , text] = event;
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
        const qp = this.#addQueuePair(qpn, text);
        const waiter = this.#settle(id);
        if (waiter === undefined) detach(qp.destroy());
        else waiter.resolve(event);
        return;
      }
      case EventType.ACCEPTED: {
        const qp = this.#addQueuePair(qpn, text);
        const onConnection = this.#listeners.get(id);
        if (onConnection === undefined) detach(qp.destroy());
        else onConnection(qp);
        return;
      }
      case EventType.QUEUE_PAIR_ERROR:
        return (this.#targets[qpn] as RingQueuePair).failed(text);
      case EventType.QUEUE_PAIR_GONE:
        return this.#retire(this.#targets[qpn]!);
      case EventType.RECEIVES_LOW:
        return (this.#targets[qpn] as SharedReceiveQueue | undefined)?.onLimit?.();
      case EventType.REGION_GONE:
        this.#regions.delete(id);
        this.#regionWaiters.get(id)?.();
        this.#regionWaiters.delete(id);
        return;
      case EventType.ASYNCHRONOUS:
        this.onAsyncEvent?.({ type: id, port: value, text });
    }
  }

  #addQueuePair(qpn: number, remote: string): RingQueuePair {
    const qp = new RingQueuePair(this, qpn, 'rdma', remote);
    this.#targets[qpn] = qp;
    this.#queuePairs++;
    this.#hold();
    return qp;
  }

  /**
   * What was posted while the queue pair went away still flushes: a fence tells when the last of it has been delivered.
   */
  #retire(target: Target): void {
    if (target instanceof SharedReceiveQueue) {
      this.#targets[target.qpn] = undefined;
      this.#tellGone(target.qpn);
      return;
    }
    target.closed();
    this.ring();
    detach(
      this.#request((id) => {
        this.#native.fence(id);
      }).then(() => {
        this.#targets[target.qpn] = undefined;
        this.#queuePairs--;
        this.#release();
        this.#tellGone(target.qpn);
      }),
    );
  }

  #tellGone(qpn: number): void {
    this.#queuePairWaiters.get(qpn)?.();
    this.#queuePairWaiters.delete(qpn);
  }

  // ---- control ----

  async #resolve(host: string): Promise<string> {
    return isIP(host) === 0 ? (await lookup(host)).address : host;
  }

  /** Sends a command that an event with the same id answers; the process lives until then. */
  async #request(send: (id: number) => void, id = this.#nextId++): Promise<NativeEvent> {
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

  async #closeListener(id: number): Promise<void> {
    await this.#request((fence) => {
      this.#listeners.delete(id);
      this.#native.closeListener(id, fence);
    });
  }

  #createListener(id: number, address: string, port: number, door: Awaited<ReturnType<typeof openDoor>>): Listener {
    this.#hold();
    let closed: Promise<void> | undefined;
    const listener: Listener = {
      address,
      port,
      close: () =>
        (closed ??= Promise.all([this.#closeListener(id), closeDoor(door)]).then(() => {
          this.#listenersOpen.delete(listener);
          this.#release();
        })),
    };
    this.#listenersOpen.add(listener);
    return listener;
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#listenersOpen].map((listener) => listener.close()));
    const targets = this.#targets.filter((target) => target !== undefined);
    await Promise.all(targets.map((target) => (target instanceof SharedReceiveQueue ? undefined : target.destroy())));
    await Promise.all(targets.map((target) => (target instanceof SharedReceiveQueue ? target.destroy() : undefined)));
    await Promise.all([...this.#regions.values()].map((region) => region.deregister()));
    this.#native.counters(this.#counters);
    this.#isClosed = true;
    this.sendQueue.close();
    this.#native.close();
    for (const waiter of this.#waiters.values()) waiter.reject(new Error('the device was closed'));
    this.#waiters.clear();
    await this.#coder.close();
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
 * Opens an RDMA device through rdma-core.
 *
 * @throws {RdmaError} ERR_NO_ADDON when the native addon was not built; ERR_NO_VERBS, saying what is missing:
 *         rdma-core's
 *         libraries, any RDMA device, the one named, an active port
 */
export function openVerbsDevice(options: VerbsDeviceOptions = {}): VerbsDevice {
  return new VerbsDevice(options);
}
