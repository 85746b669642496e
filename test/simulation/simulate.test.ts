/** A share of the random runs, and proof that they can fail. The long form is `npm run simulate`. */
import t from 'tap';
import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { coverage } from './failure-rows.js';
import { faultKinds } from './fault-kinds.js';
import { breakIt, mutants } from './mutants.js';
import { makePlan, type Plan } from './plan.js';
import { simulate, type RunOptions, type RunResult } from './run.js';
import { shrink } from './shrink.js';
import type { Answer, Order } from './runner.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const FIRST_SEED = 100_000;
/** Of the long form; the short one is a choice of seeds. */
const RUNS = 2_000;
/** The world's chances under which each variant's plan must find it. */
const MUTANT_SEEDS = LONG ? Array.from({ length: 10 }, (_, i) => i + 1) : [1];
const JOBS = Math.max(2, availableParallelism());

const ascending = (a: number, b: number): number => a - b;

/** Has other processes run seeds, in any order. */
function runSeeds(seeds: readonly number[]): Promise<Answer[]> {
  const answers: Answer[] = [],
    open = [...seeds];
  return new Promise((resolve, reject) => {
    let running = 0;
    for (let job = 0; job < Math.min(JOBS, seeds.length); job++) {
      const child = fork(fileURLToPath(new URL('runner.ts', import.meta.url)), {
        execArgv: ['--max-semi-space-size=64', '--single-threaded-gc', '--interrupt-budget=600000', '--import', 'tsx'],
        env: { ...process.env, NODE_OPTIONS: '' },
      });
      running++;
      const next = (): void => {
        const seed = open.shift();
        if (seed === undefined) child.disconnect();
        else child.send({ seed } satisfies Order);
      };
      child.on('message', (answer: Answer) => {
        answers.push(answer);
        next();
      });
      child.on('error', reject);
      child.on('exit', (code) => {
        if (code !== 0) reject(new Error(`a runner of simulations ended with ${code}`));
        if (--running === 0) resolve(answers);
      });
      next();
    }
  });
}

/** Seeds that found faults, and what those were. Timing has moved since; they are asked again all the same. */
const FOUND: Readonly<Record<number, string>> = {
  1: 'an error during a takeover was an unhandled event',
  2: 'appending to a window that was gone; a stopping node made takeovers fail',
  16: 'taking over a removed file',
  18: 'a check outlived its link and was counted for the next stripe',
  24: 'a write that waited never heard that the file was closed',
  54: 'a node that could not make a fence durable made takeovers fail',
  100: 'a hole was believed though the only holders were down; stale units were believed',
  164: 'what an earlier owner had rolled back came in the way for ever',
  4: 'readers of a growing file were told that it was lost',
  8: 'readers of a removed file likewise',
  2319: "a unit that came with its link's end was answered twice",
  10021: 'an overtaken takeover called stripes lost',
  10121: 'the same',
  11: 'a degraded read by a newer mark gave up',
  100594: 'a header damaged on its way to the switch left its stripe without an answer',
  14: "a reader's floor was newer than the mark it read by",
  300028: 'the same',
};

/**
 * Few seeds whose plans have every kind of fault: of the candidates, always the one that adds most kinds for the
 * virtual time it takes.
 */
function covering(candidates: readonly number[]): number[] {
  const missing = new Set<string>(Object.keys(faultKinds)),
    chosen: number[] = [];
  const plans = candidates.map((seed) => makePlan(seed));
  const worth = ({ faults, loadMs }: Plan): number =>
    new Set(faults.map(({ kind }) => kind).filter((kind) => missing.has(kind))).size / loadMs;
  while (missing.size > 0) {
    const best = plans.reduce((a, b) => (worth(b) > worth(a) ? b : a));
    if (worth(best) === 0) throw new Error(`no candidate has ${[...missing].join(', ')}`);
    chosen.push(best.seed);
    for (const { kind } of best.faults) missing.delete(kind);
  }
  return chosen;
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => FIRST_SEED + i);
const seeds = [...new Set([...Object.keys(FOUND).map(Number), ...covering(range(400)), ...(LONG ? range(RUNS) : [])])];

void t.test(`${seeds.length} random runs keep every promise`, async (t) => {
  const answers = await runSeeds(seeds);
  t.same(
    answers
      .filter(({ violation }) => violation !== undefined)
      .map(
        ({ seed, violation }) =>
          `seed ${seed}${FOUND[seed] === undefined ? '' : ` (${FOUND[seed]})`}: ${violation!.message} ` +
          `— npm run simulate -- --seed ${seed} --runs 1`,
      ),
    [],
  );
  t.same(answers.map(({ seed }) => seed).sort(ascending), [...seeds].sort(ascending), 'every run was made');
  const met = new Set(answers.flatMap(({ kinds }) => kinds));
  t.same(
    Object.keys(faultKinds).filter((kind) => !met.has(kind)),
    [],
    'every kind of fault struck',
  );
  // What the world brings about by itself is not in a plan: few runs need not show it.
  if (LONG)
    t.same(
      coverage(new Map([...met].map((kind) => [kind, 1]))).never,
      [],
      'every row of the failure model that runs can show was met',
    );
  const operations = answers.reduce((sum, answer) => sum + answer.operations, 0),
    cpu = answers.reduce((sum, { cpuMs }) => sum + cpuMs, 0);
  t.comment(
    `${operations} stripe operations, ${Math.round((operations / cpu) * 1000)} a CPU ` +
      `second, ${Math.round(cpu / 1000)} CPU ` +
      `seconds, ${Math.round(answers.reduce((sum, { virtualMs }) => sum + virtualMs, 0) / 1000)} virtual seconds`,
  );
});

void t.test('one seed gives one trace, byte for byte', async (t) => {
  // The shortest of those that have a few faults.
  const { seed } = range(200)
    .map((each) => makePlan(each))
    .filter(({ faults }) => faults.length > 2)
    .reduce((a, b) => (b.loadMs * b.writers.length < a.loadMs * a.writers.length ? b : a));
  const [first, second] = [await simulate({ seed, hash: true }), await simulate({ seed, hash: true })];
  t.equal(first.hash, second.hash, `seed ${seed}`);
  t.ok(first.operations > 0);
});

for (const [name, { what, plan, finds }] of Object.entries(mutants)) {
  void t.test(`its plan finds the variant in which ${what}`, async (t) => {
    for (const seed of MUTANT_SEEDS) {
      const replay = `npm run simulate -- --pinned ${name} --seed ${seed}`;
      const honest = await simulate({ seed, plan });
      t.equal(honest.violation?.message, undefined, `the honest code keeps every promise: ${replay}`);
      t.equal(honest.unfinished, '', `the plan comes to its end: ${replay}`);
      const mend = breakIt(name);
      try {
        const { violation } = await simulate({ seed, plan });
        t.ok(finds.includes(violation?.kind ?? ''), `${violation?.message ?? 'nothing is found'}: ${replay}`);
      } finally {
        mend();
      }
    }
  });
}

void t.test('a schedule shrinks to the faults that matter, and to nothing when none does', async (t) => {
  const seed = range(100).find((candidate) => makePlan(candidate).faults.length >= 8)!;
  const plan = makePlan(seed),
    ids = plan.faults.map(({ id }) => id);
  /** Fails when these faults are kept. */
  const failing =
    (needed: readonly number[]) =>
    ({ only }: RunOptions): Promise<RunResult> =>
      Promise.resolve({
        seed,
        plan: makePlan(seed, only),
        violation: needed.every((id) => only?.has(id) !== false) ? { kind: 'pretended', message: '' } : undefined,
      } as unknown as RunResult);
  for (const needed of [[], ids.slice(2, 3), [ids[0]!, ids.at(-1)!], ids]) {
    const run = failing(needed);
    const { only, result } = await shrink(await run({ seed }), run);
    t.same(only, needed);
    t.same(
      result.plan.faults,
      plan.faults.filter(({ id }) => needed.includes(id)),
      'a fault stays what it is without the others',
    );
  }
});
