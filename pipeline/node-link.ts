/**
 * A sender's connection to one storage node: unit slots, credits, acknowledgements.
 *
 * A slot is taken when a unit is posted and free again when its write has completed here *and* the node has
 * acknowledged it (durable or refused): only then may either side's memory be written again. Units wait in order for
 * slots.
 *
 * Invariant: every unit given to `send` is answered exactly once by `onAnswer`, also when the connection breaks; and
 * `onWritten` is called exactly once for every unit that was posted, when the device no longer reads its memory.
 */
import type { MemoryRegion } from 'tartan-rdma';
import { Flag, Status } from 'tartan-rdma';
import type { Clock } from '../wire/clock.js';
import { errorFromPeer, TartanError } from '../wire/errors.js';
import type { Control, Reply, Request } from '../wire/generated/ring.js';
import { ACK_WORDS, MessageType, READ_FAILED_WORDS, Refusal, UNIT_ACK_WORDS, unitImm } from '../wire/ring-messages.js';
import { PAGE_BYTES } from '../wire/slot-layout.js';
import type { PacketLane, PacketLanes } from './packet-lanes.js';
import type { MessageChannel } from './channel.js';
import type { Session } from './session.js';
import { Heartbeat } from './session.js';
import { detach } from '../wire/front-door.js';

/** Where a unit's header and payload lie; filled in by the owner for each unit as it is posted. */
export interface UnitPlace {
  region: MemoryRegion;
  headerOffset: number;
  headerBytes: number;
  payloadOffset: number;
  payloadBytes: number;
  writerEpoch: number;
  counter: number;
  /** For packets, whose acknowledgements name units and not slots. */
  stripe: number;
  mapEpoch: number;
}

export interface NodeLinkOwner {
  /** Fills `place` for a unit about to be posted. */
  locate(op: number, unit: number, place: UnitPlace): void;
  /** The device no longer reads the unit's memory. */
  onWritten(link: NodeLink, op: number, unit: number, ok: boolean): void;
  /** Durable (refusal 0) or refused; `nodeMapEpoch` as the node reported. */
  onAnswer(link: NodeLink, op: number, unit: number, refusal: number, nodeMapEpoch: number): void;
  /**
   * A unit that this link did not send, of a stripe sent to a packet switch, is durable or refused.
   * @param mapEpoch  of its header
   */
  onStripeAnswer?(
    link: NodeLink,
    unit: number,
    refusal: number,
    stripe: number,
    writerEpoch: number,
    counter: number,
    mapEpoch: number,
    nodeMapEpoch: number,
  ): void;
  /** The connection is gone; all its units have been or will be answered with UNREACHABLE. */
  onLinkDown(link: NodeLink, reason: string): void;
  /** The node has placed what a read asked for. */
  onRead?(link: NodeLink, requestId: number): void;
  /** @param commitEpoch, commitCounter  the highest commit mark that the node knows of the file */
  onReadFailed?(link: NodeLink, requestId: number, refusal: number, commitEpoch: number, commitCounter: number): void;
}

/** A read's wishes, filled in by the caller; see READ_WORDS in wire/ring-messages.ts. */
export interface ReadWish {
  requestId: number;
  fileId: number;
  stripe: number;
  unit: number;
  /** Highest version wanted; with `exact`, the only one. */
  epoch: number;
  counter: number;
  exact: boolean;
  /** Where the answer goes: this link's peer may write there from the first read on. */
  region: MemoryRegion;
  payloadOffset: number;
  capacity: number;
  headerOffset: number;
}

type RequestOp = NonNullable<Request['op']>;

const TWO_32 = 0x1_0000_0000;
const FREE = 0,
  WRITING = 1,
  WAITING_ACK = 2;

export interface NodeLinkOptions {
  clock: Clock;
  heartbeatMs: number;
  deadlineMs: number;
  /** When the node granted slots for packets: what sends them. */
  packets?: PacketLanes | undefined;
  /** The node's address as the map has it; needed with `packets`. */
  host?: string;
}

export class NodeLink {
  readonly nodeId: string;
  /** Index of the node in the file's list. */
  readonly index: number;
  up = true;
  /** Highest map epoch the node has reported. */
  nodeMapEpoch = 0;
  readonly counters = { units: 0, refused: 0, strayAcks: 0 };

  private readonly owner: NodeLinkOwner;
  private readonly channel: MessageChannel;
  private readonly rkey: number;
  private readonly granted = new WeakSet<MemoryRegion>();
  private readonly slotBytes: number;
  private readonly heartbeat: Heartbeat;
  private readonly clock: Clock;
  private readonly deadlineMs: number;
  // One entry a slot: bit 1: the write has not completed, bit 2: the acknowledgement has not come.
  private readonly slotState: Uint8Array;
  private readonly slotOp: Uint32Array;
  private readonly slotUnit: Uint8Array;
  private readonly slotEpoch: Uint32Array;
  private readonly slotCounter: Uint32Array;
  private readonly slotStripe: Float64Array;
  private readonly slotMapEpoch: Uint32Array;
  private readonly lane: PacketLane | undefined;
  private readonly free: Uint16Array;
  private freeCount: number;
  // Units waiting for a slot: a ring of op · 64 + unit.
  private queue = new Float64Array(256);
  private queueHead = 0;
  private queueCount = 0;
  private readonly place: UnitPlace = {
    region: undefined as unknown as MemoryRegion,
    headerOffset: 0,
    headerBytes: 0,
    payloadOffset: 0,
    payloadBytes: 0,
    writerEpoch: 0,
    counter: 0,
    stripe: 0,
    mapEpoch: 0,
  };
  private nextRequest = 1;
  private readonly requests = new Map<
    number,
    { resolve: (reply: Reply) => void; reject: (error: Error) => void; timer: unknown }
  >();

  constructor(nodeId: string, index: number, session: Session, owner: NodeLinkOwner, options: NodeLinkOptions) {
    this.nodeId = nodeId;
    this.index = index;
    this.owner = owner;
    this.clock = options.clock;
    this.deadlineMs = options.deadlineMs;
    this.channel = session.channel;
    this.rkey = session.grant.rkey;
    this.slotBytes = session.grant.slotBytes;
    const slots = session.grant.slots;
    this.slotState = new Uint8Array(slots);
    this.slotOp = new Uint32Array(slots);
    this.slotUnit = new Uint8Array(slots);
    this.slotEpoch = new Uint32Array(slots);
    this.slotCounter = new Uint32Array(slots);
    this.slotStripe = new Float64Array(slots);
    this.slotMapEpoch = new Uint32Array(slots);
    this.free = Uint16Array.from({ length: slots }, (_, i) => slots - 1 - i);
    this.freeCount = slots;
    this.lane =
      session.grant.packetPort === undefined
        ? undefined
        : options.packets?.open(options.host ?? '', session.grant.packetPort, (slot, ok) => {
            this.written(slot, ok);
          });
    this.nodeMapEpoch = session.grant.mapEpoch;
    this.channel.onWritten = (wrId, status) => {
      this.written(wrId, status === Status.SUCCESS);
    };
    this.channel.onRecords = (type, words, w, count, mapEpoch) => {
      this.records(type, words, w, count, mapEpoch);
    };
    this.channel.onControl = (message) => {
      this.control(message);
    };
    this.channel.onWrite = (imm) => {
      this.owner.onRead?.(this, imm);
    };
    this.channel.onClosed = (reason) => {
      this.fail(reason);
    };
    this.heartbeat = new Heartbeat({
      clock: options.clock,
      channel: this.channel,
      intervalMs: options.heartbeatMs,
      deadlineMs: options.deadlineMs,
      onLate: (late) => {
        this.close(`no answer to a probe for ${Math.round(late)} ms`);
      },
    });
    if (this.channel.closed) this.fail('closed before use');
  }

  /** Sends a unit when a slot is free; answers through the owner, at once with UNREACHABLE when the link is down. */
  send(op: number, unit: number): void {
    if (!this.up) {
      this.owner.onAnswer(this, op, unit, Refusal.UNREACHABLE, this.nodeMapEpoch);
      return;
    }
    if (this.freeCount > 0 && this.queueCount === 0) {
      this.post(op, unit);
      return;
    }
    if (this.queueCount === this.queue.length) this.growQueue();
    this.queue[(this.queueHead + this.queueCount++) % this.queue.length] = op * 64 + unit;
  }

  /** Asks for a unit; the owner hears onRead or onReadFailed, or onLinkDown. */
  read(wish: ReadWish): void {
    if (!this.granted.has(wish.region)) {
      this.granted.add(wish.region);
      wish.region.grant(this.channel.qp);
    }
    const queue = this.channel.records(MessageType.READ);
    const w = queue.push(),
      words = queue.words;
    words[w] = wish.requestId;
    words[w + 1] = wish.fileId % TWO_32;
    words[w + 2] = Math.floor(wish.fileId / TWO_32);
    words[w + 3] = wish.stripe % TWO_32;
    words[w + 4] = Math.floor(wish.stripe / TWO_32);
    words[w + 5] = wish.unit;
    words[w + 6] = wish.epoch;
    words[w + 7] = wish.counter;
    words[w + 8] = wish.region.rkey;
    words[w + 9] = wish.payloadOffset;
    words[w + 10] = wish.capacity;
    words[w + 11] = wish.headerOffset;
    words[w + 12] = wish.exact ? wish.epoch : 0;
    words[w + 13] = wish.exact ? wish.counter : 0;
    this.channel.touch();
  }

  /** The map this side acts under; the node refuses requests and reads under an older one than its own. */
  adoptMap(epoch: number): void {
    this.channel.mapEpoch = epoch;
  }

  /** Whether units go as packets; and how many may be under way. */
  get takesPackets(): boolean {
    return this.lane !== undefined;
  }
  get slots(): number {
    return this.slotState.length;
  }

  get waiting(): number {
    return this.queueCount;
  }

  /** Sends a request and waits for its reply. @throws {TartanError} the reply's code, ERR_CONNECT, ERR_DEADLINE */
  request(op: RequestOp, timeoutMs = this.deadlineMs * 4): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (!this.up) {
        reject(new TartanError('ERR_CONNECT', `Cannot ask node ${this.nodeId}: its connection is down`));
        return;
      }
      const id = this.nextRequest;
      this.nextRequest = id === 0xffff_ffff ? 1 : id + 1; // 32 bits on the wire
      const timer = this.clock.setTimer(timeoutMs, () => {
        this.requests.delete(id);
        reject(
          new TartanError('ERR_DEADLINE', `Node ${this.nodeId} did not answer '${op.$case}' within ${timeoutMs} ms`),
        );
      });
      this.requests.set(id, { resolve, reject, timer });
      this.channel.sendControl({ kind: { $case: 'request', value: { id, op } } });
    });
  }

  /** Ends the connection: everything under way is answered with UNREACHABLE. */
  close(reason: string): void {
    this.channel.qp.toError(reason);
    this.fail(reason);
  }

  /** Resolves when the connection's memory has been given back. */
  destroy(reason: string): Promise<void> {
    this.close(reason);
    return this.channel.destroy(reason);
  }

  private post(op: number, unit: number): void {
    const slot = this.free[--this.freeCount]!;
    const place = this.place;
    this.owner.locate(op, unit, place);
    this.slotState[slot] = WRITING | WAITING_ACK;
    this.slotOp[slot] = op;
    this.slotUnit[slot] = unit;
    this.slotEpoch[slot] = place.writerEpoch;
    this.slotCounter[slot] = place.counter;
    this.slotStripe[slot] = place.stripe;
    this.slotMapEpoch[slot] = place.mapEpoch;
    this.counters.units++;
    if (this.lane !== undefined) {
      this.lane.post(slot, place);
      this.channel.hub.wake();
      return;
    }
    this.channel.qp.postGatherWithImm(
      slot,
      place.region,
      place.headerOffset,
      place.headerBytes,
      place.payloadOffset,
      place.payloadBytes,
      this.rkey,
      slot * this.slotBytes + PAGE_BYTES - place.headerBytes,
      unitImm(slot, place.headerBytes),
      Flag.SIGNALED,
    );
    this.channel.hub.wake();
  }

  private written(slot: number, ok: boolean): void {
    const state = this.slotState[slot]!;
    if ((state & WRITING) === 0) return;
    this.slotState[slot] = state & ~WRITING;
    if (!this.up) this.retireLane();
    const op = this.slotOp[slot]!,
      unit = this.slotUnit[slot]!;
    if (this.slotState[slot] === FREE) this.release(slot);
    this.owner.onWritten(this, op, unit, ok);
    if (!ok && this.up && this.lane !== undefined) this.close('packets of this size do not get through');
  }

  private records(type: number, words: Uint32Array, w: number, count: number, mapEpoch: number): void {
    if (mapEpoch > this.nodeMapEpoch) this.nodeMapEpoch = mapEpoch;
    this.heartbeat.heard();
    if (type === MessageType.READ_FAILED) {
      for (let i = 0; i < count && this.up; i++, w += READ_FAILED_WORDS)
        this.owner.onReadFailed?.(this, words[w]!, words[w + 1]!, words[w + 2]!, words[w + 3]!);
      return;
    }
    if (type === MessageType.UNIT_ACK && this.lane !== undefined) {
      for (let i = 0; i < count && this.up; i++, w += UNIT_ACK_WORDS) this.unitAnswer(words, w);
      return;
    }
    if (type !== MessageType.ACK) {
      this.close(`unexpected message of type ${type}`);
      return;
    }
    for (let i = 0; i < count && this.up; i++, w += ACK_WORDS) {
      const slot = words[w]! & 0xffff;
      if (slot >= this.slotState.length || (this.slotState[slot]! & WAITING_ACK) === 0) {
        this.counters.strayAcks++;
        continue;
      }
      if (words[w + 1] !== this.slotEpoch[slot] || words[w + 2] !== this.slotCounter[slot]) {
        // One answer comes for each unit sent: this one speaks of a header that was damaged on its way to the node.
        this.counters.strayAcks++;
        this.settle(slot, Refusal.CHECKSUM, words[w + 3]!);
        continue;
      }
      this.settle(slot, words[w]! >>> 16, words[w + 3]!);
    }
  }

  private settle(slot: number, refusal: number, nodeMapEpoch: number): void {
    if (refusal !== 0) this.counters.refused++;
    const op = this.slotOp[slot]!,
      unit = this.slotUnit[slot]!;
    this.slotState[slot]! &= ~WAITING_ACK;
    if (this.slotState[slot] === FREE) this.release(slot);
    this.owner.onAnswer(this, op, unit, refusal, nodeMapEpoch);
  }

  /**
   * Of a unit sent by this link, or by the switch: whichever copy the node took, it is the same unit under the same
   * header.
   */
  private unitAnswer(words: Uint32Array, w: number): void {
    const unit = words[w]! & 0xff,
      refusal = words[w]! >>> 8;
    const stripe = words[w + 2]! * TWO_32 + words[w + 1]!,
      epoch = words[w + 3]!,
      counter = words[w + 4]!,
      mapEpoch = words[w + 5]!;
    for (let slot = 0; slot < this.slotState.length; slot++) {
      if (
        (this.slotState[slot]! & WAITING_ACK) === 0 ||
        this.slotStripe[slot] !== stripe ||
        this.slotCounter[slot] !== counter
      )
        continue;
      if (this.slotUnit[slot] !== unit || this.slotEpoch[slot] !== epoch || this.slotMapEpoch[slot] !== mapEpoch)
        continue;
      this.settle(slot, refusal, words[w + 6]!);
      return;
    }
    if (this.owner.onStripeAnswer === undefined) this.counters.strayAcks++;
    else this.owner.onStripeAnswer(this, unit, refusal, stripe, epoch, counter, mapEpoch, words[w + 6]!);
  }

  private release(slot: number): void {
    if (!this.up) return;
    this.free[this.freeCount++] = slot;
    if (this.queueCount > 0) {
      const entry = this.queue[this.queueHead]!;
      this.queueHead = (this.queueHead + 1) % this.queue.length;
      this.queueCount--;
      this.post(Math.floor(entry / 64), entry % 64);
    }
  }

  private retireLane(): void {
    if (this.slotState.every((state) => (state & WRITING) === 0)) this.lane?.retire();
  }

  private control(message: Control): void {
    const kind = message.kind;
    if (kind?.$case === 'probeReply') {
      this.heartbeat.answered(kind.value.id);
      return;
    }
    if (kind?.$case === 'reply') {
      const waiting = this.requests.get(kind.value.id);
      if (waiting === undefined) return;
      this.requests.delete(kind.value.id);
      this.clock.clearTimer(waiting.timer);
      if (kind.value.mapEpoch > this.nodeMapEpoch) this.nodeMapEpoch = kind.value.mapEpoch;
      if (kind.value.code === '') waiting.resolve(kind.value);
      else waiting.reject(errorFromPeer(kind.value.code, kind.value.message));
      return;
    }
  }

  /** Answers what has no answer yet. Writes still posted are reported by their flushed completions. */
  private fail(reason: string): void {
    if (!this.up) return;
    this.up = false;
    this.heartbeat.stop();
    detach(this.channel.destroy(reason));
    // Nobody will acknowledge these chunks: the device gives them up, and says so as of any write.
    if (this.lane !== undefined) {
      for (let slot = 0; slot < this.slotState.length; slot++)
        if ((this.slotState[slot]! & WRITING) !== 0) this.lane.cancel(slot);
      this.channel.hub.wake();
      this.retireLane();
    }
    for (const [, waiting] of this.requests) {
      this.clock.clearTimer(waiting.timer);
      waiting.reject(new TartanError('ERR_CONNECT', `Node ${this.nodeId} is gone: ${reason}`));
    }
    this.requests.clear();
    // First the picture, then the answers: who gets an answer may look at `up`.
    const queued = this.queueCount,
      head = this.queueHead;
    this.queueCount = 0;
    for (let slot = 0; slot < this.slotState.length; slot++) {
      if ((this.slotState[slot]! & WAITING_ACK) === 0) continue;
      this.slotState[slot]! &= ~WAITING_ACK;
      this.owner.onAnswer(this, this.slotOp[slot]!, this.slotUnit[slot]!, Refusal.UNREACHABLE, this.nodeMapEpoch);
    }
    for (let i = 0; i < queued; i++) {
      const entry = this.queue[(head + i) % this.queue.length]!;
      this.owner.onAnswer(this, Math.floor(entry / 64), entry % 64, Refusal.UNREACHABLE, this.nodeMapEpoch);
    }
    this.owner.onLinkDown(this, reason);
  }

  private growQueue(): void {
    const larger = new Float64Array(this.queue.length * 2);
    for (let i = 0; i < this.queueCount; i++) larger[i] = this.queue[(this.queueHead + i) % this.queue.length]!;
    this.queue = larger;
    this.queueHead = 0;
  }
}
