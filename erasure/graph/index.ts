export * from './executor.js';
export * from './template.js';
