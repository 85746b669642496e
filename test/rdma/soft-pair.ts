/** Two connected software devices of this process, or one and a peer that is a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Access, type Device, Flag, type MemoryRegion, openSoftDevice, type QueuePair, statusName } from 'tartan-rdma';
import type { Entry } from './conformance-world.js';

export const TRANSPORTS = ['tcp', 'shm'] as const;
export const PEER = fileURLToPath(new URL('soft-peer.mjs', import.meta.url));

/** Collects a queue pair's completions and lets a test await a number of them. */
export class Completions {
  readonly seen: Entry[] = [];
  #waiting: (() => void)[] = [];

  readonly handler = (
    opcode: number,
    status: number,
    wrId: number,
    byteLength: number,
    imm: number,
    detail: number,
  ): void => {
    this.seen.push({ opcode, status, wrId, byteLength, imm, detail });
    for (const wake of this.#waiting.splice(0)) wake();
  };

  async first(count: number): Promise<Entry[]> {
    while (this.seen.length < count) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.seen.slice(0, count);
  }

  statuses(): string[] {
    return this.seen.map(({ status }) => statusName(status));
  }
}

export interface Pair {
  a: Device;
  b: Device;
  qa: QueuePair;
  qb: QueuePair;
  doneA: Completions;
  doneB: Completions;
  close(): Promise<void>;
}

/** Two devices of this process, connected; completions are collected on both sides. */
export async function connectedPair(transport: 'tcp' | 'shm', options = {}): Promise<Pair> {
  const a = openSoftDevice({ name: 'a', ...options });
  const b = openSoftDevice({ name: 'b', ...options });
  const doneA = new Completions();
  const doneB = new Completions();
  let accept!: (qp: QueuePair) => void;
  const accepted = new Promise<QueuePair>((resolve) => {
    accept = resolve;
  });
  const listener = await b.listen('127.0.0.1', 0, (qp) => {
    qp.handler = doneB.handler;
    accept(qp);
  });
  const qa = await a.connect('127.0.0.1', listener.port, { transport });
  qa.handler = doneA.handler;
  const qb = await accepted;
  await listener.close();
  return {
    a,
    b,
    qa,
    qb,
    doneA,
    doneB,
    close: async () => {
      await a.close();
      await b.close();
    },
  };
}

/**
 * A second connection between the two. What it has carried there and back was posted later than what waits on the
 * first: engines take requests in the order of posting, so that whatever could happen to the first has happened.
 */
export async function connectAgain(
  a: Device,
  b: Device,
  transport: 'tcp' | 'shm',
): Promise<{ roundTrips(count: number): Promise<void> }> {
  const listener = await b.listen('127.0.0.1', 0, () => undefined);
  const qp = await a.connect('127.0.0.1', listener.port, { transport });
  await listener.close();
  const local = a.allocate(4096);
  const remote = b.allocate(4096, Access.REMOTE_READ);
  return {
    roundTrips: async (count) => {
      for (let i = 0; i < count; i++) {
        await new Promise<void>((resolve) => {
          qp.handler = () => {
            resolve();
          };
          qp.postRead(i, local, 0, 4096, remote.rkey, 0, Flag.SIGNALED);
          a.ring();
        });
      }
    },
  };
}

export function pattern(region: MemoryRegion, seed: number): Uint8Array {
  const bytes = new Uint8Array(region.buffer);
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 31 + seed) & 0xff;
  return bytes;
}

/** A child without tap's own NODE_OPTIONS; resolves with the first line it prints. */
export async function startPeer(
  ...args: string[]
): Promise<{ child: ChildProcess; hello: { port: number; rkey: number } }> {
  const child = spawn(process.execPath, [PEER, ...args], {
    env: { ...process.env, NODE_OPTIONS: '' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string];
  return { child, hello: JSON.parse(line) as { port: number; rkey: number } };
}

/** Ignores how a connection breaks; resolves when it has. */
export function closed(socket: Socket): Promise<void> {
  socket.on('error', () => undefined);
  socket.resume();
  return new Promise((resolve) => {
    socket.on('close', () => resolve());
  });
}

export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(5);
}
