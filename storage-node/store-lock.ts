/**
 * One process per store file: the kernel's lock on a file beside it (cluster/process-lock.ts). The cluster's lease
 * keeps two nodes of one id apart too, but it runs out when a process is merely stopped; this doesn't.
 */
import { lockPath, type ProcessLock } from '../cluster/process-lock.js';
import { TartanError } from '../wire/errors.js';

/**
 * @param path  the store's file
 * @throws {TartanError} ERR_IN_USE while the process that holds it exists; ERR_DISK when the lock can't be taken
 */
export function lockStore(path: string): ProcessLock {
  let taken: ReturnType<typeof lockPath>;
  try {
    taken = lockPath(`${path}.in-use`);
  } catch (cause) {
    if (!(cause instanceof TartanError)) throw cause;
    throw new TartanError('ERR_DISK', `Cannot open the store '${path}': ${cause.message}`, { cause });
  }
  if ('heldBy' in taken)
    throw new TartanError('ERR_IN_USE', `Cannot open the store '${path}': ${taken.heldBy} has it open`);
  return taken;
}
