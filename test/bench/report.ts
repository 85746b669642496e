/** Figures, their spread, and the tables at the end. */
export interface Figure {
  readonly section: string;
  readonly name: string;
  readonly unit: string;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** Measurements behind the median. */
  readonly repetitions: number;
  readonly goal?: number;
  readonly better?: 'higher' | 'lower';
}

/** Median, minimum, maximum and count of repetitions. */
export function spread(values: readonly number[]): { median: number; min: number; max: number; repetitions: number } {
  const sorted = [...values].sort((a, b) => a - b),
    half = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
  return { median, min: sorted[0]!, max: sorted[sorted.length - 1]!, repetitions: sorted.length };
}

/** Whether the median reaches the goal; undefined without one. */
export function isMet({ median, goal, better }: Figure): boolean | undefined {
  if (goal === undefined) return undefined;
  return better === 'lower' ? median <= goal : median >= goal;
}

/** All figures, then those with a goal once more, met or short. */
export function report(figures: readonly Figure[]): string {
  const all = aligned([
    ['section', 'figure', 'median', 'min–max', 'n'],
    ...figures.map((each) => [
      each.section,
      each.name,
      `${digits(each.median)} ${each.unit}`,
      `${digits(each.min)}–${digits(each.max)}`,
      String(each.repetitions),
    ]),
  ]);
  const goals = figures.filter((each) => each.goal !== undefined);
  if (goals.length === 0) return all;
  return `${all}\n\n${aligned([
    ['figure', 'median', 'goal', ''],
    ...goals.map((each) => [
      `${each.section}: ${each.name}`,
      `${digits(each.median)} ${each.unit}`,
      `${each.better === 'lower' ? '≤' : '≥'} ${each.goal}`,
      isMet(each) ? 'met' : 'short',
    ]),
  ])}`;
}

function digits(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function aligned(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
