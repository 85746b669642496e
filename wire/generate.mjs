/**
 * Makes wire/generated/ from wire/proto/: `node wire/generate.mjs [--force]`.
 *
 *   wire/proto/ring.proto     →  wire/generated/ring.ts      import … from '../wire/generated/ring.js'
 *   wire/proto/control.proto  →  wire/generated/control.ts   import … from '../wire/generated/control.js'
 *
 * Offline: buf compiles, ts-proto prints, both from node_modules. uint64 fields are plain numbers (file ids and stripes
 * are below 2^53); decoding a larger one throws. Outputs newer than every source are left alone. Exits 1 on failure.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = dirname(here);
const protoDir = join(here, 'proto'),
  outDir = join(here, 'generated');
const bin = (name) => join(root, 'node_modules', '.bin', name);

const tsProtoOptions = [
  'env=node',
  'esModuleInterop=true',
  'importSuffix=.js',
  'forceLong=number',
  'oneof=unions-value',
  'outputServices=grpc-js',
  'outputJsonMethods=false',
  'useExactTypes=false',
];

const protos = readdirSync(protoDir)
  .filter((name) => name.endsWith('.proto'))
  .sort();
const outputs = protos.map((name) => join(outDir, name.replace(/\.proto$/, '.ts')));
try {
  if (process.argv.includes('--force') || !upToDate()) generate();
} catch (error) {
  console.error(`Cannot generate wire/generated: ${error.message}`);
  process.exit(1);
}

/** This script and the package list (the generator's version) are sources too. */
function upToDate() {
  if (!outputs.every((path) => existsSync(path))) return false;
  const sources = [
    ...protos.map((name) => join(protoDir, name)),
    fileURLToPath(import.meta.url),
    join(root, 'package.json'),
  ];
  const newest = Math.max(...sources.map((path) => statSync(path).mtimeMs));
  return outputs.every((path) => statSync(path).mtimeMs >= newest);
}

/** Generates beside, then moves file by file: a compiler that runs at the same time never sees half a file. */
function generate() {
  for (const name of ['buf', 'protoc-gen-ts_proto']) {
    if (!existsSync(bin(name))) fail(`node_modules/.bin/${name} is missing; run \`npm ci\` first`);
  }
  mkdirSync(outDir, { recursive: true });
  const temporary = mkdtempSync(join(outDir, '.new-'));
  try {
    const template = JSON.stringify({
      version: 'v2',
      plugins: [{ local: bin('protoc-gen-ts_proto'), out: temporary, opt: tsProtoOptions }],
    });
    const result = spawnSync(bin('buf'), ['generate', protoDir, '--template', template], {
      cwd: root,
      encoding: 'utf8',
    });
    if (result.error) fail(`buf did not start: ${result.error.message}`);
    if (result.status !== 0)
      fail(`buf exited with ${result.status ?? result.signal}:\n${result.stderr}${result.stdout}`);
    for (const output of outputs) {
      const made = join(temporary, output.slice(outDir.length + 1));
      if (!existsSync(made)) fail(`ts-proto made no ${made}`);
      renameSync(made, output);
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  console.log(`wire/generated: ${protos.map((name) => name.replace(/\.proto$/, '.ts')).join(', ')}`);
}

function fail(message) {
  throw new Error(message);
}
