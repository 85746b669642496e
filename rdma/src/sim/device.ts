/**
 * The sim device: verbs in virtual time, in plain TypeScript.
 *
 * Everything it does happens in events of its host: what `ring()` releases begins in a later event, and handlers run in
 * batches in an event of their own. See world.ts for time, queue-pair.ts for the requests.
 */
import {
  RdmaError,
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
} from '../device.js';
import { Connection } from './connection.js';
import { SimCoder } from './coder.js';
import { SimCodingQueue } from './coding-queue.js';
import type { Fire, Firing } from './event-queue.js';
import type { SimHost } from './host.js';
import { SimRegion } from './memory-region.js';
import type { SimQueuePair } from './queue-pair.js';
import type { SimRandom } from './random.js';
import type { SimWorld } from './world.js';

/** How long the device takes to begin: uniform, 0 … this, virtual ms. */
const STEP_MS = 0.01;
/**
 * How long it takes to wake its thread (11 to 16 µs is what a thread-safe function takes in the middle); what completes
 * meanwhile comes with it.
 */
const WAKE_MS = 0.03;
const LOOPBACK = new Set(['localhost', '127.0.0.1', '0.0.0.0', '::1', '::']);

/** A posted request, waiting for ring(). */
export interface Startable {
  start(): void;
}

/** Whom completions are for; asked for its handler when they are delivered. */
interface Completer {
  readonly handler: CompletionHandler;
}

interface Completion {
  readonly to: Completer;
  readonly opcode: number;
  readonly status: number;
  readonly wrId: number;
  readonly byteLength: number;
  readonly imm: number;
  readonly detail: number;
  /** Memory that the request holds until then. */
  readonly held: readonly { readonly region: SimRegion }[];
}

/** The device's thread wakes. */
class Wake implements Firing {
  constructor(private readonly device: SimDevice) {}
  fire(): unknown {
    return this.device.deliverBatch();
  }
}

export class SimDevice implements Device {
  readonly kind = 'sim';
  readonly name: string;
  readonly world: SimWorld;
  readonly host: SimHost;
  readonly random: SimRandom;
  onBatchEnd: (() => void) | undefined;
  readonly counts: DeviceCounters = {
    requests: 0,
    completions: 0,
    rings: 0,
    wakeups: 0,
    bytesSent: 0,
    bytesReceived: 0,
    bytesEncoded: 0,
    bytesVerified: 0,
    bytesCopied: 0,
    allocations: 0,
    errors: 0,
    refusedAccesses: 0,
    regions: 0,
    queuePairs: 0,
  };
  readonly #wakeUp = new Wake(this);
  #staged: Startable[] = [];
  #deliveries: ((() => void) | Completion)[] = [];
  readonly #regions = new Set<SimRegion>();
  readonly #regionsByKey = new Map<number, SimRegion>();
  readonly #usedKeys = new Set<number>();
  readonly #queuePairs = new Set<SimQueuePair>();
  readonly #codingQueues = new Set<SimCodingQueue>();
  readonly #listeners = new Set<Listener>();
  #lkeys = 0;
  #qpns = 0;
  #coders = 0;
  #closed: Promise<void> | undefined;

  constructor(world: SimWorld, host: SimHost, name: string) {
    this.world = world;
    this.host = host;
    this.name = name;
    this.random = world.fork(name);
    host.devices.push(this);
  }

  allocate(byteLength: number, access = 0): MemoryRegion {
    this.#assertOpen('allocate memory');
    let rkey: number;
    do rkey = this.random.uint32();
    while (this.#usedKeys.has(rkey));
    const region = new SimRegion(this, ++this.#lkeys, rkey, byteLength, access);
    this.#usedKeys.add(rkey);
    this.#regions.add(region);
    this.#regionsByKey.set(rkey, region);
    this.counts.regions++;
    return region;
  }

  createCoder(spec: CoderSpec): Coder {
    return new SimCoder(this, ++this.#coders, spec);
  }

  createCodingQueue(handler: CompletionHandler): CodingQueue {
    this.#assertOpen('create a coding queue');
    const queue = new SimCodingQueue(this, ++this.#qpns, handler);
    this.#codingQueues.add(queue);
    return queue;
  }

  connect(host: string, port: number, options: ConnectOptions = {}): Promise<QueuePair> {
    const { world } = this;
    const to = this.#resolve(host);
    const timeoutMs = options.timeoutMs ?? 5000;
    return new Promise((resolve, reject) => {
      this.#assertOpen('connect');
      let isOver = false;
      const end = (settle: () => void): void => {
        if (isOver) return;
        isOver = true;
        world.clearTimer(timer);
        settle();
      };
      const refuse = (why: string): void =>
        end(() => {
          reject(new RdmaError('ERR_CONNECT', `Cannot connect to ${host}:${port}: ${why}`));
        });
      const timer = world.setTimer(timeoutMs, () => refuse(`no answer within ${timeoutMs} ms`), this.host.name);
      const connected = (qp: SimQueuePair): void => {
        if (isOver || this.#closed !== undefined) qp.toError('the connection came too late');
        end(() => resolve(qp));
      };
      this.#sendDatagram(to, () => {
        const listening = world.findHost(to)?.listeners.get(port);
        if (listening === undefined) this.#answerDatagram(to, () => refuse('nobody listens there'));
        else listening.accept({ device: this, connected });
      });
    });
  }

  async listen(host: string, port: number, onConnection: (qp: QueuePair) => void): Promise<Listener> {
    this.#assertOpen('listen');
    const name = this.host.name;
    if (this.#resolve(host) !== name)
      throw new RdmaError('ERR_LISTEN', `Cannot listen on ${host}:${port}: this host is ${name}`);
    const { listeners } = this.host;
    const own = port === 0 ? this.host.freePort() : port;
    if (listeners.has(own))
      throw new RdmaError('ERR_LISTEN', `Cannot listen on ${host}:${own}: somebody listens there already`);
    listeners.set(own, {
      accept: (client) => {
        const connection = new Connection(this.world, client.device, client.device.host.freePort(), this, own);
        this.world.note(
          `${this.name} qp${connection.server.qpn} accepts ${client.device.name} qp${connection.client.qpn}`,
        );
        connection.accepted(() => client.connected(connection.client));
        onConnection(connection.server);
        this.ring();
      },
    });
    const listener: Listener = {
      address: name,
      port: own,
      close: async () => {
        if (this.#listeners.delete(listener)) listeners.delete(own);
      },
    };
    this.#listeners.add(listener);
    return listener;
  }

  ring(): void {
    if (this.#staged.length === 0) return;
    this.counts.rings++;
    this.release();
  }

  counters(): DeviceCounters {
    return { ...this.counts };
  }

  close(): Promise<void> {
    this.#closed ??= this.host.isAlive ? this.#close() : Promise.resolve(); // nothing of a dead process ever completes
    return this.#closed;
  }

  async #close(): Promise<void> {
    for (const listener of this.#listeners) await listener.close();
    await Promise.all([...this.#queuePairs, ...this.#codingQueues].map((queue) => queue.destroy()));
    await Promise.all([...this.#regions].map((region) => region.deregister()));
    this.world.note(`${this.name} closed`);
  }

  // For the device's own parts.

  stage(request: Startable): void {
    this.#staged.push(request);
  }

  /** What ring() does, without counting: everything posted goes to the device. */
  release(): void {
    const staged = this.#staged;
    this.#staged = [];
    this.counts.requests += staged.length;
    for (const request of staged) request.start();
  }

  /** Does something in an event of this device soon, never now. */
  later(fire: Fire): void {
    this.world.schedule(this.random.random() * STEP_MS, this.host, fire);
  }

  /** Calls a handler with the next batch. */
  deliver(call: () => void): void {
    this.#deliveries.push(call);
    if (this.#deliveries.length === 1) this.#wake();
  }

  /** Delivers a completion with the next batch; the request's memory is held until its handler has run. */
  complete(
    to: Completer,
    opcode: number,
    status: number,
    wrId: number,
    byteLength: number,
    imm: number,
    detail: number,
    held: Completion['held'],
  ): void {
    this.#deliveries.push({ to, opcode, status, wrId, byteLength, imm, detail, held });
    if (this.#deliveries.length === 1) this.#wake();
  }

  #wake(): void {
    this.world.schedule(this.random.random() * WAKE_MS, this.host, this.#wakeUp);
  }

  /** For the device's own event. */
  deliverBatch(): void {
    const batch = this.#deliveries;
    this.#deliveries = [];
    this.counts.wakeups++;
    for (const each of batch) {
      if (typeof each === 'function') {
        each();
        continue;
      }
      this.counts.completions++;
      each.to.handler(each.opcode, each.status, each.wrId, each.byteLength, each.imm, each.detail);
      for (const { region } of each.held) region.release();
    }
    this.onBatchEnd?.();
    this.ring();
  }

  /** @returns the region when it is this device's own and still registered */
  ownRegion(region: MemoryRegion): SimRegion | undefined {
    return region instanceof SimRegion && region.isUsableBy(this) ? region : undefined;
  }

  /** @returns the region of that key when it may be reached through `qp` */
  regionByKey(rkey: number, qp: SimQueuePair): SimRegion | undefined {
    const region = this.#regionsByKey.get(rkey);
    return region?.isGrantedTo(qp) === true ? region : undefined;
  }

  forgetKey(rkey: number): void {
    this.#regionsByKey.delete(rkey);
  }

  forgetRegion(region: SimRegion): void {
    if (this.#regions.delete(region)) this.counts.regions--;
  }

  /** @returns its number */
  adoptQueuePair(qp: SimQueuePair): number {
    this.#queuePairs.add(qp);
    this.counts.queuePairs++;
    return ++this.#qpns;
  }

  dropQueuePair(qp: SimQueuePair): void {
    if (this.#queuePairs.delete(qp)) this.counts.queuePairs--;
  }

  dropCodingQueue(queue: SimCodingQueue): void {
    this.#codingQueues.delete(queue);
  }

  #assertOpen(attempt: string): void {
    if (this.#closed !== undefined || !this.host.isAlive) {
      throw new RdmaError('ERR_DEVICE_CLOSED', `Cannot ${attempt}: device ${this.name} is closed`);
    }
  }

  #resolve(host: string): string {
    return LOOPBACK.has(host) ? this.host.name : host;
  }

  /** One packet to another host, outside any connection: lost when the way is blocked or nobody lives there. */
  #sendDatagram(to: string, arrive: () => void): void {
    this.#packet(this.host.name, to, () => {
      const target = this.world.findHost(to);
      if (target !== undefined) this.world.schedule(0, target, arrive); // an event of the target: it may be paused
    });
  }

  #answerDatagram(from: string, arrive: () => void): void {
    this.#packet(from, this.host.name, () => this.world.schedule(0, this.host, arrive));
  }

  #packet(from: string, to: string, arrive: () => void): void {
    const { world } = this;
    const link = world.network.link(from, to);
    const { latencyMs, jitterMs, lossRate } = link.options;
    if (lossRate > 0 && world.networkRandom.random() < lossRate) return;
    const delay = latencyMs + jitterMs * world.networkRandom.random();
    world.schedule(delay, undefined, () => {
      if (!link.isBlocked) arrive();
    });
  }
}
