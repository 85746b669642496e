/** Every experiment, in the order of the report. */
import type { Experiment } from './experiment.js';
import { fallback } from './fallback.js';
import { stripeSize } from './stripe-size.js';

export const EXPERIMENTS: readonly Experiment[] = [stripeSize, fallback];
