/**
 * The whole path, writer → switch → 3 nodes, 2+1, 64 KiB units, beside a plain C relay that moves, checks and XORs the same
 * bytes with the same processes; side by side, one after the other, in one run. Gain over host mode is not claimed here:
 * it exists where the writer's link is the limit.
 */
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Figure } from './report.js';
import { spread } from './report.js';

const exec = promisify(execFile);
const HERE = fileURLToPath(new URL('.', import.meta.url));
const SOURCE = join(HERE, '../../../test/bench/relay.c');
const MAIN = join(HERE, '../../cli/main.js');
const TRANSFER = join(HERE, 'transfer.js');
const CLOCK_TICKS = 100;

interface Sample { mbPerS: number; cpuPerGb: number }

/** Seconds of CPU a process has used; undefined: it is gone. */
function cpuOf(pid: number): number | undefined {
  let text: string;
  try { text = readFileSync(`/proc/${pid}/stat`, 'utf8'); } catch { return undefined; }
  const fields = text.split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

/** Runs processes of which the last prints the rate; waits for all. CPU is summed over all of them. */
async function yardstick(bytes: number, commands: readonly (readonly string[])[]): Promise<Sample> {
  const started = commands.map((command) => spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] }));
  const ended = await Promise.all(started.map((child) => new Promise<{ out: string; err: string }>((resolve, reject) => {
    let out = '', err = '';
    child.stdout.on('data', (chunk: Buffer) => { out += chunk.toString(); });
    child.stderr.on('data', (chunk: Buffer) => { err += chunk.toString(); });
    child.on('error', reject);
    child.on('close', () => { resolve({ out, err }); });
  })));
  const rate = Number(ended.map(({ out }) => out.trim()).find((out) => out !== ''));
  if (!(rate > 0)) throw new Error(`the yardstick failed: ${ended.map(({ err }) => err).join(' ')}`);
  const cpu = ended.reduce((sum, { err }) => sum + Number(err.trim().split('\n').at(-1)), 0);
  return { mbPerS: rate, cpuPerGb: cpu / (bytes / 1e9) };
}

class BenchCluster {
  readonly dir: string;
  constructor(root: string, readonly transport: 'tcp' | 'shm', readonly durability: string) { this.dir = join(root, `${transport}-${durability}`); }
  private tartan(...args: string[]): Promise<unknown> { return exec(process.execPath, [MAIN, ...args, '--dir', this.dir]); }
  async up(): Promise<void> { await this.tartan('up', '--durability', this.durability, '--size', '12GiB', '--transport', this.transport); }
  async down(): Promise<void> { await this.tartan('down', '--wipe'); }
  private processes(): { id: string; identity: { pid: number } }[] { return (JSON.parse(readFileSync(join(this.dir, 'processes.json'), 'utf8')) as { processes: { id: string; identity: { pid: number } }[] }).processes; }
  kill(id: string): void { process.kill(this.processes().find((each) => each.id === id)!.identity.pid, 'SIGKILL'); }

  async transfer(verb: 'put' | 'get', name: string, bytes: number, parity: 'auto' | 'host' = 'auto'): Promise<Sample & Record<string, number | string>> {
    const before = new Map(this.processes().map(({ identity }) => [identity.pid, cpuOf(identity.pid)]));
    const { stdout } = await exec(process.execPath, [TRANSFER, verb, join(this.dir, 'cluster'), name, String(bytes), this.transport, parity]);
    const result = JSON.parse(stdout) as { mbPerS: number; cpuSeconds: number } & Record<string, number | string>;
    const cpu = result.cpuSeconds + [...before].reduce((sum, [pid, then]) => sum + (then === undefined ? 0 : (cpuOf(pid) ?? then) - then), 0);
    return { ...result, cpuPerGb: cpu / (bytes / 1e9) };
  }
}

function ratios(section: string, name: string, ours: readonly Sample[], theirs: readonly Sample[], goal?: number): Figure[] {
  return [
    { section, name: `${name}, ratio of rates`, unit: '×', ...spread(ours.map((sample, i) => sample.mbPerS / theirs[i]!.mbPerS)), ...(goal === undefined ? {} : { goal, better: 'higher' as const }) },
    { section, name: `${name}, ours`, unit: 'MB/s', ...spread(ours.map((sample) => sample.mbPerS)) },
    { section, name: `${name}, yardstick`, unit: 'MB/s', ...spread(theirs.map((sample) => sample.mbPerS)) },
    { section, name: `${name}, CPU per GB, ours ÷ yardstick`, unit: '×', ...spread(ours.map((sample, i) => sample.cpuPerGb / theirs[i]!.cpuPerGb)) },
  ];
}

/** @param repetitions interleaved pairs  @param bytes of each transfer  @param note progress */
export async function pathFigures(repetitions: number, bytes: number, note: (line: string) => void): Promise<Figure[]> {
  const root = mkdtempSync(join(tmpdir(), 'tartan-bench-'));
  const clusters: BenchCluster[] = [];
  const figures: Figure[] = [];
  try {
    const relay = join(root, 'relay');
    await exec('gcc', ['-O3', '-march=native', '-o', relay, SOURCE]);
    const stripeBytes = Math.floor(bytes / 131072) * 131072, units = bytes / 65536 / 2;
    const relayed = () => yardstick(stripeBytes, [[relay, 'sink', '47501'], [relay, 'sink', '47502'], [relay, 'sink', '47503'], [relay, 'relay', '47500', '47501', '47502', '47503'], [relay, 'source', '47500', String(stripeBytes)]]);
    const gathered = () => yardstick(stripeBytes, [[relay, 'feed', '47510', String(units)], [relay, 'feed', '47510', String(units)], [relay, 'gather', '47510', '2', String(units)]]);
    const start = async (transport: 'tcp' | 'shm', durability: string): Promise<BenchCluster> => {
      const cluster = new BenchCluster(root, transport, durability);
      clusters.push(cluster);
      await cluster.up();
      return cluster;
    };
    const end = async (cluster: BenchCluster): Promise<void> => { clusters.splice(clusters.indexOf(cluster), 1); await cluster.down(); };

    const sample = async (times: number, ours: (i: number) => Promise<Sample>, theirs: () => Promise<Sample>): Promise<[Sample[], Sample[]]> => {
      const a: Sample[] = [], b: Sample[] = [];
      for (let i = 0; i < times; i++) { a.push(await ours(i)); b.push(await theirs()); }
      return [a, b];
    };

    for (const transport of ['tcp', 'shm'] as const) {
      note(`writes over ${transport}, storage that discards`);
      const cluster = await start(transport, 'discard');
      const [ours, theirs] = await sample(repetitions, (i) => cluster.transfer('put', `w${i}`, stripeBytes), transport === 'tcp' ? relayed : () => memcpy(relay, root, stripeBytes));
      figures.push(...ratios('path', transport === 'tcp' ? 'write over TCP ÷ C relay' : 'write over shared memory ÷ memcpy of the same bytes', ours, theirs, transport === 'tcp' ? 0.8 : undefined));
      if (transport === 'tcp') {
        const host = [];
        for (let i = 0; i < repetitions; i++) host.push(await cluster.transfer('put', `h${i}`, stripeBytes, 'host'));
        figures.push({ section: 'path', name: 'write in host mode over TCP (no gain is claimed on loopback)', unit: 'MB/s', ...spread(host.map((each) => each.mbPerS)) });
      }
      await end(cluster);
    }

    note('reads over tcp');
    const stored = await start('tcp', 'volatile');
    await stored.transfer('put', 'r', stripeBytes);
    let [ours, theirs] = await sample(repetitions, () => stored.transfer('get', 'r', stripeBytes), gathered);
    figures.push(...ratios('reads', 'healthy ÷ C fan-in', ours, theirs));
    stored.kill('n2');
    [ours, theirs] = await sample(repetitions, () => stored.transfer('get', 'r', stripeBytes), gathered);
    figures.push(...ratios('reads', 'degraded ÷ C fan-in', ours, theirs));
    await end(stored);

    note('writes over tcp, synced');
    const synced = await start('tcp', 'sync');
    [ours, theirs] = await sample(repetitions, (i) => synced.transfer('put', `s${i}`, stripeBytes), () => yardstick(stripeBytes, [[relay, 'odirect', root, String(stripeBytes)]]));
    figures.push(...ratios('sync', 'synced write ÷ plain O_DIRECT writes of the same bytes', ours, theirs));
    await end(synced);
  } finally {
    for (const cluster of clusters) await cluster.down().catch(() => {});
    rmSync(root, { recursive: true, force: true });
  }
  return figures;
}

/** One thread copying what the path moves: each byte to the switch, 3/2 of it to the nodes. */
function memcpy(relay: string, _root: string, bytes: number): Promise<Sample> { return yardstick(bytes, [[relay, 'memcpy', String(bytes)]]); }
