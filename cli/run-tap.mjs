/**
 * Runs tap and reads its protocol: one line per test file as it ends, the whole story of those that fail, the reason of
 * every skip, and the totals. tap's own reporters draw for a terminal; a log wants plain lines.
 */
import { spawn } from 'node:child_process';
import { join } from 'node:path';

/**
 * @param root   the checkout
 * @param files  tap arguments: test files, options; empty: what .taprc includes
 * @returns { passed, failed, skipped } assertions; a run that ends without tap's closing line has failed once more
 */
export async function runTap(root, files, env) {
  const child = spawn(process.execPath, [join(root, 'node_modules/.bin/tap'), 'run', '--reporter=tap', ...files], {
    cwd: root,
    env: { ...env, FORCE_COLOR: '0' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const pass = (signal) => {
    child.kill(signal);
  };
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, pass);
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
  for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, pass);
  if (rest !== '') reader.line(rest);
  const totals = reader.totals ?? { passed: 0, failed: 1, skipped: 0 };
  if (reader.totals === undefined) process.stdout.write(`tap ended with status ${status} and no totals\n`);
  else if (status !== 0 && totals.failed === 0) {
    process.stdout.write(`tap ended with status ${status}\n`);
    totals.failed = 1;
  }
  return totals;
}

/** Reads TAP 14 as tap's `tap` reporter prints it: subtests indented by four, files as the outermost ones. */
export class TapReader {
  /** { passed, failed, skipped } once the closing line has been read. */
  totals = undefined;
  #print;
  #lines = [];
  /** Inside the block that follows a failed file: its exit code, signal or timeout. */
  #diagnosing = false;
  constructor(print) {
    this.#print = print;
  }

  line(line) {
    const closing = /^# \{ total: \d+.*\}$/.exec(line);
    if (closing) {
      const count = (name) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(line)?.[1] ?? 0);
      // A "todo" is a test not written: counted with the skipped, never with the passed.
      this.totals = { passed: count('pass'), failed: count('fail'), skipped: count('skip') + count('todo') };
      return;
    }
    const file = /^(not ok|ok) \d+ - (\S+)(.*)$/.exec(line);
    if (!file) {
      if (this.#diagnosing && /^ {2}\S/.test(line)) {
        if (/^ {2}(exitCode|signal|timeout|error|message|failures?)\b/.test(line)) this.#print(`     ${line}`);
        if (line === '  ...') this.#diagnosing = false;
        return;
      }
      if (this.#diagnosing && /^ {3}/.test(line)) return;
      if (!/^(TAP version|1\.\.\d)/.test(line)) this.#lines.push(line);
      return;
    }
    const [, verdict, name, more] = file;
    const seconds = /time=([\d.]+)ms/.exec(more);
    const skips = this.#lines.filter((each) => /^\s+ok .*# (SKIP|TODO)/.test(each));
    if (verdict === 'not ok')
      for (const each of this.#lines) if (!/^\s*ok \d/.test(each) && each.trim() !== '') this.#print(each);
    this.#print(
      `${verdict === 'ok' ? 'ok    ' : 'NOT OK'} ${name}${seconds ? ` (${(Number(seconds[1]) / 1000).toFixed(1)} s)` : ''}`,
    );
    for (const each of skips) this.#print(`       ${each.trim().replace(/^ok \d+ - /, '')}`);
    this.#lines = [];
    this.#diagnosing = verdict === 'not ok';
  }
}
