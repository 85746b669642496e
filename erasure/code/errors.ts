/** Why a code cannot be used. Each value is a stable `code` of a {@link CodeError}. */
export type CodeErrorCode = 'ERR_UNKNOWN_CODE' | 'ERR_CODE_OUT_OF_BOUNDS' | 'ERR_TOO_MANY_ERASURES';

/** An operating error about an erasure code: its name, its bounds, or what it can restore. */
export class CodeError extends Error {
  /** The mark of what is expected: wire/errors.ts. */
  readonly isOperating = true;
  constructor(
    readonly code: CodeErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** Fewer than k units of a stripe are left: its lost bytes cannot be computed. */
export class TooManyErasuresError extends CodeError {
  constructor(message: string) {
    super('ERR_TOO_MANY_ERASURES', message);
  }
}
