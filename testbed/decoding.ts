/**
 * What it gains a rebuilder and a reader that the switch decodes: bytes over their link, and time, beside doing it
 * themselves.
 *
 *     sudo node dist/testbed/decoding.js [--code 'rs(4,2)'] [--megabytes 32] [--rate 200mbit]
 *
 *     namespace A: storage nodes, switch ══ one pair of interfaces, shaped both ways ══ namespace B: the rebuilder, the
 *     reader
 *
 * Real processes on the soft device over TCP. Bytes are the kernel's count of B's interface. One line of JSON at the
 * end.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openSqliteStore } from '../cluster/sqlite-store.js';
import { createCluster } from '../cluster/membership.js';
import { parseCode } from '../erasure/code/index.js';
import { placeOfOffset, layoutOf, nodeOfUnit } from '../erasure/layout/index.js';
import { connect, type Client } from '../writer/index.js';

const HERE = dirname(fileURLToPath(import.meta.url)),
  UNIT = 65536,
  A = '10.77.41.1',
  B = '10.77.41.2',
  SECRET = "a testbed's secret";
const LOST = 1,
  READS = 100;

const { values } = parseArgs({
  options: {
    code: { type: 'string', default: 'rs(4,2)' },
    megabytes: { type: 'string', default: '32' },
    rate: { type: 'string', default: '200mbit' },
    measure: { type: 'string' },
    cluster: { type: 'string' },
  },
});
if (values.measure !== undefined) await measure(values.measure, values.cluster!);
else await arrange();

/** Namespaces, processes, and a measuring child in namespace B for each step. */
async function arrange(): Promise<void> {
  const code = parseCode(values.code),
    nodes = code.k + code.m,
    names = [`tartan-a-${process.pid}`, `tartan-b-${process.pid}`] as const,
    dir = mkdtempSync(join(tmpdir(), 'tartan-decoding-'));
  const children = new Map<string, ChildProcess>(),
    cluster = join(dir, 'cluster'),
    secret = join(dir, 'secret');
  writeFileSync(secret, SECRET);
  const start = async (id: string, port: number): Promise<void> => {
    const which =
      id === 's1'
        ? ['switch-agent/main.js', '--deadline-ms', '2000']
        : ['storage-node/main.js', '--store', join(dir, id), '--size', String(1 << 30), '--durability', 'volatile'];
    const child = spawn(
      'ip',
      [
        'netns',
        'exec',
        names[0],
        process.execPath,
        join(HERE, '..', which[0]!),
        ...which.slice(1),
        '--cluster',
        cluster,
        '--id',
        id,
        '--host',
        A,
        '--port',
        String(port),
        '--transport',
        'tcp',
        '--secret-file',
        secret,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
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
  const inB = async (step: string): Promise<{ seconds: number; bytes: number; units: number; fromSwitch: number }> => {
    const child = spawn(
      'ip',
      [
        'netns',
        'exec',
        names[1],
        process.execPath,
        fileURLToPath(import.meta.url),
        '--measure',
        step,
        '--cluster',
        cluster,
        '--code',
        values.code,
        '--megabytes',
        values.megabytes,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let out = '';
    child.stdout.on('data', (text: Buffer) => {
      out += text.toString();
    });
    const status = await new Promise((resolve) => {
      child.once('close', resolve);
    });
    if (status !== 0) throw new Error(`'${step}' ended with ${String(status)}`);
    return JSON.parse(out) as { seconds: number; bytes: number; units: number; fromSwitch: number };
  };
  try {
    for (const name of names) run('ip', 'netns', 'add', name);
    run(
      'ip',
      'link',
      'add',
      `ta${process.pid}`,
      'netns',
      names[0],
      'type',
      'veth',
      'peer',
      'name',
      `tb${process.pid}`,
      'netns',
      names[1],
    );
    for (const [name, device, address] of [
      [names[0], `ta${process.pid}`, A],
      [names[1], `tb${process.pid}`, B],
    ] as const) {
      run('ip', '-n', name, 'address', 'add', `${address}/24`, 'dev', device);
      run('ip', '-n', name, 'link', 'set', 'lo', 'up');
      run('ip', '-n', name, 'link', 'set', device, 'up');
      run(
        'tc',
        '-n',
        name,
        'qdisc',
        'add',
        'dev',
        device,
        'root',
        'tbf',
        'rate',
        values.rate,
        'burst',
        '256k',
        'latency',
        '50ms',
      );
    }
    const store = await openSqliteStore(cluster, { create: true });
    await createCluster(store);
    for (let i = 1; i <= nodes; i++) await start(`n${i}`, 7100 + i);
    await start('s1', 7100);
    await inB('write');
    const renew = async (): Promise<void> => {
      await stop(`n${LOST + 1}`);
      rmSync(join(dir, `n${LOST + 1}`), { recursive: true, force: true });
      await start(`n${LOST + 1}`, 7101 + LOST);
    };
    const result: Record<string, unknown> = {
      code: values.code,
      megabytes: Number(values.megabytes),
      rate: values.rate,
      unitBytes: UNIT,
    };
    for (const what of ['rebuild', 'read'] as const) {
      if (what === 'read') await stop(`n${LOST + 1}`);
      const figures = [];
      for (const parity of ['auto', 'host']) {
        if (what === 'rebuild') await renew();
        figures.push(await inB(`${what} ${parity}`));
      }
      const [bySwitch, here] = figures as [Awaited<ReturnType<typeof inB>>, Awaited<ReturnType<typeof inB>>];
      if (bySwitch.fromSwitch === 0) throw new Error(`'${what}': nothing came from the switch`);
      result[what] = {
        bySwitch,
        here,
        bytes: Number((here.bytes / bySwitch.bytes).toFixed(2)),
        time: Number((here.seconds / bySwitch.seconds).toFixed(2)),
      };
    }
    await store.close();
    process.stdout.write(`${JSON.stringify(result, undefined, 1)}\n`);
  } finally {
    for (const id of [...children.keys()]) await stop(id);
    for (const name of names) spawnSync('ip', ['netns', 'del', name]);
    rmSync(dir, { recursive: true, force: true });
  }
}

/** One step, in namespace B. */
async function measure(step: string, cluster: string): Promise<void> {
  const [what, parity] = step.split(' '),
    client = await connect({
      cluster,
      secret: SECRET,
      transport: 'tcp',
      deadlineMs: 5000,
      parity: parity === 'host' ? 'host' : 'auto',
    });
  try {
    const length = Number(values.megabytes) << 20;
    if (what === 'write') {
      const writer = await client.create('a', { code: values.code, unitBytes: UNIT }),
        data = Buffer.alloc(1 << 20);
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
      process.stdout.write('{}');
      return;
    }
    const before = received(),
      begin = performance.now();
    const { units, fromSwitch } = what === 'rebuild' ? await rebuild(client) : await read(client, length);
    process.stdout.write(
      JSON.stringify({
        seconds: Number(((performance.now() - begin) / 1000).toFixed(2)),
        bytes: received() - before,
        units,
        fromSwitch,
      }),
    );
  } finally {
    await client.close();
  }
}

async function rebuild(client: Client): Promise<{ units: number; fromSwitch: number }> {
  const report = await client.rebuild('a');
  if (report.unitsFailed + report.stripesLost > 0 || report.unitsRestored !== report.unitsMissing)
    throw new Error(`not all was restored: ${JSON.stringify(report)}`);
  return { units: report.unitsRestored, fromSwitch: report.unitsFromSwitch };
}

/** Small reads, one at a time, of data units that the lost node held. */
async function read(client: Client, length: number): Promise<{ units: number; fromSwitch: number }> {
  const file = await client.stat('a'),
    layout = layoutOf(file, parseCode(file.code)),
    reader = await client.open('a');
  let units = 0;
  for (let at = 0; at < length && units < READS; at += UNIT) {
    const { stripe, unit } = placeOfOffset(layout, at);
    if (file.nodes[nodeOfUnit(layout, stripe, unit)] !== `n${LOST + 1}`) continue;
    if ((await reader.read(at, UNIT)).length !== UNIT) throw new Error(`${at}: less than a unit`);
    units++;
  }
  return { units, fromSwitch: reader.unitsFromSwitch };
}

/** Bytes that came over this namespace's interface. */
function received(): number {
  const line = readFileSync('/proc/net/dev', 'utf8')
    .split('\n')
    .find((each) => each.trim().startsWith('tb'));
  return Number(line!.split(':')[1]!.trim().split(/\s+/)[0]);
}

function run(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr.trim()}`);
}
