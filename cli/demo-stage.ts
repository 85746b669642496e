/** Where the demo is told: a switch and three storage nodes of some kind, and what can happen to them. */
import type { Client } from '../writer/index.js';

export interface Stage {
  /** What stands there, in a sentence. */
  readonly description: string;
  connect(): Promise<Client>;
  unload(): Promise<void>;
  load(): Promise<void>;
  killSwitch(): Promise<void>;
  /** Another one in its place, ready. */
  startSwitch(): Promise<void>;
  killNode(id: string): Promise<void>;
}

/** Most registered memory of each process of a demo. */
export const RING_MEMORY_BYTES = 64 << 20;
