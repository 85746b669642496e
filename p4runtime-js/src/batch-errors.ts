/**
 * Reads what a server says about each update of a batch. A failed Write has status UNKNOWN, and in its details a
 * google.rpc.Status with one p4.v1.Error for every update, in order, those that succeeded included.
 * Source: P4Runtime specification 1.4, section 12.3, "Batching and Ordering of Updates" and "Error Reporting"
 */
import type { ServiceError } from '@grpc/grpc-js';
import { Status as RpcStatus } from './generated/google/rpc/status.js';
import { Error as P4Error, type Update } from './generated/p4/v1/p4runtime.js';
import { P4RuntimeError, Status, WriteError, statusName, type UpdateFailure } from './errors.js';

const DETAILS = 'grpc-status-details-bin';

/**
 * Turns the error of a Write into one of this package.
 *
 * @param first  index in the caller's batch of the first update that this request carried
 */
export function writeError(error: ServiceError, updates: readonly Update[], first: number): P4RuntimeError {
  if (error.code === Status.PERMISSION_DENIED) {
    return new P4RuntimeError(
      'ERR_P4_NOT_PRIMARY',
      `Cannot write ${updates.length} updates: the server says '${error.details}'`,
      { cause: error, status: error.code },
    );
  }
  const failures = failuresOf(error, updates, first);
  if (failures === undefined) return rpcError(`Cannot write ${updates.length} updates`, error);
  const shown = failures
    .slice(0, 3)
    .map((failure) => `update ${failure.index}: ${statusName(failure.status)} ${failure.message}`)
    .join('; ');
  const more = failures.length > 3 ? `; and ${failures.length - 3} more` : '';
  return new WriteError(`${failures.length} of ${updates.length} updates failed: ${shown}${more}`, failures, {
    cause: error,
    status: error.code,
  });
}

/** undefined when the error says nothing about single updates. */
function failuresOf(error: ServiceError, updates: readonly Update[], first: number): UpdateFailure[] | undefined {
  const details = error.metadata.get(DETAILS)[0];
  if (error.code !== Status.UNKNOWN || !Buffer.isBuffer(details)) return undefined;
  let errors: P4Error[];
  try {
    errors = RpcStatus.decode(details).details.map((any) => P4Error.decode(any.value));
  } catch {
    return undefined;
  }
  // One each, or nobody knows whose they are.
  if (errors.length !== updates.length) return undefined;
  return errors.flatMap((each, index) =>
    each.canonicalCode === Status.OK
      ? []
      : [
          {
            index: first + index,
            update: updates[index]!,
            status: each.canonicalCode,
            message: each.message,
            space: each.space,
            vendorCode: each.code,
          },
        ],
  );
}

/** Any other call's error. */
export function rpcError(attempt: string, error: ServiceError): P4RuntimeError {
  const code =
    error.code === Status.PERMISSION_DENIED
      ? 'ERR_P4_NOT_PRIMARY'
      : error.code === Status.UNAVAILABLE
        ? 'ERR_P4_CONNECT'
        : 'ERR_P4_RPC';
  return new P4RuntimeError(code, `${attempt}: ${statusName(error.code)} ${error.details}`, {
    cause: error,
    status: error.code,
  });
}

/** The failures of several requests that carried one batch. */
export function joined(errors: readonly P4RuntimeError[], updates: number): P4RuntimeError {
  if (errors.length === 1) return errors[0]!;
  const failures = errors.flatMap((error) => (error instanceof WriteError ? error.failures : []));
  return new WriteError(`${failures.length} of ${updates} updates failed: ${errors[0]!.message}`, failures, {
    cause: errors[0],
    status: Status.UNKNOWN,
  });
}
