/**
 * Our coding kernels beside ISA-L and memcpy, in one run on one CPU: `node rdma/bench-kernels.mjs [options of
 * kernel_bench] [--json]`.
 *
 * The table gives GB/s of input, median (least to most) over the repetitions, and the ratio of medians to ISA-L's.
 * Warm: one stripe, in cache. Cold: an arena larger than the last cache. memcpy copies the same input bytes.
 */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { buildProgram } from './native/bench/build.mjs';

/**
 * Builds the program if needed and runs it.
 *
 * @param {string[]} options  kernel_bench's: --repetitions, --unit-bytes, --arena-mib, --budget-ms, --cpu, --kernels
 * @returns {Promise<{ machine: string, cpu: number, unitBytes: number, arenaMiB: number, repetitions: number, isal:
 *         boolean,
 *   shapes: { k: number, m: number, subjects: { name: string, warm: Spread, cold: Spread }[] }[] }>}
 *   Spread: { median, min, max (GB/s of input), ratio (of medians, to ISA-L's; undefined without ISA-L) }
 */
export async function benchKernels(options = []) {
  const { stdout } = await promisify(execFile)(await buildProgram('kernel_bench'), options);
  const result = JSON.parse(stdout);
  for (const { subjects } of result.shapes) {
    const isal = subjects.find(({ name }) => name === 'isal');
    const reference = isal && { warm: median(isal.warm), cold: median(isal.cold) };
    for (const subject of subjects) {
      for (const place of ['warm', 'cold']) subject[place] = spread(subject[place], reference?.[place]);
    }
  }
  return { machine: cpus()[0]?.model ?? 'unknown', ...result };
}

/** The result of {@link benchKernels} as lines of text. */
export function formatKernels(result) {
  const isal = result.isal ? '× ISA-L' : 'ISA-L is missing (libisal2)';
  const lines = [
    `${result.machine}, CPU ${result.cpu}, units ` +
      `of ${result.unitBytes / 1024} KiB, ${result.repetitions} interleaved repetitions; cold: ` +
      `through ${result.arenaMiB} MiB`,
    `GB/s of input: median (min–max), ${isal}`,
  ];
  for (const { k, m, subjects } of result.shapes) {
    lines.push('', `${k}+${m}`.padEnd(24) + 'warm'.padEnd(30) + 'cold');
    for (const { name, warm, cold } of subjects)
      lines.push(`  ${name}`.padEnd(24) + cell(warm).padEnd(30) + cell(cold));
  }
  return lines.join('\n');
}

function cell({ median: middle, min, max, ratio }) {
  return (
    `${middle.toFixed(1)} (${min.toFixed(1)}–${max.toFixed(1)})` + (ratio === undefined ? '' : `  ${ratio.toFixed(2)}×`)
  );
}

function spread(values, reference) {
  const middle = median(values);
  return { median: middle, min: Math.min(...values), max: Math.max(...values), ratio: reference && middle / reference };
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = process.argv.slice(2);
  const json = options.includes('--json');
  const result = await benchKernels(options.filter((option) => option !== '--json'));
  process.stdout.write(`${json ? JSON.stringify(result, undefined, 2) : formatKernels(result)}\n`);
}
