/** Every experiment, in the order of the report. */
import type { Experiment } from './experiment.js';
import { fallback } from './fallback.js';
import { files } from './files.js';
import { latency } from './latency.js';
import { links } from './links.js';
import { registration } from './registration.js';
import { stripeSize } from './stripe-size.js';
import { writers } from './writers.js';

export const EXPERIMENTS: readonly Experiment[] = [stripeSize, fallback, links, writers, latency, files, registration];
