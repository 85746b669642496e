/**
 * The header that every unit carries, in a ring slot, in a packet and on disk (docs/wire-format.md draws it).
 * Little-endian. 64 bytes, then an extension: 16 bytes summary, 8 bytes set of missing units, and on a parity
 * unit k × uint32, the CRC32C of every data unit of the stripe.
 *
 * Hot path: headers are written and read as uint32 words of a view over registered memory; no objects.
 */
export const UNIT_MAGIC = 0x4e545254; // "TRTN" in memory
export const UNIT_FORMAT_VERSION = 1;
export const DATA_HEADER_BYTES = 88;
/** Room reserved for one parity header: 88 + 4 × 32 = 216, rounded up. */
export const PARITY_HEADER_STRIDE = 256;
export const MAX_HEADER_BYTES = 216;
export const MAX_K = 32;
export const MAX_M = 4;
export const MIN_UNIT_BYTES = 512;
export const MAX_UNIT_BYTES = 4 << 20;

/** Word indexes (uint32) inside a header. */
export const W = {
  MAGIC: 0,
  /** format version | code id << 8 | k << 16 | m << 24 */
  SHAPE: 1,
  /** unit index | log2(unitBytes) << 8 | flags << 16 | extension words << 24 */
  UNIT: 2,
  CLUSTER: 3,
  FILE_LO: 4,
  FILE_HI: 5,
  STRIPE_LO: 6,
  STRIPE_HI: 7,
  UNIT_LENGTH: 8,
  STRIPE_LENGTH: 9,
  MAP_EPOCH: 10,
  WRITER_EPOCH: 11,
  COUNTER: 12,
  COMMIT_MARK: 13,
  PAYLOAD_CRC: 14,
  SEAL: 15,
  SUMMARY: 16,
  MISSING_LO: 20,
  MISSING_HI: 21,
  CRC_LIST: 22,
} as const;

/** The digest places a device needs (bytes); see tartan-rdma's DigestLayout. */
export const digestLayout = {
  payloadCrcOffset: W.PAYLOAD_CRC * 4,
  sealOffset: W.SEAL * 4,
  summaryOffset: W.SUMMARY * 4,
  crcListOffset: W.CRC_LIST * 4,
  dataHeaderBytes: DATA_HEADER_BYTES,
} as const;

/** Length in bytes of the header of unit `unit` of a stripe with k data units. */
export function headerBytesOf(unit: number, k: number): number {
  return unit < k ? DATA_HEADER_BYTES : DATA_HEADER_BYTES + 4 * k;
}

/** A header as an object: for cold paths, tests and logs. */
export interface UnitHeader {
  codeId: number;
  k: number;
  m: number;
  unit: number;
  unitBytes: number;
  flags: number;
  clusterId: number;
  /** Never reused; below 2^53. */
  fileId: number;
  stripe: number;
  unitLength: number;
  stripeLength: number;
  mapEpoch: number;
  /** The version is (writerEpoch, counter), ordered lexicographically. */
  writerEpoch: number;
  counter: number;
  /** Versions of this writer epoch with counter ≤ commitMark are committed, and so is what survives of older epochs. */
  commitMark: number;
  payloadCrc: number;
  seal: number;
  /** Bit u: unit u was known missing when this unit was written. */
  missing: bigint;
  /** 16 bytes. */
  summary: Uint8Array;
  /** Parity units: k entries; data units: none. */
  dataCrcs: number[];
}

/** Why a header is refused; 0 is fine. Numbers travel in acknowledgements (RefuseReason). */
export type HeaderFault = 'short' | 'magic' | 'version' | 'shape' | 'length' | 'extension';

/**
 * Checks what can be known from the header alone, before a digest is computed.
 *
 * @param words  view over the memory that holds the header
 * @param w      index of its first word
 * @param headerBytes  bytes received before the payload
 * @param payloadBytes bytes received after the header
 * @returns undefined when plausible, else the fault
 */
export function checkHeader(
  words: Uint32Array,
  w: number,
  headerBytes: number,
  payloadBytes: number,
): HeaderFault | undefined {
  if (headerBytes < DATA_HEADER_BYTES || w + (headerBytes >> 2) > words.length) return 'short';
  if (words[w] !== UNIT_MAGIC) return 'magic';
  const shape = words[w + W.SHAPE]!;
  if ((shape & 0xff) !== UNIT_FORMAT_VERSION) return 'version';
  const k = (shape >>> 16) & 0xff,
    m = shape >>> 24;
  const unitWord = words[w + W.UNIT]!;
  const unit = unitWord & 0xff,
    shift = (unitWord >>> 8) & 0xff,
    extension = unitWord >>> 24;
  if (k < 1 || k > MAX_K || m < 1 || m > MAX_M || unit >= k + m || shift < 9 || shift > 22) return 'shape';
  if (headerBytes !== headerBytesOf(unit, k) || extension !== (headerBytes - 64) >> 2) return 'extension';
  const unitBytes = 1 << shift,
    length = words[w + W.UNIT_LENGTH]!,
    stripeLength = words[w + W.STRIPE_LENGTH]!;
  if (stripeLength < 1 || stripeLength > k * unitBytes || length !== payloadBytes) return 'length';
  const expected =
    unit < k ? Math.min(unitBytes, Math.max(0, stripeLength - unit * unitBytes)) : Math.min(unitBytes, stripeLength);
  if (length !== expected) return 'length';
  return undefined;
}

const TWO_32 = 0x1_0000_0000;

export function headerFileId(words: Uint32Array, w: number): number {
  return words[w + W.FILE_HI]! * TWO_32 + words[w + W.FILE_LO]!;
}
export function headerStripe(words: Uint32Array, w: number): number {
  return words[w + W.STRIPE_HI]! * TWO_32 + words[w + W.STRIPE_LO]!;
}
export function headerUnit(words: Uint32Array, w: number): number {
  return words[w + W.UNIT]! & 0xff;
}
export function headerK(words: Uint32Array, w: number): number {
  return (words[w + W.SHAPE]! >>> 16) & 0xff;
}
export function headerM(words: Uint32Array, w: number): number {
  return words[w + W.SHAPE]! >>> 24;
}
export function headerUnitBytes(words: Uint32Array, w: number): number {
  return 1 << ((words[w + W.UNIT]! >>> 8) & 0xff);
}

/** Reads a whole header. The caller has run checkHeader. */
export function decodeHeader(words: Uint32Array, w: number): UnitHeader {
  const k = headerK(words, w),
    unit = headerUnit(words, w);
  return {
    codeId: (words[w + W.SHAPE]! >>> 8) & 0xff,
    k,
    m: headerM(words, w),
    unit,
    unitBytes: headerUnitBytes(words, w),
    flags: (words[w + W.UNIT]! >>> 16) & 0xff,
    clusterId: words[w + W.CLUSTER]!,
    fileId: headerFileId(words, w),
    stripe: headerStripe(words, w),
    unitLength: words[w + W.UNIT_LENGTH]!,
    stripeLength: words[w + W.STRIPE_LENGTH]!,
    mapEpoch: words[w + W.MAP_EPOCH]!,
    writerEpoch: words[w + W.WRITER_EPOCH]!,
    counter: words[w + W.COUNTER]!,
    commitMark: words[w + W.COMMIT_MARK]!,
    payloadCrc: words[w + W.PAYLOAD_CRC]!,
    seal: words[w + W.SEAL]!,
    missing: (BigInt(words[w + W.MISSING_HI]!) << 32n) | BigInt(words[w + W.MISSING_LO]!),
    summary: new Uint8Array(
      words.buffer.slice(
        words.byteOffset + (w + W.SUMMARY) * 4,
        words.byteOffset + (w + W.SUMMARY) * 4 + 16,
      ) as ArrayBuffer,
    ),
    dataCrcs: unit < k ? [] : Array.from(words.subarray(w + W.CRC_LIST, w + W.CRC_LIST + k)),
  };
}

/** Writes a whole header, digests included. Cold paths and tests; the pipeline writes words. */
export function encodeHeader(header: UnitHeader, words: Uint32Array, w: number): number {
  const bytes = headerBytesOf(header.unit, header.k);
  words.fill(0, w, w + (bytes >> 2));
  words[w] = UNIT_MAGIC;
  words[w + W.SHAPE] = UNIT_FORMAT_VERSION | (header.codeId << 8) | (header.k << 16) | (header.m << 24);
  words[w + W.UNIT] =
    header.unit | (Math.log2(header.unitBytes) << 8) | (header.flags << 16) | (((bytes - 64) >> 2) << 24);
  words[w + W.CLUSTER] = header.clusterId;
  words[w + W.FILE_LO] = header.fileId % TWO_32;
  words[w + W.FILE_HI] = Math.floor(header.fileId / TWO_32);
  words[w + W.STRIPE_LO] = header.stripe % TWO_32;
  words[w + W.STRIPE_HI] = Math.floor(header.stripe / TWO_32);
  words[w + W.UNIT_LENGTH] = header.unitLength;
  words[w + W.STRIPE_LENGTH] = header.stripeLength;
  words[w + W.MAP_EPOCH] = header.mapEpoch;
  words[w + W.WRITER_EPOCH] = header.writerEpoch;
  words[w + W.COUNTER] = header.counter;
  words[w + W.COMMIT_MARK] = header.commitMark;
  words[w + W.PAYLOAD_CRC] = header.payloadCrc;
  words[w + W.SEAL] = header.seal;
  new Uint8Array(words.buffer, words.byteOffset + (w + W.SUMMARY) * 4, 16).set(header.summary);
  words[w + W.MISSING_LO] = Number(header.missing & 0xffffffffn);
  words[w + W.MISSING_HI] = Number(header.missing >> 32n);
  header.dataCrcs.forEach((crc, i) => {
    words[w + W.CRC_LIST + i] = crc;
  });
  return bytes;
}

/** Orders two versions: negative, zero or positive. */
export function compareVersions(epochA: number, counterA: number, epochB: number, counterB: number): number {
  return epochA - epochB || counterA - counterB;
}
