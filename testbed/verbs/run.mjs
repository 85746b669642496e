/**
 * `npm run test:verbs [-- SUITE…]` and `npm run bench:verbs`: the verbs device on soft-RoCE, in a machine made for it.
 *
 *   test    builds, starts Debian's own kernel in QEMU (vm.sh), runs test/verbs/main.ts inside; the last line is
 *           `N passed, N failed, N skipped`. A machine that cannot be had is a failure, not a skip.
 *   bench   builds, starts User-Mode Linux (uml.sh; the first time it is compiled), measures beside a C loop
 *
 * What is missing is installed when this runs as root on a machine with apt; otherwise it says what to install.
 */
import { spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { TapReader } from '../../cli/run-tap.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const SUITES_LIMIT_SECONDS = Number(process.env.TARTAN_VERBS_LIMIT ?? 840);
const NEEDED = {
  test: {
    'qemu-system-x86_64': 'qemu-system-x86',
    python3: 'python3',
    cpio: 'cpio',
    busybox: 'busybox-static',
    modprobe: 'kmod',
    ip: 'iproute2',
  },
  bench: {
    gcc: 'gcc',
    make: 'make',
    flex: 'flex',
    bison: 'bison',
    bc: 'bc',
    xz: 'xz-utils',
    busybox: 'busybox-static',
    ip: 'iproute2',
  },
};
const LIBRARIES = ['libibverbs-dev', 'librdmacm-dev', 'ibverbs-providers', 'iproute2'];

const [task, ...rest] = process.argv.slice(2);
if (task !== 'test' && task !== 'bench') end('usage: node testbed/verbs/run.mjs test [SUITE…] | bench [OPTIONS…]', 2);
install(task);
const built = spawnSync(process.execPath, ['cli/bootstrap.mjs', 'build'], { cwd: root, stdio: 'inherit' });
if (built.status !== 0) end('the build failed', 1);
process.exit(await (task === 'test' ? test(rest) : bench(rest)));

function install(task) {
  const packages = Object.entries(NEEDED[task])
    .filter(([tool]) => !onPath(tool))
    .map(([, name]) => name);
  packages.push(...LIBRARIES.filter((name) => spawnSync('dpkg', ['-s', name], { stdio: 'ignore' }).status !== 0));
  if (task === 'bench' && spawnSync('dpkg', ['-s', 'libelf-dev'], { stdio: 'ignore' }).status !== 0)
    packages.push('libelf-dev');
  if (packages.length === 0) return;
  const command = `apt-get install -y --no-install-recommends ${packages.join(' ')}`;
  if (process.getuid?.() !== 0) end(`missing: ${packages.join(', ')}. Run: sudo ${command}`, 1);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  spawnSync('apt-get', ['-qq', 'update'], { env });
  const installed = spawnSync('sh', ['-c', `${command} -qq`], { env, encoding: 'utf8' });
  if (installed.status !== 0) end(`cannot install ${packages.join(', ')}:\n${installed.stdout}${installed.stderr}`, 1);
}

/** Tools of administrators may lie beside an ordinary user's path. */
function onPath(tool) {
  return spawnSync('sh', ['-c', `PATH=$PATH:/usr/sbin:/sbin command -v ${tool}`]).status === 0;
}

async function test(suites) {
  const started = Date.now();
  const reader = new TapReader(() => {}); // its lines are for files, here are suites
  const status = await machine(
    'vm.sh',
    ['testbed/verbs/soft-roce.sh', process.execPath, 'dist/test/verbs/main.js', ...suites],
    {
      LIMIT: String(SUITES_LIMIT_SECONDS),
      VM_ENV: `TAP_TIMEOUT=${SUITES_LIMIT_SECONDS} FORCE_COLOR=0 NO_COLOR=1`,
    },
    (line) => {
      if (process.env.TARTAN_VERBS_VERBOSE === '1') process.stdout.write(`${line}\n`);
      else if (/^ *not ok /.test(line) || /^ok \d+ - /.test(line)) process.stdout.write(`${line}\n`);
      else if (/^\s+(message|diff|\+|-) /.test(line)) process.stdout.write(`${line}\n`);
      reader.line(line);
    },
  );
  const totals = reader.totals ?? { passed: 0, failed: 0, skipped: 0 };
  if (status !== 0 && totals.failed === 0) {
    totals.failed = 1;
    process.stdout.write(
      `the machine ended with ${status}${status === 124 ? ` after ${SUITES_LIMIT_SECONDS} s` : ''}\n`,
    );
  }
  process.stdout.write(
    `test:verbs took ${((Date.now() - started) / 1000).toFixed(0)} s\n${totals.passed} ` +
      `passed, ${totals.failed} failed, ${totals.skipped} skipped\n`,
  );
  return totals.failed === 0 && totals.passed > 0 ? 0 : 1;
}

async function bench(options) {
  mkdirSync(join(root, '.tartan'), { recursive: true });
  const loop = join(root, '.tartan', 'verbs-loop');
  const compiled = spawnSync(
    'gcc',
    ['-O2', '-Wall', '-o', loop, join(root, 'testbed/verbs/loop.c'), '-libverbs', '-lrdmacm'],
    { stdio: 'inherit' },
  );
  if (compiled.status !== 0) end('cannot compile testbed/verbs/loop.c', 1);
  const inside = (...args) =>
    machine('uml.sh', ['testbed/verbs/soft-roce.sh', process.execPath, ...args], { LIMIT: '1500' }, (line) => {
      process.stdout.write(`${line}\n`);
    });
  return (await inside('testbed/verbs/bench.mjs', loop, ...options)) || inside('testbed/verbs/parity-gain.mjs');
}

function machine(script, args, env, onLine) {
  const child = spawn(join(root, 'testbed/verbs', script), args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  for (const signal of ['SIGINT', 'SIGTERM'])
    process.on(signal, () => {
      child.kill(signal);
    });
  let partial = '';
  child.stdout.setEncoding('utf8');
  child.stdout.on('data', (text) => {
    const lines = (partial + text).split(/\r?\n/);
    partial = lines.pop();
    for (const line of lines) onLine(line);
  });
  return new Promise((resolve) => {
    child.on('error', () => {
      resolve(127);
    });
    child.on('close', (code) => {
      if (partial !== '') onLine(partial);
      resolve(code ?? 1);
    });
  });
}

function end(line, status) {
  process.stderr.write(`${line}\n`);
  if (task === 'test' && status === 1) process.stdout.write('0 passed, 1 failed, 0 skipped\n');
  process.exit(status);
}
