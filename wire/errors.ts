/**
 * Operating errors: expected, each with a stable code. A message states the attempt, the observation and the
 * expectation in one line. Codes are listed in docs/failure-model.md.
 *
 * Everything that is not an operating error is a bug: it is rethrown, and ends the process with its stack. What tells
 * them apart is a mark, never the presence of a `code`: Node's own programming errors have codes too.
 */
const ERROR_CODES = [
  'ERR_STALE_EPOCH',
  'ERR_STALE_MAP',
  'ERR_NAME_CONFLICT',
  'ERR_STALE_VERSION',
  'ERR_NOT_MINE',
  'ERR_DISK_FULL',
  'ERR_DISK',
  'ERR_CHECKSUM',
  'ERR_MALFORMED',
  'ERR_UNDECIDED',
  'ERR_MAP_UNAVAILABLE',
  'ERR_NO_UNIT',
  'ERR_TOO_MANY_LOST',
  'ERR_DEADLINE',
  'ERR_CONNECT',
  'ERR_AUTHENTICATION',
  'ERR_CLUSTER',
  'ERR_VERSION',
  'ERR_RING_MEMORY',
  'ERR_EXISTS',
  'ERR_NOT_FOUND',
  'ERR_CLOSED',
  'ERR_FENCED',
  'ERR_NOT_PROGRAMMABLE',
  'ERR_UNKNOWN_CODE',
  'ERR_UNKNOWN_LAYOUT',
  'ERR_CODE_OUT_OF_BOUNDS',
  'ERR_NOT_ENOUGH_NODES',
  'ERR_UNIT_BYTES',
  'ERR_SECRET_REQUIRED',
  'ERR_IN_USE',
  'ERR_FOREIGN_STORE',
  'ERR_STORE_VERSION',
  'ERR_ARGUMENT',
  'ERR_IS_DIRECTORY',
  'ERR_LISTEN',
  'ERR_NOT_RUNNING',
  'ERR_STORE',
  'ERR_DEVICE_KIND',
  'ERR_WOULD_LOSE',
  'ERR_CAPACITY',
  'ERR_UNKNOWN_REFUSAL',
  'ERR_LOCAL_FILE',
  'ERR_CHANGED',
  'ERR_INTERRUPTED',
  'ERR_TOO_MANY_FILES',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

/**
 * The root of operating errors. Packages that import nothing of the project (tartan-rdma, tartan-p4runtime, erasure/)
 * can't extend it; their classes carry the same mark, and {@link isOperating} knows them by it.
 */
export class OperatingError extends Error {
  readonly isOperating = true;
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** Of the cluster: its codes are those that travel between processes. */
export class TartanError extends OperatingError {
  declare readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(code, message, options);
  }
}

/**
 * Whether an error is expected: it bears the mark, or it is the operating system's answer to a call (ENOSPC,
 * ECONNRESET: `errno` and `syscall` are set). ERR_OUT_OF_RANGE, TypeError and the like are bugs.
 */
export function isOperating(error: unknown): error is Error & { readonly code: string } {
  if (!(error instanceof Error)) return false;
  if ('isOperating' in error) return error.isOperating === true;
  return 'errno' in error && typeof error.errno === 'number' && 'syscall' in error && typeof error.syscall === 'string';
}

/** The code of any error, or undefined. It does not tell whether the error was expected. */
export function codeOf(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined;
}

/**
 * Whether a call failed because this process, or this machine, may open no more: that says nothing of whoever was to be
 * reached. A native call and gRPC have only words for it.
 */
export function isOutOfFiles(error: unknown): boolean {
  const code = codeOf(error);
  if (code === 'EMFILE' || code === 'ENFILE') return true;
  return error instanceof Error && /\b(E[MN]FILE|Too many open files)\b/.test(error.message);
}

/** What is said then. */
export const TOO_MANY_FILES = 'this process has as many files open as it may; `ulimit -n` raises that';

const known = new Set<string>(ERROR_CODES);

/** A code that came from elsewhere, or undefined: this version does not know it. */
export function parseErrorCode(text: string): ErrorCode | undefined {
  return known.has(text) ? (text as ErrorCode) : undefined;
}

/** What a peer answered, as an error of this process. A code that is not known here is kept in the message. */
export function errorFromPeer(code: string, message: string, options?: ErrorOptions): TartanError {
  const parsed = parseErrorCode(code);
  if (parsed !== undefined) return new TartanError(parsed, message, options);
  return new TartanError('ERR_UNKNOWN_REFUSAL', `${message} (refused as '${code.slice(0, 64)}')`, options);
}
