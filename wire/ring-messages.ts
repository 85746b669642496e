/**
 * The frequent messages of the ring protocol: a frame header of 8 bytes and records of fixed size, little-endian uint32
 * words, written and read in place. docs/wire-format.md draws them.
 *
 *   frame    word 0: type | protocol << 8 | count << 16      word 1: map epoch of the sender
 *   CONTROL  count is the length in bytes of one protobuf Control message (proto/ring.proto)
 *   others   count records follow
 */
import type { ErrorCode } from './errors.js';

export const PROTOCOL_VERSION = 1;
/** Largest message, frame header included; the size of every posted receive. */
export const MESSAGE_BYTES = 4096;
export const FRAME_WORDS = 2;

export const MessageType = {
  CONTROL: 1,
  ACK: 2,
  STRIPE_ACK: 3,
  CREDIT: 4,
  READ: 5,
  READ_FAILED: 6,
  UNIT_ACK: 7,
} as const;

/** Node → sender of a unit: slot, durable or refused, returns the slot's credit. 5 words:
 *  0 slot | refusal << 16 · 1 writer epoch · 2 counter · 3 map epoch of the node · 4 stripe (low 32 bits) */
export const ACK_WORDS = 5;

/** Switch → writer: what nodes reported for one stripe. 7 words:
 *  0 tag | refusal << 16 | unit refused << 24 · 1 durable data units · 2 durable parity units · 3 writer epoch · 4
 *  counter
 *  · 5 highest map epoch a node reported · 6 reserved, 0 */
export const STRIPE_ACK_WORDS = 7;

/** Switch → writer: a slot whose forwards have all completed. 1 word: the slot. */
export const CREDIT_WORDS = 1;

/** Reader → node. 14 words:
 *  0 request id (also the immediate of the answer) · 1, 2 file id · 3, 4 stripe · 5 unit | flags << 8
 *  · 6, 7 highest version wanted (epoch, counter) · 8 rkey · 9 offset in it for the payload · 10 capacity there in
 *  bytes
 *  · 11 offset in it for the header
 *  · 12, 13 exact version (epoch, counter), or 0, 0: the highest at or below 6, 7 */
export const READ_WORDS = 14;

/**
 * Node → reader: a read that failed. 4 words: 0 request id · 1 refusal · 2, 3 highest commit mark known (epoch,
 * counter).
 */
export const READ_FAILED_WORDS = 4;

/** Node → writer of packets: durable or refused. 7 words:
 *  0 unit | refusal << 8 · 1, 2 stripe · 3 writer epoch · 4 counter · 5 map epoch of the unit's header · 6 map epoch of
 *  the node */
export const UNIT_ACK_WORDS = 7;

/** Why a node refuses a unit or a read; numbers are never reused. */
export const Refusal = {
  NONE: 0,
  STALE_WRITER_EPOCH: 1,
  STALE_MAP: 2,
  NAME_CONFLICT: 3,
  STALE_VERSION: 4,
  NOT_MINE: 5,
  DISK_FULL: 6,
  DISK: 7,
  CHECKSUM: 8,
  MALFORMED: 9,
  NO_UNIT: 10,
  CLUSTER: 11,
  CAPACITY: 12,
  CLOSED: 13,
  UNREACHABLE: 14,
  MAP_UNAVAILABLE: 15,
  /** A rebuilt unit of a version that the file's record does not call committed. */
  NOT_COMMITTED: 16,
} as const;

const codes: Record<number, ErrorCode> = {
  1: 'ERR_STALE_EPOCH',
  2: 'ERR_STALE_MAP',
  3: 'ERR_NAME_CONFLICT',
  4: 'ERR_STALE_VERSION',
  5: 'ERR_NOT_MINE',
  6: 'ERR_DISK_FULL',
  7: 'ERR_DISK',
  8: 'ERR_CHECKSUM',
  9: 'ERR_MALFORMED',
  10: 'ERR_NO_UNIT',
  11: 'ERR_CLUSTER',
  12: 'ERR_CAPACITY',
  13: 'ERR_CLOSED',
  14: 'ERR_CONNECT',
  15: 'ERR_MAP_UNAVAILABLE',
  16: 'ERR_UNDECIDED',
};

/** The error code behind a refusal number. */
export function refusalCode(refusal: number): ErrorCode {
  return codes[refusal] ?? 'ERR_MALFORMED';
}

/** Immediate of a unit written into a node's ring: slot (16 bits) | header words << 16. */
export function unitImm(slot: number, headerBytes: number): number {
  return (slot | ((headerBytes >> 2) << 16)) >>> 0;
}
export function unitImmSlot(imm: number): number {
  return imm & 0xffff;
}
export function unitImmHeaderBytes(imm: number): number {
  return (imm >>> 16) << 2;
}

/** Immediate of a stripe written into a switch's ring: slot (12 bits) | tag << 12 (15 bits) | (k − 1) << 27. */
export const MAX_SWITCH_SLOTS = 1 << 12;
export const MAX_TAGS = 1 << 15;
export function stripeImm(slot: number, tag: number, k: number): number {
  return (slot | (tag << 12) | ((k - 1) << 27)) >>> 0;
}
export function stripeImmSlot(imm: number): number {
  return imm & 0xfff;
}
export function stripeImmTag(imm: number): number {
  return (imm >>> 12) & 0x7fff;
}
export function stripeImmK(imm: number): number {
  return (imm >>> 27) + 1;
}

/** Words of one record of a type, or 0 for CONTROL and unknown types. */
export function recordWords(type: number): number {
  switch (type) {
    case MessageType.ACK:
      return ACK_WORDS;
    case MessageType.STRIPE_ACK:
      return STRIPE_ACK_WORDS;
    case MessageType.CREDIT:
      return CREDIT_WORDS;
    case MessageType.READ:
      return READ_WORDS;
    case MessageType.READ_FAILED:
      return READ_FAILED_WORDS;
    case MessageType.UNIT_ACK:
      return UNIT_ACK_WORDS;
    default:
      return 0;
  }
}

/** How many records of a type fit one message. */
export function recordsPerMessage(type: number): number {
  return Math.floor((MESSAGE_BYTES / 4 - FRAME_WORDS) / recordWords(type));
}

/**
 * Checks a received frame.
 *
 * @param words  view over the message memory
 * @param w      index of the frame header
 * @param byteLength  bytes received
 * @returns the message type, or 0 when the frame is malformed (wrong version, unknown type, count that lies)
 */
export function checkFrame(words: Uint32Array, w: number, byteLength: number): number {
  if (byteLength < FRAME_WORDS * 4 || byteLength > MESSAGE_BYTES) return 0;
  const head = words[w]!;
  const type = head & 0xff,
    count = head >>> 16;
  // Of any version: a peer of another one says so in its Hello, and is told so in the answer.
  if (type === MessageType.CONTROL) return byteLength === FRAME_WORDS * 4 + count ? type : 0;
  if (((head >>> 8) & 0xff) !== PROTOCOL_VERSION) return 0;
  const each = recordWords(type);
  return each > 0 && count > 0 && byteLength === (FRAME_WORDS + count * each) * 4 ? type : 0;
}

export function frameHead(type: number, count: number): number {
  return (type | (PROTOCOL_VERSION << 8) | (count << 16)) >>> 0;
}
