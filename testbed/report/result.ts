/**
 * What an experiment yields: rows with named columns, the setting they were measured in, goals, references, a chart.
 */
import type { TopLevelSpec } from 'vega-lite';

export type Cell = string | number | boolean | null;
export type Row = Readonly<Record<string, Cell>>;

export interface Column {
  readonly name: string /** '' when it has none */;
  readonly unit: string;
  readonly about: string;
}

/** A figure of somebody else's, shown beside ours. */
export interface Reference {
  readonly figure: string;
  readonly value: string /** The same of this run. */;
  readonly ours: string;
  readonly source: string;
}

export interface Goal {
  readonly goal: string;
  readonly reached: string /** null: nothing that counts was measured */;
  readonly met: boolean | null;
}

export interface Setting {
  readonly command: string;
  readonly date: string;
  readonly machine: string;
  readonly kernel: string;
  readonly links: string;
  readonly durability: string;
  readonly repetitions: number;
  readonly loadBefore: number;
}

export interface Result {
  readonly name: string;
  readonly title: string;
  /** One line. */
  readonly summary: string;
  readonly setting: Setting;
  readonly columns: readonly Column[];
  readonly rows: readonly Row[];
  readonly goals: readonly Goal[];
  readonly references: readonly Reference[];
  /** What a reader must know to judge the figures, a sentence each. */
  readonly notes: readonly string[];
  /** Data in it; drawn by draw.ts. */
  readonly chart: TopLevelSpec;
}

export interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** @param values  at least one */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b),
    half = sorted.length >> 1;
  if (sorted.length === 0) throw new RangeError('a spread of nothing');
  return {
    median: sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2,
    least: sorted[0]!,
    most: sorted.at(-1)!,
  };
}

/** The value that a share `p` (0 to 1) of the values does not exceed. */
export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  if (sorted.length === 0) throw new RangeError('a percentile of nothing');
  return sorted[Math.min(sorted.length - 1, Math.ceil(p * sorted.length) - 1)]!;
}
