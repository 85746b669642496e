/**
 * The native kernels against the reference coder, the golden vectors and ISA-L. They run in a program of their own
 * (rdma/native/bench/kernel_check.cc) that puts every buffer beside a page which must not be touched.
 */
import { spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import t from 'tap';
import { crc32c, decodePlan, multiply, parseCode, summary } from '../../erasure/code/index.js';
import { buildProgram } from '../../rdma/native/bench/build.mjs';
import { fromHex, readVectors, toHex } from '../golden/vectors.js';

const program = await buildProgram('kernel_check');

/** Sends lines to the program; one answer each. */
function ask(lines: readonly string[], env: Record<string, string> = {}): string[] {
  const { status, signal, stdout, stderr } = spawnSync(program, {
    input: lines.join('\n') + '\n',
    encoding: 'utf8',
    maxBuffer: 2 ** 30,
    env: { ...process.env, NODE_OPTIONS: '', ...env },
  });
  if (status !== 0) throw new Error(`kernel_check ended with ${signal ?? status}: ${stderr}`);
  // Only the last line's end goes: a plain case without outputs is answered by an empty line, which may be the last.
  const answers = stdout
    .replace(/\n$/, '')
    .split('\n')
    .map((line) => line.trimEnd());
  if (answers.length !== lines.length)
    throw new Error(`kernel_check gave ${answers.length} answers to ${lines.length} cases`);
  return answers;
}

const hex = (bytes: Uint8Array): string => (bytes.length === 0 ? '-' : toHex(bytes));
const digestOf = (bytes: Uint8Array): string =>
  `${crc32c(bytes).toString(16).padStart(8, '0')}:${toHex(summary(bytes))}`;

type Mode = 'plain' | 'digest' | 'stream';

interface Case {
  matrix: Uint8Array;
  inputs: Uint8Array[];
  outLength: number;
  /** Bytes after a page's beginning, or just before a forbidden page. */
  place: number | 'end';
}

function line(kernel: string, mode: Mode, { matrix, inputs, outLength, place }: Case): string {
  const outputs = matrix.length / inputs.length;
  return ['encode', kernel, mode, place, inputs.length, outputs, hex(matrix), outLength, ...inputs.map(hex)].join(' ');
}

/** What the reference coder says to a case. */
function expected(mode: Mode, { matrix, inputs, outLength }: Case): string {
  const outputs = multiply(matrix, inputs).map((output) => {
    const padded = new Uint8Array(outLength);
    padded.set(output);
    return padded;
  });
  return [...outputs.map(hex), ...(mode !== 'plain' ? [...inputs, ...outputs].map(digestOf) : [])].join(' ');
}

/** A short account of two long answers, instead of megabytes of hexadecimal. */
function difference(found: string, wanted: string): string {
  if (found === wanted) return 'equal';
  const a = found.split(' ');
  const b = wanted.split(' ');
  const word = b.findIndex((text, i) => text !== a[i]);
  const at = [...b[word]!].findIndex((digit, i) => digit !== a[word]?.[i]);
  return (
    `word ${word} differs at digit ${at}: found ${a[word]?.slice(at, at + 16)}, ` +
    `wanted ${b[word]!.slice(at, at + 16)}`
  );
}

const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);

/** mulberry32: uniform below `bound`. */
function generator(state: number): (bound: number) => number {
  return (bound) => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * bound);
  };
}

const LENGTHS = [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 16384, 65536];

function randomCases(count: number, below: (bound: number) => number): Case[] {
  return Array.from({ length: count }, (_, i) => {
    // Widths are small or the extreme, lengths at the kernels' steps or anything: both meet the other's all.
    const inputCount = below(8) === 0 ? 32 : 1 + below(10);
    const outputCount = inputCount === 32 ? 1 + below(4) : below(7);
    const outLength =
      i < LENGTHS.length ? LENGTHS[i]! : below(inputCount === 32 ? 9000 : below(4) === 0 ? 70001 : 9000);
    const matrix = Uint8Array.from({ length: inputCount * outputCount }, () =>
      below(4) === 0 ? below(3) : below(256),
    );
    // Some rows of ones, some of zeros: they take other paths.
    for (let r = 0; r < outputCount; r++) {
      const kind = below(5);
      if (kind < 2) matrix.fill(kind, r * inputCount, (r + 1) * inputCount);
    }
    const short = below(2) === 0;
    const inputs = Array.from({ length: inputCount }, () => {
      const length = short && below(2) === 0 ? below(outLength + 1) : outLength;
      return Uint8Array.from({ length }, () => below(256));
    });
    return { matrix, inputs, outLength, place: below(3) === 0 ? 'end' : below(2) * below(130) };
  });
}

const kernels = ask(['kernels'])[0]!.split(',');

t.test('the portable kernel is always there, and comes last', async (t) => {
  t.equal(kernels.at(-1), 'portable');
  for (const kernel of kernels) {
    t.match(ask(['encode ' + kernel + ' plain 0 1 1 01 1 2a'])[0], '2a', `${kernel} runs here`);
  }
});

t.test('TARTAN_KERNEL names the kernel, and an unknown name gives none', async (t) => {
  for (const kernel of kernels) t.equal(ask(['default'], { TARTAN_KERNEL: kernel })[0], kernel);
  t.equal(ask(['default'], { TARTAN_KERNEL: '' })[0], kernels[0], 'unset: the best');
  t.equal(ask(['default'], { TARTAN_KERNEL: 'avx3' })[0], 'unavailable');
  t.equal(ask(['encode avx3 plain 0 1 1 01 1 2a'])[0], 'unavailable');
});

for (const kernel of ['gfni', 'avx2', 'portable']) {
  const skip = kernels.includes(kernel) ? false : `this CPU does not run the ${kernel} kernel`;

  t.test(
    `the ${kernel} kernel equals the reference coder at any length, alignment and shortness of inputs`,
    { skip },
    async (t) => {
      const below = generator(seed);
      for (const mode of ['plain', 'digest', 'stream'] as const) {
        const cases = randomCases(60, below);
        const answers = ask(cases.map((one) => line(kernel, mode, one)));
        cases.forEach((one, i) => {
          const about = `${mode}, ${one.inputs.length} inputs, ${one.outLength} bytes, place ${one.place}`;
          t.equal(difference(answers[i]!, expected(mode, one)), 'equal', about);
        });
      }
    },
  );

  t.test(`the ${kernel} kernel reproduces the golden vectors`, { skip }, async (t) => {
    const vectors = readVectors();
    for (const vector of vectors.codes) {
      const one: Case = {
        matrix: fromHex(vector.matrix.join('')),
        inputs: vector.data.map(fromHex),
        outLength: vector.parity[0]!.length / 2,
        place: 'end',
      };
      const wanted = [...vector.parity, ...vector.crc32c.map((crc, unit) => `${crc}:${vector.summary[unit]}`)].join(
        ' ',
      );
      t.equal(ask([line(kernel, 'digest', one)])[0], wanted, `${vector.code}, ${vector.dataLength} bytes`);
    }
    const { data, p, q } = vectors.raid6;
    const one: Case = {
      matrix: parseCode('rs(4,2)').matrix,
      inputs: data.map(fromHex),
      outLength: p.length / 2,
      place: 0,
    };
    t.equal(ask([line(kernel, 'plain', one)])[0], `${p} ${q}`, "Linux md's P and Q");
  });

  t.test(`the ${kernel} kernel decodes by decode plans`, { skip }, async (t) => {
    const below = generator(seed + 1);
    for (const name of ['xor(4+1)', 'rs(8,3)', 'rs(8,4)', 'copies(1,2)', 'cauchy(12,4)']) {
      const code = parseCode(name);
      const data = Array.from({ length: code.k }, () => Uint8Array.from({ length: 3001 }, () => below(256)));
      const units = [...data, ...multiply(code.matrix, data)];
      const missing = new Set<number>();
      while (missing.size < code.m) missing.add(below(units.length));
      const present = units.flatMap((_, unit) => (missing.has(unit) ? [] : [unit]));
      const plan = decodePlan(code, present, [...missing]);
      const one: Case = {
        matrix: plan.matrix,
        inputs: plan.inputUnits.map((unit) => units[unit]!),
        outLength: 3001,
        place: 3,
      };
      t.equal(
        difference(ask([line(kernel, 'plain', one)])[0]!, [...missing].map((unit) => hex(units[unit]!)).join(' ')),
        'equal',
        `${name} without ${[...missing].join()}`,
      );
    }
  });
}

t.test('coding_crc32c() continues from a result so far, with every kernel', async (t) => {
  const below = generator(seed + 2);
  for (const kernel of kernels) {
    const bytes = Uint8Array.from({ length: 9973 }, () => below(256));
    for (const split of [0, 1, 63, 64, 255, 256, 300, 5000, 9973]) {
      const [first] = ask([`crc32c 0 ${hex(bytes.subarray(0, split))}`], { TARTAN_KERNEL: kernel });
      const [whole] = ask([`crc32c ${first} ${hex(bytes.subarray(split))}`], { TARTAN_KERNEL: kernel });
      t.equal(whole, crc32c(bytes).toString(16).padStart(8, '0'), `${kernel}, split at ${split}`);
    }
  }
});

const noIsal =
  ask(['pq 00 00'.replace(/00/g, '00'.repeat(32))])[0] === 'unavailable'
    ? 'libisal.so.2 is not installed (Debian: libisal2)'
    : false;

t.test('ISA-L makes the same parity from our matrices', { skip: noIsal }, async (t) => {
  const below = generator(seed + 3);
  for (const name of ['xor(2+1)', 'rs(4,2)', 'rs(8,3)', 'rs(21,4)', 'cauchy(24,4)', 'copies(1,2)']) {
    const code = parseCode(name);
    const inputs = Array.from({ length: code.k }, () => Uint8Array.from({ length: 4096 }, () => below(256)));
    const one: Case = { matrix: code.matrix, inputs, outLength: 4096, place: 0 };
    const [theirs, ...ours] = ask(['isal', ...kernels].map((kernel) => line(kernel, 'plain', one)));
    for (const [i, answer] of ours.entries()) t.equal(difference(answer, theirs!), 'equal', `${name}, ${kernels[i]}`);
  }
});

t.test("ISA-L's RAID functions make the golden P and Q", { skip: noIsal }, async (t) => {
  const { data, p, q } = readVectors().raid6;
  t.equal(ask([`pq ${data.join(' ')}`])[0], `${p} ${q}`);
});
