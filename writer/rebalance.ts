/**
 * Evens out how much the nodes hold: a node that was added gets its share of the files that were there before it.
 *
 * Files' shares move as by a drain, one index of a file at a time, from the node that holds most to the one that holds
 * least, for as long as that brings the two nearer. What does not lie on one of these is not touched: of n nodes with
 * equal loads a new one gets 1/(n + 1) of everything, and that is all that moves.
 */
import { listFiles } from '../cluster/files.js';
import { presentNodes, purposeOf, readMap } from '../cluster/membership.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { TartanError } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { emptyMoveReport, moveShares, sumOfMoves, type MoveOptions, type MoveReport, type Share } from './mover.js';
import { Shares, shareBytes } from './shares.js';

export interface RebalanceOptions extends MoveOptions {
  /** Only to this node. Default: among all. */
  readonly to?: string;
}

/** Bytes that a node holds, estimated from the files' lengths. */
export interface Balance {
  readonly id: string;
  readonly before: number;
  readonly after: number;
}

export interface RebalanceReport extends MoveReport {
  readonly nodes: readonly Balance[];
}

/**
 * Files that somebody writes keep their nodes; another run takes them when they are closed. May be interrupted and
 * called again.
 *
 * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT: that node takes nothing · ERR_MAP_UNAVAILABLE
 */
export async function rebalance(
  context: ClientContext,
  takeOver: (fileId: number) => Promise<void>,
  options: RebalanceOptions = {},
): Promise<RebalanceReport> {
  const { store } = context,
    { to, ...settings } = options;
  const look = async (): Promise<{ map: ClusterMap; files: FileRecord[]; present: Set<string> }> => {
    const [map, files, present] = await Promise.all([readMap(store), listFiles(store), presentNodes(store)]);
    return { map, files, present };
  };
  const { map, files, present } = await look();
  checkTarget(map, to);
  const before = new Shares(map, present, files),
    rounds = roundsOf(plan(map, present, files, to)),
    total = emptyMoveReport();
  for (const round of rounds) {
    if (settings.signal?.aborted === true) break;
    const report = await moveShares(context, round, takeOver, {
      ...settings,
      onProgress: (now) => {
        options.onProgress?.(sumOfMoves(total, now));
      },
    });
    const { waiting, failed } = total;
    Object.assign(total, sumOfMoves(total, report), {
      waiting: [...waiting, ...report.waiting],
      failed: [...failed, ...report.failed],
    });
  }
  const now = await look(),
    after = new Shares(now.map, now.present, now.files);
  return { ...total, nodes: now.map.nodes.map(({ id }) => ({ id, before: before.of(id), after: after.of(id) })) };
}

/**
 * Which shares to move. Pure.
 *
 * @param to  the only node that gets any; undefined: all may
 */
export function plan(
  map: ClusterMap,
  present: ReadonlySet<string>,
  files: readonly FileRecord[],
  to?: string,
): Share[] {
  const held = new Shares(map, present, files),
    records = new Map(files.map((file) => [file.id, file])),
    moves: Share[] = [];
  const members = map.nodes
    .filter((node) => node.state === 'up' && present.has(node.id) && purposeOf(node) === 'member')
    .map(({ id }) => id);
  const take = (move: Share): void => {
    held.move(move.file, move.file.nodes[move.index]!, move.to);
    moves.push(move);
    const nodes = move.file.nodes.map((id, index) => (index === move.index ? move.to : id));
    records.set(move.file.id, { ...move.file, nodes });
  };
  // What was begun is finished first.
  for (const file of files)
    for (const { index, to: target } of file.moves ?? [])
      if (members.includes(target) && (to === undefined || to === target))
        take({ file: records.get(file.id)!, index, to: target });
  const most = files.length * map.nodes.length;
  for (
    let move = best(held, members, records.values(), to);
    move !== undefined && moves.length < most;
    move = best(held, members, records.values(), to)
  )
    take(move);
  return moves;
}

/** From the fullest node that has something to give to the emptiest: what brings them nearest. */
function best(
  held: Shares,
  members: readonly string[],
  files: Iterable<FileRecord>,
  to: string | undefined,
): Share | undefined {
  const all = [...files];
  const ascending = [...members].sort((a, b) => held.of(a) - held.of(b));
  for (const target of to === undefined ? ascending : ascending.filter((id) => id === to)) {
    for (const from of [...ascending].reverse()) {
      const gap = held.of(from) - held.of(target);
      if (gap <= 0) break;
      let chosen: Share | undefined,
        left = gap;
      for (const file of all) {
        const bytes = shareBytes(file),
          index = file.nodes.indexOf(from),
          rest = Math.abs(gap - 2 * bytes);
        if (bytes <= 0 || bytes >= gap || rest >= left || index < 0 || file.nodes.includes(target)) continue;
        chosen = { file, index, to: target };
        left = rest;
      }
      if (chosen !== undefined) return chosen;
    }
  }
  return undefined;
}

/** Each with at most one share of a file. */
function roundsOf(moves: readonly Share[]): Share[][] {
  const rounds: Share[][] = [],
    next = new Map<number, number>();
  for (const move of moves) {
    const round = next.get(move.file.id) ?? 0;
    (rounds[round] ??= []).push(move);
    next.set(move.file.id, round + 1);
  }
  return rounds;
}

function checkTarget(map: ClusterMap, to: string | undefined): void {
  const target = map.nodes.find(({ id }) => id === to);
  if (to === undefined) return;
  if (target === undefined)
    throw new TartanError(
      'ERR_NOT_FOUND',
      `Cannot move shares to node '${to}': the cluster has ${map.nodes.map(({ id }) => id).join(', ')}`,
    );
  if (target.state !== 'up' || purposeOf(target) !== 'member')
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot move shares to node '${to}': it ` +
        `is ${target.state !== 'up' ? 'down' : purposeOf(target) === 'spare' ? 'a spare' : 'being emptied'}`,
    );
}
