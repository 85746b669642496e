/**
 * Byte strings: unsigned big-endian integers in the fewest bytes that hold them, at least one. That form is canonical:
 * a server gives values back in it whatever it was sent.
 * Source: P4Runtime specification 1.4, section 8.4, "Bytestrings"
 */
import { invalid } from './errors.js';

/** A number, or its bytes (any length, big-endian), or text for a translated type that is a string. */
export type Value = number | bigint | Uint8Array | string;

/**
 * @param bitwidth  the value must fit; 0 for a translated type that is a string, which is passed as it is
 * @param what      names the value in the error's message
 * @throws {P4RuntimeError} ERR_P4_INVALID when the value is negative, no integer, or too wide
 */
export function toByteString(value: Value, bitwidth: number, what: string): Buffer {
  if (bitwidth === 0) return textOf(value, what);
  const number = toInteger(value, bitwidth, what);
  const hex = number.toString(16);
  return Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, 'hex');
}

/** The value as an integer that fits. Throws as {@link toByteString} does. */
export function toInteger(value: Value, bitwidth: number, what: string): bigint {
  if (typeof value === 'string')
    throw invalid(`${what}: text '${value}' where an unsigned integer of ${bitwidth} bits is expected`);
  if (typeof value === 'number' && !Number.isSafeInteger(value))
    throw invalid(`${what}: ${value} is no safe integer; use a bigint`);
  const number = value instanceof Uint8Array ? fromByteString(value) : BigInt(value);
  if (number < 0n) throw invalid(`${what}: ${number} is negative, expected an unsigned integer of ${bitwidth} bits`);
  if (number >> BigInt(bitwidth) !== 0n) throw invalid(`${what}: ${number} does not fit in ${bitwidth} bits`);
  return number;
}

/** Reads a byte string, canonical or not. No bytes are 0. */
export function fromByteString(bytes: Uint8Array): bigint {
  return bytes.length === 0
    ? 0n
    : BigInt(`0x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')}`);
}

/** Whether a byte string is in the form that the specification requires of servers. */
export function isCanonical(bytes: Uint8Array): boolean {
  return bytes.length === 1 || (bytes.length > 1 && bytes[0] !== 0);
}

/** All ones. */
export function fullMask(bitwidth: number): bigint {
  return (1n << BigInt(bitwidth)) - 1n;
}

/** The mask of an LPM prefix. */
export function prefixMask(bitwidth: number, prefixLength: number): bigint {
  return fullMask(bitwidth) ^ fullMask(bitwidth - prefixLength);
}

function textOf(value: Value, what: string): Buffer {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (value instanceof Uint8Array) return Buffer.from(value);
  throw invalid(`${what}: ${value} where text is expected`);
}
