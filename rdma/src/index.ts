/** tartan-rdma: verbs-shaped RDMA for Node.js. */
export * from './device.js';
export * from './records.js';
export { openSoftDevice, softKernels, type SoftDeviceOptions } from './soft/soft-device.js';
export * from './sim/index.js';
