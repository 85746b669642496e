/**
 * The header of stripe, unit, parity and probe packets (docs/wire-format.md draws them): 24 bytes in network byte
 * order, before a unit header that stays little-endian. Shared by host, node and the tests of the switch program.
 *
 *     stripe   packet header · stripe header 88 · k × descriptor 28 · k × chunk      writer → switch
 *     unit     packet header · unit header 88 or 88 + 4k · chunk                     switch or host → node
 *     parity   packet header · unit header 88 + 4k, unfinished · chunk               switch → node
 *     probe    packet header · probe body 24                                         writer ↔ switch
 *
 * Cold paths and tests use these functions; the native engine places payloads by the same offsets.
 */
import { DATA_HEADER_BYTES, UNIT_FORMAT_VERSION, UNIT_MAGIC, W } from './unit-header.js';

const PACKET_MAGIC = 0x54525450; // "TRTP"
const PACKET_FORMAT_VERSION = 1;
export const PACKET_HEADER_BYTES = 24;
export const DESCRIPTOR_BYTES = 28;
export const PROBE_BODY_BYTES = 24;
/** UDP port at the switch's service address. */
export const STRIPE_PORT = 21586;
/** What a packet switch takes at most. */
export const MAX_PACKET_K = 8;
export const MAX_PACKET_M = 4;
/** IPv4 without options, and UDP. */
export const IP_UDP_BYTES = 28;

/** Numbers are never reused. */
export const PacketType = { STRIPE: 1, UNIT: 2, PARITY: 3, PROBE: 4, PROBE_ANSWER: 5 } as const;

/** Why a switch drops a packet: index of its counter. Numbers are never reused; 0 is not a reason. */
export const DropReason = {
  short: 1,
  version: 2,
  type: 3,
  shape: 4,
  class: 5,
  length: 6,
  checksum: 7,
  group: 8,
  map_epoch: 9,
  group_shape: 10,
  no_replica: 11,
  no_route: 12,
  ttl: 13,
} as const;
export type DropReasonName = keyof typeof DropReason;

export interface PacketHeader {
  type: number;
  /** Data and parity units; 0 in probes. */
  k: number;
  m: number;
  /** uint32; 0 in probes and in what hosts send to nodes. */
  group: number;
  mapEpoch: number;
  /** First byte of the range, within every unit. */
  offset: number;
  /** Bytes of the range, zeros beyond a unit's end included. */
  chunkBytes: number;
}

/** What data unit c's finished header says, in a stripe packet. */
export interface UnitDescriptor {
  unitLength: number;
  payloadCrc: number;
  seal: number;
  /** 16 bytes. */
  summary: Uint8Array;
}

export interface ProbeBody {
  /** uint64, comes back unchanged. */
  nonce: bigint;
  /** uint64: the pipeline's cookie; 0 in a probe. */
  cookie: bigint;
  program: number;
  /** Most data units, most parity units, and the chunk length of stripe packets. */
  k: number;
  m: number;
  chunkBytes: number;
}

export type PacketFault = 'short' | 'magic' | 'version' | 'type' | 'checksum' | 'length';

/** Length of the UDP payload of a stripe packet. */
export function stripePacketBytes(k: number, chunkBytes: number): number {
  return PACKET_HEADER_BYTES + DATA_HEADER_BYTES + k * (DESCRIPTOR_BYTES + chunkBytes);
}

/**
 * Writes a packet header, with its checksum. The unit header that follows it, if any, must be there already.
 *
 * @param packet       UDP payload
 * @param headerBytes  bytes of unit header that the checksum covers: 88 or more on stripe, unit and parity packets, 0
 *         on
 *                     probes. Only the first 88 count: a switch does not sum the data CRCs, the stripe seal covers them
 */
export function encodePacketHeader(header: PacketHeader, packet: Uint8Array, headerBytes: number): void {
  const view = viewOf(packet);
  view.setUint32(0, PACKET_MAGIC);
  view.setUint8(4, PACKET_FORMAT_VERSION);
  view.setUint8(5, header.type);
  view.setUint8(6, header.k);
  view.setUint8(7, header.m);
  view.setUint32(8, header.group);
  view.setUint32(12, header.mapEpoch);
  view.setUint32(16, header.offset);
  view.setUint16(20, header.chunkBytes);
  view.setUint16(22, 0);
  view.setUint16(
    22,
    internetChecksum(packet.subarray(0, PACKET_HEADER_BYTES + Math.min(headerBytes, DATA_HEADER_BYTES))),
  );
}

/**
 * Reads a packet header.
 *
 * @param packet  UDP payload, whole
 * @returns the header, or why it is refused. That lengths agree with k and chunk is checked, what a group allows is not
 */
export function decodePacketHeader(packet: Uint8Array): PacketHeader | PacketFault {
  if (packet.length < PACKET_HEADER_BYTES) return 'short';
  const view = viewOf(packet);
  if (view.getUint32(0) !== PACKET_MAGIC) return 'magic';
  if (view.getUint8(4) !== PACKET_FORMAT_VERSION) return 'version';
  const header: PacketHeader = {
    type: view.getUint8(5),
    k: view.getUint8(6),
    m: view.getUint8(7),
    group: view.getUint32(8),
    mapEpoch: view.getUint32(12),
    offset: view.getUint32(16),
    chunkBytes: view.getUint16(20),
  };
  const expected = packetBytes(header, packet);
  if (expected === undefined) return 'type';
  if (packet.length < expected) return 'short';
  if (packet.length > expected) return 'length';
  const summed = PACKET_HEADER_BYTES + (isProbe(header.type) ? 0 : DATA_HEADER_BYTES);
  if (internetChecksum(packet.subarray(0, summed)) !== 0) return 'checksum';
  return header;
}

/** Where the chunk of a unit or parity packet begins, from the start of the UDP payload. */
export function chunkStart(header: PacketHeader, packet: Uint8Array): number {
  return packet.length - header.chunkBytes;
}

/** The length that header and unit header require; undefined when the type is unknown. */
function packetBytes(header: PacketHeader, packet: Uint8Array): number | undefined {
  switch (header.type) {
    case PacketType.STRIPE:
      return stripePacketBytes(header.k, header.chunkBytes);
    case PacketType.UNIT:
    case PacketType.PARITY: {
      // Byte 11 of a unit header is the length of its extension in words; a packet too short for it is 'short' anyway.
      const unitHeaderBytes = 64 + 4 * (packet[PACKET_HEADER_BYTES + 11] ?? 6);
      return PACKET_HEADER_BYTES + Math.max(DATA_HEADER_BYTES, unitHeaderBytes) + header.chunkBytes;
    }
    case PacketType.PROBE:
    case PacketType.PROBE_ANSWER:
      return PACKET_HEADER_BYTES + PROBE_BODY_BYTES;
    default:
      return undefined;
  }
}

function isProbe(type: number): boolean {
  return type === PacketType.PROBE || type === PacketType.PROBE_ANSWER;
}

/** Writes a descriptor, little-endian, at byte `at`. */
export function encodeDescriptor(descriptor: UnitDescriptor, packet: Uint8Array, at: number): void {
  const view = viewOf(packet);
  view.setUint32(at, descriptor.unitLength, true);
  view.setUint32(at + 4, descriptor.payloadCrc, true);
  view.setUint32(at + 8, descriptor.seal, true);
  packet.set(descriptor.summary, at + 12);
}

export function decodeDescriptor(packet: Uint8Array, at: number): UnitDescriptor {
  const view = viewOf(packet);
  return {
    unitLength: view.getUint32(at, true),
    payloadCrc: view.getUint32(at + 4, true),
    seal: view.getUint32(at + 8, true),
    summary: packet.slice(at + 12, at + DESCRIPTOR_BYTES),
  };
}

export function encodeProbeBody(body: ProbeBody, packet: Uint8Array, at = PACKET_HEADER_BYTES): void {
  const view = viewOf(packet);
  view.setBigUint64(at, body.nonce);
  view.setBigUint64(at + 8, body.cookie);
  view.setUint32(at + 16, body.program);
  view.setUint8(at + 20, body.k);
  view.setUint8(at + 21, body.m);
  view.setUint16(at + 22, body.chunkBytes);
}

export function decodeProbeBody(packet: Uint8Array, at = PACKET_HEADER_BYTES): ProbeBody {
  const view = viewOf(packet);
  return {
    nonce: view.getBigUint64(at),
    cookie: view.getBigUint64(at + 8),
    program: view.getUint32(at + 16),
    k: view.getUint8(at + 20),
    m: view.getUint8(at + 21),
    chunkBytes: view.getUint16(at + 22),
  };
}

/**
 * Turns a unit header (any data unit's) into the stripe header: what differs between units becomes zero, and the stripe
 * seal is set.
 *
 * @param words    the 88 bytes to change, as 22 words
 * @param dataCrcs payload CRC of each data unit, k of them
 * @param crc32c   of the caller's choice: wire/ computes no digests
 */
export function makeStripeHeader(
  words: Uint32Array,
  dataCrcs: readonly number[],
  crc32c: (bytes: Uint8Array) => number,
): void {
  clearUnitFields(words);
  words[W.SEAL] = stripeSeal(words, dataCrcs, crc32c);
}

/**
 * The seal that the header of a parity packet must carry.
 *
 * @param words  22 words of the parity packet's unit header, or of a stripe header
 * @returns uint32, to be compared with words[W.SEAL]
 */
export function stripeSeal(
  words: Uint32Array,
  dataCrcs: readonly number[],
  crc32c: (bytes: Uint8Array) => number,
): number {
  const common = words.slice(0, DATA_HEADER_BYTES / 4);
  clearUnitFields(common);
  const sealed = new Uint32Array(DATA_HEADER_BYTES / 4 - 1 + dataCrcs.length);
  sealed.set(common.subarray(0, W.SEAL));
  sealed.set(common.subarray(W.SEAL + 1), W.SEAL);
  sealed.set(dataCrcs, DATA_HEADER_BYTES / 4 - 1);
  return crc32c(new Uint8Array(sealed.buffer));
}

function clearUnitFields(words: Uint32Array): void {
  words[W.UNIT] = words[W.UNIT]! & 0x00ffff00; // unit index and extension words go, lg(unitBytes) and flags stay
  words[W.UNIT_LENGTH] = 0;
  words[W.PAYLOAD_CRC] = 0;
  words[W.SEAL] = 0;
  words.fill(0, W.SUMMARY, W.SUMMARY + 4);
}

/** Whether 88 bytes can be a stripe header at all: what a switch checks of them. */
export function isStripeHeader(words: Uint32Array, k: number, m: number): boolean {
  const shape = words[W.SHAPE]!;
  return (
    words[W.MAGIC] === UNIT_MAGIC &&
    (shape & 0xff) === UNIT_FORMAT_VERSION &&
    ((shape >>> 16) & 0xff) === k &&
    shape >>> 24 === m
  );
}

/**
 * The internet checksum: one's complement of the one's complement sum of 16-bit words.
 *
 * @param bytes  an even number of them
 * @returns uint16; over bytes that include a right checksum, 0
 * Source: RFC 1071
 */
export function internetChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i + 1 < bytes.length; i += 2) sum += (bytes[i]! << 8) | bytes[i + 1]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
