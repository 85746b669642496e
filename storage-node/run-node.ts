/** A storage node on a device, one machine's files and the embedded cluster store: what main.ts runs as a process. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { openDevice } from 'tartan-rdma';
import { openClusterStore } from '../cluster/open-store.js';
import { Hub } from '../pipeline/hub.js';
import { realClock } from '../wire/clock.js';
import { serveControl } from '../wire/control.js';
import { TartanError } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import { isLoopback } from '../wire/loopback.js';
import { BLOCK_BYTES, openFileDisk } from './disk.js';
import { NODE_PROGRAM, StorageNode } from './node-core.js';
import { nodeCounters } from './node-counters.js';
import { lockStore } from './store-lock.js';
import type { Durability } from './unit-store.js';

export interface StorageNodeSettings {
  /** Directory of the cluster store. */
  readonly cluster: string;
  readonly id: string;
  /** A file, a block device, or a directory in which the file `units` is made. */
  readonly path: string;
  /** Of a store file that has to be made. */
  readonly sizeBytes: number;
  readonly host: string;
  readonly port: number;
  /** UDP port for units in packets; 0: any; undefined: none are taken. */
  readonly packetPort?: number;
  readonly controlPort: number;
  readonly durability: Durability;
  readonly ringMemoryBytes: number;
  readonly secret: string | undefined;
  /** 'soft' (default), 'verbs:rxe0' …, as openDevice() takes it. */
  readonly device?: string;
  /** One line for what an operator should know. */
  readonly log: (message: string) => void;
  /** The node has stopped by itself: another process took its id. */
  readonly onDisplaced?: () => void;
}

export interface RunningStorageNode {
  readonly node: StorageNode;
  readonly port: number;
  readonly controlPort: number;
  stop(): Promise<void>;
}

/**
 * Runs a storage node until stop().
 *
 * @throws {TartanError} ERR_SECRET_REQUIRED, ERR_NOT_FOUND, ERR_IN_USE, ERR_FOREIGN_STORE, ERR_STORE_VERSION, ERR_DISK,
 *         ERR_LISTEN …;
 *         then nothing of it is left running
 */
export async function runStorageNode(settings: StorageNodeSettings): Promise<RunningStorageNode> {
  const { cluster, id, host, secret, log } = settings;
  if (secret === undefined && !isLoopback(host))
    throw new TartanError(
      'ERR_SECRET_REQUIRED',
      `Cannot listen on ${host}: beyond loopback a cluster secret is required (TARTAN_SECRET or --secret-file)`,
    );
  // Closed in the opposite order, whether this start fails or the node stops.
  const opened: (() => void | Promise<void>)[] = [];
  const closeAll = async (): Promise<void> => {
    for (let close = opened.pop(); close !== undefined; close = opened.pop()) await close();
  };
  try {
    const clusterStore = await openClusterStore(cluster);
    opened.push(() => clusterStore.close());
    const device = openDevice(settings.device ?? 'soft', { name: id, host, log });
    opened.push(() => device.close());
    const path = isDirectory(settings.path) ? join(settings.path, 'units') : settings.path;
    const lock = lockStore(path);
    opened.push(() => {
      lock.release();
    });
    const probe = device.allocate(BLOCK_BYTES);
    const disk = await openFileDisk(path, {
      create: true,
      sizeBytes: settings.sizeBytes,
      alignedBlock: new Uint8Array(probe.buffer),
    });
    await probe.deregister();
    log(
      `store ${path}: ${disk.size} bytes, ${disk.direct ? 'O_DIRECT' : 'through the page cache'}, ` +
        `durability ${settings.durability}`,
    );
    // The control port must be known before the node registers itself; until then it answers that it is down.
    let node: StorageNode | undefined;
    const control = await serveControl({
      host,
      port: settings.controlPort,
      secret,
      services: {
        node: {
          status: () => ({
            id,
            state: node?.state ?? 'down',
            version: NODE_PROGRAM.version,
            mapEpoch: node?.mapEpoch ?? 0,
            ringMemoryUsed: node?.memory.used ?? 0,
            ringMemoryLimit: settings.ringMemoryBytes,
            counters: node === undefined ? {} : nodeCounters(node, device),
          }),
        },
      },
    }).catch(async (error: unknown) => {
      await disk.close();
      throw error;
    });
    opened.push(() => control.close());
    const starting = new StorageNode({
      id,
      device,
      hub: new Hub(device, setImmediate),
      clock: realClock,
      clusterStore,
      disk,
      host,
      port: settings.port,
      ...(settings.packetPort !== undefined && { packetPort: settings.packetPort }),
      controlPort: control.port,
      secret,
      durability: settings.durability,
      ringMemoryBytes: settings.ringMemoryBytes,
      log,
      nowMs: Date.now(),
      onDisplaced: () => {
        detach(
          closeAll().then(() => {
            settings.onDisplaced?.();
          }),
        );
      },
    });
    await starting.start();
    node = starting;
    opened.push(() => starting.stop());
    return { node, port: node.port, controlPort: control.port, stop: closeAll };
  } catch (error) {
    await closeAll();
    throw error;
  }
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
