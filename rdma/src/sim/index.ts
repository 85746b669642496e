/** The sim device and the world around it. Everything starts with `new SimWorld({ seed })`. */
export { SimWorld, type SimTimer, type SimWorldOptions } from './world.js';
export { SimRandom } from './random.js';
export { SimDevice } from './device.js';
export type { LinkOptions } from './network.js';
