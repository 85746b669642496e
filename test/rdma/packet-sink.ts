/** The end of a packet path as a node has it, and stripes to be sent there. One device for a whole test file. */
import { randomInt } from 'node:crypto';
import { ipv4Of, openSoftDevice, type MemoryRegion, type PacketSocket } from 'tartan-rdma';
import { PACKET_HEADER_BYTES, PacketType, encodePacketHeader } from '../../wire/packet-header.js';
import { PAGE_BYTES, stripeSlotLayout, unitSlotBytes, headerOffsetIn } from '../../wire/slot-layout.js';
import { NAME, makeStripe, type Stripe } from '../p4/stripe-packets.js';

export const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(1, 2 ** 31));

export const HOST = '127.0.0.1';
export const SLOTS = 16;

export const device = openSoftDevice();

export interface Arrived {
  header: Uint8Array;
  payload: Uint8Array;
}

/** A node's end: hands on what arrives, and releases its slots at once. */
export class Sink {
  readonly arrived: Arrived[] = [];
  /** unit, stripe, counter, map epoch */
  readonly duplicates: number[][] = [];
  onArrived: (() => void) | undefined;
  region!: MemoryRegion;
  held = false;
  readonly waiting: number[] = [];
  release!: (slot: number, durable: boolean) => void;

  constructor(
    readonly socket: PacketSocket,
    readonly unitBytes: number,
  ) {}

  receive(from: { port: number }, writerEpoch = NAME.writerEpoch, reclaimMs?: number): this {
    const slotBytes = unitSlotBytes(this.unitBytes);
    this.region = device.allocate(SLOTS * slotBytes);
    const bytes = new Uint8Array(this.region.buffer);
    const onUnit = (slot: number, headerBytes: number, byteLength: number): void => {
      const at = slot * slotBytes + PAGE_BYTES;
      this.arrived.push({
        header: bytes.slice(at - headerBytes, at),
        payload: bytes.slice(at, at + byteLength - headerBytes),
      });
      if (this.held) this.waiting.push(slot);
      else receiver.release(slot, true);
      this.onArrived?.();
    };
    const receiver = this.socket.createReceiver(
      {
        peerAddress: ipv4Of(HOST),
        peerPort: from.port,
        fileId: NAME.fileId,
        writerEpoch,
        region: this.region,
        slots: SLOTS,
        slotBytes,
        unitBytes: this.unitBytes,
        ...(reclaimMs !== undefined && { reclaimMs }),
      },
      onUnit,
      (...duplicate) => {
        this.duplicates.push(duplicate);
        this.onArrived?.();
      },
    );
    this.release = (slot, durable) => {
      receiver.release(slot, durable);
      device.ring();
    };
    return this;
  }
}

/** Puts a stripe where a writer has it; parity only for tests of unit packets. */
export function place(stripe: Stripe, region: MemoryRegion, base: number): ReturnType<typeof stripeSlotLayout> {
  const { k, m } = stripe.code,
    layout = stripeSlotLayout(k, m, stripe.unitBytes),
    bytes = new Uint8Array(region.buffer);
  stripe.headers.forEach((header, unit) => {
    bytes.set(header, base + headerOffsetIn(layout, unit));
  });
  stripe.units.forEach((unit, index) => {
    bytes.set(unit, base + layout.unitsOffset + index * stripe.unitBytes);
  });
  return layout;
}

/** Stripes of one file that differ by their counter and stripe number. */
export function namedStripe(k: number, m: number, unitBytes: number, data: Uint8Array, counter: number): Stripe {
  Object.assign(NAME, { counter, stripe: 0x1_0000_0000 + counter });
  return makeStripe(k, m, unitBytes, data);
}

export function randomData(random: (below: number) => number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, () => random(256));
}

export const bytesOf = (random: () => number) => (below: number) => Math.floor(random() * below);

export function mulberry(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The first half of a stripe's first unit, as one packet of 512 bytes. */
export function halfOf(stripe: Stripe): Uint8Array {
  const header = stripe.headers[0]!,
    packet = new Uint8Array(PACKET_HEADER_BYTES + header.length + 512);
  packet.set(header, PACKET_HEADER_BYTES);
  packet.set(stripe.units[0]!.subarray(0, 512), PACKET_HEADER_BYTES + header.length);
  encodePacketHeader(
    { type: PacketType.UNIT, k: 2, m: 1, group: 0, mapEpoch: NAME.mapEpoch, offset: 0, chunkBytes: 512 },
    packet,
    header.length,
  );
  return packet;
}
