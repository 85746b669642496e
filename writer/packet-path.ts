/**
 * A writer's way through a packet switch: stripes go as packets to its service address, nodes acknowledge straight to
 * this side.
 *
 *     tag ─▶ (queued: no slot at the nodes, no group yet) ─▶ packets ─┬─▶ every chunk placed (device)
 *                                                                     └─▶ every unit durable (UNIT_ACK of each node's
 *                                                                     session) ─▶ settled
 *
 * The switch keeps nothing of a stripe, so nothing is asked of it when it is lost: what was under way is driven again.
 * Whether its program runs is what probes find out, which nothing else answers; the agent's word in the cluster map
 * comes sooner.
 *
 * A group names an ordered set of nodes under one map epoch: a layout's sets are opened at its agent, all at once where
 * they are as many as nodes, else as stripes ask for them. Under a new map all are opened anew; until then the host
 * computes.
 */
import { createSocket, type Socket } from 'node:dgram';
import type { MemoryRegion } from 'tartan-rdma';
import { ipv4Of } from 'tartan-rdma';
import type { ClusterMap, FileRecord, PacketAddress, SwitchEntry } from '../cluster/records.js';
import { makeCode, parseCode } from '../erasure/code/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { nodeOfUnit } from '../erasure/layout/index.js';
import type { NodeLink } from '../pipeline/node-link.js';
import type { NodeSet } from '../pipeline/node-set.js';
import { PacketLanes, type StripeLane } from '../pipeline/packet-lanes.js';
import { sleep } from '../wire/clock.js';
import { SwitchControl } from '../wire/control.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import {
  IP_UDP_BYTES,
  MAX_PACKET_K,
  MAX_PACKET_M,
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  encodeProbeBody,
  stripePacketBytes,
  type ProbeBody,
} from '../wire/packet-header.js';
import { Refusal } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { W } from '../wire/unit-header.js';
import type { ClientContext } from './context.js';
import type { StripePath, StripePathOwner } from './stripe-path.js';
import { detach } from '../wire/front-door.js';

export interface PacketPathOptions {
  readonly context: ClientContext;
  readonly file: FileRecord;
  readonly layout: Layout;
  readonly slots: StripeSlotLayout;
  readonly region: MemoryRegion;
  /** Tags are 0 … tags − 1, and name staging slots in `region` by slotBytes. */
  readonly tags: number;
  readonly lanes: PacketLanes;
  readonly nodes: NodeSet;
  readonly owner: StripePathOwner;
}

const IDLE = 0,
  WRITING = 1,
  AWAITING_ACK = 2;
const GROUP_RETRY_MS = 50;

export class PacketPath implements StripePath {
  readonly id: string;
  state = 'programmable';
  up = true;
  readonly counters = { stripes: 0, strayAcks: 0 };

  private readonly options: PacketPathOptions;
  private readonly service: PacketAddress;
  private readonly serviceAddress: number;
  private readonly control: SwitchControl;
  private readonly probes: Probes;
  private readonly lane: StripeLane;
  private readonly words: Uint32Array;
  private chunkBytes = 0;
  /** Map epoch of the groups that are open. */
  private epoch = 0;
  private readonly groups = new Map<string, number>();
  private readonly rotation: (number | undefined)[] = [];
  /** Opening groups, one call at a time. */
  private opening: Promise<void> = Promise.resolve();
  private readonly awaitingGroup: number[] = [];
  // Per tag.
  private readonly tagState: Uint8Array;
  private readonly pending: Uint32Array;
  private readonly counter: Uint32Array;
  private readonly stripe: Float64Array;
  private readonly outcome: Uint32Array;
  private readonly outcomeEpoch: Uint32Array;
  /** Tags at the nodes, in no order. */
  private readonly active: number[] = [];
  private readonly queue: number[] = [];

  private constructor(entry: SwitchEntry, options: PacketPathOptions) {
    const { context, lanes, region, tags } = options;
    this.id = entry.id;
    this.options = options;
    this.service = entry.packets!;
    this.serviceAddress = ipv4Of(this.service.host);
    this.words = new Uint32Array(region.buffer);
    this.tagState = new Uint8Array(tags);
    this.pending = new Uint32Array(tags);
    this.counter = new Uint32Array(tags);
    this.stripe = new Float64Array(tags);
    this.outcome = new Uint32Array(tags);
    this.outcomeEpoch = new Uint32Array(tags);
    this.control = new SwitchControl(entry.host, entry.controlPort, {
      secret: context.secret,
      deadlineMs: context.deadlineMs,
    });
    this.lane = lanes.openStripes((tag, ok) => {
      this.written(tag, ok);
    });
    this.probes = new Probes(lanes.host, this.service, context, (reason) => {
      this.close(reason);
    });
  }

  /**
   * @throws {TartanError} ERR_CONNECT: its program does not answer · ERR_CAPACITY: another code, or k or m, than it
   *         takes, or no room
   *   for groups · ERR_DEVICE_KIND: a node takes no packets · what OpenGroups throws
   */
  static async open(entry: SwitchEntry, options: PacketPathOptions): Promise<PacketPath> {
    const { slots, nodes, context, file } = options,
      code = parseCode(file.code);
    // A node can't tell: what the program computes for another code has sound checksums, and decodes to nothing.
    if (!makeCode('rs', code.k, code.m).matrix.every((coefficient, at) => coefficient === code.matrix[at]))
      throw new TartanError(
        'ERR_CAPACITY',
        `Cannot send stripes of ${code.name} through switch ${entry.id}: its program computes xor, rs and copies only`,
      );
    for (const index of nodes.upIndexes()) {
      if (nodes.linkTo(index)?.takesPackets === false)
        throw new TartanError(
          'ERR_DEVICE_KIND',
          `Cannot send stripes through switch ${entry.id}: node ${nodes.linkTo(index)!.nodeId} takes no packets`,
        );
    }
    const path = new PacketPath(entry, options);
    try {
      const program = await path.probes.first(context.deadlineMs);
      if (slots.k > program.k || slots.m > program.m)
        throw new TartanError(
          'ERR_CAPACITY',
          `Cannot send stripes of ${slots.k} + ${slots.m} units through switch ${entry.id}: its program ` +
            `takes ${program.k} + ${program.m} at most`,
        );
      const most = stripePacketBytes(slots.k, program.chunkBytes) + IP_UDP_BYTES;
      if (most > options.lanes.mtu)
        throw new TartanError(
          'ERR_CAPACITY',
          `Cannot send stripes through switch ${entry.id}: its program's packets are ${most} bytes for k ` +
            `= ${slots.k}, the MTU here is ${options.lanes.mtu}`,
        );
      path.chunkBytes = program.chunkBytes;
      await path.openGroups(nodes.map);
      path.probes.start();
      return path;
    } catch (error) {
      path.up = false;
      await path.destroy('not opened');
      throw error;
    }
  }

  get usable(): boolean {
    return this.up && this.epoch === this.options.nodes.map.epoch;
  }

  send(tag: number, _stripeLength: number, counter: number): void {
    const { slots } = this.options,
      head = (tag * slots.slotBytes + slots.dataHeadersOffset) >> 2;
    this.counter[tag] = counter;
    this.stripe[tag] = this.words[head + W.STRIPE_HI]! * 2 ** 32 + this.words[head + W.STRIPE_LO]!;
    this.tagState[tag] = AWAITING_ACK;
    this.outcome[tag] = 0;
    this.pending[tag] = ((2 ** (slots.k + slots.m) - 1) & ~this.words[head + W.MISSING_LO]!) >>> 0;
    if (!this.up) {
      this.settle(tag, Refusal.UNREACHABLE, 0, 0);
      return;
    }
    this.offer(tag);
  }

  /** A node's answer about a unit. */
  answered(
    _link: NodeLink,
    unit: number,
    refusal: number,
    stripe: number,
    _writerEpoch: number,
    counter: number,
    mapEpoch: number,
    nodeMapEpoch: number,
  ): void {
    const { slots } = this.options;
    for (const tag of unit < slots.k + slots.m ? this.active : []) {
      if (this.counter[tag] !== counter || this.stripe[tag] !== stripe) continue;
      if (this.words[((tag * slots.slotBytes + slots.dataHeadersOffset) >> 2) + W.MAP_EPOCH] !== mapEpoch) break;
      if ((this.pending[tag]! & (1 << unit)) === 0) break;
      if (refusal !== Refusal.NONE) {
        this.settle(tag, refusal, unit, nodeMapEpoch);
        return;
      }
      this.pending[tag] = (this.pending[tag]! & ~(1 << unit)) >>> 0;
      if (nodeMapEpoch > this.outcomeEpoch[tag]!) this.outcomeEpoch[tag] = nodeMapEpoch;
      if (this.pending[tag] === 0) this.settle(tag, Refusal.NONE, 0, this.outcomeEpoch[tag]!);
      return;
    }
    this.counters.strayAcks++;
  }

  /** A node is gone: nothing that waits for it will be answered. @param index  in the file's list */
  nodeLost(index: number): void {
    const { layout, slots } = this.options;
    // Those that wait first: none of them takes the place of one that is settled.
    for (const tag of [...this.queue, ...this.active]) {
      for (let unit = 0; unit < slots.k + slots.m; unit++) {
        if ((this.pending[tag]! & (1 << unit)) === 0 || nodeOfUnit(layout, this.stripe[tag]!, unit) !== index) continue;
        this.settle(tag, Refusal.UNREACHABLE, unit, 0);
        break;
      }
    }
  }

  remap(map: ClusterMap): void {
    if (map.epoch === this.epoch) return;
    for (const tag of [...this.awaitingGroup, ...this.queue, ...this.active])
      this.settle(tag, Refusal.STALE_MAP, 0, map.epoch);
    detach(this.reopen(map));
  }

  close(reason: string): void {
    if (!this.up) return;
    this.up = false;
    this.probes.stop();
    this.options.owner.onLost(this, reason);
    for (const tag of [...this.awaitingGroup, ...this.queue, ...this.active])
      this.settle(tag, Refusal.UNREACHABLE, 0, 0);
    this.options.context.hub.wake();
  }

  async destroy(reason: string): Promise<void> {
    this.close(reason);
    this.probes.stop();
    await this.opening;
    this.control.close();
  }

  // --- under way

  /** Stripes that the nodes have slots for. */
  private room(): number {
    const { nodes } = this.options;
    let room = Infinity;
    for (let index = 0; index < nodes.count; index++) room = Math.min(room, nodes.linkTo(index)?.slots ?? Infinity);
    return room;
  }

  /** At once, or when there is room. */
  private offer(tag: number): void {
    if (this.queue.length > 0 || this.active.length >= this.room()) this.queue.push(tag);
    else this.post(tag);
  }

  private post(tag: number): void {
    const { slots, region, context } = this.options,
      base = tag * slots.slotBytes;
    const group = this.groupOf(this.stripe[tag]!);
    if (group === undefined) {
      this.awaitingGroup.push(tag);
      return;
    }
    this.tagState[tag] = WRITING | AWAITING_ACK;
    this.active.push(tag);
    this.counters.stripes++;
    this.lane.post(
      tag,
      region,
      base + slots.dataHeadersOffset,
      base + slots.unitsOffset,
      slots.unitBytes,
      group,
      this.chunkBytes,
      this.pending[tag]!,
      this.serviceAddress,
      this.service.port,
    );
    context.hub.wake();
  }

  private written(tag: number, ok: boolean): void {
    if ((this.tagState[tag]! & WRITING) === 0) return;
    this.tagState[tag]! &= ~WRITING;
    if (this.tagState[tag] === IDLE) this.deliver(tag);
    else if (!ok) this.close(`stripes can't be sent to switch ${this.id} as packets: the path takes only smaller ones`);
  }

  private settle(tag: number, refusal: number, unit: number, mapEpoch: number): void {
    if ((this.tagState[tag]! & AWAITING_ACK) === 0) return;
    this.tagState[tag]! &= ~AWAITING_ACK;
    this.outcome[tag] = refusal | (unit << 8);
    this.outcomeEpoch[tag] = mapEpoch;
    for (const list of [this.active, this.queue, this.awaitingGroup]) {
      const at = list.indexOf(tag);
      if (at >= 0) list.splice(at, 1);
    }
    // All is durable, or all is to be sent again: no chunk need arrive any more.
    if (this.tagState[tag] === IDLE) this.deliver(tag);
    else {
      this.lane.cancel(tag);
      this.options.context.hub.wake();
    }
    while (this.up && this.queue.length > 0 && this.active.length < this.room()) this.post(this.queue.shift()!);
  }

  private deliver(tag: number): void {
    this.options.owner.onSettled(tag, this.outcome[tag]! & 0xff, this.outcome[tag]! >>> 8, this.outcomeEpoch[tag]!);
    this.outcomeEpoch[tag] = 0;
  }

  // --- groups

  private groupOf(stripe: number): number | undefined {
    const { layout } = this.options;
    if (layout.spread === undefined) return this.rotation[stripe % layout.nodes];
    const nodes = this.nodesOf(stripe),
      group = this.groups.get(nodes.join());
    if (group === undefined) detach(this.openSet(nodes));
    return group;
  }

  /** Node ids by unit. */
  private nodesOf(stripe: number): string[] {
    const { layout, slots, file } = this.options;
    return Array.from({ length: slots.k + slots.m }, (_, unit) => file.nodes[nodeOfUnit(layout, stripe, unit)]!);
  }

  private async openGroups(map: ClusterMap): Promise<void> {
    const { layout } = this.options;
    this.groups.clear();
    this.rotation.length = 0;
    if (layout.spread === undefined) {
      const sets = Array.from({ length: layout.nodes }, (_, row) => this.nodesOf(row));
      this.rotation.push(...(await this.ask(map.epoch, sets)));
    }
    this.epoch = map.epoch;
  }

  /** The set of one stripe; tags that wait for it are posted then. */
  private openSet(nodes: string[]): Promise<void> {
    const key = nodes.join();
    return (this.opening = this.opening.then(async () => {
      if (this.groups.has(key) || !this.up) return;
      try {
        const [group] = await this.ask(this.epoch, [nodes]);
        this.groups.set(key, group!);
        for (const tag of this.awaitingGroup.splice(0)) this.offer(tag);
      } catch (error) {
        if (!isOperating(error)) throw error;
        if (!this.usable) return; // of a map that is over: whoever waited has been or will be told
        this.close(`switch ${this.id} opens no group: ${(error as Error).message}`);
      }
    }));
  }

  private async ask(mapEpoch: number, sets: string[][]): Promise<number[]> {
    const { k, m } = this.options.slots;
    const { groups } = await this.control.openGroups({ mapEpoch, k, m, sets: sets.map((nodes) => ({ nodes })) });
    if (groups.length !== sets.length)
      throw new TartanError(
        'ERR_MALFORMED',
        `Cannot use switch ${this.id}: it opened ${groups.length} groups, ${sets.length} were asked for`,
      );
    return groups;
  }

  /** The agent may hear of the map a little later than this side. */
  private reopen(map: ClusterMap): Promise<void> {
    const { context } = this.options,
      deadline = context.clock.now() + context.deadlineMs;
    return (this.opening = this.opening.then(async () => {
      while (this.up && this.options.nodes.map.epoch === map.epoch) {
        try {
          await this.openGroups(map);
          return;
        } catch (error) {
          if (!isOperating(error)) throw error;
          if (codeOf(error) !== 'ERR_STALE_MAP' || context.clock.now() > deadline) {
            this.close(`switch ${this.id} opens no groups: ${(error as Error).message}`);
            return;
          }
          await sleep(context.clock, GROUP_RETRY_MS);
        }
      }
    }));
  }
}

/** Asks the switch's program, again and again, whether it runs. */
class Probes {
  private readonly socket: Socket;
  private readonly packet = new Uint8Array(PACKET_HEADER_BYTES + PROBE_BODY_BYTES);
  private readonly ready: Promise<void>;
  private nonce: bigint;
  private heardAt = 0;
  private cookie: bigint | undefined;
  private timer: unknown;
  private stopped = false;
  private onAnswer: ((program: ProbeBody) => void) | undefined;

  constructor(
    host: string,
    private readonly service: PacketAddress,
    private readonly context: ClientContext,
    private readonly onLost: (reason: string) => void,
  ) {
    this.nonce = BigInt(Math.floor(context.clock.random() * 2 ** 52)) << 8n;
    this.socket = createSocket('udp4');
    // What can't be sent is a probe that is not answered.
    this.socket.on('error', () => {});
    this.socket.on('message', (packet) => {
      this.take(packet);
    });
    this.ready = new Promise((resolve) => {
      this.socket.bind(0, host, resolve);
    });
  }

  /** @throws {TartanError} ERR_CONNECT */
  async first(timeoutMs: number): Promise<ProbeBody> {
    const { clock, heartbeatMs } = this.context;
    await this.ready;
    let answer: ProbeBody | undefined;
    this.onAnswer = (program) => {
      answer = program;
    };
    for (const deadline = clock.now() + timeoutMs; answer === undefined && clock.now() < deadline && !this.stopped; ) {
      this.ask();
      await sleep(clock, Math.min(heartbeatMs, 20));
    }
    this.onAnswer = undefined;
    if (answer === undefined)
      throw new TartanError(
        'ERR_CONNECT',
        `Cannot send stripes to ${this.service.host}:${this.service.port}: no program answers a probe ` +
          `within ${timeoutMs} ms`,
      );
    return answer;
  }

  start(): void {
    this.heardAt = this.context.clock.now();
    this.tick(this.heardAt);
  }

  stop(): void {
    if (this.stopped) return;
    this.stopped = true;
    if (this.timer !== undefined) this.context.clock.clearTimer(this.timer);
    detach(
      this.ready.then(() => {
        this.socket.close();
      }),
    );
  }

  private tick(before: number): void {
    const { clock, heartbeatMs, deadlineMs } = this.context,
      now = clock.now();
    // When this process itself slept, the program is asked before it is called silent.
    if (now - before > deadlineMs) this.heardAt = now;
    if (now - this.heardAt > deadlineMs) {
      this.onLost(
        `the program at ${this.service.host} has not answered a probe for ${Math.round(now - this.heardAt)} ms`,
      );
      return;
    }
    this.ask();
    this.timer = clock.setTimer(heartbeatMs, () => {
      this.tick(now);
    });
  }

  private ask(): void {
    encodePacketHeader(
      { type: PacketType.PROBE, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
      this.packet,
      0,
    );
    encodeProbeBody({ nonce: ++this.nonce, cookie: 0n, program: 0, k: 0, m: 0, chunkBytes: 0 }, this.packet);
    // The checksum covers the header only; the body's nonce tells this side's probes from others.
    if (!this.stopped) this.socket.send(this.packet, this.service.port, this.service.host);
  }

  private take(packet: Uint8Array): void {
    const header = decodePacketHeader(packet);
    if (typeof header === 'string' || header.type !== PacketType.PROBE_ANSWER) return;
    const program = decodeProbeBody(packet);
    if (program.nonce >> 8n !== this.nonce >> 8n && this.nonce - program.nonce > 1000n) return;
    this.heardAt = this.context.clock.now();
    // Another program under the same address knows none of our groups.
    if (this.cookie !== undefined && this.cookie !== program.cookie && this.onAnswer === undefined) {
      this.onLost(`the program at ${this.service.host} was changed for another`);
      return;
    }
    this.cookie = program.cookie;
    this.onAnswer?.(program);
  }
}

/** Where packets are wanted, the device has them, and the code fits them; undefined: rings. */
export async function openLanes(
  context: ClientContext,
  file: FileRecord,
  map: ClusterMap,
): Promise<PacketLanes | undefined> {
  const { k, m } = parseCode(file.code);
  if (context.dataPath === 'ring' || k > MAX_PACKET_K || m > MAX_PACKET_M) return undefined;
  const packetSwitch = map.switches.find(({ packets }) => packets !== undefined)?.packets;
  if (context.dataPath === 'auto' && (packetSwitch === undefined || context.device.openPacketSocket === undefined))
    return undefined;
  const taking = map.nodes.find(({ id, packets }) => packets !== undefined && file.nodes.includes(id));
  return taking && PacketLanes.open(context, taking.packets!.host, packetSwitch?.mtu);
}
