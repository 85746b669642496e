/**
 * A shared receive queue: receives posted once for many queue pairs. Whichever of them gets a message takes the oldest,
 * and completes it on its own handler, with the wrId given here. So a server with a thousand quiet connections posts
 * receives for what may arrive at once, not for each.
 *
 * What is left when the queue is destroyed is flushed to `handler` here, and so is a receive that a connection had
 * begun to fill when it failed: every receive completes exactly once.
 */
import { type CompletionHandler, type MemoryRegion, RdmaError } from '../device.js';
import { Opcode } from '../records.js';
import type { SendQueue } from '../soft/send-queue.js';

/** What it needs of its device. */
export interface SharedReceiveQueueOwner {
  readonly sendQueue: SendQueue;
  keyOf(region: MemoryRegion): number;
  armReceives(number: number, limit: number): boolean;
  destroyReceives(queue: SharedReceiveQueue): Promise<void>;
}

export class SharedReceiveQueue {
  /**
   * Gets the receives that complete on no queue pair (FLUSHED), with LOCAL_PROTECTION_ERROR those that name no memory.
   */
  handler: CompletionHandler = () => undefined;
  /** Fewer receives are left than armLimit() said; called once for each arming. */
  onLimit: (() => void) | undefined;
  #destroyed: Promise<void> | undefined;

  /** @param qpn  its number, among those of the device's queue pairs */
  constructor(
    private readonly device: SharedReceiveQueueOwner,
    readonly qpn: number,
  ) {}

  /** Posts a receive, as QueuePair.postRecv() does. */
  postRecv(wrId: number, region: MemoryRegion | undefined, offset: number, length: number): void {
    if (this.#destroyed !== undefined)
      throw new RdmaError('ERR_DEVICE_CLOSED', 'Cannot post a receive: the shared receive queue is destroyed');
    const at = this.device.sendQueue.next(),
      words = this.device.sendQueue.words;
    words[at] = Opcode.RECV | (region === undefined ? 0 : 1 << 16);
    words[at + 1] = this.qpn;
    words[at + 2] = wrId;
    words[at + 8] = region === undefined ? 0 : this.device.keyOf(region);
    words[at + 9] = offset;
    words[at + 10] = length;
  }

  /**
   * Asks to be told once when fewer than `limit` of the receives that the adapter has are left.
   *
   * @throws {RdmaError} ERR_ARGUMENT when the adapter refuses it, e.g. because it is not below the queue's depth
   */
  armLimit(limit: number): void {
    if (!Number.isInteger(limit) || limit < 1 || !this.device.armReceives(this.qpn, limit))
      throw new RdmaError(
        'ERR_ARGUMENT',
        `Cannot arm a limit of ${limit} receives: at least 1, less than the queue's depth is expected`,
      );
  }

  /**
   * Resolves when every receive has completed.
   *
   * @throws {RdmaError} ERR_IN_USE while queue pairs use it; connections that a listener takes later have receives of
   *         their own
   */
  destroy(): Promise<void> {
    if (this.#destroyed !== undefined) return this.#destroyed;
    const destroyed = this.device.destroyReceives(this);
    this.#destroyed = destroyed;
    // Whoever asked is told; it may be asked again.
    destroyed.catch(() => {
      this.#destroyed = undefined;
    });
    return destroyed;
  }
}
