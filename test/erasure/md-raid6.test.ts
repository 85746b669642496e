/**
 * rs(k,2) against the members of RAID-6 arrays that a running Linux kernel wrote (test/golden/md-raid6.json says how).
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import t from 'tap';
import { encode, parseCode, reconstruct } from '../../erasure/code/index.js';

interface MdArray {
  dataDisks: number;
  seed: number;
  members: string[][];
  firstP: string;
  firstQ: string;
}
interface MdVectors {
  kernel: string;
  chunkBytes: number;
  arrays: MdArray[];
}

const vectors = JSON.parse(readFileSync(new URL('../golden/md-raid6.json', import.meta.url), 'utf8')) as MdVectors;
const { chunkBytes } = vectors;

function noise(length: number, seed: number): Uint8Array {
  let x = seed;
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x >>> 24;
  });
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/**
 * md's left-symmetric rotation: P moves one disk to the left with every stripe, Q follows P, and the data disks follow
 * Q in order, round the end. Q's coefficients count in that order too.
 */
function disksOf(stripe: number, k: number): { p: number; q: number; data: number[] } {
  const disks = k + 2;
  const p = disks - 1 - (stripe % disks);
  return { p, q: (p + 1) % disks, data: Array.from({ length: k }, (_, c) => (p + 2 + c) % disks) };
}

t.equal(vectors.arrays.length, 3, 'arrays of 4, 5 and 6 disks');

for (const { dataDisks: k, seed, members, firstP, firstQ } of vectors.arrays) {
  const code = parseCode(`rs(${k},2)`);
  const bytes = noise(members.length * k * chunkBytes, seed);
  const stripe = (index: number): Uint8Array[] =>
    Array.from({ length: k }, (_, c) => bytes.subarray((index * k + c) * chunkBytes, (index * k + c + 1) * chunkBytes));

  t.test(`rs(${k},2) is, byte for byte, what md wrote on ${k + 2} disks (${vectors.kernel})`, async (t) => {
    t.equal(members.length, k + 2, 'the rotation comes round once');
    const [p, q] = encode(code, stripe(0));
    t.ok(Buffer.from(firstP, 'base64').equals(p!), 'P of the first stripe');
    t.ok(Buffer.from(firstQ, 'base64').equals(q!), 'Q of the first stripe');
    members.forEach((hashes, index) => {
      const at = disksOf(index, k);
      const data = stripe(index);
      const [p, q] = encode(code, data);
      const expected: string[] = [];
      at.data.forEach((disk, c) => {
        expected[disk] = sha256(data[c]!);
      });
      expected[at.p] = sha256(p!);
      expected[at.q] = sha256(q!);
      t.same(hashes, expected, `stripe ${index}: P on disk ${at.p}, Q on disk ${at.q}`);
    });
  });

  t.test(`reconstruct() of rs(${k},2) restores any two lost disks of md's first stripe`, async (t) => {
    const data = stripe(0);
    const units = [...data, Buffer.from(firstP, 'base64'), Buffer.from(firstQ, 'base64')];
    for (let a = 0; a < k + 2; a++) {
      for (let b = a + 1; b < k + 2; b++) {
        const restored = reconstruct(
          code,
          units.map((unit, i) => (i === a || i === b ? undefined : unit)),
          [a, b],
        );
        t.ok(
          Buffer.from(restored[0]!).equals(units[a]!) && Buffer.from(restored[1]!).equals(units[b]!),
          `units ${a} and ${b}`,
        );
      }
    }
  });
}
