/** One process has a lock, whoever else tries, until it ends in whatever way; nothing of it is ever stale. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { lockPath } from '../../cluster/process-lock.js';
import { mayMount } from '../small-file-system.js';
import { startChild } from './children.js';

t.test('of several that try at once one has the lock; when it is killed, one of the others may', async (t) => {
  const dir = t.testdir();
  const children = [1, 2, 3, 4].map(() => startChild('lock-child.ts', ['race', dir]));
  t.teardown(() => Promise.all(children.map((child) => child.kill())));
  await Promise.all(children.map((child) => child.line()));
  for (let round = 1; children.length > 0; round++) {
    writeFileSync(join(dir, `go.${round}`), '');
    const said = await Promise.all(children.map((child) => child.line()));
    const holders = children.filter((_, i) => said[i] === 'held');
    t.equal(holders.length, 1, `round ${round}: ${said.join(', ')}`);
    const [holder] = holders;
    t.same(
      said.filter((line) => line !== 'held'),
      children.slice(1).map(() => `process ${holder!.pid}`),
      'the others are told who has it',
    );
    t.same(lockPath(join(dir, 'in-use')), { heldBy: `process ${holder!.pid}` });
    children.splice(children.indexOf(holder!), 1);
    await holder!.kill();
  }
  const own = lockPath(join(dir, 'in-use'));
  t.notOk('heldBy' in own);
  if (!('heldBy' in own)) own.release();
});

t.test('a lock is on the file that has the name, also when its holder removed the one before', (t) => {
  const path = join(t.testdir(), 'in-use');
  const first = lockPath(path);
  t.same(lockPath(path), { heldBy: `process ${process.pid}` }, 'also within one process');
  rmSync(path);
  const second = lockPath(path);
  t.notOk('heldBy' in second || 'heldBy' in first, 'whoever removes it while holding it gives it away');
  if (!('heldBy' in first)) first.release();
  t.same(lockPath(path), { heldBy: `process ${process.pid}` }, 'the second holds on');
  if (!('heldBy' in second)) second.release();
  t.ok(existsSync(path));
  t.equal(statSync(path).size, 0);
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.throws(() => lockPath(join(path, 'below')), { code: 'ERR_LOCAL_FILE', message: /^Cannot lock '[^\n]+$/ });
  const folder = t.testdir({ full: 'text', folder: {} });
  symlinkSync('nowhere', join(folder, 'link'));
  for (const name of ['full', 'folder', 'link'])
    t.throws(() => lockPath(join(folder, name)), { code: 'ERR_LOCAL_FILE', message: /^Cannot lock '[^\n]+$/ }, name);
  t.end();
});

t.test(
  'a full file system does not matter',
  { skip: mayMount() ? false : 'only root may mount a small file system' },
  (t) => {
    const child = fileURLToPath(new URL('lock-child.ts', import.meta.url));
    const line = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@" full "$0"';
    const { stdout, stderr } = spawnSync(
      'unshare',
      ['-m', 'sh', '-c', line, t.testdir(), process.execPath, '--import', 'tsx', child],
      { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } },
    );
    t.same([stdout, stderr], ['held\n', '']);
    t.end();
  },
);
