/**
 * Moves files' shares from one node to another, without a moment in which a file has less redundancy than before.
 *
 *     owner there? ─no─▶ take over, close ─┐
 *          └ yes: the file waits           ▼
 *     settled files ─▶ begin (record: new node is being filled) ─▶ fill (rebuild.ts) ─▶ finish (record: it is the new
 *     node's)
 *                                                                                      └▶ the old node frees what it
 *                                                                                      holds
 *
 * Killed anywhere it leaves records that say how far it was: whoever moves the same share again goes on there. Readers
 * go on meanwhile: until the record says otherwise the old node serves them; afterwards the map's epoch sends them to
 * the new one.
 */
import { isSettled, readFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import { askOwners, beginMoves, finishMoves, MOVES_AT_ONCE, storesOf, type PlannedMove } from '../cluster/moves.js';
import type { FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { lastingLayout, NOBODY, scatteredLayout } from '../erasure/layout/index.js';
import { sleep } from '../wire/clock.js';
import { codeOf, isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { freeLeftovers } from './leftovers.js';
import { rebuildFile, type RebuildReport } from './rebuild.js';

export interface MoveOptions {
  /** Most bytes restored in a second. Default: no bound. */
  readonly bytesPerSecond?: number;
  /** Ends it early; what is under way is finished. */
  readonly signal?: AbortSignal;
  /** How long an owner may take to say that it is there. Default 5000. */
  readonly ownerMs?: number;
  readonly onProgress?: (report: MoveReport) => void;
}

/** Sums, growing. */
export interface MoveReport {
  filesMoved: number;
  unitsRestored: number;
  unitsFromSwitch: number;
  bytesRestored: number;
  stripesDone: number;
  /** Files that somebody writes, or changed meanwhile. */
  waiting: string[];
  /** Files of which not every unit could be had now; the old node keeps its share. */
  failed: { name: string; why: string }[];
}

/** `to`: a node, or '-': the file's others. */
export interface Share {
  readonly file: FileRecord;
  readonly index: number;
  readonly to: string;
}

const OWNER_MS = 5000;
const POLL_MS = 50;

export function emptyMoveReport(): MoveReport {
  return {
    filesMoved: 0,
    unitsRestored: 0,
    unitsFromSwitch: 0,
    bytesRestored: 0,
    stripesDone: 0,
    waiting: [],
    failed: [],
  };
}

/** What was done before and now; `waiting` and `failed` are of now. */
export function sumOfMoves(before: MoveReport, now: MoveReport): MoveReport {
  const added = { ...now };
  for (const key of ['filesMoved', 'unitsRestored', 'unitsFromSwitch', 'bytesRestored', 'stripesDone'] as const)
    added[key] += before[key];
  return added;
}

/**
 * @param shares    one of a file
 * @param takeOver  fences the owner of a file that is gone, settles what it left, and closes the file
 * @throws {TartanError} ERR_MAP_UNAVAILABLE; what goes wrong with single files is reported
 */
export async function moveShares(
  context: ClientContext,
  shares: readonly Share[],
  takeOver: (fileId: number) => Promise<void>,
  options: MoveOptions = {},
): Promise<MoveReport> {
  const report = emptyMoveReport();
  for (let at = 0; at < shares.length && options.signal?.aborted !== true; at += MOVES_AT_ONCE) {
    await moveBatch(context, shares.slice(at, at + MOVES_AT_ONCE), takeOver, options, report);
  }
  return report;
}

async function moveBatch(
  context: ClientContext,
  shares: readonly Share[],
  takeOver: (fileId: number) => Promise<void>,
  options: MoveOptions,
  report: MoveReport,
): Promise<void> {
  const settled = await settle(context, shares, takeOver, options, report);
  const map = await readMap(context.store);
  const begun = await beginMoves(
    context.store,
    settled.map((share): PlannedMove => ({ ...share, stores: storesOf(map, share) })),
  );
  wait(report, settled, begun);
  const filled: PlannedMove[] = [];
  for (const move of begun) {
    if (options.signal?.aborted === true) break;
    if (await fill(context, move, options, report)) filled.push(move);
    options.onProgress?.(report);
  }
  const from = new Map(filled.map(({ file, index }) => [file.id, file.nodes[index]!]));
  const done = await finishMoves(context.store, filled, layoutAfter);
  wait(report, filled, done);
  report.filesMoved += done.length;
  options.onProgress?.(report);
  for (const old of new Set(done.map(({ file }) => from.get(file.id)!)))
    await freeLeftovers(
      context,
      old,
      done.filter(({ file }) => from.get(file.id) === old).map(({ file }) => file.id),
    );
}

/** The name of a file's layout when a share has moved. */
export function layoutAfter({ file, index, to }: Share): string | undefined {
  const { k, m } = parseCode(file.code);
  return to === NOBODY ? scatteredLayout(file, index, k + m) : lastingLayout(file);
}

/** @returns whether the new node has everything */
async function fill(
  context: ClientContext,
  { file, index, to }: PlannedMove,
  options: MoveOptions,
  report: MoveReport,
): Promise<boolean> {
  let found: RebuildReport;
  try {
    const before = { ...report };
    found = await rebuildFile(context, file, false, {
      move: { index, to },
      ...(options.bytesPerSecond !== undefined && { bytesPerSecond: options.bytesPerSecond }),
      ...(options.signal !== undefined && { signal: options.signal }),
      onProgress: (now) => {
        for (const key of ['unitsRestored', 'unitsFromSwitch', 'bytesRestored', 'stripesDone'] as const)
          report[key] = before[key] + now[key];
        options.onProgress?.(report);
      },
    });
  } catch (error) {
    if (!isOperating(error)) throw error;
    if (codeOf(error) !== 'ERR_NOT_FOUND') report.failed.push({ name: file.name, why: (error as Error).message });
    return false;
  }
  if (found.stripesDone < found.stripes || (await isGone(context, file))) return false; // ended, or removed meanwhile
  if (found.unitsNotMoved === 0 && !found.nodesDown.includes(to)) return true;
  const lost = found.stripesLost > 0 ? `, ${found.stripesLost} of its stripes have fewer units than they need` : '';
  report.failed.push({
    name: file.name,
    why:
      `${to === NOBODY ? 'the other nodes still lack' : `node ${to} still lacks`} ${found.unitsNotMoved} of its ` +
      `units${lost}`,
  });
  return false;
}

/** The shares of files that nobody writes, with their records as they are now. */
async function settle(
  context: ClientContext,
  shares: readonly Share[],
  takeOver: (fileId: number) => Promise<void>,
  options: MoveOptions,
  report: MoveReport,
): Promise<Share[]> {
  const found = await Promise.all(shares.map((share) => again(context, share)));
  const present = found.filter((share) => share !== undefined),
    open = present.filter(({ file }) => !isSettled(file));
  const ready = present.filter(({ file }) => isSettled(file));
  if (open.length === 0) return ready;
  await askOwners(
    context.store,
    open.map(({ file }) => file.id),
  );
  const deadline = context.clock.now() + (options.ownerMs ?? OWNER_MS);
  let silent = open;
  for (
    ;
    silent.length > 0 && context.clock.now() < deadline && options.signal?.aborted !== true;
    await sleep(context.clock, POLL_MS)
  ) {
    const now = (await Promise.all(silent.map((share) => again(context, share)))).filter(
      (share) => share !== undefined,
    );
    ready.push(...now.filter(({ file }) => isSettled(file)));
    report.waiting.push(
      ...now.filter(({ file }) => !isSettled(file) && file.answered === file.asked).map(({ file }) => file.name),
    );
    silent = now.filter(({ file }) => !isSettled(file) && file.answered !== file.asked);
  }
  for (const share of options.signal?.aborted === true ? [] : silent) {
    try {
      await takeOver(share.file.id); // by id: another file may have its name by now
      const now = await again(context, share);
      if (now !== undefined) ready.push(now);
    } catch (error) {
      if (!isOperating(error)) throw error;
      if (codeOf(error) === 'ERR_FENCED') report.waiting.push(share.file.name);
      else if (codeOf(error) !== 'ERR_NOT_FOUND')
        report.failed.push({ name: share.file.name, why: (error as Error).message });
    }
  }
  return ready;
}

/** The share with its file's record read again; undefined: the file is gone, or the share has moved. */
async function again(context: ClientContext, share: Share): Promise<Share | undefined> {
  try {
    const file = await readFile(context.store, share.file.id);
    return file.state === 'deleted' || file.nodes[share.index] !== share.file.nodes[share.index]
      ? undefined
      : { ...share, file };
  } catch (error) {
    if (codeOf(error) !== 'ERR_NOT_FOUND') throw error;
    return undefined;
  }
}

async function isGone(context: ClientContext, file: FileRecord): Promise<boolean> {
  return (await again(context, { file, index: 0, to: '' })) === undefined;
}

function wait(report: MoveReport, wanted: readonly Share[], done: readonly Share[]): void {
  for (const { file } of wanted) if (!done.some((each) => each.file.id === file.id)) report.waiting.push(file.name);
}
