/**
 * The stripes of one file between "filled" and "acknowledged": the writer's staging ring and its state machine.
 *
 * Every byte stays in its staging slot until its stripe is acknowledged, so that it can be driven again, under the same
 * name, whichever way: through the switch or by this process (host mode, the same pipeline).
 *
 *   FREE ─▶ FILLING ─submit─▶ LIMBO ─┬─▶ SEALING ─▶ SWITCH ─┬─▶ DURABLE ─(in file order)─▶ FREE, or FILLING (the tail)
 *                              ▲     └─▶ HOST ──────────────┤
 *                              └────── refused, path lost ──┘
 *
 * Invariants: headers of a slot are written only in LIMBO, when no request on the slot is outstanding; acknowledgements
 * come in file order; a stripe is DURABLE only when every unit that its header does not call missing has been reported
 * durable under this very version; nothing is dispatched while the map is being repaired.
 */
import type { Coder, CodingQueue, MemoryRegion, StripePlace } from 'tartan-rdma';
import { Access, Flag, Status, statusName } from 'tartan-rdma';
import type { FileRecord } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { nodeOfUnit, stripeBytes } from '../erasure/layout/index.js';
import type { NodeSet } from '../pipeline/node-set.js';
import type { StripeIdentity } from '../pipeline/stripe-headers.js';
import { writeDataHeaders } from '../pipeline/stripe-headers.js';
import { StripePipeline } from '../pipeline/stripe-pipeline.js';
import { TartanError } from '../wire/errors.js';
import { MAX_TAGS, Refusal, refusalCode } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { stripeSlotLayout } from '../wire/slot-layout.js';
import { DATA_HEADER_BYTES, PARITY_HEADER_STRIDE, digestLayout } from '../wire/unit-header.js';
import type { ClientContext } from './context.js';
import type { StripePath } from './stripe-path.js';

const State = { FREE: 0, FILLING: 1, LIMBO: 2, SEALING: 3, SWITCH: 4, HOST: 5, DURABLE: 6 } as const;

/** Not a view of the ring: that may be gone. */
const NO_ROOM = new Uint8Array(0);
/** Staging memory wanted for one file, when the budget allows: enough stripes to cover a group commit. */
const STAGING_BYTES = 32 << 20;
const MAX_STAGING_SLOTS = 512;
/** Refusals of one stripe in a row, without a change of map or path, before the writer gives up. */
const MAX_ATTEMPTS = 8;
/**
 * A version's counter has 32 bits. From RENEW_AT on the file's owner goes on under its next writer epoch where a stripe
 * begins; when the cluster store is away it may put that off, up to RENEW_BEFORE. What is left then covers the versions
 * that one stripe can have: one for each byte flushed, 32 × 4 MiB of them at most, and those after name conflicts.
 */
const RENEW_AT = 2 ** 31;
const RENEW_BEFORE = 2 ** 32 - 2 ** 28;
const RENEW_AGAIN_AFTER = 2 ** 20;
const MAX_COUNTER = 0xffff_ffff;

export interface WindowOwner {
  /** Stripes have been acknowledged: progress, and perhaps space. */
  onAcknowledged(): void;
  /** A unit could not be stored where the map says: nodes must be looked at before anything is sent again. */
  onDisturbed(suspectIndex: number, refusal: number, viaSwitch: boolean): void;
  /** More nodes of a stripe are down than the code can bear: it stays in limbo until the map changes. */
  onStarved(message: string): void;
  /** All is acknowledged, and no stripe begins before renew() or postponeRenewal() is called. */
  onUsedUp(): void;
  onFatal(error: TartanError): void;
}

export class WriteWindow {
  readonly slots: StripeSlotLayout;
  readonly tags: number;
  readonly region: MemoryRegion;
  readonly bytes: Uint8Array;
  readonly identity: StripeIdentity;
  readonly counters = { stripes: 0, redriven: 0, bytesIn: 0 };
  /** Acknowledged bytes of the file, from its start. */
  acknowledgedBytes = 0;
  /** Counter of the last acknowledged version. */
  acknowledgedCounter = 0;
  readonly pipeline: StripePipeline;
  /**
   * While a takeover has not decided, headers say nothing of what is committed: an old version must not be freed for
   * it.
   */
  undecided = false;

  private readonly owner: WindowOwner;
  private readonly context: ClientContext;
  private readonly layout: Layout;
  private readonly nodes: NodeSet;
  private readonly words: Uint32Array;
  private readonly coding: CodingQueue;
  private readonly sealer: Coder;
  private readonly place: StripePlace;
  private readonly state: Uint8Array;
  private readonly stripe: Float64Array;
  private readonly length: Uint32Array;
  private readonly counter: Uint32Array;
  private readonly attempts: Uint8Array;
  private readonly dispatched: Uint8Array;
  private readonly order: Uint16Array;
  private orderHead = 0;
  private orderCount = 0;
  private readonly freeTags: number[] = [];
  private nextCounter = 1;
  private renewAt = RENEW_AT;
  private path: StripePath | undefined;
  private halted = false;
  private renumber = false;
  private failed = false;
  private readonly downNodes: Uint8Array;
  private anyDown = false;
  private readonly ringBytes: number;

  // The stripe being filled.
  private fillTag = -1;
  private fill = 0;
  private fillStripe = 0;
  /** Bytes of the fill stripe that were submitted by the last flush. */
  private flushed = 0;

  /** @throws {TartanError} ERR_RING_MEMORY when two stripes do not fit the budget */
  constructor(
    context: ClientContext,
    file: FileRecord,
    code: Code,
    layout: Layout,
    nodes: NodeSet,
    owner: WindowOwner,
  ) {
    this.context = context;
    this.owner = owner;
    this.layout = layout;
    this.nodes = nodes;
    this.slots = stripeSlotLayout(code.k, code.m, layout.unitBytes);
    const { slotBytes } = this.slots;
    this.ringBytes = context.memory.take(
      Math.min(Math.max(STAGING_BYTES, 4 * slotBytes), MAX_STAGING_SLOTS * slotBytes),
      slotBytes,
      2 * slotBytes,
      `write '${file.name}': two stripes of ${code.name} with ${layout.unitBytes}-byte units do not fit`,
    );
    this.tags = Math.min(this.ringBytes / slotBytes, MAX_TAGS);
    this.region = context.device.allocate(this.ringBytes, Access.LOCAL);
    this.words = new Uint32Array(this.region.buffer);
    this.bytes = new Uint8Array(this.region.buffer);
    this.identity = {
      codeId: code.id,
      clusterId: context.clusterId,
      fileId: file.id,
      mapEpoch: nodes.map.epoch,
      writerEpoch: file.writerEpoch,
      commitMark: 0,
    };
    this.state = new Uint8Array(this.tags);
    this.stripe = new Float64Array(this.tags);
    this.length = new Uint32Array(this.tags);
    this.counter = new Uint32Array(this.tags);
    this.attempts = new Uint8Array(this.tags);
    this.dispatched = new Uint8Array(this.tags);
    this.order = new Uint16Array(this.tags);
    for (let tag = this.tags - 1; tag >= 0; tag--) this.freeTags.push(tag);
    this.downNodes = new Uint8Array(nodes.count);
    this.sealer = context.device.createCoder({
      k: code.k,
      inputUnits: Array.from({ length: code.k }, (_, i) => i),
      outputUnits: [],
      matrix: new Uint8Array(0),
      digest: digestLayout,
    });
    this.coding = context.device.createCodingQueue((_opcode, status, tag) => {
      this.sealed(tag, status);
    });
    this.place = {
      region: this.region,
      unitsOffset: 0,
      stride: layout.unitBytes,
      dataLength: 0,
      dataHeadersOffset: 0,
      dataHeaderStride: DATA_HEADER_BYTES,
      parityHeadersOffset: 0,
      parityHeaderStride: PARITY_HEADER_STRIDE,
    };
    this.pipeline = new StripePipeline({
      hub: context.hub,
      code,
      layout,
      slots: this.slots,
      region: this.region,
      maxOps: this.tags,
      sealed: false,
      linkTo: (index) => nodes.linkTo(index),
      owner: {
        onReleased: () => {},
        onSettled: (tag, refusal, unit, epoch) => {
          this.settled(tag, refusal, unit, epoch, false);
        },
      },
    });
    this.refreshMap();
  }

  // --- filling

  /** Bytes that can be appended now without waiting. */
  get room(): number {
    if (this.failed || this.tailBusy) return 0;
    const full = stripeBytes(this.layout);
    return (this.fillTag >= 0 ? full - this.fill : 0) + (this.usedUp ? 0 : this.freeTags.length * full);
  }

  /** All that was appended is acknowledged. */
  get idle(): boolean {
    return this.orderCount === 0 && (this.fillTag < 0 || this.fill === this.flushed);
  }

  get unacknowledged(): number {
    return this.orderCount;
  }

  /** Continues a file: the next byte goes to `stripe`; a short tail is appended again by the caller. */
  seek(stripe: number, acknowledgedBytes: number): void {
    this.fillStripe = stripe;
    this.acknowledgedBytes = acknowledgedBytes;
  }

  /** Where the next bytes of the file go: a view of ring memory, at most `most` long; empty when there is no room. */
  reserve(most: number): Uint8Array {
    if (this.failed || this.tailBusy) return NO_ROOM;
    if (this.fillTag < 0) {
      if (this.usedUp) {
        if (this.orderCount === 0) this.owner.onUsedUp();
        return NO_ROOM;
      }
      if (!Number.isSafeInteger((this.fillStripe + 1) * stripeBytes(this.layout))) {
        this.fatal('ERR_CAPACITY', `Cannot write stripe ${this.fillStripe}: no file is longer than 2^53 - 1 bytes`);
        return NO_ROOM;
      }
      const tag = this.freeTags.pop();
      if (tag === undefined) return NO_ROOM;
      this.fillTag = tag;
      this.fill = 0;
      this.flushed = 0;
      this.state[tag] = State.FILLING;
    }
    const at = this.fillTag * this.slots.slotBytes + this.slots.unitsOffset + this.fill;
    return this.bytes.subarray(at, at + Math.min(most, stripeBytes(this.layout) - this.fill));
  }

  /** `count` bytes of the last reserve() are filled in. */
  commit(count: number): void {
    this.fill += count;
    this.counters.bytesIn += count;
    // A flush may have sent the stripe's beginning since the room was reserved: the whole follows when that is settled.
    if (this.isFull && !this.tailBusy) this.submitFill();
  }

  /** Copies as much of `chunk` as there is room for. @returns bytes taken */
  append(chunk: Uint8Array): number {
    let taken = 0;
    while (taken < chunk.length) {
      const view = this.reserve(chunk.length - taken);
      if (view.length === 0) break;
      view.set(taken === 0 && view.length === chunk.length ? chunk : chunk.subarray(taken, taken + view.length));
      taken += view.length;
      this.commit(view.length);
    }
    return taken;
  }

  /** Sends the short tail, if there is one with bytes not sent yet; it stays in place to be continued. */
  flushTail(): void {
    if (this.fillTag >= 0 && this.fill > this.flushed && !this.tailBusy) {
      this.flushed = this.fill;
      this.submit(this.fillTag, this.fillStripe, this.fill);
    }
  }

  // --- path and map

  get currentPath(): StripePath | undefined {
    return this.path;
  }

  /** New stripes go this way; undefined: host mode. Stripes under way finish, or fail, where they are. */
  setPath(path: StripePath | undefined): void {
    this.path = path;
    this.attempts.fill(0);
  }

  /** For the path's owner. */
  pathSettled(tag: number, refusal: number, unit: number, mapEpoch: number): void {
    this.settled(tag, refusal, unit, mapEpoch, true);
  }

  /** Nothing is dispatched until resume(). */
  halt(): void {
    this.halted = true;
  }

  /** The node set's map is current and links are there: goes on, driving again what is in limbo. */
  resume(): void {
    this.refreshMap();
    this.halted = false;
    this.pump();
  }

  // --- versions

  /** The owner has the next writer epoch, and has decided that all written so far is part of the file. */
  renew(writerEpoch: number): void {
    this.identity.writerEpoch = writerEpoch;
    this.identity.commitMark = 0;
    this.acknowledgedCounter = 0;
    this.nextCounter = 1;
    this.renewAt = RENEW_AT;
  }

  /** The next epoch can't be had now: goes on with the present one. @returns false when it has to be had */
  postponeRenewal(): boolean {
    if (this.nextCounter >= RENEW_BEFORE) return false;
    this.renewAt = Math.min(this.nextCounter + RENEW_AGAIN_AFTER, RENEW_BEFORE);
    return true;
  }

  /** Stripes that are acknowledged; asked when nothing is under way and none is being filled. */
  get stripesWritten(): number {
    return this.fillStripe;
  }

  /** Whether the next stripe has to wait for another writer epoch. A takeover has just begun one. */
  private get usedUp(): boolean {
    return this.fillTag < 0 && this.nextCounter >= this.renewAt && !this.undecided;
  }

  private takeCounter(): number {
    if (this.nextCounter > MAX_COUNTER) {
      this.fatal(
        'ERR_CAPACITY',
        `Cannot write stripe ${this.fillStripe}: the owner's ${MAX_COUNTER} versions are used`,
      );
      return MAX_COUNTER; // nothing more is sent
    }
    return this.nextCounter++;
  }

  /** Gives back ring memory; everything must have been ended before (path, links). */
  async destroy(): Promise<void> {
    this.failed = true;
    await this.coding.destroy();
    await this.pipeline.destroy();
    this.sealer.destroy();
    await this.region.deregister();
    this.context.memory.give(this.ringBytes);
  }

  // --- the state machine

  private get tailBusy(): boolean {
    return this.fillTag >= 0 && this.state[this.fillTag] !== State.FILLING;
  }

  private get isFull(): boolean {
    return this.fillTag >= 0 && this.fill === stripeBytes(this.layout);
  }

  private submitFill(): void {
    const tag = this.fillTag,
      stripe = this.fillStripe,
      length = this.fill;
    this.fillTag = -1;
    this.fillStripe++;
    this.submit(tag, stripe, length);
  }

  private submit(tag: number, stripe: number, length: number): void {
    this.stripe[tag] = stripe;
    this.length[tag] = length;
    this.counter[tag] = this.takeCounter();
    this.attempts[tag] = 0;
    this.dispatched[tag] = 0;
    this.state[tag] = State.LIMBO;
    this.order[(this.orderHead + this.orderCount++) % this.tags] = tag;
    this.counters.stripes++;
    if (!this.halted && !this.renumber) this.dispatch(tag);
  }

  private dispatch(tag: number): void {
    if (this.failed) return;
    const stripe = this.stripe[tag]!,
      length = this.length[tag]!;
    let missingLo = 0,
      missingHi = 0;
    if (this.anyDown) {
      let count = 0;
      for (let unit = 0; unit < this.slots.k + this.slots.m; unit++) {
        if (this.downNodes[nodeOfUnit(this.layout, stripe, unit)] === 0) continue;
        count++;
        if (unit < 32) missingLo = (missingLo | (1 << unit)) >>> 0;
        else missingHi |= 1 << (unit - 32);
      }
      if (count > this.slots.m) {
        this.owner.onStarved(
          `Cannot write stripe ${stripe}: ${count} of its nodes are down, at most ${this.slots.m} may be`,
        );
        return;
      }
    }
    if (this.dispatched[tag] !== 0) this.counters.redriven++;
    this.dispatched[tag] = 1;
    writeDataHeaders(
      this.words,
      tag * this.slots.slotBytes,
      this.slots,
      this.identity,
      stripe,
      length,
      this.counter[tag]!,
      missingLo,
      missingHi,
    );
    if (this.path?.usable === true) {
      this.state[tag] = State.SEALING;
      const place = this.place,
        at = tag * this.slots.slotBytes;
      place.unitsOffset = at + this.slots.unitsOffset;
      place.dataLength = length;
      place.dataHeadersOffset = at + this.slots.dataHeadersOffset;
      place.parityHeadersOffset = at + this.slots.parityHeadersOffset;
      this.coding.postEncode(tag, this.sealer, place, Flag.DIGEST_INPUTS_WRITE);
      this.context.hub.wake();
    } else {
      this.state[tag] = State.HOST;
      this.pipeline.start(tag, tag * this.slots.slotBytes, stripe, length, missingLo, missingHi);
    }
  }

  private sealed(tag: number, status: number): void {
    if (status === Status.FLUSHED || this.failed) return;
    if (status !== Status.SUCCESS) throw new Error(`sealing staging slot ${tag} failed with ${statusName(status)}`);
    if (this.path?.usable === true && !this.halted) {
      this.state[tag] = State.SWITCH;
      this.path.send(tag, this.length[tag]!, this.counter[tag]!);
    } else {
      this.state[tag] = State.LIMBO;
      if (!this.halted && !this.renumber) this.dispatch(tag);
      else this.pump();
    }
  }

  private settled(tag: number, refusal: number, unit: number, mapEpoch: number, viaSwitch: boolean): void {
    if (this.failed) return;
    if (refusal === Refusal.NONE) {
      this.state[tag] = State.DURABLE;
      this.advance();
      if (this.renumber) this.pump();
      return;
    }
    this.state[tag] = State.LIMBO;
    const stripe = this.stripe[tag]!;
    const node = nodeOfUnit(this.layout, stripe, unit);
    switch (refusal) {
      case Refusal.STALE_WRITER_EPOCH:
        this.fatal(
          'ERR_FENCED',
          `Cannot write stripe ${stripe}: writer epoch ${this.identity.writerEpoch} has been fenced, another ` +
            'writer owns the file',
        );
        return;
      case Refusal.STALE_VERSION:
        this.fatal(
          'ERR_STALE_VERSION',
          `Cannot write stripe ${stripe}: node ${this.nodes.entry(node)?.id ?? node} holds a newer version ` +
            `than ${this.identity.writerEpoch}.${this.counter[tag]}`,
        );
        return;
      case Refusal.DISK_FULL:
        this.fatal(
          'ERR_DISK_FULL',
          `Cannot write stripe ${stripe}: the store of node ${this.nodes.entry(node)?.id ?? node} is full`,
        );
        return;
      case Refusal.NO_UNIT:
        this.fatal(
          'ERR_NOT_FOUND',
          `Cannot write stripe ${stripe}: node ${this.nodes.entry(node)?.id ?? node} knows no such file, it ` +
            'has been removed',
        );
        return;
      case Refusal.NAME_CONFLICT:
        this.renumber = true;
        this.pump();
        return;
    }
    if (viaSwitch && refusal === Refusal.UNREACHABLE && this.path?.up !== true) {
      // The path itself is gone; the nodes are not suspected.
      if (!this.halted && !this.renumber) this.dispatch(tag);
      return;
    }
    if (
      ++this.attempts[tag]! >= MAX_ATTEMPTS &&
      mapEpoch <= this.identity.mapEpoch &&
      refusal !== Refusal.MAP_UNAVAILABLE &&
      refusal !== Refusal.UNREACHABLE
    ) {
      this.fatal(
        refusalCode(refusal),
        `Cannot write stripe ${stripe}: node ${this.nodes.entry(node)?.id ?? node} refused ` +
          `unit ${unit} ${this.attempts[tag]} times (${refusalCode(refusal)})`,
      );
      return;
    }
    this.owner.onDisturbed(node, refusal, viaSwitch);
    if (!this.halted && !this.renumber) this.dispatch(tag);
  }

  /** Drives again everything in limbo, in file order; after a name conflict first under new versions. */
  private pump(): void {
    if (this.halted || this.failed) return;
    if (this.renumber) {
      for (let i = 0; i < this.orderCount; i++) {
        const state = this.state[this.order[(this.orderHead + i) % this.tags]!]!;
        if (state !== State.LIMBO && state !== State.DURABLE) return;
      }
      for (let i = 0; i < this.orderCount; i++) {
        const tag = this.order[(this.orderHead + i) % this.tags]!;
        this.counter[tag] = this.takeCounter();
        this.state[tag] = State.LIMBO;
      }
      this.renumber = false;
    }
    for (let i = 0; i < this.orderCount && !this.halted && !this.renumber; i++) {
      const tag = this.order[(this.orderHead + i) % this.tags]!;
      if (this.state[tag] === State.LIMBO) this.dispatch(tag);
    }
  }

  private advance(): void {
    let moved = false;
    while (this.orderCount > 0) {
      const tag = this.order[this.orderHead]!;
      if (this.state[tag] !== State.DURABLE) break;
      this.orderHead = (this.orderHead + 1) % this.tags;
      this.orderCount--;
      this.acknowledgedCounter = this.counter[tag]!;
      if (!this.undecided) this.identity.commitMark = this.acknowledgedCounter;
      this.acknowledgedBytes = this.stripe[tag]! * stripeBytes(this.layout) + this.length[tag]!;
      if (tag === this.fillTag) {
        this.state[tag] = State.FILLING;
        if (this.isFull) this.submitFill();
      } else {
        this.state[tag] = State.FREE;
        this.freeTags.push(tag);
      }
      moved = true;
    }
    if (!moved) return;
    this.owner.onAcknowledged();
    if (this.usedUp && this.orderCount === 0) this.owner.onUsedUp();
  }

  private refreshMap(): void {
    this.identity.mapEpoch = this.nodes.map.epoch;
    this.anyDown = false;
    for (let i = 0; i < this.downNodes.length; i++) {
      this.downNodes[i] = this.nodes.isDown(i) ? 1 : 0;
      if (this.downNodes[i] === 1) this.anyDown = true;
    }
  }

  /** Ends all writing with an error; the owner is told once. */
  fatal(code: TartanError['code'], message: string): void {
    if (this.failed) return;
    this.failed = true;
    this.owner.onFatal(new TartanError(code, message));
  }
}
