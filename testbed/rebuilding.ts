/**
 * How long it takes to have again what a lost node held, against the number of nodes, when each has a link of its own:
 *
 *     sudo node dist/testbed/rebuilding.js [--nodes 4,8,12,16] [--megabytes 48] [--rate 100mbit] [--repetitions 3]
 *
 *     node 1 ══ shaped both ways ══╗
 *     node 2 ══ shaped both ways ══╬══ a bridge, and with it the software switch and whoever rebuilds: not shaped
 *     node n ══ shaped both ways ══╝
 *
 * One file of 2+1, spread, of the same length for all n. 'refill': a blank store under the old id takes the lost share,
 * over one link. 'scatter': the share goes to all survivors (node drain, no spare). Real processes over TCP; stores
 * that don't sync, so that links are what is measured. One line of JSON at the end, each figure the median.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openSqliteStore } from '../cluster/sqlite-store.js';
import { createCluster } from '../cluster/membership.js';
import { connect, type Client } from '../writer/index.js';

const HERE = dirname(fileURLToPath(import.meta.url)),
  SECRET = "a testbed's secret",
  PIECE = 1 << 20;

interface Figure {
  readonly nodes: number;
  readonly shareMegabytes: number;
  readonly refillSeconds: number;
  readonly scatterSeconds: number;
  readonly oneLinkSeconds: number;
}

const { values } = parseArgs({
  options: {
    nodes: { type: 'string', default: '4,8,12,16' },
    megabytes: { type: 'string', default: '48' },
    rate: { type: 'string', default: '100mbit' },
    repetitions: { type: 'string', default: '3' },
  },
});
const figures: Figure[] = [];
for (const nodes of values.nodes.split(',').map(Number)) {
  figures.push(await withNodes(nodes, measure));
  process.stderr.write(`${JSON.stringify(figures.at(-1))}\n`);
}
process.stdout.write(
  JSON.stringify({
    megabytes: Number(values.megabytes),
    rate: values.rate,
    repetitions: Number(values.repetitions),
    figures,
  }) + '\n',
);

interface Nodes {
  readonly count: number;
  readonly cluster: string;
  start(id: string): Promise<void>;
  stop(id: string): Promise<void>;
  wipe(id: string): void;
}

/** Namespaces, links and processes for one measurement; all of it is gone afterwards. */
async function withNodes(count: number, body: (nodes: Nodes) => Promise<Figure>): Promise<Figure> {
  const tag = String(process.pid % 10_000),
    bridge = `tr${tag}`,
    dir = mkdtempSync(join(tmpdir(), 'tartan-rebuilding-')),
    cluster = join(dir, 'cluster'),
    secret = join(dir, 'secret');
  const address = (number: number): string => `10.77.42.${number}`,
    space = (number: number): string => `tartan-r${number}-${tag}`;
  const children = new Map<string, ChildProcess>();
  writeFileSync(secret, SECRET);
  const begin = async (id: string, command: readonly string[]): Promise<void> => {
    const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', 'ignore'] });
    children.set(id, child);
    await new Promise<void>((resolve, reject) => {
      child.stdout.once('data', () => {
        resolve();
      });
      child.once('exit', (status) => {
        reject(new Error(`${id} ended with ${status}`));
      });
    });
  };
  const common = (id: string, host: string, port: number): string[] => [
    '--cluster',
    cluster,
    '--id',
    id,
    '--host',
    host,
    '--port',
    String(port),
    '--transport',
    'tcp',
    '--ring-memory',
    String(64 << 20),
    '--secret-file',
    secret,
  ];
  const start = (id: string): Promise<void> => {
    const number = Number(id.slice(1));
    return begin(id, [
      'ip',
      'netns',
      'exec',
      space(number),
      process.execPath,
      join(HERE, '../storage-node/main.js'),
      ...common(id, address(number), 7200),
      '--store',
      join(dir, id),
      '--size',
      String(512 << 20),
      '--durability',
      'volatile',
    ]);
  };
  const stop = async (id: string): Promise<void> => {
    const child = children.get(id)!;
    children.delete(id);
    if (child.exitCode === null)
      await new Promise<void>((resolve) => {
        child.removeAllListeners('exit');
        child.once('exit', () => {
          resolve();
        });
        child.kill('SIGTERM');
      });
  };
  try {
    run('ip', 'link', 'add', bridge, 'type', 'bridge');
    run('ip', 'address', 'add', `${address(254)}/24`, 'dev', bridge);
    run('ip', 'link', 'set', bridge, 'up');
    for (let number = 1; number <= count; number++) {
      const [outer, inner] = [`tr${tag}o${number}`, `tr${tag}i${number}`];
      run('ip', 'netns', 'add', space(number));
      run('ip', 'link', 'add', outer, 'type', 'veth', 'peer', 'name', inner, 'netns', space(number));
      run('ip', 'link', 'set', outer, 'master', bridge, 'up');
      run('ip', '-n', space(number), 'address', 'add', `${address(number)}/24`, 'dev', inner);
      for (const device of ['lo', inner]) run('ip', '-n', space(number), 'link', 'set', device, 'up');
      for (const where of [['tc'], ['tc', '-n', space(number)]])
        run(
          where[0]!,
          ...where.slice(1),
          'qdisc',
          'add',
          'dev',
          where.length === 1 ? outer : inner,
          'root',
          'tbf',
          'rate',
          values.rate,
          'burst',
          '64k',
          'latency',
          '50ms',
        );
    }
    const store = await openSqliteStore(cluster, { create: true });
    await createCluster(store);
    await store.close();
    for (let number = 1; number <= count; number++) await start(`n${number}`);
    await begin('s1', [
      process.execPath,
      join(HERE, '../switch-agent/main.js'),
      ...common('s1', address(254), 7300),
      '--deadline-ms',
      '2000',
    ]);
    return await body({
      count,
      cluster,
      start,
      stop,
      wipe: (id) => {
        rmSync(join(dir, id), { recursive: true, force: true });
      },
    });
  } finally {
    await Promise.all([...children.keys()].map(stop));
    for (let number = 1; number <= count; number++) spawnSync('ip', ['netns', 'del', space(number)]);
    spawnSync('ip', ['link', 'del', bridge]);
    rmSync(dir, { recursive: true, force: true });
  }
}

async function measure(nodes: Nodes): Promise<Figure> {
  const client = await connect({
    cluster: nodes.cluster,
    secret: SECRET,
    transport: 'tcp',
    deadlineMs: 5000,
    repairBytesPerSecond: 0,
  });
  try {
    await write(client, Number(values.megabytes) << 20);
    const refill: number[] = [];
    let share = 0;
    for (let i = 0; i < Number(values.repetitions); i++) {
      const id = `n${1 + (i % nodes.count)}`;
      await nodes.stop(id);
      nodes.wipe(id);
      await nodes.start(id);
      const began = performance.now(),
        report = await client.rebuild('a');
      refill.push((performance.now() - began) / 1000);
      if (report.unitsRestored === 0 || report.unitsRestored !== report.unitsMissing || report.stripesLost > 0)
        throw new Error(`not all was restored: ${JSON.stringify(report)}`);
      share += report.bytesRestored / Number(values.repetitions);
    }
    await nodes.stop(`n${nodes.count}`);
    const began = performance.now(),
      report = await client.drain(`n${nodes.count}`);
    const scatter = (performance.now() - began) / 1000;
    if (report.filesMoved !== 1 || (await client.rebuild('a')).unitsMissing > 0)
      throw new Error(`the share was not spread: ${JSON.stringify(report)}`);
    const two = (value: number): number => Number(value.toFixed(2));
    return {
      nodes: nodes.count,
      shareMegabytes: two(share / 1e6),
      refillSeconds: two(median(refill)),
      scatterSeconds: two(scatter),
      oneLinkSeconds: two((share * 8) / bitsPerSecond(values.rate)),
    };
  } finally {
    await client.close();
  }
}

async function write(client: Client, length: number): Promise<void> {
  const writer = await client.create('a', { layout: 'spread' }),
    data = Buffer.alloc(PIECE);
  for (let i = 0; i < data.length; i++) data[i] = (i * 2654435761) >>> 13;
  for (let at = 0; at < length; at += data.length)
    if (!writer.write(data))
      await new Promise((resolve) => {
        writer.once('drain', resolve);
      });
  await new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });
}

function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1]!;
}

function bitsPerSecond(rate: string): number {
  const [, number, unit] = /^(\d+)([kmg])bit$/.exec(rate) ?? [];
  if (number === undefined) throw new Error(`--rate ${rate}: expected something like 100mbit`);
  return Number(number) * { k: 1e3, m: 1e6, g: 1e9 }[unit as 'k' | 'm' | 'g'];
}

function run(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr.trim()}`);
}
