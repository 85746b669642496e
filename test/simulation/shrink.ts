/** From a failing schedule to the fewest faults that still fail in the same way. */
import { simulate, type RunOptions, type RunResult } from './run.js';

/**
 * Leaves out halves, then quarters, …, then single faults, as long as the same kind of violation remains (ddmin).
 *
 * @param run  makes one run of a seed
 * @returns ids of the faults to keep, and the last failing run with them
 */
export async function shrink(
  failed: RunResult,
  run: (options: RunOptions) => Promise<RunResult> = simulate,
): Promise<{ only: number[]; result: RunResult }> {
  let result = failed;
  let only = failed.plan.faults.map(({ id }) => id);
  for (let parts = 2; only.length > 0; ) {
    const size = Math.ceil(only.length / parts);
    let isSmaller = false;
    for (let at = 0; at < only.length && !isSmaller; at += size) {
      const rest = [...only.slice(0, at), ...only.slice(at + size)];
      const attempt = await run({ seed: failed.seed, only: new Set(rest) });
      if (attempt.violation?.kind !== failed.violation?.kind) continue;
      only = rest;
      result = attempt;
      isSmaller = true;
    }
    if (isSmaller) parts = Math.max(2, parts - 1);
    else if (size === 1) break;
    else parts = Math.min(only.length, parts * 2);
  }
  return { only, result };
}
