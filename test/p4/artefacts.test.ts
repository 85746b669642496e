/** The compiled programs in p4/artefacts/ are those of the sources beside them. `node p4/build.mjs` makes them anew. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DESCRIPTOR_BYTES, DropReason, IP_UDP_BYTES, stripePacketBytes } from '../../wire/packet-header.js';
import { artefacts, classes } from './artefacts.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const hash = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');
const manifest = JSON.parse(readFileSync(join(artefacts, 'manifest.json'), 'utf8')) as {
  p4c: string;
  sources: Record<string, string>;
  programs: Record<string, { json: string; p4info: string }>;
};

t.test('every source and every artefact is as the manifest says', async (t) => {
  const sources = [
    ...readdirSync(join(root, 'p4'))
      .filter((name) => name.endsWith('.p4') || name === 'classes.json')
      .map((name) => `p4/${name}`),
    'test/p4runtime-js/conformance_program.p4',
  ].sort();
  t.same(Object.keys(manifest.sources).sort(), sources, 'no source came or went');
  t.same(
    sources.filter((path) => manifest.sources[path] !== hash(join(root, path))),
    [],
    'stale: run node p4/build.mjs',
  );
  const names = Object.keys(manifest.programs).sort();
  t.same(names, [...Object.keys(classes), 'conformance_program', 'forward'].sort());
  t.same(
    readdirSync(artefacts).sort(),
    [...names.flatMap((name) => [`${name}.json`, `${name}.p4info.txt`]), 'manifest.json'].sort(),
  );
  for (const [name, { json, p4info }] of Object.entries(manifest.programs)) {
    t.equal(hash(join(artefacts, `${name}.json`)), json, `${name}.json`);
    t.equal(hash(join(artefacts, `${name}.p4info.txt`)), p4info, `${name}.p4info.txt`);
  }
});

const p4c = spawnSync('p4c-bm2-ss', ['--version'], { encoding: 'utf8' });
const sameP4c = p4c.error === undefined && `${p4c.stdout}${p4c.stderr}`.includes(manifest.p4c);
t.test(
  'the p4c on PATH makes the same artefacts',
  { skip: sameP4c ? false : `p4c-bm2-ss ${manifest.p4c} is not on PATH: the artefacts cannot be compiled anew` },
  async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'p4-artefacts-'));
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const made = spawnSync(process.execPath, [join(root, 'p4/build.mjs'), folder], { encoding: 'utf8' });
    t.equal(made.status, 0, made.stderr);
    for (const name of readdirSync(artefacts)) t.equal(hash(join(folder, name)), hash(join(artefacts, name)), name);
  },
);

t.test('a packet of every class fits its MTU, and there is no room for much more', async (t) => {
  for (const [name, { k, mtu, chunkBytes }] of Object.entries(classes)) {
    const bytes = IP_UDP_BYTES + stripePacketBytes(k, chunkBytes);
    t.ok(bytes <= mtu, `${name}: ${bytes} of ${mtu}`);
    t.ok(mtu - bytes < mtu / 10 + k * DESCRIPTOR_BYTES, `${name}: ${mtu - bytes} left`);
  }
});

t.test('p4/drop_reasons.p4 has the numbers of wire/packet-header.ts', async (t) => {
  const text = readFileSync(join(root, 'p4/drop_reasons.p4'), 'utf8');
  const inP4 = Object.fromEntries(
    [...text.matchAll(/DROP_([A-Z_]+) = (\d+);/g)].map(([, name, number]) => [name!.toLowerCase(), Number(number)]),
  );
  t.same(Object.fromEntries(Object.entries(inP4).filter(([name]) => name !== 'reasons')), DropReason);
});
