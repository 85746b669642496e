/**
 * A way of stripes through a switch: over its ring (switch-path.ts), or as packets that it computes on
 * (packet-path.ts).
 */
import type { ClusterMap } from '../cluster/records.js';

export interface StripePath {
  /** Of the switch. */
  readonly id: string;
  /** The switch's: 'programmable', 'forwarding' … */
  readonly state: string;
  /** Until it is lost or closed. */
  readonly up: boolean;
  /** Whether stripes may be sent. */
  readonly usable: boolean;
  /** Sends the sealed stripe in staging slot `tag`, at once or when there is room. @param stripeLength data bytes */
  send(tag: number, stripeLength: number, counter: number): void;
  /** Ends it: what is under way is settled as UNREACHABLE. */
  close(reason: string): void;
  /** Resolves when nothing of it is left. */
  destroy(reason: string): Promise<void>;
  /**
   * The session acts under another map: what was sent under an older one is settled as STALE_MAP. Absent where the
   * switch does that.
   */
  remap?(map: ClusterMap): void;
}

/**
 * Invariant: every tag given to `send` is answered exactly once by `onSettled` (acknowledged, refused, or UNREACHABLE
 * when the path is lost), and never before the device has stopped reading the tag's memory.
 */
export interface StripePathOwner {
  /** @param refusal 0: durable on all nodes that are not missing; else why, by unit `unit` */
  onSettled(tag: number, refusal: number, unit: number, mapEpoch: number): void;
  /** The path can't be used any more; the tags under way follow as UNREACHABLE. */
  onLost(path: StripePath, reason: string): void;
  onState(path: StripePath, state: string): void;
}
