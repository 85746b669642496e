/**
 * A cluster whose file system is full, that of its folder, its store, its logs and its nodes' disks at once: every
 * process lives on, every command works or says in one line why not, and with room again everything is as before.
 */
import t, { type Test } from 'tap';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isRunning, type ProcessIdentity } from '../../cluster/process-identity.js';
import { randomBytes } from '../random-bytes.js';
import { fillUp, mayMount } from '../small-file-system.js';
import { MAIN, run, type Result } from './command.js';

interface Stage {
  /** The small file system's folder, seen from here. */
  readonly outside: string;
  readonly tartan: (...args: string[]) => Promise<Result>;
}

/** A mount namespace with a small file system in it; what runs there is ended when the test is over. */
async function smallDisk(t: Test, bytes: number): Promise<Stage> {
  const inside = t.testdir();
  const keeper = spawn(
    'unshare',
    ['-m', 'sh', '-c', `mount -t tmpfs -o size=${bytes} tmpfs "$0" && echo mounted && exec cat`, inside],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  await once(keeper.stdout, 'data');
  const state = join(inside, 'state');
  const tartan = (...args: string[]): Promise<Result> =>
    run('nsenter', ['-m', '-t', String(keeper.pid), process.execPath, MAIN, '--dir', state, ...args]);
  t.teardown(async () => {
    await tartan('down');
    keeper.kill('SIGKILL');
  });
  return { outside: `/proc/${keeper.pid}/root${inside}`, tartan };
}

interface Listed {
  readonly id: string;
  readonly identity: ProcessIdentity;
}

function processesIn(stage: Stage): Listed[] {
  return (JSON.parse(readFileSync(join(stage.outside, 'state/processes.json'), 'utf8')) as { processes: Listed[] })
    .processes;
}

/** It worked, or it said in one line why not. */
function isSaid(t: Test, result: Result, what: string): void {
  if (result.status === 0) t.equal(result.stderr, '', what);
  else t.match(result, { status: 1, stderr: /^tartan: ERR_[A-Z_]+: [^\n]+\n$/ }, what);
}

const skip = mayMount() ? false : 'only root may mount a small file system';

t.test('on a full file system every command works or says why not, and nothing dies', { skip }, async (t) => {
  const stage = await smallDisk(t, 128 << 20),
    ballast = join(stage.outside, 'ballast'),
    { tartan } = stage;
  t.match(
    await tartan('up', '--size', '64MiB'),
    { status: 1, stderr: /^tartan: ERR_DISK_FULL: Cannot set 64\.0 MiB aside [^\n]+ are free [^\n]+\n$/ },
    'what is not there is not promised',
  );
  const up = await tartan('up', '--ring-memory', '64MiB', '--size', '24MiB');
  t.same([up.status, up.stderr], [0, '']);
  const bytes = randomBytes(3_000_001);
  writeFileSync(join(stage.outside, 'original'), bytes);
  for (const name of ['kept', 'removed'])
    t.match(await tartan('put', join(stage.outside, 'original'), name), { status: 0 }, name);
  const before = processesIn(stage);
  fillUp(ballast);

  const reads = async (message: string): Promise<void> => {
    const read = await tartan('get', 'kept', '-');
    t.ok(Buffer.from(read.stdout, 'latin1').equals(bytes), `${message}: ${read.stderr}`);
  };
  await reads('read while it is full');
  for (const command of [['status'], ['ls'], ['stat', 'kept'], ['node', 'list'], ['rm', 'removed']])
    t.match(await tartan(...command), { status: 0, stderr: '' }, command.join(' '));
  t.notMatch((await tartan('ls')).stdout, /removed/);
  const copied = await tartan('get', 'kept', join(stage.outside.replace(/^\/proc\/\d+\/root/, ''), 'copy'));
  t.match(copied, { status: 1, stderr: /^tartan: ERR_LOCAL_FILE: [^\n]+\(ENOSPC\); nothing was written\n$/ });
  isSaid(t, await tartan('put', join(stage.outside, 'original'), 'more'), 'put');
  isSaid(t, await tartan('scrub'), 'scrub');
  isSaid(t, await tartan('node', 'add', '--size', '24MiB'), 'node add');
  t.match(await tartan('up'), { status: 1, stderr: /^tartan: ERR_IN_USE: [^\n]+\n$/ });
  const { identity } = before.find(({ id }) => id === 'n2')!;
  process.kill(identity.pid, 'SIGKILL');
  isSaid(t, await tartan('node', 'start', 'n2'), 'node start');
  isSaid(t, await tartan('node', 'replace', 'n2'), 'node replace');
  await reads('read with n2 in whatever state');
  // They have all had something to write to their logs by now.
  for (const { id, identity } of before) if (id !== 'n2') t.ok(isRunning(identity), `${id} lives`);
  const recorded = processesIn(stage).map(({ id }) => id);
  for (const { id } of before) t.ok(recorded.includes(id), `${id} is still known`);

  t.match(await tartan('down'), { status: 0, stderr: '' }, 'the cluster can be ended');
  for (const each of before) t.notOk(isRunning(each.identity), `${each.id} has ended`);
  t.match(await tartan('status'), { status: 1, stderr: /^tartan: ERR_NOT_RUNNING: [^\n]+\n$/ });
  isSaid(t, await tartan('up', '--ring-memory', '64MiB', '--size', '24MiB'), 'up');
  t.match(await tartan('down'), { status: 0, stderr: '' });

  rmSync(ballast);
  t.match(await tartan('up', '--ring-memory', '64MiB', '--size', '24MiB'), { status: 0 }, 'with room again');
  await reads('read afterwards');
  t.match(await tartan('put', join(stage.outside, 'original'), 'again'), { status: 0 });
  const left = readdirSync(join(stage.outside, 'state')).filter((name) => /\.\d+$|partial/.test(name));
  t.same(left, [], 'nothing half-written lies about');
});

t.test('what is removed makes room, also while the file system is full: three times over', { skip }, async (t) => {
  const { outside, tartan } = await smallDisk(t, 128 << 20);
  t.match(await tartan('up', '--size', '24MiB', '--no-repairer'), { status: 0, stderr: '' });
  const source = join(outside, 'original'),
    bytes = randomBytes(16_000_001);
  writeFileSync(source, bytes);
  fillUp(join(outside, 'ballast'));
  const counts: number[] = [];
  for (let round = 0; round < 3; round++) {
    const stored: string[] = [];
    for (;;) {
      const name = `${round}-${stored.length}`,
        put = await tartan('put', source, name);
      if (put.status === 0) {
        stored.push(name);
        continue;
      }
      t.match(put, { status: 1, stderr: /^tartan: ERR_DISK_FULL: [^\n]+; nothing was stored\n$/ });
      break;
    }
    counts.push(stored.length);
    const read = await tartan('get', stored[0] ?? '?', '-');
    t.ok(Buffer.from(read.stdout, 'latin1').equals(bytes), `read from full nodes: ${read.stderr}`);
    for (const name of stored) t.match(await tartan('rm', name), { status: 0, stderr: '' }, `rm ${name}`);
  }
  t.same(counts, [counts[0], counts[0], counts[0]], 'as much as before');
  t.ok(counts[0]! > 0);
});
