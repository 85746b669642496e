/**
 * Scrubs for ever: all files in turn, at a bounded rate, so that damage is found while there is still enough to repair
 * it from.
 *
 * Nothing is remembered between passes but counts; a file that can't be scrubbed now has its turn again in the next
 * pass.
 */
import { listFiles } from '../cluster/files.js';
import { isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import type { RebuildReport } from './rebuild.js';
import { rebuildFile } from './rebuild.js';

export interface PatrolOptions {
  /** Most bytes read back and restored in a second. Default 16 MiB. */
  readonly bytesPerSecond?: number;
  /** Between two passes. Default a minute. */
  readonly restMs?: number;
  /** Ends it; what is under way is finished. */
  readonly signal?: AbortSignal;
  /** Called after each file. */
  readonly onFile?: (report: RebuildReport, sum: PatrolReport) => void;
}

/** Sums over all files and passes. */
export interface PatrolReport {
  /** Passes that are complete. */
  passes: number;
  /** Files scrubbed, and those that could not be: removed meanwhile, or nobody answered. */
  files: number;
  filesFailed: number;
  unitsChecked: number;
  unitsDamaged: number;
  unitsMissing: number;
  parityMismatches: number;
  unitsRestored: number;
  unitsFailed: number;
  stripesLost: number;
}

const BYTES_PER_SECOND = 16 << 20;
const REST_MS = 60_000;

/** Runs until `signal` says so. @returns the sums */
export async function patrol(
  context: ClientContext,
  { bytesPerSecond = BYTES_PER_SECOND, restMs = REST_MS, signal, onFile }: PatrolOptions = {},
): Promise<PatrolReport> {
  const sum: PatrolReport = {
    passes: 0,
    files: 0,
    filesFailed: 0,
    unitsChecked: 0,
    unitsDamaged: 0,
    unitsMissing: 0,
    parityMismatches: 0,
    unitsRestored: 0,
    unitsFailed: 0,
    stripesLost: 0,
  };
  const isOver = (): boolean => signal?.aborted === true;
  while (!isOver()) {
    for (const file of await listed(context)) {
      if (isOver()) return sum;
      try {
        const report = await rebuildFile(context, file, true, {
          bytesPerSecond,
          ...(signal !== undefined && { signal }),
        });
        sum.files++;
        for (const key of [
          'unitsChecked',
          'unitsDamaged',
          'unitsMissing',
          'parityMismatches',
          'unitsRestored',
          'unitsFailed',
          'stripesLost',
        ] as const)
          sum[key] += report[key];
        onFile?.(report, sum);
      } catch (error) {
        if (!isOperating(error)) throw error;
        sum.filesFailed++;
      }
    }
    if (!isOver()) sum.passes++;
    await rest(context, restMs, signal);
  }
  return sum;
}

/** A store that is away has no files for now. */
async function listed(context: ClientContext): Promise<Awaited<ReturnType<typeof listFiles>>> {
  try {
    return await listFiles(context.store);
  } catch (error) {
    if (!isOperating(error)) throw error;
    return [];
  }
}

function rest({ clock }: ClientContext, ms: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal?.aborted === true) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = clock.setTimer(ms, end);
    signal?.addEventListener('abort', end, { once: true });
    function end(): void {
      clock.clearTimer(timer);
      signal?.removeEventListener('abort', end);
      resolve();
    }
  });
}
