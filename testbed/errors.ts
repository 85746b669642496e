/** Operating errors of the testbed, each with a stable code (docs/experiments.md lists them). */
import { OperatingError } from '../wire/errors.js';

export type TestbedErrorCode =
  /** Namespaces and traffic shaping need root. */
  | 'ERR_NOT_ROOT'
  /** A Debian package that the testbed needs is not installed; the message names the command that installs it. */
  | 'ERR_MISSING_PACKAGE'
  /** A kernel module that soft-RoCE needs is not there. */
  | 'ERR_MISSING_MODULE'
  /** The topology can't be built: an unknown role, a link to nowhere, a rate of zero … */
  | 'ERR_TOPOLOGY'
  /** Mininet, or a program that measures, failed. */
  | 'ERR_TESTBED'
  /** A measurement did not go the way that it is to measure: over other links, or not at all. */
  | 'ERR_MEASUREMENT'
  /** Ctrl-C or SIGTERM. */
  | 'ERR_INTERRUPTED';

export class TestbedError extends OperatingError {
  declare readonly code: TestbedErrorCode;
  constructor(code: TestbedErrorCode, message: string, options?: ErrorOptions) {
    super(code, message, options);
  }
}
