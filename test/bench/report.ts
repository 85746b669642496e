/** Figures, their spread, and the table at the end. */
export interface Figure {
  readonly section: string; readonly name: string; readonly unit: string;
  readonly median: number; readonly min: number; readonly max: number;
  readonly goal?: number; readonly better?: 'higher' | 'lower';
}

/** Median, minimum and maximum of repetitions. */
export function spread(values: readonly number[]): { median: number; min: number; max: number } {
  const sorted = [...values].sort((a, b) => a - b);
  return { median: sorted[Math.floor(sorted.length / 2)]!, min: sorted[0]!, max: sorted[sorted.length - 1]! };
}

const short = (value: number): string => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

export function table(figures: readonly Figure[]): string {
  const rows = figures.map(({ section, name, unit, median, min, max, goal, better }) => [
    section, name, `${short(median)} ${unit}`, `${short(min)}–${short(max)}`, goal === undefined ? '' : `${better === 'lower' ? '≤' : '≥'} ${goal}`,
    goal === undefined ? '' : (better === 'lower' ? median <= goal : median >= goal) ? 'met' : 'short',
  ]);
  const all = [['section', 'figure', 'median', 'min–max', 'goal', ''], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all.map((row) => row.map((cell, column) => cell.padEnd(widths[column]!)).join('  ').trimEnd()).join('\n');
}
