/**
 * Split, encode, fan out, gather: the one module that makes a stripe in memory durable on its nodes. The switch runs it
 * on slots that writers filled; a writer in host mode runs it on its own staging ring. Only the place differs.
 *
 * An operation (op) is one stripe version under way, named by the owner. It runs the full-stripe write graph: encode,
 * a write per unit that is not missing, commit. It ends in `onSettled`, once the graph has finished or rolled back and
 * the device no longer reads or writes the slot.
 *
 * Invariants: nothing is allocated per stripe (counters.buffers counts what is, at set-up); payload bytes are only
 * named, never touched; onReleased comes before or with onSettled, each exactly once per start.
 */
import type { Coder, CodingQueue, MemoryRegion, StripePlace } from 'tartan-rdma';
import { Flag, Status } from 'tartan-rdma';
import type { Code } from '../erasure/code/index.js';
import type { GraphTemplate } from '../erasure/graph/index.js';
import { GraphExecutor, NodeKind, fullStripeWrite, unitNodes } from '../erasure/graph/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { nodeOfUnit, unitLength } from '../erasure/layout/index.js';
import { Refusal } from '../wire/ring-messages.js';
import type { StripeSlotLayout } from '../wire/slot-layout.js';
import { headerOffsetIn } from '../wire/slot-layout.js';
import { DATA_HEADER_BYTES, PARITY_HEADER_STRIDE, W, digestLayout, headerBytesOf } from '../wire/unit-header.js';
import type { Hub } from './hub.js';
import type { NodeLink, NodeLinkOwner, UnitPlace } from './node-link.js';
import { writeParityHeaders } from './stripe-headers.js';

export interface PipelineOwner {
  /** All units written: the slot's memory may be filled again, though acknowledgements may be outstanding. */
  onReleased(op: number): void;
  /**
   * The operation is over.
   * @param refusal 0: every unit that is not missing is durable; else the first refusal, by unit `unit`
   * @param mapEpoch the highest map epoch a node reported
   */
  onSettled(op: number, refusal: number, unit: number, mapEpoch: number): void;
}

export interface PipelineOptions {
  readonly hub: Hub;
  readonly code: Code;
  readonly layout: Layout;
  readonly slots: StripeSlotLayout;
  readonly region: MemoryRegion;
  /** Operations at once; ops are 0 … maxOps − 1. */
  readonly maxOps: number;
  /** true: the data headers arrive sealed and are checked (switch); false: they are sealed here (host mode). */
  readonly sealed: boolean;
  /** The link to the node with this index in the file's list; undefined when there is none. */
  readonly linkTo: (nodeIndex: number) => NodeLink | undefined;
  readonly owner: PipelineOwner;
}

/** Sets of missing units whose graphs are kept. */
const MOST_SHAPES = 256;

interface Shape {
  readonly template: GraphTemplate;
  readonly nodes: Int8Array;
  readonly writes: number;
}

export class StripePipeline implements NodeLinkOwner {
  readonly counters = { stripes: 0, settled: 0, rolledBack: 0, unitsCopied: 0, buffers: 0 };
  /** Called when a link of this pipeline is lost. */
  onLinkLost: (link: NodeLink, reason: string) => void = () => {};

  private readonly options: PipelineOptions;
  private readonly coding: CodingQueue;
  private readonly coder: Coder;
  private readonly words: Uint32Array;
  private readonly executor: GraphExecutor;
  private readonly shapes = new Map<number, Shape>();
  private readonly place: StripePlace;
  private readonly encodeFlags: number;
  // Per operation.
  private readonly shapeOf: (Shape | undefined)[];
  private readonly slotOffset: Float64Array;
  private readonly stripe: Float64Array;
  private readonly length: Uint32Array;
  private readonly epoch: Uint32Array;
  private readonly counter: Uint32Array;
  /** Requests of this op that the device holds. */
  private readonly posted: Uint8Array;
  /** Units whose write has not completed yet. */
  private readonly unwritten: Uint8Array;
  private readonly released: Uint8Array;
  private readonly over: Uint8Array;
  private readonly refusal: Uint8Array;
  private readonly refusedUnit: Uint8Array;
  private readonly mapEpoch: Uint32Array;

  constructor(options: PipelineOptions) {
    this.options = options;
    const { code, slots, region, maxOps, hub } = options;
    this.words = new Uint32Array(region.buffer);
    const units = Array.from({ length: code.k + code.m }, (_, i) => i);
    this.encodeFlags =
      (options.sealed ? Flag.DIGEST_INPUTS_CHECK : Flag.DIGEST_INPUTS_WRITE) | Flag.DIGEST_OUTPUTS_WRITE;
    this.place = {
      region,
      unitsOffset: 0,
      stride: slots.unitBytes,
      dataLength: 0,
      dataHeadersOffset: 0,
      dataHeaderStride: DATA_HEADER_BYTES,
      parityHeadersOffset: 0,
      parityHeaderStride: PARITY_HEADER_STRIDE,
    };
    this.executor = new GraphExecutor(maxOps, {
      issue: (op, node, kind, argument) => {
        this.issue(op, node, kind, argument);
      },
      // A durable unit stays where it is: the compensating write re-drives the same names and finds it there.
      undo: () => {},
      finished: (op) => {
        this.ended(op, Refusal.NONE, 0);
      },
      rolledBack: (op, _node, reason) => {
        this.counters.rolledBack++;
        this.ended(op, reason >>> 8, reason & 0xff);
      },
    });
    this.shapeOf = new Array<Shape | undefined>(maxOps).fill(undefined);
    this.slotOffset = new Float64Array(maxOps);
    this.stripe = new Float64Array(maxOps);
    this.length = new Uint32Array(maxOps);
    this.epoch = new Uint32Array(maxOps);
    this.counter = new Uint32Array(maxOps);
    this.posted = new Uint8Array(maxOps);
    this.unwritten = new Uint8Array(maxOps);
    this.released = new Uint8Array(maxOps);
    this.over = new Uint8Array(maxOps).fill(1);
    this.refusal = new Uint8Array(maxOps);
    this.refusedUnit = new Uint8Array(maxOps);
    this.mapEpoch = new Uint32Array(maxOps);
    // Last: nothing that may fail comes after what would have to be given back.
    this.coder = hub.device.createCoder({
      k: code.k,
      inputUnits: units.slice(0, code.k),
      outputUnits: units.slice(code.k),
      matrix: code.matrix,
      digest: digestLayout,
    });
    try {
      this.coding = hub.device.createCodingQueue((_opcode, status, op, _length, _imm, detail) => {
        this.encoded(op, status, detail);
      });
    } catch (error) {
      this.coder.destroy();
      throw error;
    }
  }

  /** Whether the op is under way. */
  busy(op: number): boolean {
    return this.over[op] === 0;
  }

  /**
   * Starts on a stripe whose data headers are in place in the slot.
   *
   * @param slotOffset bytes from the region's start
   * @param missingLo  units not to be written, 0–31; missingHi: 32–35
   */
  start(
    op: number,
    slotOffset: number,
    stripe: number,
    stripeLength: number,
    missingLo: number,
    missingHi: number,
  ): void {
    if (this.over[op] === 0) throw new Error(`pipeline operation ${op} is started twice`);
    const shape = this.shape(missingLo, missingHi);
    const w = (slotOffset + this.options.slots.dataHeadersOffset) >> 2;
    this.counters.stripes++;
    this.shapeOf[op] = shape;
    this.slotOffset[op] = slotOffset;
    this.stripe[op] = stripe;
    this.length[op] = stripeLength;
    this.epoch[op] = this.words[w + W.WRITER_EPOCH]!;
    this.counter[op] = this.words[w + W.COUNTER]!;
    this.posted[op] = 0;
    this.unwritten[op] = shape.writes;
    this.released[op] = 0;
    this.over[op] = 0;
    this.mapEpoch[op] = 0;
    this.executor.start(op, shape.template);
    this.options.hub.wake();
  }

  /** Frees coder and queue; call when no op is under way and all links are down. */
  async destroy(): Promise<void> {
    await this.coding.destroy();
    this.coder.destroy();
  }

  // --- NodeLinkOwner

  locate(op: number, unit: number, place: UnitPlace): void {
    const { slots, code, region } = this.options;
    place.region = region;
    place.headerOffset = this.slotOffset[op]! + headerOffsetIn(slots, unit);
    place.headerBytes = headerBytesOf(unit, code.k);
    place.payloadOffset = this.slotOffset[op]! + slots.unitsOffset + unit * slots.unitBytes;
    place.payloadBytes = unitLength(this.length[op]!, slots.unitBytes, unit, code.k);
    place.writerEpoch = this.epoch[op]!;
    place.counter = this.counter[op]!;
    place.stripe = this.stripe[op]!;
    place.mapEpoch = this.words[((this.slotOffset[op]! + slots.dataHeadersOffset) >> 2) + W.MAP_EPOCH]!;
    this.posted[op]!++;
  }

  onWritten(_link: NodeLink, op: number, _unit: number, ok: boolean): void {
    this.posted[op]!--;
    if (ok) this.unwritten[op]!--;
    this.settle(op);
  }

  onAnswer(_link: NodeLink, op: number, unit: number, refusal: number, nodeMapEpoch: number): void {
    if (nodeMapEpoch > this.mapEpoch[op]!) this.mapEpoch[op] = nodeMapEpoch;
    const node = this.shapeOf[op]!.nodes[unit]!;
    if (refusal === Refusal.NONE) this.executor.done(op, node);
    else this.executor.fail(op, node, (refusal << 8) | unit);
  }

  onLinkDown(link: NodeLink, reason: string): void {
    this.onLinkLost(link, reason);
  }

  // --- the graph's nodes

  private issue(op: number, node: number, kind: number, argument: number): void {
    if (kind === NodeKind.WRITE_UNIT) {
      const link = this.options.linkTo(nodeOfUnit(this.options.layout, this.stripe[op]!, argument));
      if (link === undefined) this.executor.fail(op, node, (Refusal.UNREACHABLE << 8) | argument);
      else link.send(op, argument);
    } else if (kind === NodeKind.ENCODE) {
      const { slots } = this.options;
      const slotOffset = this.slotOffset[op]!;
      writeParityHeaders(this.words, slotOffset, slots);
      const place = this.place;
      place.unitsOffset = slotOffset + slots.unitsOffset;
      place.dataLength = this.length[op]!;
      place.dataHeadersOffset = slotOffset + slots.dataHeadersOffset;
      place.parityHeadersOffset = slotOffset + slots.parityHeadersOffset;
      this.posted[op]!++;
      this.coding.postEncode(op, this.coder, place, this.encodeFlags);
    } else {
      this.executor.done(op, node);
    }
  }

  private encoded(op: number, status: number, unit: number): void {
    this.posted[op]!--;
    // The encode is node 0 of every shape.
    if (status === Status.SUCCESS) this.executor.done(op, 0);
    else
      this.executor.fail(
        op,
        0,
        ((status === Status.CHECKSUM_ERROR ? Refusal.CHECKSUM : Refusal.MALFORMED) << 8) | (unit & 0xff),
      );
    this.settle(op);
  }

  private ended(op: number, refusal: number, unit: number): void {
    this.over[op] = 2;
    this.refusal[op] = refusal;
    this.refusedUnit[op] = unit;
    this.settle(op);
  }

  /** over: 0 under way, 2 graph ended but memory still in use, 1 settled. */
  private settle(op: number): void {
    if (this.posted[op] !== 0) return;
    if (this.released[op] === 0 && (this.unwritten[op] === 0 || this.over[op] === 2)) {
      this.released[op] = 1;
      this.options.owner.onReleased(op);
    }
    if (this.over[op] !== 2 || this.posted[op] !== 0) return;
    this.over[op] = 1;
    this.counters.settled++;
    this.options.owner.onSettled(op, this.refusal[op]!, this.refusedUnit[op]!, this.mapEpoch[op]!);
  }

  private shape(missingLo: number, missingHi: number): Shape {
    const key = missingHi * 0x1_0000_0000 + missingLo;
    let shape = this.shapes.get(key);
    if (shape === undefined) {
      // Which units are missing, a writer says: all that it may say need not be kept. Operations keep their own.
      if (this.shapes.size >= MOST_SHAPES) this.shapes.clear();
      const { code, sealed } = this.options;
      const missing = new Set<number>();
      for (let unit = 0; unit < code.k + code.m; unit++) {
        if (((unit < 32 ? missingLo >>> unit : missingHi >>> (unit - 32)) & 1) !== 0) missing.add(unit);
      }
      const template = fullStripeWrite(code.k, code.m, sealed, missing);
      shape = { template, nodes: unitNodes(template, code.k + code.m), writes: code.k + code.m - missing.size };
      this.shapes.set(key, shape);
      this.counters.buffers++;
    }
    return shape;
  }
}
