/**
 * A device that moves nothing: posts fill work request records as the soft device's do, everything succeeds,
 * completions are delivered in batches by `deliver()`. What remains to be measured is the JavaScript above it (and
 * this, which is counted in). Its peers are nodes: they shake hands and acknowledge every unit.
 */
import type {
  Coder,
  CoderSpec,
  CodingQueue,
  CompletionHandler,
  Device,
  DeviceCounters,
  Listener,
  MemoryRegion,
  QueuePair,
  StripePlace,
} from 'tartan-rdma';
import { Opcode, Status, WR_WORDS } from 'tartan-rdma';
import { Control } from '../../wire/generated/ring.js';
import { ACK_WORDS, FRAME_WORDS, MessageType, frameHead } from '../../wire/ring-messages.js';
import { W } from '../../wire/unit-header.js';

const SQ_ENTRIES = 4096;
const FIELDS = 6;

class NullRegion implements MemoryRegion {
  readonly buffer: ArrayBuffer;
  readonly words: Uint32Array;
  constructor(
    readonly lkey: number,
    readonly byteLength: number,
  ) {
    this.buffer = new ArrayBuffer(byteLength);
    this.words = new Uint32Array(this.buffer);
  }
  get rkey(): number {
    return this.lkey;
  }
  grant(): void {}
  async deregister(): Promise<void> {}
}

/** Completions waiting: opcode, status, wrId, byteLength, imm and the target's number. */
class Completions {
  words = new Uint32Array(1 << 16);
  count = 0;
  push(target: number, opcode: number, wrId: number, byteLength: number, imm: number): void {
    const w = this.count++ * FIELDS;
    if (w + FIELDS > this.words.length) throw new Error('the null device overflows');
    this.words[w] = target;
    this.words[w + 1] = opcode;
    this.words[w + 2] = wrId;
    this.words[w + 3] = byteLength;
    this.words[w + 4] = imm;
  }
}

export class NullDevice implements Device {
  readonly kind = 'sim';
  readonly name = 'null';
  onBatchEnd: (() => void) | undefined;
  readonly handlers: CompletionHandler[] = [];
  readonly pairs: NullQueuePair[] = [];
  readonly sq = new Uint32Array(SQ_ENTRIES * WR_WORDS);
  head = 0;
  private now = new Completions();
  private next = new Completions();
  private regions = 0;
  accept: ((qp: QueuePair) => void) | undefined;

  get pending(): Completions {
    return this.next;
  }

  /** Delivers what was queued since the last call. @returns completions delivered */
  deliver(): number {
    for (const pair of this.pairs) pair.acknowledge();
    const batch = this.next;
    this.next = this.now;
    this.now = batch;
    this.next.count = 0;
    const words = batch.words;
    for (let i = 0, w = 0; i < batch.count; i++, w += FIELDS)
      this.handlers[words[w]!]!(words[w + 1]!, Status.SUCCESS, words[w + 2]!, words[w + 3]!, words[w + 4]!, 0);
    this.onBatchEnd?.();
    return batch.count;
  }

  /** As the soft device fills a record. */
  record(
    opcode: number,
    qpn: number,
    wrId: number,
    a: number,
    b: number,
    c: number,
    d: number,
    e: number,
    f: number,
  ): void {
    const w = (this.head++ & (SQ_ENTRIES - 1)) * WR_WORDS,
      sq = this.sq;
    sq[w] = opcode;
    sq[w + 1] = qpn;
    sq[w + 2] = wrId;
    sq[w + 3] = a;
    sq[w + 4] = b;
    sq[w + 5] = c;
    sq[w + 8] = d;
    sq[w + 9] = e;
    sq[w + 10] = f;
  }

  allocate(byteLength: number): MemoryRegion {
    return new NullRegion(++this.regions, byteLength);
  }
  createCoder(spec: CoderSpec): Coder {
    return { id: 1, spec, destroy: () => {} };
  }

  createCodingQueue(handler: CompletionHandler): CodingQueue {
    const qpn = this.handlers.push(handler) - 1;
    const done = (opcode: number, wrId: number): void => {
      this.next.push(qpn, opcode, wrId, 0, 0);
    };
    return {
      qpn,
      handler,
      postEncode: (wrId, coder, place: StripePlace, flags) => {
        this.record(
          Opcode.ENCODE | (flags << 8),
          qpn,
          wrId,
          coder.id,
          place.region.lkey,
          place.unitsOffset,
          place.stride,
          place.dataLength,
          place.parityHeadersOffset,
        );
        done(Opcode.ENCODE, wrId);
      },
      postVerify: (wrId) => {
        done(Opcode.VERIFY, wrId);
      },
      destroy: async () => {},
    };
  }

  async connect(host: string): Promise<QueuePair> {
    return new NullQueuePair(this, host);
  }
  async listen(): Promise<Listener> {
    return { address: 'null', port: 1, close: async () => {} };
  }
  ring(): void {}
  counters(): DeviceCounters {
    return {
      requests: this.head,
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
  }
  async close(): Promise<void> {}
}

/** A queue pair whose peer, if it is a node, grants 64 slots and acknowledges every unit in the next batch. */
export class NullQueuePair implements QueuePair {
  readonly qpn: number;
  readonly transport = 'sim';
  state: 'connected' | 'error' | 'closed' = 'connected';
  onError: ((reason: string) => void) | undefined;
  /** Stripe acknowledgements and credits seen, for a peer that is a writer. */
  messages = 0;
  private readonly target: number;
  private readonly receives: { region: NullRegion; wrId: number; offset: number }[] = [];
  private received = 0;
  private readonly acks = new Uint32Array(1024 * ACK_WORDS);
  private ackCount = 0;

  constructor(
    readonly device: NullDevice,
    readonly remote: string,
  ) {
    this.target = device.handlers.push(() => {}) - 1;
    this.qpn = this.target;
    device.pairs.push(this);
  }

  get handler(): CompletionHandler {
    return this.device.handlers[this.target]!;
  }
  set handler(handler: CompletionHandler) {
    this.device.handlers[this.target] = handler;
  }

  postRecv(wrId: number, region: MemoryRegion | undefined, offset: number): void {
    // The buffers come back in the order they were posted: after the first round the objects are there already.
    if (this.receives.length < 4096 && !this.receives.some((each) => each.wrId === wrId))
      this.receives.push({ region: region as NullRegion, wrId, offset });
  }

  postSend(wrId: number, region: MemoryRegion, offset: number, length: number): void {
    this.device.record(Opcode.SEND, this.qpn, wrId, 0, 0, 0, region.lkey, offset, length);
    this.device.pending.push(this.target, Opcode.SEND, wrId, 0, 0);
    this.messages++;
    const words = (region as NullRegion).words,
      w = offset >> 2;
    if (this.remote.startsWith('n') && (words[w]! & 0xff) === MessageType.CONTROL)
      this.answer(Control.decode(new Uint8Array(region.buffer, offset + FRAME_WORDS * 4, words[w]! >>> 16)));
  }

  postWrite(): void {
    throw new Error('not used');
  }
  postRead(): void {
    throw new Error('not used');
  }
  postWriteWithImm(): void {
    throw new Error('not used');
  }

  postGatherWithImm(
    wrId: number,
    region: MemoryRegion,
    offset0: number,
    length0: number,
    offset1: number,
    length1: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
  ): void {
    this.device.record(
      Opcode.WRITE_WITH_IMM,
      this.qpn,
      wrId,
      imm,
      rkey,
      remoteOffset,
      region.lkey,
      offset0,
      length0 + length1 + offset1,
    );
    this.device.pending.push(this.target, Opcode.WRITE_WITH_IMM, wrId, 0, 0);
    const words = (region as NullRegion).words,
      w = offset0 >> 2,
      at = this.ackCount++ * ACK_WORDS;
    this.acks[at] = imm & 0xffff;
    this.acks[at + 1] = words[w + W.WRITER_EPOCH]!;
    this.acks[at + 2] = words[w + W.COUNTER]!;
    this.acks[at + 3] = 1;
    this.acks[at + 4] = words[w + W.STRIPE_LO]!;
  }

  /** The peer's write with immediate arrives. */
  arrive(imm: number, byteLength: number): void {
    const receive = this.take();
    this.device.pending.push(this.target, Opcode.RECV_WRITE_WITH_IMM, receive.wrId, byteLength, imm);
  }

  /** One message with all acknowledgements of the units posted since the last. */
  acknowledge(): void {
    if (this.ackCount === 0) return;
    const { region, wrId, offset } = this.take();
    const w = offset >> 2,
      n = this.ackCount * ACK_WORDS;
    region.words[w] = frameHead(MessageType.ACK, this.ackCount);
    region.words[w + 1] = 1;
    for (let i = 0; i < n; i++) region.words[w + FRAME_WORDS + i] = this.acks[i]!;
    this.ackCount = 0;
    this.device.pending.push(this.target, Opcode.RECV, wrId, (FRAME_WORDS + n) * 4, 0);
  }

  toError(): void {}
  async destroy(): Promise<void> {}

  private answer(message: Control): void {
    const kind = message.kind;
    if (kind?.$case === 'hello')
      this.say({
        kind: { $case: 'challenge', value: { nonce: Buffer.alloc(16), proof: this.proofFor(kind.value.nonce) } },
      });
    else if (kind?.$case === 'proof')
      this.say({
        kind: {
          $case: 'grant',
          value: { name: this.remote, rkey: 1, slots: 64, slotBytes: 1 << 17, mapEpoch: 1, state: '' },
        },
      });
  }

  proofFor: (nonce: Uint8Array) => Buffer = () => Buffer.alloc(32);

  private say(message: Control): void {
    const encoded = Control.encode(message).finish();
    const { region, wrId, offset } = this.take();
    region.words[offset >> 2] = frameHead(MessageType.CONTROL, encoded.length);
    region.words[(offset >> 2) + 1] = 1;
    new Uint8Array(region.buffer).set(encoded, offset + FRAME_WORDS * 4);
    this.device.pending.push(this.target, Opcode.RECV, wrId, FRAME_WORDS * 4 + encoded.length, 0);
  }

  private take(): { region: NullRegion; wrId: number; offset: number } {
    const receive = this.receives[this.received % this.receives.length]!;
    this.received++;
    return receive;
  }
}
