/**
 * The coding kernels beside ISA-L and memcpy: rdma/bench-kernels.mjs measures, here its result becomes figures with
 * goals.
 */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Figure } from './report.js';

interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number /** of medians, to ISA-L's */;
  readonly ratio?: number;
}
interface Result {
  readonly repetitions: number;
  readonly isal: boolean;
  readonly shapes: readonly {
    readonly k: number;
    readonly m: number;
    readonly subjects: readonly { readonly name: string; readonly warm: Spread; readonly cold: Spread }[];
  }[];
}
interface KernelBench {
  benchKernels(options: readonly string[]): Promise<Result>;
  formatKernels(result: Result): string;
}

/** From dist/test/bench: the kernel bench is a script of the rdma package, not compiled here. */
const SCRIPT = pathToFileURL(join(import.meta.dirname, '../../../rdma/bench-kernels.mjs'));

/**
 * @param options  kernel_bench's own, e.g. ['--repetitions', '5']
 * @returns figures with goals (none without ISA-L), and the full table as text
 */
export async function kernelFigures(options: readonly string[]): Promise<{ figures: Figure[]; text: string }> {
  const { benchKernels, formatKernels } = (await import(SCRIPT.href)) as KernelBench;
  const result = await benchKernels(options);
  const figures: Figure[] = [];
  for (const { k, m, subjects } of result.shapes) {
    const isal = subjects.find(({ name }) => name === 'isal');
    const add = (name: string, place: 'warm' | 'cold', goal: number): void => {
      const ours = subjects.find((each) => each.name === name)?.[place];
      if (ours?.ratio === undefined || isal === undefined) return;
      const median = isal[place].median;
      figures.push({
        section: 'kernels',
        name: `${k}+${m} ${place}, ${name} ÷ ISA-L`,
        unit: '×',
        median: ours.ratio,
        min: ours.min / median,
        max: ours.max / median,
        repetitions: result.repetitions,
        goal,
        better: 'higher',
      });
    };
    add('gfni', 'warm', 2);
    // Into memory that is not in cache, the stores that go past it are the ones to use.
    add('gfni+stream', 'cold', k === 2 && m === 1 ? 1.3 : 1);
  }
  return { figures, text: formatKernels(result) };
}
