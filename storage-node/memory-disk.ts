/**
 * A disk in memory, for tests and the simulation, with the faults of a real one. What was written but not synced is
 * kept as a list beside the synced image, so that a crash can lose any subset of it, sector by sector: a disk reorders,
 * and tears a block that was being written.
 */
import { TartanError } from '../wire/errors.js';
import { BLOCK_BYTES, type Disk } from './disk.js';

export const SECTOR_BYTES = 512;
/** All eight sectors of a block. */
const WHOLE_BLOCK = 0xff;

/** What of an unsynced block survives a crash: all, nothing, or (a number) the sectors whose bits are set. */
export type Survives = (index: number, block: number) => boolean | number;

interface PendingBlock {
  readonly block: number;
  readonly bytes: Uint8Array;
}

/** What to do with one operation before it starts: nothing, fail it, or delay it. */
export interface DiskFaults {
  beforeRead?(position: number, length: number): void | Promise<void>;
  beforeWrite?(position: number, length: number): void | Promise<void>;
  beforeSync?(): void | Promise<void>;
}

export class MemoryDisk implements Disk {
  readonly size: number;
  /** Set by a test; throwing (a TartanError) fails the operation, a promise delays it. */
  faults: DiskFaults = {};
  /** Counts since creation. */
  writes = 0;
  syncs = 0;
  bytesWritten = 0;
  /** What survives a crash; blocks never written are absent and read as zero. */
  private readonly synced = new Map<number, Uint8Array>();
  /** Unsynced blocks in the order of writing; the newest counts. */
  private pending: PendingBlock[] = [];
  /**
   * What a failed sync dropped: as on Linux, later syncs don't write it, yet it is read, by a later process too, until
   * the machine goes down.
   */
  private readonly dropped = new Map<number, Uint8Array>();
  /** The newest of each pending block; made by the first read after `pending` changed. */
  private readonly latest = new Map<number, Uint8Array>();
  /** Writes under way: a crash may find any part of them on the disk. */
  private readonly underWay = new Set<{ readonly views: readonly Uint8Array[]; readonly position: number }>();
  private closed = false;

  constructor(sizeBytes: number) {
    this.size = Math.floor(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES;
  }

  async read(into: Uint8Array, position: number): Promise<void> {
    this.check('read', into.length, position);
    await this.faults.beforeRead?.(position, into.length);
    const latest = this.latest;
    if (latest.size === 0) for (const { block, bytes } of this.pending) latest.set(block, bytes);
    for (let at = 0; at < into.length; at += BLOCK_BYTES) {
      const block = (position + at) / BLOCK_BYTES;
      const bytes = latest.get(block) ?? this.dropped.get(block) ?? this.synced.get(block);
      if (bytes === undefined) into.fill(0, at, at + BLOCK_BYTES);
      else into.set(bytes, at);
    }
  }

  async writev(views: readonly Uint8Array[], position: number): Promise<void> {
    const length = views.reduce((sum, view) => sum + view.length, 0);
    this.check('write', length, position);
    const write = { views, position };
    this.underWay.add(write);
    try {
      await this.faults.beforeWrite?.(position, length);
    } finally {
      this.underWay.delete(write);
    }
    // Memory is read here, after the delay: a caller that reuses it too early writes the wrong bytes, as on a real
    // disk.
    for (const each of blocksOf(write)) this.pending.push(each);
    this.latest.clear();
    this.writes++;
    this.bytesWritten += length;
  }

  async sync(): Promise<void> {
    const covered = this.pending.slice();
    let isDropped = true;
    try {
      await this.faults.beforeSync?.();
      isDropped = false;
      this.syncs++;
      this.settle(covered, () => true);
    } finally {
      const done = new Set(covered);
      this.pending = this.pending.filter((block) => !done.has(block));
      this.latest.clear();
      for (const { block, bytes } of covered) {
        if (isDropped) this.dropped.set(block, bytes);
        else this.dropped.delete(block);
      }
    }
  }

  async close(): Promise<void> {
    this.closed = true;
  }

  /** Blocks written and not yet synced. */
  get unsyncedBlocks(): number {
    return this.pending.length;
  }

  /**
   * The machine loses power: of the unsynced blocks, those of writes under way included, only what `survives` says is
   * there.
   *
   * @param survives  gets the index of the block among the unsynced ones and its number; default: none survives
   * @returns the disk as the next start finds it; this one is closed
   */
  crash(survives: Survives = () => false): MemoryDisk {
    const next = this.snapshot();
    next.settle([...this.pending, ...[...this.underWay].flatMap(blocksOf)], survives);
    this.closed = true;
    return next;
  }

  /** A copy of what is synced; this disk goes on. */
  snapshot(): MemoryDisk {
    const copy = new MemoryDisk(this.size);
    // Blocks are never changed in place, so both may hold them.
    for (const [block, bytes] of this.synced) copy.synced.set(block, bytes);
    return copy;
  }

  /** The process ends but the machine goes on: what was written is there, and what wasn't synced still isn't. */
  restart(): MemoryDisk {
    const next = this.snapshot();
    next.pending = this.pending.slice();
    for (const [block, bytes] of this.dropped) next.dropped.set(block, bytes);
    this.closed = true;
    return next;
  }

  /** Numbers of the blocks that are synced. */
  syncedBlocks(): number[] {
    return [...this.synced.keys()];
  }

  /** Changes bytes under the store's nose. */
  corrupt(position: number, change: (bytes: Uint8Array) => void): void {
    const block = Math.floor(position / BLOCK_BYTES);
    const bytes = this.synced.get(block)?.slice() ?? new Uint8Array(BLOCK_BYTES);
    change(bytes.subarray(position % BLOCK_BYTES));
    this.synced.set(block, bytes);
  }

  private settle(blocks: readonly PendingBlock[], survives: Survives): void {
    blocks.forEach(({ block, bytes }, index) => {
      const sectors = survives(index, block);
      if (sectors === true || sectors === WHOLE_BLOCK) this.synced.set(block, bytes);
      else if (sectors !== false && sectors !== 0) this.synced.set(block, torn(this.synced.get(block), bytes, sectors));
    });
  }

  private check(what: string, length: number, position: number): void {
    if (this.closed) throw new TartanError('ERR_DISK', `Cannot ${what} at ${position}: the disk is closed`);
    if (length % BLOCK_BYTES !== 0 || position % BLOCK_BYTES !== 0 || position < 0 || position + length > this.size) {
      throw new TartanError(
        'ERR_DISK',
        `Cannot ${what} ${length} bytes at ${position}: expected whole blocks within ${this.size} bytes`,
      );
    }
  }
}

function blocksOf({
  views,
  position,
}: {
  readonly views: readonly Uint8Array[];
  readonly position: number;
}): PendingBlock[] {
  const blocks: PendingBlock[] = [];
  let block = position / BLOCK_BYTES;
  for (const view of views) {
    // One copy of the whole, of which the blocks are views: memory of its own for each costs more than the bytes.
    const copy = view.slice();
    for (let at = 0; at < copy.length; at += BLOCK_BYTES)
      blocks.push({ block: block++, bytes: copy.subarray(at, at + BLOCK_BYTES) });
  }
  return blocks;
}

/** A block of which only some sectors were written. */
function torn(before: Uint8Array | undefined, after: Uint8Array, sectors: number): Uint8Array {
  const bytes = before?.slice() ?? new Uint8Array(BLOCK_BYTES);
  for (let sector = 0; sector < BLOCK_BYTES / SECTOR_BYTES; sector++) {
    if ((sectors & (1 << sector)) === 0) continue;
    const at = sector * SECTOR_BYTES;
    bytes.set(after.subarray(at, at + SECTOR_BYTES), at);
  }
  return bytes;
}
