/**
 * Checks of what applications pass in. A value that can't be meant is refused before anything happens, whatever the
 * types promised: callers may be plain JavaScript.
 */
import { TartanError } from '../wire/errors.js';

type Check = (value: unknown) => string | undefined;

/** Each check says what it expected; undefined: the value is as it should be. */
export const expected = {
  text: (value: unknown) => (typeof value === 'string' && value !== '' ? undefined : 'a text that is not empty'),
  flag: (value: unknown) => (typeof value === 'boolean' ? undefined : 'true or false'),
  callback: (value: unknown) => (typeof value === 'function' ? undefined : 'a function'),
  signal: (value: unknown) => (value instanceof AbortSignal ? undefined : 'an AbortSignal'),
  count: (value: unknown) => (Number.isSafeInteger(value) && Number(value) >= 0 ? undefined : 'a whole number from 0'),
  positive: (value: unknown) =>
    Number.isSafeInteger(value) && Number(value) >= 1 ? undefined : 'a whole number from 1',
  /** A timer takes no more. */
  milliseconds: (value: unknown) =>
    typeof value === 'number' && value > 0 && value <= 0x7fffffff ? undefined : 'milliseconds, above 0, below 2^31',
  millisecondsOrNone: (value: unknown) =>
    typeof value === 'number' && value >= 0 && value <= 0x7fffffff ? undefined : 'milliseconds from 0, below 2^31',
  /** Also without a bound. */
  rate: (value: unknown) => (typeof value === 'number' && value > 0 ? undefined : 'bytes a second, above 0'),
  oneOf:
    (...values: readonly string[]): Check =>
    (value) =>
      values.includes(value as string) ? undefined : values.map((each) => `'${each}'`).join(' or '),
} as const;

/**
 * Checks options by name; those that are absent, or undefined, have their defaults.
 *
 * @throws {TartanError} ERR_ARGUMENT: one is not as expected, or unknown: a misspelt one must not pass for a default
 */
export function checkOptions(attempt: string, options: unknown, checks: Readonly<Record<string, Check>>): void {
  if (typeof options !== 'object' || options === null)
    throw new TartanError('ERR_ARGUMENT', `Cannot ${attempt}: options are ${shown(options)}, expected an object`);
  for (const [key, value] of Object.entries(options)) {
    const check = checks[key];
    if (check === undefined)
      throw new TartanError(
        'ERR_ARGUMENT',
        `Cannot ${attempt}: there is no option '${key}', expected ${Object.keys(checks).join(', ')}`,
      );
    if (value !== undefined) checkArgument(attempt, key, value, check);
  }
}

/** @throws {TartanError} ERR_ARGUMENT */
export function checkArgument(attempt: string, name: string, value: unknown, check: Check): void {
  const wanted = check(value);
  if (wanted !== undefined)
    throw new TartanError('ERR_ARGUMENT', `Cannot ${attempt}: ${name} is ${shown(value)}, expected ${wanted}`);
}

function shown(value: unknown): string {
  if (typeof value === 'string') return `'${value.slice(0, 64)}'`;
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return String(value);
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : `a value of type ${typeof value}`;
}
