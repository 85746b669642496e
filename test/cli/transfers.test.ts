/**
 * `put` and `get` on a real cluster, given up in the middle, with sources and targets of every kind: afterwards all of
 * it is there or nothing new is, and the last line says which.
 */
import t, { type Test } from 'tap';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { listFiles, listUnnamed } from '../../cluster/files.js';
import { openClusterStore } from '../../cluster/open-store.js';
import { connect, type Client } from '../../writer/index.js';
import { randomBytes } from '../random-bytes.js';
import { mayMount } from '../small-file-system.js';
import { MAIN, isOneLine, run, start, startCluster, tartan } from './command.js';

interface Stage {
  readonly dir: string;
  /** Of the files that are read and written. */
  readonly work: string;
  readonly store: ClusterStore;
  readonly client: Client;
  readonly at: (name: string) => string;
  /** Runs the command in `work`. */
  readonly run: (...args: string[]) => ReturnType<typeof tartan>;
  /** As a line of a shell, in which $T is the command. */
  readonly shell: (line: string) => ReturnType<typeof tartan>;
  readonly names: () => Promise<string[]>;
}

let stage: Stage;

t.before(async () => {
  const dir = await startCluster(t, '--no-repairer'),
    work = join(dirname(dir), 'work');
  mkdirSync(work);
  const store = await openClusterStore(join(dir, 'cluster'));
  const client = await connect({ cluster: store });
  t.teardown(async () => {
    await client.close();
    await store.close();
  });
  stage = {
    client,
    dir,
    work,
    store,
    at: (name) => join(work, name),
    run: (...args) => tartan(['--dir', dir, ...args], { cwd: work }),
    shell: (line) =>
      run('bash', ['-c', `T() { "${process.execPath}" "${MAIN}" --dir "${dir}" "$@"; }; ${line}`], { cwd: work }),
    names: async () => (await listFiles(store)).map(({ name }) => name),
  };
  writeFileSync(stage.at('old'), randomBytes(200_000));
  const put = await stage.run('put', 'old');
  if (put.status !== 0) throw new Error(put.stderr);
});

/** A put from standard input that has begun, and waits for more. */
async function begun(name: string, ...args: string[]): Promise<ReturnType<typeof start>> {
  const before = (await listUnnamed(stage.store)).length,
    putting = start(['--dir', stage.dir, 'put', '-', name, ...args]);
  putting.child.stdin!.write(randomBytes(300_000));
  while ((await listUnnamed(stage.store)).length === before && putting.child.exitCode === null)
    await new Promise(setImmediate);
  return putting;
}

async function holds(t: Test, name: string, bytes: Buffer, message: string): Promise<void> {
  const reader = await stage.client.open(name);
  t.ok((await reader.read(0, bytes.length + 1)).equals(bytes), message);
  await reader.close();
}

t.test('a put that is interrupted or killed in the middle leaves no name, and replaces nothing', async (t) => {
  const old = readFileSync(stage.at('old'));
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const) {
    const { child, ended } = await begun('old', '--force');
    t.same(await stage.names(), ['old', 'old'], 'the new one is known to those who look after nodes');
    child.kill(signal);
    isOneLine(t, await ended, status, 'ERR_INTERRUPTED', /Storing 'old' was interrupted: nothing was stored/);
    t.same([await stage.names(), await listUnnamed(stage.store)], [['old'], []], signal);
  }
  const { child, ended } = await begun('killed');
  child.kill('SIGKILL');
  t.equal((await ended).status, 137);
  await t.rejects(stage.client.stat('killed'), { code: 'ERR_NOT_FOUND' });
  t.equal((await stage.run('put', 'old', 'killed')).status, 0, 'its name is free');
  await stage.client.remove('killed');
  await holds(t, 'old', old, 'what was there is there');
});

t.test(
  'of two puts under one name the first that is complete has it; the other says so, and leaves it alone',
  async (t) => {
    const { child, ended } = await begun('late');
    t.equal((await stage.run('put', 'old', 'late')).status, 0);
    child.stdin!.end();
    isOneLine(t, await ended, 1, 'ERR_EXISTS', /--force replaces it; nothing was stored/);
    await holds(t, 'late', readFileSync(stage.at('old')), 'the first one');
    await stage.client.remove('late');
  },
);

t.test('a file is replaced with --force, and added to with --append', async (t) => {
  isOneLine(t, await stage.run('put', 'old'), 1, 'ERR_EXISTS', /--force replaces it/);
  isOneLine(t, await stage.run('put', 'old', '--force', '--append'), 2, 'ERR_ARGUMENT');
  const next = randomBytes(123_457);
  writeFileSync(stage.at('next'), next);
  t.equal((await stage.run('put', 'next', 'old', '--force')).status, 0);
  await holds(t, 'old', next, 'the new one has the name');
  const [a, b] = [randomBytes(1000), randomBytes(70_001)];
  writeFileSync(stage.at('a'), a);
  writeFileSync(stage.at('b'), b);
  t.match(await stage.run('put', 'a', 'grown', '--append'), { status: 0, stdout: /1000 B as xor\(2\+1\)/ });
  t.match(await stage.run('put', 'b', 'grown', '--append'), { status: 0, stdout: /68\.4 KiB added/ });
  await holds(t, 'grown', Buffer.concat([a, b]), 'one behind the other');
  t.equal((await stage.run('put', 'old', '--force')).status, 0);
});

t.test('a source that can not be read, or changes meanwhile, is an error that says so; a pipe is read', async (t) => {
  const { work } = stage;
  execFileSync('mkfifo', [join(work, 'pipe')]);
  t.equal((await stage.shell('echo words > pipe & T put pipe piped; wait')).status, 0);
  await holds(t, 'piped', Buffer.from('words\n'), 'what came through the pipe');
  const { child, ended } = start(['--dir', stage.dir, 'put', join(work, 'pipe'), 'never']);
  // Nobody writes to it: the command waits, where it can't be woken.
  while (!isOpening(child.pid!)) await new Promise(setImmediate);
  child.kill('SIGINT');
  isOneLine(t, await ended, 130, 'ERR_INTERRUPTED', /nothing was stored/);
  chmodSync(stage.at('a'), 0);
  if (process.getuid?.() !== 0) isOneLine(t, await stage.run('put', 'a', 'x'), 1, 'ERR_LOCAL_FILE', /EACCES/);
  isOneLine(t, await stage.run('put', '/proc/self/mem', 'x'), 1, 'ERR_LOCAL_FILE', /\(EIO\); nothing was stored/);
  t.match(await stage.run('put', '/dev/null', 'empty', '--json'), { status: 0, stdout: /"bytes":0/ });
  t.notOk((await stage.names()).some((name) => ['x', 'never'].includes(name)));
});

t.test(
  'a target that is full, or nothing to write to, gets nothing, and no half-done file stays beside it',
  async (t) => {
    const { work } = stage;
    mkdirSync(join(work, 'folder'));
    symlinkSync('nowhere', join(work, 'dangling'));
    const before = readdirSync(work);
    for (const [target, code, text] of [
      ['folder', 'ERR_IS_DIRECTORY', /name a file/],
      ['old', 'ERR_EXISTS', /--force replaces it/],
      ['dangling', 'ERR_EXISTS', /a link to nothing/],
      ['x'.repeat(300), 'ERR_LOCAL_FILE', /ENAMETOOLONG/],
      ['nofolder/x', 'ERR_LOCAL_FILE', /\(ENOENT\); nothing was written/],
      ['/proc/tartan', 'ERR_LOCAL_FILE', /nothing was written/],
      ['/dev/full', 'ERR_LOCAL_FILE', /\(ENOSPC\); 0 bytes of it were written/],
    ] as const)
      isOneLine(t, await stage.run('get', 'old', target), 1, code, text);
    // Blocks of 1 KiB; the ring has room below it.
    writeFileSync(stage.at('long'), Buffer.alloc(17 << 20));
    t.equal((await stage.run('put', 'long')).status, 0);
    rmSync(stage.at('long'));
    isOneLine(
      t,
      await stage.shell('ulimit -f 16384; T get long limited'),
      1,
      'ERR_LOCAL_FILE',
      /\(EFBIG\); nothing was written/,
    );
    t.same(readdirSync(work), before);
    t.ok(lstatSync(join(work, 'dangling')).isSymbolicLink());
    t.equal((await stage.run('get', 'old', '/dev/null')).status, 0, 'a device is nothing to replace');
    t.ok(statSync('/dev/null').isCharacterDevice());
    t.match(await stage.shell('cat pipe & T get grown pipe >/dev/null; wait'), { status: 0, stdout: /^[^]{71001}$/ });
    t.equal((await stage.run('get', 'grown', 'dangling', '--force')).status, 0);
    t.ok(statSync(join(work, 'dangling')).isFile());
  },
);

t.test(
  'a file system that is full: nothing is written, and what was to be replaced stays',
  { skip: mayMount() ? false : 'needs a mount namespace (root)' },
  async (t) => {
    mkdirSync(stage.at('small'));
    const result = await stage.shell(
      `exec unshare -m bash -c 'mount -t tmpfs -o size=100k none small && echo kept > small/f && ` +
        `"${process.execPath}" "${MAIN}" --dir "${stage.dir}" get old small/f --force; ` +
        `rc=$?; cat small/f; ls -A small; exit $rc'`,
    );
    t.match(result, { status: 1, stdout: 'kept\nf\n' });
    t.match(result.stderr, /^tartan: ERR_LOCAL_FILE: [^\n]+\(ENOSPC\); nothing was written\n$/);
  },
);

t.test('standard output that is full or closed is one line, or none, and the status tells', async (t) => {
  isOneLine(
    t,
    await stage.shell('T ls > /dev/full'),
    1,
    'ERR_LOCAL_FILE',
    /ENOSPC.*the command itself has done its work/,
  );
  isOneLine(t, await stage.shell('T get old - > /dev/full'), 1, 'ERR_LOCAL_FILE', /ENOSPC.*0 bytes of it were written/);
  isOneLine(t, await stage.shell('T put old told > /dev/full'), 1, 'ERR_LOCAL_FILE', /has done its work/);
  t.ok((await stage.names()).includes('told'), 'and it has');
  t.same(await stage.shell('T get old - | head -c 0; exit $PIPESTATUS'), { status: 141, stdout: '', stderr: '' });
  t.same(await stage.shell('T --help | true; exit 0'), { status: 0, stdout: '', stderr: '' });
});

/** Whether a thread of the process waits for somebody to open the other end of a pipe. */
function isOpening(pid: number): boolean {
  try {
    return readdirSync(`/proc/${pid}/task`).some((task) =>
      /fifo_open|wait_for_partner/.test(readFileSync(`/proc/${pid}/task/${task}/wchan`, 'utf8')),
    );
  } catch {
    return false;
  }
}
