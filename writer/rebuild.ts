/**
 * Restores what a file's nodes lack, from what they hold: after a node came back, got a new disk, or lost a sector.
 *
 *     inventories ─▶ per stripe: newest committed version, who lacks it ─▶ read k units ─▶ decode, encode ─▶ write what
 *     lacks
 *        (scrub: each unit read back and checked by its node, parity against data: what doesn't fit is condemned, and
 *        lacks)
 *
 * Nothing is remembered: what lacks is found by asking, so a rebuild that was interrupted is begun again, and finds
 * less to do. Only committed versions are restored, under their own names: writers and readers go on meanwhile, a
 * version that is superseded while it is restored is refused by its node, and that is no failure.
 *
 * Invariants: what is written was read with every checksum checked; a slot is filled again only when its operation has
 * settled; a node that is down, and what it lacks, is left alone.
 */
import type { MemoryRegion } from 'tartan-rdma';
import { Access } from 'tartan-rdma';
import { isCommitted, readFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import type { ClusterMap, FileRecord, ShareMove } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import { parseCode } from '../erasure/code/index.js';
import type { Layout } from '../erasure/layout/index.js';
import {
  layoutOf,
  NOBODY,
  nodeOfUnit,
  scatteredLayout,
  stripeCount,
  stripeDataLength,
  unitLength,
  unitOfNode,
} from '../erasure/layout/index.js';
import { NodeSet } from '../pipeline/node-set.js';
import type { NodeLink, ReadWish, UnitPlace } from '../pipeline/node-link.js';
import { isSealed, sealHeader, writeDataHeaders } from '../pipeline/stripe-headers.js';
import { StripePipeline } from '../pipeline/stripe-pipeline.js';
import { sleep } from '../wire/clock.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { UnitEntry } from '../wire/generated/ring.js';
import { Refusal } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { headerOffsetIn, stripeSlotLayout } from '../wire/slot-layout.js';
import {
  W,
  checkHeader,
  compareVersions,
  headerBytesOf,
  headerFileId,
  headerStripe,
  headerUnit,
} from '../wire/unit-header.js';
import type { ClientContext } from './context.js';
import { Decoder } from './decoder.js';
import type { Doubt } from './stripe-doubt.js';
import { doubts } from './stripe-doubt.js';
import { StripeReader } from '../pipeline/stripe-reader.js';
import { UnitCopies } from './unit-copies.js';
import { detach } from '../wire/front-door.js';

export interface RebuildOptions {
  /** Most bytes restored and, for a scrub, read back in a second. Default: no bound. */
  readonly bytesPerSecond?: number;
  /** Called now and then, and at the end. */
  readonly onProgress?: (report: RebuildReport) => void;
  /** Ends it early; what is under way is finished. */
  readonly signal?: AbortSignal;
  /** Only these stripes, ascending. Default: all that are committed. */
  readonly stripes?: readonly number[];
  /**
   * Fills another node with the units of one index, as begun by beginMoves(); the node that has them now is read, if it
   * can be.
   */
  readonly move?: ShareMove;
}

/** Counts of one file, growing while it is rebuilt. */
export interface RebuildReport {
  readonly name: string;
  /** Committed stripes, and how many of them have been looked at. */
  stripes: number;
  stripesDone: number;
  /** Units that nodes which are up did not hold, or held with a checksum that fails. */
  unitsMissing: number;
  unitsDamaged: number;
  /** Units read back and checked (scrub). */
  unitsChecked: number;
  /** Stripes whose parity does not belong to their data although every checksum holds (scrub). */
  parityMismatches: number;
  /** Of those, the ones in which it could be told which unit was wrong, and it was written again. */
  mismatchesRepaired: number;
  unitsRestored: number;
  bytesRestored: number;
  /** Of those, the ones that a switch decoded, and (moves) that came from the node that had them. */
  unitsFromSwitch: number;
  unitsCopied: number;
  /** Superseded while they were being restored: nothing lacks any more. */
  unitsSuperseded: number;
  /** Could not be restored now: their node was lost, or refused. */
  unitsFailed: number;
  /** Stripes of which fewer than k units can be had. */
  stripesLost: number;
  /** Units of the index that moves (RebuildOptions.move) which its new node still lacks. */
  unitsNotMoved: number;
  /** Nodes that were down: what they lack is not known. */
  nodesDown: string[];
}

/** Stripes whose inventories are compared at once. */
const CHUNK_STRIPES = 512;
/** Progress is told so often. */
const TELL_STRIPES = 8;
const INVENTORY_LIMIT = 64;
/** Units that a node checks for one answer: it must come within the deadline. */
const CHECK_LIMIT = 8;
/** Versions that a node may hold of one stripe's unit, when only that stripe is asked for: more are rare. */
const ONE_LIMIT = 3;
const WINDOW_BYTES = 16 << 20;
const MAX_WINDOW_SLOTS = 16;
const NODE_SLOTS = 32;
const MAP_ATTEMPTS = 5;

type DirectPlace = Omit<UnitPlace, 'region' | 'stripe' | 'mapEpoch'>;
interface DirectWrite {
  readonly place: DirectPlace;
  written(): void;
  answered(refusal: number): void;
}

interface Version {
  readonly epoch: number;
  readonly counter: number;
  readonly stripeLength: number;
  missing: number;
  readonly held: Map<number, UnitEntry>;
  /** Of a share that moves: what the node holds that has it now. */
  readonly given: Map<number, UnitEntry>;
}

/**
 * Restores one file's missing units.
 *
 * @param verify  reads every unit back first (scrub)
 * @throws {TartanError} ERR_RING_MEMORY, ERR_MAP_UNAVAILABLE, ERR_CONNECT; what can't be restored is counted, not
 *         thrown
 */
export async function rebuildFile(
  context: ClientContext,
  file: FileRecord,
  verify: boolean,
  options: RebuildOptions = {},
): Promise<RebuildReport> {
  const map = await readMap(context.store);
  // Who reads a file's record and then waits may know the nodes of yesterday; what is committed is the caller's to say.
  const { nodes, layout } = map.moved === undefined ? file : await readFile(context.store, file.id);
  const rebuilder = new Rebuilder(
    context,
    { ...file, nodes, ...(layout !== undefined && { layout }) },
    map,
    verify,
    options,
  );
  try {
    await rebuilder.run();
    return rebuilder.report;
  } finally {
    await rebuilder.destroy();
  }
}

class Rebuilder {
  readonly report: RebuildReport;
  private readonly code: Code;
  /** Where units belong: of a share that is spread over other nodes, where they will. */
  private readonly layout: Layout;
  /** Where they are read. */
  private readonly present: Layout;
  private readonly slots: StripeSlotLayout;
  /** By index; of a share that moves its new node, and the present one after all others. */
  private readonly nodes: NodeSet;
  private readonly ids: readonly string[];
  private readonly reader: StripeReader;
  private readonly pipeline: StripePipeline;
  private readonly ringBytes: number;
  private readonly region: MemoryRegion;
  private readonly words: Uint32Array;
  private readonly bytes: Uint8Array;
  private readonly free: number[] = [];
  private readonly settled: (((refusal: number) => void) | undefined)[];
  /** Units that came whole from the switch, on their way to their nodes, by operation. */
  private readonly direct = new Map<number, DirectWrite>();
  /** Units of a share that moves, on their way here from the node that has them. */
  private readonly copies = new UnitCopies();
  private decoder: Decoder | undefined;
  /** When what has been moved so far may have been, by the rate that is allowed: ms of the clock. */
  private dueMs: number;

  constructor(
    private readonly context: ClientContext,
    private readonly file: FileRecord,
    map: ClusterMap,
    private readonly verify: boolean,
    private readonly options: RebuildOptions,
  ) {
    const code = (this.code = parseCode(file.code)),
      { move } = options;
    this.present = layoutOf(file, code);
    const scattered = move?.to === NOBODY ? scatteredLayout(file, move.index, code.k + code.m) : undefined;
    this.layout = scattered === undefined ? this.present : layoutOf({ ...file, layout: scattered }, code);
    this.ids =
      move === undefined || move.to === NOBODY
        ? file.nodes
        : [...file.nodes.map((id, index) => (index === move.index ? move.to : id)), file.nodes[move.index]!];
    this.report = {
      name: file.name,
      stripes: options.stripes?.length ?? stripeCount(this.layout, file.length),
      stripesDone: 0,
      unitsMissing: 0,
      unitsDamaged: 0,
      unitsChecked: 0,
      parityMismatches: 0,
      mismatchesRepaired: 0,
      unitsRestored: 0,
      bytesRestored: 0,
      unitsFromSwitch: 0,
      unitsCopied: 0,
      unitsSuperseded: 0,
      unitsFailed: 0,
      stripesLost: 0,
      unitsNotMoved: 0,
      nodesDown: [],
    };
    this.slots = stripeSlotLayout(code.k, code.m, file.unitBytes);
    const { slotBytes } = this.slots;
    this.reader = new StripeReader(context, file, code, this.present, map);
    try {
      this.ringBytes = context.memory.take(
        Math.min(Math.max(WINDOW_BYTES, slotBytes), MAX_WINDOW_SLOTS * slotBytes),
        slotBytes,
        slotBytes,
        `rebuild '${file.name}': a stripe of ${code.name} with ${file.unitBytes}-byte units does not fit`,
      );
    } catch (error) {
      detach(this.reader.destroy());
      throw error;
    }
    this.region = context.device.allocate(this.ringBytes, Access.REMOTE_WRITE);
    this.words = new Uint32Array(this.region.buffer);
    this.bytes = new Uint8Array(this.region.buffer);
    const ops = this.ringBytes / slotBytes;
    for (let op = ops - 1; op >= 0; op--) this.free.push(op);
    this.settled = new Array<undefined>(ops).fill(undefined);
    let pipeline: StripePipeline | undefined;
    const nodes = (this.nodes = new NodeSet(map, {
      context,
      nodes: this.ids,
      role: 'rebuilder',
      name: context.name,
      fileId: file.id,
      unitBytes: file.unitBytes,
      slots: NODE_SLOTS,
      receiveSlots: move === undefined ? 0 : ops,
      transport: context.transport,
      heartbeatMs: context.heartbeatMs,
      deadlineMs: context.deadlineMs,
      owner: {
        locate: (op, unit, place) => {
          const direct = this.direct.get(op);
          if (direct === undefined) pipeline!.locate(op, unit, place);
          else Object.assign(place, direct.place, { region: this.region });
        },
        onWritten: (link, op, unit, ok) => {
          const direct = this.direct.get(op);
          if (direct === undefined) pipeline!.onWritten(link, op, unit, ok);
          else direct.written();
        },
        onAnswer: (link, op, unit, refusal, epoch) => {
          const direct = this.direct.get(op);
          if (direct === undefined) pipeline!.onAnswer(link, op, unit, refusal, epoch);
          else direct.answered(refusal);
        },
        onLinkDown: (link) => {
          this.copies.lost(link);
        },
        onRead: (_link, id) => {
          this.copies.answered(id, true);
        },
        onReadFailed: (_link, id) => {
          this.copies.answered(id, false);
        },
      },
    }));
    this.pipeline = pipeline = new StripePipeline({
      hub: context.hub,
      code,
      layout: this.layout,
      slots: this.slots,
      region: this.region,
      maxOps: ops,
      sealed: false,
      linkTo: (index) => nodes.linkTo(index),
      owner: {
        onReleased: () => {},
        onSettled: (op, refusal) => {
          this.settled[op]?.(refusal);
        },
      },
    });
    this.dueMs = context.clock.now();
  }

  async run(): Promise<void> {
    await this.nodes.connectUp(this.context.deadlineMs);
    await this.reader.connect();
    this.decoder = await Decoder.find(this.context, this.file, this.code, this.nodes.map, this.settled.length);
    const { report } = this;
    report.nodesDown = this.ids.filter(
      (id, index) => id !== NOBODY && (this.nodes.isDown(index) || this.nodes.linkTo(index) === undefined),
    );
    for (const [from, to] of this.ranges()) {
      if (this.isEnded) break;
      const chunk = await this.gather(from, to);
      if (chunk === undefined) return; // removed meanwhile: nothing of it is to be restored
      const underWay = new Set<Promise<void>>();
      for (let stripe = from; stripe < to && !this.isEnded; stripe++) {
        const versions = chunk.get(stripe) ?? [];
        const work = this.restore(stripe, versions).finally(() => {
          underWay.delete(work);
          if (++report.stripesDone % TELL_STRIPES === 0) this.options.onProgress?.(report);
        });
        underWay.add(work);
        if (underWay.size >= this.settled.length) await Promise.race(underWay);
      }
      await Promise.all(underWay);
      this.options.onProgress?.(report);
    }
    this.options.onProgress?.(report);
  }

  private get isEnded(): boolean {
    return this.options.signal?.aborted === true;
  }

  /** Stripes whose inventories are asked for at once, [from, to). */
  private *ranges(): Generator<readonly [number, number]> {
    const total = stripeCount(this.layout, this.file.length),
      { stripes } = this.options;
    if (stripes !== undefined) for (const stripe of stripes) yield [stripe, stripe + 1];
    else for (let from = 0; from < total; from += CHUNK_STRIPES) yield [from, Math.min(from + CHUNK_STRIPES, total)];
  }

  async destroy(): Promise<void> {
    await this.decoder?.destroy();
    await this.nodes.destroy('done');
    await this.reader.destroy();
    await this.pipeline.destroy();
    await this.region.deregister();
    this.context.memory.give(this.ringBytes);
  }

  // --- what there is

  /**
   * The committed versions of the stripes [from, to), as the nodes that can be asked hold them. Undefined: the file is
   * gone.
   */
  private async gather(from: number, to: number): Promise<Map<number, Version[]> | undefined> {
    const chunk = new Map<number, Version[]>();
    const outcomes = await Promise.all(
      this.nodes.upIndexes().map(async (index) => {
        if (this.nodes.linkTo(index) === undefined) return true;
        try {
          await this.gatherFrom(index, from, to, chunk);
          return true;
        } catch (error) {
          if (!isOperating(error)) throw error;
          const { code } = error;
          if (code === 'ERR_NO_UNIT' || code === 'ERR_NOT_FOUND') return false;
          // A node that fails now is as one that is down: what it lacks is not known.
          this.nodes.drop(index, `it does not answer: ${String(error)}`);
          const id = this.ids[index]!;
          if (!this.report.nodesDown.includes(id)) this.report.nodesDown.push(id);
          return true;
        }
      }),
    );
    return outcomes.includes(false) || (await this.isRemoved()) ? undefined : chunk;
  }

  private async gatherFrom(index: number, from: number, to: number, chunk: Map<number, Version[]>): Promise<void> {
    for (let next = from; next < to; ) {
      const asked = next;
      const reply = await this.withMap(() => {
        const link = this.nodes.linkTo(index);
        if (link === undefined)
          throw new TartanError('ERR_CONNECT', `Cannot ask node ${this.ids[index]}: its connection is down`);
        return link.request({
          $case: 'inventory',
          value: {
            fileId: this.file.id,
            fromStripe: asked,
            limit: to - asked === 1 ? ONE_LIMIT : this.verify ? CHECK_LIMIT : INVENTORY_LIMIT,
            verify: this.verify,
          },
        });
      });
      let bytes = 0;
      for (const entry of reply.units) {
        if (entry.stripe >= to || !isCommitted(this.file, entry.stripe, entry.writerEpoch, entry.counter)) continue;
        if (this.note(chunk, entry, index) && this.verify) {
          this.report.unitsChecked++;
          bytes += this.lengthOf(entry.stripeLength, entry.unit);
        }
      }
      if (!reply.more || reply.units.length === 0) return;
      // A first stripe with very many versions may be cut: it is asked for once.
      const last = reply.units[reply.units.length - 1]!.stripe;
      next = Math.max(last + 1, next + 1);
      await this.pace(bytes);
    }
  }

  /** @returns whether it was new */
  private note(chunk: Map<number, Version[]>, entry: UnitEntry, index: number): boolean {
    const { stripe, unit } = entry,
      isHeld = nodeOfUnit(this.layout, stripe, unit) === index;
    const isGiven =
      !isHeld &&
      nodeOfUnit(this.present, stripe, unit) === (index === this.file.nodes.length ? this.options.move!.index : index);
    // What a node kept of another index that it had once is no part of the file any more.
    if (!isHeld && !isGiven) return false;
    let versions = chunk.get(entry.stripe);
    if (versions === undefined) chunk.set(entry.stripe, (versions = []));
    let version = versions.find(({ epoch, counter }) => epoch === entry.writerEpoch && counter === entry.counter);
    if (version === undefined)
      versions.push(
        (version = {
          epoch: entry.writerEpoch,
          counter: entry.counter,
          stripeLength: entry.stripeLength,
          held: new Map(),
          given: new Map(),
          missing: 0,
        }),
      );
    const units = isGiven ? version.given : version.held;
    if (units.has(entry.unit)) return false;
    units.set(entry.unit, entry);
    version.missing = union(version.missing, entry.missing);
    return true;
  }

  // --- one stripe

  private async restore(stripe: number, versions: readonly Version[]): Promise<void> {
    const { code, report } = this;
    const newest = versions.reduce<Version | undefined>(
      (best, each) =>
        best === undefined || compareVersions(each.epoch, each.counter, best.epoch, best.counter) > 0 ? each : best,
      undefined,
    );
    const good = newest === undefined ? [] : soundUnits(newest);
    const moving = this.unitsThatMove(stripe);
    if (
      newest === undefined ||
      newest.stripeLength < stripeDataLength(this.layout, this.file.length, stripe) ||
      good.length < code.k
    ) {
      report.stripesLost++;
      report.unitsNotMoved += moving.length;
      return;
    }
    const toMove = moving.filter((unit) => isLacking(newest.held, unit));
    report.unitsNotMoved += toMove.length;
    const lacking: number[] = [];
    for (let unit = 0; unit < code.k + code.m; unit++) {
      const held = newest.held.get(unit),
        index = nodeOfUnit(this.layout, stripe, unit);
      if (
        this.nodes.isDown(index) ||
        this.nodes.linkTo(index) === undefined ||
        (held !== undefined && held.damaged !== true)
      )
        continue;
      lacking.push(unit);
      if (held === undefined) report.unitsMissing++;
      else report.unitsDamaged++;
    }
    const doubted = this.verify
      ? doubts(
          code,
          good.map((each) => ({
            unit: each.unit,
            payloadCrc: each.payloadCrc,
            summary: each.summary ?? NONE,
            dataCrcs: each.dataCrcs ?? NONE,
          })),
        )
      : [];
    if (doubted.length > 0) {
      report.parityMismatches++;
      // What lacks beside is restored by a later scrub, from units that fit together.
      if (await this.settle(stripe, newest, doubted)) report.mismatchesRepaired++;
      else report.unitsFailed += lacking.length;
      return;
    }
    if (lacking.length === 0) return;
    const refusal =
      (await this.relayUnits(stripe, newest, lacking)) ?? (await this.writeUnits(stripe, newest, lacking));
    if (refusal === Refusal.NONE) report.unitsNotMoved -= toMove.filter((unit) => lacking.includes(unit)).length;
    await this.count(newest, lacking, refusal);
  }

  /**
   * Writes again what the first doubt names that proves right.
   * @returns false when none does, or it could not be written
   */
  private async settle(stripe: number, version: Version, doubted: readonly Doubt[]): Promise<boolean> {
    for (const { wrong, avoid } of doubted) {
      const refusal = await this.writeUnits(stripe, version, wrong, { avoid, condemn: true });
      if (refusal === Refusal.UNREACHABLE) continue; // what was decoded is not what the parity's header says
      await this.count(version, wrong, refusal);
      return refusal === Refusal.NONE;
    }
    return false;
  }

  private async count(newest: Version, lacking: readonly number[], refusal: number): Promise<void> {
    const { report } = this;
    if (refusal === Refusal.NONE) {
      const bytes = lacking.reduce((sum, unit) => sum + this.lengthOf(newest.stripeLength, unit), 0);
      report.unitsRestored += lacking.length;
      report.bytesRestored += bytes;
      await this.pace(bytes);
    } else if (refusal === Refusal.STALE_VERSION || refusal === Refusal.NO_UNIT)
      report.unitsSuperseded += lacking.length;
    else report.unitsFailed += lacking.length;
  }

  /**
   * Has the switch decode what lacks, or reads it where it is and moves from, and passes it on to its node: this
   * client's link carries each unit once, not k others.
   *
   * @returns undefined: it must be done here
   */
  private async relayUnits(stripe: number, version: Version, lacking: readonly number[]): Promise<number | undefined> {
    for (const unit of lacking) {
      const giver = isLacking(version.given, unit) ? undefined : this.giverOf(stripe, unit),
        { decoder } = this;
      if (giver === undefined && (decoder?.usable !== true || lacking.length >= this.code.k)) return undefined;
      const refusal = await this.relayUnit(
        giver === undefined ? (wish) => decoder!.want(wish) : (wish) => this.copies.want(giver, wish),
        stripe,
        version,
        unit,
        lacking,
      );
      if (refusal !== Refusal.NONE) return refusal;
      if (giver === undefined) this.report.unitsFromSwitch++;
      else this.report.unitsCopied++;
    }
    return Refusal.NONE;
  }

  /** The link to the node that has a unit which is to be on another. */
  private giverOf(stripe: number, unit: number): NodeLink | undefined {
    return this.nodes.linkTo(
      this.options.move?.to === NOBODY ? nodeOfUnit(this.present, stripe, unit) : this.file.nodes.length,
    );
  }

  /** @param want  puts the unit into its place in a slot, if it can */
  private async relayUnit(
    want: (wish: Omit<ReadWish, 'requestId'>) => Promise<boolean>,
    stripe: number,
    version: Version,
    unit: number,
    lacking: readonly number[],
  ): Promise<number | undefined> {
    const op = this.free.pop()!,
      { words, slots } = this,
      slotOffset = op * slots.slotBytes;
    const headerOffset = slotOffset + headerOffsetIn(slots, unit),
      headerBytes = headerBytesOf(unit, this.code.k),
      w = headerOffset >> 2;
    const payloadOffset = slotOffset + slots.unitsOffset + unit * slots.unitBytes,
      payloadBytes = this.lengthOf(version.stripeLength, unit);
    try {
      const { id: fileId } = this.file,
        { epoch, counter } = version;
      if (
        !(await want({
          fileId,
          stripe,
          unit,
          epoch,
          counter,
          exact: true,
          region: this.region,
          payloadOffset,
          capacity: slots.unitBytes,
          headerOffset,
        }))
      )
        return undefined;
      if (
        !isSealed(words, w, headerBytes) ||
        checkHeader(words, w, headerBytes, payloadBytes) !== undefined ||
        headerFileId(words, w) !== fileId ||
        headerStripe(words, w) !== stripe ||
        headerUnit(words, w) !== unit ||
        words[w + W.WRITER_EPOCH] !== epoch ||
        words[w + W.COUNTER] !== counter
      )
        return undefined;
      const missing = without(version.missing, maskOf([...lacking, ...version.held.keys()]));
      words[w + W.MISSING_LO] = low(missing);
      words[w + W.MISSING_HI] = high(missing);
      words[w + W.COMMIT_MARK] = 0;
      for (let attempt = 1; ; attempt++) {
        words[w + W.MAP_EPOCH] = this.nodes.map.epoch;
        sealHeader(words, w, headerBytes);
        const refusal = await this.send(op, stripe, unit, {
          headerOffset,
          headerBytes,
          payloadOffset,
          payloadBytes,
          writerEpoch: epoch,
          counter,
        });
        if (refusal !== Refusal.STALE_MAP || attempt === MAP_ATTEMPTS)
          return refusal === Refusal.CHECKSUM ? undefined : refusal;
        await this.renewMap();
        this.decoder?.adopt(this.nodes.map);
      }
    } finally {
      this.free.push(op);
    }
  }

  /** Sends one unit as it lies in its slot. @returns its node's answer, once the memory is free again */
  private send(op: number, stripe: number, unit: number, place: DirectPlace): Promise<number> {
    const link = this.nodes.linkTo(nodeOfUnit(this.layout, stripe, unit));
    if (link === undefined) return Promise.resolve(Refusal.UNREACHABLE);
    return new Promise((resolve) => {
      let isWritten = false,
        answer: number | undefined;
      const settle = (): void => {
        // A link that broke answers although the write was never posted, or has yet to be flushed with it.
        if (answer === undefined || (!isWritten && link.up) || this.direct.get(op) !== direct) return;
        this.direct.delete(op);
        resolve(answer);
      };
      const direct = {
        place,
        written: () => {
          isWritten = true;
          settle();
        },
        answered: (refusal: number) => {
          answer = refusal;
          if (link.up) settle();
          else detach(link.destroy('lost').then(settle));
        },
      };
      this.direct.set(op, direct);
      link.send(op, unit);
    });
  }

  /**
   * Reads the stripe, whole or decoded, and writes the lacking units.
   *
   * @param avoid    units not to be read, beside those  @param condemn  what is held in place of `lacking` is given up
   *         first
   * @returns the first refusal, or NONE; UNREACHABLE: it could not be read
   */
  private async writeUnits(
    stripe: number,
    version: Version,
    lacking: readonly number[],
    { avoid = [], condemn = false }: { avoid?: readonly number[]; condemn?: boolean } = {},
  ): Promise<number> {
    const op = this.free.pop()!;
    try {
      const slotOffset = op * this.slots.slotBytes;
      try {
        const read = await this.reader.read({
          stripe,
          dataLength: version.stripeLength,
          epoch: version.epoch,
          counter: version.counter,
          exact: true,
          avoid: [...lacking.filter((unit) => isLacking(version.given, unit)), ...avoid],
        });
        this.bytes.set(read.bytes, slotOffset + this.slots.unitsOffset);
        read.release();
        if (condemn) await this.condemn(stripe, version, lacking);
      } catch (error) {
        if (!isOperating(error)) throw error;
        return Refusal.UNREACHABLE;
      }
      const { k, m } = this.code;
      // What is restored is not missing any more, nor what its holder has; the rest stays recorded, here too.
      const present = maskOf([...lacking, ...version.held.keys()]);
      const missing = without(version.missing, present),
        skipped = without(maskOf(Array.from({ length: k + m }, (_, unit) => unit)), maskOf(lacking));
      for (let attempt = 1; ; attempt++) {
        const identity = {
          codeId: this.code.id,
          clusterId: this.context.clusterId,
          fileId: this.file.id,
          mapEpoch: this.nodes.map.epoch,
          writerEpoch: version.epoch,
          commitMark: 0,
        };
        writeDataHeaders(
          this.words,
          slotOffset,
          this.slots,
          identity,
          stripe,
          version.stripeLength,
          version.counter,
          low(missing),
          high(missing),
        );
        const refusal = await new Promise<number>((resolve) => {
          this.settled[op] = resolve;
          this.pipeline.start(op, slotOffset, stripe, version.stripeLength, low(skipped), high(skipped));
        });
        if (refusal !== Refusal.STALE_MAP || attempt === MAP_ATTEMPTS) return refusal;
        await this.renewMap();
      }
    } finally {
      this.free.push(op);
    }
  }

  /** @throws {TartanError} when a node doesn't answer: nothing is written then */
  private async condemn(stripe: number, version: Version, units: readonly number[]): Promise<void> {
    for (const unit of units) {
      const { payloadCrc } = version.held.get(unit)!;
      await this.withMap(async () =>
        this.nodes.linkTo(nodeOfUnit(this.layout, stripe, unit))?.request({
          $case: 'condemn',
          value: {
            fileId: this.file.id,
            stripe,
            unit,
            writerEpoch: version.epoch,
            counter: version.counter,
            payloadCrc,
          },
        }),
      );
    }
  }

  // --- the map, the rate

  private async withMap<T>(ask: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await ask();
      } catch (error) {
        if (codeOf(error) !== 'ERR_STALE_MAP' || attempt === MAP_ATTEMPTS) throw error;
        await this.renewMap();
      }
    }
  }

  private async renewMap(): Promise<void> {
    const map = await readMap(this.context.store);
    if (map.epoch > this.nodes.map.epoch) this.nodes.map = map;
    if (map.epoch > this.reader.nodes.map.epoch) this.reader.nodes.map = map;
  }

  private async isRemoved(): Promise<boolean> {
    try {
      return (await readFile(this.context.store, this.file.id)).state === 'deleted';
    } catch (error) {
      if (codeOf(error) === 'ERR_NOT_FOUND') return true;
      if (!isOperating(error)) throw error;
      return false; // the store is away: what is committed stays so
    }
  }

  private async pace(bytes: number): Promise<void> {
    const { bytesPerSecond } = this.options;
    if (bytesPerSecond === undefined || bytes === 0) return;
    const now = this.context.clock.now();
    this.dueMs = Math.max(this.dueMs, now) + (bytes / bytesPerSecond) * 1000;
    if (this.dueMs > now) await sleep(this.context.clock, this.dueMs - now);
  }

  /** Units of a stripe that are to be on other nodes than they are. */
  private unitsThatMove(stripe: number): number[] {
    const { move } = this.options;
    if (move === undefined) return [];
    if (move.to !== NOBODY) return [unitOfNode(this.layout, stripe, move.index)].filter((unit) => unit >= 0);
    return Array.from({ length: this.code.k + this.code.m }, (_, unit) => unit).filter(
      (unit) => nodeOfUnit(this.layout, stripe, unit) !== nodeOfUnit(this.present, stripe, unit),
    );
  }

  private lengthOf(stripeLength: number, unit: number): number {
    return unitLength(stripeLength, this.file.unitBytes, unit, this.code.k);
  }
}

function isLacking(units: ReadonlyMap<number, UnitEntry>, unit: number): boolean {
  const entry = units.get(unit);
  return entry === undefined || entry.damaged === true;
}

/** Each once, wherever it is sound. */
function soundUnits({ held, given }: Version): UnitEntry[] {
  const sound = new Map<number, UnitEntry>();
  for (const entry of [...given.values(), ...held.values()]) if (entry.damaged !== true) sound.set(entry.unit, entry);
  return [...sound.values()];
}

const NONE = new Uint8Array(0);

// Sets of units as numbers below 2^36: beyond what bit operators take.
const TWO_32 = 0x1_0000_0000;
const low = (mask: number): number => mask % TWO_32;
const high = (mask: number): number => Math.floor(mask / TWO_32);
const maskOf = (units: readonly number[]): number => [...new Set(units)].reduce((mask, unit) => mask + 2 ** unit, 0);
const join = (lowBits: number, highBits: number): number => (highBits >>> 0) * TWO_32 + (lowBits >>> 0);
const union = (a: number, b: number): number => join(low(a) | low(b), high(a) | high(b));
const without = (a: number, b: number): number => join(low(a) & ~low(b), high(a) & ~high(b));
