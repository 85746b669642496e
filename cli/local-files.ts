/** Files of this machine, as `put` reads them, and what the operating system says about them. */
import { constants, type BigIntStats } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { getSystemErrorMap } from 'node:util';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';

const READ_BYTES = 1 << 20;

/** What is stored: opened once, so that what happens to its name meanwhile does not matter. */
export class Source {
  private constructor(
    private readonly path: string,
    private readonly handle: FileHandle | undefined,
    private readonly before: BigIntStats | undefined,
  ) {}

  /**
   * @param path  '-': standard input
   * @throws {TartanError} ERR_NOT_FOUND, ERR_IS_DIRECTORY, ERR_LOCAL_FILE
   */
  static async open(path: string): Promise<Source> {
    if (path === '-') return new Source(path, undefined, undefined);
    let handle: FileHandle | undefined;
    try {
      handle = await open(path, constants.O_RDONLY | constants.O_NOCTTY);
      const found = await handle.stat({ bigint: true });
      if (found.isDirectory())
        throw new TartanError('ERR_IS_DIRECTORY', `Cannot store ${path}: it is a directory, expected a file`);
      return new Source(path, handle, found);
    } catch (error) {
      await handle?.close();
      if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR')
        throw new TartanError('ERR_NOT_FOUND', `Cannot store ${path}: there is no such file`, { cause: error });
      throw localError(`Cannot store ${path}`, error);
    }
  }

  /** 0 when that isn't known. */
  get bytes(): number {
    return this.before?.isFile() === true ? Number(this.before.size) : 0;
  }

  stream(): Readable {
    return this.handle?.createReadStream({ highWaterMark: READ_BYTES, autoClose: false }) ?? process.stdin;
  }

  /**
   * Whether what was read is one state of the file: nobody wrote to it meanwhile.
   *
   * @param read  bytes
   * @throws {TartanError} ERR_CHANGED
   */
  async check(read: number): Promise<void> {
    const { before, handle, path } = this;
    if (handle === undefined || before?.isFile() !== true) return;
    const after = await handle.stat({ bigint: true });
    if (after.size === before.size && after.mtimeNs === before.mtimeNs && BigInt(read) === after.size) return;
    // Files of /proc and the like have no size, and are made as they are read.
    if (before.size === 0n && after.size === 0n) return;
    throw new TartanError(
      'ERR_CHANGED',
      `Cannot store ${path}: it was written to while it was read (${before.size} bytes then, ${after.size} now); ` +
        'store a copy of it, or what it has at one moment by way of standard input',
    );
  }

  async close(): Promise<void> {
    await this.handle?.close();
  }
}

/**
 * The operating system's answer in words: ENOSPC is "no space left on device". Other errors are themselves.
 *
 * @param attempt  "Cannot store a.bin"
 */
export function localError(attempt: string, error: unknown): unknown {
  if (error instanceof TartanError || !isOperating(error) || !('errno' in error)) return error;
  return new TartanError('ERR_LOCAL_FILE', `${attempt}: ${systemReason(error)}`, { cause: error });
}

/** "permission denied (EACCES)" */
export function systemReason(error: Error & { readonly code: string; readonly errno?: unknown }): string {
  const words = getSystemErrorMap().get(Number(error.errno))?.[1];
  return words === undefined ? error.message : `${words} (${error.code})`;
}
