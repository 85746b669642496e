/** `tartan node drain` and `node rebalance`: files' shares go from nodes to others. */
import { listFiles } from '../cluster/files.js';
import { purposeOf, readMap, setNodePurpose } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { RepairHold } from '../cluster/repair-hold.js';
import type { FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import type { Client, MoveOptions, MoveReport } from '../writer/index.js';
import { withClient, type ClientOptions } from './file-commands.js';
import { interruptible } from './interruption.js';
import { ProgressBar } from './progress-bar.js';
import { formatBytes, table } from './quantities.js';

export interface MoveCommandOptions {
  readonly to: string | undefined;
  readonly bytesPerSecond: number | undefined;
}

/**
 * Empties a node; SIGINT and its kin end it after the stripes under way, and the same command goes on.
 *
 * @throws {TartanError} ERR_NOT_FOUND, ERR_NOT_ENOUGH_NODES, ERR_WOULD_LOSE; ERR_IN_USE while another repairs
 */
export async function drainNodeFor(
  id: string,
  { to, bytesPerSecond }: MoveCommandOptions,
  options: ClientOptions,
): Promise<void> {
  await moving(
    options,
    'drain',
    `drain ${id}`,
    bytesPerSecond,
    (file) => file.nodes.includes(id),
    async (client, settings) => {
      const report = await client.drain(id, {
        ...settings,
        ...(to !== undefined && { to }),
        onWaiting: (names) => {
          process.stderr.write(`waiting until ${named(names)} ${names.length === 1 ? 'is' : 'are'} closed\n`);
        },
      });
      settings.signal?.throwIfAborted();
      if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`);
      else
        process.stdout.write(
          `${id} holds nothing any more: ${report.filesMoved} file` +
            `${report.filesMoved === 1 ? '' : 's'} moved, ${formatBytes(report.bytesRestored)}; ` +
            `\`tartan node remove ${id}\` takes it out\n`,
        );
    },
  );
}

/**
 * Evens out what nodes hold, or gives one node its share.
 *
 * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT; ERR_IN_USE while another repairs; ERR_WOULD_LOSE: of some files
 *         not every unit could be had
 */
export async function rebalanceNodes(
  { to, bytesPerSecond }: MoveCommandOptions,
  options: ClientOptions,
): Promise<void> {
  await moving(
    options,
    'rebalance',
    'rebalance',
    bytesPerSecond,
    () => true,
    async (client, settings) => {
      const report = await client.rebalance({ ...settings, ...(to !== undefined && { to }) });
      settings.signal?.throwIfAborted();
      if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`);
      else
        process.stdout.write(
          table([
            ['ID', 'BEFORE', 'AFTER'],
            ...[...report.nodes]
              .sort((a, b) => a.id.localeCompare(b.id, 'en', { numeric: true }))
              .map((each) => [each.id, formatBytes(Math.round(each.before)), formatBytes(Math.round(each.after))]),
          ]) +
            `\n${report.filesMoved} share${report.filesMoved === 1 ? '' : 's'} moved, ` +
            `${formatBytes(report.bytesRestored)}\n`,
        );
      if (report.waiting.length > 0)
        process.stderr.write(`left where they are, for they are being written: ${named(report.waiting)}\n`);
      if (report.failed.length > 0)
        throw new TartanError(
          'ERR_WOULD_LOSE',
          `Cannot move a share of ${report.failed
            .map(({ name, why }) => `'${name}': ${why}`)
            .slice(0, 3)
            .join('; ')}`,
        );
    },
  );
}

/** A node that was being emptied, or is empty, is used again. @throws {TartanError} ERR_NOT_FOUND */
export async function cancelDrain(id: string, options: ClientOptions): Promise<void> {
  options.state.requireRunning();
  const store = await openClusterStore(options.state.cluster);
  try {
    const node = (await readMap(store)).nodes.find((each) => each.id === id);
    if (node === undefined || purposeOf(node) === 'leaving') await setNodePurpose(store, id, 'member');
  } finally {
    await store.close();
  }
  process.stdout.write(`${id} is used again\n`);
}

/** With the hold on repairs, a bar, and an end when it is asked for. */
async function moving(
  options: ClientOptions,
  what: 'drain' | 'rebalance',
  title: string,
  bytesPerSecond: number | undefined,
  concerns: (file: FileRecord) => boolean,
  move: (client: Client, settings: MoveOptions) => Promise<void>,
): Promise<void> {
  let moved = 0;
  await interruptible(
    () => `The ${what} was interrupted: ${moved} shares have moved, and stay; the same command goes on`,
    (signal) =>
      withClient(
        options,
        async (client) => {
          const store = await openClusterStore(options.state.cluster);
          let hold: RepairHold | undefined, bar: ProgressBar | undefined;
          try {
            const files = (await listFiles(store)).filter(concerns),
              stripes = stripesIn(files);
            hold = await RepairHold.take(store, what, files.length, stripes);
            bar = new ProgressBar(
              title,
              files.reduce((sum, { length }) => sum + length, 0),
            );
            const onProgress = (now: MoveReport): void => {
              bar!.update(stripes === 0 ? 0 : Math.min(1, now.stripesDone / stripes), '');
              moved = now.filesMoved;
              hold!.tell({
                filesDone: now.filesMoved,
                stripesDone: Math.min(stripes, now.stripesDone),
                bytesRestored: now.bytesRestored,
              });
            };
            await move(client, {
              ...(bytesPerSecond !== undefined && { bytesPerSecond }),
              signal,
              onProgress,
            });
          } finally {
            bar?.finish();
            await hold?.release();
            await store.close();
          }
        },
        signal,
      ),
  );
}

function named(names: readonly string[]): string {
  return `${names
    .slice(0, 3)
    .map((name) => `'${name}'`)
    .join(', ')}${names.length > 3 ? ` and ${names.length - 3} more` : ''}`;
}

/** Committed stripes of these files. */
function stripesIn(files: readonly FileRecord[]): number {
  return files.reduce(
    (sum, { code, unitBytes, length }) => sum + Math.ceil(length / (parseCode(code).k * unitBytes)),
    0,
  );
}
