/**
 * A whole cluster in one process, in virtual time, from one seed.
 *
 * Intuition: everything that takes time is an event in one queue, ordered by (time, sequence). `run()` takes one event
 * after the other; between two events it lets the promises that the event settled run to their end. So the real
 * components, with their promises and awaits, run unchanged, instantly and in the same order every time.
 *
 * How promises are drained: after each event `run()` goes on in a tick of its own (`process.nextTick`). Node starts a
 * tick that a microtask asked for only when the microtask queue is empty, however long the chains of awaits in it (a
 * tick asked for by a tick it starts at once); hence nothing that a promise can start by itself is left when the next
 * event fires. After an event that touched the device's inside alone (QUIET) there is nothing to drain. What waits for
 * the real world (a file, a socket, setTimeout, setImmediate) never happens while `run()` runs: simulated components
 * take those from outside, as simulated ones.
 *
 * Hosts are names. Everything random comes from forks of the seed. `trace` gets a line for each thing of note: the
 * same seed and the same program give the same lines, byte for byte.
 */
import { EventQueue, happen, QUIET, type Fire, type SimEvent } from './event-queue.js';
import { SimHost } from './host.js';
import { Network, type LinkOptions } from './network.js';
import { SimRandom } from './random.js';
import { SimDevice } from './device.js';
import type { Connection } from './connection.js';
import { detach } from '../rethrow.js';

export interface SimWorldOptions extends Partial<LinkOptions> {
  readonly seed: number | string;
  /** How long a connection outlives a partition, virtual ms. Default 1000. */
  readonly retryMs?: number;
  /** How soon peers notice a killed host, virtual ms. Default 5. */
  readonly detectMs?: number;
}

const RESOLVED = Promise.resolve();

export interface SimTimer {
  readonly event: SimEvent;
}

export class SimWorld {
  readonly seed: string;
  readonly network: Network;
  /** Randomness of arrival times; devices have their own. */
  readonly networkRandom: SimRandom;
  readonly connections = new Set<Connection>();
  trace: ((line: string) => void) | undefined;
  readonly #random: SimRandom;
  readonly #retryMs: number;
  readonly #detectMs: number;
  readonly #events = new EventQueue();
  readonly #hosts = new Map<string, SimHost>();
  #now = 0;
  #isRunning = false;
  #devicesOpened = 0;

  constructor(options: SimWorldOptions) {
    this.seed = String(options.seed);
    this.#random = new SimRandom(this.seed);
    this.networkRandom = this.fork('network');
    this.#retryMs = options.retryMs ?? 1000;
    this.#detectMs = options.detectMs ?? 5;
    const { latencyMs, jitterMs, bytesPerMs } = options;
    this.network = new Network({
      ...(latencyMs !== undefined && { latencyMs }),
      ...(jitterMs !== undefined && { jitterMs }),
      ...(bytesPerMs !== undefined && { bytesPerMs }),
    });
  }

  /** Virtual milliseconds since the world began. */
  now(): number {
    return this.#now;
  }

  /** @returns a uniform number, 0 ≤ x < 1 */
  random(): number {
    return this.#random.random();
  }

  /** @returns a generator of its own for one part of the simulation, whatever the others draw */
  fork(label: string): SimRandom {
    return this.#random.fork(label);
  }

  /** @param host whose timer: it waits while that host is paused, and dies with it */
  setTimer(ms: number, fn: () => void, host?: string): SimTimer {
    return { event: this.schedule(ms, host === undefined ? undefined : this.host(host), fn) };
  }

  /** Harmless once the timer has fired. */
  clearTimer(timer: SimTimer | undefined): void {
    if (timer !== undefined) timer.event.fire = undefined;
  }

  /** For the simulation's own parts: `fire` happens `ms` from now, if `owner` then lives. */
  schedule(ms: number, owner: SimHost | undefined, fire: Fire): SimEvent {
    return this.#events.push(ms > 0 ? this.#now + ms : this.#now, fire, owner);
  }

  note(line: string): void {
    this.trace?.(`${this.#now.toFixed(6)} ${line}`);
  }

  /**
   * Lets virtual time pass: until `until()` holds, nothing is left to happen, or `maxVirtualMs` have passed.
   *
   * @returns whether `until()` holds; without it, true
   * @throws what an event or a handler threw
   */
  run(until?: () => boolean, maxVirtualMs = 60_000): Promise<boolean> {
    if (this.#isRunning)
      return Promise.reject(new Error('SimWorld.run() is running already: one loop drives the world'));
    this.#isRunning = true;
    const end = this.#now + maxVirtualMs;
    return new Promise((resolve, reject) => {
      const tick = (): void => {
        try {
          const isOver = this.#burst(until, end);
          if (isOver === undefined) {
            detach(RESOLVED.then(askForTick));
            return;
          }
          this.#isRunning = false;
          resolve(isOver);
        } catch (error) {
          this.#isRunning = false;
          reject(error as Error);
        }
      };
      const askForTick = (): void => {
        process.nextTick(tick);
      };
      detach(RESOLVED.then(askForTick));
    });
  }

  /** Events, up to the first after which promises must be drained. @returns what run() returns, undefined: go on */
  #burst(until: (() => boolean) | undefined, end: number): boolean | undefined {
    for (;;) {
      if (until?.() === true) return true;
      const time = this.#events.nextTime;
      if (time > end) {
        if (time !== Infinity) this.#now = end;
        return until === undefined;
      }
      if (time > this.#now) this.#now = time;
      if (!this.#fire(this.#events.pop()!)) return undefined;
    }
  }

  /**
   * Runs the world until a promise settles.
   * @returns what it resolved to
   * @throws what it rejected with, or an Error when it can't settle within maxVirtualMs
   */
  async complete<T>(promise: Promise<T>, maxVirtualMs = 60_000): Promise<T> {
    let isSettled = false;
    const mark = (): void => {
      isSettled = true;
    };
    promise.then(mark, mark);
    if (await this.run(() => isSettled, maxVirtualMs)) return promise;
    const left = this.#events.size === 0 ? 'nothing is left to happen' : `${maxVirtualMs} virtual ms have passed`;
    throw new Error(
      `Cannot complete a promise at ${this.#now} ms (seed ${this.seed}): ${left}, and it has not settled`,
    );
  }

  /** @returns whether it was quiet */
  #fire(event: SimEvent): boolean {
    const { owner, fire } = event;
    if (fire === undefined) return true;
    if (owner !== undefined) {
      if (!owner.isAlive) return true;
      if (owner.isPaused) {
        owner.defer(event);
        return true;
      }
    }
    event.fire = undefined;
    return happen(fire) === QUIET;
  }

  /** A device for a process on `host`. Several may share a host: they then live, pause and die together. */
  openDevice(host: string): SimDevice {
    const device = new SimDevice(this, this.host(host), `sim${this.#devicesOpened++}@${host}`);
    this.note(`${device.name} open`);
    return device;
  }

  /** The present life of a host. */
  host(name: string): SimHost {
    let host = this.#hosts.get(name);
    if (host === undefined) this.#hosts.set(name, (host = new SimHost(this, name)));
    return host;
  }

  /** @returns the host when something lives there */
  findHost(name: string): SimHost | undefined {
    return this.#hosts.get(name);
  }

  // Faults.

  /** Changes the link between two hosts, both ways unless `oneWay`. */
  setLink(a: string, b: string, options: Partial<LinkOptions>, oneWay = false): void {
    for (const link of this.#between(a, b, oneWay)) link.options = { ...link.options, ...options };
  }

  /** Nothing passes from a to b, nor back unless `oneWay`. Connections break when it lasts longer than `retryMs`. */
  partition(a: string, b: string, oneWay = false): void {
    this.note(`partition ${a} ${oneWay ? '>' : '|'} ${b}`);
    for (const link of this.#between(a, b, oneWay)) {
      if (link.isBlocked) continue;
      link.isBlocked = true;
      const since = (link.blockedEpoch += 1);
      this.schedule(this.#retryMs, undefined, () => {
        if (link.isBlocked && link.blockedEpoch === since) this.#break(a, b, 'no answer within the retry time');
      });
    }
  }

  heal(a: string, b: string): void {
    this.note(`heal ${a} | ${b}`);
    for (const link of this.#between(a, b, false)) link.isBlocked = false;
    for (const connection of this.connections) if (connection.joins(a, b)) connection.resume();
  }

  /** Every connection between a and b breaks now, with what is on its way. New ones can be made. */
  breakConnections(a: string, b: string): void {
    this.note(`break ${a} | ${b}`);
    this.#break(a, b, 'the connection broke');
  }

  /** Its processes die at once: no event, timer, handler or delivery of theirs happens any more. Peers notice later. */
  killHost(name: string): void {
    this.note(`kill ${name}`);
    const host = this.#hosts.get(name);
    if (host === undefined) return;
    host.isAlive = false;
    this.#hosts.delete(name);
    for (const connection of this.connections) if (connection.has(host)) connection.hostDied(host, this.#detectMs);
  }

  /** Its processes stop (SIGSTOP): nothing is delivered, sent or completed there until `resumeHost()`. */
  pauseHost(name: string): void {
    this.note(`pause ${name}`);
    this.host(name).isPaused = true;
  }

  resumeHost(name: string): void {
    this.note(`resume ${name}`);
    this.host(name).resume();
  }

  #between(a: string, b: string, oneWay: boolean) {
    return oneWay ? [this.network.link(a, b)] : [this.network.link(a, b), this.network.link(b, a)];
  }

  #break(a: string, b: string, reason: string): void {
    for (const connection of this.connections) if (connection.joins(a, b)) connection.break(reason);
  }

  get detectMs(): number {
    return this.#detectMs;
  }
}
