/**
 * A lock that a process holds on a path, and that ends with the process, however it ends: the kernel's own, on an empty
 * file beside what it guards. There is nothing in the file that could be stale, be half written, or need room on a full
 * disk; it may stay, or be removed by whoever holds the lock. Network namespaces and users' sockets don't matter to it:
 * who may not write the file can't take it.
 *
 * Node has no call for record locks. SQLite takes them to say that a transaction will write (its RESERVED lock), and
 * then writes nothing before the commit, which never comes.
 */
import { lstatSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import Database from 'better-sqlite3';
import { TartanError, codeOf } from '../wire/errors.js';
import { oneLine } from './sqlite-database.js';

export interface ProcessLock {
  release(): void;
}

/** SQLite's RESERVED lock is one byte at this offset of a file. */
const RESERVED_BYTE = 0x40000001;
/** One that nobody refers to is closed when memory is collected, and with it goes the lock. */
const holding = new Set<Database.Database>();

/**
 * Takes the lock, or says at once who has it; of several that try, one gets it.
 *
 * @param path  of the file; made when it is not there. Nothing else in this process may open it: closing it would end
 *              the lock.
 * @returns the lock, or its holder: "process 123", "another process" when that can't be told
 * @throws {TartanError} ERR_LOCAL_FILE: the file can't be made, or locked
 */
export function lockPath(path: string): ProcessLock | { readonly heldBy: string } {
  try {
    for (;;) {
      make(path);
      const before = inodeOf(path);
      if (before === undefined) {
        if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true)
          throw new TartanError('ERR_LOCAL_FILE', `Cannot lock '${path}': it is a link that leads nowhere; remove it`);
        continue; // its holder removed it just now
      }
      const database = new Database(path, { fileMustExist: true, timeout: 0 });
      try {
        database.pragma('journal_mode = MEMORY'); // no file beside this one
        database.exec('BEGIN IMMEDIATE');
      } catch (error) {
        database.close();
        if (codeOf(error)?.startsWith('SQLITE_BUSY') === true) return { heldBy: holderOf(before) };
        throw error;
      }
      // Whoever held it before may have removed the file: then this is a lock on a file that nobody else will find.
      if (inodeOf(path) === before) return held(database);
      database.close();
    }
  } catch (error) {
    if (!isFileError(error)) throw error;
    throw new TartanError('ERR_LOCAL_FILE', `Cannot lock '${path}': ${oneLine(error)}`, { cause: error });
  }
}

function held(database: Database.Database): ProcessLock {
  holding.add(database);
  return {
    release: () => {
      holding.delete(database);
      database.close();
    },
  };
}

/** Not by opening what is there: see above. */
function make(path: string): void {
  try {
    writeFileSync(path, '', { flag: 'wx', mode: 0o600 });
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error;
  }
}

function inodeOf(path: string): bigint | undefined {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino;
}

/** The kernel's list of locks names processes; that of the file system it gives is not always what stat() says. */
function holderOf(inode: bigint): string {
  const held = new RegExp(`^\\d+: POSIX +ADVISORY +WRITE +(\\d+) +\\S+:${inode} ${RESERVED_BYTE} `, 'm');
  let pid: string | undefined;
  try {
    pid = held.exec(readFileSync('/proc/locks', 'latin1'))?.[1];
  } catch {
    /* no such list here */
  }
  return pid === undefined ? 'another process' : `process ${pid}`;
}

function isFileError(error: unknown): boolean {
  const code = codeOf(error) ?? '';
  return code.startsWith('SQLITE_') || (error instanceof Error && 'errno' in error);
}
