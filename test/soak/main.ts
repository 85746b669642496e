/**
 * `npm run soak -- [--minutes 60] [--seed N] [--nodes 5] [--clients 3] [--only REGEXP] [--out FOLDER]`: a cluster of
 * processes on this machine under load, with a random fault (of those whose names fit) every few seconds. In the end
 * everything that was acknowledged is read back, and memory and descriptors of every process are plotted: they must
 * not have grown. docs/testing.md says more.
 *
 * The cluster's folder is a file system of its own in a mount namespace of its own, so that it can be filled; without
 * root that one fault is left out, and the summary says so. Exit status 1: a byte was lost, a process ended that nobody
 * ended, or one grew.
 */
import { fork, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { SimRandom } from 'tartan-rdma';
import { startCluster, stopCluster, type ClusterOptions } from '../../cli/cluster-processes.js';
import { StateDirectory } from '../../cli/state-directory.js';
import type { Result, Row } from '../../testbed/report/result.js';
import { writeResult } from '../../testbed/report/write-result.js';
import { isOperating } from '../../wire/errors.js';
import { connect, type Client } from '../../writer/index.js';
import { mayMount } from '../small-file-system.js';
import { contentOf } from './content.js';
import { draw, FAULTS, heal, strike, type Stage } from './faults.js';
import { Ledger } from './ledger.js';
import type { LoadOptions, LoadReport } from './load.js';
import { growths, sampleOf, type Growth, type Sample } from './samples.js';

const NODE_BYTES = 512 << 20;
/** Of cluster store, logs and ballast. */
const STATE_BYTES = 128 << 20;
const SAMPLE_MS = 3000;
const HEALED_MS = 300_000;
const PAGE_BYTES = 1 << 20;
const IN_NAMESPACE = 'TARTAN_SOAK_FOLDER';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    nodes: { type: 'string', default: '5' },
    clients: { type: 'string', default: '3' },
    out: { type: 'string', default: 'soak' },
    only: { type: 'string', default: '' },
  },
});
const minutes = Number(values.minutes),
  seed = Number(values.seed),
  nodeCount = Number(values.nodes),
  clientCount = Number(values.clients),
  faults = FAULTS.filter(({ name }) => new RegExp(values.only).test(name));

/** Runs this program again where it may mount, or as it is. */
async function enter(): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'tartan-soak-'));
  try {
    const isOwn = mayMount();
    const self = [process.execPath, ...process.execArgv, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    const mounts =
      `mount -t tmpfs -o size=${STATE_BYTES} tmpfs "$0" && mkdir "$0/nodes" && ` +
      `mount -t tmpfs -o size=${nodeCount * (NODE_BYTES + (16 << 20))} tmpfs "$0/nodes" && exec "$@"`;
    const command = isOwn ? ['unshare', '-m', 'sh', '-c', mounts, folder, ...self] : self;
    const child = spawn(command[0]!, command.slice(1), {
      stdio: 'inherit',
      env: { ...process.env, [IN_NAMESPACE]: `${isOwn ? 'own' : 'shared'}:${folder}` },
    });
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
    return await new Promise((settle) => {
      child.on('exit', (code) => {
        settle(code ?? 1);
      });
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** @param place  'own:FOLDER' when the folder is a file system of its own, else 'shared:FOLDER' */
async function run(place: string): Promise<number> {
  const [kind, ...rest] = place.split(':');
  const soak = new Soak(rest.join(':'), kind === 'own');
  const stop = () => {
    soak.isEnding = true;
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
  try {
    return await soak.tell();
  } finally {
    await soak.end();
  }
}

class Soak {
  isEnding = false;
  private readonly out = resolve(process.env['INIT_CWD'] ?? '.', values.out);
  private readonly ledgers = mkdtempSync(join(tmpdir(), 'tartan-soak-ledgers-'));
  private readonly state: StateDirectory;
  private readonly options: ClusterOptions = {
    nodes: nodeCount,
    host: '127.0.0.1',
    basePort: 0,
    durability: 'sync',
    transport: 'auto',
    ringMemoryBytes: 256 << 20,
    sizeBytes: NODE_BYTES,
    dependent: true,
    repairer: { downOutSeconds: 3600, settleSeconds: 2, scrubSeconds: 60, bytesPerSecond: 32 << 20 },
  };
  private readonly stage: Stage;
  private readonly random = new SimRandom(seed);
  private readonly loads: { child: ChildProcess; life: number; report: LoadReport | undefined; isKilled: boolean }[] =
    [];
  private readonly samples: Sample[] = [];
  private readonly struck = new Map<string, { times: number; codes: Map<string, number> }>();
  private readonly wrong: string[] = [];
  private readonly errors = new Map<string, number>();
  private operations = 0;
  private began = 0;

  constructor(
    folder: string,
    private readonly ownFileSystem: boolean,
  ) {
    this.state = new StateDirectory(folder);
    this.stage = {
      state: this.state,
      options: this.options,
      random: this.random.fork('faults'),
      mortals: Array.from({ length: nodeCount - 2 }, (_, i) => `n${i + 3}`),
      mayFill: ownFileSystem,
      killClient: () => {
        // The first one lives on: its memory tells what a long life does to the library.
        const load = this.loads[1 + this.random.int(this.loads.length - 1)];
        if (load === undefined) return;
        load.isKilled = true;
        load.child.kill('SIGKILL');
      },
      command: [process.execPath, fileURLToPath(new URL('../../cli/main.js', import.meta.url))],
    };
  }

  private get minutes(): number {
    return (performance.now() - this.began) / 60_000;
  }

  async tell(): Promise<number> {
    say(`a cluster of ${nodeCount} nodes and a switch, ${clientCount} clients, ${minutes} minutes, seed ${seed}`);
    if (!this.ownFileSystem) say('no root: the file system is never filled');
    await startCluster(this.state, this.options);
    this.began = performance.now();
    for (let i = 0; i < clientCount; i++) this.startLoad(i, 0);
    const sampling = setInterval(() => {
      this.sample();
    }, SAMPLE_MS);
    try {
      await this.faults();
      const restored = await this.healed();
      for (const each of await this.stopLoads()) this.wrong.push(each);
      if (restored) await this.readBack();
    } finally {
      clearInterval(sampling);
    }
    return this.close();
  }

  /** Everything that was started; the folder is the caller's. */
  async end(): Promise<void> {
    for (const { child } of this.loads) child.kill('SIGKILL');
    await stopCluster(this.state);
    rmSync(this.ledgers, { recursive: true, force: true });
  }

  private async faults(): Promise<void> {
    while (!this.isEnding && this.minutes < minutes && this.wrong.length === 0) {
      await delay(1000 + this.stage.random.int(4000));
      const fault = draw(this.stage.random, faults);
      const code = await strike(fault, this.stage);
      const entry = this.struck.get(fault.name) ?? { times: 0, codes: new Map<string, number>() };
      entry.times++;
      if (code !== undefined) entry.codes.set(code, (entry.codes.get(code) ?? 0) + 1);
      this.struck.set(fault.name, entry);
      this.notice();
      await heal(this.stage);
      if (process.stdout.isTTY) process.stdout.write(`\r${this.minutes.toFixed(1)} min: ${fault.name}\u001b[K`);
    }
    if (process.stdout.isTTY) process.stdout.write('\n');
  }

  /** A process that nobody ended must run. */
  private notice(): void {
    const running = new Set(this.state.running().map(({ id }) => id));
    for (const { id, role } of this.state.processes()) {
      const mayBeGone = role === 'switch' || this.stage.mortals.includes(id);
      if (!running.has(id) && !mayBeGone) this.wrong.push(`${id} has ended by itself: ${this.lastWords(id)}`);
    }
  }

  private lastWords(id: string): string {
    try {
      return readFileSync(join(this.state.logs, `${id}.err`), 'utf8')
        .trim()
        .split('\n')
        .slice(-3)
        .join(' | ');
    } catch {
      return 'no log';
    }
  }

  private startLoad(index: number, life: number): void {
    const options: LoadOptions = {
      id: `c${index}`,
      life,
      cluster: this.state.cluster,
      ledger: join(this.ledgers, `c${index}.jsonl`),
      seed: this.random.fork(`load ${index} ${life}`).uint32(),
    };
    const child = fork(fileURLToPath(new URL('./load.js', import.meta.url)), [JSON.stringify(options)], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    });
    const load = { child, life, report: undefined as LoadReport | undefined, isKilled: false };
    this.loads[index] = load;
    let said = '';
    child.stderr!.on('data', (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-4000);
    });
    child.on('message', (report) => {
      load.report = report as LoadReport;
    });
    child.on('close', (code, signal) => {
      this.take(load.report);
      if (this.isEnding) return;
      if (!load.isKilled) this.wrong.push(`client ${options.id} ended with ${code ?? signal}: ${said.trim()}`);
      else this.startLoad(index, life + 1);
    });
  }

  private take(report: LoadReport | undefined): void {
    this.operations += report?.operations ?? 0;
    for (const [code, count] of Object.entries(report?.errors ?? {}))
      this.errors.set(code, (this.errors.get(code) ?? 0) + count);
  }

  private sample(): void {
    const processes = [
      ...this.state.running().map(({ id, identity }) => [id, identity.pid] as const),
      ...this.loads.map(({ child }, index) => [`c${index}`, child.pid ?? 0] as const),
      ['soak', process.pid] as const,
    ];
    for (const [id, pid] of processes) {
      const sample = sampleOf(id, pid, this.minutes);
      if (sample !== undefined) this.samples.push(sample);
    }
  }

  /** Without faults, all nodes and the switch are there again. @returns whether they are */
  private async healed(): Promise<boolean> {
    this.isEnding = true;
    await heal(this.stage);
    const client = await this.client();
    let seen = '';
    try {
      for (const until = performance.now() + HEALED_MS; performance.now() < until; await delay(500)) {
        const { nodes, switches } = await client.map();
        seen = [...nodes, ...switches].map(({ id, state }) => `${id} ${state}`).join(', ');
        if (nodes.every(({ state }) => state === 'up') && switches.every(({ state }) => state === 'programmable'))
          return true;
        await heal(this.stage);
      }
    } finally {
      await client.close();
    }
    this.wrong.push(`${HEALED_MS / 1000} s after the last fault the cluster is still ${seen}`);
    return false;
  }

  private async stopLoads(): Promise<string[]> {
    return (
      await Promise.all(
        this.loads.map(async ({ child, isKilled }, index) => {
          if (child.exitCode !== null || child.signalCode !== null)
            return isKilled ? [] : [`client c${index} ended with ${child.exitCode ?? child.signalCode}`];
          const ended = new Promise<number | string | null>((settle) => {
            child.once('exit', (code, signal) => {
              settle(code ?? signal);
            });
          });
          child.kill('SIGTERM');
          const code = await Promise.race([ended, delay(HEALED_MS, 'did not end', { ref: false })]);
          return code === 0 ? [] : [`client c${index}, asked to end: ${code}`];
        }),
      )
    ).flat();
  }

  /** All that the ledgers say, byte by byte. */
  private async readBack(): Promise<void> {
    const client = await this.client();
    let files = 0,
      bytes = 0;
    try {
      for (let index = 0; index < clientCount; index++) {
        const ledger = new Ledger(join(this.ledgers, `c${index}.jsonl`));
        for (const [name, { acknowledged, isClosed }] of ledger.files) {
          try {
            if (!isClosed) (await client.append(name)).end();
            bytes += await this.compare(client, name, acknowledged);
            files++;
          } catch (error) {
            if (!isOperating(error)) throw error;
            this.wrong.push(`'${name}', ${acknowledged} bytes of which were acknowledged: ${error.message}`);
          }
        }
      }
    } finally {
      await client.close();
    }
    say(`${files} files, ${(bytes / 2 ** 20).toFixed(1)} MiB that were acknowledged were read back and compared`);
  }

  private async compare(client: Client, name: string, acknowledged: number): Promise<number> {
    const reader = await client.open(name);
    try {
      for (let at = 0; at < acknowledged; at += PAGE_BYTES) {
        const bytes = Math.min(PAGE_BYTES, acknowledged - at);
        if (!contentOf(name, at, bytes).equals(await reader.read(at, bytes))) {
          this.wrong.push(`'${name}' holds other bytes at ${at}`);
          break;
        }
      }
    } finally {
      await reader.close();
    }
    return acknowledged;
  }

  private client(): Promise<Client> {
    return connect({ cluster: this.state.cluster, name: 'soak', ringMemoryBytes: 64 << 20 });
  }

  /** @returns the exit status */
  private async close(): Promise<number> {
    const found = growths(this.samples);
    for (const each of found) {
      const line = `${each.id} (${each.pid}), ${each.minutes.toFixed(0)} min: ${changesOf(each)}`;
      say(line);
      if (!each.isFlat) this.wrong.push(`grew: ${line}`);
    }
    for (const [name, { times, codes }] of this.struck)
      say(`${times} × ${name}${codes.size === 0 ? '' : ` (${counts(codes)})`}`);
    say(`${this.operations} operations of the clients; what failed meanwhile: ${counts(this.errors) || 'nothing'}`);
    const paths = await writeResult(this.out, this.result(found));
    say(`written: ${paths.join(', ')}`);
    for (const line of this.wrong) say(`wrong: ${line}`);
    say(this.wrong.length === 0 ? 'nothing acknowledged was lost, and nothing grew' : 'the soak failed');
    return this.wrong.length === 0 ? 0 : 1;
  }

  private result(found: readonly Growth[]): Result {
    const rows: Row[] = this.samples.map((sample) => ({ ...sample, process: `${sample.id} (${sample.pid})` }));
    const panel = (field: string, title: string) => ({
      width: 700,
      height: 260,
      mark: { type: 'line' as const, strokeWidth: 1 },
      encoding: {
        x: { field: 'minutes', type: 'quantitative' as const, title: 'minutes' },
        y: { field, type: 'quantitative' as const, title },
        color: { field: 'id', type: 'nominal' as const, title: 'process' },
        detail: { field: 'pid', type: 'nominal' as const },
      },
    });
    const strikes = [...this.struck.values()].reduce((sum, { times }) => sum + times, 0);
    return {
      name: 'soak',
      title: 'Memory and descriptors of a cluster under load and faults',
      summary: `${strikes} faults in ${this.minutes.toFixed(0)} minutes, ${this.wrong.length} things wrong`,
      setting: {
        command: `npm run soak -- --minutes ${minutes} --seed ${seed} --nodes ${nodeCount} --clients ${clientCount}`,
        date: new Date().toISOString(),
        machine: `${cpus().length} × ${cpus()[0]?.model ?? 'unknown'}`,
        kernel: release(),
        links: 'loopback, unshaped',
        durability: this.options.durability,
        repetitions: 1,
        loadBefore: loadavg()[0] ?? 0,
      },
      columns: [
        { name: 'minutes', unit: '', about: 'since the cluster was started' },
        { name: 'process', unit: '', about: 'id (pid)' },
        { name: 'rssMib', unit: 'MiB', about: 'resident memory' },
        { name: 'descriptors', unit: '', about: 'open file descriptors' },
      ],
      rows,
      goals: found.map((each) => ({
        goal: `${each.id} (${each.pid}) does not grow`,
        reached: changesOf(each),
        met: each.isFlat,
      })),
      references: [],
      notes: [...this.struck].map(([name, { times }]) => `${times} × ${name}.`),
      chart: {
        $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
        data: { values: rows },
        vconcat: [panel('rssMib', 'resident memory (MiB)'), panel('descriptors', 'open descriptors')],
      },
    };
  }
}

function changesOf({ rssMib, descriptors }: Growth): string {
  return `${rssMib.map((mib) => mib.toFixed(0)).join(' → ')} MiB, ${descriptors.join(' → ')} descriptors`;
}

function counts(of: ReadonlyMap<string, number>): string {
  return [...of]
    .sort(([, a], [, b]) => b - a)
    .map(([code, count]) => `${count} ${code}`)
    .join(', ');
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

process.exitCode = process.env[IN_NAMESPACE] === undefined ? await enter() : await run(process.env[IN_NAMESPACE]);
