/**
 * `npm run simulate -- [--seed N] [--runs M] [--minutes T] [--jobs J] [--only ID,ID…] [--trace FILE] [--mutant NAME]`
 * `npm run simulate -- --pinned NAME [--seed N] [--trace FILE] [--mutant NAME]`: the plan that finds a broken variant
 *
 * Runs seeds N, N + 1, … over all cores until M runs or T minutes are over, or one fails. A failing seed is shrunk; its
 * trace goes to a file, and the command that replays it is printed. The progress line says how many rows of
 * docs/failure-model.md were met; at the end those never met are listed. Exits with 1 when a seed failed.
 */
import { openSync, writeSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { coverage } from './failure-rows.js';
import { faultKinds } from './fault-kinds.js';
import { breakIt, mutants } from './mutants.js';
import type { Plan } from './plan.js';
import { simulate, type RunResult } from './run.js';
import { shrink } from './shrink.js';

const CRISIS = new RegExp(
  'fault \\d+|everything heals|marked down| is (writing|taking|creating|closing|removing|opening)|could not start|' +
    'Cannot |kill |partition |pause |resume ',
);
/** Most of what a run allocates is gone a moment later: a large nursery spares copying it. */
const resourceLimits = { maxYoungGenerationSizeMb: 128 };

if (isMainThread) process.exitCode = await main();
else serve(workerData as { mutant: string | undefined });

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '1' },
      runs: { type: 'string' },
      minutes: { type: 'string' },
      jobs: { type: 'string' },
      only: { type: 'string' },
      trace: { type: 'string' },
      mutant: { type: 'string' },
      pinned: { type: 'string' },
    },
  });
  const first = Number(values.seed),
    only =
      values.only === undefined
        ? undefined
        : new Set(
            values.only
              .split(',')
              .filter((id) => id !== '')
              .map(Number),
          );
  if (values.mutant !== undefined) breakIt(values.mutant);
  if (values.pinned !== undefined) {
    const mutant = mutants[values.pinned];
    if (mutant === undefined) throw new Error(`there is no variant '${values.pinned}'`);
    return replay(first, undefined, values.trace, mutant.plan);
  }
  if (only !== undefined || values.trace !== undefined) return replay(first, only, values.trace);
  const minutes = values.minutes === undefined ? Infinity : Number(values.minutes);
  const runs = values.runs === undefined ? (minutes === Infinity ? 500 : Infinity) : Number(values.runs);
  const failed = await runAll(
    first,
    runs,
    minutes * 60_000,
    values.jobs === undefined ? availableParallelism() : Number(values.jobs),
    values.mutant,
  );
  if (failed === undefined) return 0;
  process.stdout.write(
    `\nseed ${failed.seed} failed: ${failed.violation!.message}\n\nShrinking ${failed.plan.faults.length} faults …\n`,
  );
  const { only: kept } = await shrink(failed);
  const file = join(tmpdir(), `tartan-simulation-${failed.seed}.txt`);
  process.stdout.write(
    `${kept.length} faults are enough. To replay it:\n\n    npm run simulate -- ` +
      (`--seed ${failed.seed} --only ${kept.join(',') || "''"}` +
        (values.mutant === undefined ? '' : ` --mutant ${values.mutant}`) +
        ` --trace ${file}\n\n`),
  );
  await replay(failed.seed, new Set(kept), file);
  return 1;
}

/** One seed, with its story on the terminal and every line of its trace in a file. */
async function replay(
  seed: number,
  only: ReadonlySet<number> | undefined,
  traceFile: string | undefined,
  pinned?: Plan,
): Promise<number> {
  const out = traceFile === undefined ? undefined : openSync(traceFile, 'w');
  const result = await simulate({
    seed,
    ...(only !== undefined && { only }),
    ...(pinned !== undefined && { plan: pinned }),
    hash: true,
    trace: (line) => {
      if (out !== undefined) writeSync(out, `${line}\n`);
      if (CRISIS.test(line)) process.stdout.write(`${line}\n`);
    },
  });
  const { plan } = result;
  process.stdout.write(
    `seed ${seed}: ${plan.codes.join(' and ')} on ${plan.nodes.length} nodes, ` +
      `${plan.switches.length} switches, ${plan.writers.length} writers, ${plan.readers.length}` +
      ' readers; ' +
      `${result.operations} stripe operations in ${(result.virtualMs / 1000).toFixed(1)} virtual s; ` +
      `trace ${result.hash.slice(0, 16)}\n${result.violation?.message ?? 'nothing failed'}\n`,
  );
  return result.violation === undefined ? 0 : 1;
}

interface Totals {
  runs: number;
  virtualMs: number;
  operations: number;
  takeovers: number;
  readonly struck: Map<string, number>;
  readonly seen: Map<string, number>;
}

async function runAll(
  first: number,
  runs: number,
  ms: number,
  jobs: number,
  mutant: string | undefined,
): Promise<RunResult | undefined> {
  const totals: Totals = { runs: 0, virtualMs: 0, operations: 0, takeovers: 0, struck: new Map(), seen: new Map() };
  const began = performance.now();
  let next = first,
    failed: RunResult | undefined;
  const progress = setInterval(
    () => {
      say(totals, began);
    },
    process.stdout.isTTY ? 500 : 10_000,
  );
  const workers = Array.from(
    { length: Math.max(1, Math.min(jobs, runs)) },
    () => new Worker(new URL(import.meta.url), { workerData: { mutant }, resourceLimits }),
  );
  await Promise.all(
    workers.map(
      (worker) =>
        new Promise<void>((resolve, reject) => {
          const give = (): void => {
            if (failed !== undefined || next >= first + runs || performance.now() - began > ms) {
              void worker.terminate().then(() => {
                resolve();
              });
              return;
            }
            worker.postMessage(next++);
          };
          worker.on('message', (result: RunResult) => {
            totals.runs++;
            totals.virtualMs += result.virtualMs;
            totals.operations += result.operations;
            totals.takeovers += result.takeovers;
            for (const [kind, count] of result.struck) totals.struck.set(kind, (totals.struck.get(kind) ?? 0) + count);
            for (const [event, count] of result.seen) totals.seen.set(event, (totals.seen.get(event) ?? 0) + count);
            if (result.violation !== undefined) failed ??= result;
            give();
          });
          worker.on('error', reject);
          give();
        }),
    ),
  );
  clearInterval(progress);
  say(totals, began);
  process.stdout.write('\n');
  for (const [kind, count] of [...totals.struck, ...totals.seen].sort(([, a], [, b]) => b - a))
    process.stdout.write(`    ${String(count).padStart(8)} × ${kind}\n`);
  const { never } = coverage(new Map([...totals.struck, ...totals.seen]));
  process.stdout.write(
    never.length === 0
      ? 'Every row of the failure model was met.\n'
      : `Rows of the failure model never met:\n${never.map((row) => `    ${row}\n`).join('')}`,
  );
  return failed;
}

function say({ runs, virtualMs, operations, takeovers, struck, seen }: Totals, began: number): void {
  const faults = [...struck.values()].reduce((sum, count) => sum + count, 0),
    kinds = Object.keys(faultKinds).length;
  const rows = coverage(new Map([...struck, ...seen]));
  // By processor time, the collector's included: other programs on the machine change it little.
  const { user, system } = process.cpuUsage();
  const line =
    `${runs} runs, ${(virtualMs / 3_600_000).toFixed(2)} virtual hours, ${faults} faults ` +
    `of ${struck.size} of ${kinds} kinds, rows ${rows.met}/${rows.of}, ${takeovers} takeovers, ` +
    `${operations} stripe operations (${Math.round(operations / ((user + system) / 1e6))} a CPU ` +
    `second), ${Math.round((performance.now() - began) / 1000)} s`;
  process.stdout.write(process.stdout.isTTY ? `\r${line}\u001b[K` : `${line}\n`);
}

function serve({ mutant }: { mutant: string | undefined }): void {
  if (mutant !== undefined) breakIt(mutant);
  parentPort!.on('message', (seed: number) => {
    void simulate({ seed }).then((result) => {
      parentPort!.postMessage(result);
    });
  });
}
