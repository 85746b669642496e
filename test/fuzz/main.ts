/**
 * `npm run fuzz -- [--seconds 120] [--seed N] [--sanitizer address|thread]`: the native engine and what stands on it
 * against peers that say anything, under AddressSanitizer and UndefinedBehaviorSanitizer (or ThreadSanitizer), all
 * targets side by side for so many seconds. docs/testing.md says what each does and how a finding is replayed. The
 * last line is `N passed, N failed, N skipped`.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import type { buildFuzzer } from '../../rdma/native/fuzz/build.mjs';
import {
  buildAddon,
  outcomeOf,
  readReports,
  reportFolder,
  SANITIZERS,
  startSanitized,
  type Sanitizer,
} from '../sanitize/sanitizers.js';

interface Finding {
  readonly name: string;
  readonly isGood: boolean;
  readonly output: string;
}

const root = resolve(import.meta.dirname, '..', '..', '..');
const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '120' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000_000) },
    sanitizer: { type: 'string', default: 'address' },
  },
});
const sanitizer = SANITIZERS.find((each) => each === values.sanitizer);
if (sanitizer === undefined || !/^\d+$/.test(values.seconds) || !/^\d+$/.test(values.seed)) {
  process.stderr.write('usage: npm run fuzz -- [--seconds N] [--seed N] [--sanitizer address|thread]\n');
  process.exit(1);
}

const folder = join(root, '.tartan/fuzz');
mkdirSync(folder, { recursive: true });
process.stdout.write(`fuzz: seed ${values.seed}, ${values.seconds} s, ${sanitizer}\n`);
// By way of the root: the script is no TypeScript, so it lies beside its sources only.
const script = pathToFileURL(join(root, 'rdma/native/fuzz/build.mjs')).href;
const builder = (await import(script)) as { buildFuzzer: typeof buildFuzzer };
const program = await builder.buildFuzzer(sanitizer);
buildAddon(sanitizer);
const findings = [
  await canary(),
  await regressions(),
  ...(await Promise.all([native('stream'), native('packets'), forgedRings(sanitizer)])),
];
for (const { name, isGood, output } of findings)
  process.stdout.write(`${isGood ? 'ok    ' : 'NOT OK'} ${name}\n${output}\n`);
const failed = findings.filter(({ isGood }) => !isGood).length;
process.stdout.write(`${findings.length - failed} passed, ${failed} failed, 0 skipped\n`);
process.exitCode = failed === 0 ? 0 : 1;

function start(args: readonly string[]): ReturnType<typeof outcomeOf> {
  const env = { ...process.env, ASAN_OPTIONS: 'detect_leaks=1', UBSAN_OPTIONS: 'print_stacktrace=1' };
  // ThreadSanitizer's shadow memory and a randomised address space do not always fit each other.
  return outcomeOf(spawn('setarch', ['-R', program, ...args], { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] }));
}

/** Whether a wrong access would be seen at all. */
async function canary(): Promise<Finding> {
  const { status, output } = await start(['--canary']);
  const isGood = status !== 0 && /runtime error|WARNING: ThreadSanitizer/.test(output);
  return { name: 'the canary is caught', isGood, output: isGood ? '' : output };
}

/** What was found before, once more. */
async function regressions(): Promise<Finding> {
  const kept = join(root, 'rdma/native/fuzz/regressions');
  const outcomes = await Promise.all(readdirSync(kept).map((name) => start(['--replay', join(kept, name)])));
  const bad = outcomes.filter(({ status }) => status !== 0);
  const output = bad.map(({ output }) => output).join('\n');
  return { name: `${outcomes.length} transcripts of earlier findings`, isGood: bad.length === 0, output };
}

async function native(target: string): Promise<Finding> {
  const transcript = join(folder, `${target}.txt`);
  const args = ['--target', target, '--seed', values.seed, '--seconds', values.seconds, '--transcript', transcript];
  const { status, output } = await start(args);
  if (status === 0) return { name: target, isGood: true, output };
  const last = readFileSync(transcript, 'utf8').split('\n').slice(0, 3).join('\n');
  return { name: target, isGood: false, output: `${output}\n${last}\nfuzz: replay it with --replay ${transcript}` };
}

/** Nodes and a switch in one Node process, with the sanitized addon below them. */
async function forgedRings(sanitizer: Sanitizer): Promise<Finding> {
  const reports = reportFolder();
  const peers = join(root, 'dist/test/fuzz', 'forged-rings.js');
  const { status, output } = await outcomeOf(startSanitized(sanitizer, [peers, values.seconds, values.seed], reports));
  const found = readReports(reports);
  const isGood = status === 0 && found.length === 0;
  rmSync(reports, { recursive: true });
  return {
    name: 'forged rings',
    isGood,
    output: [...found, output, ...(isGood ? [] : [`status ${status}`])].join('\n'),
  };
}
