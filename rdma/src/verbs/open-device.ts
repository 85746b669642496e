/** A device by its name on a command line. */
import type { Device } from '../device.js';
import { RdmaError } from '../device.js';
import { openSoftDevice } from '../soft/soft-device.js';
import { openVerbsDevice } from './verbs-device.js';

export interface OpenDeviceOptions {
  /** For messages and metrics. */
  readonly name?: string;
  /** Where the device is to listen: on a loopback address 'auto' is soft, since no RDMA device has one. */
  readonly host?: string;
  /** Told which device 'auto' chose, and why not verbs. */
  readonly log?: (message: string) => void;
}

/**
 * Opens `soft`, `verbs` (the first RDMA device with an active port), `verbs:NAME`, or `auto`: verbs where there is an
 * RDMA device, else soft. All of a cluster must use the same kind.
 *
 * @throws {RdmaError} ERR_UNKNOWN_DEVICE for another name; ERR_NO_VERBS, ERR_NO_ADDON as openVerbsDevice()
 */
export function openDevice(spec: string, { name, host, log }: OpenDeviceOptions = {}): Device {
  const named = name === undefined ? {} : { name };
  if (spec === 'soft') return openSoftDevice(named);
  if (spec === 'verbs') return openVerbsDevice(named);
  if (spec.startsWith('verbs:') && spec.length > 6) return openVerbsDevice({ ...named, device: spec.slice(6) });
  if (spec !== 'auto')
    throw new RdmaError(
      'ERR_UNKNOWN_DEVICE',
      `Cannot open device '${spec}': soft, verbs, verbs:NAME or auto is expected`,
    );
  if (host !== undefined && /^(127\.|::1$|localhost$)/.test(host)) return openSoftDevice(named);
  try {
    const device = openVerbsDevice(named);
    log?.(`device verbs:${device.deviceName}`);
    return device;
  } catch (error) {
    if (!(error instanceof RdmaError)) throw error;
    log?.(`device soft: ${error.message}`);
    return openSoftDevice(named);
  }
}
