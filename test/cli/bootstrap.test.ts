/**
 * What `npm start` and `npm test` do first, on machines that lack something. Copies of the scripts, in empty folders.
 */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const CLI = resolve(import.meta.dirname, '../../cli');

/** A checkout that holds nothing but the scripts. */
function checkout(
  dir: string,
): (task: string[], env?: NodeJS.ProcessEnv) => { status: number | null; stdout: string; stderr: string } {
  mkdirSync(join(dir, 'cli'));
  for (const name of ['bootstrap.mjs', 'lint.mjs', 'run-tap.mjs'])
    copyFileSync(join(CLI, name), join(dir, 'cli', name));
  const { NODE_OPTIONS: _, ...own } = process.env;
  return (task, env = {}) =>
    spawnSync(process.execPath, [join(dir, 'cli/bootstrap.mjs'), ...task], {
      cwd: dir,
      env: { ...own, ...env },
      encoding: 'utf8',
    });
}

t.test('an unknown task is refused', async (t) => {
  const result = checkout(t.testdir())(['fly']);
  t.equal(result.status, 1);
  t.match(result.stderr, /^tartan: usage: [^\n]+\n$/);
});

/** Anything that answers to --version. */
const TOOLS = { CXX: process.execPath, MAKE: process.execPath, PYTHON: process.execPath };

t.test('without a compiler and the right to install one, the line to run is printed', async (t) => {
  // No apt-get on the path is as good as not being root.
  const result = checkout(t.testdir())(['build'], { PATH: '/nonexistent', CXX: '/nonexistent/g++' });
  t.equal(result.status, 1);
  t.equal(
    result.stderr,
    'tartan: g++, make, python3 missing: ' +
      "run `sudo sh -c 'apt-get update && apt-get install -y g++ make python3'`\n",
  );
});

t.test('a test run that cannot be built counts as failed, never as empty', async (t) => {
  const dir = t.testdir();
  writeFileSync(join(dir, 'package-lock.json'), '{ damaged');
  const result = checkout(dir)(['test'], { PATH: '/nonexistent', ...TOOLS });
  t.equal(result.status, 1);
  t.match(result.stderr, /package-lock\.json is missing or damaged/);
  t.equal(result.stdout.split('\n').at(-2), '0 passed, 1 failed, 0 skipped');
});

t.test('a step that fails shows all it said, and the build ends there', async (t) => {
  const dir = t.testdir({
    cluster: { 'build-sqlite.mjs': '' },
    rdma: { 'build-addon.mjs': 'console.log("first line"); console.error("second line"); process.exit(3);' },
    node_modules: {},
  });
  const lock = JSON.stringify({
    packages: {
      '': {},
      'node_modules/a': { version: '1.0.0' },
      'node_modules/for-another-platform': { version: '1.0.0', optional: true },
    },
  });
  writeFileSync(join(dir, 'package-lock.json'), lock);
  writeFileSync(
    join(dir, 'node_modules/.package-lock.json'),
    JSON.stringify({ packages: { 'node_modules/a': { version: '1.0.0' } } }),
  );
  const result = checkout(dir)(['build'], TOOLS);
  t.equal(result.status, 1);
  t.equal(result.stderr, 'first line\nsecond line\ntartan: `node rdma/build-addon.mjs` failed (exit status 3)\n');
  t.ok(existsSync(join(dir, 'node_modules')), 'packages that fit are left alone');
});
