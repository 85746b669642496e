/** Page-aligned memory from the device: what an O_DIRECT disk needs. */
import type { Device } from 'tartan-rdma';
import { PAGE_BYTES } from '../wire/slot-layout.js';
import { detach } from '../wire/front-door.js';
import type { AlignedMemory } from './batch.js';

/** @returns at least a page; the device's until it is released */
export function deviceMemory(device: Device, bytes: number): AlignedMemory {
  const region = device.allocate(Math.max(bytes, PAGE_BYTES));
  return {
    bytes: new Uint8Array(region.buffer),
    release: () => {
      detach(region.deregister());
    },
  };
}
