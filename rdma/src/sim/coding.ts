/**
 * Linear coding over GF(2^8) and digests, in plain TypeScript, for the sim device. Scalar and table-driven: written to
 * be read. (rdma imports no other folder of the project, hence a coder of its own here.)
 */

/** Products over GF(2^8) with polynomial 0x11d: entry a·256 + b is a·b. */
const PRODUCT = buildProducts();

function buildProducts(): Uint8Array {
  const table = new Uint8Array(256 * 256);
  for (let a = 0; a < 256; a++) {
    let power = a; // a·x^bit
    for (let bit = 0; bit < 8; bit++) {
      for (let b = 1 << bit; b < 256; b++) {
        if (b & (1 << bit)) table[a * 256 + b]! ^= power;
      }
      power = power & 0x80 ? ((power << 1) ^ 0x11d) & 0xff : power << 1;
    }
  }
  return table;
}

/** output[i] ^= coefficient · input[i] for i < input.length (at most output.length). */
export function multiplyAdd(coefficient: number, input: Uint8Array, output: Uint8Array): void {
  if (coefficient === 0) return;
  const row = PRODUCT.subarray(coefficient * 256, coefficient * 256 + 256);
  for (let i = 0; i < input.length; i++) output[i]! ^= row[input[i]!]!;
}

const CRC_TABLE = buildCrcTable();

function buildCrcTable(): Uint32Array {
  const table = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    table[byte] = crc;
  }
  return table;
}

/** CRC32C (Castagnoli). @param crc 0 to begin, or the result so far @returns uint32 */
export function crc32c(crc: number, bytes: Uint8Array): number {
  let state = ~crc;
  for (let i = 0; i < bytes.length; i++) state = (state >>> 8) ^ CRC_TABLE[(state ^ bytes[i]!) & 0xff]!;
  return ~state >>> 0;
}

/** CRC32C and lengthwise XOR of a payload that arrives in pieces, in order. */
export class Digest {
  crc = 0;
  /** 16 bytes: byte i is the XOR of payload bytes i, i + 16, i + 32, … */
  readonly summary = new Uint8Array(16);
  #length = 0;

  add(bytes: Uint8Array): void {
    this.crc = crc32c(this.crc, bytes);
    for (let i = 0; i < bytes.length; i++) this.summary[(this.#length + i) & 15]! ^= bytes[i]!;
    this.#length += bytes.length;
  }
}

/** CRC32C over header bytes [0, sealOffset) and [sealOffset + 4, length): everything but the seal. */
export function sealOf(header: Uint8Array, sealOffset: number): number {
  return crc32c(crc32c(0, header.subarray(0, sealOffset)), header.subarray(sealOffset + 4));
}

export function readUint32(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0;
}

export function writeUint32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}
