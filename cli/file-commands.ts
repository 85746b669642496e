/** `tartan put`, `get`, `ls`, `stat` and `rm`: files in and out, through the writer library. */
import { constants, lstatSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { parseCode } from '../erasure/code/index.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { Client, CreateOptions, FileWriter } from '../writer/index.js';
import { connect } from '../writer/index.js';
import { interruptible, orAborted } from './interruption.js';
import { Source, localError } from './local-files.js';
import { PartialFile } from './partial-file.js';
import { ProgressBar } from './progress-bar.js';
import { formatBytes, formatRate, parseBytes, printable, table } from './quantities.js';
import { describeParity } from './wording.js';
import type { StateDirectory } from './state-directory.js';

export interface ClientOptions {
  readonly state: StateDirectory;
  readonly json: boolean;
  readonly transport?: 'auto' | 'tcp' | 'shm' | undefined;
  readonly device?: string | undefined;
  readonly ringMemoryBytes?: number | undefined;
  readonly parity?: 'auto' | 'host' | undefined;
  readonly secret?: string | undefined;
}

/**
 * Runs `action` with a connection to the cluster that runs in `options.state`.
 * @param signal  gives up connecting; the action has to heed it itself
 */
export async function withClient<T>(
  options: ClientOptions,
  action: (client: Client) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  // By default what the cluster here was started with: all of it must use the same kind of device.
  const running = options.state.requireRunning();
  const device = options.device ?? running.find((each) => each.device !== undefined)?.device;
  const { transport, ringMemoryBytes, parity, secret } = options;
  const connecting = connect({
    cluster: options.state.cluster,
    name: `tartan-${process.pid}`,
    ...(transport && { transport }),
    ...(ringMemoryBytes !== undefined && { ringMemoryBytes }),
    ...(parity && { parity }),
    ...(device !== undefined && { device }),
    ...(secret !== undefined && { secret }),
  });
  const client = await (signal === undefined ? connecting : orAborted(connecting, signal));
  try {
    return await action(client);
  } finally {
    await client.close();
  }
}

export interface PutOptions extends ClientOptions {
  readonly code: string;
  readonly unit: string;
  /** A file of that name goes in the moment in which this one is complete. */
  readonly force: boolean;
  /** To the end of a file that is there; one that is made is there at once, and grows. */
  readonly append: boolean;
}

/**
 * Stores a local file, or standard input ('-'). It appears under its name when it is complete; of a put that fails
 * nothing is left, but for what `append` has added.
 */
export async function put(file: string, name: string | undefined, options: PutOptions): Promise<void> {
  const target = name ?? (file === '-' ? undefined : basename(file));
  if (target === undefined)
    throw new TartanError('ERR_ARGUMENT', 'Cannot store standard input without a NAME: `tartan put - NAME`');
  if (options.append && options.force)
    throw new TartanError('ERR_ARGUMENT', `Cannot store '${target}': --append adds to a file, --force replaces it`);
  const shape = { code: parseCode(options.code).name, unitBytes: parseBytes(options.unit, '--unit') };
  const transfer = new Put(target, options);
  await interruptible(
    () => `Storing '${target}' was interrupted: ${transfer.outcome}`,
    async (signal) => {
      const source = await orAborted(Source.open(file), signal);
      try {
        await withClient(options, (client) => transfer.run(client, source, shape, signal), signal);
      } finally {
        await source.close();
      }
    },
  );
}

/** Resolves when a writer that has failed has cleaned up. */
function closed(writer: FileWriter): Promise<void> {
  return new Promise((resolve) => {
    if (writer.closed) resolve();
    else writer.once('close', resolve);
  });
}

class Put {
  outcome = 'nothing was stored';

  constructor(
    private readonly target: string,
    private readonly options: PutOptions,
  ) {}

  async run(
    client: Client,
    source: Source,
    shape: { readonly code: string; readonly unitBytes: number },
    signal: AbortSignal,
  ): Promise<void> {
    const { target, options } = this;
    const writer = await this.open(client, shape);
    // It is read from the pipeline; what comes after that is no news.
    writer.on('error', () => {});
    const bar = new ProgressBar(target, source.bytes);
    let modeChanges = 0;
    writer.on('mode', () => {
      modeChanges++;
    });
    const ticking = setInterval(() => {
      bar.update(writer.progress.acknowledgedBytes - start, describeParity(writer.parityMode));
    }, 50);
    const started = performance.now(),
      start = writer.progress.acknowledgedBytes;
    let read = 0;
    try {
      await pipeline(
        source.stream(),
        async function* (chunks: AsyncIterable<Buffer>) {
          for await (const chunk of chunks) {
            read += chunk.length;
            yield chunk;
          }
          // Before the end is written, and with it the name.
          await source.check(read);
        },
        writer,
        { signal },
      );
    } catch (error) {
      await closed(writer);
      const stored = writer.progress.acknowledgedBytes;
      if (options.append) this.outcome = stored === start ? 'nothing was added' : `${stored - start} bytes were added`;
      else if (!(await this.isThere(client, writer.fileId))) throw this.explained(error);
      // It was complete, and named, when the answer was lost.
      if (options.append) throw this.explained(error);
    } finally {
      clearInterval(ticking);
      bar.finish();
    }
    const ms = performance.now() - started;
    const stored = writer.progress.acknowledgedBytes - start;
    if (options.json)
      print({
        name: target,
        bytes: stored,
        code: shape.code,
        unitBytes: shape.unitBytes,
        ms: Math.round(ms),
        parity: writer.parityMode,
        modeChanges,
        stripesRedriven: writer.progress.stripesRedriven,
      });
    else
      process.stdout.write(
        `${printable(target)}: ${formatBytes(stored)} ${start > 0 ? 'added' : `as ${shape.code}`}, ` +
          `${formatRate(stored, ms)}, ${describeParity(writer.parityMode)}\n`,
      );
  }

  private async open(client: Client, shape: CreateOptions): Promise<FileWriter> {
    const { target, options } = this;
    if (!options.append) {
      return client
        .create(target, { ...shape, appears: 'complete', replace: options.force })
        .catch((error: unknown) => {
          throw this.named(error);
        });
    }
    try {
      return await client.append(target);
    } catch (error) {
      if (codeOf(error) !== 'ERR_NOT_FOUND') throw error;
      return client.create(target, shape);
    }
  }

  private async isThere(client: Client, fileId: number): Promise<boolean> {
    try {
      return (await client.stat(this.target)).id === fileId;
    } catch (error) {
      if (!isOperating(error)) throw error;
      if (codeOf(error) !== 'ERR_NOT_FOUND')
        this.outcome = `whether it was stored is not known; \`tartan stat\` tells when the cluster store answers`;
      return false;
    }
  }

  private named(error: unknown): unknown {
    return codeOf(error) === 'ERR_EXISTS'
      ? new TartanError(
          'ERR_EXISTS',
          `Cannot store '${this.target}': there is a file of that name; --force replaces it`,
          {
            cause: error,
          },
        )
      : error;
  }

  /** What went wrong, and what is there now. */
  private explained(error: unknown): unknown {
    const known = localError(`Cannot store '${this.target}'`, this.named(error));
    if (!(known instanceof TartanError)) return known;
    return new TartanError(known.code, `${known.message}; ${this.outcome}`, { cause: error });
  }
}

/**
 * Copies a stored file to a local one, which appears when it is complete, or to standard output ('-'), a device or a
 * pipe, which get it piece by piece.
 */
export async function get(
  name: string,
  file: string | undefined,
  force: boolean,
  options: ClientOptions,
): Promise<void> {
  const target = file ?? basename(name);
  const isStream = target === '-' || isSpecial(target, name, force);
  const shown = target === '-' ? 'standard output' : target;
  let bytes = 0;
  const outcome = (): string => (isStream ? `${bytes} bytes of it were written` : 'nothing was written');
  await interruptible(
    () => `Writing '${name}' to ${shown} was interrupted: ${outcome()}`,
    (signal) =>
      withClient(
        options,
        async (client) => {
          const reader = await client.open(name);
          let partial: PartialFile | undefined;
          const bar = new ProgressBar(name, reader.length);
          const started = performance.now();
          try {
            partial = isStream ? undefined : new PartialFile(target, force);
            const output: Writable =
              partial?.stream ?? (target === '-' ? process.stdout : await openSpecial(target, signal));
            await pipeline(
              reader.stream(),
              async function* (chunks: AsyncIterable<Buffer>) {
                for await (const chunk of chunks) {
                  yield chunk;
                  bytes += chunk.length;
                  bar.update(bytes, reader.progress.degradedStripes > 0 ? 'degraded' : '');
                }
              },
              output,
              { end: target !== '-', signal },
            );
            partial?.keep();
          } catch (error) {
            if (target === '-' && codeOf(error) === 'EPIPE') throw error; // a reader that has seen enough
            const known = localError(`Cannot write '${name}' to ${shown}`, error);
            if (!(known instanceof TartanError)) throw known;
            throw new TartanError(known.code, `${known.message}; ${outcome()}`, { cause: error });
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
        },
        signal,
      ),
  );
}

/** Waits for a pipe's reader; makes nothing when it is gone. */
async function openSpecial(path: string, signal: AbortSignal): Promise<Writable> {
  return (await orAborted(open(path, constants.O_WRONLY | constants.O_NOCTTY), signal)).createWriteStream();
}

/**
 * A device or a pipe is written to; it is nothing to replace.
 * @throws {TartanError} ERR_EXISTS, ERR_IS_DIRECTORY, ERR_LOCAL_FILE: what can't be a target, before anything is read
 */
function isSpecial(target: string, name: string, force: boolean): boolean {
  const attempt = `Cannot write '${name}' to ${target}`;
  let own, found;
  try {
    own = lstatSync(target, { throwIfNoEntry: false });
    found = own && statSync(target, { throwIfNoEntry: false });
  } catch (error) {
    throw localError(attempt, error);
  }
  if (own === undefined) return false;
  if (found?.isDirectory() === true)
    throw new TartanError('ERR_IS_DIRECTORY', `${attempt}: it is a directory; name a file`);
  const isStream = found?.isCharacterDevice() === true || found?.isFIFO() === true;
  if (!isStream && !force)
    throw new TartanError(
      'ERR_EXISTS',
      `${attempt}: it ${found === undefined ? 'is a link to nothing' : 'exists'}; --force ` +
        (found?.isBlockDevice() === true ? 'overwrites it' : 'replaces it'),
    );
  if (found?.isSocket() === true) throw new TartanError('ERR_LOCAL_FILE', `${attempt}: it is a socket`);
  return isStream || found?.isBlockDevice() === true;
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

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
