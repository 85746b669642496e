/**
 * Operating errors: expected, each with a stable code. A message states the attempt, the observation and the
 * expectation in one line. Codes are listed in docs/failure-model.md.
 */
export type ErrorCode =
  | 'ERR_STALE_EPOCH'
  | 'ERR_STALE_MAP'
  | 'ERR_NAME_CONFLICT'
  | 'ERR_STALE_VERSION'
  | 'ERR_NOT_MINE'
  | 'ERR_DISK_FULL'
  | 'ERR_DISK'
  | 'ERR_CHECKSUM'
  | 'ERR_MALFORMED'
  | 'ERR_UNDECIDED'
  | 'ERR_MAP_UNAVAILABLE'
  | 'ERR_NO_UNIT'
  | 'ERR_TOO_MANY_LOST'
  | 'ERR_DEADLINE'
  | 'ERR_CONNECT'
  | 'ERR_AUTHENTICATION'
  | 'ERR_CLUSTER'
  | 'ERR_VERSION'
  | 'ERR_RING_MEMORY'
  | 'ERR_EXISTS'
  | 'ERR_NOT_FOUND'
  | 'ERR_CLOSED'
  | 'ERR_FENCED'
  | 'ERR_NOT_PROGRAMMABLE'
  | 'ERR_UNKNOWN_CODE'
  | 'ERR_UNKNOWN_LAYOUT'
  | 'ERR_CODE_OUT_OF_BOUNDS'
  | 'ERR_NOT_ENOUGH_NODES'
  | 'ERR_UNIT_BYTES'
  | 'ERR_SECRET_REQUIRED'
  | 'ERR_IN_USE'
  | 'ERR_FOREIGN_STORE'
  | 'ERR_STORE_VERSION'
  | 'ERR_ARGUMENT'
  | 'ERR_IS_DIRECTORY'
  | 'ERR_LISTEN'
  | 'ERR_NOT_RUNNING'
  | 'ERR_STORE'
  | 'ERR_DEVICE_KIND'
  | 'ERR_WOULD_LOSE'
  | 'ERR_CAPACITY';

export class TartanError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'TartanError';
    this.code = code;
  }
}

/** The code of any error, or undefined. */
export function codeOf(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined;
}
