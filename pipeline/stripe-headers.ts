/**
 * Writes the unit headers of a stripe in place, as words; the device adds digests and seals.
 */
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { crc32c } from '../erasure/code/index.js';
import { headerOffsetIn } from '../wire/slot-layout.js';
import {
  DATA_HEADER_BYTES,
  PARITY_HEADER_STRIDE,
  UNIT_FORMAT_VERSION,
  UNIT_MAGIC,
  W,
  digestLayout,
  headerBytesOf,
} from '../wire/unit-header.js';

const TWO_32 = 0x1_0000_0000;
const DATA_WORDS = DATA_HEADER_BYTES / 4;

/** What is the same for all stripes of a file in one writer epoch and map epoch. */
export interface StripeIdentity {
  codeId: number;
  clusterId: number;
  fileId: number;
  mapEpoch: number;
  writerEpoch: number;
  commitMark: number;
}

/**
 * Writes the k data headers of a stripe, without digests.
 *
 * @param words   view over the region, from its start
 * @param slotOffset  bytes from the region's start to the slot
 * @param stripeLength  data bytes in the stripe, 1 … k · unitBytes
 * @param missingLo  set of units known missing, units 0–31; missingHi: units 32–35
 */
export function writeDataHeaders(
  words: Uint32Array,
  slotOffset: number,
  layout: StripeSlotLayout,
  identity: StripeIdentity,
  stripe: number,
  stripeLength: number,
  counter: number,
  missingLo: number,
  missingHi: number,
): void {
  const { k, m, unitBytes } = layout;
  const shape = (UNIT_FORMAT_VERSION | (identity.codeId << 8) | (k << 16) | (m << 24)) >>> 0;
  const shift = (31 - Math.clz32(unitBytes)) << 8;
  const extension = ((DATA_HEADER_BYTES - 64) >> 2) << 24;
  const fileLo = identity.fileId % TWO_32,
    fileHi = (identity.fileId - fileLo) / TWO_32;
  const stripeLo = stripe % TWO_32,
    stripeHi = (stripe - stripeLo) / TWO_32;
  let w = (slotOffset + layout.dataHeadersOffset) >> 2;
  for (let unit = 0; unit < k; unit++, w += DATA_WORDS) {
    const left = stripeLength - unit * unitBytes;
    words[w] = UNIT_MAGIC;
    words[w + W.SHAPE] = shape;
    words[w + W.UNIT] = unit | shift | extension;
    words[w + W.CLUSTER] = identity.clusterId;
    words[w + W.FILE_LO] = fileLo;
    words[w + W.FILE_HI] = fileHi;
    words[w + W.STRIPE_LO] = stripeLo;
    words[w + W.STRIPE_HI] = stripeHi;
    words[w + W.UNIT_LENGTH] = left <= 0 ? 0 : left < unitBytes ? left : unitBytes;
    words[w + W.STRIPE_LENGTH] = stripeLength;
    words[w + W.MAP_EPOCH] = identity.mapEpoch;
    words[w + W.WRITER_EPOCH] = identity.writerEpoch;
    words[w + W.COUNTER] = counter;
    words[w + W.COMMIT_MARK] = identity.commitMark;
    words[w + W.MISSING_LO] = missingLo;
    words[w + W.MISSING_HI] = missingHi;
  }
}

/** Derives the m parity headers from the first data header: all but unit, lengths and digests is the same. */
export function writeParityHeaders(words: Uint32Array, slotOffset: number, layout: StripeSlotLayout): void {
  const { k, m, unitBytes } = layout;
  const from = (slotOffset + layout.dataHeadersOffset) >> 2;
  const extension = ((headerBytesOf(k, k) - 64) >> 2) << 24;
  const unitWord = words[from + W.UNIT]! & 0x00ffff00;
  const stripeLength = words[from + W.STRIPE_LENGTH]!;
  const length = stripeLength < unitBytes ? stripeLength : unitBytes;
  let w = (slotOffset + layout.parityHeadersOffset) >> 2;
  for (let unit = k; unit < k + m; unit++, w += PARITY_HEADER_STRIDE / 4) {
    for (let i = 0; i < DATA_WORDS; i++) words[w + i] = words[from + i]!;
    words[w + W.UNIT] = unit | unitWord | extension;
    words[w + W.UNIT_LENGTH] = length;
  }
}

/**
 * Completes and seals the header of a unit that was decoded or encoded, where payload CRC and summary are in place
 * already.
 *
 * @param from  a unit of the same version whose header is whole; of parity to be made, all data headers hold their
 *         payload CRCs
 */
export function composeHeader(
  words: Uint32Array,
  slotOffset: number,
  layout: StripeSlotLayout,
  from: number,
  unit: number,
): void {
  const { k, unitBytes } = layout,
    headerBytes = headerBytesOf(unit, k);
  const source = (slotOffset + headerOffsetIn(layout, from)) >> 2,
    w = (slotOffset + headerOffsetIn(layout, unit)) >> 2;
  for (let i = 0; i < W.CRC_LIST; i++)
    if (i !== W.PAYLOAD_CRC && (i < W.SUMMARY || i >= W.SUMMARY + 4)) words[w + i] = words[source + i]!;
  const stripeLength = words[source + W.STRIPE_LENGTH]!;
  words[w + W.UNIT] = (unit | (words[source + W.UNIT]! & 0x00ffff00) | (((headerBytes - 64) >> 2) << 24)) >>> 0;
  words[w + W.UNIT_LENGTH] =
    unit < k ? Math.min(unitBytes, Math.max(0, stripeLength - unit * unitBytes)) : Math.min(unitBytes, stripeLength);
  if (unit >= k)
    for (let data = 0; data < k; data++)
      words[w + W.CRC_LIST + data] = words[((slotOffset + headerOffsetIn(layout, data)) >> 2) + W.PAYLOAD_CRC]!;
  sealHeader(words, w, headerBytes);
}

/** Seals one header, as the device does by the thousands. */
export function sealHeader(words: Uint32Array, w: number, headerBytes: number): void {
  words[w + W.SEAL] = sealOf(words, w, headerBytes);
}

/** Whether a header is as it was sealed. */
export function isSealed(words: Uint32Array, w: number, headerBytes: number): boolean {
  return words[w + W.SEAL] === sealOf(words, w, headerBytes);
}

function sealOf(words: Uint32Array, w: number, headerBytes: number): number {
  const bytes = new Uint8Array(words.buffer, words.byteOffset + w * 4, headerBytes),
    { sealOffset } = digestLayout;
  return crc32c(bytes.subarray(sealOffset + 4), crc32c(bytes.subarray(0, sealOffset)));
}
