/** A share of the random runs, and proof that they can fail. The long form is `npm run simulate`. */
import t from 'tap';
import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { coverage } from './failure-rows.js';
import { faultKinds } from './fault-kinds.js';
import { mutants } from './mutants.js';
import { makePlan } from './plan.js';
import { simulate } from './run.js';
import { shrink } from './shrink.js';
import type { Answer, Order } from './runner.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const FIRST_SEED = 100_000;
const RUNS = LONG ? 5_000 : 500;
const JOBS = Math.max(2, availableParallelism());

/** Has other processes run seeds, in any order; a mutant breaks the process, so every process has one at most. */
function runSeeds(seeds: readonly number[], mutant: string | undefined): Promise<Answer[]> {
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
        else child.send({ seed, mutant } satisfies Order);
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

void t.test(`${RUNS} random runs keep every promise`, { timeout: LONG ? 3_600_000 : 1_500_000 }, async (t) => {
  const answers = await runSeeds(
    Array.from({ length: RUNS }, (_, i) => FIRST_SEED + i),
    undefined,
  );
  for (const { seed, violation } of answers) {
    if (violation !== undefined)
      t.fail(`seed ${seed}: ${violation.message} — npm run simulate -- --seed ${seed} --runs 1`);
  }
  t.equal(answers.length, RUNS);
  const struck = new Set(answers.flatMap(({ kinds }) => kinds));
  t.same(
    Object.keys(faultKinds).filter((kind) => !struck.has(kind)),
    [],
    'every kind of fault struck',
  );
  t.same(
    coverage(new Map([...struck].map((kind) => [kind, 1]))).never,
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

/** Seeds that found a fault, and what it was. Timing has moved since; they are asked again all the same. */
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

void t.test('seeds that found faults keep every promise', { timeout: 300_000 }, async (t) => {
  for (const { seed, violation } of await runSeeds(Object.keys(FOUND).map(Number), undefined))
    t.equal(violation?.message, undefined, `seed ${seed}: ${FOUND[seed]}`);
});

void t.test('one seed gives one trace, byte for byte', async (t) => {
  for (const seed of [3, 4, 5]) {
    const [first, second] = [await simulate({ seed, hash: true }), await simulate({ seed, hash: true })];
    t.equal(first.hash, second.hash, `seed ${seed}`);
    t.ok(first.operations > 0);
  }
});

void t.test('each deliberately broken variant is found by its seed', { timeout: 600_000 }, async (t) => {
  t.ok(Object.keys(mutants).length >= 10);
  for (const [name, { what, seed }] of Object.entries(mutants)) {
    // Whatever changes timing moves the seeds that find it: then the next ones are asked.
    let found: Answer | undefined,
      asked = 0;
    const seeds = [seed, ...Array.from({ length: 1000 }, (_, i) => i + 1)];
    for (; found === undefined && asked < (LONG ? 1000 : 200); asked += JOBS) {
      found = (await runSeeds(seeds.slice(asked, asked + JOBS), name)).find(({ violation }) => violation !== undefined);
    }
    t.ok(
      found,
      `${name} (${what}): ${found === undefined ? `not found within ${asked} seeds` : `seed ${found.seed} finds ${found.violation!.message.split('\n')[0]!.slice(0, 200)}`}`,
    );
  }
});

void t.test('a schedule shrinks to the faults that matter, and to nothing when none does', async (t) => {
  const seed = Array.from({ length: 100 }, (_, i) => i + 1).find(
    (candidate) => makePlan(candidate).faults.length >= 5,
  )!;
  const honest = await simulate({ seed });
  t.equal(honest.violation, undefined);
  // As if it had failed: no schedule fails the same way, so all faults are kept.
  const pretended = { ...honest, violation: { kind: 'pretended', message: '' } };
  t.same(
    (await shrink(pretended)).only,
    honest.plan.faults.map(({ id }) => id),
  );
  t.same(
    makePlan(seed, new Set([honest.plan.faults[1]!.id])).faults,
    [honest.plan.faults[1]],
    'a fault stays what it is without the others',
  );
});
