/** `tartan experiment NAME`: runs it, writes its files, prints one line. `all` makes one report of all of them. */
import { join, resolve } from 'node:path';
import { parseCode } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import type { Experiment } from '../testbed/experiments/experiment.js';
import { EXPERIMENTS } from '../testbed/experiments/all.js';
import { ProgressLine } from '../testbed/progress-line.js';
import type { Result } from '../testbed/report/result.js';
import { writeResult } from '../testbed/report/write-result.js';
import { writeReport } from '../testbed/report/html.js';
import { requireMachine } from '../testbed/requirements.js';
import { parseRate } from '../testbed/topology.js';

export interface ExperimentOptions {
  readonly quick: boolean;
  /** Of every link, as text; undefined: the experiment's own. */
  readonly rate?: string | undefined;
  /** Only these codes, where it compares several. */
  readonly codes?: readonly string[] | undefined;
  /** BMv2 as the switch, for those experiments that run on it. */
  readonly switchKind?: 'soft' | 'bmv2' | undefined;
  /** Folder for the files. */
  readonly out: string;
  readonly json: boolean;
}

/** @throws {TartanError} ERR_ARGUMENT for an unknown name or rate  @throws {TestbedError} */
export async function experiment(name: string, options: ExperimentOptions): Promise<void> {
  const wanted = name === 'all' ? EXPERIMENTS : EXPERIMENTS.filter((each) => each.name === name);
  if (wanted.length === 0)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot run experiment '${name}': expected all or one of ${EXPERIMENTS.map((each) => each.name).join(', ')}`,
    );
  const other = options.switchKind === 'bmv2' ? EXPERIMENTS.filter((each) => each.bmv2Mbit === undefined) : [];
  if (name !== 'all' && wanted.some((each) => other.includes(each)))
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot run experiment '${name}' with BMv2: expected one of ${EXPERIMENTS.filter((each) => !other.includes(each))
        .map((each) => each.name)
        .join(', ')}`,
    );
  const rateMbit = options.rate === undefined ? undefined : parseRate(options.rate);
  const codes = options.codes?.map((code) => parseCode(code).name);
  requireMachine();
  const folder = resolve(options.out);
  const results: Result[] = [];
  const failures: { name: string; message: string }[] = [];
  for (const each of wanted.filter((one) => !other.includes(one))) {
    try {
      results.push(await runOne(each, rateMbit, folder, { ...options, codes }));
    } catch (error) {
      // One that fails does not take the others' report with it; alone it is the command's error.
      if (wanted.length === 1 || (error as { code?: string }).code === 'ERR_INTERRUPTED') throw error;
      failures.push({ name: each.name, message: error instanceof Error ? error.message : String(error) });
      process.stderr.write(`${each.name} failed: ${failures.at(-1)!.message}\n`);
    }
  }
  if (wanted.length > 1)
    process.stdout.write(`report: ${writeReport(join(folder, 'report.html'), await Promise.all(results), failures)}\n`);
  if (failures.length > 0) process.exitCode = 1;
}

async function runOne(
  each: Experiment,
  rateMbit: number | undefined,
  folder: string,
  options: ExperimentOptions,
): Promise<Result> {
  const progress = new ProgressLine(each.name);
  const note = (line: string): void => {
    progress.finish();
    process.stderr.write(`${line}\n`);
  };
  const command =
    `tartan experiment ${each.name}${options.quick ? ' --quick' : ''}` +
    (options.switchKind === 'bmv2' ? ' --switch bmv2' : '') +
    (options.rate === undefined ? '' : ` --rate ${options.rate}`) +
    (options.codes === undefined ? '' : ` --code ${options.codes.map((code) => `'${code}'`).join(' ')}`);
  let result: Result;
  try {
    result = await each.run({
      quick: options.quick,
      rateMbit:
        rateMbit ??
        (options.switchKind === 'bmv2' ? each.bmv2Mbit! : options.quick ? each.rateMbit.quick : each.rateMbit.full),
      command,
      progress,
      note,
      codes: options.codes,
      switchKind: options.switchKind,
    });
  } finally {
    progress.finish();
  }
  const files = await writeResult(folder, result);
  if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
  else
    process.stdout.write(
      `${result.summary}\n` +
        result.goals
          .map(
            (goal) =>
              '  ' +
              (goal.met === null ? 'not measured' : goal.met ? 'met' : 'short') +
              `: ${goal.goal}: ${goal.reached}\n`,
          )
          .join('') +
        `  ${files.join(' ')}\n`,
    );
  return result;
}
