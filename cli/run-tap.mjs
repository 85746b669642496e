/**
 * Runs tap and reads its protocol: one line per test file as it ends, the whole story of those that fail, the reason of
 * every skip, and the totals. tap's own reporters draw for a terminal; a log wants plain lines.
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** What a run is given to end: the one limit of all tests, far above what they take anywhere. */
const LIMIT_MINUTES = { short: 60, long: 600 };

/**
 * @param root   the checkout
 * @param files  tap arguments: test files, options; empty: what .taprc includes
 * @param env    TARTAN_LONG=1: the long form · TARTAN_LIMIT_MINUTES: when the run is ended, by default 60 or 600
 * @returns { passed, failed, skipped } tests; a run that ends without tap's closing line has failed once more
 */
export async function runTap(root, files, env) {
  const minutes = Number(env.TARTAN_LIMIT_MINUTES ?? LIMIT_MINUTES[env.TARTAN_LONG === '1' ? 'long' : 'short']);
  const began = { ms: performance.now(), cpu: childrenCpuSeconds() };
  const child = spawn(process.execPath, [join(root, 'node_modules/.bin/tap'), 'run', '--reporter=tap', ...files], {
    cwd: root,
    env: { ...env, FORCE_COLOR: '0' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const pass = (signal) => {
    child.kill(signal);
  };
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, pass);
  const limit = setTimeout(() => {
    process.stdout.write(`the whole run's limit of ${minutes} minutes is over (TARTAN_LIMIT_MINUTES sets another)\n`);
    child.kill('SIGTERM');
    setTimeout(() => child.kill('SIGKILL'), 30_000).unref();
  }, minutes * 60_000);
  const reader = new TapReader((line) => {
    process.stdout.write(`${line}\n`);
  });
  let rest = '';
  child.stdout.setEncoding('utf8');
  child.stdout.on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) reader.line(line);
  });
  const status = await new Promise((resolve) => {
    child.on('error', () => resolve(1));
    child.on('close', (code) => resolve(code ?? 1));
  });
  clearTimeout(limit);
  for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, pass);
  if (rest !== '') reader.line(rest);
  const totals = reader.totals ?? { passed: 0, failed: 1, skipped: 0 };
  if (reader.totals === undefined) process.stdout.write(`tap ended with status ${status} and no totals\n`);
  else if (status !== 0 && totals.failed === 0) {
    process.stdout.write(`tap ended with status ${status}\n`);
    totals.failed = 1;
  }
  const cpu = childrenCpuSeconds() - began.cpu;
  const took = `${Math.round((performance.now() - began.ms) / 1000)} s`;
  process.stdout.write(
    `The tests took ${took}${Number.isNaN(cpu) ? '' : `, ${Math.round(cpu)} s of processor time`}.\n`,
  );
  return totals;
}

/** Processor time of this process's children that have ended, and of theirs; NaN where the system does not say. */
function childrenCpuSeconds() {
  try {
    const stat = readFileSync('/proc/self/stat', 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // cutime and cstime, in ticks of 10 ms wherever Linux runs.
    return (Number(fields[13]) + Number(fields[14])) / 100;
  } catch {
    return NaN;
  }
}

/**
 * Reads TAP 14 as tap's `tap` reporter prints it: subtests indented by four, files as the outermost ones.
 *
 * It counts tests, not assertions: a test is a subtest that has none of its own. One that skips, as a whole or in part,
 * or is still to be written, is a skipped one, never a passed one. What fails outside of its tests (a file that ends
 * early, an assertion between two subtests) counts as one failed test more.
 */
export class TapReader {
  /** { passed, failed, skipped } tests, once the closing line has been read. */
  totals = undefined;
  #print;
  #lines = [];
  #counts = { passed: 0, failed: 0, skipped: 0 };
  /** Subtests that have begun, outermost first; `skips`: lines in it that are skipped. */
  #open = [];
  /** Indentation of the block of diagnostics that is being read, or -1. */
  #block = -1;
  constructor(print) {
    this.#print = print;
  }

  line(line) {
    if (/^# \{ total: \d+.*\}$/.test(line)) {
      this.totals = this.#counts;
      return;
    }
    const indent = /^ */.exec(line)[0].length;
    if (this.#block >= 0) {
      if (this.#block > 2) this.#lines.push(line);
      else if (indent === 2 && /^ {2}(exitCode|signal|timeout|error|message|failures?)\b/.test(line))
        this.#print(`     ${line}`);
      if (indent === this.#block && line.trim() === '...') this.#block = -1;
      return;
    }
    if (line.trim() === '---') {
      this.#block = indent;
      if (indent > 2) this.#lines.push(line);
      return;
    }
    if (/^ *# Subtest: /.test(line)) this.#open.push({ indent, tests: 0, skips: 0, points: 0, failures: 0 });
    const point = /^ *(not ok|ok) \d+(.*)$/.exec(line);
    if (point !== null) this.#point(indent, point[1] === 'ok', /# (SKIP|TODO)\b/.test(point[2]));
    const file = /^(not ok|ok) \d+ - (\S+)(.*)$/.exec(line);
    if (file) this.#fileEnds(file[1] === 'ok', file[2], file[3]);
    else if (!/^(TAP version|1\.\.\d)/.test(line)) this.#lines.push(line);
  }

  /** An assertion, or the end of a subtest. */
  #point(indent, isOk, isSkip) {
    // A process that ends early leaves its tests without an end.
    while (this.#open.length > 1 && indent < this.#open.at(-1).indent) this.#subtestEnds(false, false);
    const inner = this.#open.at(-1);
    if (inner === undefined || indent !== inner.indent) {
      if (inner !== undefined) {
        inner.points++;
        if (isSkip) inner.skips++;
      }
      return;
    }
    this.#subtestEnds(isOk, isSkip);
  }

  #subtestEnds(isOk, isSkip) {
    const inner = this.#open.pop();
    const outer = this.#open.at(-1);
    const counts = this.#counts;
    // A test that is skipped as a whole looks as an assertion does: in a file, or beside tests, it is one.
    const isLeaf = inner.tests === 0 && (outer !== undefined || inner.skips === 0);
    if (!isLeaf) counts.skipped += inner.skips;
    if (isLeaf) counts[!isOk ? 'failed' : isSkip || inner.skips > 0 ? 'skipped' : 'passed']++;
    else if (!isOk && inner.failures === 0) counts.failed++;
    if (outer === undefined) return;
    outer.tests++;
    if (!isOk) outer.failures++;
  }

  #fileEnds(isOk, name, more) {
    const seconds = /time=([\d.]+)ms/.exec(more);
    const skips = this.#lines.filter((each) => /^\s+ok .*# (SKIP|TODO)/.test(each));
    if (!isOk) for (const each of this.#lines) if (!/^\s*ok \d/.test(each) && each.trim() !== '') this.#print(each);
    const took = seconds ? ` (${(Number(seconds[1]) / 1000).toFixed(1)} s)` : '';
    this.#print(`${isOk ? 'ok    ' : 'NOT OK'} ${name}${took}`);
    for (const each of skips) this.#print(`       ${each.trim().replace(/^ok \d+ - /, '')}`);
    this.#lines = [];
  }
}
