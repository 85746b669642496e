/**
 * Builds the programs beside this file (kernel_check, kernel_bench) with the kernels linked in, under rdma/build/bench.
 * Objects newer than every source are kept. The instruction sets by file name are those of build-addon.mjs.
 */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const here = dirname(fileURLToPath(import.meta.url));
const native = dirname(here);
const buildDirectory = join(native, '..', 'build', 'bench');
const compiler = process.env.CXX || 'g++';
const COMPILE_FLAGS = ['-std=c++20', '-O3', '-g', '-fPIC', '-Wall', '-Wextra'];
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
  ['.cc', []],
];

const run = promisify(execFile);
const modified = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);

/**
 * @param {'kernel_check' | 'kernel_bench'} program
 * @returns {Promise<string>} the path of the executable
 * @throws when the compiler is missing or refuses a file; the message holds its lines
 */
export async function buildProgram(program) {
  mkdirSync(buildDirectory, { recursive: true });
  const kernels = readdirSync(native)
    .filter((file) => /^(kernel_|crc32c|coding).*\.cc$/.test(file))
    .filter((file) => process.arch === 'x64' || !/_(gfni|avx2)\.cc$/.test(file));
  const sources = [...kernels.map((file) => join(native, file)), join(here, `${program}.cc`)];
  const headers = ['coding.h', 'kernel.h', 'crc32c.h', 'gf256.h', join('bench', 'isal.h')].map((file) =>
    join(native, file),
  );
  const shared = Math.max(modified(fileURLToPath(import.meta.url)), ...headers.map(modified));

  const objects = [];
  let compiled = 0;
  for (const source of sources) {
    const object = join(buildDirectory, `${source.slice(source.lastIndexOf('/') + 1, -3)}.o`);
    objects.push(object);
    if (modified(object) >= Math.max(shared, modified(source))) continue;
    const [, flags] = KERNEL_FLAGS.find(([ending]) => source.endsWith(ending));
    await compile(object, [...COMPILE_FLAGS, ...flags, '-c', source]);
    compiled++;
  }
  const executable = join(buildDirectory, program);
  if (compiled > 0 || modified(executable) < Math.max(...objects.map(modified)))
    await compile(executable, [...objects, '-ldl']);
  return executable;
}

// By way of a file of its own: tests that build at the same time never see half a file.
async function compile(output, args) {
  const partial = `${output}.${process.pid}.tmp`;
  await run(compiler, [...args, '-o', partial]);
  renameSync(partial, output);
}
