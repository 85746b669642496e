/**
 * Packet sockets: stripes and units over UDP, for switches that compute on packets. The packets are Tartan's own
 * (docs/wire-format.md, "Stripe packets"); a device that has them offers `openPacketSocket`.
 *
 *     writer  postStripe / postUnit ─▶ sender ══ chunks ══▶ (switch) ══▶ receiver ─▶ slots ─▶ completion, as of a write
 *             with immediate
 *                                        ▲                                  │
 *                                        └────── which chunks have come ────┘
 *
 * Invariants: every request of a sender completes exactly once, and its memory is read until then; SUCCESS says that
 * every chunk of every unit waited for lies in its receiver's slot, not that it is durable. A receiver hands on a unit
 * once, whole, and does not touch its slot again before `release`.
 */
import type { CompletionHandler, MemoryRegion } from './device.js';
import { RdmaError } from './device.js';

export interface PacketSocketOptions {
  /**
   * Loses and reorders packets on arrival, drawn from `seed` (not 0): for tests. Shares of 1000. Default: what the
   * environment's TARTAN_PACKET_IMPAIRMENT says (seed,loss,reordering), else nothing.
   */
  readonly impairment?: { readonly seed: number; readonly lossPerMille: number; readonly reorderPerMille: number };
}

export interface PacketSenderOptions {
  /** Most packets under way. Default 256. */
  readonly mostPackets?: number;
}

export interface PacketReceiverOptions {
  /** Only packets of this IPv4 address and port are taken (uint32, ipv4Of). */
  readonly peerAddress: number;
  readonly peerPort: number;
  /** Only units of this file and writer epoch. Below 2^53. */
  readonly fileId: number;
  readonly writerEpoch: number;
  /**
   * `slots` × `slotBytes` bytes: header ending at byte 4096 of a slot, payload from there. Held until `destroy`
   * resolves.
   */
  readonly region: MemoryRegion;
  readonly slots: number;
  readonly slotBytes: number;
  readonly unitBytes: number;
  /** A unit that has not grown for so long loses its slot. Default 2000. */
  readonly reclaimMs?: number;
}

/** A unit lies whole in a slot. @param byteLength  of header and payload */
export type UnitHandler = (slot: number, headerBytes: number, byteLength: number) => void;
export type DuplicateHandler = (unit: number, stripe: number, counter: number, mapEpoch: number) => void;

/** Monotonic counts of one socket; `window` (packets) and `smoothedRttUs` are last values. */
export interface PacketCounters {
  packetsSent: number;
  packetsRetransmitted: number;
  packetsReceived: number;
  /** Sent: whole UDP payloads. Received: payload bytes placed. */
  bytesSent: number;
  bytesReceived: number;
  unitsPlaced: number;
  duplicates: number;
  acksSent: number;
  acksReceived: number;
  /** Packets dropped on arrival, by reason. */
  malformed: number;
  unknown: number;
  stale: number;
  noSlot: number;
  mismatch: number;
  reclaimed: number;
  sendBlocked: number;
  window: number;
  smoothedRttUs: number;
}

export interface PacketSender {
  /**
   * Sends a stripe whose data headers are sealed, cut into packets of `chunkBytes` of each of its units (at most 8), to
   * a switch.
   *
   * @param headersOffset  k data headers, 88 bytes apart; unit c at unitsOffset + c · stride
   * @param group          the switch's number for the nodes of this stripe
   * @param units          set of the units, data and parity, that nodes must acknowledge
   * @param address        IPv4 as uint32
   */
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
  ): void;
  /** Sends one unit with its finished header to a node. @param chunkBytes  most payload bytes in a packet */
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
  ): void;
  /** Gives up a request: it completes with FLUSHED, unless it has completed. */
  cancel(wrId: number): void;
}

export interface PacketReceiver {
  /** The slot of a unit that was handed on may be filled again. @param durable  packets of it need no slot any more */
  release(slot: number, durable: boolean): void;
  /** Resolves when nothing is placed any more. */
  destroy(): Promise<void>;
}

export interface PacketSocket {
  readonly address: string;
  readonly port: number;
  /** One for each socket. */
  createSender(handler: CompletionHandler, options?: PacketSenderOptions): PacketSender;
  /**
   * @param onDuplicate  a unit that was released as durable has been sent again: it is to be said again that it is
   *   durable
   */
  createReceiver(options: PacketReceiverOptions, onUnit: UnitHandler, onDuplicate?: DuplicateHandler): PacketReceiver;
  counters(): PacketCounters;
  /** Flushes the sender and forgets the receivers. Idempotent. */
  close(): Promise<void>;
}

/** @returns uint32. @throws {RdmaError} ERR_ADDRESS when it is no dotted IPv4 address */
export function ipv4Of(address: string): number {
  const parts = address.split('.').map(Number);
  if (parts.length !== 4 || parts.some((part) => !Number.isInteger(part) || part < 0 || part > 255))
    throw new RdmaError('ERR_ADDRESS', `Cannot use '${address}': a numeric IPv4 address is expected`);
  return parts.reduce((sum, part) => sum * 256 + part, 0);
}
