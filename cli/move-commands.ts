/** `tartan node drain`: files' shares go from one node to others. */
import { listFiles } from '../cluster/files.js';
import { purposeOf, readMap, setNodePurpose } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { RepairHold } from '../cluster/repair-hold.js';
import type { FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import type { MoveReport } from '../writer/index.js';
import { withClient, type ClientOptions } from './file-commands.js';
import { ProgressBar } from './progress-bar.js';
import { formatBytes } from './quantities.js';

export interface DrainCommandOptions { readonly to: string | undefined; readonly bytesPerSecond: number | undefined }

/**
 * Empties a node; SIGINT and SIGTERM end it after the file under way, and the same command goes on.
 *
 * @throws {TartanError} ERR_NOT_FOUND, ERR_NOT_ENOUGH_NODES, ERR_WOULD_LOSE; ERR_IN_USE while another repairs
 */
export async function drainNodeFor(id: string, { to, bytesPerSecond }: DrainCommandOptions, options: ClientOptions): Promise<void> {
  await withClient(options, async (client) => {
    const store = await openClusterStore(options.state.cluster);
    const stopper = new AbortController(), stop = (): void => { stopper.abort(); };
    let hold: RepairHold | undefined;
    process.once('SIGINT', stop);
    process.once('SIGTERM', stop);
    try {
      const files = (await listFiles(store)).filter((file) => file.nodes.includes(id)), stripes = stripesIn(files);
      hold = await RepairHold.take(store, 'drain', files.length, stripes);
      const bar = new ProgressBar(`drain ${id}`, files.reduce((sum, { length }) => sum + length, 0));
      const onProgress = (now: MoveReport): void => {
        bar.update(stripes === 0 ? 0 : Math.min(1, now.stripesDone / stripes), '');
        hold!.tell({ filesDone: now.filesMoved, stripesDone: Math.min(stripes, now.stripesDone), bytesRestored: now.bytesRestored });
      };
      const report = await client.drain(id, {
        ...(to !== undefined && { to }), ...(bytesPerSecond !== undefined && { bytesPerSecond }), signal: stopper.signal, onProgress,
        onWaiting: (names) => { process.stderr.write(`waiting until ${names.slice(0, 3).map((name) => `'${name}'`).join(', ')}${names.length > 3 ? ` and ${names.length - 3} more` : ''} ${names.length === 1 ? 'is' : 'are'} closed\n`); },
      }).finally(() => { bar.finish(); });
      if (stopper.signal.aborted) throw new TartanError('ERR_CLOSED', `Emptying node ${id} was ended: ${report.filesMoved} of ${report.files} files have moved; the same command goes on`);
      if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`);
      else process.stdout.write(`${id} holds nothing any more: ${report.filesMoved} file${report.filesMoved === 1 ? '' : 's'} moved, ${formatBytes(report.bytesRestored)}; \`tartan node remove ${id}\` takes it out\n`);
    } finally {
      await hold?.release();
      await store.close();
    }
  });
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

/** Committed stripes of these files. */
export function stripesIn(files: readonly FileRecord[]): number {
  return files.reduce((sum, { code, unitBytes, length }) => sum + Math.ceil(length / (parseCode(code).k * unitBytes)), 0);
}
