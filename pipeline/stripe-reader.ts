/**
 * Reads stripes of one file into a ring of stripe slots: whole, or degraded by decoding; never a byte whose checksum
 * fails.
 *
 * A stripe is read as a graph: its data units (where k ≤ m, m + 1 units, so that stale nodes can't speak for all), then
 * deliver. When a unit is missing, late or wrong the graph rolls back and a compensating one is built from what is
 * known by then: the exact version wanted, and the units that can still be had; it decodes what is missing. Every unit
 * that arrives is verified here (seal, payload CRC, summary); a decoded unit must match the CRC a parity header holds
 * for it.
 *
 * Invariant: a slot is filled again only when every request on it is answered, or its link is destroyed and flushed: a
 * late answer can't land in another stripe.
 */
import type { Coder, CodingQueue, MemoryRegion, StripePlace } from 'tartan-rdma';
import { Access, Flag, Status } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { FileRecord } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import { decodePlan } from '../erasure/code/index.js';
import type { GraphTemplate } from '../erasure/graph/index.js';
import { GraphExecutor, NodeKind, stripeRead, unitNodes } from '../erasure/graph/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { layoutOf, nodeOfUnit, unitLength } from '../erasure/layout/index.js';
import { GiveBack } from './give-back.js';
import type { NodeLink } from './node-link.js';
import { NodeSet } from './node-set.js';
import type { RingMemory } from './ring-memory.js';
import type { SessionContext } from './session.js';
import { composeHeader } from './stripe-headers.js';
import type { ClusterMap } from '../cluster/records.js';
import { epochFloor, readFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { Refusal, refusalCode } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { headerOffsetIn, stripeSlotLayout } from '../wire/slot-layout.js';
import {
  DATA_HEADER_BYTES,
  PARITY_HEADER_STRIDE,
  W,
  checkHeader,
  compareVersions,
  digestLayout,
  headerBytesOf,
  headerFileId,
  headerStripe,
  headerUnit,
} from '../wire/unit-header.js';
import { detach } from '../wire/front-door.js';

/** What reading needs of a client, or of a switch that decodes for one. */
export interface ReaderContext extends SessionContext {
  readonly store: ClusterStore;
  /** For logs and status. */
  readonly name: string;
  readonly transport: 'auto' | 'tcp' | 'shm';
  /** A peer that does not answer a probe for so long is taken for gone. */
  readonly deadlineMs: number;
  readonly heartbeatMs: number;
  readonly memory: RingMemory;
}

export interface ReadProgress {
  stripes: number;
  degradedStripes: number;
  checksumFailures: number;
  units: number;
}

/** What a read needs to know of one stripe version. */
export interface StripeWish {
  readonly stripe: number;
  /** Data bytes the stripe must have; undefined: as its headers say (takeover). */
  readonly dataLength: number | undefined;
  /** Highest version wanted, or with `exact` the only one. */
  readonly epoch: number;
  readonly counter: number;
  readonly exact: boolean;
  /** Versions of lower writer epochs were rolled back (FileRecord.floors). Default 0: none are known. */
  readonly floorEpoch?: number;
  /** Units not to be read: what they hold is to be told from the others. */
  readonly avoid?: readonly number[];
  /** A unit, data or parity, to be made from the others, header and all: {@link StripeResult.made}. It is not read. */
  readonly make?: number;
}

export interface StripeResult {
  readonly bytes: Uint8Array;
  readonly dataLength: number;
  readonly epoch: number;
  readonly counter: number;
  /** The unit that was to be made: where it lies, until released. */
  readonly made?: MadeUnit;
  /** Gives the slot back; the bytes are valid until then. */ release(): void;
}

/** A unit with its header in ring memory. Bytes. */
export interface MadeUnit {
  readonly region: MemoryRegion;
  readonly headerOffset: number;
  readonly headerBytes: number;
  readonly payloadOffset: number;
  readonly payloadBytes: number;
}

const READ_RING_BYTES = 16 << 20;
const MAX_SLOTS = 64;
/** Reasons for a failed node of the graph, beyond refusals. */
const WRONG_VERSION = 100,
  BAD_UNIT = 101,
  ROLLED_BACK = 102,
  AVOIDED = 103;

interface Job {
  wish: StripeWish;
  slot: number;
  /** Units that are not to be asked for again in this read, with the reason. */
  readonly lost: Map<number, number>;
  epoch: number;
  counter: number;
  exact: boolean;
  dataLength: number;
  units: number[];
  decode: number[];
  nodes: Int8Array;
  coder: Coder | undefined;
  attempts: number;
  /** Lost nodes have been asked once more in this read. */
  revived: boolean;
  /** The highest commit mark that this read goes by: the wish's, or what a node told. */
  markEpoch: number;
  markCounter: number;
  /** A node told of a higher one. */
  outdated: boolean;
  floorEpoch: number;
  resolve: (result: StripeResult) => void;
  reject: (error: Error) => void;
}

export class StripeReader {
  readonly progress: ReadProgress = { stripes: 0, degradedStripes: 0, checksumFailures: 0, units: 0 };
  readonly nodes: NodeSet;
  readonly slotCount: number;
  /** A unit of this stripe failed its checksum, at its node or here, or its node's disk can't read it. */
  onDamaged: ((stripe: number) => void) | undefined;

  private readonly context: ReaderContext;
  private file: FileRecord;
  private readonly code: Code;
  private layout: Layout;
  private readonly slots: StripeSlotLayout;
  private readonly region: MemoryRegion;
  private readonly ringBytes: number;
  private readonly words: Uint32Array;
  private readonly bytes: Uint8Array;
  private readonly coding: CodingQueue;
  private readonly verifier: Coder;
  private readonly decoders = new Map<string, Coder>();
  private readonly executor: GraphExecutor;
  private readonly templates = new Map<string, { template: GraphTemplate; nodes: Int8Array }>();
  private readonly jobs: (Job | undefined)[];
  private readonly free: number[] = [];
  private readonly waiting: Job[] = [];
  /** Request id under way per slot and unit, 0: none. */
  private readonly requests: Uint32Array;
  private readonly underWay: Uint8Array;
  private nextRequest = 1;
  private readonly requestPlace = new Map<
    number,
    { readonly slot: number; readonly unit: number; readonly node: number; verifying: boolean }
  >();
  private closed = false;
  private readonly units: number;
  /** The map epoch up to which it is known which nodes hold the file. */
  private followed = 0;

  constructor(context: ReaderContext, file: FileRecord, code: Code, layout: Layout, map: ClusterMap) {
    this.context = context;
    this.file = file;
    this.code = code;
    this.layout = layout;
    this.units = code.k + code.m;
    this.slots = stripeSlotLayout(code.k, code.m, layout.unitBytes);
    const { slotBytes } = this.slots;
    this.ringBytes = context.memory.take(
      Math.min(Math.max(READ_RING_BYTES, 2 * slotBytes), MAX_SLOTS * slotBytes),
      slotBytes,
      slotBytes,
      `read '${file.name}': a stripe of ${code.name} with ${layout.unitBytes}-byte units does not fit`,
    );
    this.slotCount = this.ringBytes / slotBytes;
    const taken = new GiveBack();
    taken.add(() => context.memory.give(this.ringBytes));
    try {
      const region = (this.region = context.device.allocate(this.ringBytes, Access.REMOTE_WRITE));
      taken.add(() => region.deregister());
      this.words = new Uint32Array(region.buffer);
      this.bytes = new Uint8Array(region.buffer);
      const verifier = (this.verifier = context.device.createCoder({
        k: code.k,
        inputUnits: [0],
        outputUnits: [],
        matrix: new Uint8Array(0),
        digest: digestLayout,
      }));
      taken.add(() => verifier.destroy());
      this.coding = context.device.createCodingQueue((_opcode, status, wrId, _length, _imm, detail) => {
        this.coded(wrId, status, detail);
      });
    } catch (error) {
      taken.run();
      throw error;
    }
    this.executor = new GraphExecutor(this.slotCount, {
      issue: (slot, node, kind, argument) => {
        this.issue(slot, node, kind, argument);
      },
      undo: () => {},
      finished: (slot) => {
        this.finished(slot);
      },
      rolledBack: (slot, node, reason) => {
        this.rolledBack(slot, node, reason);
      },
    });
    this.jobs = new Array<Job | undefined>(this.slotCount).fill(undefined);
    for (let slot = this.slotCount - 1; slot >= 0; slot--) this.free.push(slot);
    this.requests = new Uint32Array(this.slotCount * this.units);
    this.underWay = new Uint8Array(this.slotCount);
    this.nodes = new NodeSet(map, {
      context,
      nodes: file.nodes,
      role: 'reader',
      name: context.name,
      fileId: file.id,
      unitBytes: 0,
      slots: 0,
      receiveSlots: this.slotCount * 2,
      transport: context.transport,
      heartbeatMs: context.heartbeatMs,
      deadlineMs: context.deadlineMs,
      owner: {
        locate: () => {
          throw new Error('a reader sends no units');
        },
        onWritten: () => {},
        onAnswer: () => {},
        onLinkDown: (link) => {
          this.linkDown(link);
        },
        onRead: (_link, id) => {
          this.arrived(id);
        },
        onReadFailed: (_link, id, refusal, epoch, counter) => {
          this.failed(id, refusal, epoch, counter);
        },
      },
    });
  }

  /**
   * Connects to what the map calls up; nodes that can't be reached are read around.
   * @throws {TartanError} ERR_DEVICE_KIND, ERR_AUTHENTICATION
   */
  async connect(): Promise<void> {
    await this.followMoves();
    const failures = await this.nodes.connectUp(this.context.deadlineMs);
    // These say what is wrong here, not there.
    const own = failures.find(({ error }) => ['ERR_DEVICE_KIND', 'ERR_AUTHENTICATION'].includes(codeOf(error) ?? ''));
    if (own !== undefined) throw own.error;
  }

  /** Reads one stripe; waits for a slot. The result's bytes are the stripe's data, in ring memory until released. */
  read(wish: StripeWish): Promise<StripeResult> {
    return new Promise((resolve, reject) => {
      if (this.closed) {
        reject(new TartanError('ERR_CLOSED', `Cannot read '${this.file.name}': it is closed`));
        return;
      }
      this.waiting.push({
        wish,
        slot: -1,
        lost: new Map(
          [...(wish.avoid ?? []), ...(wish.make === undefined ? [] : [wish.make])].map((unit) => [unit, AVOIDED]),
        ),
        epoch: wish.epoch,
        counter: wish.counter,
        exact: wish.exact,
        dataLength: wish.dataLength ?? -1,
        units: [],
        decode: [],
        nodes: new Int8Array(0),
        coder: undefined,
        attempts: 0,
        revived: false,
        markEpoch: wish.epoch,
        markCounter: wish.counter,
        outdated: false,
        floorEpoch: wish.floorEpoch ?? 0,
        resolve,
        reject,
      });
      this.next();
    });
  }

  async destroy(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.nodes.destroy('closed');
    for (const job of this.waiting.splice(0))
      job.reject(new TartanError('ERR_CLOSED', `Reading '${this.file.name}' was ended`));
    await this.coding.destroy();
    for (const coder of this.decoders.values()) coder.destroy();
    this.verifier.destroy();
    await this.region.deregister();
    this.context.memory.give(this.ringBytes);
  }

  // --- one attempt

  private next(): void {
    while (this.free.length > 0 && this.waiting.length > 0) {
      const job = this.waiting.shift()!;
      job.slot = this.free.pop()!;
      this.jobs[job.slot] = job;
      this.begin(job);
    }
  }

  private begin(job: Job): void {
    const { k, m } = this.code;
    const reachable = (unit: number): boolean => !job.lost.has(unit) && this.linkFor(job, unit) !== undefined;
    const data: number[] = [],
      others: number[] = [];
    for (let unit = 0; unit < this.units; unit++) if (reachable(unit)) (unit < k ? data : others).push(unit);
    const made = job.wish.make !== undefined && job.wish.make >= k ? [job.wish.make] : [],
      degraded = data.length < k || made.length > 0;
    // Of an acknowledged version at most m units are missing: m + 1 units show the newest, fewer may all be stale.
    const wanted = job.exact ? k : Math.max(k, m + 1);
    const units = [...data, ...others].slice(0, wanted);
    if (units.length < k) {
      if (job.revived) this.giveUp(job);
      else detach(this.revive(job));
      return;
    }
    job.units = units;
    job.decode = degraded
      ? Array.from({ length: k }, (_, i) => i)
          .filter((unit) => !data.includes(unit))
          .concat(made)
      : [];
    job.coder = degraded ? this.decoder(units, job.decode) : undefined;
    const key = `${units.join(' ')}${degraded ? 'd' : ''}`;
    let shape = this.templates.get(key);
    if (shape === undefined) {
      const template = stripeRead(units, degraded);
      this.templates.set(key, (shape = { template, nodes: unitNodes(template, this.units) }));
    }
    job.nodes = shape.nodes;
    this.executor.start(job.slot, shape.template);
    this.context.hub.wake();
  }

  /** Whether a unit's node can be asked. */
  canReach(stripe: number, unit: number): boolean {
    return this.linkTo(stripe, unit) !== undefined;
  }

  private linkFor(job: Job, unit: number): NodeLink | undefined {
    return this.linkTo(job.wish.stripe, unit);
  }

  private linkTo(stripe: number, unit: number): NodeLink | undefined {
    const index = nodeOfUnit(this.layout, stripe, unit);
    return this.nodes.isDown(index) ? undefined : this.nodes.linkTo(index);
  }

  private issue(slot: number, node: number, kind: number, argument: number): void {
    const job = this.jobs[slot]!;
    if (kind === NodeKind.READ_UNIT) {
      const link = this.linkFor(job, argument);
      if (link === undefined) {
        this.executor.fail(slot, node, Refusal.UNREACHABLE);
        return;
      }
      const id = this.nextRequest;
      this.nextRequest = this.nextRequest === 0xffff_ffff ? 1 : this.nextRequest + 1;
      this.requests[slot * this.units + argument] = id;
      this.requestPlace.set(id, { slot, unit: argument, node: link.index, verifying: false });
      const at = slot * this.slots.slotBytes;
      link.read({
        requestId: id,
        fileId: this.file.id,
        stripe: job.wish.stripe,
        unit: argument,
        epoch: job.epoch,
        counter: job.counter,
        exact: job.exact,
        region: this.region,
        payloadOffset: at + this.slots.unitsOffset + argument * this.slots.unitBytes,
        capacity: this.slots.unitBytes,
        headerOffset: at + headerOffsetIn(this.slots, argument),
      });
      this.progress.units++;
    } else if (kind === NodeKind.ENCODE) {
      if (this.newest(job).mixed) {
        this.executor.fail(slot, node, WRONG_VERSION);
        return;
      }
      const at = slot * this.slots.slotBytes;
      const place: StripePlace = {
        region: this.region,
        unitsOffset: at + this.slots.unitsOffset,
        stride: this.slots.unitBytes,
        dataLength: job.dataLength,
        dataHeadersOffset: at + this.slots.dataHeadersOffset,
        dataHeaderStride: DATA_HEADER_BYTES,
        parityHeadersOffset: at + this.slots.parityHeadersOffset,
        parityHeaderStride: PARITY_HEADER_STRIDE,
      };
      this.coding.postEncode(slot * 64 + 63, job.coder!, place, Flag.DIGEST_OUTPUTS_STORE);
      this.context.hub.wake();
    } else {
      this.executor.done(slot, node);
    }
  }

  private arrived(id: number): void {
    const place = this.requestPlace.get(id);
    if (place === undefined || place.verifying) return; // answered already: a node that says so twice is not believed
    const { slot, unit } = place;
    const at = slot * this.slots.slotBytes;
    const headerOffset = at + headerOffsetIn(this.slots, unit),
      headerBytes = headerBytesOf(unit, this.code.k);
    const w = headerOffset >> 2;
    const length = this.words[w + W.UNIT_LENGTH]!;
    const fault = checkHeader(this.words, w, headerBytes, length);
    const job = this.jobs[slot]!;
    if (
      fault !== undefined ||
      length > this.slots.unitBytes ||
      headerFileId(this.words, w) !== this.file.id ||
      headerStripe(this.words, w) !== job.wish.stripe ||
      headerUnit(this.words, w) !== unit
    ) {
      this.progress.checksumFailures++;
      this.answered(id, BAD_UNIT);
      return;
    }
    // The id stays: the verification answers it, also when the link is lost meanwhile.
    place.verifying = true;
    this.coding.postVerify(
      slot * 64 + unit,
      this.verifier,
      this.region,
      headerOffset,
      headerBytes,
      at + this.slots.unitsOffset + unit * this.slots.unitBytes,
      length,
    );
    this.context.hub.wake();
  }

  private coded(wrId: number, status: number, _detail: number): void {
    if (status === Status.FLUSHED) return;
    const slot = Math.floor(wrId / 64),
      unit = wrId % 64;
    if (unit !== 63) {
      const id = this.requests[slot * this.units + unit]!;
      if (status !== Status.SUCCESS) {
        this.progress.checksumFailures++;
        this.answered(id, BAD_UNIT);
        return;
      }
      this.answered(id, this.versionFault(slot, unit));
      return;
    }
    const job = this.jobs[slot]!;
    const node = job.units.length;
    if (status === Status.SUCCESS && this.decodedMatches(job)) this.executor.done(slot, node);
    else {
      this.progress.checksumFailures++;
      this.executor.fail(slot, node, BAD_UNIT);
    }
  }

  /** Whether a verified unit is of a version that was asked for. */
  private versionFault(slot: number, unit: number): number {
    const job = this.jobs[slot]!;
    const w = (slot * this.slots.slotBytes + headerOffsetIn(this.slots, unit)) >> 2;
    const order = compareVersions(this.words[w + W.WRITER_EPOCH]!, this.words[w + W.COUNTER]!, job.epoch, job.counter);
    if (order > 0 || (job.exact && order !== 0)) return BAD_UNIT;
    // Its node was down when it was rolled back. Where k ≤ m such units alone could pass for the stripe.
    if (this.words[w + W.WRITER_EPOCH]! < job.floorEpoch) return ROLLED_BACK;
    if (job.exact) job.dataLength = this.words[w + W.STRIPE_LENGTH]!;
    return 0;
  }

  private decodedMatches(job: Job): boolean {
    const at = job.slot * this.slots.slotBytes;
    const data = job.decode.filter((unit) => unit < this.code.k);
    // Parity made from data that was read and verified needs no further proof; so does parity made from data that fits.
    if (data.length === 0) return true;
    const parity = job.units.find((unit) => unit >= this.code.k)!;
    const list = ((at + headerOffsetIn(this.slots, parity)) >> 2) + W.CRC_LIST;
    return data.every(
      (unit) => this.words[((at + headerOffsetIn(this.slots, unit)) >> 2) + W.PAYLOAD_CRC] === this.words[list + unit],
    );
  }

  private answered(id: number, fault: number): void {
    const place = this.requestPlace.get(id);
    if (place === undefined) return;
    this.requestPlace.delete(id);
    const { slot, unit } = place;
    this.requests[slot * this.units + unit] = 0;
    const job = this.jobs[slot]!;
    const node = job.nodes[unit]!;
    if (fault === 0) this.executor.done(slot, node);
    else {
      if (fault === BAD_UNIT || fault === Refusal.CHECKSUM || fault === Refusal.DISK) this.onDamaged?.(job.wish.stripe);
      job.lost.set(unit, fault);
      this.executor.fail(slot, node, fault);
    }
  }

  /** A node lacks the unit: perhaps because a version above the one asked for is committed, and took its place. */
  private failed(id: number, refusal: number, markEpoch: number, markCounter: number): void {
    const place = this.requestPlace.get(id);
    if (place === undefined || place.verifying) return;
    const job = this.jobs[place.slot]!;
    if (
      refusal === Refusal.NO_UNIT &&
      !job.wish.exact &&
      compareVersions(markEpoch, markCounter, job.markEpoch, job.markCounter) > 0
    ) {
      job.markEpoch = markEpoch;
      job.markCounter = markCounter;
      job.outdated = true;
    }
    this.answered(id, refusal);
  }

  private linkDown(link: NodeLink): void {
    const ids = [...this.requestPlace]
      .filter(([, place]) => place.node === link.index && !place.verifying)
      .map(([id]) => id);
    if (ids.length === 0) return;
    // The memory may be written until the link is flushed: only then may the slots be used again.
    // What arrived until then is being verified, and answered by that.
    detach(
      link.destroy('lost').then(() => {
        for (const id of ids)
          if (this.requestPlace.get(id)?.verifying === false) this.answered(id, Refusal.UNREACHABLE);
      }),
    );
  }

  // --- the graph's ends

  private finished(slot: number): void {
    const job = this.jobs[slot]!;
    const at = slot * this.slots.slotBytes;
    // All units verified; but do they speak of one version, and of the newest any of them shows?
    const { epoch, counter, dataLength, mixed } = this.newest(job);
    if (mixed) {
      this.again(job, epoch, counter, dataLength);
      return;
    }
    if (job.decode.length > 0 && job.dataLength !== dataLength) {
      // Decoded with another length than the stripe has: once more, knowing it.
      this.again(job, epoch, counter, dataLength);
      return;
    }
    // A newer committed version may be longer: it begins with the same bytes.
    if (job.wish.dataLength !== undefined && dataLength < job.wish.dataLength) {
      // So few units could be had that all were stale: once more, after a look at who is there.
      if (!job.revived) {
        this.anew(job);
        detach(this.revive(job));
        return;
      }
      this.end(
        job,
        new TartanError(
          'ERR_TOO_MANY_LOST',
          `Cannot read stripe ${job.wish.stripe} of '${this.file.name}': the units that can be had are of ` +
            `version ${epoch}.${counter} with ${dataLength} bytes, ${job.wish.dataLength} are committed`,
        ),
      );
      return;
    }
    this.progress.stripes++;
    if (job.decode.length > 0) this.progress.degradedStripes++;
    const from = at + this.slots.unitsOffset;
    let held = true;
    job.resolve({
      bytes: this.bytes.subarray(from, from + dataLength),
      dataLength,
      epoch,
      counter,
      ...(job.wish.make !== undefined && { made: this.made(job, job.wish.make, dataLength) }),
      release: () => {
        if (held) {
          held = false;
          this.recycle(slot);
        }
      },
    });
  }

  /** Completes the header of a unit that was made: the device has stored its digests. */
  private made(job: Job, unit: number, dataLength: number): MadeUnit {
    const slotOffset = job.slot * this.slots.slotBytes;
    composeHeader(this.words, slotOffset, this.slots, job.units[0]!, unit);
    return {
      region: this.region,
      headerOffset: slotOffset + headerOffsetIn(this.slots, unit),
      headerBytes: headerBytesOf(unit, this.code.k),
      payloadOffset: slotOffset + this.slots.unitsOffset + unit * this.slots.unitBytes,
      payloadBytes: unitLength(dataLength, this.slots.unitBytes, unit, this.code.k),
    };
  }

  /** A compensating read: exactly this version. */
  private again(job: Job, epoch: number, counter: number, dataLength: number): void {
    job.epoch = epoch;
    job.counter = counter;
    job.exact = true;
    job.dataLength = dataLength;
    if (++job.attempts > 2 * this.units + 4) {
      this.giveUp(job);
      return;
    }
    this.context.clock.setTimer(0, () => {
      if (this.jobs[job.slot] === job) this.begin(job);
    });
  }

  /** Forgets what was found: asks again for the newest version there is. */
  private anew(job: Job): void {
    job.epoch = job.markEpoch;
    job.counter = job.markCounter;
    job.exact = job.wish.exact;
    job.dataLength = job.wish.dataLength ?? -1;
  }

  /** The newest version among the `count` units that arrived and were verified; epoch 0: none did. */
  private newest(job: Job): { epoch: number; counter: number; dataLength: number; mixed: boolean; count: number } {
    const at = job.slot * this.slots.slotBytes;
    let epoch = 0,
      counter = 0,
      dataLength = 0,
      mixed = false,
      count = 0;
    for (const unit of job.units) {
      if (job.lost.has(unit)) continue;
      count++;
      const w = (at + headerOffsetIn(this.slots, unit)) >> 2;
      const e = this.words[w + W.WRITER_EPOCH]!,
        c = this.words[w + W.COUNTER]!;
      const order = epoch === 0 ? 0 : compareVersions(e, c, epoch, counter);
      if (order !== 0) mixed = true;
      if (epoch === 0 || order > 0) {
        epoch = e;
        counter = c;
        dataLength = this.words[w + W.STRIPE_LENGTH]!;
      }
    }
    return { epoch, counter, dataLength, mixed, count };
  }

  private rolledBack(slot: number, _node: number, _reason: number): void {
    const job = this.jobs[slot]!;
    if (++job.attempts > 2 * this.units + 4) {
      this.giveUp(job);
      return;
    }
    if ([...job.lost.values()].includes(Refusal.STALE_MAP)) {
      detach(this.renewMap(job, Refusal.STALE_MAP));
      return;
    }
    if (job.outdated) {
      job.outdated = false;
      for (const [unit, why] of job.lost) if (why === Refusal.NO_UNIT) job.lost.delete(unit);
      detach(
        this.renewFloor(job).then(() => {
          this.anew(job);
          if (this.jobs[slot] === job) this.begin(job);
        }),
      );
      return;
    }
    // What did arrive tells the version and the length that a decode needs, if it is enough to show the newest.
    const { epoch, counter, dataLength, count } = this.newest(job);
    const isAllThereIs = count === job.units.length; // only the decoding failed: for another length, perhaps
    if (!job.exact && count > 0 && (count > this.code.m || isAllThereIs)) {
      this.again(job, epoch, counter, dataLength);
      return;
    }
    this.context.clock.setTimer(0, () => {
      if (this.jobs[slot] === job) this.begin(job);
    });
  }

  /**
   * Before a read fails: nodes may have come back since their links were lost; or there may be no such file any more.
   */
  private async revive(job: Job): Promise<void> {
    job.revived = true;
    if (await this.isRemoved()) {
      this.end(job, new TartanError('ERR_NOT_FOUND', `Cannot read '${this.file.name}': it has been removed`));
      return;
    }
    await this.renewMap(job, Refusal.UNREACHABLE);
  }

  /**
   * A mark above the file's record covers versions that a newer owner may have rolled back: its record tells. Floor and
   * mark go together: below the floor of one takeover lies all that the marks before it covered.
   */
  private async renewFloor(job: Job): Promise<void> {
    try {
      const file = await readFile(this.context.store, this.file.id);
      // Mark and nodes go together: a node whose share has moved since knows nothing of newer versions.
      this.follow(file);
      job.floorEpoch = epochFloor(file, job.wish.stripe);
      if (compareVersions(file.commitEpoch, file.commitCounter, job.markEpoch, job.markCounter) <= 0) return;
      job.markEpoch = file.commitEpoch;
      job.markCounter = file.commitCounter;
    } catch (error) {
      // Without the store reading goes on by what is known; m + 1 units that agree are enough.
      if (!isOperating(error)) throw error;
    }
  }

  /** @returns false also when the cluster store does not answer */
  private async isRemoved(): Promise<boolean> {
    try {
      const file = await readFile(this.context.store, this.file.id);
      this.follow(file);
      return file.state === 'deleted';
    } catch (error) {
      if (!isOperating(error)) throw error;
      return codeOf(error) === 'ERR_NOT_FOUND';
    }
  }

  /** The record as it is now: shares may have moved to other nodes, or been spread over those that are left. */
  follow(file: FileRecord): void {
    this.nodes.follow(file.nodes);
    if (file.layout === this.file.layout) return;
    this.file = file;
    this.layout = layoutOf(file, this.code);
  }

  /** The map tells when shares of files have moved last; the file's record, read afterwards, where to. */
  private async followMoves(): Promise<void> {
    const { map } = this.nodes;
    if ((map.moved ?? 0) <= this.followed) return;
    try {
      this.follow(await readFile(this.context.store, this.file.id));
      this.followed = map.epoch;
    } catch (error) {
      // What can't be had where it was is read around, and looked for again before a read fails.
      if (!isOperating(error)) throw error;
    }
  }

  /** Reads the map, connects to what it calls up, and asks again for units that were lost for this reason. */
  private async renewMap(job: Job, reason: number): Promise<void> {
    try {
      this.nodes.map = await readMap(this.context.store);
      await this.followMoves();
    } catch (error) {
      if (!isOperating(error)) throw error;
    }
    await this.nodes.connectUp(this.context.deadlineMs);
    for (const [unit, why] of job.lost) if (why === reason) job.lost.delete(unit);
    if (this.closed) this.end(job, new TartanError('ERR_CLOSED', `Reading '${this.file.name}' was ended`));
    else this.begin(job);
  }

  private giveUp(job: Job): void {
    const reasons = [...job.lost].map(
      ([unit, reason]) =>
        `unit ${unit}: ` +
        (reason === BAD_UNIT
          ? 'ERR_CHECKSUM'
          : reason === ROLLED_BACK
            ? 'rolled back'
            : reason === AVOIDED
              ? 'not to be read'
              : refusalCode(reason)),
    );
    const down = Array.from({ length: this.units }, (_, unit) => unit).filter(
      (unit) => !job.lost.has(unit) && this.linkFor(job, unit) === undefined,
    );
    if (down.length > 0) reasons.push(`units ${down.join(', ')}: node not reachable`);
    this.end(
      job,
      new TartanError(
        'ERR_TOO_MANY_LOST',
        `Cannot read stripe ${job.wish.stripe} of '${this.file.name}': fewer than ${this.code.k} units can be ` +
          `had (${reasons.join('; ')})`,
      ),
    );
  }

  private end(job: Job, error: TartanError): void {
    job.reject(error);
    this.recycle(job.slot);
  }

  private recycle(slot: number): void {
    this.jobs[slot] = undefined;
    this.free.push(slot);
    this.next();
  }

  private decoder(inputs: readonly number[], outputs: readonly number[]): Coder {
    const key = `${inputs.join(' ')}>${outputs.join(' ')}`;
    let coder = this.decoders.get(key);
    if (coder === undefined) {
      const plan = decodePlan(this.code, inputs, outputs);
      coder = this.context.device.createCoder({
        k: this.code.k,
        inputUnits: plan.inputUnits,
        outputUnits: plan.outputUnits,
        matrix: plan.matrix,
        digest: digestLayout,
      });
      if (this.decoders.size >= 64) {
        const [oldest, value] = [...this.decoders][0]!;
        this.decoders.delete(oldest);
        value.destroy();
      }
      this.decoders.set(key, coder);
    }
    return coder;
  }
}
