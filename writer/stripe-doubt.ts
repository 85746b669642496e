/**
 * Which units of a stripe don't belong to the others although each one's own checksums hold: the checker twin of the
 * parity that switch and writer compute. Only what nodes tell of their units is looked at, no payload.
 *
 * Intuition: a parity header holds the CRC32C of every data unit that it was made from, and encoding the data units'
 * summaries gives the parity units' summaries. Where a parity unit fits in both, the data is right, and other parity
 * that doesn't fit is wrong. Where none fits, the data units that a parity unit calls others are suspects: if decoding
 * them from the rest gives what its header says (the reader checks that), it was they; if not, the parity was made
 * wrong.
 */
import type { Code } from '../erasure/code/index.js';
import { encode } from '../erasure/code/index.js';

/** What is known of one unit whose own checksums hold. */
export interface CheckedUnit {
  readonly unit: number;
  readonly payloadCrc: number;
  /** 16 bytes. */
  readonly summary: Uint8Array;
  /** Of parity: the CRC32C of each data unit, 4 bytes each, little-endian. */
  readonly dataCrcs: Uint8Array;
}

/** What may be wrong, in the order in which it is to be tried. */
export interface Doubt {
  /** Units to be written again; data units only if what is decoded fits the parity header that was read for it. */
  readonly wrong: readonly number[];
  /** Units that must not be read for it. */
  readonly avoid: readonly number[];
}

/**
 * @param units  those that were checked and hold, of one version
 * @returns nothing, when all that is there fits together, or when a data unit isn't there to compare with
 */
export function doubts(code: Code, units: readonly CheckedUnit[]): Doubt[] {
  const of = (unit: number): CheckedUnit | undefined => units.find((each) => each.unit === unit);
  const data = Array.from({ length: code.k }, (_, unit) => of(unit));
  const parity = units.filter(({ unit }) => unit >= code.k).sort((a, b) => a.unit - b.unit);
  if (data.includes(undefined)) return [];
  const known = data as CheckedUnit[];
  const expected = encode(
    code,
    known.map(({ summary }) => summary),
  );
  const others = new Map(
    parity.map((each) => [
      each.unit,
      known.filter(({ unit, payloadCrc }) => crcOf(each, unit) !== payloadCrc).map(({ unit }) => unit),
    ]),
  );
  const wrong = parity
    .filter(
      (each) => others.get(each.unit)!.length > 0 || Buffer.compare(each.summary, expected[each.unit - code.k]!) !== 0,
    )
    .map(({ unit }) => unit);
  if (wrong.length === 0) return [];
  const byData: Doubt = { wrong, avoid: Array.from({ length: code.m }, (_, i) => code.k + i) };
  if (wrong.length < parity.length) return [byData];
  // So many can be decoded as there are parity units of one opinion.
  const suspects = parity.flatMap((by): Doubt[] => {
    const named = others.get(by.unit)!,
      agreeing = parity.filter((each) => sameOpinion(each, by));
    // Alone it is asked alone: what agrees with its header need not agree in its payload.
    const heard = named.length === 1 ? [by] : agreeing;
    return named.length === 0 || named.length > heard.length
      ? []
      : [
          {
            wrong: named,
            avoid: [...named, ...byData.avoid.filter((unit) => !heard.some((each) => each.unit === unit))],
          },
        ];
  });
  return [...suspects, byData];
}

function crcOf({ dataCrcs }: CheckedUnit, unit: number): number | undefined {
  return dataCrcs.length < unit * 4 + 4
    ? undefined
    : new DataView(dataCrcs.buffer, dataCrcs.byteOffset).getUint32(unit * 4, true);
}

function sameOpinion(a: CheckedUnit, b: CheckedUnit): boolean {
  return Buffer.compare(a.dataCrcs, b.dataCrcs) === 0;
}
