/**
 * A writer's session with a switch: stripe slots, credits, relayed acknowledgements, and the switch's state.
 *
 * A slot is taken when a stripe is posted and comes back by a CREDIT, when the switch has forwarded all of it and its
 * memory may be filled again. The stripe stays ours until the STRIPE_ACK, or until the path is lost.
 *
 * Invariant: every tag given to `send` is answered exactly once by `onSettled` (acknowledged, refused, or UNREACHABLE
 * when the path is lost), and never before the device has stopped reading the tag's memory.
 */
import type { MemoryRegion } from 'tartan-rdma';
import { Flag, Status } from 'tartan-rdma';
import type { MessageChannel } from '../pipeline/channel.js';
import type { Session } from '../pipeline/session.js';
import { Heartbeat } from '../pipeline/session.js';
import type { Clock } from '../wire/clock.js';
import type { Control } from '../wire/generated/ring.js';
import { CREDIT_WORDS, MessageType, Refusal, STRIPE_ACK_WORDS, stripeImm } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { W } from '../wire/unit-header.js';
import type { StripePath, StripePathOwner } from './stripe-path.js';
import { detach } from '../wire/front-door.js';

export interface SwitchPathOptions {
  readonly clock: Clock;
  readonly layout: StripeSlotLayout;
  readonly region: MemoryRegion;
  /** Tags are 0 … tags − 1, and name staging slots in `region` by slotBytes. */
  readonly tags: number;
  readonly heartbeatMs: number;
  readonly deadlineMs: number;
  readonly owner: StripePathOwner;
}

const IDLE = 0,
  WRITING = 1,
  AWAITING_ACK = 2;

export class SwitchPath implements StripePath {
  readonly id: string;
  state: string;
  up = true;
  readonly counters = { stripes: 0, strayAcks: 0 };

  private readonly options: SwitchPathOptions;
  private readonly channel: MessageChannel;
  private readonly words: Uint32Array;
  private readonly rkey: number;
  private readonly slotBytes: number;
  private readonly heartbeat: Heartbeat;
  private readonly free: Uint16Array;
  private freeCount: number;
  private readonly slotTaken: Uint8Array;
  // Per tag.
  private readonly tagState: Uint8Array;
  private readonly counter: Uint32Array;
  private readonly length: Uint32Array;
  private readonly outcome: Uint32Array;
  private readonly outcomeEpoch: Uint32Array;
  private readonly queue: Uint16Array;
  private queueHead = 0;
  private queueCount = 0;

  constructor(id: string, session: Session, options: SwitchPathOptions) {
    this.id = id;
    this.options = options;
    this.channel = session.channel;
    this.state = session.grant.state;
    this.words = new Uint32Array(options.region.buffer);
    this.rkey = session.grant.rkey;
    this.slotBytes = session.grant.slotBytes;
    const slots = session.grant.slots;
    this.free = Uint16Array.from({ length: slots }, (_, i) => slots - 1 - i);
    this.freeCount = slots;
    this.slotTaken = new Uint8Array(slots);
    this.tagState = new Uint8Array(options.tags);
    this.counter = new Uint32Array(options.tags);
    this.length = new Uint32Array(options.tags);
    this.outcome = new Uint32Array(options.tags);
    this.outcomeEpoch = new Uint32Array(options.tags);
    this.queue = new Uint16Array(options.tags);
    this.channel.onWritten = (tag, status) => {
      this.written(tag, status);
    };
    this.channel.onRecords = (type, words, w, count) => {
      this.records(type, words, w, count);
    };
    this.channel.onControl = (message) => {
      this.control(message);
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
    if (this.channel.closed) this.close('closed before use');
  }

  /** Whether stripes may be sent: connected, programmable, with a ring. */
  get usable(): boolean {
    return this.up && this.state === 'programmable' && this.slotTaken.length > 0;
  }

  /** Sends the sealed stripe in staging slot `tag`, at once or when a credit comes. @param stripeLength data bytes */
  send(tag: number, stripeLength: number, counter: number): void {
    this.length[tag] = stripeLength;
    this.counter[tag] = counter;
    this.tagState[tag] = AWAITING_ACK;
    this.outcome[tag] = 0;
    if (!this.up) {
      this.settle(tag, Refusal.UNREACHABLE, 0, 0);
      return;
    }
    if (this.freeCount > 0 && this.queueCount === 0) {
      this.post(tag);
      return;
    }
    this.queue[(this.queueHead + this.queueCount++) % this.queue.length] = tag;
  }

  close(reason: string): void {
    this.channel.qp.toError(reason);
    this.fail(reason);
  }

  destroy(reason: string): Promise<void> {
    this.close(reason);
    return this.channel.destroy(reason);
  }

  private post(tag: number): void {
    const { layout, region } = this.options;
    const slot = this.free[--this.freeCount]!;
    this.slotTaken[slot] = 1;
    this.tagState[tag] = WRITING | AWAITING_ACK;
    this.counters.stripes++;
    const from = layout.dataHeadersOffset,
      bytes = layout.unitsOffset - from + this.length[tag]!;
    this.channel.qp.postWriteWithImm(
      tag,
      region,
      tag * layout.slotBytes + from,
      bytes,
      this.rkey,
      slot * this.slotBytes + from,
      stripeImm(slot, tag, layout.k),
      Flag.SIGNALED,
    );
    this.channel.hub.wake();
  }

  private written(tag: number, _status: number): void {
    if ((this.tagState[tag]! & WRITING) === 0) return;
    this.tagState[tag]! &= ~WRITING;
    if (_status !== Status.SUCCESS && this.up) this.close('write to the switch failed');
    if (this.tagState[tag] === IDLE) this.deliver(tag);
  }

  private records(type: number, words: Uint32Array, w: number, count: number): void {
    this.heartbeat.heard();
    if (type === MessageType.CREDIT) {
      for (let i = 0; i < count; i++, w += CREDIT_WORDS) {
        const slot = words[w]!;
        if (slot >= this.slotTaken.length || this.slotTaken[slot] === 0) {
          this.close(`credit for slot ${slot} that is not taken`);
          return;
        }
        this.slotTaken[slot] = 0;
        this.free[this.freeCount++] = slot;
      }
      while (this.freeCount > 0 && this.queueCount > 0) {
        const tag = this.queue[this.queueHead]!;
        this.queueHead = (this.queueHead + 1) % this.queue.length;
        this.queueCount--;
        this.post(tag);
      }
    } else if (type === MessageType.STRIPE_ACK) {
      for (let i = 0; i < count && this.up; i++, w += STRIPE_ACK_WORDS) this.acknowledge(words, w);
    } else {
      this.close(`unexpected message of type ${type}`);
    }
  }

  /** The switch relays; whether it speaks of this very version, and of every unit, is checked here. */
  private acknowledge(words: Uint32Array, w: number): void {
    const tag = words[w]! & 0xffff,
      refusal = (words[w]! >>> 16) & 0xff,
      unit = words[w]! >>> 24;
    if (tag >= this.tagState.length || (this.tagState[tag]! & AWAITING_ACK) === 0) {
      this.counters.strayAcks++;
      return;
    }
    const { layout } = this.options;
    const head = (tag * layout.slotBytes + layout.dataHeadersOffset) >> 2;
    if (words[w + 4] !== this.counter[tag] || words[w + 3] !== this.words[head + W.WRITER_EPOCH]) {
      // One answer comes for each stripe sent: this one speaks of a header that was damaged on its way to the switch.
      this.counters.strayAcks++;
      this.settle(tag, Refusal.CHECKSUM, 0, words[w + 5]!);
      return;
    }
    const dataMask = layout.k === 32 ? 0xffff_ffff : (1 << layout.k) - 1;
    const missingLo = this.words[head + W.MISSING_LO]!,
      missingHi = this.words[head + W.MISSING_HI]!;
    const missingParity = layout.k === 32 ? missingHi : (missingLo >>> layout.k) | (missingHi << (32 - layout.k));
    const wantData = (dataMask & ~missingLo) >>> 0,
      wantParity = (((1 << layout.m) - 1) & ~missingParity) >>> 0;
    const complete = (words[w + 1]! & wantData) >>> 0 === wantData && (words[w + 2]! & wantParity) >>> 0 === wantParity;
    this.settle(tag, refusal !== 0 || complete ? refusal : Refusal.MALFORMED, unit, words[w + 5]!);
  }

  private settle(tag: number, refusal: number, unit: number, mapEpoch: number): void {
    this.tagState[tag]! &= ~AWAITING_ACK;
    this.outcome[tag] = refusal | (unit << 8);
    this.outcomeEpoch[tag] = mapEpoch;
    if (this.tagState[tag] === IDLE) this.deliver(tag);
  }

  private deliver(tag: number): void {
    this.options.owner.onSettled(tag, this.outcome[tag]! & 0xff, this.outcome[tag]! >>> 8, this.outcomeEpoch[tag]!);
  }

  private control(message: Control): void {
    const kind = message.kind;
    if (kind?.$case === 'probeReply') this.heartbeat.answered(kind.value.id);
    else if (kind?.$case === 'state' && kind.value.state !== this.state) {
      this.state = kind.value.state;
      this.options.owner.onState(this, kind.value.state);
    }
  }

  private fail(reason: string): void {
    if (!this.up) return;
    this.up = false;
    this.heartbeat.stop();
    detach(this.channel.destroy(reason));
    this.options.owner.onLost(this, reason);
    this.queueCount = 0;
    for (let tag = 0; tag < this.tagState.length; tag++) {
      if ((this.tagState[tag]! & AWAITING_ACK) !== 0) this.settle(tag, Refusal.UNREACHABLE, 0, 0);
    }
  }
}
