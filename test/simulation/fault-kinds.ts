/**
 * The faults that the simulation can inject, by name. docs/failure-model.md names them beside its rows; a test
 * compares.
 *
 * `targets` says what a fault is drawn for: the machine or the pair of machines that it strikes.
 */
export type Target =
  | 'node'
  | 'switch'
  | 'writer'
  | 'reader'
  | 'all'
  | 'writer-switch'
  | 'switch-node'
  | 'writer-node'
  | 'reader-node'
  | 'store-client'
  | 'node-disk'
  | 'rebuilder';

export interface FaultKind {
  readonly target: Target;
  /** How often it is drawn beside the others. */
  readonly weight: number;
  /** Longest duration, virtual ms; 0: it happens in a moment. */
  readonly longestMs: number;
  /** It destroys what was durable: one node per run suffers it, as often as it comes. */
  readonly destroys?: boolean;
}

export const faultKinds = {
  'switch-unload': { target: 'switch', weight: 3, longestMs: 400 },
  'switch-kill': { target: 'switch', weight: 3, longestMs: 400 },
  'switch-pause': { target: 'switch', weight: 2, longestMs: 500 },
  'switch-stop': { target: 'switch', weight: 1, longestMs: 300 },
  'node-kill': { target: 'node', weight: 3, longestMs: 600 },
  'node-power-loss': { target: 'node', weight: 3, longestMs: 600 },
  'node-pause': { target: 'node', weight: 3, longestMs: 900 },
  'node-stop': { target: 'node', weight: 1, longestMs: 300 },
  'power-loss-everywhere': { target: 'all', weight: 1, longestMs: 200 },
  'writer-kill': { target: 'writer', weight: 4, longestMs: 200 },
  'writer-pause': { target: 'writer', weight: 3, longestMs: 900 },
  'reader-kill': { target: 'reader', weight: 1, longestMs: 200 },
  'cut-writer-switch': { target: 'writer-switch', weight: 2, longestMs: 700 },
  'cut-switch-node': { target: 'switch-node', weight: 3, longestMs: 700 },
  'cut-writer-node': { target: 'writer-node', weight: 3, longestMs: 700 },
  'cut-reader-node': { target: 'reader-node', weight: 2, longestMs: 700 },
  'cut-one-way': { target: 'writer-node', weight: 2, longestMs: 500 },
  'break-writer-switch': { target: 'writer-switch', weight: 2, longestMs: 0 },
  'break-switch-node': { target: 'switch-node', weight: 2, longestMs: 0 },
  'break-writer-node': { target: 'writer-node', weight: 2, longestMs: 0 },
  'slow-link': { target: 'writer-node', weight: 2, longestMs: 500 },
  'lossy-link': { target: 'switch-node', weight: 2, longestMs: 500 },
  'damaged-packets': { target: 'writer-switch', weight: 2, longestMs: 200 },
  'store-cut-off': { target: 'store-client', weight: 3, longestMs: 3000 },
  'disk-write-errors': { target: 'node-disk', weight: 1, longestMs: 100 },
  'disk-sync-errors': { target: 'node-disk', weight: 1, longestMs: 100 },
  'disk-read-errors': { target: 'node-disk', weight: 1, longestMs: 300 },
  'disk-full': { target: 'node-disk', weight: 1, longestMs: 200 },
  'disk-slow': { target: 'node-disk', weight: 2, longestMs: 500 },
  'name-taken': { target: 'writer', weight: 3, longestMs: 0 },
  'disk-lost': { target: 'node-disk', weight: 2, longestMs: 200, destroys: true },
  'rebuilder-kill': { target: 'rebuilder', weight: 2, longestMs: 60 },
  'disk-corrupt': { target: 'node-disk', weight: 1, longestMs: 0, destroys: true },
} as const satisfies Record<string, FaultKind>;

export type FaultName = keyof typeof faultKinds;

/** What nobody injects but the world brings about, by its load and its clocks; counted where it is seen. */
export const events = [
  'clock-drift',
  'second-owner',
  'late-copies',
  'file-removed',
  'name-conflict',
  'rebuilt',
] as const;
export type EventName = (typeof events)[number];
