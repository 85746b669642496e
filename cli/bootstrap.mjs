/**
 * From a fresh checkout to a running command, with nothing but Node: what `npm start`, `npm test`, `npm run build` and
 * `npm run bench` call.
 *
 *   prepare    Debian packages → node_modules → SQLite → native addon → wire messages → TypeScript; each step only
 *              when it is stale, one line when it did something, its full output when it fails
 *   then       start: the demo · test [--long] [tap arguments]: lint and tap, a plain total last · bench: measurements
 *              · simulate: the cluster in virtual time · fuzz, sanitize: the native engine under sanitizers
 *              · soak: a cluster of processes under load and faults
 *
 * Two at once are safe: preparation and tests each hold a kernel file lock (flock, from util-linux), which vanishes
 * with its holder. A step that is interrupted is seen as stale the next time. Only Node's own modules are imported
 * here.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { format, lint } from './lint.mjs';
import { runTap } from './run-tap.mjs';

const here = fileURLToPath(import.meta.url);
const root = dirname(dirname(here));
const at = (...parts) => join(root, ...parts);
const BUSY = 75; // EX_TEMPFAIL: what flock exits with when another process holds the lock

/** Debian packages: those that `needed` names stop the build, the others let more tests run. */
const PACKAGES = [
  // As the compiler's, node-gyp and make know the other two by these variables.
  ...[
    ['g++', 'CXX'],
    ['make', 'MAKE'],
    ['python3', 'PYTHON'],
  ].map(([name, variable]) => ({
    name,
    needed: true,
    present: () => spawnSync(process.env[variable] || name, ['--version'], { stdio: 'ignore' }).status === 0,
  })),
  { name: 'libisal2', needed: false, present: () => hasLibrary('libisal.so.2') },
  {
    name: 'etcd-server',
    needed: false,
    present: () => spawnSync('etcd', ['--version'], { stdio: 'ignore' }).status === 0,
  },
];

await main(process.argv[2], process.argv.slice(3));

async function main(task, args) {
  if (Number(process.versions.node.split('.')[0]) < 20)
    return fail(`this is Node ${process.versions.node}, Node 20 or newer is needed`);
  if (task === 'prepare') return prepare(args[0]);
  const tasks = ['start', 'build', 'test', 'lint', 'format', 'bench', 'simulate', 'fuzz', 'sanitize', 'soak'];
  if (!tasks.includes(task)) return fail(`usage: node cli/bootstrap.mjs ${tasks.join('|')} [arguments]`);

  const prepared = await locked('build.lock', [here, 'prepare', task]);
  if (prepared !== 0) {
    if (task === 'test') process.stdout.write('0 passed, 1 failed, 0 skipped\n');
    process.exit(prepared);
  }
  if (task === 'start')
    // npm changes to the root: paths mean the caller's folder.
    process.exit(await run(process.execPath, [at('dist/cli/main.js'), 'demo', ...args], process.env.INIT_CWD));
  const program = {
    bench: 'dist/test/bench/main.js',
    simulate: 'dist/test/simulation/main.js',
    fuzz: 'dist/test/fuzz/main.js',
    sanitize: 'dist/test/sanitize/main.js',
    soak: 'dist/test/soak/main.js',
  }[task];
  // Each core has its worker then: collecting in more threads only adds work, and so does compiling what is hot for a
  // moment.
  const flags = task === 'simulate' ? ['--single-threaded-gc', '--interrupt-budget=600000'] : [];
  if (program !== undefined) {
    process.exit(await run(process.execPath, [...flags, at(program), ...args]));
  }
  if (task === 'test') process.exit(await test(args));
  const found = task === 'lint' ? lint(root) : format(root);
  process.stdout.write(found);
  process.exit(found === '' ? 0 : 1);
}

/** Runs under the lock. Every step leaves nothing behind that a later run would take for a finished one. */
function prepare(task) {
  packages(task);
  modules();
  script("the cluster store's database", 'cluster/build-sqlite.mjs');
  script('the native addon', 'rdma/build-addon.mjs');
  script('the wire messages', 'wire/generate.mjs');
  script('the P4Runtime messages', 'p4runtime-js/generate.mjs');
  compile();
}

function packages(task) {
  const missing = PACKAGES.filter((entry) => (entry.needed || task === 'test') && !entry.present());
  if (missing.length === 0) return;
  const names = missing.map((entry) => entry.name);
  const install = `apt-get update && apt-get install -y ${names.join(' ')}`;
  if (process.getuid?.() !== 0 || spawnSync('apt-get', ['--version'], { stdio: 'ignore' }).status !== 0) {
    if (missing.some((entry) => entry.needed))
      return fail(`${names.join(', ')} missing: run \`sudo sh -c '${install}'\``);
    say(`${names.join(', ')} missing, the tests that want it are skipped: \`sudo sh -c '${install}'\``);
    return;
  }
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  step(`installed ${names.join(', ')}`, () => {
    // Stale lists are better than none: only the installation decides.
    quiet('apt-get', ['-qq', 'update'], { env, mayFail: true });
    quiet('apt-get', ['-qq', '-y', '--no-install-recommends', 'install', ...names], {
      env,
      mayFail: !missing.some((entry) => entry.needed),
    });
  });
}

/** The library is on the loader's path, or where Debian puts it. */
function hasLibrary(name) {
  const cache = spawnSync('/sbin/ldconfig', ['-p'], { encoding: 'utf8' });
  return cache.status === 0 && cache.stdout.includes(name);
}

function modules() {
  if (modulesFit()) return;
  step('installed the npm packages', () => {
    quiet('npm', ['ci', '--no-audit', '--no-fund']);
  });
  if (!modulesFit()) fail('npm ci ended well, but node_modules does not hold what package-lock.json names');
}

/**
 * Whether node_modules holds every version that package-lock.json names. By content, not by time: git sets times anew.
 * npm writes the hidden list last, so an interrupted installation has none.
 */
function modulesFit() {
  const installed = readJson('node_modules/.package-lock.json')?.packages;
  const wanted = readJson('package-lock.json')?.packages;
  if (wanted === undefined) return fail('package-lock.json is missing or damaged');
  if (installed === undefined) return false;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === '' || entry.optional || entry.peer) return true;
    const found = installed[path];
    return found !== undefined && found.version === entry.version;
  });
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(at(path), 'utf8'));
  } catch {
    return undefined;
  }
}

/** A script that prints nothing when it had nothing to do. */
function script(what, path) {
  const started = Date.now();
  if (quiet(process.execPath, [at(path)]).trim() !== '') done(`built ${what}`, started);
}

function compile() {
  const started = Date.now();
  const built = () =>
    ['dist/.tsbuildinfo', 'p4runtime-js/tsconfig.tsbuildinfo', 'rdma/tsconfig.tsbuildinfo']
      .map((path) => modified(at(path)))
      .join();
  const before = built();
  // Outputs removed by hand are not missed by the compiler's own bookkeeping.
  const complete = ['dist/cli/main.js', 'p4runtime-js/dist/index.js', 'rdma/dist/index.js'].every((path) =>
    existsSync(at(path)),
  );
  quiet(process.execPath, [at('node_modules/typescript/bin/tsc'), '-b', ...(complete ? [] : ['--force'])]);
  if (before !== built()) done('compiled the TypeScript', started);
}

function modified(path) {
  return existsSync(path) ? statSync(path).mtimeMs : 0;
}

/** Lint, then tap. @returns the exit status: 0 only when something ran and nothing failed */
async function test(args) {
  const long = args.includes('--long');
  const files = args.filter((argument) => argument !== '--long');
  const found = lint(root);
  process.stdout.write(found);
  mkdirSync(at('.tartan'), { recursive: true });
  const totals = await runTap(root, files, { ...process.env, ...(long ? { TARTAN_LONG: '1' } : {}) });
  if (found !== '') totals.failed++;
  process.stdout.write(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`);
  return totals.failed === 0 && totals.passed > 0 ? 0 : 1;
}

/** Runs Node with `args` while holding a lock that the kernel frees when the holder ends, however it ends. */
async function locked(name, args) {
  if (spawnSync('flock', ['--version'], { stdio: 'ignore' }).status !== 0) return run(process.execPath, args);
  mkdirSync(at('.tartan'), { recursive: true });
  // -o: the lock is flock's own, no child that outlives it can keep it.
  const flock = ['-o', '-E', String(BUSY), at('.tartan', name), process.execPath, ...args];
  const status = await run('flock', ['-n', ...flock]);
  if (status !== BUSY) return status;
  say('another build of this checkout is running, waiting for it');
  return run('flock', flock);
}

/** Runs a command on this terminal, passes on the signals that ask for its end. @returns its exit status */
function run(command, args, cwd = process.cwd()) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, stdio: 'inherit' });
    const pass = (signal) => {
      child.kill(signal);
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, pass);
    const end = (status) => {
      for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.off(signal, pass);
      resolve(status);
    };
    child.on('error', (error) => {
      process.stderr.write(`tartan: cannot run ${command}: ${error.message}\n`);
      end(1);
    });
    child.on('exit', (code, signal) => {
      end(code ?? (signal === 'SIGINT' ? 130 : 1));
    });
  });
}

/** Runs a command silently; prints all it said and ends this process when it fails. @returns its output */
function quiet(command, args, { env = process.env, mayFail = false } = {}) {
  const result = spawnSync(command, args, {
    cwd: root,
    env,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 1 << 28,
  });
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}`;
  if (result.status === 0 || mayFail) return output;
  process.stderr.write(output);
  const shown = [command === process.execPath ? 'node' : command, ...args].join(' ').replaceAll(`${root}/`, '');
  return fail(`\`${shown}\` failed (${result.error?.message ?? result.signal ?? `exit status ${result.status}`})`);
}

function step(what, action) {
  const started = Date.now();
  action();
  done(what, started);
}

function done(what, started) {
  say(`${what} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
}
function say(line) {
  process.stdout.write(`tartan: ${line}\n`);
}
function fail(line) {
  process.stderr.write(`tartan: ${line}\n`);
  process.exit(1);
}
