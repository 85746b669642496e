/**
 * Writes test/golden/vectors.json: small inputs and what they encode to, by the reference coder; and packets.json: what
 * a switch makes of stripe packets.
 * `npx tsx test/golden/generate.ts` is the command. The files change only together with docs/wire-format.md.
 */
import { writeFileSync } from 'node:fs';
import { crc32c, encode, parseCode, summary } from '../../erasure/code/index.js';
import { unitLength } from '../../erasure/layout/index.js';
import { goldenPackets } from './packets.js';
import { raid6Syndrome, toHex } from './vectors.js';
import type { CodeVector, GoldenVectors, Raid6Vector } from './vectors.js';

/** Bytes that look random and can be made anywhere: x ← 1664525·x + 1013904223 modulo 2^32, its top byte each time. */
function noise(length: number, seed: number): Uint8Array {
  let x = seed;
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x >>> 24;
  });
}

function codeVector(name: string, unitBytes: number, dataLength: number): CodeVector {
  const code = parseCode(name);
  const bytes = noise(dataLength, code.k * 1000 + code.m * 100 + dataLength);
  const data = Array.from({ length: code.k }, (_, unit) => {
    const start = unit * unitBytes;
    return bytes.subarray(Math.min(start, dataLength), start + unitLength(dataLength, unitBytes, unit, code.k));
  });
  const parity = encode(code, data);
  const units = [...data, ...parity];
  return {
    code: code.name,
    wireId: code.id,
    unitBytes,
    dataLength,
    matrix: Array.from({ length: code.m }, (_, r) => toHex(code.matrix.subarray(r * code.k, (r + 1) * code.k))),
    data: data.map(toHex),
    parity: parity.map(toHex),
    crc32c: units.map((unit) => crc32c(unit).toString(16).padStart(8, '0')),
    summary: units.map((unit) => toHex(summary(unit))),
  };
}

function raid6Vector(disks: number, bytes: number): Raid6Vector {
  const data = Array.from({ length: disks }, (_, disk) => noise(bytes, 7 + disk));
  const { p, q } = raid6Syndrome(data);
  return {
    method:
      "Horner's rule from the last disk to the first, doubling byte by byte, as the kernel's raid6 " +
      'documentation gives it; no table or matrix of the reference coder. ' +
      "Checked against ISA-L 2.30's pq_gen by test/rdma/kernels.test.ts; not against a running md array.",
    data: data.map(toHex),
    p: toHex(p),
    q: toHex(q),
  };
}

// Names, unit and data lengths: full stripes, odd lengths, a stripe that ends within a unit, and one with empty units.
const cases: [string, number, number][] = [
  ['xor(2+1)', 32, 64],
  ['xor(2+1)', 32, 45],
  ['xor(4+1)', 16, 33],
  ['xor(1+1)', 8, 5],
  ['rs(2,2)', 32, 64],
  ['rs(4,2)', 32, 128],
  ['rs(4,2)', 32, 77],
  ['rs(4,2)', 32, 1],
  ['rs(3,1)', 24, 61],
  ['rs(8,3)', 16, 128],
  ['rs(8,3)', 16, 99],
  ['rs(8,4)', 16, 128],
  ['rs(21,4)', 8, 161],
  ['rs(32,3)', 4, 127],
  ['copies(1,2)', 32, 32],
  ['copies(1,2)', 32, 17],
  ['cauchy(4,2)', 16, 64],
  ['cauchy(24,4)', 8, 190],
  ['cauchy(32,4)', 4, 128],
];

const vectors: GoldenVectors = {
  field:
    'GF(2^8), polynomial 0x11d; parity row r = sum over data units c of matrix[r][c] * data[c]; short units ' +
    'count as padded with zeros',
  digests:
    'crc32c: Castagnoli, reflected, initial value and final XOR ffffffff; summary: XOR of 16-byte lanes; units ' +
    'in order, data first',
  codes: cases.map(([name, unitBytes, dataLength]) => codeVector(name, unitBytes, dataLength)),
  raid6: raid6Vector(4, 64),
};

writeFileSync(new URL('vectors.json', import.meta.url), `${JSON.stringify(vectors, undefined, 2)}\n`);
writeFileSync(new URL('packets.json', import.meta.url), `${JSON.stringify(goldenPackets(), undefined, 2)}\n`);
