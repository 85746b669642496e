/**
 * Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d).
 *
 * Intuition: 2 generates the field, so every element but 0 is a power of 2, and a product is an addition of
 * exponents. Addition is XOR. This is the field of Linux md's RAID 6 and of ISA-L.
 */

/** The field's polynomial, with its x^8 term. */
const POLYNOMIAL = 0x11d;

// Twice as long as the group (255), so that a sum of two logarithms needs no reduction.
const exp = new Uint8Array(510);
const log = new Uint8Array(256);
for (let i = 0, x = 1; i < 255; i++) {
  exp[i] = exp[i + 255] = x;
  log[x] = i;
  x <<= 1;
  if (x & 0x100) x ^= POLYNOMIAL;
}

/** The product of two bytes. */
export function mul(a: number, b: number): number {
  return a === 0 || b === 0 ? 0 : exp[log[a]! + log[b]!]!;
}

/** The byte whose product with `a` is 1. `a` must not be 0. */
export function inv(a: number): number {
  if (a === 0) throw new RangeError('0 has no inverse in GF(2^8)');
  return exp[255 - log[a]!]!;
}

/** 2 to the power of `n` ≥ 0. */
export function pow2(n: number): number {
  return exp[n % 255]!;
}

/**
 * Inverts a square matrix by Gauss-Jordan elimination.
 *
 * @param matrix  size × size bytes, row-major; left as it is
 * @returns its inverse of the same shape, or undefined when it is singular
 */
export function invert(matrix: Uint8Array, size: number): Uint8Array | undefined {
  const left = matrix.slice(0, size * size);
  const right = new Uint8Array(size * size);
  for (let i = 0; i < size; i++) right[i * size + i] = 1;

  for (let column = 0; column < size; column++) {
    let pivot = column;
    while (pivot < size && left[pivot * size + column] === 0) pivot++;
    if (pivot === size) return undefined;
    for (const side of [left, right]) {
      swapRows(side, size, pivot, column);
    }
    const scale = inv(left[column * size + column]!);
    for (const side of [left, right]) {
      for (let i = 0; i < size; i++) side[column * size + i] = mul(scale, side[column * size + i]!);
    }
    for (let row = 0; row < size; row++) {
      const factor = left[row * size + column]!;
      if (row === column || factor === 0) continue;
      for (const side of [left, right]) {
        for (let i = 0; i < size; i++) side[row * size + i]! ^= mul(factor, side[column * size + i]!);
      }
    }
  }
  return right;
}

function swapRows(matrix: Uint8Array, size: number, a: number, b: number): void {
  if (a === b) return;
  const kept = matrix.slice(a * size, (a + 1) * size);
  matrix.copyWithin(a * size, b * size, (b + 1) * size);
  matrix.set(kept, b * size);
}
