/** Rows as CSV (RFC 4180): one heading line, `name (unit)`; fields quoted when they need it. */
import type { Cell, Result } from './result.js';

export function toCsv({ columns, rows }: Pick<Result, 'columns' | 'rows'>): string {
  const heading = columns.map(({ name, unit }) => (unit === '' ? name : `${name} (${unit})`));
  return (
    [heading, ...rows.map((row) => columns.map(({ name }) => text(row[name] ?? null)))]
      .map((cells) => cells.map(quoted).join(','))
      .join('\n') + '\n'
  );
}

function text(cell: Cell): string {
  if (cell === null) return '';
  return typeof cell === 'number' && !Number.isInteger(cell) ? String(Number(cell.toPrecision(6))) : String(cell);
}

function quoted(field: string): string {
  return /[",\n\r]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field;
}
