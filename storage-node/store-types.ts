/** What a unit store is given, and what it tells of itself. */
import type { AlignedMemory } from './batch.js';
import type { Clock } from '../wire/clock.js';
import type { Disk } from './disk.js';
import type { Durability } from './log-writer.js';
import type { StoreRecovery } from './open-log.js';
import type { StoreIdentity } from './superblock.js';

/** What append() returns for a unit whose fate a callback will tell; anything else it returns is a `Refusal`. */
export const QUEUED = -1;

export interface UnitStoreOptions extends StoreIdentity {
  readonly disk: Disk;
  /** Default 'sync'. */
  readonly durability?: Durability;
  /** Page-aligned memory where the disk needs it. Default: ordinary memory. */
  readonly allocate?: (bytes: number) => AlignedMemory;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  /** ms since 1970, for a new store. Default 0. */
  readonly nowMs?: number;
  /** For bounds of time on the disk; without one there are none. */
  readonly clock?: Clock;
  /** A disk that has not answered for so long has failed. Default 10,000. */
  readonly diskDeadlineMs?: number;
  /** Bounds of one batch. Default 256 units, 16 MiB of payload (at most 16 MiB). */
  readonly maxBatchUnits?: number;
  readonly maxBatchBytes?: number;
  /** A checkpoint of the index is due after so many bytes of log, and at least 16 times its own. Default 256 MiB. */
  readonly checkpointBytes?: number;
}

/** Where a unit lies and what it is called; copied out of the index, so it stays true across awaits. */
export interface UnitLocation {
  writerEpoch: number;
  counter: number;
  unitLength: number;
  payloadCrc: number;
  headerBlock: number;
  headerByte: number;
  headerBytes: number;
  payloadBlock: number;
}

export interface StoreStats {
  readonly durability: Durability;
  readonly failed: boolean;
  readonly units: number;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly liveBytes: number;
  readonly deadBytes: number;
  readonly batches: number;
  readonly unitsStored: number;
  readonly duplicates: number;
  readonly refused: number;
  readonly damaged: number;
  /** Units that wait for room, and what the cleaner copied. */
  readonly parked: number;
  readonly movedUnits: number;
  readonly movedBytes: number;
  /** Bytes written to the disk by those that were asked to be. */
  readonly writeAmplification: number;
  /** Of the log: free, with nothing dead in them, and the others that the log has filled. */
  readonly segmentsFree: number;
  readonly segmentsClean: number;
  readonly segmentsDirty: number;
  readonly checkpoints: number;
  readonly checkpointBytes: number;
  readonly recovery: StoreRecovery;
}
/** A place for lookup() to fill. */
export function emptyLocation(): UnitLocation {
  return {
    writerEpoch: 0,
    counter: 0,
    unitLength: 0,
    payloadCrc: 0,
    headerBlock: 0,
    headerByte: 0,
    headerBytes: 0,
    payloadBlock: 0,
  };
}

/** For disks that take any memory. */
export function ordinaryMemory(bytes: number): AlignedMemory {
  return { bytes: new Uint8Array(bytes), release: () => undefined };
}
