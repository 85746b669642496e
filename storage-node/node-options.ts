/** What a storage node is given, and what it counts. */
import type { Device } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { Hub } from '../pipeline/hub.js';
import type { Clock } from '../wire/clock.js';
import type { Disk } from './disk.js';
import type { Durability } from './unit-store.js';

export interface StorageNodeOptions {
  readonly id: string;
  readonly device: Device;
  /** Shared with others on the same device; made here otherwise. */
  readonly hub?: Hub;
  readonly clock: Clock;
  readonly clusterStore: ClusterStore;
  readonly disk: Disk;
  /** Address to listen on, and to register. Port 0: any. */
  readonly host: string;
  readonly port?: number;
  /** UDP port for units in packets, at `host`, which must then be an IPv4 address; 0: any. Default: none are taken. */
  readonly packetPort?: number;
  readonly controlPort?: number;
  readonly secret?: string | undefined;
  readonly durability?: Durability;
  /** Bytes of all rings. Default 256 MiB. */
  readonly ringMemoryBytes?: number;
  /** Of those, for reads (at least one unit of 4 MiB). Default: a quarter, at most 32 MiB. */
  readonly readMemoryBytes?: number;
  readonly log?: (message: string) => void;
  /** ms since 1970, for a new store. */
  readonly nowMs?: number;
  /** Another process took this id; the node has stopped. */
  readonly onDisplaced?: () => void;
  readonly leaseMs?: number;
  readonly rejoinMs?: number;
  /** A disk that has not answered for so long has failed. Default 10,000. */
  readonly diskDeadlineMs?: number;
  /** A peer not heard of for so long is dropped. Default 60,000. */
  readonly silentMs?: number;
  /** Most unit slots granted to one writer; every session takes 4 KiB for each. Default 256. */
  readonly maxSlots?: number;
}

export interface NodeCounters {
  unitsReceived: number;
  bytesReceived: number;
  unitsRefused: number;
  unitsAcknowledged: number;
  unitsRead: number;
  bytesRead: number;
  readsFailed: number;
  checksumFailures: number;
  protocolErrors: number;
  requests: number;
  connections: number;
}
