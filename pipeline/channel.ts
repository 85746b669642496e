/**
 * Messages over one queue pair: protobuf control messages, batched records, and the immediates of ring writes.
 *
 * A queue pair's receives are consumed in order by messages and by ring writes alike, so every receive has room for a
 * message; `receives` must cover the ring's slots plus the messages the peer may have under way. Receives are posted
 * again before the handler that consumed them returns, so credits alone bound the peer; unless it is one that asks, and
 * so much is queued for it that it does not take: then its receives are withheld, and nothing more comes from it until
 * it does. Who asks never does that: if both waited for the other to take, nobody would.
 *
 * Work request ids: messages use the top bit; all others belong to the owner (`onWritten`).
 *
 * The channel is the front door of all that its handlers do: an operating error that one of them throws ends this
 * connection alone.
 */
import type { Device, MemoryRegion, QueuePair } from 'tartan-rdma';
import { Flag, Opcode, Status, statusName } from 'tartan-rdma';
import { TartanError } from '../wire/errors.js';
import { refusalOf } from '../wire/front-door.js';
import { Control } from '../wire/generated/ring.js';
import {
  FRAME_WORDS,
  MESSAGE_BYTES,
  MessageType,
  checkFrame,
  frameHead,
  recordWords,
  recordsPerMessage,
} from '../wire/ring-messages.js';
import type { Flushable, Hub } from './hub.js';

const MESSAGE_BIT = 0x8000_0000;
const SEND_BUFFERS = 32;
/** Of a peer that has not proved itself: the messages of a handshake. */
const HANDSHAKE_RECEIVES = 4;
const HANDSHAKE_SENDS = 2;
/** What may wait for send buffers before nothing more is received. Bytes. */
export const MAX_QUEUED_BYTES = 128 << 10;

/** Records of one type that wait for a send buffer. */
class RecordQueue {
  readonly type: number;
  readonly each: number;
  readonly most: number;
  words: Uint32Array;
  count = 0;
  constructor(type: number) {
    this.type = type;
    this.each = recordWords(type);
    this.most = recordsPerMessage(type);
    this.words = new Uint32Array(this.most * this.each);
  }
  /** @returns word index of a new record in `words`; the array may have been replaced by a larger one */
  push(): number {
    const at = this.count * this.each;
    if (at + this.each > this.words.length) {
      const larger = new Uint32Array(this.words.length * 2);
      larger.set(this.words);
      this.words = larger;
    }
    this.count++;
    return at;
  }
  drop(records: number): void {
    this.words.copyWithin(0, records * this.each, this.count * this.each);
    this.count -= records;
  }
}

/** Message buffers in one region: receives first, then sends. */
interface Buffers {
  readonly region: MemoryRegion;
  readonly words: Uint32Array;
  readonly bytes: Uint8Array;
  /** Of the first, among all of the channel. */
  readonly from: number;
  readonly receives: number;
}

export class MessageChannel implements Flushable {
  readonly qp: QueuePair;
  readonly hub: Hub;
  touched = false;
  /** Put into every frame. */
  mapEpoch = 0;
  onControl: (message: Control, mapEpoch: number) => void = () => {};
  /** `words[w…]` holds `count` records; valid during the call. */
  onRecords: (type: number, words: Uint32Array, w: number, count: number, mapEpoch: number) => void = () => {};
  /** A peer's write with immediate has arrived. */
  onWrite: (imm: number, byteLength: number) => void = () => {};
  /** A request of the owner's has completed (also flushed ones). */
  onWritten: (wrId: number, status: number, opcode: number) => void = () => {};
  /** The connection is no longer usable; called once, before the flushed completions. */
  onClosed: (reason: string) => void = () => {};
  closed = false;

  /** The peer asks, this side answers. */
  private readonly isAsked: boolean;
  private readonly buffers: Buffers[] = [];
  private readonly freeSends: number[] = [];
  private readonly queues: (RecordQueue | undefined)[] = [];
  private readonly controls: Uint8Array[] = [];
  private controlBytes = 0;
  /** Receives that are posted again when the peer has taken what is queued for it. */
  private readonly withheld: number[] = [];
  private destroyed: Promise<void> | undefined;

  /**
   * @param receives receives kept posted: ring slots granted to the peer plus 32 is the rule. Undefined: of a peer that
   *   connected and has not proved itself, whose few buffers are enough for a handshake; `grow` adds the rest
   * @throws {RdmaError} ERR_REGISTRATION_REFUSED
   */
  constructor(hub: Hub, device: Device, qp: QueuePair, receives: number | undefined) {
    this.hub = hub;
    this.qp = qp;
    this.isAsked = receives === undefined;
    if (receives === undefined) this.addBuffers(device, HANDSHAKE_RECEIVES, HANDSHAKE_SENDS);
    else this.addBuffers(device, receives, SEND_BUFFERS);
    qp.handler = (opcode, status, wrId, byteLength, imm) => {
      try {
        this.complete(opcode, status, wrId, byteLength, imm);
      } catch (error) {
        const refusal = refusalOf(error);
        if (refusal === undefined) throw error;
        qp.toError(`${refusal.code}: ${refusal.message}`);
      }
    };
    qp.onError = (reason) => {
      this.fail(reason);
    };
    this.postReceives();
  }

  /**
   * The peer has proved itself: from now on `receives` are kept posted.
   *
   * @throws {RdmaError} ERR_REGISTRATION_REFUSED; the channel is as it was
   */
  grow(device: Device, receives: number): void {
    this.addBuffers(device, receives - HANDSHAKE_RECEIVES, SEND_BUFFERS - HANDSHAKE_SENDS);
    this.postReceives();
  }

  /** @throws {TartanError} ERR_CAPACITY when it does not fit a message */
  sendControl(message: Control): void {
    if (this.closed) return;
    const encoded = Control.encode(message).finish();
    if (encoded.length > MESSAGE_BYTES - FRAME_WORDS * 4)
      throw new TartanError(
        'ERR_CAPACITY',
        `Cannot send '${message.kind?.$case}': ${encoded.length} bytes do not fit a message of ${MESSAGE_BYTES}`,
      );
    this.controls.push(encoded);
    this.controlBytes += encoded.length;
    this.hub.touch(this);
  }

  /** The queue of a record type: `const w = queue.push(); queue.words[w] = …`, then `touch()`. */
  records(type: number): RecordQueue {
    return (this.queues[type] ??= new RecordQueue(type));
  }

  touch(): void {
    this.hub.touch(this);
  }

  /** Sends what is queued as far as send buffers go; the rest follows as they come back. */
  flush(): void {
    if (this.closed) return;
    while (this.controls.length > 0 && this.freeSends.length > 0) {
      const encoded = this.controls.shift()!;
      this.controlBytes -= encoded.length;
      const buffer = this.freeSends.pop()!;
      const { words, bytes, from } = this.buffersOf(buffer);
      const w = (buffer - from) * (MESSAGE_BYTES / 4);
      words[w] = frameHead(MessageType.CONTROL, encoded.length);
      words[w + 1] = this.mapEpoch;
      bytes.set(encoded, (w + FRAME_WORDS) * 4);
      this.postSend(buffer, FRAME_WORDS * 4 + encoded.length);
    }
    for (const queue of this.queues) {
      while (queue !== undefined && queue.count > 0 && this.freeSends.length > 0) {
        const count = Math.min(queue.count, queue.most);
        const buffer = this.freeSends.pop()!;
        const { words, from } = this.buffersOf(buffer);
        const w = (buffer - from) * (MESSAGE_BYTES / 4);
        words[w] = frameHead(queue.type, count);
        words[w + 1] = this.mapEpoch;
        for (let i = 0, n = count * queue.each; i < n; i++) words[w + FRAME_WORDS + i] = queue.words[i]!;
        if (count === queue.count) queue.count = 0;
        else queue.drop(count);
        this.postSend(buffer, (FRAME_WORDS + count * queue.each) * 4);
      }
    }
    if (this.withheld.length > 0 && this.queuedBytes <= MAX_QUEUED_BYTES / 2)
      for (const receive of this.withheld.splice(0)) this.postReceive(receive);
  }

  /** Messages and records that wait for a send buffer. */
  get queuedBytes(): number {
    let bytes = this.controlBytes;
    for (const queue of this.queues) if (queue !== undefined) bytes += queue.count * queue.each * 4;
    return bytes;
  }

  /** So much waits that the peer can't be taking what it asked for. */
  get isFull(): boolean {
    return this.queuedBytes > MAX_QUEUED_BYTES;
  }

  /** Ends the connection; the memory is given back when everything has flushed. */
  destroy(reason: string): Promise<void> {
    this.destroyed ??= (async () => {
      this.qp.toError(reason);
      await this.qp.destroy();
      this.fail(reason);
      await Promise.all(this.buffers.map(({ region }) => region.deregister()));
    })();
    return this.destroyed;
  }

  private addBuffers(device: Device, receives: number, sends: number): void {
    const region = device.allocate((receives + sends) * MESSAGE_BYTES);
    const last = this.buffers.at(-1);
    const from = last === undefined ? 0 : last.from + last.words.length / (MESSAGE_BYTES / 4);
    const words = new Uint32Array(region.buffer);
    this.buffers.push({ region, words, bytes: new Uint8Array(region.buffer), from, receives });
    for (let i = 0; i < sends; i++) this.freeSends.push(from + receives + i);
  }

  private postReceives(): void {
    const { from, receives } = this.buffers.at(-1)!;
    for (let i = 0; i < receives; i++) this.postReceive(from + i);
    this.hub.wake();
  }

  private buffersOf(buffer: number): Buffers {
    const last = this.buffers[this.buffers.length - 1]!;
    return buffer >= last.from ? last : this.buffers[0]!;
  }

  private postSend(buffer: number, length: number): void {
    const { region, from } = this.buffersOf(buffer);
    this.qp.postSend((MESSAGE_BIT | buffer) >>> 0, region, (buffer - from) * MESSAGE_BYTES, length, Flag.SIGNALED);
  }

  private postReceive(buffer: number): void {
    const { region, from } = this.buffersOf(buffer);
    this.qp.postRecv((MESSAGE_BIT | buffer) >>> 0, region, (buffer - from) * MESSAGE_BYTES, MESSAGE_BYTES);
  }

  private complete(opcode: number, status: number, wrId: number, byteLength: number, imm: number): void {
    if (wrId < MESSAGE_BIT) {
      this.onWritten(wrId, status, opcode);
      return;
    }
    const buffer = wrId - MESSAGE_BIT;
    const { from, receives } = this.buffersOf(buffer);
    if (buffer - from >= receives) {
      this.freeSends.push(buffer);
      if (status !== Status.SUCCESS) this.fail(statusName(status));
      else if (this.controls.length > 0 || this.queues.length > 0) this.hub.touch(this);
      return;
    }
    if (status !== Status.SUCCESS) {
      this.fail(statusName(status));
      return;
    }
    if (this.closed) return;
    if (opcode === Opcode.RECV_WRITE_WITH_IMM) {
      this.giveBack(buffer);
      this.onWrite(imm, byteLength);
      return;
    }
    this.receive(buffer, byteLength);
    if (!this.closed) this.giveBack(buffer);
  }

  private giveBack(receive: number): void {
    if (this.isAsked && this.isFull) this.withheld.push(receive);
    else this.postReceive(receive);
  }

  private receive(buffer: number, byteLength: number): void {
    const { words, bytes, from } = this.buffersOf(buffer);
    const w = (buffer - from) * (MESSAGE_BYTES / 4);
    const type = checkFrame(words, w, byteLength);
    if (type === 0) {
      this.qp.toError(`malformed frame of ${byteLength} bytes`);
      return;
    }
    const count = words[w]! >>> 16;
    const mapEpoch = words[w + 1]!;
    if (type !== MessageType.CONTROL) {
      this.onRecords(type, words, w + FRAME_WORDS, count, mapEpoch);
      return;
    }
    let message: Control;
    try {
      message = Control.decode(bytes.subarray((w + FRAME_WORDS) * 4, w * 4 + byteLength));
    } catch {
      this.qp.toError(`malformed control message of ${count} bytes`);
      return;
    }
    this.onControl(message, mapEpoch);
  }

  private fail(reason: string): void {
    if (this.closed) return;
    this.closed = true;
    this.onClosed(reason);
  }
}
