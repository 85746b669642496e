/**
 * A disk that remembers every write and sync in order, so that each state in which a loss of power could leave it can
 * be made afterwards. What else happened (an acknowledgement, a request) is noted between them.
 */
import { BLOCK_BYTES, type Disk } from '../../storage-node/disk.js';
import { MemoryDisk, SECTOR_BYTES } from '../../storage-node/memory-disk.js';

type Event =
  | { readonly kind: 'write'; readonly id: number; readonly block: number; readonly bytes: readonly Uint8Array[] }
  | { readonly kind: 'sync'; readonly covers: ReadonlySet<number> }
  | { readonly kind: 'note'; readonly note: unknown };

const SECTORS = BLOCK_BYTES / SECTOR_BYTES,
  WHOLE = (1 << SECTORS) - 1;

/** One state of the disk after a loss of power. */
export interface CrashState {
  readonly disk: MemoryDisk;
  /** Everything noted before. */
  readonly notes: readonly unknown[];
  /** For messages: syncs done, and the sectors of each unsynced block that are there. */
  readonly name: string;
}

export class RecordingDisk implements Disk {
  readonly size: number;
  /** Bytes of log, checkpoints and pointers written. */
  writes = 0;
  private readonly events: Event[] = [];
  private readonly contents = new Map<number, Uint8Array>();
  private readonly done = new Set<number>();

  /** @param start  what is on it; it isn't changed */
  constructor(private readonly start: MemoryDisk) {
    this.size = start.size;
  }

  async read(into: Uint8Array, position: number): Promise<void> {
    await this.start.read(into, position);
    for (let at = 0; at < into.length; at += BLOCK_BYTES) {
      const bytes = this.contents.get((position + at) / BLOCK_BYTES);
      if (bytes !== undefined) into.set(bytes, at);
    }
  }

  async writev(views: readonly Uint8Array[], position: number): Promise<void> {
    const id = this.writes++,
      block = position / BLOCK_BYTES,
      bytes: Uint8Array[] = [];
    for (const view of views)
      for (let at = 0; at < view.length; at += BLOCK_BYTES) bytes.push(view.slice(at, at + BLOCK_BYTES));
    if ((block + bytes.length) * BLOCK_BYTES > this.size)
      throw new Error(`a write of ${bytes.length} blocks at ${block} runs past the end`);
    this.events.push({ kind: 'write', id, block, bytes });
    await pause();
    bytes.forEach((each, i) => this.contents.set(block + i, each));
    this.done.add(id);
  }

  async sync(): Promise<void> {
    const covers = new Set(this.done);
    await pause();
    this.events.push({ kind: 'sync', covers });
  }

  async close(): Promise<void> {
    await pause();
  }

  note(note: unknown): void {
    this.events.push({ kind: 'note', note });
  }

  /**
   * The states in which a loss of power can leave the disk: of each stretch between two syncs, any part of what is not
   * synced. All subsets of up to `most` blocks, and tears of them; beyond, a sample.
   *
   * A state in which later writes are lost is the same as one in which the power went earlier, so only ends of
   * stretches count.
   */
  *states(random: () => number, most: number, samples: number): Generator<CrashState> {
    const durable = this.start.snapshot(),
      notes: unknown[] = [];
    let open: Extract<Event, { kind: 'write' }>[] = [],
      syncs = 0;
    for (const event of [...this.events, { kind: 'sync', covers: new Set<number>() } as const]) {
      if (event.kind === 'note') {
        notes.push(event.note);
        continue;
      }
      if (event.kind === 'write') {
        open.push(event);
        continue;
      }
      const blocks = open.flatMap(({ block, bytes }) => bytes.map((each, i) => ({ block: block + i, bytes: each })));
      for (const masks of subsets(blocks.length, random, most, samples)) {
        const disk = durable.snapshot();
        blocks.forEach(({ block, bytes }, i) => {
          put(disk, block, bytes, masks[i]!);
        });
        yield { disk, notes: notes.slice(), name: `after sync ${syncs}: ${masks.join(' ')}` };
      }
      for (const write of open)
        if (event.covers.has(write.id))
          write.bytes.forEach((bytes, i) => {
            put(durable, write.block + i, bytes, WHOLE);
          });
      open = open.filter(({ id }) => !event.covers.has(id));
      syncs++;
    }
  }
}

/** Sector masks for `count` blocks. */
function* subsets(count: number, random: () => number, most: number, samples: number): Generator<number[]> {
  const draw = (): number => [0, WHOLE, Math.floor(random() * (WHOLE + 1))][Math.floor(random() * 3)]!;
  if (count === 0) {
    yield [];
    return;
  }
  if (count <= most) {
    for (let set = 0; set < 2 ** count; set++)
      yield Array.from({ length: count }, (_, i) => ((set >> i) & 1 ? WHOLE : 0));
  } else {
    yield Array.from({ length: count }, () => 0);
    yield Array.from({ length: count }, () => WHOLE);
    for (let i = 0; i < Math.min(count, samples); i++) {
      yield Array.from({ length: count }, (_, j) => (j === i ? 0 : WHOLE));
      yield Array.from({ length: count }, (_, j) => (j === i ? WHOLE : 0));
      yield Array.from({ length: count }, (_, j) => (j < i ? WHOLE : 0));
    }
  }
  // Each block torn while the others are there, then anything.
  for (let i = 0; i < Math.min(count, samples); i++)
    yield Array.from({ length: count }, (_, j) => (j === i ? 1 << Math.floor(random() * SECTORS) : WHOLE));
  for (let i = 0; i < samples; i++) yield Array.from({ length: count }, draw);
}

function put(disk: MemoryDisk, block: number, bytes: Uint8Array, sectors: number): void {
  if (sectors === 0) return;
  disk.corrupt(block * BLOCK_BYTES, (into) => {
    for (let sector = 0; sector < SECTORS; sector++) {
      if ((sectors & (1 << sector)) !== 0)
        into.set(bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES), sector * SECTOR_BYTES);
    }
  });
}

/** Lets others go on meanwhile, as a disk would. */
function pause(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
