/**
 * Opening a store: superblock, checkpoint, the log's tail, the check of what may be torn, and one sync, in the order of
 * docs/store-format.md.
 */
import { crc32c } from '../erasure/code/index.js';
import { codeOf, TartanError } from '../wire/errors.js';
import { roundUp } from '../wire/slot-layout.js';
import { MAX_UNIT_BYTES } from '../wire/unit-header.js';
import type { AlignedMemory } from './batch.js';
import { POINTER_BLOCKS, readPointer, type Pointer } from './checkpoint-pointer.js';
import { CheckpointReader, pieceBlocks } from './checkpoint-stream.js';
import { readCheckpoint } from './checkpoint.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { IndexTable } from './index-table.js';
import { MAX_HEADER_AREA_BYTES } from './log-format.js';
import { readLog, RECOVERY_WINDOW_BYTES, type LogEnd, type UncertainUnit } from './recovery.js';
import { Replay } from './replay.js';
import { Segments, SegmentState, type Geometry } from './segments.js';
import { COPY_BLOCKS, openSuperblock, type StoreIdentity, type Superblock } from './superblock.js';

/** What opening found; for logs and status. */
export interface StoreRecovery {
  /** Batches read, after the checkpoint. */
  readonly batches: number;
  readonly units: number;
  /** Units that the checkpoint held, and its number; 0: there was none yet. */
  readonly checkpointUnits: number;
  readonly checkpoint: number;
  /** The newest checkpoint was damaged, and the one before it was used. */
  readonly usedOlder: boolean;
  /** Units of the unsynced tail whose payload was checked, and how many of them were torn and dropped. */
  readonly checked: number;
  readonly torn: number;
  /** Unit headers found damaged inside batches that hold. */
  readonly badHeaders: number;
}

export interface OpenedLog {
  readonly superblock: Superblock;
  readonly index: IndexTable;
  readonly segments: Segments;
  readonly end: LogEnd;
  /** The checkpoint from which the index was built, and which of the two pointer blocks names it. */
  readonly base: Pointer;
  readonly slot: number;
  /** Segments of the checkpoint that the other pointer block names, if it holds one. */
  readonly otherArea: readonly number[];
  /** No later checkpoint has this number. */
  readonly highestGeneration: number;
  /** Segments in which nothing was live when the base was taken. */
  readonly empty: readonly number[];
  /** Not held, or held by their older copies; the store records them as VOID. */
  readonly torn: readonly UncertainUnit[];
  readonly recovery: StoreRecovery;
}

export async function openLog(
  disk: Disk,
  identity: StoreIdentity,
  random: () => number,
  nowMs: number,
  allocate: (bytes: number) => AlignedMemory,
): Promise<OpenedLog> {
  const window = allocate(Math.min(RECOVERY_WINDOW_BYTES, Math.max(disk.size, 2 * MAX_HEADER_AREA_BYTES)));
  try {
    const superblock = await openSuperblock(disk, identity, random, nowMs, window.bytes);
    const found = await loadCheckpoint(disk, superblock, window, allocate);
    const { base, index, segments } = found;
    const replay = new Replay(index);
    const end = await readLog(disk, superblock, segments, base, window, replay);
    if (end.damagedBlock !== undefined) {
      // Its units, and all later ones, were acknowledged. A node that came up without them would swear that it never
      // had them.
      throw new TartanError(
        'ERR_CHECKSUM',
        `Cannot open the store: batch ${end.position.sequence} at block ${end.damagedBlock} is damaged, and ` +
          'later batches show that it was durable; the units in them cannot be told from lost ones',
      );
    }
    const torn = await dropTorn(disk, replay, end.uncertain, allocate);
    replay.finish();
    for (const segment of [end.position.segment, end.position.next, end.position.after])
      if (segment >= 0) segments.mark(segment, SegmentState.LOG);
    index.forEach((entry) => {
      segments.add(index.headerBlock(entry), index.payloadBlocks(entry));
    });
    // What was found may be in a cache only; from here on it is acknowledged when a duplicate comes.
    if (disk.direct !== true) {
      const blocks = [POINTER_BLOCKS[found.slot]!, ...(base.generation === 0 ? COPY_BLOCKS : [])];
      await rewrite(disk, [...blocks.map((block) => ({ block, blocks: 1 })), ...end.tail], window.bytes);
    }
    await disk.sync();
    const recovery = {
      batches: end.batches,
      units: index.count,
      checkpointUnits: found.units,
      checkpoint: base.generation,
      usedOlder: found.usedOlder,
      checked: end.uncertain.length,
      torn: torn.length,
      badHeaders: end.badHeaders,
    };
    return { superblock, end, torn, recovery, ...found };
  } finally {
    window.release();
  }
}

/**
 * Writes again what was read from a cache. A sync that failed has dropped it from what is to be written, yet left it to
 * be read: trusted, it would be acknowledged, and be gone after a loss of power.
 */
async function rewrite(
  disk: Disk,
  places: readonly { readonly block: number; readonly blocks: number }[],
  memory: Uint8Array,
): Promise<void> {
  const most = Math.floor(memory.length / BLOCK_BYTES);
  for (const { block, blocks } of places) {
    for (let done = 0; done < blocks; ) {
      const some = memory.subarray(0, Math.min(most, blocks - done) * BLOCK_BYTES),
        position = (block + done) * BLOCK_BYTES;
      done += some.length / BLOCK_BYTES;
      try {
        await disk.read(some, position);
      } catch (error) {
        if (codeOf(error) !== 'ERR_DISK') throw error;
        continue; // of a torn unit, or one that is found damaged when it is read
      }
      await disk.writev([some], position);
    }
  }
}

interface Loaded {
  index: IndexTable;
  segments: Segments;
  base: Pointer;
  slot: number;
  otherArea: readonly number[];
  highestGeneration: number;
  empty: readonly number[];
  units: number;
  usedOlder: boolean;
}

/**
 * Builds the index of the newest checkpoint that holds. The one before it does as well: nothing that the log wrote
 * since, and nothing that it counts on, has been reused (docs/store-format.md, "Which segments are free").
 */
async function loadCheckpoint(
  disk: Disk,
  superblock: Superblock,
  window: AlignedMemory,
  allocate: (bytes: number) => AlignedMemory,
): Promise<Loaded> {
  const block = window.bytes.subarray(0, BLOCK_BYTES),
    pointers: { slot: number; pointer: Pointer }[] = [];
  for (const slot of [0, 1]) {
    const pointer = await readPointer(disk, slot, superblock, block);
    if (typeof pointer === 'object' && liesInLog(pointer, superblock.geometry)) pointers.push({ slot, pointer });
  }
  pointers.sort((a, b) => b.pointer.generation - a.pointer.generation);
  let why: unknown;
  for (const { slot, pointer } of pointers) {
    const index = new IndexTable(),
      segments = new Segments(superblock.geometry);
    try {
      const states = await readStates(disk, superblock, pointer, index, segments, allocate);
      const isNewest = pointer === pointers[0]!.pointer;
      // An older checkpoint than the base is kept to fall back on; a newer one is damaged, and its room is free.
      const otherArea = isNewest ? (pointers[1]?.pointer.segments ?? []) : [];
      const empty = setStates(segments, states, [...pointer.segments, ...otherArea]);
      return {
        index,
        segments,
        base: pointer,
        slot,
        otherArea,
        empty,
        highestGeneration: pointers[0]!.pointer.generation,
        units: index.count,
        usedOlder: !isNewest,
      };
    } catch (error) {
      if (codeOf(error) !== 'ERR_CHECKSUM') throw error;
      why = error;
    }
  }
  throw new TartanError(
    'ERR_CHECKSUM',
    'Cannot open the store: ' +
      (pointers.length === 0 ? 'neither pointer block holds' : 'no checkpoint that a pointer names holds') +
      '; ' +
      'what the store held cannot be told',
    { cause: why },
  );
}

/**
 * A sealed pointer to a place outside its segment, or outside the log, would have the log go on over something else.
 */
function liesInLog(pointer: Pointer, { firstBlock, segmentBlocks, segmentCount }: Geometry): boolean {
  const first = firstBlock + pointer.segment * segmentBlocks;
  return (
    pointer.segment < segmentCount &&
    pointer.block >= first &&
    pointer.block <= first + segmentBlocks &&
    [pointer.next, pointer.after].every((segment) => segment >= -1 && segment < segmentCount) &&
    pointer.segments.every((segment) => segment < segmentCount)
  );
}

async function readStates(
  disk: Disk,
  superblock: Superblock,
  pointer: Pointer,
  index: IndexTable,
  segments: Segments,
  allocate: (bytes: number) => AlignedMemory,
): Promise<Uint8Array> {
  if (pointer.generation === 0) return new Uint8Array(segments.count);
  const memory = allocate(pieceBlocks(segments.blocks) * BLOCK_BYTES);
  try {
    return await readCheckpoint(
      new CheckpointReader(disk, segments, superblock, pointer.generation, memory, pointer.words, pointer.segments),
      index,
      segments,
    );
  } finally {
    memory.release();
  }
}

/**
 * @param areas  what the pointers name; any other checkpoint's segments are free
 * @returns the segments that were empty
 */
function setStates(segments: Segments, states: Uint8Array, areas: readonly number[]): number[] {
  const empty: number[] = [];
  states.forEach((state, segment) => {
    if (state === SegmentState.EMPTY) empty.push(segment);
    segments.mark(
      segment,
      state === SegmentState.LOG || state === SegmentState.EMPTY ? SegmentState.LOG : SegmentState.FREE,
    );
  });
  for (const segment of areas) segments.mark(segment, SegmentState.CHECKPOINT);
  return empty;
}

/**
 * Checks the payloads of units that may have been cut off; drops those that fail, or puts them back where they were
 * before they were moved. The newest first, so that an older copy is checked in its turn.
 */
async function dropTorn(
  disk: Disk,
  replay: Replay,
  uncertain: readonly UncertainUnit[],
  allocate: (bytes: number) => AlignedMemory,
): Promise<UncertainUnit[]> {
  const torn: UncertainUnit[] = [];
  if (uncertain.length === 0) return torn;
  const memory = allocate(
    roundUp(
      Math.min(
        MAX_UNIT_BYTES,
        uncertain.reduce((most, { unitLength }) => Math.max(most, unitLength), BLOCK_BYTES),
      ),
      BLOCK_BYTES,
    ),
  );
  try {
    for (const unit of [...uncertain].reverse()) {
      if (!replay.holdsAt(unit.fileId, unit.stripe, unit)) continue;
      if (await payloadHolds(disk, unit, memory.bytes)) continue;
      replay.voided(unit.fileId, unit.stripe, unit, unit.fallback);
      torn.push(unit);
    }
  } finally {
    memory.release();
  }
  return torn;
}

async function payloadHolds(disk: Disk, unit: UncertainUnit, memory: Uint8Array): Promise<boolean> {
  const padded = roundUp(unit.unitLength, BLOCK_BYTES);
  // A sealed header says where; but a place beyond the disk can only be a torn tail.
  if (unit.payloadBlock * BLOCK_BYTES + padded > disk.size) return false;
  if (padded > 0) await disk.read(memory.subarray(0, padded), unit.payloadBlock * BLOCK_BYTES);
  return crc32c(memory.subarray(0, unit.unitLength)) === unit.payloadCrc;
}
