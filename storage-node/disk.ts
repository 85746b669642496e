/**
 * A disk as the unit store sees it: positioned reads and writes of whole blocks, and a sync. Two implementations: a
 * file or block device (here), and memory (memory-disk.ts) for the simulation and its faults.
 *
 * Invariants: lengths and positions are multiples of 4096; a write is on disk for good only after a later sync()
 * succeeded; the memory given stays untouched by the caller until the promise settles.
 */
import { constants, type Stats } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { codeOf, TartanError } from '../wire/errors.js';

export const BLOCK_BYTES = 4096;

export interface Disk {
  /** Bytes, a multiple of 4096. */
  readonly size: number;
  /** Reads see what the device holds, and not a cache that may show what a failed sync has dropped. Default false. */
  readonly direct?: boolean;
  /** Fills `into`; both multiples of 4096. @throws {TartanError} ERR_DISK */
  read(into: Uint8Array, position: number): Promise<void>;
  /** Writes the views one after the other from `position` on. @throws {TartanError} ERR_DISK, ERR_DISK_FULL */
  writev(views: readonly Uint8Array[], position: number): Promise<void>;
  /** Makes every write that has resolved durable. @throws {TartanError} ERR_DISK */
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface FileDiskOptions {
  /** Creates a missing file of this many bytes (rounded down to blocks), sparse. */
  readonly create?: boolean;
  readonly sizeBytes?: number;
  /**
   * One block of page-aligned memory, if the caller's memory is page-aligned: then O_DIRECT is tried, and used when a
   * read into this block succeeds. Without it the page cache is used.
   */
  readonly alignedBlock?: Uint8Array;
}

/** One system call takes at most 1024 views; beyond this many bytes a write is split to run in parallel. */
const VIEWS_PER_CALL = 512;
const BYTES_PER_CALL = 4 << 20;

/**
 * Opens a file or block device as a disk.
 *
 * @throws {TartanError} ERR_NOT_FOUND without `create`; ERR_IS_DIRECTORY; ERR_ARGUMENT when too small or of no size;
 *         ERR_DISK
 */
export async function openFileDisk(
  path: string,
  options: FileDiskOptions = {},
): Promise<Disk & { readonly direct: boolean }> {
  const flags = constants.O_RDWR | (options.create ? constants.O_CREAT : 0);
  const handle = await openHandle(path, flags);
  let size: number;
  try {
    size = await sizeOf(handle, path, options.create ? options.sizeBytes : undefined);
  } catch (error) {
    await handle.close();
    throw error;
  }
  const direct = options.alignedBlock === undefined ? undefined : await openDirect(path, options.alignedBlock);
  if (direct === undefined) return new FileDisk(handle, path, size, false);
  await handle.close();
  return new FileDisk(direct, path, size, true);
}

class FileDisk implements Disk {
  constructor(
    private readonly handle: FileHandle,
    private readonly path: string,
    readonly size: number,
    readonly direct: boolean,
  ) {}

  async read(into: Uint8Array, position: number): Promise<void> {
    let done = 0;
    while (done < into.length) {
      const { bytesRead } = await this.handle
        .read(into, done, into.length - done, position + done)
        .catch((error: unknown) => {
          throw this.failed('read', position, error);
        });
      if (bytesRead === 0)
        throw new TartanError(
          'ERR_DISK',
          `Cannot read ${into.length} bytes at ${position} of '${this.path}': it ends after ${done}`,
        );
      done += bytesRead;
    }
  }

  async writev(views: readonly Uint8Array[], position: number): Promise<void> {
    const calls: Promise<void>[] = [];
    let from = 0,
      bytes = 0,
      at = position;
    for (let i = 0; i < views.length; i++) {
      bytes += views[i]!.length;
      if (bytes < BYTES_PER_CALL && i + 1 - from < VIEWS_PER_CALL && i + 1 < views.length) continue;
      calls.push(this.writeAll(views.slice(from, i + 1), at, bytes));
      at += bytes;
      from = i + 1;
      bytes = 0;
    }
    // All must have settled, not only the first failure: the memory belongs to the calls until then.
    const results = await Promise.allSettled(calls);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  async sync(): Promise<void> {
    await this.handle.datasync().catch((error: unknown) => {
      throw this.failed('sync', 0, error);
    });
  }

  close(): Promise<void> {
    return this.handle.close();
  }

  private async writeAll(views: Uint8Array[], position: number, bytes: number): Promise<void> {
    let left = views.filter((view) => view.length > 0),
      done = 0;
    while (done < bytes) {
      const { bytesWritten } = await this.handle.writev(left, position + done).catch((error: unknown) => {
        throw this.failed('write', position, error);
      });
      done += bytesWritten;
      if (done < bytes) left = skip(left, bytesWritten);
    }
  }

  private failed(what: string, position: number, cause: unknown): TartanError {
    const code = codeOf(cause) === 'ENOSPC' ? 'ERR_DISK_FULL' : 'ERR_DISK';
    return new TartanError(code, `Cannot ${what} '${this.path}' at ${position}: ${messageOf(cause)}`, { cause });
  }
}

/** The views without their first `bytes` bytes. */
function skip(views: readonly Uint8Array[], bytes: number): Uint8Array[] {
  const rest: Uint8Array[] = [];
  for (const view of views) {
    if (bytes >= view.length) bytes -= view.length;
    else {
      rest.push(bytes > 0 ? view.subarray(bytes) : view);
      bytes = 0;
    }
  }
  return rest;
}

async function openHandle(path: string, flags: number): Promise<FileHandle> {
  try {
    return await open(path, flags, 0o600);
  } catch (cause) {
    const code = codeOf(cause);
    if (code === 'ENOENT')
      throw new TartanError('ERR_NOT_FOUND', `Cannot open the store '${path}': there is no such file`, { cause });
    if (code === 'EISDIR')
      throw new TartanError(
        'ERR_IS_DIRECTORY',
        `Cannot open the store '${path}': it is a directory, expected a file or block device`,
        { cause },
      );
    throw new TartanError('ERR_DISK', `Cannot open the store '${path}': ${messageOf(cause)}`, { cause });
  }
}

async function sizeOf(handle: FileHandle, path: string, wanted: number | undefined): Promise<number> {
  const stat: Stats = await handle.stat();
  if (stat.isDirectory())
    throw new TartanError(
      'ERR_IS_DIRECTORY',
      `Cannot open the store '${path}': it is a directory, expected a file or block device`,
    );
  let size = stat.size;
  if (stat.isBlockDevice()) size = await sizeOfBlockDevice(handle);
  else if (size === 0 && wanted !== undefined) {
    size = Math.floor(wanted / BLOCK_BYTES) * BLOCK_BYTES;
    await handle.truncate(size);
  }
  size = Math.floor(size / BLOCK_BYTES) * BLOCK_BYTES;
  if (size === 0)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot use '${path}' as a store: it is empty, and ` +
        (wanted === undefined
          ? 'no size was given to make one'
          : `${wanted} bytes were to make one, expected ${BLOCK_BYTES} or more`),
    );
  return size;
}

/**
 * Finds the end by bisection: Node can't ask a block device for its size, but reading beyond its end returns 0 bytes.
 */
async function sizeOfBlockDevice(handle: FileHandle): Promise<number> {
  const probe = Buffer.alloc(1);
  const readable = async (block: number): Promise<boolean> =>
    (await handle.read(probe, 0, 1, block * BLOCK_BYTES)).bytesRead === 1;
  let low = 0,
    high = 1;
  while (await readable(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (await readable(middle)) low = middle;
    else high = middle;
  }
  return high * BLOCK_BYTES;
}

/** O_DIRECT is refused by some file systems at open, by others at the first read. */
async function openDirect(path: string, block: Uint8Array): Promise<FileHandle | undefined> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, constants.O_RDWR | constants.O_DIRECT);
    await handle.read(block, 0, BLOCK_BYTES, 0);
    return handle;
  } catch {
    await handle?.close();
    return undefined;
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
