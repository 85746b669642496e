/**
 * Compiles our P4 programs with the p4c-bm2-ss on PATH: `node p4/build.mjs [folder]`, into p4/artefacts/ unless a
 * folder is given.
 *
 *   parity.p4, one class each of classes.json  →  parity-kK-MTU.json, parity-kK-MTU.p4info.txt
 *   forward.p4                                 →  forward.json, forward.p4info.txt
 *   test/p4runtime-js/conformance_program.p4   →  conformance_program.json, .p4info.txt
 *   manifest.json                              hashes of sources and artefacts, p4c's version
 *
 * The JSON is p4c's without source positions and white space: half of it, and it changed with every moved line. Commit
 * the artefacts with their sources; test/p4/artefacts.test.ts fails when they do not fit together.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = dirname(here);
const out = process.argv[2] === undefined ? join(here, 'artefacts') : resolve(process.argv[2]);
const { about: _, ...classes } = JSON.parse(readFileSync(join(here, 'classes.json'), 'utf8'));

const programs = [
  ...Object.entries(classes).map(([name, { k, fields, fieldBits }]) => ({
    name,
    source: 'p4/parity.p4',
    defines: [`-DMAX_K=${k}`, `-DFIELDS=${fields}`, `-DFIELD_BITS=${fieldBits}`],
  })),
  { name: 'forward', source: 'p4/forward.p4', defines: [] },
  { name: 'conformance_program', source: 'test/p4runtime-js/conformance_program.p4', defines: [] },
];

const version = spawnSync('p4c-bm2-ss', ['--version'], { encoding: 'utf8' });
if (version.error) {
  console.error('p4c-bm2-ss is not on PATH: install the p4lang-p4c package, or build p4c');
  process.exit(1);
}
mkdirSync(out, { recursive: true });
const manifest = { p4c: versionOf(version), sources: sourceHashes(), programs: {} };
for (const { name, source, defines } of programs) {
  const json = join(out, `${name}.json`),
    p4info = join(out, `${name}.p4info.txt`);
  const args = [
    '--std',
    'p4-16',
    '--Wdisable=unused',
    '--Wdisable=deprecated',
    ...defines,
    '-o',
    json,
    '--p4runtime-files',
    p4info,
    source,
  ];
  const result = spawnSync('p4c-bm2-ss', args, { cwd: root, encoding: 'utf8' });
  process.stderr.write(result.stderr);
  if (result.status !== 0) {
    rmSync(json, { force: true });
    console.error(`p4c-bm2-ss ${args.join(' ')}: exit ${result.status}`);
    process.exit(1);
  }
  writeFileSync(json, `${JSON.stringify(JSON.parse(readFileSync(json, 'utf8')), withoutPositions)}\n`);
  manifest.programs[name] = { source, defines, json: hash(readFileSync(json)), p4info: hash(readFileSync(p4info)) };
}
writeFileSync(join(out, 'manifest.json'), `${JSON.stringify(manifest, undefined, 2)}\n`);
console.log(`${out}: ${programs.length} programs by p4c ${manifest.p4c}`);

function withoutPositions(name, value) {
  return name === 'source_info' ? undefined : value;
}

function sourceHashes() {
  const files = [
    ...readdirSync(here)
      .filter((name) => name.endsWith('.p4') || name === 'classes.json')
      .map((name) => `p4/${name}`),
    'test/p4runtime-js/conformance_program.p4',
  ].sort();
  return Object.fromEntries(files.map((path) => [path, hash(readFileSync(join(root, path)))]));
}

function hash(bytes) {
  return createHash('sha256').update(bytes).digest('hex');
}

/** p4c prints its version on standard error. */
function versionOf({ stdout, stderr }) {
  return /Version (\S+)/i.exec(stdout + stderr)?.[1] ?? 'unknown';
}
