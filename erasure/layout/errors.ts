/** Numbers that make no layout. */
export class LayoutError extends Error {
  /** The mark of what is expected: wire/errors.ts. */
  readonly isOperating = true;
  constructor(
    readonly code: 'ERR_NOT_ENOUGH_NODES' | 'ERR_UNIT_BYTES' | 'ERR_UNKNOWN_LAYOUT',
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
    this.name = 'LayoutError';
  }
}
