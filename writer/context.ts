/** What every part of the writer library shares: the device, the cluster, and the limits. */
import type { ReaderContext } from '../pipeline/stripe-reader.js';
import type { ProposalHistory } from './proposals.js';

export interface ClientContext extends ReaderContext {
  /** A switch must have been programmable for so long before a writer goes back to it. */
  readonly holdMs: number;
  /** 'host': never use a switch. */
  readonly parity: 'auto' | 'host';
  /**
   * How units travel: 'packets' over UDP, to nodes that take them; 'ring': never so; 'auto': where the cluster has a
   * packet switch.
   */
  readonly dataPath: 'auto' | 'ring' | 'packets';
  /** Nodes that this process has proposed down. */
  readonly proposals: ProposalHistory;
  /** Told by readers of what they found damaged. */
  onDamaged?: (fileId: number, stripe: number) => void;
}
