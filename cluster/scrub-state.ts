/**
 * What the cluster's own scrubs have found: kept in the store, so that `status` can tell, and a new repairer knows when
 * the last was.
 */
import type { ClusterStore } from './cluster-store.js';
import { editJson, parseJson } from './compare-and-swap.js';
import { SCRUB_KEY } from './keys.js';

/** Of one pass over all files. */
export interface ScrubPass {
  /** ISO times. */
  readonly startedAt: string;
  readonly endedAt: string;
  readonly files: number;
  readonly filesFailed: number;
  readonly unitsChecked: number;
  readonly unitsDamaged: number;
  readonly unitsMissing: number;
  readonly parityMismatches: number;
  readonly unitsRestored: number;
  readonly unitsFailed: number;
  readonly stripesLost: number;
}

export interface ScrubState {
  readonly passes: number;
  readonly last: ScrubPass;
}

/** A pass is complete. */
export async function recordScrub(store: ClusterStore, pass: ScrubPass): Promise<void> {
  await editJson<ScrubState>(store, SCRUB_KEY, 'record a scrub', (present) => ({
    passes: (present?.passes ?? 0) + 1,
    last: pass,
  }));
}

/** @returns undefined: there was none yet */
export async function readScrub(store: ClusterStore): Promise<ScrubState | undefined> {
  const row = await store.get(SCRUB_KEY);
  return row && parseJson<ScrubState>(row);
}
