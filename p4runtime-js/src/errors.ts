/** What goes wrong, with a stable code and a cause. A message says what was tried, what was seen, what was expected. */
import type { Update } from './generated/p4/v1/p4runtime.js';

export type P4RuntimeErrorCode =
  /** No server answered within the deadline. */
  | 'ERR_P4_CONNECT'
  /** The server says, or this client knows, that it is not primary. */
  | 'ERR_P4_NOT_PRIMARY'
  /** The election id is in use, or arbitration was refused otherwise. */
  | 'ERR_P4_ARBITRATION'
  /** The stream has ended: by the server, the network, or close(). */
  | 'ERR_P4_CLOSED'
  /** A request is wrong by P4Info or by the specification; nothing was sent. */
  | 'ERR_P4_INVALID'
  /** P4Info cannot be read. */
  | 'ERR_P4_INFO'
  /** Some updates of a batch failed: see {@link WriteError.failures}. */
  | 'ERR_P4_WRITE'
  /** Any other error status of the server: see {@link P4RuntimeError.status}. */
  | 'ERR_P4_RPC';

export class P4RuntimeError extends Error {
  /** Tells an expected error from a bug: every error of this class is one. */
  readonly isOperating = true;
  readonly code: P4RuntimeErrorCode;
  /** The gRPC status code, where a server gave one. */
  readonly status: number | undefined;

  constructor(
    code: P4RuntimeErrorCode,
    message: string,
    options: { cause?: unknown; status?: number | undefined } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = 'P4RuntimeError';
    this.code = code;
    this.status = options.status;
  }
}

/** One update that failed. */
export interface UpdateFailure {
  /** Of the update in the batch. */
  readonly index: number;
  readonly update: Update;
  /** gRPC status code. */
  readonly status: number;
  readonly message: string;
  /** Whose `vendorCode` it is. */
  readonly space: string;
  readonly vendorCode: number;
}

/** A batch of which at least one update failed. Those that are not listed took effect, unless the batch was atomic. */
export class WriteError extends P4RuntimeError {
  readonly failures: readonly UpdateFailure[];

  constructor(message: string, failures: readonly UpdateFailure[], options: { cause?: unknown; status?: number }) {
    super('ERR_P4_WRITE', message, options);
    this.name = 'WriteError';
    this.failures = failures;
  }
}

/** gRPC status codes that the specification gives a meaning. */
export const Status = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
} as const;

/** The name of a status code, for messages. */
export function statusName(status: number | undefined): string {
  return Object.entries(Status).find(([, code]) => code === status)?.[0] ?? `status ${status}`;
}

export function invalid(message: string): P4RuntimeError {
  return new P4RuntimeError('ERR_P4_INVALID', message);
}
