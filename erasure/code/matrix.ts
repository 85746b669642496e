/**
 * Generator matrices: the m × k coefficients that turn k data units into m parity units.
 *
 * A code restores any m lost units exactly when every square submatrix of its matrix is invertible (it is then
 * called MDS). Vandermonde rows 2^(r·c) are not MDS everywhere, hence the bounds; Cauchy matrices always are.
 */
import { CodeError } from './errors.js';
import { inv, pow2 } from './gf256.js';

/** Bounds of every code. The native kernels take at most 32 inputs. */
export const MAX_DATA_UNITS = 32;
export const MAX_PARITY_UNITS = 4;

/** The largest k for which 2^(r·c) with m = 4 rows is MDS (test/erasure/code.test.ts finds 22 to fail). */
const MAX_DATA_UNITS_RS_4 = 21;

/**
 * Vandermonde rows: row r, column c is 2^(r·c). Row 0 is XOR, rows 0 and 1 are Linux md's P and Q.
 *
 * @returns m × k bytes, row-major, byte-identical to the parity rows of ISA-L's gf_gen_rs_matrix
 * @throws {CodeError} ERR_CODE_OUT_OF_BOUNDS unless 1 ≤ k ≤ 32, 1 ≤ m ≤ 4, and k ≤ 21 where m is 4
 */
export function rs(k: number, m: number): Uint8Array {
  const name = `rs(${k},${m})`;
  checkBounds(name, k, m);
  if (m === 4 && k > MAX_DATA_UNITS_RS_4) {
    throw new CodeError(
      'ERR_CODE_OUT_OF_BOUNDS',
      `Cannot use code ${name}: with 4 parity units it restores any 4 lost units only up to k ` +
        `= ${MAX_DATA_UNITS_RS_4}; use cauchy(${k},${m})`,
    );
  }
  return vandermonde(k, m);
}

/** `rs` without its bounds: what their proof by exhaustion runs on. */
export function vandermonde(k: number, m: number): Uint8Array {
  return fill(k, m, (r, c) => pow2(r * c));
}

/**
 * One row of ones: RAID 5.
 *
 * @throws {CodeError} ERR_CODE_OUT_OF_BOUNDS unless 1 ≤ k ≤ 32 and m = 1
 */
export function xor(k: number, m = 1): Uint8Array {
  const name = `xor(${k}+${m})`;
  if (m !== 1) {
    throw new CodeError(
      'ERR_CODE_OUT_OF_BOUNDS',
      `Cannot use code ${name}: XOR makes one parity unit, ${m} are asked for; use rs(${k},${m}) or cauchy(${k},${m})`,
    );
  }
  checkBounds(name, k, m);
  return fill(k, m, () => 1);
}

/**
 * m further copies of a single data unit.
 *
 * @throws {CodeError} ERR_CODE_OUT_OF_BOUNDS unless k = 1 and 1 ≤ m ≤ 4
 */
export function copies(k: number, m: number): Uint8Array {
  const name = `copies(${k},${m})`;
  if (k !== 1) {
    throw new CodeError(
      'ERR_CODE_OUT_OF_BOUNDS',
      `Cannot use code ${name}: copies are made of one data unit, k is ${k}; use copies(1,${m}) or cauchy(${k},${m})`,
    );
  }
  checkBounds(name, k, m);
  return fill(k, m, () => 1);
}

/**
 * Cauchy rows: row r, column c is the inverse of (k + r) XOR c. MDS for every k and m within the bounds.
 *
 * @returns m × k bytes, row-major, byte-identical to the parity rows of ISA-L's gf_gen_cauchy1_matrix
 * @throws {CodeError} ERR_CODE_OUT_OF_BOUNDS unless 1 ≤ k ≤ 32 and 1 ≤ m ≤ 4
 */
export function cauchy(k: number, m: number): Uint8Array {
  checkBounds(`cauchy(${k},${m})`, k, m);
  return fill(k, m, (r, c) => inv((k + r) ^ c));
}

function checkBounds(name: string, k: number, m: number): void {
  const inside =
    Number.isInteger(k) && Number.isInteger(m) && k >= 1 && k <= MAX_DATA_UNITS && m >= 1 && m <= MAX_PARITY_UNITS;
  if (inside) return;
  // Outside these bounds no code helps; name the one that reaches furthest.
  throw new CodeError(
    'ERR_CODE_OUT_OF_BOUNDS',
    `Cannot use code ${name}: k is ${k} and m is ${m}; the widest codes, cauchy(k,m), have 1 ≤ k ` +
      `≤ ${MAX_DATA_UNITS} and 1 ≤ m ≤ ${MAX_PARITY_UNITS}`,
  );
}

function fill(k: number, m: number, coefficient: (r: number, c: number) => number): Uint8Array {
  const matrix = new Uint8Array(m * k);
  for (let r = 0; r < m; r++) {
    for (let c = 0; c < k; c++) matrix[r * k + c] = coefficient(r, c);
  }
  return matrix;
}
