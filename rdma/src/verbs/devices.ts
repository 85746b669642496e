/** The RDMA devices of this machine, as the verbs see them. */
import { RdmaError } from '../device.js';
import { loadVerbsAddon } from './native.js';

export interface RdmaPort {
  /** From 1. */
  readonly port: number;
  /** As libibverbs says it, e.g. 'PORT_ACTIVE', 'PORT_DOWN'. */
  readonly state: string;
  readonly linkLayer?: 'ethernet' | 'infiniband' | 'unspecified';
  /** Bytes of payload in one packet. */
  readonly activeMtu?: number;
  readonly maxMtu?: number;
  /** As IPv6 addresses; a RoCE port's IPv4 addresses are mapped ones. */
  readonly gids?: readonly string[];
}

export interface RdmaDeviceInfo {
  readonly name: string;
  /** 'iwarp' devices are listed but cannot be opened: they have no write with immediate. */
  readonly transport: 'ib' | 'iwarp';
  readonly nodeType: string;
  readonly firmware: string;
  readonly maxRegionBytes: number;
  readonly maxRegions: number;
  readonly maxQueuePairs: number;
  /** Of one queue. */
  readonly maxRequests: number;
  readonly maxGather: number;
  readonly maxCompletions: number;
  /** Outstanding READs of one queue pair. */
  readonly maxReads: number;
  readonly maxSharedReceives: number;
  readonly ports: readonly RdmaPort[];
}

/**
 * Lists the RDMA devices of this machine; none is an empty list.
 *
 * @throws {RdmaError} ERR_NO_ADDON when the addon was not built; ERR_NO_VERBS when rdma-core is missing
 */
export function verbsDevices(): RdmaDeviceInfo[] {
  const addon = loadVerbsAddon();
  try {
    return JSON.parse(addon.devices()) as RdmaDeviceInfo[];
  } catch (cause) {
    throw new RdmaError('ERR_NO_VERBS', `Cannot list RDMA devices: ${(cause as Error).message}`, { cause });
  }
}
