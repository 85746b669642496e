/**
 * The processes of a measurement: short ones that are waited for, and clusters. Whatever was started is ended and every
 * folder removed by `endAll()`, also on Ctrl-C; clusters end with this process even when it is killed.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { stopProcess } from '../../cli/child-process.js';
import { startCluster, stopCluster } from '../../cli/cluster-processes.js';
import { StateDirectory } from '../../cli/state-directory.js';
import { callSwitch } from '../../cli/switch-control.js';
import { NodeControl } from '../../wire/control.js';

export const STRIPE_BYTES = 2 * 65536;
/** USER_HZ, the unit of /proc/PID/stat on Linux. */
const TICKS_PER_SECOND = 100;
const COUNTERS_MS = 3_000;
const TRANSFER = fileURLToPath(new URL('./transfer.js', import.meta.url));

/** cpuPerGb: CPU seconds of all processes that took part, user and system, for 10^9 bytes of the application's. */
export interface Sample {
  readonly mbPerS: number;
  readonly cpuPerGb: number;
}
export interface Transfer extends Sample {
  readonly sha256: string;
  readonly degraded: number;
  readonly redriven: number;
  readonly checksumFailures: number;
}

const children = new Set<ChildProcess>();
const clusters = new Set<BenchCluster>();
const folders = new Set<string>();

export function makeFolder(): string {
  const path = mkdtempSync(join(tmpdir(), 'tartan-bench-'));
  folders.add(path);
  return path;
}

/** Ends and removes everything that is left. Idempotent. */
export async function endAll(): Promise<void> {
  for (const child of children) child.kill('SIGKILL');
  await Promise.all([...clusters].map((cluster) => cluster.end()));
  for (const path of folders) rmSync(path, { recursive: true, force: true });
  folders.clear();
}

/** @returns ports that nobody listens on now */
export async function freePorts(count: number): Promise<string[]> {
  const servers = await Promise.all(
    Array.from(
      { length: count },
      () =>
        new Promise<ReturnType<typeof createServer>>((resolve, reject) => {
          const server = createServer().once('error', reject);
          server.listen(0, '127.0.0.1', () => {
            resolve(server);
          });
        }),
    ),
  );
  const ports = servers.map((server) => String((server.address() as { port: number }).port));
  await Promise.all(
    servers.map(
      (server) =>
        new Promise((resolve) => {
          server.close(resolve);
        }),
    ),
  );
  return ports;
}

/** Runs a program to its end. @throws when it fails, with the last of what it said */
export async function run(command: readonly string[]): Promise<{ out: string; err: string }> {
  const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
  children.add(child);
  let out = '',
    err = '';
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    err += chunk.toString();
  });
  try {
    const status = await new Promise<number | string>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => {
        resolve(code ?? signal ?? 1);
      });
    });
    if (status !== 0)
      throw new Error(`${command.slice(0, 3).join(' ')} … ended with ${status}: ${err.trim().slice(-2000)}`);
    return { out, err };
  } finally {
    children.delete(child);
  }
}

/** Runs the processes of a yardstick together: one prints MB/s, each its CPU seconds as the last line of stderr. */
export async function yardstick(bytes: number, commands: readonly (readonly string[])[]): Promise<Sample> {
  let failed = false;
  const ended = await Promise.all(
    commands.map((command) =>
      run(command).catch((error: unknown) => {
        // The others wait for this one: without it they never end.
        if (!failed) {
          failed = true;
          for (const child of children) child.kill('SIGKILL');
        }
        throw error;
      }),
    ),
  );
  const mbPerS = Number(ended.map(({ out }) => out.trim()).find((out) => out !== ''));
  const cpu = ended.reduce((sum, { err }) => sum + Number(err.trim().split('\n').at(-1)), 0);
  if (!(mbPerS > 0) || !(cpu >= 0)) throw new Error('the yardstick printed no rate');
  return { mbPerS, cpuPerGb: cpu / (bytes / 1e9) };
}

export class BenchCluster {
  private readonly state: StateDirectory;
  private ending: Promise<void> | undefined;
  /** Stripes that the switch must have computed parity for. */
  private stripesExpected = 0;
  private constructor(
    folder: string,
    readonly transport: 'tcp' | 'shm',
  ) {
    this.state = new StateDirectory(folder);
  }

  static async start(transport: 'tcp' | 'shm', durability: 'discard' | 'volatile' | 'sync'): Promise<BenchCluster> {
    const cluster = new BenchCluster(makeFolder(), transport);
    clusters.add(cluster);
    await startCluster(cluster.state, {
      nodes: 3,
      host: '127.0.0.1',
      basePort: 0,
      durability,
      transport,
      ringMemoryBytes: 256 << 20,
      sizeBytes: 64 * 2 ** 30,
      dependent: true,
    });
    return cluster;
  }

  end(): Promise<void> {
    this.ending ??= (async () => {
      await stopCluster(this.state);
      rmSync(this.state.path, { recursive: true, force: true });
      clusters.delete(this);
    })();
    return this.ending;
  }

  async kill(id: string): Promise<void> {
    const found = this.state.running().find((each) => each.id === id);
    if (found === undefined || (await stopProcess(found.identity, 0)) !== 'killed')
      throw new Error(`${id} did not run when it was to be killed`);
  }

  /**
   * One transfer in a process of its own.
   *
   * @param content  'hashed': pseudo-random bytes, and their SHA-256; 'any': what lies in the ring, no byte is looked
   *         at
   */
  async transfer(
    verb: 'put' | 'get',
    name: string,
    bytes: number,
    parity: 'switch' | 'host',
    content: 'any' | 'hashed',
  ): Promise<Transfer> {
    const before = new Map(this.pids().map((pid) => [pid, cpuSecondsOf(pid)]));
    const { out } = await run([
      process.execPath,
      TRANSFER,
      verb,
      this.state.cluster,
      name,
      String(bytes),
      this.transport,
      parity === 'host' ? 'host' : 'auto',
      content,
    ]);
    const result = JSON.parse(out) as Omit<Transfer, 'cpuPerGb'> & { cpuSeconds: number };
    const cpu =
      result.cpuSeconds + this.pids().reduce((sum, pid) => sum + cpuSecondsOf(pid) - (before.get(pid) ?? 0), 0);
    if (verb === 'put' && parity === 'switch') this.stripesExpected += bytes / STRIPE_BYTES;
    await this.requireStripes(`${verb} ${name}`);
    if (result.redriven !== 0 || result.checksumFailures !== 0)
      throw new Error(
        `${verb} ${name}: ${result.redriven} stripes driven again, ${result.checksumFailures} checksums ` +
          'failed, expected none',
      );
    return { ...result, cpuPerGb: cpu / (bytes / 1e9) };
  }

  /** Bytes that nodes have written between two syncs, on average. */
  async bytesPerBatch(unitBytes: number): Promise<number> {
    let units = 0,
      batches = 0;
    for (const node of this.state.running().filter((each) => each.role === 'node')) {
      const control = new NodeControl(node.host, node.controlPort);
      try {
        const { counters } = await control.status();
        units += counters['tartan_store_units'] ?? NaN;
        batches += counters['tartan_store_batches'] ?? NaN;
      } finally {
        control.close();
      }
    }
    return (units * unitBytes) / batches;
  }

  private pids(): number[] {
    return this.state.running().map((each) => each.identity.pid);
  }

  /**
   * A figure of the switch must be the switch's: a writer that fell back to host parity measures something else.
   * Waits a little, for a session's counts join the totals only when it has been torn down.
   */
  private async requireStripes(what: string): Promise<void> {
    const found = this.state.running().find((each) => each.role === 'switch');
    if (found === undefined) throw new Error('the switch has ended');
    let stripes: number | undefined;
    for (const deadline = performance.now() + COUNTERS_MS; performance.now() < deadline; await delay(20)) {
      stripes = (await callSwitch(found, undefined, (control) => control.status())).counters['tartan_switch_stripes'];
      if (stripes === this.stripesExpected) return;
    }
    throw new Error(`${what}: the switch counts ${stripes} stripes, expected ${this.stripesExpected}`);
  }
}

function cpuSecondsOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
