/** tartan-rdma: verbs-shaped RDMA for Node.js. */
export * from './device.js';
export * from './packets.js';
export * from './records.js';
export { openSoftDevice, softKernels, type SoftDeviceOptions } from './soft/soft-device.js';
export * from './sim/index.js';
export { SharedReceiveQueue } from './verbs/shared-receive-queue.js';
export {
  openVerbsDevice,
  VerbsDevice,
  type AsyncEvent,
  type ReceiveOptions,
  type VerbsDeviceOptions,
} from './verbs/verbs-device.js';
export { verbsDevices, type RdmaDeviceInfo, type RdmaPort } from './verbs/devices.js';
export { openDevice, type OpenDeviceOptions } from './verbs/open-device.js';
