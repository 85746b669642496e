/**
 * How lost units are computed from surviving ones: which k units to read, and the matrix that maps them.
 *
 * Intuition: the k chosen survivors are k equations in the k data units. Their inverse gives the data units; a lost
 * parity unit is its generator row times that inverse. So any loss is again one multiplication by a small matrix,
 * which the same kernels compute.
 */
import type { Code } from './code.js';
import { TooManyErasuresError } from './errors.js';
import { invert, mul } from './gf256.js';

export interface DecodePlan {
  /** The k units to read, ascending. */
  readonly inputUnits: readonly number[];
  /** The units to compute, as they were asked for. */
  readonly outputUnits: readonly number[];
  /** outputUnits.length rows of k coefficients, row-major. Do not change it. */
  readonly matrix: Uint8Array;
}

/**
 * Plans the reconstruction of lost units. The choice is deterministic: data units first, then the lowest parity.
 *
 * @param present  units that can be read, any order, no duplicates
 * @param missing  units to compute, in the order wanted; none of them in `present`
 * @throws {TooManyErasuresError} when fewer than k units are present
 */
export function decodePlan(code: Code, present: readonly number[], missing: readonly number[]): DecodePlan {
  return planFor(code, chooseInputs(code, present, missing), missing);
}

function chooseInputs(code: Code, present: readonly number[], missing: readonly number[]): number[] {
  const units = [...new Set(present)].sort((a, b) => a - b);
  for (const unit of [...units, ...missing]) {
    if (!Number.isInteger(unit) || unit < 0 || unit >= code.k + code.m) {
      throw new RangeError(`Unit ${unit} is not of ${code.name}, whose units are 0 to ${code.k + code.m - 1}`);
    }
  }
  for (const unit of missing) {
    if (units.includes(unit)) throw new RangeError(`Unit ${unit} is both present and missing`);
  }
  if (units.length < code.k) {
    throw new TooManyErasuresError(
      `Cannot reconstruct units ${missing.join(', ')} of ${code.name}: ${units.length} units are ` +
        `present, ${code.k} are required`,
    );
  }
  return units.slice(0, code.k);
}

function planFor(code: Code, inputUnits: readonly number[], missing: readonly number[]): DecodePlan {
  const { k } = code;
  const equations = new Uint8Array(k * k);
  inputUnits.forEach((unit, i) => equations.set(generatorRow(code, unit), i * k));
  const inverse = invert(equations, k);
  // The codes' bounds admit only MDS matrices: every choice of k units is invertible.
  if (!inverse) throw new Error(`Broken invariant: ${code.name} cannot be solved from units ${inputUnits.join()}`);

  const matrix = new Uint8Array(missing.length * k);
  missing.forEach((unit, r) => {
    const row = generatorRow(code, unit);
    for (let c = 0; c < k; c++) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum ^= mul(row[i]!, inverse[i * k + c]!);
      matrix[r * k + c] = sum;
    }
  });
  return { inputUnits, outputUnits: [...missing], matrix };
}

/** The k coefficients that make `unit` of the data units: a row of the identity for a data unit. */
function generatorRow(code: Code, unit: number): Uint8Array {
  const { k } = code;
  if (unit >= k) return code.matrix.subarray((unit - k) * k, (unit - k + 1) * k);
  const row = new Uint8Array(k);
  row[unit] = 1;
  return row;
}
