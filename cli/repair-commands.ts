/** `tartan rebuild` and `tartan scrub`: what nodes lack, or hold damaged, restored from the other units. */
import { parseCode } from '../erasure/code/index.js';
import { openClusterStore } from '../cluster/open-store.js';
import { RepairHold } from '../cluster/repair-hold.js';
import { listFiles } from '../cluster/files.js';
import { TartanError, codeOf } from '../wire/errors.js';
import type { Client, RebuildReport } from '../writer/index.js';
import { withClient, type ClientOptions } from './file-commands.js';
import { interruptible } from './interruption.js';
import { ProgressBar } from './progress-bar.js';
import { formatBytes, table } from './quantities.js';

export interface RepairOptions extends ClientOptions {
  /** Files; none: all. */
  readonly names: readonly string[];
  readonly verify: boolean;
  readonly bytesPerSecond: number | undefined;
  /** Prints no result. */
  readonly quiet?: boolean;
}

/**
 * @throws {TartanError} ERR_TOO_MANY_LOST when something could not be restored; the others are done then. ERR_IN_USE
 *   while another rebuilds or scrubs
 */
export async function repair(options: RepairOptions): Promise<void> {
  const what = options.verify ? 'Scrubbing' : 'Rebuilding';
  let outcome = 'nothing was looked at';
  await interruptible(
    () => `${what} was interrupted: ${outcome}`,
    (signal) =>
      withClient(
        options,
        (client) =>
          repairWith(client, options, signal, (done, files) => {
            outcome = `${done} of ${files} files were done; what was restored stays, and the same command goes on`;
          }),
        signal,
      ),
  );
}

async function repairWith(
  client: Client,
  options: RepairOptions,
  signal: AbortSignal,
  onFile: (done: number, files: number) => void,
): Promise<void> {
  const reports: RebuildReport[] = [];
  const store = await openClusterStore(options.state.cluster);
  // By default also those that have no name yet: they need what their nodes lack as much as any.
  const files = await (options.names.length > 0
    ? Promise.all(options.names.map((name) => client.stat(name)))
    : listFiles(store)
  ).catch(async (error: unknown) => {
    await store.close();
    throw error;
  });
  const stripesOf = files.map(({ code, unitBytes, length }) => Math.ceil(length / (parseCode(code).k * unitBytes)));
  const hold = await RepairHold.take(
    store,
    options.verify ? 'scrub' : 'rebuild',
    files.length,
    stripesOf.reduce((a, b) => a + b, 0),
  ).catch(async (error: unknown) => {
    await store.close();
    throw error;
  });
  try {
    for (const [index, { id, name, length }] of files.entries()) {
      signal.throwIfAborted();
      onFile(index, files.length);
      const before = stripesOf.slice(0, index).reduce((a, b) => a + b, 0);
      const bar = new ProgressBar(`${options.verify ? 'scrub' : 'rebuild'} ${name}`, length);
      const settings = {
        signal,
        ...(options.bytesPerSecond !== undefined && { bytesPerSecond: options.bytesPerSecond }),
        onProgress: ({ stripesDone, stripes, bytesRestored }: RebuildReport) => {
          bar.update(stripes === 0 ? 0 : (stripesDone / stripes) * length, '');
          hold.tell({
            filesDone: index,
            stripesDone: before + stripesDone,
            bytesRestored: sum(reports, (each) => each.bytesRestored) + bytesRestored,
          });
        },
      };
      try {
        reports.push(await (options.verify ? client.scrub(id, settings) : client.rebuild(id, settings)));
      } catch (error) {
        // It was removed, or its writer gave it up, meanwhile.
        if (codeOf(error) !== 'ERR_NOT_FOUND' || options.names.length > 0) throw error;
      } finally {
        bar.finish();
      }
    }
    signal.throwIfAborted();
  } finally {
    await hold.release();
    await store.close();
  }
  if (options.json && options.quiet !== true) process.stdout.write(`${JSON.stringify(reports)}\n`);
  else if (options.quiet !== true && reports.length > 0)
    process.stdout.write(`${table([HEAD, ...reports.map(row)])}\n`);
  const down = [...new Set(reports.flatMap(({ nodesDown }) => nodesDown))];
  if (down.length > 0 && options.quiet !== true)
    process.stderr.write(`not looked at, for they are down: ${down.join(' ')}\n`);
  const lost = sum(reports, (each) => each.stripesLost),
    failed = sum(reports, (each) => each.unitsFailed + each.parityMismatches - each.mismatchesRepaired);
  if (lost + failed > 0)
    throw new TartanError(
      'ERR_TOO_MANY_LOST',
      `Cannot restore everything: ${lost} stripes have fewer units than they need, ${failed} units could not ` +
        'be restored now',
    );
}

/**
 * Until SIGINT, SIGTERM or SIGHUP; a line for each file in which something was found, and the sums at the end.
 * @throws {TartanError} ERR_ARGUMENT with names
 */
export async function scrubContinuously(options: RepairOptions): Promise<void> {
  if (options.names.length > 0)
    throw new TartanError('ERR_ARGUMENT', 'Cannot scrub continuously by name: it goes over all files');
  await withClient(options, async (client) => {
    const stopper = new AbortController(),
      stop = (): void => {
        stopper.abort();
      };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, stop);
    const sum = await client.patrol({
      ...(options.bytesPerSecond !== undefined && { bytesPerSecond: options.bytesPerSecond }),
      signal: stopper.signal,
      onFile: (each) => {
        if (each.unitsDamaged + each.unitsMissing + each.parityMismatches + each.stripesLost > 0)
          process.stderr.write(`${table([row(each)])}\n`);
      },
    });
    process.stdout.write(
      options.json
        ? `${JSON.stringify(sum)}\n`
        : `${sum.passes} passes, ${sum.unitsChecked} units ` +
            `checked, ${sum.unitsDamaged + sum.unitsMissing + sum.parityMismatches} found damaged, missing or ` +
            `unfit, ${sum.unitsRestored} restored, ${sum.unitsFailed} not, ${sum.stripesLost} stripes lost\n`,
    );
  });
}

const HEAD = ['NAME', 'STRIPES', 'CHECKED', 'MISSING', 'DAMAGED', 'RESTORED', 'BYTES', 'LOST'];

function row(each: RebuildReport): string[] {
  return [
    each.name,
    String(each.stripesDone),
    String(each.unitsChecked),
    String(each.unitsMissing),
    String(each.unitsDamaged),
    String(each.unitsRestored),
    formatBytes(each.bytesRestored),
    String(each.stripesLost),
  ];
}

function sum(reports: readonly RebuildReport[], of: (report: RebuildReport) => number): number {
  return reports.reduce((total, each) => total + of(each), 0);
}
