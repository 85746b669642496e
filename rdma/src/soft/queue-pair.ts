import type { CompletionHandler, MemoryRegion, QueuePair, Transport } from '../device.js';
import { Opcode } from '../records.js';
import type { SendQueue } from './send-queue.js';

/** What a queue pair needs of the device it belongs to; the verbs device has the same. */
export interface QueuePairOwner {
  readonly sendQueue: SendQueue;
  keyOf(region: MemoryRegion): number;
  toError(qp: SoftQueuePair, reason: string): void;
  destroyQueuePair(qp: SoftQueuePair): Promise<void>;
  revive(qp: SoftQueuePair): void;
}

const ignore: CompletionHandler = () => undefined;

/** One connected queue pair: writes work requests into the device's send queue; the engine does the rest. */
export class SoftQueuePair implements QueuePair {
  handler: CompletionHandler = ignore;
  #state: 'connected' | 'error' | 'closed' = 'connected';
  #onError: ((reason: string) => void) | undefined;
  #reason: string | undefined; // of an error that nobody listened to yet
  #destroyed: Promise<void> | undefined;
  readonly #sendQueue: SendQueue;

  constructor(
    private readonly device: QueuePairOwner,
    readonly qpn: number,
    readonly transport: Transport,
    readonly remote: string,
  ) {
    this.#sendQueue = device.sendQueue;
  }

  get state(): 'connected' | 'error' | 'closed' {
    return this.#state;
  }

  get onError(): ((reason: string) => void) | undefined {
    return this.#onError;
  }

  /** Set late, it still hears of an error that came before (the peer may vanish while `connect()` resolves). */
  set onError(listener: ((reason: string) => void) | undefined) {
    this.#onError = listener;
    const reason = this.#reason;
    if (listener === undefined || reason === undefined) return;
    this.#reason = undefined;
    queueMicrotask(() => listener(reason));
  }

  postRecv(wrId: number, region: MemoryRegion | undefined, offset: number, length: number): void {
    const at = this.#next();
    const words = this.#sendQueue.words;
    words[at] = Opcode.RECV | (region === undefined ? 0 : 1 << 16);
    words[at + 1] = this.qpn;
    words[at + 2] = wrId;
    words[at + 8] = region === undefined ? 0 : this.device.keyOf(region);
    words[at + 9] = offset;
    words[at + 10] = length;
  }

  postSend(wrId: number, region: MemoryRegion, offset: number, length: number, flags = 0): void {
    this.#post(Opcode.SEND, wrId, region, offset, length, 0, 0, 0, flags);
  }

  postWrite(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags = 0,
  ): void {
    this.#post(Opcode.WRITE, wrId, region, offset, length, rkey, remoteOffset, 0, flags);
  }

  postWriteWithImm(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
    flags = 0,
  ): void {
    this.#post(Opcode.WRITE_WITH_IMM, wrId, region, offset, length, rkey, remoteOffset, imm, flags);
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
    flags = 0,
  ): void {
    const at = this.#post(Opcode.WRITE_WITH_IMM, wrId, region, offset0, length0, rkey, remoteOffset, imm, flags);
    const words = this.#sendQueue.words;
    words[at] = Opcode.WRITE_WITH_IMM | (flags << 8) | (2 << 16);
    words[at + 11] = this.device.keyOf(region);
    words[at + 12] = offset1;
    words[at + 13] = length1;
  }

  postRead(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags = 0,
  ): void {
    this.#post(Opcode.READ, wrId, region, offset, length, rkey, remoteOffset, 0, flags);
  }

  toError(reason: string): void {
    if (this.#state !== 'connected') return;
    this.#state = 'error';
    this.device.toError(this, reason);
  }

  destroy(): Promise<void> {
    if (this.#destroyed === undefined) {
      if (this.#state === 'connected') this.#state = 'error';
      this.#destroyed = this.device.destroyQueuePair(this);
    }
    return this.#destroyed;
  }

  /** By the device: the engine has left the connected state. */
  failed(reason: string): void {
    this.#state = 'error';
    if (this.#onError === undefined) this.#reason = reason;
    else this.#onError(reason);
  }

  /** By the device: the connection is gone; only completions already on their way are still to come. */
  closed(): void {
    this.#state = 'closed';
  }

  #next(): number {
    if (this.#state === 'closed') this.device.revive(this);
    return this.#sendQueue.next();
  }

  #post(
    opcode: number,
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
    flags: number,
  ): number {
    const at = this.#next();
    const words = this.#sendQueue.words;
    words[at] = opcode | (flags << 8) | (1 << 16);
    words[at + 1] = this.qpn;
    words[at + 2] = wrId;
    words[at + 3] = imm;
    words[at + 4] = rkey;
    words[at + 5] = remoteOffset;
    words[at + 6] = 0;
    words[at + 7] = 0;
    words[at + 8] = this.device.keyOf(region);
    words[at + 9] = offset;
    words[at + 10] = length;
    return at;
  }
}
