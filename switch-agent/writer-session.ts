/**
 * The software switch's side of one writer: a ring of stripe slots, links to the file's nodes, and the pipeline.
 *
 * A stripe arrives whole in a slot: sealed data headers, then the data. Each data unit is forwarded from where it lies;
 * parity is encoded beside it. The slot's credit returns when everything has been forwarded; the acknowledgement, when
 * every unit is durable, or with the first refusal. All of this is soft state: losing it costs the writer a retry.
 */
import type { MemoryRegion } from 'tartan-rdma';
import { Access } from 'tartan-rdma';
import type { ClusterMap } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutOf } from '../erasure/layout/index.js';
import type { MessageChannel } from '../pipeline/channel.js';
import { GiveBack } from '../pipeline/give-back.js';
import { NodeSet } from '../pipeline/node-set.js';
import type { RingMemory } from '../pipeline/ring-memory.js';
import type { SessionContext } from '../pipeline/session.js';
import { StripePipeline } from '../pipeline/stripe-pipeline.js';
import { TartanError } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import type { Hello } from '../wire/generated/ring.js';
import {
  MAX_SWITCH_SLOTS,
  MAX_TAGS,
  MessageType,
  Refusal,
  stripeImmK,
  stripeImmSlot,
  stripeImmTag,
} from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { stripeSlotLayout, unitSlotBytes } from '../wire/slot-layout.js';
import {
  DATA_HEADER_BYTES,
  W,
  checkHeader,
  headerFileId,
  headerK,
  headerM,
  headerStripe,
  headerUnit,
  headerUnitBytes,
} from '../wire/unit-header.js';

/** Bytes of ring granted to a writer when the budget allows. */
const RING_BYTES = 16 << 20;
const NODE_SLOTS = 256;
const NODE_RING_BYTES = 16 << 20;

export interface WriterSessionOptions {
  readonly context: SessionContext;
  readonly id: string;
  readonly hello: Hello;
  readonly map: ClusterMap;
  readonly transport: 'auto' | 'tcp' | 'shm';
  readonly heartbeatMs: number;
  readonly deadlineMs: number;
  readonly memory: RingMemory;
  readonly onProtocolError: (reason: string) => void;
}

export class WriterSession {
  readonly writerName: string;
  readonly slots: number;
  readonly layout: StripeSlotLayout;
  readonly region: MemoryRegion;
  readonly nodes: NodeSet;
  readonly pipeline: StripePipeline;
  readonly counters = { stripes: 0, bytes: 0, refused: 0, protocolErrors: 0 };

  private readonly options: WriterSessionOptions;
  private readonly channel: MessageChannel;
  private readonly words: Uint32Array;
  private readonly ringBytes: number;
  private readonly tags: number;
  private readonly code: Code;
  private readonly slotBusy: Uint8Array;
  private readonly tagSlot: Uint16Array;
  private readonly tagEpoch: Uint32Array;
  private readonly tagCounter: Uint32Array;
  private readonly tagMissing: Float64Array;
  private ended: Promise<void> | undefined;

  /** @throws {TartanError} for wishes that can't be met */
  constructor(channel: MessageChannel, options: WriterSessionOptions) {
    const { hello, context, id } = options;
    this.options = options;
    this.channel = channel;
    this.writerName = hello.name;
    this.code = parseCode(hello.code);
    if (this.code.k !== hello.k || this.code.m !== hello.m)
      throw new TartanError(
        'ERR_MALFORMED',
        `Cannot serve '${hello.name}': ${hello.code} is not ${hello.k}+${hello.m}`,
      );
    const layout = layoutOf(
      {
        id: hello.fileId,
        nodes: hello.nodes,
        unitBytes: hello.unitBytes,
        ...(hello.layout !== undefined && { layout: hello.layout }),
      },
      this.code,
    );
    if (hello.tags < 1 || hello.tags > MAX_TAGS)
      throw new TartanError(
        'ERR_MALFORMED',
        `Cannot serve '${hello.name}': it wants ${hello.tags} tags, 1 to ${MAX_TAGS} are possible`,
      );
    this.tags = hello.tags;
    this.layout = stripeSlotLayout(hello.k, hello.m, hello.unitBytes);
    const { slotBytes } = this.layout;
    const wanted = Math.max(2, Math.min(hello.slots, MAX_SWITCH_SLOTS, hello.tags, Math.floor(RING_BYTES / slotBytes)));
    this.ringBytes = options.memory.take(
      wanted * slotBytes,
      slotBytes,
      2 * slotBytes,
      `serve '${hello.name}' with ${hello.code} on switch ${id}`,
    );
    this.slots = this.ringBytes / slotBytes;
    const taken = new GiveBack();
    taken.add(() => options.memory.give(this.ringBytes));
    try {
      const region = (this.region = context.device.allocate(this.ringBytes, Access.REMOTE_WRITE));
      taken.add(() => region.deregister());
      region.grant(channel.qp);
      this.words = new Uint32Array(this.region.buffer);
      this.slotBusy = new Uint8Array(this.slots);
      this.tagSlot = new Uint16Array(this.tags);
      this.tagEpoch = new Uint32Array(this.tags);
      this.tagCounter = new Uint32Array(this.tags);
      this.tagMissing = new Float64Array(this.tags);
      let pipeline: StripePipeline | undefined;
      this.nodes = new NodeSet(options.map, {
        context,
        nodes: hello.nodes,
        role: 'switch',
        name: `${id}/${hello.name}`,
        fileId: hello.fileId,
        unitBytes: hello.unitBytes,
        slots: Math.max(2, Math.min(NODE_SLOTS, Math.floor(NODE_RING_BYTES / unitSlotBytes(hello.unitBytes)))),
        receiveSlots: 0,
        transport: options.transport,
        heartbeatMs: options.heartbeatMs,
        deadlineMs: options.deadlineMs,
        owner: {
          locate: (op, unit, place) => {
            pipeline!.locate(op, unit, place);
          },
          onWritten: (link, op, unit, ok) => {
            pipeline!.onWritten(link, op, unit, ok);
          },
          onAnswer: (link, op, unit, refusal, epoch) => {
            pipeline!.onAnswer(link, op, unit, refusal, epoch);
          },
          onLinkDown: () => {},
        },
      });
      this.pipeline = pipeline = new StripePipeline({
        hub: context.hub,
        code: this.code,
        layout,
        slots: this.layout,
        region: this.region,
        maxOps: this.tags,
        sealed: true,
        linkTo: (index) => this.nodes.linkTo(index),
        owner: {
          onReleased: (tag) => {
            this.credit(tag);
          },
          onSettled: (tag, refusal, unit, epoch) => {
            this.settled(tag, refusal, unit, epoch);
          },
        },
      });
    } catch (error) {
      taken.run();
      throw error;
    }
  }

  /** Connects to every node that the map calls up. @throws {TartanError} ERR_CONNECT when one can't be reached */
  async connect(): Promise<void> {
    const failures = await this.nodes.connectUp(this.options.deadlineMs);
    const first = failures[0];
    if (first !== undefined)
      throw new TartanError(
        'ERR_CONNECT',
        `Switch ${this.options.id} cannot reach node ${this.options.hello.nodes[first.index]}`,
        { cause: first.error },
      );
  }

  /** From now on stripes that arrive are served. */
  serve(): void {
    this.channel.onWrite = (imm, byteLength) => {
      this.arrive(imm, byteLength);
    };
  }

  /** A new map: links for nodes that came up; those that went down fail by themselves. */
  adopt(map: ClusterMap): void {
    this.nodes.map = map;
    this.channel.mapEpoch = map.epoch;
    detach(this.nodes.connectUp(this.options.deadlineMs));
  }

  /** Ends the session: connection first, then links, then memory. Idempotent. */
  destroy(reason: string): Promise<void> {
    this.ended ??= (async () => {
      this.channel.onWrite = () => {};
      await this.channel.destroy(reason);
      await this.nodes.destroy(reason);
      await this.pipeline.destroy();
      await this.region.deregister();
      this.options.memory.give(this.ringBytes);
    })();
    return this.ended;
  }

  private arrive(imm: number, byteLength: number): void {
    const slot = stripeImmSlot(imm),
      tag = stripeImmTag(imm);
    if (
      slot >= this.slots ||
      this.slotBusy[slot] === 1 ||
      tag >= this.tags ||
      stripeImmK(imm) !== this.layout.k ||
      this.pipeline.busy(tag)
    ) {
      this.protocolError(`stripe in slot ${slot} with tag ${tag}: out of range or in use`);
      return;
    }
    const at = slot * this.layout.slotBytes,
      w = (at + this.layout.dataHeadersOffset) >> 2;
    if (!this.plausible(w, byteLength)) {
      this.protocolError(`stripe in slot ${slot}: headers do not fit ${byteLength} bytes received`);
      return;
    }
    const stripe = headerStripe(this.words, w),
      stripeLength = this.words[w + W.STRIPE_LENGTH]!;
    const missingLo = this.words[w + W.MISSING_LO]!,
      missingHi = this.words[w + W.MISSING_HI]!;
    this.slotBusy[slot] = 1;
    this.tagSlot[tag] = slot;
    this.tagEpoch[tag] = this.words[w + W.WRITER_EPOCH]!;
    this.tagCounter[tag] = this.words[w + W.COUNTER]!;
    this.tagMissing[tag] = missingHi * 0x1_0000_0000 + missingLo;
    this.counters.stripes++;
    this.counters.bytes += stripeLength;
    if (this.words[w + W.MAP_EPOCH]! < this.nodes.map.epoch) {
      this.credit(tag);
      this.settled(tag, Refusal.STALE_MAP, 0, this.nodes.map.epoch);
      return;
    }
    this.pipeline.start(tag, at, stripe, stripeLength, missingLo, missingHi);
  }

  private plausible(w: number, byteLength: number): boolean {
    const { k, m, unitBytes } = this.layout;
    const words = this.words,
      stripeLength = words[w + W.STRIPE_LENGTH]!;
    if (byteLength !== k * DATA_HEADER_BYTES + stripeLength) return false;
    for (let unit = 0, h = w; unit < k; unit++, h += DATA_HEADER_BYTES / 4) {
      if (checkHeader(words, h, DATA_HEADER_BYTES, words[h + W.UNIT_LENGTH]!) !== undefined) return false;
      if (
        headerUnit(words, h) !== unit ||
        headerK(words, h) !== k ||
        headerM(words, h) !== m ||
        headerUnitBytes(words, h) !== unitBytes ||
        ((words[h + W.SHAPE]! >>> 8) & 0xff) !== this.code.id ||
        headerFileId(words, h) !== this.options.hello.fileId ||
        words[h + W.STRIPE_LENGTH] !== stripeLength ||
        words[h + W.COUNTER] !== words[w + W.COUNTER] ||
        words[h + W.WRITER_EPOCH] !== words[w + W.WRITER_EPOCH] ||
        words[h + W.STRIPE_LO] !== words[w + W.STRIPE_LO] ||
        words[h + W.STRIPE_HI] !== words[w + W.STRIPE_HI]
      )
        return false;
    }
    return true;
  }

  private credit(tag: number): void {
    const slot = this.tagSlot[tag]!;
    this.slotBusy[slot] = 0;
    const queue = this.channel.records(MessageType.CREDIT);
    const w = queue.push();
    queue.words[w] = slot;
    this.channel.touch();
  }

  private settled(tag: number, refusal: number, unit: number, mapEpoch: number): void {
    const { k, m } = this.layout;
    const queue = this.channel.records(MessageType.STRIPE_ACK);
    const w = queue.push(),
      words = queue.words;
    const missing = this.tagMissing[tag]!;
    const missingLo = missing % 0x1_0000_0000,
      missingHi = Math.floor(missing / 0x1_0000_0000);
    words[w] = (tag | (refusal << 16) | (unit << 24)) >>> 0;
    words[w + 1] = refusal === 0 ? ((k === 32 ? 0xffff_ffff : (1 << k) - 1) & ~missingLo) >>> 0 : 0;
    words[w + 2] =
      refusal === 0
        ? (((1 << m) - 1) & ~(k === 32 ? missingHi : (missingLo >>> k) | (missingHi << (32 - k)))) >>> 0
        : 0;
    words[w + 3] = this.tagEpoch[tag]!;
    words[w + 4] = this.tagCounter[tag]!;
    words[w + 5] = mapEpoch;
    words[w + 6] = 0;
    if (refusal !== 0) this.counters.refused++;
    this.channel.touch();
  }

  private protocolError(reason: string): void {
    this.counters.protocolErrors++;
    this.options.onProtocolError(`writer '${this.writerName}': ${reason}`);
    this.channel.qp.toError(reason);
  }
}
