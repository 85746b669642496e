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
  if (coefficient === 1) {
    let at = 0;
    if (((input.byteOffset | output.byteOffset) & 3) === 0) {
      const count = input.length >> 2;
      const from = new Int32Array(input.buffer, input.byteOffset, count),
        to = new Int32Array(output.buffer, output.byteOffset, count);
      for (let i = 0; i < count; i++) to[i]! ^= from[i]!;
      at = count * 4;
    }
    for (; at < input.length; at++) output[at]! ^= input[at]!;
    return;
  }
  const row = coefficient * 256;
  for (let i = 0; i < input.length; i++) output[i]! ^= PRODUCT[row + input[i]!]!;
}

/**
 * Eight tables of 256 signed words, for eight bytes at a time (Kounavis and Berry's slicing): entry t·256 + b is the
 * CRC of byte b followed by t zero bytes. Signed, because a word above 2^31 would be kept as a float.
 */
const CRC_TABLE = buildCrcTable();

function buildCrcTable(): Int32Array {
  const table = new Int32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    table[byte] = crc;
  }
  for (let at = 256; at < table.length; at++) table[at] = (table[at - 256]! >>> 8) ^ table[table[at - 256]! & 0xff]!;
  return table;
}

/** CRC32C (Castagnoli). @param crc 0 to begin, or the result so far @returns uint32 */
function crc32c(crc: number, bytes: Uint8Array): number {
  const t = CRC_TABLE,
    whole = bytes.length & ~7;
  let state = ~crc,
    i = 0;
  for (; i < whole; i += 8) {
    const word = state ^ (bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24));
    state =
      t[1792 + (word & 0xff)]! ^
      t[1536 + ((word >>> 8) & 0xff)]! ^
      t[1280 + ((word >>> 16) & 0xff)]! ^
      t[1024 + (word >>> 24)]! ^
      t[768 + bytes[i + 4]!]! ^
      t[512 + bytes[i + 5]!]! ^
      t[256 + bytes[i + 6]!]! ^
      t[bytes[i + 7]!]!;
  }
  for (; i < bytes.length; i++) state = (state >>> 8) ^ t[(state ^ bytes[i]!) & 0xff]!;
  return ~state >>> 0;
}

/** CRC32C and lengthwise XOR of a payload that arrives in pieces, in order. */
export class Digest {
  crc = 0;
  #length = 0;
  /** The sums of words 0, 4, 8, …, of words 1, 5, 9, …, and so on, little endian. */
  #a = 0;
  #b = 0;
  #c = 0;
  #d = 0;

  add(bytes: Uint8Array): void {
    this.crc = crc32c(this.crc, bytes);
    let at = 0;
    if (((this.#length & 15) | (bytes.byteOffset & 3)) === 0) {
      const count = (bytes.length >> 4) * 4;
      const words = new Int32Array(bytes.buffer, bytes.byteOffset, count);
      let a = 0,
        b = 0,
        c = 0,
        d = 0;
      for (let i = 0; i < count; i += 4) {
        a ^= words[i]!;
        b ^= words[i + 1]!;
        c ^= words[i + 2]!;
        d ^= words[i + 3]!;
      }
      this.#a ^= a;
      this.#b ^= b;
      this.#c ^= c;
      this.#d ^= d;
      at = count * 4;
    }
    for (; at < bytes.length; at++) {
      const place = (this.#length + at) & 15,
        bits = bytes[at]! << ((place & 3) * 8);
      if (place < 4) this.#a ^= bits;
      else if (place < 8) this.#b ^= bits;
      else if (place < 12) this.#c ^= bits;
      else this.#d ^= bits;
    }
    this.#length += bytes.length;
  }

  /** Stores 16 bytes: byte i is the XOR of payload bytes i, i + 16, i + 32, … */
  storeSummary(into: Uint8Array, offset: number): void {
    writeUint32(into, offset, this.#a);
    writeUint32(into, offset + 4, this.#b);
    writeUint32(into, offset + 8, this.#c);
    writeUint32(into, offset + 12, this.#d);
  }

  hasSummary(from: Uint8Array, offset: number): boolean {
    return (
      readUint32(from, offset) === this.#a >>> 0 &&
      readUint32(from, offset + 4) === this.#b >>> 0 &&
      readUint32(from, offset + 8) === this.#c >>> 0 &&
      readUint32(from, offset + 12) === this.#d >>> 0
    );
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
