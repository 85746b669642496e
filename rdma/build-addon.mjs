/**
 * Builds the native addon with g++ alone: no node-gyp, no download. `node rdma/build-addon.mjs` is the command.
 *
 * Every native/*.cc becomes an object in build/obj (in parallel, skipped while newer than its source, every header and
 * this script) and the objects become build/tartan_rdma.node. native/verbs/*.cc become build/tartan_rdma_verbs.node,
 * where rdma-core's headers are; elsewhere a stub that says what is missing. Kernel files carry their own instruction
 * sets, chosen at run time; everything else must run on any x86-64 (or other) CPU that Node runs on:
 *
 *   *_gfni.cc   GFNI, AVX-512 and carry-less multiplication        x86-64 only
 *   *_avx2.cc   AVX2 and carry-less multiplication                 x86-64 only
 *   the rest    the compiler's baseline
 *
 * TARTAN_SANITIZE=address or =thread builds the same under build/address or build/thread with the compiler's sanitizers
 * (AddressSanitizer with UndefinedBehaviorSanitizer, or ThreadSanitizer), beside the ordinary one; with that variable
 * set src/addon-path.ts loads it, which only works in a process that preloads the sanitizer's library:
 * `npm run test:sanitize` (test/sanitize/main.ts) does both.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const KERNEL_FLAGS = [
  [
    '_gfni.cc',
    [
      '-mgfni',
      '-mavx512f',
      '-mavx512bw',
      '-mavx512vl',
      '-mavx512dq',
      '-mavx512vbmi',
      '-mvpclmulqdq',
      '-mpclmul',
      '-msse4.2',
    ],
  ],
  ['_avx2.cc', ['-mavx2', '-mpclmul', '-msse4.2']],
];
const COMPILE_FLAGS = [
  '-std=c++20',
  '-O3',
  '-g',
  '-fPIC',
  '-fvisibility=hidden',
  '-pthread',
  '-fno-math-errno',
  '-Wall',
  '-Wextra',
  '-Wno-missing-field-initializers',
  '-DNAPI_VERSION=8',
];

/** What each kind of check adds; -O1 and frame pointers keep the stacks of reports whole. */
const SANITIZER_FLAGS = {
  address: ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined', '-fno-omit-frame-pointer', '-O1'],
  thread: ['-fsanitize=thread', '-fno-omit-frame-pointer', '-O1'],
};

const root = dirname(fileURLToPath(import.meta.url));
const nativeDirectory = join(root, 'native');
const sanitizer = process.env.TARTAN_SANITIZE || undefined;
const sanitizerFlags = sanitizer === undefined ? [] : SANITIZER_FLAGS[sanitizer];
const buildDirectory = join(root, 'build', sanitizer ?? '');
const objectDirectory = join(buildDirectory, 'obj');
const compiler = process.env.CXX || 'g++';

function fail(line) {
  process.stderr.write(`rdma/build-addon: ${line}\n`);
  process.exit(1);
}

function headersDirectory() {
  try {
    return join(dirname(createRequire(import.meta.url).resolve('node-api-headers/package.json')), 'include');
  } catch {
    return fail("cannot find the npm package 'node-api-headers': run `npm ci` first");
  }
}

/** @returns the kernel flags of a source file, or undefined when this machine's architecture can't have it */
function flagsFor(file) {
  for (const [ending, flags] of KERNEL_FLAGS) {
    if (file.endsWith(ending)) return process.arch === 'x64' ? flags : undefined;
  }
  return [];
}

const modified = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);

function run(args) {
  return new Promise((resolve) => {
    const child = spawn(compiler, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', () => resolve(1));
    child.on('exit', (code) => resolve(code ?? 1));
  });
}

/** @returns what pkg-config says is needed to compile against rdma-core, or undefined where its headers are missing */
function rdmaCoreFlags() {
  const found = spawnSync('pkg-config', ['--cflags', 'libibverbs', 'librdmacm'], { encoding: 'utf8' });
  if (found.status === 0) return found.stdout.split(/\s+/).filter(Boolean);
  // Debian's headers lie where the compiler looks anyhow, also on machines without pkg-config.
  return ['infiniband/verbs.h', 'rdma/rdma_cma.h'].every((header) => existsSync(join('/usr/include', header)))
    ? []
    : undefined;
}

const named = (directory, ending) =>
  readdirSync(join(nativeDirectory, directory))
    .filter((file) => file.endsWith(ending))
    .map((file) => join(directory, file));

/** Compiles sources (relative to native/) and links them, each only when stale. */
async function build(name, sources, include, shared, extraFlags = []) {
  const output = join(buildDirectory, `${name}.node`);
  const objectOf = (file) => join(objectDirectory, name, file.replaceAll('/', '-').replace(/\.cc$/, '.o'));
  mkdirSync(join(objectDirectory, name), { recursive: true });
  const objects = sources.map(objectOf);
  const stale = sources.filter(
    (file, i) => modified(objects[i]) < Math.max(shared, modified(join(nativeDirectory, file))),
  );
  const queue = [...stale];
  let failed;
  await Promise.all(
    Array.from({ length: Math.min(availableParallelism(), queue.length) }, async () => {
      for (let file = queue.shift(); file !== undefined && failed === undefined; file = queue.shift()) {
        // two builds at once, or an interrupted one, never leave half an object
        const partial = `${objectOf(file)}.${process.pid}.tmp`;
        if (
          (await run([
            ...COMPILE_FLAGS,
            ...flagsFor(file),
            ...extraFlags,
            ...sanitizerFlags,
            '-isystem',
            include,
            '-c',
            join(nativeDirectory, file),
            '-o',
            partial,
          ])) === 0
        )
          renameSync(partial, objectOf(file));
        else failed = file;
      }
    }),
  );
  if (failed !== undefined) fail(`cannot compile native/${failed} (see the compiler's lines above)`);

  // Linked anew also when a source came or went: the list of those linked last lies beside the objects.
  const listed = join(objectDirectory, name, 'sources');
  const isComplete = existsSync(listed) && readFileSync(listed, 'utf8') === sources.join('\n');
  if (stale.length > 0 || !isComplete || modified(output) < Math.max(...objects.map(modified))) {
    const partial = `${output}.${process.pid}.tmp`;
    // A sanitizer's library wants to see the C++ library's functions, so there it stays a library of its own.
    const linked = sanitizer === undefined ? ['-static-libstdc++', '-static-libgcc'] : sanitizerFlags;
    if ((await run(['-shared', '-pthread', ...linked, ...objects, '-ldl', '-o', partial])) !== 0)
      fail('cannot link the addon (see the lines above)');
    renameSync(partial, output);
    writeFileSync(listed, sources.join('\n'));
    process.stdout.write(
      `rdma/build-addon: compiled ${stale.length} of ${sources.length} files → ${relative(root, output)}\n`,
    );
  }
}

async function main() {
  if (process.platform !== 'linux') fail(`the addon needs Linux (memfd, epoll), this is ${process.platform}`);
  if (spawnSync(compiler, ['--version'], { stdio: 'ignore' }).status !== 0) {
    fail(`cannot run the C++ compiler '${compiler}': run \`apt-get install g++\``);
  }
  if (sanitizerFlags === undefined)
    fail(`TARTAN_SANITIZE is '${sanitizer}', expected ${Object.keys(SANITIZER_FLAGS).join(' or ')}`);
  const include = headersDirectory();
  const shared = Math.max(
    modified(fileURLToPath(import.meta.url)),
    ...[...named('', '.h'), ...named('verbs', '.h')].map((file) => modified(join(nativeDirectory, file))),
  );
  await build(
    'tartan_rdma',
    named('', '.cc').filter((file) => flagsFor(file) !== undefined),
    include,
    shared,
  );

  const stub = join('verbs', 'stub.cc');
  const rdmaCore = rdmaCoreFlags();
  const sources =
    rdmaCore === undefined ? [stub] : [...named('verbs', '.cc').filter((file) => file !== stub), 'address.cc'];
  await build('tartan_rdma_verbs', sources, include, shared, rdmaCore);
}

await main();
