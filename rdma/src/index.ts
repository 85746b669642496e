export * from './device.js';
export * from './records.js';
export * from './sim/index.js';
