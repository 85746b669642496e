import { happen, type EventOwner, type SimEvent } from './event-queue.js';
import type { SimDevice } from './device.js';
import type { SimQueuePair } from './queue-pair.js';
import type { SimWorld } from './world.js';

/** A connection request that arrived. */
export interface SimClient {
  device: SimDevice;
  connected: (qp: SimQueuePair) => void;
}

/** What stands behind a port. */
export interface SimListening {
  accept(client: SimClient): void;
}

/**
 * One life of one simulated process: from the first use of its name to `killHost()`; the name's next use begins
 * another. Its events and timers wait while it is paused (SIGSTOP) and never fire once it is dead (SIGKILL).
 */
export class SimHost implements EventOwner {
  readonly name: string;
  readonly devices: SimDevice[] = [];
  readonly listeners = new Map<number, SimListening>();
  isAlive = true;
  isPaused = false;
  readonly #world: SimWorld;
  #deferred: SimEvent[] = [];
  #nextPort = 20_000;

  constructor(world: SimWorld, name: string) {
    this.#world = world;
    this.name = name;
  }

  defer(event: SimEvent): void {
    this.#deferred.push(event);
  }

  /** What came due during the pause happens now, in its order. */
  resume(): void {
    this.isPaused = false;
    const deferred = this.#deferred;
    this.#deferred = [];
    for (const event of deferred) {
      this.#world.schedule(0, this, () => {
        const { fire } = event; // cancelled since?
        event.fire = undefined;
        if (fire !== undefined) happen(fire);
      });
    }
  }

  /** A port that nobody listens on. */
  freePort(): number {
    while (this.listeners.has(this.#nextPort)) this.#nextPort++;
    return this.#nextPort++;
  }
}
