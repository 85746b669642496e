/** The rows of docs/failure-model.md: which faults and events of the random runs each is shown by. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface FailureRow {
  readonly fault: string;
  /** Names of faults and events, as the world counts them; none: tests of their own show it. */
  readonly kinds: readonly string[];
  /** Folders and files of tests. */
  readonly tests: readonly string[];
}

/** The checkout, from the source file as from the compiled one. */
export const root = ((): string => {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(at, 'docs/failure-model.md'))) at = dirname(at);
  return at;
})();

export function failureRows(): FailureRow[] {
  return readFileSync(join(root, 'docs/failure-model.md'), 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('| ') && line.split('|').length === 7 && !line.startsWith('| fault |'))
    .map((line) => {
      const cells = line.split('|').map((cell) => cell.trim()),
        shown = cells[5]!;
      return {
        fault: cells[1]!,
        kinds: [...shown.matchAll(/`([^`]+)`/g)].map(([, kind]) => kind!),
        tests: shown
          .replaceAll(/`[^`]+`/g, '')
          .split(',')
          .map((part) => part.trim())
          .filter((part) => part !== ''),
      };
    });
}

/** Of the rows that random runs can show, how many were met, and which were not. @param met  counts by name */
export function coverage(met: ReadonlyMap<string, number>): {
  readonly met: number;
  readonly of: number;
  readonly never: string[];
} {
  const rows = failureRows().filter(({ kinds }) => kinds.length > 0);
  const never = rows.filter(({ kinds }) => !kinds.some((kind) => (met.get(kind) ?? 0) > 0));
  return { met: rows.length - never.length, of: rows.length, never: never.map(({ fault }) => fault) };
}
