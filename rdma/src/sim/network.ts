import { happen, QUIET, type Fire, type Firing } from './event-queue.js';
import type { SimHost } from './host.js';
import type { SimWorld } from './world.js';

/** How one direction between two hosts behaves. */
export interface LinkOptions {
  /** Time from a byte's departure to its arrival, virtual ms. Default 0.02. */
  readonly latencyMs: number;
  /** Added to it: uniform, 0 … jitterMs. Order on one connection is kept all the same. Default 0.01. */
  readonly jitterMs: number;
  /** Rate, shared by everything that goes this way. Default 1,250,000 (10 Gbit/s). */
  readonly bytesPerMs: number;
  /**
   * Fraction of packets lost. On a connection each is sent again, and what follows waits for it; outside one it is
   * gone. Default 0.
   */
  readonly lossRate: number;
  /**
   * Fraction of the pieces of WRITE_WITH_IMM that arrive with a bit flipped, as if every lower check had missed it.
   * Default 0.
   */
  readonly damageRate: number;
}

const DEFAULT_LINK: LinkOptions = {
  latencyMs: 0.02,
  jitterMs: 0.01,
  bytesPerMs: 1_250_000,
  lossRate: 0,
  damageRate: 0,
};

/** How soon a lost packet of a connection is sent again, virtual ms. */
const RETRANSMIT_MS = 2;

/** One direction between two hosts, by name: it outlives the processes at its ends. */
class Link {
  options: LinkOptions;
  /** Nothing arrives; what is sent is sent again when the partition heals. */
  isBlocked = false;
  /** Counts partitions, so that a retry timer knows its own. */
  blockedEpoch = 0;
  #busyUntil = 0;

  constructor(options: LinkOptions) {
    this.options = options;
  }

  /** Takes the link for `bytes`. @returns when the last of them has left, virtual ms */
  occupy(now: number, bytes: number): number {
    this.#busyUntil = Math.max(now, this.#busyUntil) + bytes / this.options.bytesPerMs;
    return this.#busyUntil;
  }
}

/** All links, made on first use from the defaults. */
export class Network {
  readonly #links = new Map<string, Link>();
  readonly #defaults: LinkOptions;

  constructor(defaults: Partial<LinkOptions>) {
    this.#defaults = { ...DEFAULT_LINK, ...defaults };
  }

  link(from: string, to: string): Link {
    const key = `${from} > ${to}`;
    let link = this.#links.get(key);
    if (link === undefined) this.#links.set(key, (link = new Link(this.#defaults)));
    return link;
  }
}

/**
 * One direction of one connection: messages arrive in the order of sending, each exactly once, unless the connection
 * breaks first. What comes due while the link is blocked waits at its end (the sender's retransmissions).
 */
export class Channel implements Firing {
  readonly link: Link;
  readonly #world: SimWorld;
  readonly #to: SimHost;
  #messages: { time: number; arrive: Fire }[] = [];
  #lastArrival = 0;
  #isClosed = false;

  constructor(world: SimWorld, from: SimHost, to: SimHost) {
    this.#world = world;
    this.#to = to;
    this.link = world.network.link(from.name, to.name);
  }

  /** @param arrive  returns QUIET when only a device's inside was touched */
  send(arrive: Fire): void {
    if (this.#isClosed) return;
    const { latencyMs, jitterMs, lossRate } = this.link.options;
    let delay = latencyMs + jitterMs * this.#world.networkRandom.random();
    while (lossRate > 0 && this.#world.networkRandom.random() < lossRate) delay += RETRANSMIT_MS;
    const now = this.#world.now(),
      time = Math.max(this.#lastArrival, now + delay);
    // What catches up with the message before it comes with that one's event, which is still to happen.
    const isTogether = time === this.#lastArrival && time > now && this.#messages.length > 0;
    this.#lastArrival = time;
    this.#messages.push({ time, arrive });
    if (!isTogether) this.#world.schedule(time - now, this.#to, this);
  }

  /** After a partition: what waited arrives after one more retransmission. */
  resume(): void {
    if (this.#messages.length === 0) return;
    const delay = this.link.options.latencyMs + this.#world.networkRandom.random();
    this.#world.schedule(delay, this.#to, this);
  }

  close(): void {
    this.#isClosed = true;
    this.#messages = [];
  }

  /** What is due arrives. */
  fire(): unknown {
    let quiet: unknown = QUIET;
    while (!this.link.isBlocked && this.#messages.length > 0 && this.#messages[0]!.time <= this.#world.now() + 1e-9) {
      if (happen(this.#messages.shift()!.arrive) !== QUIET) quiet = undefined;
    }
    return quiet;
  }
}
