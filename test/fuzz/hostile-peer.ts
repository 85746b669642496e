/**
 * A peer that knows the cluster's secret and abuses what it is granted: it opens sessions with nodes and the switch,
 * asks for what makes no sense, writes headers, immediates and payloads that lie straight into the ring it was given,
 * writes to a slot again while it is being checked, and sends records, control messages and frames that nobody would.
 *
 * Nothing that it does may cost more than its own connection.
 */
import { Access, Flag, type MemoryRegion } from 'tartan-rdma';
import type { FileRecord } from '../../cluster/records.js';
import { makeLayout, unitOfNode } from '../../erasure/layout/index.js';
import { connectSession, type HelloWishes, type Session, type SessionContext } from '../../pipeline/session.js';
import { unitSeal } from '../../storage-node/log-format.js';
import { sleep } from '../../wire/clock.js';
import { codeOf, isOperating } from '../../wire/errors.js';
import type { Control, Grant, Request } from '../../wire/generated/ring.js';
import { MESSAGE_BYTES, MessageType, recordWords, stripeImm, unitImm } from '../../wire/ring-messages.js';
import { PAGE_BYTES, stripeSlotLayout } from '../../wire/slot-layout.js';
import { DATA_HEADER_BYTES, digestLayout, W } from '../../wire/unit-header.js';
import { makeUnit, type UnitSpec } from '../storage-node/units.js';

export interface HostileWorld {
  /** The peer's own device and clock, the cluster's secret. */
  readonly context: SessionContext;
  /** 0 … below − 1 */
  readonly int: (below: number) => number;
  readonly targets: readonly { readonly kind: 'node' | 'switch'; readonly host: string; readonly port: number }[];
  /** A file of the peer's own, xor(2+1) with units of UNIT_BYTES; what it does to it is nobody's loss. */
  readonly file: FileRecord;
  readonly mapEpoch: () => number;
  readonly transport: 'auto' | 'tcp' | 'shm';
}

export const UNIT_BYTES = 1024;
const CODE = { k: 2, m: 1, name: 'xor(2+1)' };
/** Each is refused, whoever asks. */
export const NONSENSE: readonly Partial<HelloWishes>[] = [
  { code: 'none' },
  { code: 'rs(33,4)', k: 33, m: 4 },
  { code: 'rs(0,0)', k: 0, m: 0 },
  { code: 'rs(4,2)' },
  { layout: 'none' },
  { nodes: ['n1'] },
  { unitBytes: 513 },
  { unitBytes: 0 },
  { unitBytes: 0x8000_0000 },
  { tags: 0 },
  { tags: 0x8000_0000 },
];
const EDGES = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff, 0x1_0000, 4096];

export class HostilePeer {
  /** What came of it, by kind. */
  readonly tally = new Map<string, number>();
  private readonly memory: MemoryRegion;
  private readonly target: MemoryRegion;
  // Of the session that is open: how often of 1000 times it lies, what it writes next, and whose unit is whose.
  private recklessness = 0;
  private written = 0;
  private tags = 1;
  private nodeIndex = 0;
  private readonly layout = makeLayout({ nodes: 3, k: CODE.k, m: CODE.m, unitBytes: UNIT_BYTES });

  constructor(private readonly world: HostileWorld) {
    this.memory = world.context.device.allocate(1 << 17);
    this.target = world.context.device.allocate(1 << 16, Access.REMOTE_WRITE);
  }

  /** One session, from Hello to its end. */
  async round(): Promise<void> {
    const { targets } = this.world;
    this.nodeIndex = this.int(targets.length);
    const { kind, host, port } = targets[this.nodeIndex]!;
    this.recklessness = this.pick([0, 20, 100, 400]);
    this.written = 0;
    let session: Session;
    try {
      session = await connectSession(this.world.context, host, port, this.hello(kind), {
        transport: this.world.transport,
        timeoutMs: 5000,
        receiveSlots: 8,
      });
    } catch (error) {
      if (!isOperating(error)) throw error;
      const { code } = error;
      this.count(`${kind} ${code}`);
      return;
    }
    const { channel, grant } = session;
    this.count(`${kind} granted ${grant.slots > 0 ? 'a ring' : 'nothing'}`);
    channel.onControl = (message) => {
      this.count(`${kind} said ${message.kind?.$case ?? 'nothing'}`);
    };
    channel.onRecords = (type, words, w, count) => {
      if (type === MessageType.ACK)
        for (let i = 0; i < count; i++) this.count(`${kind} acknowledged with ${words[w + 5 * i]! >>> 16}`);
      else if (type === MessageType.STRIPE_ACK)
        for (let i = 0; i < count; i++) this.count(`${kind} settled with ${(words[w + 7 * i]! >>> 16) & 0xff}`);
      else this.count(`${kind} records ${type}`);
    };
    channel.onWrite = () => {
      this.count(`${kind} wrote to us`);
    };
    channel.onClosed = () => {
      this.count(`${kind} closed the session`);
    };
    for (let steps = 1 + this.int(30); steps > 0 && !channel.closed; steps--) {
      this.step(kind, session);
      channel.hub.wake();
      // Mostly all at once: a slot is written again while the first write is being looked at.
      if (this.int(4) === 0) await sleep(this.world.context.clock, this.int(4));
    }
    await sleep(this.world.context.clock, this.int(20));
    await channel.destroy('done');
  }

  /** Asks the switch for what makes no sense, one by one. @returns the codes it was refused with; '': it was granted */
  async askNonsense(): Promise<string[]> {
    const { host, port } = this.world.targets.find(({ kind }) => kind === 'switch')!;
    const { transport, context } = this.world;
    const codes: string[] = [];
    for (const nonsense of NONSENSE) {
      const hello = { ...this.plainHello('switch'), role: 'writer', ...nonsense };
      try {
        const { channel } = await connectSession(context, host, port, hello, { transport, timeoutMs: 5000 });
        await channel.destroy('granted');
        codes.push('');
      } catch (error) {
        codes.push(codeOf(error) ?? String(error));
      }
    }
    return codes;
  }

  async end(): Promise<void> {
    await this.memory.deregister();
    await this.target.deregister();
  }

  private int(below: number): number {
    return this.world.int(below);
  }
  private pick<T>(values: readonly T[]): T {
    return values[this.int(values.length)]!;
  }
  private word(near = 0): number {
    switch (this.int(4)) {
      case 0:
        return this.pick(EDGES);
      case 1:
        return (near + this.pick([1, -1, 4, -4])) >>> 0;
      case 2:
        return (near ^ (1 << this.int(32))) >>> 0;
      default:
        return this.int(0x1_0000_0000);
    }
  }
  /** Ids of nobody's file but this peer's. */
  private fileId(): number {
    return this.int(2) === 0 ? this.world.file.id : 2 ** 40 + this.int(2 ** 31);
  }
  private lies(): boolean {
    return this.int(1000) < this.recklessness;
  }
  private count(what: string): void {
    this.tally.set(what, (this.tally.get(what) ?? 0) + 1);
  }

  private plainHello(kind: 'node' | 'switch'): HelloWishes & Record<string, unknown> {
    const { file } = this.world;
    this.tags = 1 + this.int(64);
    return {
      role: this.pick(
        kind === 'switch' ? ['writer', 'writer', 'decoder'] : ['writer', 'writer', 'reader', 'rebuilder'],
      ),
      name: 'hostile',
      fileId: file.id,
      unitBytes: UNIT_BYTES,
      slots: 1 + this.int(16),
      mapEpoch: this.world.mapEpoch(),
      ...(kind === 'switch' && { ...CODE, code: CODE.name, nodes: [...file.nodes], tags: this.tags }),
    };
  }

  private hello(kind: 'node' | 'switch'): HelloWishes {
    const wishes = this.plainHello(kind);
    if (this.int(6) !== 0) return wishes;
    for (let bends = 1 + this.int(2); bends > 0; bends--) {
      const field = this.pick(['role', 'name', 'fileId', 'unitBytes', 'slots', 'mapEpoch', 'k', 'm', 'code', 'tags']);
      if (field === 'role') wishes.role = this.pick(['', 'switch', 'control', 'writer\0', 'nobody']);
      else if (field === 'name') wishes.name = 'x'.repeat(this.int(3000));
      else if (field === 'fileId') wishes.fileId = this.fileId();
      else if (field === 'code')
        wishes.code = this.pick([
          'rs(33,4)',
          'rs(2,1)',
          'none',
          '',
          'xor(2+1',
          'copies(1,2)',
          'cauchy(30,6)',
          'rs(0,0)',
        ]);
      else wishes[field] = this.pick([0, 1, 513, 512, 3, UNIT_BYTES * 2, this.word(), this.word()]);
    }
    if (this.int(3) === 0) wishes.nodes = this.pick([[], ['n1'], ['n1', 'n1', 'n1'], ['n9', 'n8', 'n7']]);
    if (this.int(6) === 0) wishes.layout = this.pick(['rotated', 'none', '']);
    if (this.int(6) === 0) wishes.packetPort = this.word() % 0x1_0000;
    return wishes;
  }

  private step(kind: 'node' | 'switch', session: Session): void {
    const what = this.int(10);
    if (this.lies() && this.int(4) === 0) this.sendFrame(session);
    else if (this.lies()) this.sendRecords(session);
    else if (what < 7 && session.grant.slots > 0) this.write(kind, session);
    else if (what === 8) session.channel.sendControl(this.control());
    else this.ask(session);
  }

  /** Into the ring: what an honest sender would write, and then bent or not. */
  private write(kind: 'node' | 'switch', { channel, grant }: Session): void {
    const slot = this.lies() ? this.int(grant.slots) : this.written % grant.slots;
    const [image, offset, imm] = kind === 'node' ? this.unit(slot, grant) : this.stripe(slot, grant);
    let at = offset,
      told = imm,
      length = image.length;
    const isBent = this.lies();
    if (isBent && this.int(3) === 0) told = this.word(imm);
    if (isBent && this.int(4) === 0) length = this.int(image.length + 1);
    if (isBent && this.int(6) === 0) at = this.word(offset);
    // A source of its own: the device reads it later.
    const source = (this.written++ % 32) * 4096;
    new Uint8Array(this.memory.buffer).set(image, source);
    const flags = this.int(2) === 0 ? Flag.SIGNALED : 0;
    channel.qp.postWriteWithImm(1, this.memory, source, length, grant.rkey, at, told, flags);
    this.count(`${isBent ? 'bent' : 'sound'} writes to a ${kind}`);
    if (this.lies()) {
      // Over the header of a slot that is being looked at: by no immediate, so that nobody is told.
      const scribbled = 4 * this.int(64);
      channel.qp.postWrite(2, this.memory, source, 4 * (1 + this.int(8)), grant.rkey, offset + (scribbled % length), 0);
    }
  }

  private unit(slot: number, grant: Grant): [Uint8Array, number, number] {
    const spec = this.spec(this.int(3));
    if (!this.lies()) spec.unit = unitOfNode(this.layout, spec.stripe!, this.nodeIndex);
    const unit = makeUnit(spec);
    const image = new Uint8Array(unit.headerBytes + unit.payload.length);
    image.set(new Uint8Array(unit.words.buffer, 0, unit.headerBytes));
    image.set(unit.payload, unit.headerBytes);
    this.bend(image, [0], unit.headerBytes);
    return [image, slot * grant.slotBytes + PAGE_BYTES - unit.headerBytes, unitImm(slot, unit.headerBytes)];
  }

  private stripe(slot: number, grant: Grant): [Uint8Array, number, number] {
    const { k, m } = CODE;
    const layout = stripeSlotLayout(k, m, UNIT_BYTES);
    const spec = this.spec(0);
    const units = [0, 1].map((unit) => makeUnit({ ...spec, unit }));
    const image = new Uint8Array(k * DATA_HEADER_BYTES + spec.stripeLength!);
    let at = k * DATA_HEADER_BYTES;
    units.forEach(({ words, payload }, unit) => {
      image.set(new Uint8Array(words.buffer, 0, DATA_HEADER_BYTES), unit * DATA_HEADER_BYTES);
      image.set(payload, at);
      at += payload.length;
    });
    this.bend(image, [0, DATA_HEADER_BYTES], DATA_HEADER_BYTES);
    return [
      image,
      slot * grant.slotBytes + layout.dataHeadersOffset,
      stripeImm(slot, this.lies() ? this.int(64) : this.written % this.tags, k),
    ];
  }

  private spec(unit: number): UnitSpec {
    const { file, context } = this.world;
    return {
      fileId: file.id,
      stripe: this.int(20),
      unit,
      ...CODE,
      unitBytes: UNIT_BYTES,
      stripeLength: this.pick([1, UNIT_BYTES, 2 * UNIT_BYTES, 1 + this.int(2 * UNIT_BYTES)]),
      counter: 1 + this.int(50),
      mapEpoch: this.world.mapEpoch(),
      clusterId: context.clusterId,
    };
  }

  /** Fields of one header changed; sealed again or not. */
  private bend(image: Uint8Array, headers: readonly number[], headerBytes: number): void {
    if (!this.lies()) return;
    const start = this.pick(headers),
      words = new DataView(image.buffer, image.byteOffset + start, headerBytes);
    for (let bends = 1 + this.int(3); bends > 0; bends--) {
      const at = 4 * this.int(headerBytes / 4);
      words.setUint32(at, this.word(words.getUint32(at, true)), true);
    }
    // Never somebody else's file.
    if (words.getUint32(W.FILE_LO * 4, true) !== this.world.file.id) words.setUint32(W.FILE_HI * 4, 0x100, true);
    if (this.int(2) === 0) return;
    const header = image.subarray(start, start + headerBytes);
    words.setUint32(W.SEAL * 4, unitSeal(header, digestLayout.sealOffset), true);
  }

  private sendRecords({ channel }: Session): void {
    const type = this.pick([
      MessageType.ACK,
      MessageType.STRIPE_ACK,
      MessageType.CREDIT,
      MessageType.READ_FAILED,
      MessageType.UNIT_ACK,
    ]);
    const queue = channel.records(type);
    for (let count = 1 + this.int(5); count > 0; count--) {
      const at = queue.push();
      for (let i = 0; i < recordWords(type); i++) queue.words[at + i] = this.int(2) === 0 ? this.int(8) : this.word();
    }
    channel.touch();
  }

  /** A READ whose target is ours, or not, or lies outside it. */
  private ask({ channel }: Session): void {
    const queue = channel.records(MessageType.READ);
    for (let count = 1 + this.int(3); count > 0; count--) {
      const at = queue.push();
      const read = [this.int(100), this.world.file.id, 0, this.int(20), 0, this.int(3), 0xffff_ffff, 0xffff_ffff];
      read.push(this.target.rkey, PAGE_BYTES, 4096, PAGE_BYTES - 256, 0, 0);
      if (this.lies()) read[this.int(read.length)] = this.word(read[8]);
      read.forEach((word, i) => {
        queue.words[at + i] = word;
      });
    }
    channel.touch();
  }

  private sendFrame({ channel }: Session): void {
    const bytes = new Uint8Array(this.memory.buffer);
    const length = this.pick([0, 7, 8, 1 + this.int(64), MESSAGE_BYTES, MESSAGE_BYTES + 1]);
    for (let i = 0; i < length; i++) bytes[i] = this.int(256);
    if (this.int(2) === 0) {
      bytes[0] = 1 + this.int(7);
      bytes[1] = 1;
      bytes[2] = this.int(2) === 0 ? length - 8 : this.int(40);
      bytes[3] = 0;
    }
    channel.qp.postSend(3, this.memory, 0, length, 0);
  }

  private control(): Control {
    const id = this.int(1000),
      stripe = this.pick([0, this.int(20), this.word(), 2 ** 53 - 1]);
    const fileId = this.fileId(),
      writerEpoch = this.word(1),
      counter = this.word(1);
    const op = this.pick<NonNullable<Request['op']>>([
      { $case: 'fence', value: { fileId, writerEpoch } },
      { $case: 'inventory', value: { fileId, fromStripe: stripe, limit: this.word(10), verify: this.int(2) === 0 } },
      {
        $case: 'recordMissing',
        value: { fileId, stripe, writerEpoch, counter, mask: this.word(1), requestEpoch: this.word(1) },
      },
      { $case: 'deleteFile', value: { fileId } },
      { $case: 'adoptMap', value: { mapEpoch: this.word(this.world.mapEpoch()) } },
      { $case: 'fileMark', value: { fileId } },
      { $case: 'discard', value: { fileId, fromStripe: stripe, writerEpoch } },
      {
        $case: 'condemn',
        value: { fileId, stripe, unit: this.word(1), writerEpoch, counter, payloadCrc: this.word() },
      },
    ]);
    const nothing = Buffer.alloc(0);
    return {
      kind: this.pick<NonNullable<Control['kind']>>([
        { $case: 'request', value: { id, op } },
        { $case: 'request', value: { id, op } },
        { $case: 'request', value: { id, op } },
        { $case: 'request', value: { id, op: undefined } },
        { $case: 'probe', value: { id } },
        { $case: 'probeReply', value: { id, program: 'x', version: '' } },
        { $case: 'state', value: { state: 'programmable', mapEpoch: this.word() } },
        { $case: 'refuse', value: { code: 'ERR_NONE', message: '' } },
        { $case: 'challenge', value: { nonce: nothing, proof: nothing } },
        { $case: 'proof', value: { proof: nothing } },
      ]),
    };
  }
}
