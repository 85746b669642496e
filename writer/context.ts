/** What every part of the writer library shares: the device, the cluster, and the limits. */
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { RingMemory } from '../pipeline/ring-memory.js';
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
  /** Told by readers of what they found damaged. */
  onDamaged?: (fileId: number, stripe: number) => void;
}
