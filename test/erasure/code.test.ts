import t from 'tap';
import fc from 'fast-check';
import { randomInt } from 'node:crypto';
import {
  CodeError,
  TooManyErasuresError,
  codeFromWire,
  crc32c,
  decodePlan,
  encode,
  multiply,
  parseCode,
  reconstruct,
  summary,
  type Code,
} from '../../erasure/code/index.js';
import { inv, invert, mul, pow2 } from '../../erasure/code/gf256.js';
import { cauchy, rs, vandermonde } from '../../erasure/code/matrix.js';
import { fromHex, raid6Syndrome, readVectors, toHex } from '../golden/vectors.js';

const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);

/** All ascending choices of `count` of the numbers below `bound`. */
function* choices(bound: number, count: number, from = 0): Generator<number[]> {
  if (count === 0) yield [];
  else
    for (let first = from; first <= bound - count; first++)
      for (const rest of choices(bound, count - 1, first + 1)) yield [first, ...rest];
}

/** Whether a square matrix has an inverse, by a way shorter than `invert` for the many that are asked. */
function isInvertible(rows: number[][]): boolean {
  const size = rows.length;
  for (let c = 0; c < size; c++) {
    const pivot = rows.findIndex((row, r) => r >= c && row[c] !== 0);
    if (pivot < 0) return false;
    [rows[c], rows[pivot]] = [rows[pivot]!, rows[c]!];
    const scale = inv(rows[c]![c]!);
    for (let r = c + 1; r < size; r++) {
      const factor = mul(rows[r]![c]!, scale);
      if (factor !== 0) for (let i = c; i < size; i++) rows[r]![i]! ^= mul(factor, rows[c]![i]!);
    }
  }
  return true;
}

/** Every square submatrix is invertible. */
function isMds(matrix: Uint8Array, k: number, m: number): boolean {
  for (let size = 1; size <= Math.min(k, m); size++) {
    for (const rows of choices(m, size)) {
      for (const columns of choices(k, size)) {
        if (!isInvertible(rows.map((r) => columns.map((c) => matrix[r * k + c]!)))) return false;
      }
    }
  }
  return true;
}

function unitsOf(code: Code, lengths: readonly number[], salt: number): Uint8Array[] {
  const data = lengths.map((length, unit) =>
    Uint8Array.from({ length }, (_, i) => (Math.imul(i + 1, 2654435761) ^ Math.imul(unit + salt, 40503)) >>> 13),
  );
  return [...data, ...encode(code, data)];
}

/** Loses some units and compares what comes back. */
function survives(code: Code, units: readonly Uint8Array[], lost: readonly number[]): boolean {
  const left = units.map((unit, index) => (lost.includes(index) ? undefined : unit));
  const restored = reconstruct(code, left, lost);
  return lost.every((index, i) => {
    const wanted = units[index]!;
    const found = restored[i]!;
    return (
      Buffer.compare(found.subarray(0, wanted.length), wanted) === 0 &&
      found.subarray(wanted.length).every((byte) => byte === 0)
    );
  });
}

t.test('products and inverses in GF(2^8) agree with multiplication bit by bit', async (t) => {
  let wrong = 0;
  for (let a = 0; a < 256; a++) {
    for (let b = 0; b < 256; b++) {
      let product = 0;
      for (let bit = 7; bit >= 0; bit--) {
        product = (product << 1) ^ (product & 0x80 ? 0x11d : 0);
        if ((b >> bit) & 1) product ^= a;
      }
      if (mul(a, b) !== product) wrong++;
    }
    if (a > 0 && mul(a, inv(a)) !== 1) wrong++;
  }
  t.equal(wrong, 0);
  t.equal(pow2(8), 0x1d);
  t.throws(() => inv(0), RangeError);
});

t.test('invert() gives the inverse, or undefined for a singular matrix', async (t) => {
  const matrix = cauchy(4, 4);
  const inverse = invert(matrix, 4)!;
  const columns = Array.from({ length: 4 }, (_, c) => inverse.filter((_, i) => i % 4 === c));
  const product = columns.map((column) =>
    multiply(
      matrix,
      [...column].map((byte) => Uint8Array.of(byte)),
    ).map((unit) => unit[0]),
  );
  t.same(product, [
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 0, 1],
  ]);
  t.equal(invert(Uint8Array.of(1, 2, 2, 4), 2), undefined);
  t.same([...invert(Uint8Array.of(0, 1, 1, 0), 2)!], [0, 1, 1, 0], 'a zero pivot is swapped away');
});

t.test('names are read with any spacing and case, and come back canonical', async (t) => {
  for (const [text, name, id, k, m] of [
    ['xor(2+1)', 'xor(2+1)', 1, 2, 1],
    [' RS( 4 , 2 ) ', 'rs(4,2)', 2, 4, 2],
    ['copies(1,2)', 'copies(1,2)', 3, 1, 2],
    ['cauchy(24,4)', 'cauchy(24,4)', 4, 24, 4],
  ] as const) {
    const code = parseCode(text);
    t.match(code, { name, id, k, m }, text);
    t.same(codeFromWire(id, k, m), code, `${name} from its number`);
  }
});

t.test('what is no code, or is out of bounds, is refused in one line that says what to use', async (t) => {
  for (const text of [
    '',
    'rs',
    'rs(4)',
    'rs(4+2)',
    'xor(2,1)',
    'evenodd(4,2)',
    'rs(4,2)x',
    'rs(-4,2)',
    'constructor(1,1)',
  ]) {
    t.throws(
      () => parseCode(text),
      { code: 'ERR_UNKNOWN_CODE', message: /^Cannot .*expected .*cauchy\(k,m\)$/ },
      `'${text}'`,
    );
  }
  for (const text of [
    'rs(22,4)',
    'rs(33,2)',
    'rs(0,1)',
    'rs(4,0)',
    'rs(4,5)',
    'xor(4+2)',
    'xor(33+1)',
    'copies(2,1)',
    'copies(1,5)',
    'cauchy(33,4)',
    'cauchy(4,5)',
  ]) {
    t.throws(() => parseCode(text), { code: 'ERR_CODE_OUT_OF_BOUNDS', message: /^Cannot use code .*cauchy\(/ }, text);
  }
  t.throws(() => parseCode('rs(22,4)'), { message: /use cauchy\(22,4\)/ });
  t.throws(() => codeFromWire(5, 4, 2), { code: 'ERR_UNKNOWN_CODE' });
  t.throws(() => codeFromWire(0, 4, 2), { code: 'ERR_UNKNOWN_CODE' });
  t.throws(() => codeFromWire(2, 22, 4), CodeError);
});

t.test('rs(k,m) is MDS within its bounds, and rs(22,4) would not be', async (t) => {
  // A submatrix of fewer columns is one of the widest code, so the widest proves the rest.
  t.ok(isMds(rs(32, 3), 32, 3), 'm = 3 up to k = 32');
  t.ok(isMds(rs(21, 4), 21, 4), 'm = 4 up to k = 21');
  t.notOk(isMds(vandermonde(22, 4), 22, 4), 'm = 4 fails at k = 22');
});

t.test('cauchy(k,4) is MDS at sampled widths and at the widest', async (t) => {
  for (const k of [1, 2, 7, 20, 32]) t.ok(isMds(cauchy(k, 4), k, 4), `k = ${k}`);
});

const small: Code[] = [];
for (let k = 1; k <= 7; k++) {
  small.push(parseCode(`xor(${k}+1)`));
  for (let m = 1; m <= 4 && k + m <= 8; m++) {
    small.push(parseCode(`rs(${k},${m})`), parseCode(`cauchy(${k},${m})`));
    if (k === 1) small.push(parseCode(`copies(1,${m})`));
  }
}

t.test('reconstruct() restores any m lost units of every code up to 8 wide, full and short stripes', async (t) => {
  for (const code of small) {
    const full = unitsOf(
      code,
      Array.from({ length: code.k }, () => 19),
      1,
    );
    // The second data unit ends early, the rest are empty.
    const short = unitsOf(
      code,
      Array.from({ length: code.k }, (_, unit) => [19, 5][unit] ?? 0),
      2,
    );
    let patterns = 0;
    const failed: string[] = [];
    for (let count = 0; count <= code.m; count++) {
      for (const lost of choices(code.k + code.m, count)) {
        patterns++;
        if (!survives(code, full, lost) || !survives(code, short, lost)) failed.push(lost.join());
      }
    }
    t.same(failed, [], `${code.name}, ${patterns} patterns`);
  }
});

t.test('reconstruct() restores sampled losses of wide codes', async (t) => {
  t.doesNotThrow(() => {
    fc.assert(
      fc.property(
        fc
          .constantFrom('rs(21,4)', 'rs(32,3)', 'rs(16,2)', 'cauchy(32,4)', 'cauchy(24,4)', 'xor(32+1)')
          .map(parseCode)
          .chain((code) =>
            fc.tuple(fc.constant(code), fc.uniqueArray(fc.nat(code.k + code.m - 1), { maxLength: code.m }), fc.nat(40)),
          ),
        ([code, lost, length]) =>
          survives(
            code,
            unitsOf(
              code,
              Array.from({ length: code.k }, () => length),
              length,
            ),
            [...lost].sort((a, b) => a - b),
          ),
      ),
      { seed, numRuns: 300 },
    );
  });
});

t.test('reconstruct() of more than m lost units throws TooManyErasuresError', async (t) => {
  for (const code of small) {
    const units = unitsOf(
      code,
      Array.from({ length: code.k }, () => 4),
      3,
    );
    const lost = Array.from({ length: code.m + 1 }, (_, unit) => unit);
    t.throws(
      () => survives(code, units, lost),
      {
        name: 'TooManyErasuresError',
        code: 'ERR_TOO_MANY_ERASURES',
        message: new RegExp(`at most ${code.m} can be restored`),
      },
      code.name,
    );
  }
});

t.test('a decode plan takes data units first, then the lowest parity', async (t) => {
  const code = parseCode('rs(4,3)');
  t.same(decodePlan(code, [6, 5, 4, 3, 2, 0], [1]).inputUnits, [0, 2, 3, 4]);
  t.same(decodePlan(code, [0, 1, 2, 3, 6], [4, 5]).inputUnits, [0, 1, 2, 3]);
  t.same(
    [...decodePlan(code, [0, 1, 2, 3], [5]).matrix],
    [...code.matrix.subarray(4, 8)],
    'lost parity is encoded anew',
  );
  t.same([...decodePlan(code, [0, 1, 3, 4], [2]).matrix], [1, 1, 1, 1], 'one lost data unit is an XOR');
  t.same(decodePlan(code, [0, 1, 2, 3], []).outputUnits, []);
  t.throws(() => decodePlan(code, [0, 1, 4], [2]), TooManyErasuresError);
  t.throws(() => decodePlan(code, [0, 1, 1, 4], [2]), TooManyErasuresError, 'a unit counts once');
  t.throws(() => decodePlan(code, [0, 1, 2, 3], [3]), RangeError);
  t.throws(() => decodePlan(code, [0, 1, 2, 7], [3]), RangeError);
});

t.test('digests have their known values', async (t) => {
  t.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
  t.equal(crc32c(new Uint8Array(32)), 0x8a9136aa, 'RFC 3720, B.4: 32 bytes of zeros');
  t.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43, 'RFC 3720, B.4: 32 bytes of ones');
  t.equal(crc32c(Buffer.from('56789'), crc32c(Buffer.from('1234'))), 0xe3069283, 'in two parts');
  t.equal(crc32c(new Uint8Array(0)), 0);
  t.equal(toHex(summary(Uint8Array.from({ length: 18 }, (_, i) => i + 1))), '10100' + '30405060708090a0b0c0d0e0f10');
});

t.test("encoding data units' summaries gives the parity units' summaries", async (t) => {
  t.doesNotThrow(() => {
    fc.assert(
      fc.property(fc.constantFrom(...small), fc.array(fc.nat(50), { minLength: 7, maxLength: 7 }), (code, lengths) => {
        const units = unitsOf(code, lengths.slice(0, code.k), 5);
        const summaries = encode(code, units.slice(0, code.k).map(summary));
        return summaries.every((one, r) => toHex(one) === toHex(summary(units[code.k + r]!)));
      }),
      { seed },
    );
  });
});

t.test('the reference coder reproduces the golden vectors', async (t) => {
  const { codes, raid6 } = readVectors();
  for (const vector of codes) {
    const code = parseCode(vector.code);
    const data = vector.data.map(fromHex);
    const units = [...data, ...encode(code, data)];
    t.same(
      {
        wireId: code.id,
        matrix: toHex(code.matrix),
        parity: units.slice(code.k).map(toHex),
        crc32c: units.map((unit) => crc32c(unit).toString(16).padStart(8, '0')),
        summary: units.map((unit) => toHex(summary(unit))),
      },
      {
        wireId: vector.wireId,
        matrix: vector.matrix.join(''),
        parity: vector.parity,
        crc32c: vector.crc32c,
        summary: vector.summary,
      },
      `${vector.code}, ${vector.dataLength} bytes`,
    );
  }
  const data = raid6.data.map(fromHex);
  t.same(encode(parseCode('rs(4,2)'), data).map(toHex), [raid6.p, raid6.q], "rs(4,2) is Linux md's P and Q");
  const { p, q } = raid6Syndrome(data);
  t.same([toHex(p), toHex(q)], [raid6.p, raid6.q], 'which Horner by doubling gives');
});
