import type { CompletionHandler, MemoryRegion } from '../device.js';
import type {
  DuplicateHandler,
  PacketCounters,
  PacketReceiver,
  PacketReceiverOptions,
  PacketSender,
  PacketSenderOptions,
  PacketSocket,
  UnitHandler,
} from '../packets.js';
import { Opcode, Status } from '../records.js';
import type { NativeDevice } from './native.js';
import type { SendQueue } from './send-queue.js';

/** The order of `PacketCounters` in native/packet_counters.h. */
const PACKET_COUNTER_NAMES: readonly (keyof PacketCounters)[] = [
  'packetsSent',
  'packetsRetransmitted',
  'packetsReceived',
  'bytesSent',
  'bytesReceived',
  'unitsPlaced',
  'duplicates',
  'acksSent',
  'acksReceived',
  'malformed',
  'unknown',
  'stale',
  'noSlot',
  'mismatch',
  'reclaimed',
  'sendBlocked',
  'window',
  'smoothedRttUs',
];
const MOST_PACKETS = 256;
const RECLAIM_MS = 2000;

/** With one word more than others: RECV_DUPLICATE's map epoch. */
export type PacketHandler = (...completion: [...Parameters<CompletionHandler>, extra: number]) => void;

/** What a packet socket needs of its device. */
export interface PacketSocketOwner {
  readonly sendQueue: SendQueue;
  readonly native: NativeDevice;
  keyOf(region: MemoryRegion): number;
  /** Completions of `qpn` go to `handler` from now on; undefined: nowhere. */
  setTarget(qpn: number, handler: PacketHandler | undefined): void;
  /** Sends a command that an event answers. */
  command(send: (fence: number) => void): Promise<void>;
  forget(socket: SoftPacketSocket): void;
}

export class SoftPacketSocket implements PacketSocket {
  readonly #qpns: number[] = [];
  readonly #values = new Float64Array(PACKET_COUNTER_NAMES.length);
  #closed: Promise<void> | undefined;

  constructor(
    private readonly owner: PacketSocketOwner,
    private readonly id: number,
    readonly address: string,
    readonly port: number,
  ) {}

  createSender(handler: CompletionHandler, options: PacketSenderOptions = {}): PacketSender {
    return new SoftPacketSender(
      this.owner,
      this.#add(
        (native) => native.addPacketSender(this.id, Uint32Array.of(options.mostPackets ?? MOST_PACKETS)),
        handler,
      ),
    );
  }

  createReceiver(options: PacketReceiverOptions, onUnit: UnitHandler, onDuplicate?: DuplicateHandler): PacketReceiver {
    const words = Uint32Array.of(
      this.owner.keyOf(options.region),
      options.peerAddress,
      options.peerPort,
      options.fileId % 2 ** 32,
      Math.floor(options.fileId / 2 ** 32),
      options.writerEpoch,
      options.slots,
      options.slotBytes,
      options.unitBytes,
      options.reclaimMs ?? RECLAIM_MS,
    );
    const qpn = this.#add(
      (native) => native.addPacketReceiver(this.id, words),
      (opcode, status, wrId, byteLength, imm, detail, mapEpoch) => {
        if (status !== Status.SUCCESS) return;
        if (opcode === Opcode.RECV_WRITE_WITH_IMM) onUnit(imm & 0xffff, (imm >>> 16) * 4, byteLength);
        else if (opcode === Opcode.RECV_DUPLICATE) onDuplicate?.(detail, imm * 2 ** 32 + wrId, byteLength, mapEpoch);
      },
    );
    let gone: Promise<void> | undefined;
    return {
      release: (slot, durable) => {
        const at = this.owner.sendQueue.next(),
          send = this.owner.sendQueue.words;
        send[at] = Opcode.RELEASE_SLOT | (durable ? 1 << 8 : 0);
        send[at + 1] = qpn;
        send[at + 2] = slot;
      },
      destroy: () => (gone ??= this.#closed ?? this.#remove(qpn)),
    };
  }

  counters(): PacketCounters {
    if (this.#closed === undefined) this.owner.native.packetCounters(this.id, this.#values, 0);
    return Object.fromEntries(
      PACKET_COUNTER_NAMES.map((name, i) => [name, this.#values[i]]),
    ) as unknown as PacketCounters;
  }

  close(): Promise<void> {
    return (this.#closed ??= this.#close());
  }

  async #close(): Promise<void> {
    this.owner.sendQueue.ring();
    await this.owner.command((fence) => {
      this.owner.native.closePacketSocket(this.id, fence);
    });
    this.owner.native.packetCounters(this.id, this.#values, 1);
    for (const qpn of this.#qpns) this.owner.setTarget(qpn, undefined);
    this.owner.forget(this);
  }

  async #remove(qpn: number): Promise<void> {
    this.owner.sendQueue.ring();
    await this.owner.command((fence) => {
      this.owner.native.removePacketReceiver(this.id, qpn, fence);
    });
    this.owner.setTarget(qpn, undefined);
    this.#qpns.splice(this.#qpns.indexOf(qpn), 1);
  }

  #add(add: (native: NativeDevice) => number, handler: PacketHandler): number {
    if (this.#closed !== undefined)
      throw new Error(`Cannot use packet socket ${this.address}:${this.port}: it is closed`);
    const qpn = add(this.owner.native);
    this.#qpns.push(qpn);
    this.owner.setTarget(qpn, handler);
    return qpn;
  }
}

class SoftPacketSender implements PacketSender {
  constructor(
    private readonly owner: PacketSocketOwner,
    private readonly qpn: number,
  ) {}

  postStripe(
    wrId: number,
    region: MemoryRegion,
    headersOffset: number,
    unitsOffset: number,
    stride: number,
    group: number,
    chunkBytes: number,
    units: number,
    address: number,
    port: number,
  ): void {
    const at = this.#next(Opcode.SEND_STRIPE, wrId),
      words = this.owner.sendQueue.words;
    words[at + 3] = this.owner.keyOf(region);
    words[at + 4] = headersOffset;
    words[at + 5] = unitsOffset;
    words[at + 6] = stride;
    words[at + 7] = group;
    words[at + 8] = chunkBytes;
    words[at + 9] = units;
    words[at + 10] = address;
    words[at + 11] = port;
  }

  postUnit(
    wrId: number,
    region: MemoryRegion,
    headerOffset: number,
    headerBytes: number,
    payloadOffset: number,
    payloadBytes: number,
    chunkBytes: number,
    address: number,
    port: number,
  ): void {
    const at = this.#next(Opcode.SEND_UNIT, wrId),
      words = this.owner.sendQueue.words;
    words[at + 3] = this.owner.keyOf(region);
    words[at + 4] = headerOffset;
    words[at + 5] = headerBytes;
    words[at + 6] = payloadOffset;
    words[at + 7] = payloadBytes;
    words[at + 8] = chunkBytes;
    words[at + 9] = address;
    words[at + 10] = port;
  }

  cancel(wrId: number): void {
    this.#next(Opcode.CANCEL, wrId);
  }

  #next(opcode: number, wrId: number): number {
    const at = this.owner.sendQueue.next(),
      words = this.owner.sendQueue.words;
    words[at] = opcode;
    words[at + 1] = this.qpn;
    words[at + 2] = wrId;
    return at;
  }
}
