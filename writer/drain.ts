/**
 * Empties a node: what it holds goes to other nodes, file by file, until no file needs it. A node that is down is
 * emptied the same way, from the other units.
 */
import { listDeleted } from '../cluster/file-states.js';
import { listFiles } from '../cluster/files.js';
import { presentNodes, purposeOf, readMap, setNodePurpose } from '../cluster/membership.js';
import { enlistSpares } from '../cluster/moves.js';
import type { FileRecord } from '../cluster/records.js';
import { sleep } from '../wire/clock.js';
import { TartanError, codeOf } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { freeLeftovers } from './leftovers.js';
import { emptyMoveReport, moveShares, sumOfMoves, type MoveOptions, type MoveReport, type Share } from './mover.js';
import { Shares } from './shares.js';

export interface DrainOptions extends MoveOptions {
  /** The node that takes it all. Default: spares, then for each file the node that holds least. */
  readonly to?: string;
  /** Called when only files are left that somebody writes; they move when they are closed. */
  readonly onWaiting?: (files: readonly string[]) => void;
}

export interface DrainReport extends MoveReport {
  readonly node: string;
  /** Files that had a share there at the beginning. */
  files: number;
}

const PAUSE_MS = 1000;

/**
 * Resolves when no file has a share on the node, or the signal has ended it. It takes no new files any more;
 * interrupted, it may be called again.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no such node · ERR_NOT_ENOUGH_NODES: a file has no node to go to ·
 *         ERR_WOULD_LOSE: not
 *   every unit could be had again elsewhere; the node keeps those shares · ERR_MAP_UNAVAILABLE
 */
export async function drainNode(
  context: ClientContext,
  id: string,
  takeOver: (fileId: number) => Promise<void>,
  options: DrainOptions = {},
): Promise<DrainReport> {
  const { store } = context,
    { to } = options;
  await checkTarget(context, id, to);
  const before = await purposeBefore(context, id),
    holds = (file: FileRecord): boolean => file.nodes.includes(id);
  // Refused before anything has happened.
  refuseStuck(id, to, (await plan(context, id, holds, to)).stuck);
  await setNodePurpose(store, id, 'leaving');
  const total = emptyMoveReport();
  try {
    return await empty(context, id, holds, takeOver, options, total);
  } catch (error) {
    // A drain that could not move anything has not happened: files may use the node as before.
    if (codeOf(error) === 'ERR_NOT_ENOUGH_NODES' && total.filesMoved === 0) await setNodePurpose(store, id, before);
    throw error;
  }
}

async function empty(
  context: ClientContext,
  id: string,
  holds: (file: FileRecord) => boolean,
  takeOver: (fileId: number) => Promise<void>,
  { to, onWaiting, ...settings }: DrainOptions,
  total: MoveReport,
): Promise<DrainReport> {
  const { store } = context;
  const files = (await listFiles(store)).filter(holds).length;
  for (;;) {
    const { shares, stuck } = await plan(context, id, holds, to);
    // What can go goes first.
    if (shares.length === 0) refuseStuck(id, to, stuck);
    if (shares.length === 0) break;
    const report = await moveShares(context, shares, takeOver, {
      ...settings,
      onProgress: (now) => {
        settings.onProgress?.(sumOfMoves(total, now));
      },
    });
    Object.assign(total, sumOfMoves(total, report));
    if (settings.signal?.aborted === true) return { ...total, node: id, files };
    if (report.filesMoved > 0) continue;
    if (report.failed.length > 0)
      throw new TartanError(
        'ERR_WOULD_LOSE',
        `Cannot empty node ${id}: ${report.failed
          .map(({ name, why }) => `'${name}': ${why}`)
          .slice(0, 3)
          .join(
            '; ',
          )}; it keeps ${report.failed.length === 1 ? 'that share' : `the shares of ${report.failed.length} files`}`,
      );
    if (report.waiting.length > 0) onWaiting?.(report.waiting);
    await sleep(context.clock, PAUSE_MS);
  }
  await enlistSpares(store);
  await freeLeftovers(
    context,
    id,
    (await Promise.all([listFiles(store), listDeleted(store)])).flat().map((file) => file.id),
  );
  return { ...total, waiting: [], failed: [], node: id, files };
}

async function purposeBefore({ store }: ClientContext, id: string): Promise<'member' | 'spare' | 'leaving'> {
  const node = (await readMap(store)).nodes.find((each) => each.id === id);
  return node === undefined ? 'member' : purposeOf(node); // whether there is such a node setNodePurpose() says
}

/** @throws {TartanError} ERR_NOT_ENOUGH_NODES when there is one */
function refuseStuck(id: string, to: string | undefined, [file]: readonly FileRecord[]): void {
  if (file === undefined) return;
  throw new TartanError(
    'ERR_NOT_ENOUGH_NODES',
    `Cannot empty node ${id}: '${file.name}' uses ${to === undefined ? 'every node that is up' : `${to} already`}; ` +
      'add a node first',
  );
}

async function checkTarget({ store }: ClientContext, id: string, to: string | undefined): Promise<void> {
  const { nodes } = await readMap(store),
    target = nodes.find((node) => node.id === to);
  if (to === undefined) return;
  if (target === undefined)
    throw new TartanError(
      'ERR_NOT_FOUND',
      `Cannot empty node ${id} to ${to}: the cluster has ${nodes.map((node) => node.id).join(', ')}`,
    );
  if (to === id || target.state !== 'up' || target.leaving === true)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot empty node ${id} to ${to}: it ` +
        `is ${to === id ? 'the same node' : target.leaving === true ? 'being emptied too' : 'down'}`,
    );
}

async function plan(
  { store }: ClientContext,
  id: string,
  holds: (file: FileRecord) => boolean,
  to: string | undefined,
): Promise<{ shares: Share[]; stuck: FileRecord[] }> {
  const [map, files, present] = await Promise.all([readMap(store), listFiles(store), presentNodes(store)]);
  const held = new Shares(map, present, files),
    shares: Share[] = [],
    stuck: FileRecord[] = [];
  for (const file of files.filter(holds)) {
    const index = file.nodes.indexOf(id),
      target = held.target(file, index, to);
    if (target === undefined) {
      stuck.push(file);
      continue;
    }
    held.move(file, id, target);
    shares.push({ file, index, to: target });
  }
  return { shares, stuck };
}
