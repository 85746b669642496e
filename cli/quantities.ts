/** Sizes and tables as people write and read them. Binary units: 64KiB is 65536; K, KB and KiB mean the same. */
import { TartanError } from '../wire/errors.js';

const POWERS = ['', 'k', 'm', 'g', 't'];

/**
 * Reads `4096`, `64KiB`, `64K`, `1.5MiB`.
 *
 * @param what  names the option in the error
 * @returns whole bytes, at least 1
 * @throws {TartanError} ERR_ARGUMENT
 */
export function parseBytes(text: string, what: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  const bytes = match ? Number(match[1]) * 1024 ** POWERS.indexOf(match[2]!.toLowerCase()) : NaN;
  if (!Number.isSafeInteger(bytes) || bytes < 1)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot use '${text}' as ${what}: expected a number of bytes such as 65536, 64KiB or 1MiB`,
    );
  return bytes;
}

/** @throws {TartanError} ERR_ARGUMENT unless a whole number from `least` to `most` */
export function parseCount(text: string, what: string, least: number, most: number): number {
  const count = /^\d+$/.test(text.trim()) ? Number(text) : NaN;
  if (!(count >= least && count <= most))
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot use '${text}' as ${what}: expected a whole number from ${least} to ${most}`,
    );
  return count;
}

/** `512 B`, `64.0 KiB`, `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  return `${(bytes / 1024 ** power).toFixed(1)} ${POWERS[power]!.toUpperCase()}iB`;
}

/** Decimal megabytes a second, as networks and disks are rated. */
export function formatRate(bytes: number, ms: number): string {
  return ms > 0 ? `${(bytes / 1000 / ms).toFixed(0)} MB/s` : '-';
}

/**
 * Text from elsewhere as it may be shown on a terminal: what would steer it, or turn the order of letters round, is
 * written as `\\u{…}`.
 */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\u{feff}]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );
}

/**
 * Aligned columns, two spaces apart, no lines drawn; cells as printable() shows them.
 *
 * @param lines  the heading first; all of one length
 */
export function table(lines: readonly (readonly string[])[]): string {
  const rows = lines.map((line) => line.map(printable));
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
