/** The disk of one simulated host: it takes time, its operations die with the host's process, and it has faults. */
import type { SimWorld } from 'tartan-rdma';
import type { SimRandom } from 'tartan-rdma';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { TartanError } from '../../wire/errors.js';

export interface DiskTrouble {
  failsReads: boolean;
  failsWrites: boolean;
  failsSyncs: boolean;
  full: boolean;
  /** Every operation takes so much longer, virtual ms. */
  slowMs: number;
}

export function noTrouble(): DiskTrouble {
  return { failsReads: false, failsWrites: false, failsSyncs: false, full: false, slowMs: 0 };
}

const READ_MS = 0.1,
  WRITE_MS = 0.2,
  SYNC_MS = 0.8;

/** Makes the operations of `disk` take their time as events of the host's present life, and fail as `trouble` says. */
export function attachDisk(
  disk: MemoryDisk,
  world: SimWorld,
  hostName: string,
  random: SimRandom,
  trouble: DiskTrouble,
): void {
  const host = world.host(hostName);
  const delay = (ms: number): Promise<void> =>
    new Promise((resolve) => {
      world.schedule(random.random() * (ms + trouble.slowMs), host, resolve);
    });
  const refuse = (what: string): never => {
    throw new TartanError('ERR_DISK', `Cannot ${what}: the simulated disk of ${hostName} fails`);
  };
  disk.faults = {
    beforeRead: async () => {
      await delay(READ_MS);
      if (trouble.failsReads) refuse('read');
    },
    beforeWrite: async () => {
      await delay(WRITE_MS);
      if (trouble.full)
        throw new TartanError('ERR_DISK_FULL', `Cannot write: the simulated disk of ${hostName} is full`);
      if (trouble.failsWrites) refuse('write');
    },
    beforeSync: async () => {
      await delay(SYNC_MS);
      if (trouble.failsSyncs) refuse('sync');
    },
  };
}

/** The disk after a loss of power: any part of what was not synced is there. */
export function afterPowerLoss(disk: MemoryDisk, random: SimRandom): MemoryDisk {
  const style = random.int(4);
  if (style === 0) return disk.crash();
  if (style === 1) return disk.crash(() => true);
  if (style === 2) return disk.crash(() => random.random() < 0.5);
  return disk.crash(() => random.int(256));
}
