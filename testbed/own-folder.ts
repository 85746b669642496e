/**
 * The folder that a testbed keeps its things in, as root and at a path that everybody knows: only one that this user
 * made, that nobody else can get into, and in which nothing lies but what a testbed put there. For what is recorded in
 * it is killed, and what lies in it is removed.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LOCK_FILE } from '../cli/state-directory.js';
import { TestbedError } from './errors.js';

/** Lies in every folder that a testbed has taken. */
const MARK = '.tartan-testbed';

/**
 * Makes the folder, or takes one that is empty or was a testbed's before.
 * @throws {TestbedError} ERR_TESTBED
 */
export function takeFolder(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const refuse = (why: string): TestbedError =>
    new TestbedError('ERR_TESTBED', `Cannot keep a testbed in ${path}: ${why}`);
  const found = lstatSync(path);
  // Not followed: in a folder that all may write to, a link is somebody's wish for what root should do.
  if (!found.isDirectory()) throw refuse('it is no directory of its own; remove it');
  if (found.uid !== process.getuid?.()) throw refuse(`it belongs to user ${found.uid}; remove it`);
  if ((found.mode & 0o077) !== 0) throw refuse('others may get into it; remove it, or take their permissions away');
  const [entry] = contentsOf(path);
  if (entry !== undefined && !existsSync(join(path, MARK)))
    throw refuse(`it holds ${entry}, which no testbed made; name an empty folder, or remove it`);
  writeFileSync(join(path, MARK), '');
}

/** It is empty, and may be anybody's again. By whoever has it locked. */
export function leaveFolder(path: string): void {
  for (const name of [MARK, LOCK_FILE]) rmSync(join(path, name), { force: true });
}

/** What lies in it, but for the mark and the lock. */
export function contentsOf(path: string): string[] {
  return readdirSync(path).filter((name) => name !== MARK && name !== LOCK_FILE);
}
