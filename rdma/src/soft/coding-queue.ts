import type { Coder, CodingQueue, CompletionHandler, MemoryRegion, StripePlace } from '../device.js';
import { Opcode } from '../records.js';
import type { SendQueue } from './send-queue.js';
import type { SoftDevice } from './soft-device.js';

export class SoftCodingQueue implements CodingQueue {
  #destroyed: Promise<void> | undefined;
  readonly #sendQueue: SendQueue;

  constructor(
    private readonly device: SoftDevice,
    readonly qpn: number,
    public handler: CompletionHandler,
  ) {
    this.#sendQueue = device.sendQueue;
  }

  postEncode(wrId: number, coder: Coder, place: StripePlace, flags: number): void {
    const at = this.#next(wrId, Opcode.ENCODE | (flags << 8), coder, place.region);
    const words = this.#sendQueue.words;
    words[at + 5] = place.unitsOffset;
    words[at + 6] = place.stride;
    words[at + 7] = place.dataLength;
    words[at + 8] = place.dataHeadersOffset;
    words[at + 9] = place.dataHeaderStride;
    words[at + 10] = place.parityHeadersOffset;
    words[at + 11] = place.parityHeaderStride;
  }

  postVerify(
    wrId: number,
    coder: Coder,
    region: MemoryRegion,
    headerOffset: number,
    headerBytes: number,
    payloadOffset: number,
    payloadBytes: number,
  ): void {
    const at = this.#next(wrId, Opcode.VERIFY, coder, region);
    const words = this.#sendQueue.words;
    words[at + 5] = headerOffset;
    words[at + 6] = headerBytes;
    words[at + 7] = payloadOffset;
    words[at + 8] = payloadBytes;
  }

  destroy(): Promise<void> {
    this.#destroyed ??= this.device.destroyCodingQueue(this);
    return this.#destroyed;
  }

  #next(wrId: number, word0: number, coder: Coder, region: MemoryRegion): number {
    if (this.#destroyed !== undefined) throw new Error(`Cannot post on coding queue ${this.qpn}: it was destroyed`);
    this.device.codingPosted();
    const at = this.#sendQueue.next();
    const words = this.#sendQueue.words;
    words[at] = word0;
    words[at + 1] = this.qpn;
    words[at + 2] = wrId;
    words[at + 3] = coder.id;
    words[at + 4] = this.device.keyOf(region);
    return at;
  }
}
