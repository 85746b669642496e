/** A testbed's folder: what root kills and removes by must be its own. */
import { chmodSync, chownSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { contentsOf, leaveFolder, takeFolder } from '../../testbed/own-folder.js';

t.test('a new folder is nobody else’s, and is taken again with what a testbed left in it', async (t) => {
  const path = join(t.testdir(), 'a', 'testbed');
  takeFolder(path);
  t.equal(statSync(path).mode & 0o777, 0o700);
  writeFileSync(join(path, 'processes.json'), '{}');
  writeFileSync(join(path, 'in-use'), '');
  takeFolder(path);
  t.same(contentsOf(path), ['processes.json']);
  leaveFolder(path);
  t.throws(() => takeFolder(path), { code: 'ERR_TESTBED' }, 'left with something in it, it is no testbed’s any more');
});

t.test('what others made, may get into, or put a link to, is refused and left as it is', async (t) => {
  const dir = t.testdir({ real: {}, file: 'text', full: { mine: 'text' }, open: {} });
  symlinkSync(join(dir, 'real'), join(dir, 'link'));
  for (const name of ['real', 'full']) chmodSync(join(dir, name), 0o700);
  chmodSync(join(dir, 'open'), 0o755);
  for (const [name, why] of [
    ['link', /it is no directory of its own/],
    ['full', /it holds mine, which no testbed made/],
    ['open', /others may get into it/],
  ] as const)
    t.throws(() => takeFolder(join(dir, name)), { code: 'ERR_TESTBED', message: why });
  t.throws(() => takeFolder(join(dir, 'file')), { code: 'EEXIST' });
  t.same(readdirSync(join(dir, 'full')), ['mine']);
  t.same(readdirSync(join(dir, 'real')), []);
});

t.test(
  'a folder of another user is refused',
  { skip: process.getuid?.() === 0 ? false : 'needs root, to give a folder away' },
  async (t) => {
    const path = join(t.testdir(), 'given');
    mkdirSync(path, { mode: 0o700 });
    chownSync(path, 65_534, 65_534);
    t.throws(() => takeFolder(path), { code: 'ERR_TESTBED', message: /it belongs to user 65534/ });
  },
);
