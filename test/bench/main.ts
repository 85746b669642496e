/**
 * `npm run bench`: ratios measured side by side in one run, with their spread (docs/benchmarks.md).
 * Options: --quick, --only kernels|js|open|rebuild|path|write|read|sync (path: the last three), --json FILE. Speed
 * fails nothing; a wrong byte does.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, loadavg, release } from 'node:os';
import { parseArgs } from 'node:util';
import { jsCost } from './js-cost.js';
import { kernelFigures } from './kernels.js';
import { openFigures } from './open-store.js';
import { pathFigures } from './path.js';
import { endAll } from './processes.js';
import { rebuildFigures } from './rebuild.js';
import type { Figure } from './report.js';
import { isMet, report } from './report.js';

const PATH_SECTIONS = ['write', 'read', 'sync'];
const SECTIONS = ['kernels', 'js', 'open', 'rebuild', 'path', ...PATH_SECTIONS];
/** Less than this and a transfer is mostly its beginning. */
const QUICK = {
  bytes: 256e6,
  repetitions: 5,
  jsStripes: 160_000,
  kernels: ['--repetitions', '5', '--budget-ms', '5', '--arena-mib', '512', '--kernels', 'gfni'],
};
const FULL = { bytes: 2e9, repetitions: 7, jsStripes: 320_000, kernels: [] };

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.once(signal, () => {
    void endAll().finally(() => {
      process.exit(signal === 'SIGINT' ? 130 : 143);
    });
  });

try {
  await main();
} catch (error) {
  process.stderr.write(`tartan: the bench failed: ${(error as Error).message}\n`);
  process.exitCode = 1;
} finally {
  await endAll();
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean', default: false }, only: { type: 'string' }, json: { type: 'string' } },
  });
  if (values.only !== undefined && !SECTIONS.includes(values.only))
    throw new Error(`--only ${values.only}: expected one of ${SECTIONS.join(', ')}`);
  const wanted = (section: string): boolean =>
    values.only === undefined || values.only === section || (values.only === 'path' && PATH_SECTIONS.includes(section));
  const note = (line: string): void => {
    process.stderr.write(`… ${line}\n`);
  };
  const size = values.quick ? QUICK : FULL;
  const setting = {
    command: `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(' ')}` : ''}`,
    date: new Date().toISOString(),
    commit: commit(),
    machine: `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} CPUs, Linux ${release()}, Node ${process.version}`,
    loadBefore: loadavg()[0]!,
  };
  console.log(
    `${setting.command}\n${setting.machine}, commit ${setting.commit}, ${setting.date}, ` +
      `load ${setting.loadBefore.toFixed(1)} before`,
  );
  const started = performance.now();
  const figures: Figure[] = [];
  if (wanted('kernels')) {
    note('kernels beside ISA-L and memcpy');
    const kernels = await kernelFigures(size.kernels);
    console.log(`\n${kernels.text}`);
    figures.push(...kernels.figures);
  }
  if (wanted('js')) {
    note('CPU of the JavaScript thread per stripe');
    figures.push(...(await jsCost(size.repetitions, size.jsStripes)));
  }
  // Not part of a whole run: it says nothing of the data path, and 100 GB of headers take minutes.
  if (values.only === 'open') figures.push(...(await openFigures(values.quick ? [1e9] : [1e9, 100e9], 3, note)));
  // Nor is this: it tells how the work of a rebuild is spread.
  if (values.only === 'rebuild')
    figures.push(
      ...(await rebuildFigures(
        values.quick ? [4, 8] : [4, 8, 12, 16],
        values.quick ? 24 << 20 : 192 << 20,
        values.quick ? 1 : 5,
        note,
      )),
    );
  figures.push(...(await pathFigures({ repetitions: size.repetitions, bytes: size.bytes, note, wanted })));
  console.log(`\n${report(figures)}\n\n${((performance.now() - started) / 1000).toFixed(0)} s`);
  if (setting.loadBefore > cpus().length / 2)
    console.log(
      `others were using this machine (load ${setting.loadBefore.toFixed(1)} on ${cpus().length} CPUs): rates ` +
        'say little, CPU per byte says more',
    );
  if (values.quick && figures.some((each) => PATH_SECTIONS.includes(each.section)))
    console.log(
      '--quick: transfers are so short that starting up is part of every rate of ours; the full run has the figures',
    );
  const json = { ...setting, quick: values.quick, figures: figures.map((each) => ({ ...each, met: isMet(each) })) };
  if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(json, undefined, 1)}\n`);
}

/** The checkout's commit, marked when files differ from it. */
function commit(): string {
  const git = (...args: string[]): string =>
    execFileSync('git', args, {
      cwd: import.meta.dirname,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    return (
      `${git('rev-parse', '--short', 'HEAD')}` +
      (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : ' with changes')
    );
  } catch {
    return 'unknown';
  }
}
