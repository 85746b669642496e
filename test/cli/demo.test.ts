/** The demo, on a smaller file: it must succeed, show what it claims, and leave nothing behind. */
import t from 'tap';
import { execFile, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { randomBytes } from '../random-bytes.js';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');
const BYTES = 24_000_001;

function environment(temporary: string): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: _, ...env } = process.env;
  return { ...env, TMPDIR: temporary };
}

/** Processes whose command line names the folder. */
function processesIn(folder: string): string[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(folder);
      } catch {
        return false;
      }
    });
}

function folders(t: { testdir(): string }): { file: string; temporary: string } {
  const dir = t.testdir();
  const temporary = join(dir, 'tmp'),
    file = join(dir, 'bytes');
  mkdirSync(temporary);
  writeFileSync(file, randomBytes(BYTES));
  return { file, temporary };
}

t.test('the demo survives each fault with every byte equal, and cleans up', async (t) => {
  const { file, temporary } = folders(t);
  const result = await new Promise<{ status: number; stdout: string; stderr: string }>((resolve) => {
    execFile(process.execPath, [MAIN, 'demo', file], { env: environment(temporary) }, (error, stdout, stderr) => {
      resolve({ status: error ? Number(error.code ?? 255) : 0, stdout, stderr });
    });
  });
  t.equal(result.status, 0, `${result.stdout}\n${result.stderr}`);
  t.equal(result.stderr, '');
  const row = (name: string) =>
    result.stdout
      .split('\n')
      .find((line) => line.startsWith(name))
      ?.split(/ {2,}/) ?? [];
  for (const name of ['store first', 'store unloaded', 'store switch-killed'])
    t.equal(row(name)[1], String(BYTES), name);
  t.equal(row('store first')[3], '0', 'nothing moved the parity');
  for (const name of ['store unloaded', 'store switch-killed'])
    t.ok(Number(row(name)[3]) >= 1, `${name}: the parity moved`);
  const reads = result.stdout.split('\n').filter((line) => line.startsWith('read '));
  t.equal(reads.length, 6);
  for (const line of reads) t.match(line, / equal$/);
  for (const line of reads.slice(3)) t.ok(Number(line.split(/ {2,}/)[5]) > 0, `degraded: ${line}`);
  t.notMatch(result.stdout, /\x1b|\r/, 'no bars where there is no terminal');
  t.same(readdirSync(temporary), []);
  t.same(processesIn(temporary), []);
});

t.test('an interrupted demo leaves no process and no file', async (t) => {
  const { file, temporary } = folders(t);
  const child = spawn(process.execPath, [MAIN, 'demo', file], {
    env: environment(temporary),
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise<void>((resolve) => {
    child.stdout.on('data', (text) => {
      if (String(text).includes('1. store')) resolve();
    });
  });
  t.ok(processesIn(temporary).length >= 4, 'a switch and three nodes run');
  child.kill('SIGINT');
  const status = await new Promise((resolve) => {
    child.on('exit', (code, signal) => {
      resolve(code ?? signal);
    });
  });
  t.equal(status, 'SIGINT', 'a shell shows 130');
  t.same(processesIn(temporary), []);
  t.same(readdirSync(temporary), []);
});

t.test('a demo without a middle is refused', async (t) => {
  const file = join(t.testdir({ small: 'too short' }), 'small');
  const result = await new Promise<{ status: number; stderr: string }>((resolve) => {
    execFile(process.execPath, [MAIN, 'demo', file], { env: environment(join(file, '..')) }, (error, _, stderr) => {
      resolve({ status: Number(error?.code ?? 0), stderr });
    });
  });
  t.equal(result.status, 2);
  t.match(result.stderr, /^tartan: ERR_ARGUMENT: .*a middle\n$/);
});
