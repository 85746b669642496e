/**
 * One process per store file: a file beside it names who has it open. The cluster's lease keeps two nodes of one id
 * apart too, but it runs out when a process is merely stopped; this doesn't.
 */
import { link, readFile, rm, writeFile } from 'node:fs/promises';
import { isRunning, ownIdentity, type ProcessIdentity } from '../cluster/process-identity.js';
import { codeOf, TartanError } from '../wire/errors.js';

export interface StoreLock {
  release(): Promise<void>;
}

/**
 * @param path  the store's file
 * @throws {TartanError} ERR_IN_USE while the process that holds it exists; ERR_DISK when the lock can't be written
 */
export async function lockStore(path: string): Promise<StoreLock> {
  const lock = `${path}.lock`,
    own = `${lock}.${process.pid}`;
  try {
    // Made under another name and then linked: whoever sees the lock sees the whole of it.
    await writeFile(own, JSON.stringify(ownIdentity()), { mode: 0o600 });
    for (let attempt = 0; attempt < 10; attempt++) {
      try {
        await link(own, lock);
        return { release: () => rm(lock, { force: true }) };
      } catch (cause) {
        if (codeOf(cause) !== 'EEXIST') throw cause;
      }
      const holder = await holderOf(lock);
      if (holder !== undefined && isRunning(holder))
        throw new TartanError('ERR_IN_USE', `Cannot open the store '${path}': process ${holder.pid} has it open`);
      await rm(lock, { force: true });
    }
  } catch (cause) {
    if (cause instanceof TartanError) throw cause;
    throw new TartanError(
      'ERR_DISK',
      `Cannot lock the store '${path}': ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  } finally {
    await rm(own, { force: true });
  }
  throw new TartanError('ERR_IN_USE', `Cannot open the store '${path}': others are opening it as well`);
}

/** Who a lock file names; undefined when it is gone, or not one of ours. */
async function holderOf(lock: string): Promise<ProcessIdentity | undefined> {
  try {
    const holder = JSON.parse(await readFile(lock, 'utf8')) as Partial<ProcessIdentity>;
    return typeof holder.pid === 'number' && typeof holder.bootId === 'string' && typeof holder.startTime === 'string'
      ? (holder as ProcessIdentity)
      : undefined;
  } catch {
    return undefined;
  }
}
