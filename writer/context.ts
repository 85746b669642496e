/** What every part of the writer library shares: the device, the cluster, and the limits. */
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { SessionContext } from '../pipeline/session.js';

export interface ClientContext extends SessionContext {
  readonly store: ClusterStore;
  /** For logs and status. */
  readonly name: string;
  readonly transport: 'auto' | 'tcp' | 'shm';
  /** A peer that does not answer a probe for so long is taken for gone. */
  readonly deadlineMs: number;
  readonly heartbeatMs: number;
  /** A switch must have been programmable for so long before a writer goes back to it. */
  readonly holdMs: number;
  /** 'host': never use a switch. */
  readonly parity: 'auto' | 'host';
  readonly memory: RingMemory;
}

/** The budget that all rings of a process share, bytes. */
export class RingMemory {
  readonly limit: number;
  used = 0;
  constructor(limit: number) { this.limit = limit; }
  /** How much of `wanted` can be had, in multiples of `step`; takes it. 0 when less than `least` is left. */
  take(wanted: number, step: number, least: number): number {
    const bytes = Math.floor(Math.min(wanted, this.limit - this.used) / step) * step;
    if (bytes < least) return 0;
    this.used += bytes;
    return bytes;
  }
  give(bytes: number): void { this.used -= bytes; }
}
