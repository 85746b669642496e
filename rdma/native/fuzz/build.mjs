/**
 * Builds the fuzzer beside this file: the engine's sources and the harness, with AddressSanitizer and
 * UndefinedBehaviorSanitizer or with ThreadSanitizer, under rdma/build/fuzz-address or rdma/build/fuzz-thread; or
 * without any, from the addon's own objects, for a quick replay of transcripts. Objects newer than every source are
 * kept. The instruction sets by file name are those of build-addon.mjs.
 */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const here = dirname(fileURLToPath(import.meta.url));
const native = dirname(here);
const compiler = process.env.CXX || 'g++';
const FLAGS = {
  address: ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'],
  thread: ['-fsanitize=thread'],
  plain: ['-O0'],
};
const COMPILE_FLAGS = ['-std=c++20', '-O1', '-g', '-fno-omit-frame-pointer', '-pthread', '-Wall', '-Wextra'];
const MORE_FLAGS = ['-Wno-missing-field-initializers'];
const KERNEL_FLAGS = [
  [
    '_gfni.cc',
    ['-mgfni', '-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mavx512vbmi', '-mvpclmulqdq'],
    ['-mpclmul', '-msse4.2'],
  ],
  ['_avx2.cc', ['-mavx2', '-mpclmul', '-msse4.2'], []],
];

const run = promisify(execFile);
const modified = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
const filesOf = (folder, ending) =>
  readdirSync(folder)
    .filter((file) => file.endsWith(ending))
    .map((file) => join(folder, file));

/**
 * @param {'address' | 'thread' | 'plain'} sanitizer
 * @returns {Promise<string>} the path of the executable
 * @throws when the compiler is missing or refuses a file; the message holds its lines
 */
export async function buildFuzzer(sanitizer) {
  const folder = join(native, '..', 'build', `fuzz-${sanitizer}`);
  mkdirSync(folder, { recursive: true });
  const addonObjects = join(native, '..', 'build', 'obj', 'tartan_rdma');
  const linked =
    sanitizer === 'plain' ? filesOf(addonObjects, '.o').filter((path) => basename(path) !== 'binding.o') : [];
  const sources = [...(sanitizer === 'plain' ? [] : filesOf(native, '.cc')), ...filesOf(here, '.cc')]
    .filter((path) => basename(path) !== 'binding.cc')
    .filter((path) => process.arch === 'x64' || !/_(gfni|avx2)\.cc$/.test(path));
  const headers = [...filesOf(native, '.h'), ...filesOf(here, '.h')];
  const shared = Math.max(modified(fileURLToPath(import.meta.url)), ...headers.map(modified));
  // Two files may have one name: the harness's objects carry a prefix.
  const objectOf = (source) => join(folder, `${dirname(source) === here ? 'fuzz-' : ''}${basename(source, '.cc')}.o`);
  const stale = sources.filter((source) => modified(objectOf(source)) < Math.max(shared, modified(source)));
  const queue = [...stale];
  await Promise.all(
    Array.from({ length: Math.min(availableParallelism(), queue.length) }, async () => {
      for (let source = queue.shift(); source !== undefined; source = queue.shift()) {
        const [, ...kernel] = KERNEL_FLAGS.find(([ending]) => source.endsWith(ending)) ?? [];
        const flags = [...COMPILE_FLAGS, ...MORE_FLAGS, ...FLAGS[sanitizer], ...kernel.flat()];
        await compile(objectOf(source), [...flags, '-c', source]);
      }
    }),
  );
  const executable = join(folder, 'fuzz');
  const objects = [...sources.map(objectOf), ...linked];
  if (stale.length > 0 || modified(executable) < Math.max(...objects.map(modified)))
    await compile(executable, ['-pthread', ...FLAGS[sanitizer], ...objects, '-ldl']);
  return executable;
}

// By way of a file of its own: builds at the same time never see half a file.
async function compile(output, args) {
  const partial = `${output}.${process.pid}.tmp`;
  await run(compiler, [...args, '-o', partial]);
  renameSync(partial, output);
}
