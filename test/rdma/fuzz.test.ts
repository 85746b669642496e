/**
 * The native engine against peers that say anything (rdma/native/fuzz): what once broke it is replayed, and some new
 * cases are tried. Without sanitizers here, so that it is quick; `npm run fuzz` has them. TARTAN_SEED replays a run.
 */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import t from 'tap';
import { buildFuzzer } from '../../rdma/native/fuzz/build.mjs';

const SEED = Number(process.env['TARTAN_SEED'] ?? Date.now() % 1_000_000_000);
const REGRESSIONS = resolve(import.meta.dirname, '../../rdma/native/fuzz/regressions');

/** @returns what it printed, and its exit status: 0 when nothing was found */
function run(program: string, args: readonly string[]): Promise<{ status: number | string; output: string }> {
  return new Promise((done) => {
    execFile(program, args, (error, stdout, stderr) => {
      done({ status: error?.code ?? error?.signal ?? 0, output: `${stdout}${stderr}`.trim() });
    });
  });
}

const program = await buildFuzzer('plain');

for (const name of readdirSync(REGRESSIONS).sort())
  t.test(`the engine survives ${name}`, async (t) => {
    const { status, output } = await run(program, ['--replay', join(REGRESSIONS, name)]);
    t.equal(status, 0, output);
  });

for (const target of ['stream', 'packets'])
  t.test(`the engine keeps its word to whoever behaves: 25 ${target} cases from seed ${SEED}`, async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'tartan-fuzz-'));
    const args = ['--target', target, '--seed', String(SEED), '--cases', '25'];
    const { status, output } = await run(program, [...args, '--transcript', join(folder, 'transcript')]);
    t.equal(status, 0, output);
    if (status === 0) await rm(folder, { recursive: true });
  });

t.test('a transcript that is none is refused', async (t) => {
  const { status, output } = await run(program, ['--replay', import.meta.filename]);
  t.equal(status, 1);
  t.match(output, /is no transcript/);
});
