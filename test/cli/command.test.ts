/** The built command, as a shell would run it: wrong usage, then a cluster from `up` to `down`. */
import t from 'tap';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openClusterStore } from '../../cluster/open-store.js';
import { presentSince } from '../../cluster/presence.js';
import type { ProcessIdentity } from '../../cluster/process-identity.js';
import { isRunning } from '../../cluster/process-identity.js';
import { randomBytes } from '../random-bytes.js';
import { MAIN, ROOT, isOneLine, run, tartan, type Result, type RunOptions } from './command.js';

/** Runs a program of somebody's. */
function node(args: readonly string[], options: RunOptions = {}): Promise<Result> {
  return run(process.execPath, args, options);
}

function processesOf(state: string): { id: string; identity: ProcessIdentity }[] {
  const text = readFileSync(join(state, 'processes.json'), 'utf8');
  return (JSON.parse(text) as { processes: { id: string; identity: ProcessIdentity }[] }).processes;
}

t.test('the command is built', async (t) => {
  t.ok(existsSync(MAIN), 'run `npm run build` first');
});

t.test('wrong usage exits with 2, help with 0', async (t) => {
  const help = await tartan(['--help']);
  t.equal(help.status, 0);
  for (const name of ['up', 'down', 'status', 'put', 'get', 'ls', 'stat', 'rm', 'switch', 'demo'])
    t.match(help.stdout, new RegExp(`^  ${name}\\b`, 'm'));
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    version: string;
  };
  t.same(await tartan(['--version']), { status: 0, stdout: `${version}\n`, stderr: '' });
  for (const args of [
    ['fly'],
    ['put'],
    ['up', '--nodes'],
    ['up', '--durability', 'perhaps'],
    ['ls', '--colour'],
    ['get', 'a', 'b', 'c'],
  ]) {
    const result = await tartan(args);
    t.equal(result.status, 2, args.join(' '));
    t.match(result.stderr, /^tartan: ERR_USAGE: [^\n]+\n$/, args.join(' '));
  }
});

t.test('values that cannot work are refused before anything starts', async (t) => {
  const dir = join(t.testdir(), 'state');
  isOneLine(t, await tartan(['up', '--dir', dir, '--nodes', 'many']), 2, 'ERR_ARGUMENT');
  isOneLine(t, await tartan(['up', '--dir', dir, '--ring-memory', '-5']), 2, 'ERR_ARGUMENT');
  isOneLine(t, await tartan(['put', MAIN, 'x', '--dir', dir, '--code', 'magic(2,1)']), 2, 'ERR_UNKNOWN_CODE');
  isOneLine(t, await tartan(['put', MAIN, 'x', '--dir', dir, '--unit', 'large']), 2, 'ERR_ARGUMENT');
  isOneLine(t, await tartan(['put', join(dir, 'nothing'), '--dir', dir]), 1, 'ERR_NOT_FOUND');
  isOneLine(t, await tartan(['put', import.meta.dirname, '--dir', dir]), 1, 'ERR_IS_DIRECTORY');
  isOneLine(t, await tartan(['put', '-', '--dir', dir]), 2, 'ERR_ARGUMENT');
  t.notOk(existsSync(dir));
});

t.test('every package has its licence, and lists it', async (t) => {
  for (const folder of ['.', 'rdma', 'p4runtime-js']) {
    t.match(readFileSync(join(ROOT, folder, 'LICENSE'), 'utf8'), /Apache License\s+Version 2\.0[\s\S]*END OF TERMS/);
    const { files } = JSON.parse(readFileSync(join(ROOT, folder, 'package.json'), 'utf8')) as { files: string[] };
    t.ok(files.includes('LICENSE'), folder);
  }
});

t.test('without a cluster every command says so', async (t) => {
  const dir = t.testdir();
  for (const args of [
    ['status'],
    ['ls'],
    ['stat', 'x'],
    ['rm', 'x'],
    ['get', 'x', '-'],
    ['put', MAIN],
    ['switch', 'load'],
    ['switch', 'unload'],
    ['switch', 'start'],
  ]) {
    isOneLine(t, await tartan([...args, '--dir', dir]), 1, 'ERR_NOT_RUNNING');
  }
  t.equal((await tartan(['down', '--dir', dir])).status, 0, '`down` may be repeated');
});

t.test('ports that are taken are one clear error, and nothing is left running', async (t) => {
  const dir = t.testdir();
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  t.teardown(() => {
    server.close();
  });
  const { port } = server.address() as { port: number };
  isOneLine(t, await tartan(['up', '--dir', dir, '--base-port', String(port)]), 1, 'ERR_IN_USE');
  isOneLine(t, await tartan(['status', '--dir', dir]), 1, 'ERR_NOT_RUNNING');
});

t.test('a cluster lives from up to down', async (t) => {
  const dir = t.testdir();
  const state = join(dir, 'state');
  const run = (...args: string[]) => tartan([...args, '--dir', state], { cwd: dir });
  t.teardown(() => tartan(['down', '--dir', state]));

  const up = await run('up', '--json', '--ring-memory', '64MiB', '--size', '256MiB');
  t.equal(up.stderr, '');
  t.equal(up.status, 0);
  const { processes } = JSON.parse(up.stdout) as {
    processes: { id: string; port: number; identity: { pid: number } }[];
  };
  t.same(processes.map((each) => each.id).sort(), ['n1', 'n2', 'n3', 'r1', 's1']);
  for (const each of processes.filter(({ id }) => id !== 'r1')) t.ok(each.port > 0, `${each.id} listens`);
  isOneLine(t, await run('up'), 1, 'ERR_IN_USE');

  const status = await run('status', '--json');
  t.equal(status.status, 0, status.stderr);
  const seen = JSON.parse(status.stdout) as {
    mapEpoch: number;
    switch: { state: string };
    map: { nodes: { state: string }[] };
  };
  t.ok(seen.mapEpoch > 0);
  t.equal(seen.switch.state, 'programmable');
  t.same(
    seen.map.nodes.map((each) => each.state),
    ['up', 'up', 'up'],
  );
  t.match((await run('status')).stdout, /^ID +ROLE[\s\S]*switch programmable/);

  // Lengths around a stripe of 2 × 64 KiB, and an empty file.
  for (const length of [0, 1, 131_071, 131_073, 5_000_001]) {
    const name = `f${length}`;
    const bytes = randomBytes(length);
    writeFileSync(join(dir, name), bytes);
    const put = await run('put', name, '--json');
    t.equal(put.status, 0, put.stderr);
    t.match(JSON.parse(put.stdout), { name, bytes: length, code: 'xor(2+1)', unitBytes: 65536 });
    const get = await run('get', name, `${name}.back`);
    t.equal(get.status, 0, get.stderr);
    t.ok(readFileSync(join(dir, `${name}.back`)).equals(bytes), `${length} bytes come back`);
  }

  const piped = randomBytes(300_000);
  t.equal(
    (await tartan(['put', '-', 'piped', '--dir', state, '--code', 'copies(1,2)', '--unit', '4096'], { input: piped }))
      .status,
    0,
  );
  const out = await run('get', 'piped', '-');
  t.ok(Buffer.from(out.stdout, 'latin1').equals(piped), 'standard input to standard output');
  t.match((await run('stat', 'piped')).stdout, /code +copies\(1,2\)/);

  isOneLine(t, await run('put', 'f1', 'piped'), 1, 'ERR_EXISTS');
  isOneLine(t, await run('put', 'f1', 'wide', '--code', 'rs(4,2)'), 1, 'ERR_NOT_ENOUGH_NODES');
  isOneLine(t, await run('put', 'f1', 'odd', '--unit', '3000'), 2, 'ERR_UNIT_BYTES');
  isOneLine(t, await run('put', 'f1', 'tiny', '--unit', '16'), 2, 'ERR_UNIT_BYTES');
  isOneLine(t, await run('get', 'f1'), 1, 'ERR_EXISTS');
  isOneLine(t, await run('get', 'f1', dir), 1, 'ERR_IS_DIRECTORY');
  isOneLine(t, await run('get', 'nothing'), 1, 'ERR_NOT_FOUND');
  t.equal((await run('get', 'f1', '--force')).status, 0);

  t.match((await run('switch', 'unload')).stdout, /forwarding/);
  const unloaded = await run('put', 'f5000001', 'by-the-writer', '--json');
  t.match(JSON.parse(unloaded.stdout), { parity: 'host', bytes: 5_000_001 });
  t.match((await run('switch', 'load')).stdout, /programmable/);
  t.equal((await run('get', 'by-the-writer')).status, 0);
  t.ok(readFileSync(join(dir, 'by-the-writer')).equals(readFileSync(join(dir, 'f5000001'))));

  // The README's program, inside the checkout and outside of it.
  const [, program] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8'))!;
  const outside = mkdtempSync(join(tmpdir(), 'tartan-program-'));
  t.teardown(() => {
    rmSync(outside, { recursive: true });
  });
  mkdirSync(join(outside, 'node_modules'));
  symlinkSync(ROOT, join(outside, 'node_modules/tartan-storage'));
  for (const where of [dir, outside]) {
    writeFileSync(join(where, 'program.mjs'), program!.replace('/path/to/state/cluster', join(state, 'cluster')));
    writeFileSync(join(where, 'photo.raw'), piped);
    const ran = await node([join(where, 'program.mjs')], { cwd: where });
    t.equal(ran.status, 0, ran.stderr);
    t.match((await run('stat', 'photo.raw')).stdout, /length +300000\n/);
    t.equal((await run('rm', 'photo.raw')).status, 0);
  }

  t.equal((await run('rm', 'piped')).status, 0);
  isOneLine(t, await run('stat', 'piped'), 1, 'ERR_NOT_FOUND');
  t.notMatch((await run('ls')).stdout, /piped/);
  t.match((await run('ls')).stdout, /f5000001 +5000001 +xor\(2\+1\)/);

  // The switch dies; then everything: what is left is recognised as stale, and the data is still there.
  process.kill(processes.find((each) => each.id === 's1')!.identity.pid, 'SIGKILL');
  isOneLine(t, await run('switch', 'load'), 1, 'ERR_NOT_RUNNING');
  isOneLine(t, await run('up'), 1, 'ERR_IN_USE');
  // One that ended is started again by itself, with the options of `up`; one that runs is left alone.
  process.kill(processes.find((each) => each.id === 'n2')!.identity.pid, 'SIGKILL');
  const store = await openClusterStore(join(state, 'cluster'));
  while ((await presentSince(store)).size > 2)
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  t.match((await run('status')).stdout, /^n2 +node +ended +\d+ +none +(up, silent|down)$/m, 'the lease, not the map');
  isOneLine(t, await run('node', 'start', 'n1'), 1, 'ERR_IN_USE', /process \d+/);
  isOneLine(t, await run('node', 'start', 'n9'), 1, 'ERR_NOT_FOUND');
  t.match((await run('node', 'start', 'n2')).stdout, /^n2 runs on port \d+\n$/);
  t.match((await run('switch', 'start')).stdout, /^s1 runs on port \d+\n$/);
  t.match((await run('status')).stdout, /^n2 +node +\d+ +\d+ +\d+ s +up$/m);
  t.same([...(await presentSince(store)).keys()], ['n1', 'n2', 'n3', 's1']);
  await store.close();
  // Another folder may not start a cluster on the store of one that runs.
  const elsewhere = await tartan(['up', '--dir', join(dir, 'elsewhere'), '--cluster-store', join(state, 'cluster')]);
  isOneLine(t, elsewhere, 1, 'ERR_IN_USE', /runs elsewhere \(n1, n2, n3, s1\)/);
  for (const each of processesOf(state)) process.kill(each.identity.pid, 'SIGKILL');
  isOneLine(t, await run('ls'), 1, 'ERR_NOT_RUNNING');
  const again = await run('up', '--ring-memory', '64MiB', '--size', '1GiB', '--durability', 'volatile');
  t.equal(again.status, 0, 'up again after a crash');
  t.match(
    again.stderr,
    /^other options [a-z ]+: --durability volatile \(before: sync\), --size 1073741824 \(before: 268435456; /,
  );
  t.equal((await run('get', 'f5000001', 'after')).status, 0);
  t.ok(
    readFileSync(join(dir, 'after')).equals(readFileSync(join(dir, 'f5000001'))),
    'stored bytes outlive every process',
  );

  const last = processesOf(state);
  const down = await run('down', '--wipe');
  t.equal(down.status, 0, down.stderr);
  t.match(down.stdout, /^r1 ended\ns1 ended\nn1 ended\nn2 ended\nn3 ended\n$/, 'all obey');
  for (const each of last) t.notOk(isRunning(each.identity));
  t.notOk(existsSync(join(state, 'nodes')));
  isOneLine(t, await run('status'), 1, 'ERR_NOT_RUNNING');
});
