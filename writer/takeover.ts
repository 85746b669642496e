/**
 * Taking a file over: fence the old owner, find out what happened to its unfinished stripes, decide, and go on.
 *
 * Only the holder of the newest writer epoch decides. It fences every node not marked down, at least max(k, m + 1) of
 * them, and counts units on fenced nodes only. A stripe version with k or more units is completed: its data is read and
 * written again as a version of the new epoch. With fewer it is rolled back, but only if a fenced node of its write set
 * lacks it without the unit being recorded missing; otherwise nobody can know: ERR_UNDECIDED. What lies beyond the
 * first hole is discarded. The decision is in the cluster store before anyone reads it.
 *
 * A version that no fenced node shows may exist all the same, when k or more of its units' nodes are not fenced and all
 * others may have been down when it was written, and so be missing from it. The map says since when a node is up, the
 * file's record under which map its owner began: only a fenced node that was up all the time proves a hole. Nor does a
 * node with a new disk speak for the time before it: the map says since when it has its store. The file's record says
 * the same of a node that took another's share (FileRecord.nodesSince). Of a file that was closed by an owner that had
 * decided, and which nobody has decided since (FileRecord.closedEpoch), what is above the commit mark was never
 * acknowledged: it is rolled back, whatever may be hidden.
 */
import { decide } from '../cluster/files.js';
import { presentNodes, readMap } from '../cluster/membership.js';
import type { FileRecord } from '../cluster/records.js';
import { type Code, parseCode } from '../erasure/code/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { layoutOf, nodeOfUnit, stripeBytes } from '../erasure/layout/index.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { NodeLink } from '../pipeline/node-link.js';
import type { Reply, UnitEntry } from '../wire/generated/ring.js';
import { compareVersions } from '../wire/unit-header.js';
import type { ClientContext } from './context.js';
import type { FileSession } from './file-session.js';
import { StripeReader } from '../pipeline/stripe-reader.js';

/** Entries asked of a node at once; a reply must fit one message. */
const INVENTORY_LIMIT = 40;

/** One version of one stripe, as the fenced nodes' inventories show it. */
export interface VersionEvidence {
  epoch: number;
  counter: number;
  dataLength: number;
  /** The oldest map epoch under which a unit seen of it was written. Absent: any. */
  mapEpoch?: number;
  /** Units held, by index. */
  readonly units: Set<number>;
  /** Units that holders recorded as missing. */
  readonly missing: Set<number>;
}

export type Verdict =
  | { readonly kind: 'complete'; readonly version: VersionEvidence }
  | { readonly kind: 'hole' }
  | { readonly kind: 'lost' | 'undecided'; readonly version: VersionEvidence }
  /** A newer version may exist on nodes that are not fenced. */
  | { readonly kind: 'hidden' };

/**
 * Judges one stripe. Pure.
 *
 * @param versions  evidence of every version seen, any order
 * @param fenced    for each unit of this stripe, whether its node is fenced
 * @param committed whether a version is known committed (it must not be rolled back)
 * @param witness   for each unit, whether its node is fenced and was up all the time since the file's last decision
 * @param fullBytes data bytes of a full stripe: a newer version of one has the same bytes
 * @param storeSince for each unit, the map epoch with which its node got the store that it has; it lacks what is older
 * @param decidedMapEpoch nothing undecided was written under an older map
 */
export function judgeStripe(
  k: number,
  versions: readonly VersionEvidence[],
  fenced: readonly boolean[],
  committed: (version: VersionEvidence) => boolean,
  witness: readonly boolean[] = fenced,
  fullBytes = Infinity,
  storeSince: readonly number[] = [],
  decidedMapEpoch = Infinity,
): Verdict {
  const verdict = judgeSeen(k, versions, fenced, committed, storeSince);
  const isFinal =
    verdict.kind === 'lost' ||
    verdict.kind === 'undecided' ||
    (verdict.kind === 'complete' && verdict.version.dataLength >= fullBytes);
  const silent = fenced.filter((isFenced, unit) => !isFenced || (storeSince[unit] ?? 0) > decidedMapEpoch).length;
  const canHide = !isFinal && silent >= k && !witness.includes(true);
  return canHide ? { kind: 'hidden' } : verdict;
}

function judgeSeen(
  k: number,
  versions: readonly VersionEvidence[],
  fenced: readonly boolean[],
  committed: (version: VersionEvidence) => boolean,
  storeSince: readonly number[],
): Verdict {
  const newestFirst = [...versions].sort((a, b) => compareVersions(b.epoch, b.counter, a.epoch, a.counter));
  for (const version of newestFirst) {
    if (version.units.size >= k) return { kind: 'complete', version };
    if (committed(version)) return { kind: 'lost', version };
    const provablyUnfinished = fenced.some(
      (isFenced, unit) =>
        isFenced &&
        (storeSince[unit] ?? 0) <= (version.mapEpoch ?? Infinity) &&
        !version.units.has(unit) &&
        !version.missing.has(unit),
    );
    if (!provablyUnfinished) return { kind: 'undecided', version };
  }
  return { kind: 'hole' };
}

/** Nodes that a takeover must fence at least. */
function leastFenced({ k, m }: Code): number {
  return Math.max(k, m + 1);
}

/**
 * Before the writer epoch is raised: an owner that could not fence enough nodes would only be in the way of the next.
 * @throws {TartanError} ERR_UNDECIDED
 */
export async function checkFenceable({ store }: ClientContext, file: FileRecord): Promise<void> {
  const [map, present] = await Promise.all([readMap(store), presentNodes(store)]),
    least = leastFenced(parseCode(file.code));
  const up = file.nodes.filter(
    (id) => present.has(id) && map.nodes.some((node) => node.id === id && node.state === 'up'),
  );
  if (up.length < least)
    throw new TartanError(
      'ERR_UNDECIDED',
      `Cannot take over '${file.name}': ${up.length} of its nodes are up, ${least} must be fenced`,
    );
}

/** Recovers the tail of `file` into a fresh session of its new writer epoch, and publishes the decision. */
export async function recoverTail(context: ClientContext, session: FileSession, file: FileRecord): Promise<void> {
  const code = parseCode(file.code);
  const layout = layoutOf(file, code);
  const { nodes, window } = session;
  const { epoch: mapEpoch } = nodes.map;
  const fencedNodes = await fence(session, file, leastFenced(code));
  const full = stripeBytes(layout);
  // Of a file that its last owner decided and closed nothing can be hidden that was ever acknowledged.
  const isSettled = file.closedEpoch !== undefined;
  const witnesses = isSettled
    ? file.nodes.map((_, index) => index)
    : fencedNodes.filter(
        (index) =>
          Math.max(nodes.entry(index)?.since ?? Infinity, file.nodesSince?.[index] ?? 0) <=
          (file.decidedMapEpoch ?? -1),
      );
  const isCommitted = (version: { epoch: number; counter: number }): boolean =>
    compareVersions(version.epoch, version.counter, file.commitEpoch, file.commitCounter) <= 0;
  const firstOpen = Math.floor(file.length / full);
  const evidence = await gatherEvidence(session, file, layout, firstOpen, fencedNodes);
  const reader = new StripeReader(context, file, code, layout, nodes.map);
  try {
    await reader.connect();
    window.seek(firstOpen, firstOpen * full);
    window.undecided = true;
    let stripe = firstOpen;
    for (; ; stripe++) {
      const verdict = judgeStripe(
        code.k,
        (evidence.get(stripe) ?? []).filter((version) => !isSettled || isCommitted(version)),
        unitsOn(layout, code.k + code.m, stripe, fencedNodes),
        isCommitted,
        unitsOn(layout, code.k + code.m, stripe, witnesses),
        full,
        Array.from({ length: code.k + code.m }, (_, unit) =>
          storeSince(session, file, nodeOfUnit(layout, stripe, unit)),
        ),
        file.decidedMapEpoch,
      );
      if (verdict.kind === 'hidden')
        throw new TartanError(
          'ERR_UNDECIDED',
          `Cannot decide stripe ${stripe} of '${file.name}': a version of it may be on nodes that are down, ` +
            'and of those that are up none was up all the time',
        );
      if (verdict.kind === 'hole') break;
      const { version } = verdict;
      const name = `stripe ${stripe} of '${file.name}', version ${version.epoch}.${version.counter}`;
      if (verdict.kind === 'lost')
        throw new TartanError(
          'ERR_TOO_MANY_LOST',
          `Cannot take over ${name}: it is committed, but only ${version.units.size} of ${code.k} units needed ` +
            'can be had',
        );
      if (verdict.kind === 'undecided')
        throw new TartanError(
          'ERR_UNDECIDED',
          `Cannot decide ${name}: ${version.units.size} units are held, ${code.k} are needed, and no fenced ` +
            'node proves that it was never finished',
        );
      const read = await reader.read({
        stripe,
        dataLength: version.dataLength,
        epoch: version.epoch,
        counter: version.counter,
        exact: true,
      });
      try {
        await appendAll(session, read.bytes);
      } finally {
        read.release();
      }
      if (version.dataLength < full) {
        stripe++;
        break;
      }
    }
    await session.flush();
    const length = Math.max(window.acknowledgedBytes, firstOpen * full);
    if (length < file.length) {
      throw new TartanError(
        'ERR_TOO_MANY_LOST',
        `Cannot take over '${file.name}': ${length} bytes can be recovered, ${file.length} were acknowledged`,
      );
    }
    await decide(context.store, file.id, {
      writerEpoch: file.writerEpoch,
      decidedStripes: stripe,
      mapEpoch,
      fromStripe: firstOpen,
      length,
      commitEpoch: file.writerEpoch,
      commitCounter: window.acknowledgedCounter,
    });
    window.undecided = false;
    await Promise.all(
      fencedNodes.map(async (index) => {
        try {
          await nodes.linkTo(index)?.request({
            $case: 'discard',
            value: { fileId: file.id, fromStripe: stripe, writerEpoch: file.writerEpoch },
          });
        } catch (error) {
          // The decision is durable in the cluster store; a node that misses this only keeps garbage.
          if (!isOperating(error)) throw error;
        }
      }),
    );
  } finally {
    await reader.destroy();
  }
}

async function appendAll(session: FileSession, bytes: Uint8Array): Promise<void> {
  let at = 0;
  while (at < bytes.length) {
    const taken = session.window.append(bytes.subarray(at));
    at += taken;
    if (taken === 0) await session.flush();
  }
}

/**
 * Asks a node; when the map has moved on meanwhile, adopts it and asks once more.
 * @throws {TartanError} the reply's code, ERR_CONNECT
 */
async function ask(
  session: FileSession,
  file: FileRecord,
  index: number,
  op: Parameters<NodeLink['request']>[0],
): Promise<Reply> {
  for (let attempt = 1; ; attempt++) {
    const link = session.nodes.linkTo(index);
    if (link === undefined)
      throw new TartanError(
        'ERR_UNDECIDED',
        `Cannot take over '${file.name}': node ${file.nodes[index]} was lost while it was asked`,
      );
    try {
      return await link.request(op);
    } catch (error) {
      if (codeOf(error) === 'ERR_NO_UNIT')
        throw new TartanError('ERR_NOT_FOUND', `Cannot take over '${file.name}': it has been removed meanwhile`, {
          cause: error,
        });
      if (codeOf(error) !== 'ERR_STALE_MAP' || attempt === 5) throw error;
      await session.repair();
    }
  }
}

/**
 * A node that can't make the fence durable is no use: it is proposed down, and the others are asked again under the new
 * map.
 *
 * @returns indexes of the nodes fenced: all that the map calls up. @throws {TartanError} ERR_UNDECIDED when they are
 *         too few
 */
async function fence(session: FileSession, file: FileRecord, least: number): Promise<number[]> {
  const { nodes } = session;
  for (;;) {
    const up = nodes.upIndexes();
    const fenced: number[] = [],
      broken: number[] = [];
    await Promise.all(
      up.map(async (index) => {
        if (nodes.linkTo(index) === undefined) return;
        try {
          const reply = await ask(session, file, index, {
            $case: 'fence',
            value: { fileId: file.id, writerEpoch: file.writerEpoch },
          });
          if (reply.writerEpoch > file.writerEpoch)
            throw new TartanError(
              'ERR_FENCED',
              `Cannot take over '${file.name}': writer epoch ${reply.writerEpoch} has been given out since`,
            );
          fenced.push(index);
        } catch (error) {
          if (codeOf(error) !== 'ERR_DISK') throw error;
          broken.push(index);
        }
      }),
    );
    if (broken.length > 0 && up.length - broken.length >= least) {
      for (const index of broken) await session.repair(index);
      continue;
    }
    if (fenced.length < up.length || fenced.length < least) {
      throw new TartanError(
        'ERR_UNDECIDED',
        `Cannot take over '${file.name}': ${fenced.length} nodes could be ` +
          `fenced, ${Math.max(least, up.length)} are required`,
      );
    }
    return fenced.sort((a, b) => a - b);
  }
}

/**
 * Map epoch from which on a node of the file has all that was written to it: its store's, or when it took this index
 * over.
 */
function storeSince({ nodes }: FileSession, file: FileRecord, index: number): number {
  return Math.max(nodes.entry(index)?.storeSince ?? 0, file.nodesSince?.[index] ?? 0);
}

/** For each unit of a stripe, whether its node is among these. */
function unitsOn(layout: Layout, units: number, stripe: number, indexes: readonly number[]): boolean[] {
  return Array.from({ length: units }, (_, unit) => indexes.includes(nodeOfUnit(layout, stripe, unit)));
}

async function gatherEvidence(
  session: FileSession,
  file: FileRecord,
  layout: Layout,
  fromStripe: number,
  fenced: readonly number[],
): Promise<Map<number, VersionEvidence[]>> {
  const evidence = new Map<number, VersionEvidence[]>();
  for (const index of fenced) {
    let from = fromStripe;
    for (;;) {
      const reply = await ask(session, file, index, {
        $case: 'inventory',
        value: { fileId: file.id, fromStripe: from, limit: INVENTORY_LIMIT },
      });
      for (const entry of reply.units) {
        // Of the stripes that are open now, the last owner to decide wrote again what it kept, and rolled back the
        // rest: an older unit lies on a node that was down then and did not hear of it. It is decided, and no evidence.
        if (entry.writerEpoch < file.decidedEpoch) continue;
        // It had another index of the file once: that one's units are another node's to show.
        if (nodeOfUnit(layout, entry.stripe, entry.unit) !== index) continue;
        note(evidence, entry);
      }
      if (!reply.more || reply.units.length === 0) break;
      // A stripe's versions may be cut by the limit: ask for its stripe again, notes are idempotent.
      const last = reply.units[reply.units.length - 1]!.stripe;
      from = last > from ? last : last + 1;
    }
  }
  return evidence;
}

function note(evidence: Map<number, VersionEvidence[]>, entry: UnitEntry): void {
  let versions = evidence.get(entry.stripe);
  if (versions === undefined) evidence.set(entry.stripe, (versions = []));
  let version = versions.find((known) => known.epoch === entry.writerEpoch && known.counter === entry.counter);
  if (version === undefined) {
    version = {
      epoch: entry.writerEpoch,
      counter: entry.counter,
      dataLength: entry.stripeLength,
      units: new Set(),
      missing: new Set(),
    };
    versions.push(version);
  }
  version.mapEpoch = Math.min(version.mapEpoch ?? Infinity, entry.mapEpoch);
  version.units.add(entry.unit);
  for (let unit = 0; unit < 36; unit++) if (Math.floor(entry.missing / 2 ** unit) % 2 === 1) version.missing.add(unit);
}
