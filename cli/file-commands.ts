/** `tartan put`, `get`, `ls`, `stat` and `rm`: files in and out, through the writer library. */
import { createReadStream, createWriteStream, existsSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { parseCode } from '../erasure/code/index.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { Client } from '../writer/index.js';
import { connect } from '../writer/index.js';
import { PartialFile } from './partial-file.js';
import { ProgressBar } from './progress-bar.js';
import { formatBytes, formatRate, parseBytes, printable, table } from './quantities.js';
import { describeParity } from './wording.js';
import type { StateDirectory } from './state-directory.js';

const READ_BYTES = 1 << 20;

export interface ClientOptions {
  readonly state: StateDirectory;
  readonly json: boolean;
  readonly transport?: 'auto' | 'tcp' | 'shm' | undefined;
  readonly device?: string | undefined;
  readonly ringMemoryBytes?: number | undefined;
  readonly parity?: 'auto' | 'host' | undefined;
  readonly secret?: string | undefined;
}

/** Runs `action` with a connection to the cluster that runs in `options.state`. */
export async function withClient<T>(options: ClientOptions, action: (client: Client) => Promise<T>): Promise<T> {
  // By default what the cluster here was started with: all of it must use the same kind of device.
  const running = options.state.requireRunning();
  const device = options.device ?? running.find((each) => each.device !== undefined)?.device;
  const { transport, ringMemoryBytes, parity, secret } = options;
  const client = await connect({
    cluster: options.state.cluster,
    name: `tartan-${process.pid}`,
    ...(transport && { transport }),
    ...(ringMemoryBytes !== undefined && { ringMemoryBytes }),
    ...(parity && { parity }),
    ...(device !== undefined && { device }),
    ...(secret !== undefined && { secret }),
  });
  try {
    return await action(client);
  } finally {
    await client.close();
  }
}

/** Stores a local file, or standard input ('-'), under a new name. A failed put leaves no file behind. */
export async function put(
  file: string,
  name: string | undefined,
  code: string,
  unit: string,
  options: ClientOptions,
): Promise<void> {
  const { input, bytes } = openInput(file);
  const target = name ?? (file === '-' ? undefined : basename(file));
  if (target === undefined)
    throw new TartanError('ERR_ARGUMENT', 'Cannot store standard input without a NAME: `tartan put - NAME`');
  const codeName = parseCode(code).name;
  const unitBytes = parseBytes(unit, '--unit');
  await withClient(options, async (client) => {
    const writer = await client.create(target, { code: codeName, unitBytes });
    const bar = new ProgressBar(target, bytes);
    let modeChanges = 0;
    writer.on('mode', () => {
      modeChanges++;
    });
    const ticking = setInterval(() => {
      bar.update(writer.progress.acknowledgedBytes, describeParity(writer.parityMode));
    }, 50);
    const started = performance.now();
    try {
      await pipeline(input, writer);
    } catch (error) {
      // What was made here, not what may have its name by now.
      await client.remove(writer.fileId).catch((other: unknown) => {
        if (!isOperating(other)) throw other; // else the first error is the one to tell
      });
      throw error;
    } finally {
      clearInterval(ticking);
      bar.finish();
    }
    const ms = performance.now() - started;
    const stored = writer.progress.acknowledgedBytes;
    if (options.json)
      print({
        name: target,
        bytes: stored,
        code: codeName,
        unitBytes,
        ms: Math.round(ms),
        parity: writer.parityMode,
        modeChanges,
        stripesRedriven: writer.progress.stripesRedriven,
      });
    else
      process.stdout.write(
        `${printable(target)}: ${formatBytes(stored)} as ${codeName}, ${formatRate(stored, ms)}, ` +
          `${describeParity(writer.parityMode)}\n`,
      );
  });
}

/** Copies a stored file to a local one, which appears when it is complete, or to standard output ('-'). */
export async function get(
  name: string,
  file: string | undefined,
  force: boolean,
  options: ClientOptions,
): Promise<void> {
  const target = file ?? basename(name);
  if (target !== '-') {
    if (existsSync(target) && statSync(target).isDirectory())
      throw new TartanError('ERR_IS_DIRECTORY', `Cannot write '${name}' to ${target}: it is a directory; name a file`);
    if (existsSync(target) && !force)
      throw new TartanError('ERR_EXISTS', `Cannot write '${name}' to ${target}: it exists; --force replaces it`);
  }
  await withClient(options, async (client) => {
    const reader = await client.open(name);
    // A device or a pipe is written to; it is nothing to replace.
    const isSpecial = target !== '-' && statSync(target, { throwIfNoEntry: false })?.isFile() === false;
    const partial = target === '-' || isSpecial ? undefined : new PartialFile(target);
    const output: Writable = partial?.stream ?? (isSpecial ? createWriteStream(target) : process.stdout);
    const bar = new ProgressBar(name, reader.length);
    const started = performance.now();
    let bytes = 0;
    try {
      await pipeline(
        reader.stream(),
        async function* (chunks: AsyncIterable<Buffer>) {
          for await (const chunk of chunks) {
            bytes += chunk.length;
            bar.update(bytes, reader.progress.degradedStripes > 0 ? 'degraded' : '');
            yield chunk;
          }
        },
        output,
        { end: target !== '-' },
      );
      partial?.keep();
    } finally {
      bar.finish();
      partial?.discard();
      await reader.close();
    }
    const ms = performance.now() - started;
    const { degradedStripes, checksumFailures } = reader.progress;
    if (target === '-') return;
    if (options.json) print({ name, file: target, bytes, ms: Math.round(ms), degradedStripes, checksumFailures });
    else
      process.stdout.write(
        `${printable(target)}: ${formatBytes(bytes)}, ${formatRate(bytes, ms)}` +
          (degradedStripes > 0 ? `, ${degradedStripes} stripes restored from parity` : '') +
          (checksumFailures > 0 ? `, ${checksumFailures} checksums failed` : '') +
          '\n',
      );
  });
}

export function list(options: ClientOptions): Promise<void> {
  return withClient(options, async (client) => {
    const files = await client.list();
    if (options.json) {
      print(files);
      return;
    }
    if (files.length > 0)
      process.stdout.write(
        table([
          ['NAME', 'BYTES', 'CODE', 'UNIT', 'STATE', 'MODIFIED'],
          ...files.map((each) => [
            each.name,
            String(each.length),
            each.code,
            formatBytes(each.unitBytes),
            each.state,
            each.modified,
          ]),
        ]) + '\n',
      );
  });
}

export function stat(name: string, options: ClientOptions): Promise<void> {
  return withClient(options, async (client) => {
    const file = await client.stat(name);
    if (options.json) {
      print(file);
      return;
    }
    process.stdout.write(
      table(Object.entries(file).map(([key, value]) => [key, Array.isArray(value) ? value.join(' ') : String(value)])) +
        '\n',
    );
  });
}

export function remove(name: string, options: ClientOptions): Promise<void> {
  return withClient(options, (client) => client.remove(name));
}

/** @returns the stream, and its length in bytes, 0 when that isn't known */
function openInput(file: string): { input: Readable; bytes: number } {
  if (file === '-') return { input: process.stdin, bytes: 0 };
  try {
    const found = statSync(file);
    if (found.isDirectory())
      throw new TartanError('ERR_IS_DIRECTORY', `Cannot store ${file}: it is a directory, expected a file`);
    return { input: createReadStream(file, { highWaterMark: READ_BYTES }), bytes: found.isFile() ? found.size : 0 };
  } catch (error) {
    if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR')
      throw new TartanError('ERR_NOT_FOUND', `Cannot store ${file}: there is no such file`, { cause: error });
    throw error;
  }
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
