/**
 * What the conformance cases stand on: a world of two devices, a log of completions, and comparisons that throw.
 */
import assert from 'node:assert/strict';
import type { ConnectOptions, Device, Listener, QueuePair } from '../../rdma/dist/index.js';

/** Two devices that reach each other, fresh for every case. */
export interface World {
  readonly a: Device;
  readonly b: Device;
  /** Where b listens, and a connects to. */
  readonly address: string;
  readonly connectOptions?: ConnectOptions;
  /** Lets time pass until the promise settles. Real time: `(promise) => promise`. */
  drive<T>(promise: Promise<T>): Promise<T>;
  /** Lets time pass until the condition holds. @returns false when it gave up */
  settle(until: () => boolean): Promise<boolean>;
  /** Lets so much time pass that whatever can happen by itself has happened. */
  quiet(): Promise<void>;
  /** Closes both devices, and whatever else the world holds. */
  close(): Promise<void>;
}

export interface Case {
  readonly name: string;
  run(world: World): Promise<void>;
}

/** A world in real time around two devices of one process. */
export function realTimeWorld(a: Device, b: Device, address: string, connectOptions: ConnectOptions = {}): World {
  const turn = (ms: number): Promise<void> =>
    new Promise((resolve) => {
      setTimeout(resolve, ms);
    });
  return {
    a,
    b,
    address,
    // Longer than any machine is slow; whoever is refused hears of it at once.
    connectOptions: { timeoutMs: 60_000, ...connectOptions },
    drive: (promise) => promise,
    settle: async (until) => {
      for (let turns = 0; turns < 20_000; turns++) {
        if (until()) return true;
        await turn(turns < 100 ? 0 : 1);
      }
      return false;
    },
    quiet: () => turn(50),
    close: async () => {
      await Promise.all([a.close(), b.close()]);
    },
  };
}

export interface Entry {
  opcode: number;
  status: number;
  wrId: number;
  byteLength: number;
  imm: number;
  detail: number;
}

/** Records what a queue pair tells. */
export class Log {
  readonly entries: Entry[] = [];
  readonly errors: string[] = [];
  /** Number of entries when the first error was told. */
  entriesAtError = 0;
  /** Called with each entry, inside the handler. */
  on: ((entry: Entry) => void) | undefined;

  readonly handler = (
    opcode: number,
    status: number,
    wrId: number,
    byteLength: number,
    imm: number,
    detail: number,
  ): void => {
    const entry = { opcode, status, wrId, byteLength, imm, detail };
    this.entries.push(entry);
    this.on?.(entry);
  };

  attach(qp: QueuePair): void {
    qp.handler = this.handler;
    qp.onError = (reason) => {
      if (this.errors.length === 0) this.entriesAtError = this.entries.length;
      this.errors.push(reason);
    };
  }

  /** [wrId, status] of each entry. */
  get statuses(): [number, number][] {
    return this.entries.map(({ wrId, status }) => [wrId, status]);
  }
}

export interface Pair {
  qa: QueuePair;
  qb: QueuePair;
  la: Log;
  lb: Log;
  listener: Listener;
}

/** Connects a to b. @param onConnection called with b's end, before anything completes on it */
export async function connectPair(world: World, onConnection?: (qb: QueuePair, lb: Log) => void): Promise<Pair> {
  const lb = new Log();
  let qb: QueuePair | undefined;
  const listener = await world.drive(
    world.b.listen(world.address, 0, (qp) => {
      qb = qp;
      lb.attach(qp);
      onConnection?.(qp, lb);
    }),
  );
  const qa = await world.drive(world.a.connect(world.address, listener.port, world.connectOptions));
  const la = new Log();
  la.attach(qa);
  await until(world, () => qb !== undefined, 'b has its end of the connection');
  return { qa, qb: qb!, la, lb, listener };
}

/** Lets time pass until the condition holds, and fails when it never does. */
export async function until(world: World, condition: () => boolean, what: string): Promise<void> {
  assert.ok(await world.settle(condition), `should happen: ${what}`);
}

export async function entriesArrive(world: World, log: Log, count: number, whose: string): Promise<void> {
  await world.settle(() => log.entries.length >= count);
  assert.ok(
    log.entries.length >= count,
    `${whose} should get ${count} completions, got ${JSON.stringify(log.statuses.slice(-20))}`,
  );
}

export function bytesOf(region: { buffer: ArrayBuffer }, offset = 0, length?: number): Uint8Array {
  return new Uint8Array(region.buffer, offset, length);
}

/** Fills with bytes that differ from their neighbours and by seed, none zero. */
export function fill(bytes: Uint8Array, seed: number): Uint8Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  for (let i = 0; i < bytes.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24 || 0x5a;
  }
  return bytes;
}

export function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] !== expected[i])
      assert.fail(`${what}: byte ${i} of ${actual.length} is ${actual[i]}, expected ${expected[i]}`);
  }
}
