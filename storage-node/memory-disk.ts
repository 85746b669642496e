/**
 * A disk in memory, for tests and the simulation, with the faults of a real one. What was written but not synced is kept
 * as a list beside the synced image, so that a crash can lose any subset of it, block by block: a disk reorders.
 */
import { TartanError } from '../wire/errors.js';
import { BLOCK_BYTES, type Disk } from './disk.js';

interface PendingBlock { readonly block: number; readonly bytes: Uint8Array }

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
  writes = 0; syncs = 0; bytesWritten = 0;
  /** What survives a crash; blocks never written are absent and read as zero. */
  private readonly synced = new Map<number, Uint8Array>();
  /** Unsynced blocks in the order of writing; the newest counts. */
  private pending: PendingBlock[] = [];
  private closed = false;

  constructor(sizeBytes: number) { this.size = Math.floor(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES; }

  async read(into: Uint8Array, position: number): Promise<void> {
    this.check('read', into.length, position);
    await this.faults.beforeRead?.(position, into.length);
    const latest = new Map(this.pending.map(({ block, bytes }) => [block, bytes]));
    for (let at = 0; at < into.length; at += BLOCK_BYTES) {
      const block = (position + at) / BLOCK_BYTES;
      const bytes = latest.get(block) ?? this.synced.get(block);
      if (bytes === undefined) into.fill(0, at, at + BLOCK_BYTES); else into.set(bytes, at);
    }
  }

  async writev(views: readonly Uint8Array[], position: number): Promise<void> {
    const length = views.reduce((sum, view) => sum + view.length, 0);
    this.check('write', length, position);
    await this.faults.beforeWrite?.(position, length);
    // Memory is read here, after the delay: a caller that reuses it too early writes the wrong bytes, as on a real disk.
    let block = position / BLOCK_BYTES;
    for (const view of views) {
      for (let at = 0; at < view.length; at += BLOCK_BYTES) this.pending.push({ block: block++, bytes: view.slice(at, at + BLOCK_BYTES) });
    }
    this.writes++;
    this.bytesWritten += length;
  }

  async sync(): Promise<void> {
    const upTo = this.pending.length;
    await this.faults.beforeSync?.();
    this.syncs++;
    this.settle(this.pending.splice(0, upTo), () => true);
  }

  async close(): Promise<void> { this.closed = true; }

  /** Blocks written and not yet synced. */
  get unsyncedBlocks(): number { return this.pending.length; }

  /**
   * The machine loses power: of the unsynced blocks only those survive for which `survives` says so.
   *
   * @param survives  gets the index of the block among the unsynced ones and its number; default: none survives
   * @returns the disk as the next start finds it; this one is closed
   */
  crash(survives: (index: number, block: number) => boolean = () => false): MemoryDisk {
    const next = new MemoryDisk(this.size);
    for (const [block, bytes] of this.synced) next.synced.set(block, bytes.slice());
    next.settle(this.pending, survives);
    this.closed = true;
    return next;
  }

  /** The process ends but the machine goes on: nothing is lost, and what wasn't synced still isn't. */
  restart(): MemoryDisk {
    const next = this.crash();
    next.pending = this.pending.slice();
    return next;
  }

  /** Changes bytes under the store's nose. */
  corrupt(position: number, change: (bytes: Uint8Array) => void): void {
    const block = Math.floor(position / BLOCK_BYTES);
    const bytes = this.synced.get(block) ?? new Uint8Array(BLOCK_BYTES);
    change(bytes.subarray(position % BLOCK_BYTES));
    this.synced.set(block, bytes);
  }

  private settle(blocks: readonly PendingBlock[], survives: (index: number, block: number) => boolean): void {
    blocks.forEach(({ block, bytes }, index) => { if (survives(index, block)) this.synced.set(block, bytes); });
  }

  private check(what: string, length: number, position: number): void {
    if (this.closed) throw new TartanError('ERR_DISK', `Cannot ${what} at ${position}: the disk is closed`);
    if (length % BLOCK_BYTES !== 0 || position % BLOCK_BYTES !== 0 || position < 0 || position + length > this.size) {
      throw new TartanError('ERR_DISK', `Cannot ${what} ${length} bytes at ${position}: expected whole blocks within ${this.size} bytes`);
    }
  }
}
