/**
 * What strikes a cluster during a soak. Each fault strikes, lasts, and is healed; one at a time, so that never more
 * nodes are away than the codes bear.
 */
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { SimRandom } from 'tartan-rdma';
import { startNode, startSwitch, SWITCH_ID, type ClusterOptions } from '../../cli/cluster-processes.js';
import { stopProcess } from '../../cli/child-process.js';
import type { ProcessRecord, StateDirectory } from '../../cli/state-directory.js';
import { callSwitch } from '../../cli/switch-control.js';
import { isOperating } from '../../wire/errors.js';
import { fillUp } from '../small-file-system.js';

export interface Stage {
  readonly state: StateDirectory;
  readonly options: ClusterOptions;
  readonly random: SimRandom;
  /** Nodes that may be killed: the others show what a long life does to a process. */
  readonly mortals: readonly string[];
  /** Whether the cluster's folder is on a file system of its own, which may be filled. */
  readonly mayFill: boolean;
  /** Ends a client at once, and starts another in its place. */
  killClient(): void;
  readonly command: readonly string[];
}

export interface Fault {
  readonly name: string;
  readonly weight: number;
  strike(stage: Stage): Promise<void>;
}

const CROWD = 400;

export const FAULTS: readonly Fault[] = [
  {
    name: 'a node is killed',
    weight: 3,
    strike: async (stage) => {
      const node = one(stage, stage.mortals);
      await kill(stage, node);
      await delay(stage.random.int(4000));
      await startNode(stage.state, stage.options, node);
    },
  },
  {
    name: 'a node is stopped for a while',
    weight: 2,
    strike: async (stage) => {
      const { identity } = find(stage, one(stage, nodesOf(stage)));
      await whileStopped(identity.pid, 500 + stage.random.int(4000));
    },
  },
  {
    name: 'the switch is killed',
    weight: 1,
    strike: async (stage) => {
      await kill(stage, SWITCH_ID);
      await delay(stage.random.int(3000));
      await startSwitch(stage.state, stage.options);
    },
  },
  {
    name: 'the switch loses its program',
    weight: 2,
    strike: async (stage) => {
      const record = find(stage, SWITCH_ID);
      await callSwitch(record, undefined, (control) => control.unload());
      await delay(stage.random.int(4000));
      await callSwitch(record, undefined, (control) => control.load('parity'));
    },
  },
  {
    name: 'the switch is stopped for a while',
    weight: 1,
    strike: (stage) => whileStopped(find(stage, SWITCH_ID).identity.pid, 500 + stage.random.int(3000)),
  },
  {
    name: 'the file system of cluster store and logs is full',
    weight: 3,
    strike: async (stage) => {
      if (!stage.mayFill) return;
      const path = join(stage.state.path, 'ballast');
      try {
        fillUp(path);
        await delay(1000 + stage.random.int(5000));
      } finally {
        rmSync(path, { force: true });
      }
    },
  },
  {
    name: 'a client is killed',
    weight: 4,
    strike: (stage) => {
      stage.killClient();
      return Promise.resolve();
    },
  },
  {
    name: 'a command is stopped somewhere, then killed',
    weight: 3,
    strike: async (stage) => {
      const verb = one(stage, [['ls'], ['status'], ['put', process.execPath, 'soaked', '--force']]);
      const child = spawn(stage.command[0]!, [...stage.command.slice(1), '--dir', stage.state.path, ...verb], {
        stdio: 'ignore',
      });
      const ended = new Promise((resolve) => child.once('exit', resolve));
      await Promise.race([ended, delay(100 + stage.random.int(1500))]);
      child.kill('SIGSTOP');
      await delay(500 + stage.random.int(3000));
      child.kill('SIGKILL');
      await ended;
    },
  },
  {
    name: 'strangers connect and say nothing',
    weight: 2,
    strike: async (stage) => {
      const sockets = await crowd(stage, CROWD);
      await delay(500 + stage.random.int(3000));
      for (const socket of sockets) socket.destroy();
    },
  },
  {
    name: 'strangers send anything',
    weight: 3,
    strike: async (stage) => {
      const sockets = await crowd(stage, 40);
      for (const socket of sockets) {
        if (stage.random.int(2) === 0) socket.write('GET / HTTP/1.1\r\n');
        const noise = Buffer.alloc(1 + stage.random.int(5000));
        for (let at = 0; at + 4 <= noise.length; at += 4) noise.writeUInt32LE(stage.random.uint32(), at);
        socket.write(noise);
      }
      await delay(500 + stage.random.int(1000));
      for (const socket of sockets) {
        if (stage.random.int(2) === 0) socket.resetAndDestroy();
        else socket.destroy();
      }
    },
  },
];

/** By weight. @param faults  one at least */
export function draw(random: SimRandom, faults: readonly Fault[]): Fault {
  let at = random.int(faults.reduce((sum, { weight }) => sum + weight, 0));
  return faults.find(({ weight }) => (at -= weight) < 0)!;
}

/** What a fault's own commands may answer: the cluster is in trouble. @throws what is a bug */
export async function strike(fault: Fault, stage: Stage): Promise<string | undefined> {
  try {
    await fault.strike(stage);
    return undefined;
  } catch (error) {
    if (!isOperating(error)) throw error;
    return error.code;
  }
}

/** Starts again what a fault left ended. */
export async function heal(stage: Stage): Promise<void> {
  for (const id of nodesOf(stage))
    if (!isUp(stage, id)) await startNode(stage.state, stage.options, id).catch(onlyOperating);
  if (!isUp(stage, SWITCH_ID)) await startSwitch(stage.state, stage.options).catch(onlyOperating);
}

function onlyOperating(error: unknown): void {
  if (!isOperating(error)) throw error;
}

function one<T>({ random }: Stage, values: readonly T[]): T {
  return values[random.int(values.length)]!;
}

function nodesOf({ state }: Stage): string[] {
  return state
    .processes()
    .filter(({ role }) => role === 'node')
    .map(({ id }) => id);
}

function isUp({ state }: Stage, id: string): boolean {
  return state.running().some((each) => each.id === id);
}

function find({ state }: Stage, id: string): ProcessRecord {
  const found = state.processes().find((each) => each.id === id);
  if (found === undefined) throw new Error(`${id} was never started`);
  return found;
}

async function kill(stage: Stage, id: string): Promise<void> {
  await stopProcess(find(stage, id).identity, 0);
}

async function whileStopped(pid: number, ms: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  try {
    await delay(ms);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
}

/** Connections to whatever listens, data, control and metrics alike. */
async function crowd(stage: Stage, count: number): Promise<Socket[]> {
  const ports = stage.state
    .running()
    .flatMap(({ port, controlPort, metricsPort }) => [port, controlPort, metricsPort])
    .filter((port) => port > 0);
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i++) {
    const socket = connectTcp(one(stage, ports), '127.0.0.1');
    socket.on('error', () => {}); // Refused, reset: as it should be.
    sockets.push(socket);
  }
  await Promise.race([
    Promise.allSettled(
      sockets.map(
        (socket) =>
          new Promise((resolve) => {
            socket.once('connect', resolve).once('close', resolve);
          }),
      ),
    ),
    delay(2000),
  ]);
  return sockets;
}
