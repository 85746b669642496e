/**
 * The room that a node's store was promised: taken from the file system before the node begins. A sparse file would
 * take it bit by bit, and a file system that fills up meanwhile would stop a store that has room by its own account,
 * also for the entries by which something is removed.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, renameSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { TartanError } from '../wire/errors.js';
import { formatBytes } from './quantities.js';

/** The unit that stores are counted in; disks below it have no blocks. */
const BLOCK_BYTES = 4096;

/**
 * Makes a new store's file with all its bytes there. One that exists stays as it is. Where the file system or this
 * machine (util-linux' `fallocate`) can't set bytes aside, the node makes its file as it needs it.
 *
 * @param folder  the node's
 * @returns whether it was made
 * @throws {TartanError} ERR_DISK_FULL: there are not so many bytes
 */
export function reserveUnits(folder: string, id: string, sizeBytes: number): boolean {
  const path = join(folder, 'units'),
    partial = `${path}.partial`;
  if (existsSync(path)) return false;
  const bytes = Math.floor(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES;
  if (bytes === 0) return false; // the node says what is wrong with it
  // Of one that was cut off in the middle.
  rmSync(partial, { force: true });
  const { status } = spawnSync('fallocate', ['-l', String(bytes), partial], { stdio: 'ignore' });
  if (status === 0) {
    renameSync(partial, path);
    return true;
  }
  rmSync(partial, { force: true });
  const { bavail, bsize } = statfsSync(folder);
  if (bavail * bsize < bytes)
    throw new TartanError(
      'ERR_DISK_FULL',
      `Cannot set ${formatBytes(bytes)} aside for the store of ${id}: ${formatBytes(bavail * bsize)} are free in ` +
        `${folder}; --size takes less, --sparse takes it bit by bit`,
    );
  return false;
}

/** For a start that fails before the node has begun. */
export function giveBackUnits(folder: string): void {
  rmSync(join(folder, 'units'), { force: true });
}
