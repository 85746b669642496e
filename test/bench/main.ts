/** `npm run bench`: ratios measured side by side in one run, with their spread. Options: --quick, --only NAME, --json FILE. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { parseArgs } from 'node:util';
import { jsCost } from './js-cost.js';
import { pathFigures } from './path.js';
import type { Figure } from './report.js';
import { table } from './report.js';

const { values } = parseArgs({ options: { quick: { type: 'boolean', default: false }, only: { type: 'string' }, json: { type: 'string' } } });
const wanted = (name: string): boolean => values.only === undefined || values.only === name;
const note = (line: string): void => { process.stderr.write(`… ${line}\n`); };
const figures: Figure[] = [];

const commit = (() => { try { return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { stdio: ['ignore', 'pipe', 'ignore'] }).toString().trim(); } catch { return 'unknown'; } })();
console.log(`${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} cores, Linux ${release()}, Node ${process.version}, commit ${commit}`);

if (wanted('kernels')) {
  note('kernels beside ISA-L and memcpy');
  const { benchKernels, formatKernels } = await import(new URL('../../../rdma/bench-kernels.mjs', import.meta.url).href) as { benchKernels: (options: object) => unknown; formatKernels: (result: unknown) => string };
  console.log(formatKernels(await benchKernels(values.quick ? { repetitions: 3 } : {})));
}
if (wanted('js')) {
  note('JS-thread CPU per stripe');
  figures.push(...await jsCost(values.quick ? 5 : 9, 320_000));
}
if (wanted('path')) figures.push(...await pathFigures(values.quick ? 3 : 7, values.quick ? 1e9 : 3e9, note));

console.log(table(figures));
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify({ commit, quick: values.quick, figures }, undefined, 1)}\n`);
