/**
 * The reference coder: byte by byte, written to be read. Every kernel and the P4 program must agree with it.
 *
 * A unit shorter than the longest counts as padded with zeros; so do the units of a short last stripe.
 */
import type { Code } from './code.js';
import { decodePlan } from './decode-plan.js';
import { TooManyErasuresError } from './errors.js';
import { mul } from './gf256.js';

/**
 * Multiplies units by a matrix.
 *
 * @param matrix  rows of inputs.length coefficients, row-major
 * @param inputs  units of any lengths
 * @returns one unit per row, as long as the longest input
 */
export function multiply(matrix: Uint8Array, inputs: readonly Uint8Array[]): Uint8Array[] {
  const rows = inputs.length === 0 ? 0 : matrix.length / inputs.length;
  const length = Math.max(0, ...inputs.map((input) => input.length));
  return Array.from({ length: rows }, (_, r) => {
    const output = new Uint8Array(length);
    inputs.forEach((input, c) => {
      const coefficient = matrix[r * inputs.length + c]!;
      for (let i = 0; i < input.length; i++) output[i]! ^= mul(coefficient, input[i]!);
    });
    return output;
  });
}

/**
 * Computes the parity of one stripe.
 *
 * @param data  k data units; none longer than the first
 * @returns m parity units, each as long as the longest data unit
 */
export function encode(code: Code, data: readonly Uint8Array[]): Uint8Array[] {
  if (data.length !== code.k)
    throw new RangeError(`${code.name} encodes ${code.k} data units, ${data.length} were given`);
  return multiply(code.matrix, data);
}

/**
 * Reconstructs missing units of one stripe.
 *
 * @param units    k + m entries, undefined where missing; the rest as long as when they were encoded
 * @param missing  indexes to restore, ascending, at most m of them; units missing but not listed stay missing
 * @returns one Uint8Array per missing index, in the same order, as long as the longest unit given (a data unit
 *          that was shorter comes back padded with zeros)
 * @throws {TooManyErasuresError} when more than m units are missing
 * Source: Plank, "A Tutorial on Reed-Solomon Coding", with the 2003 correction
 */
export function reconstruct(
  code: Code,
  units: readonly (Uint8Array | undefined)[],
  missing: readonly number[],
): Uint8Array[] {
  const width = code.k + code.m;
  if (units.length !== width) throw new RangeError(`${code.name} has ${width} units, ${units.length} were given`);
  const present = units.flatMap((unit, index) => (unit === undefined ? [] : [index]));
  if (present.length < code.k) {
    throw new TooManyErasuresError(
      `Cannot reconstruct units ${missing.join(', ')} of ${code.name}: ${width - present.length} units are ` +
        `missing, at most ${code.m} can be restored`,
    );
  }
  const plan = decodePlan(code, present, missing);
  // A unit that is not read may still be the longest: lengths come from all that are there.
  const length = Math.max(0, ...present.map((index) => units[index]!.length));
  return multiply(
    plan.matrix,
    plan.inputUnits.map((index) => units[index]!),
  ).map((output) => pad(output, length));
}

function pad(unit: Uint8Array, length: number): Uint8Array {
  if (unit.length === length) return unit;
  const padded = new Uint8Array(length);
  padded.set(unit);
  return padded;
}
