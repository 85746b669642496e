/**
 * The log's segments: how the disk is divided, and what each part is used for and holds.
 *
 *      FREE ──take()──▶ LOG  (announced, filled, sealed) ──▶ nothing live, two checkpoints behind it ──release()──▶
 *      FREE
 *        └────take()──▶ CHECKPOINT ──a newer one is durable──release()──▶ FREE
 *
 * Invariants: a segment's live counts only fall once the log has left it; a segment that somebody reads is not taken.
 */
import { BLOCK_BYTES } from './disk.js';

/** 64 MiB. */
const MOST_BLOCKS = 16384;
/** A batch of the largest unit: 4 MiB of payload, 16 blocks of headers at most. */
const LARGEST_BATCH_BLOCKS = 1040;
export const FEWEST_SEGMENTS = 16;
export const FEWEST_BLOCKS = 4;

export const SegmentState = {
  FREE: 0,
  LOG: 1,
  CHECKPOINT: 2,
  /** In a checkpoint only: LOG, left by the log, nothing live. */ EMPTY: 3,
  /** Free, and not to be used again in this life: it could not be written. */ BAD: 4,
} as const;

/**
 * Blocks of a segment for a log of so many: 64 MiB, but at most a 128th of the log, so that what is set aside for
 * checkpoints and cleaning stays small; not below a batch of the largest unit, unless that would make fewer than 16.
 */
export function segmentBlocksFor(logBlocks: number): number {
  return Math.max(
    Math.min(MOST_BLOCKS, Math.floor(logBlocks / 128)),
    Math.min(LARGEST_BATCH_BLOCKS, Math.floor(logBlocks / FEWEST_SEGMENTS)),
  );
}

export interface Geometry {
  readonly firstBlock: number;
  readonly segmentBlocks: number;
  readonly segmentCount: number;
}

export class Segments {
  readonly count: number;
  readonly blocks: number;
  readonly states: Uint8Array;
  /** Live units in each, and the blocks of their payloads. */
  readonly units: Uint32Array;
  readonly live: Uint32Array;
  /** Blocks written, and the sequence of the last batch. */
  readonly filled: Uint32Array;
  readonly sequences: Float64Array;
  /** Times that cleaning left units behind, damaged or not to be found; and the sequence from which it tries again. */
  readonly stuck: Uint8Array;
  readonly retryAt: Float64Array;
  /** Could not be written while others could. Found anew after a restart. */
  readonly bad: Uint8Array;
  freeCount: number;
  /** Live payload blocks and units of all. */
  liveBlocks = 0;
  liveUnits = 0;
  private readonly pins: Uint16Array;
  private cursor = 0;

  constructor(private readonly geometry: Geometry) {
    this.count = this.freeCount = geometry.segmentCount;
    this.blocks = geometry.segmentBlocks;
    this.states = new Uint8Array(this.count);
    this.units = new Uint32Array(this.count);
    this.live = new Uint32Array(this.count);
    this.filled = new Uint32Array(this.count);
    this.sequences = new Float64Array(this.count);
    this.stuck = new Uint8Array(this.count);
    this.retryAt = new Float64Array(this.count);
    this.bad = new Uint8Array(this.count);
    this.pins = new Uint16Array(this.count);
  }

  first(segment: number): number {
    return this.geometry.firstBlock + segment * this.blocks;
  }
  of(block: number): number {
    return Math.floor((block - this.geometry.firstBlock) / this.blocks);
  }
  get bytes(): number {
    return this.blocks * BLOCK_BYTES;
  }

  /** Sets what a segment is used for; opening and take() do. */
  mark(segment: number, state: number): void {
    if ((this.states[segment] === SegmentState.FREE) !== (state === SegmentState.FREE))
      this.freeCount += state === SegmentState.FREE ? 1 : -1;
    this.states[segment] = state;
  }

  /** A free segment, the next one after the last taken; −1: none. */
  take(state: number): number {
    for (let i = 0; i < this.count && this.freeCount > 0; i++) {
      const segment = (this.cursor + i) % this.count;
      if (this.states[segment] !== SegmentState.FREE || this.pins[segment]! > 0) continue;
      this.cursor = (segment + 1) % this.count;
      this.mark(segment, state);
      this.filled[segment] = this.sequences[segment] = this.stuck[segment] = 0;
      return segment;
    }
    return -1;
  }

  release(segment: number): void {
    this.mark(segment, this.bad[segment] === 0 ? SegmentState.FREE : SegmentState.BAD);
  }

  /** Takes it out of use when it is, or becomes, free. */
  condemn(segment: number): void {
    this.bad[segment] = 1;
    if (this.states[segment] === SegmentState.FREE) this.mark(segment, SegmentState.BAD);
  }

  /** A unit with its header in `block` has become live, or no longer is. */
  add(block: number, payloadBlocks: number): void {
    const segment = this.of(block);
    this.units[segment]!++;
    this.live[segment]! += payloadBlocks;
    this.liveUnits++;
    this.liveBlocks += payloadBlocks;
  }
  remove(block: number, payloadBlocks: number): void {
    const segment = this.of(block);
    this.units[segment]!--;
    this.live[segment]! -= payloadBlocks;
    this.liveUnits--;
    this.liveBlocks -= payloadBlocks;
  }

  /** Keeps a segment from being taken while it is read. */
  pin(segment: number): void {
    this.pins[segment]!++;
  }
  unpin(segment: number): void {
    this.pins[segment]!--;
  }

  /**
   * Blocks of the log, and its segments but for those in use: with next to nothing dead in them (an eighth), and the
   * others.
   */
  summary(inUse: readonly number[]): { used: number; clean: number; dirty: number } {
    let used = 0,
      clean = 0,
      dirty = 0;
    for (const segment of this.withState(SegmentState.LOG)) {
      used += this.filled[segment]!;
      if (inUse.includes(segment)) continue;
      if (this.live[segment]! + this.blocks / 8 >= this.filled[segment]!) clean++;
      else dirty++;
    }
    return { used, clean, dirty };
  }

  /** Segments of a state. */
  *withState(state: number): Generator<number> {
    for (let segment = 0; segment < this.count; segment++) if (this.states[segment] === state) yield segment;
  }
}
