/**
 * Makes src/generated/ from proto/: `node generate.mjs [--force]`.
 *
 * Offline: buf compiles, ts-proto prints, both from node_modules. 64-bit fields are bigints; enums are numbers. Only
 * messages that text and JSON forms of P4Info need can be read from JSON. Outputs newer than every source are left
 * alone. Exits 1 on failure.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const protoDir = join(here, 'proto'),
  outDir = join(here, 'src', 'generated');

const tsProtoOptions = [
  'env=node',
  'esModuleInterop=true',
  'importSuffix=.js',
  'forceLong=bigint',
  'oneof=unions-value',
  'outputServices=grpc-js',
  'outputJsonMethods=from-only',
  'useExactTypes=false',
  'removeEnumPrefix=false',
];

const protos = readdirSync(protoDir, { recursive: true })
  .filter((name) => name.endsWith('.proto'))
  .sort();
// Well-known messages come with the compiler.
const outputs = [...protos.map((name) => name.replace(/\.proto$/, '.ts')), 'google/protobuf/any.ts'];

try {
  if (process.argv.includes('--force') || !upToDate()) generate();
} catch (error) {
  console.error(`Cannot generate p4runtime-js/src/generated: ${error.message}`);
  process.exit(1);
}

function upToDate() {
  const made = outputs.map((name) => join(outDir, name));
  if (!made.every((path) => existsSync(path))) return false;
  const sources = [
    ...protos.map((name) => join(protoDir, name)),
    fileURLToPath(import.meta.url),
    join(here, 'package.json'),
  ];
  const newest = Math.max(...sources.map((path) => statSync(path).mtimeMs));
  return made.every((path) => statSync(path).mtimeMs >= newest);
}

/** Generates beside, then moves file by file: a compiler that runs at the same time never sees half a file. */
function generate() {
  mkdirSync(outDir, { recursive: true });
  const temporary = mkdtempSync(join(outDir, '.new-'));
  try {
    const template = JSON.stringify({
      version: 'v2',
      plugins: [
        {
          local: tool('protoc-gen-ts_proto'),
          out: temporary,
          opt: tsProtoOptions,
          include_imports: true,
          include_wkt: true,
        },
      ],
    });
    const result = spawnSync(tool('buf'), ['generate', protoDir, '--template', template], {
      cwd: here,
      encoding: 'utf8',
    });
    if (result.error) throw new Error(`buf did not start: ${result.error.message}`);
    if (result.status !== 0)
      throw new Error(`buf exited with ${result.status ?? result.signal}:\n${result.stderr}${result.stdout}`);
    for (const name of outputs) {
      if (!existsSync(join(temporary, name))) throw new Error(`ts-proto made no ${name}`);
      mkdirSync(dirname(join(outDir, name)), { recursive: true });
      renameSync(join(temporary, name), join(outDir, name));
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  console.log(`${relative(dirname(here), outDir)}: ${outputs.length} files`);
}

/** The tool may lie in this package's node_modules or, in a workspace, in that of a folder above. */
function tool(name) {
  for (let folder = here; ; folder = dirname(folder)) {
    const path = join(folder, 'node_modules', '.bin', name);
    if (existsSync(path)) return path;
    if (dirname(folder) === folder) throw new Error(`node_modules/.bin/${name} is missing; run \`npm ci\` first`);
  }
}
