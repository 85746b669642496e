/**
 * Match fields by kind. A plain value is an exact match; the others are made by {@link lpm}, {@link ternary},
 * {@link range} and {@link optional}. What does not care is left out, and means the same when it is given.
 */
import { MatchField_MatchType as MatchType, type MatchField } from './generated/p4/config/v1/p4info.js';
import type { FieldMatch } from './generated/p4/v1/p4runtime.js';
import { fromByteString, fullMask, prefixMask, toByteString, toInteger, type Value } from './byte-string.js';
import { invalid } from './errors.js';

export type Match =
  | Value
  | { readonly kind: 'lpm'; readonly value: Value; readonly prefixLength: number }
  | { readonly kind: 'ternary'; readonly value: Value; readonly mask: Value }
  | { readonly kind: 'range'; readonly low: Value; readonly high: Value }
  | { readonly kind: 'optional'; readonly value: Value };

/** A match field as it is read: integers, or text where the field is a translated string. */
export type ReadMatch =
  | bigint
  | string
  | { readonly kind: 'lpm'; readonly value: bigint; readonly prefixLength: number }
  | { readonly kind: 'ternary'; readonly value: bigint; readonly mask: bigint }
  | { readonly kind: 'range'; readonly low: bigint; readonly high: bigint }
  | { readonly kind: 'optional'; readonly value: bigint | string };

export const lpm = (value: Value, prefixLength: number): Match => ({ kind: 'lpm', value, prefixLength });
export const ternary = (value: Value, mask: Value): Match => ({ kind: 'ternary', value, mask });
export const range = (low: Value, high: Value): Match => ({ kind: 'range', low, high });
export const optional = (value: Value): Match => ({ kind: 'optional', value });

const KINDS: Partial<Record<MatchType, string>> = {
  [MatchType.EXACT]: 'exact',
  [MatchType.LPM]: 'lpm',
  [MatchType.TERNARY]: 'ternary',
  [MatchType.RANGE]: 'range',
  [MatchType.OPTIONAL]: 'optional',
};

export function matchKind(field: MatchField): string {
  if (field.match?.$case !== 'matchType') return field.match?.value ?? 'unknown';
  return KINDS[field.match.value] ?? 'unknown';
}

/** Whether entries of a table with this field need a priority. */
export function needsPriority(field: MatchField): boolean {
  return ['ternary', 'range', 'optional'].includes(matchKind(field));
}

/**
 * @param what  names the field in errors, for example "table 'route', field 'ipv4.dst'"
 * @returns undefined when the match does not care
 * @throws {P4RuntimeError} ERR_P4_INVALID when kind, width or bits outside the mask do not fit
 */
export function toFieldMatch(field: MatchField, match: Match, what: string): FieldMatch | undefined {
  const kind = matchKind(field),
    given = typeof match === 'object' && !(match instanceof Uint8Array) ? match.kind : 'exact';
  // A value alone is also meant where the table asks for an optional one.
  if (given !== kind && !(given === 'exact' && kind === 'optional'))
    throw invalid(`${what}: ${given} given, ${kind} expected`);
  const fieldMatchType = matchType(match, field.bitwidth, what, kind);
  return fieldMatchType === undefined ? undefined : { fieldId: field.id, fieldMatchType };
}

function matchType(match: Match, bits: number, what: string, kind: string): FieldMatch['fieldMatchType'] {
  if (typeof match !== 'object' || match instanceof Uint8Array) {
    const value = toByteString(match, bits, what);
    return kind === 'optional' ? { $case: 'optional', value: { value } } : { $case: 'exact', value: { value } };
  }
  switch (match.kind) {
    case 'optional':
      return { $case: 'optional', value: { value: toByteString(match.value, bits, what) } };
    case 'lpm': {
      const { prefixLength } = match,
        value = toInteger(match.value, bits, what);
      if (!Number.isInteger(prefixLength) || prefixLength < 0 || prefixLength > bits)
        throw invalid(`${what}: prefix length ${prefixLength}, expected 0 to ${bits}`);
      requireMasked(value, prefixMask(bits, prefixLength), what);
      return prefixLength === 0
        ? undefined
        : { $case: 'lpm', value: { value: toByteString(value, bits, what), prefixLen: prefixLength } };
    }
    case 'ternary': {
      const value = toInteger(match.value, bits, what),
        mask = toInteger(match.mask, bits, `${what}, mask`);
      requireMasked(value, mask, what);
      return mask === 0n
        ? undefined
        : { $case: 'ternary', value: { value: toByteString(value, bits, what), mask: toByteString(mask, bits, what) } };
    }
    case 'range': {
      const low = toInteger(match.low, bits, what),
        high = toInteger(match.high, bits, what);
      if (low > high) throw invalid(`${what}: range from ${low} to ${high} is empty`);
      return low === 0n && high === fullMask(bits)
        ? undefined
        : { $case: 'range', value: { low: toByteString(low, bits, what), high: toByteString(high, bits, what) } };
    }
  }
}

/** A server refuses bits that the mask does not cover: they would not come back. */
function requireMasked(value: bigint, mask: bigint, what: string): void {
  if ((value & mask) !== value)
    throw invalid(`${what}: 0x${value.toString(16)} has bits outside its mask 0x${mask.toString(16)}`);
}

/** @returns undefined for a kind that this package does not know */
export function fromFieldMatch(field: MatchField, { fieldMatchType: type }: FieldMatch): ReadMatch | undefined {
  switch (type?.$case) {
    case 'exact':
      return readValue(type.value.value, field.bitwidth);
    case 'optional':
      return { kind: 'optional', value: readValue(type.value.value, field.bitwidth) };
    case 'lpm':
      return { kind: 'lpm', value: fromByteString(type.value.value), prefixLength: type.value.prefixLen };
    case 'ternary':
      return { kind: 'ternary', value: fromByteString(type.value.value), mask: fromByteString(type.value.mask) };
    case 'range':
      return { kind: 'range', low: fromByteString(type.value.low), high: fromByteString(type.value.high) };
    case 'other':
    case undefined:
      return undefined;
  }
}

/** Text where the type is translated to a string (bitwidth 0). */
export function readValue(bytes: Uint8Array, bitwidth: number): bigint | string {
  return bitwidth === 0 ? Buffer.from(bytes).toString('utf8') : fromByteString(bytes);
}
