/** The built command in processes of its own, as a shell would run it; the test runner's loaders stay out of it. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { Test } from 'tap';

export const ROOT = resolve(import.meta.dirname, '../..');
export const MAIN = join(ROOT, 'dist/cli/main.js');

export interface Result {
  /** 128 and the signal's number when one ended it, as a shell has it. */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly cwd?: string;
  readonly input?: Buffer | string;
}

const SIGNAL_NUMBERS: Readonly<Record<string, number>> = { SIGHUP: 1, SIGINT: 2, SIGKILL: 9, SIGPIPE: 13, SIGTERM: 15 };

/** The environment of everything that is started. */
function environment(): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: _, ...env } = process.env;
  return env;
}

/** stdout as latin1: a byte a character. */
export function run(file: string, args: readonly string[], options: RunOptions = {}): Promise<Result> {
  return new Promise((done) => {
    const child = execFile(
      file,
      [...args],
      { env: environment(), cwd: options.cwd, maxBuffer: 1 << 28, encoding: 'latin1' },
      (error, stdout, stderr) => {
        const status = error ? (error.signal ? 128 + SIGNAL_NUMBERS[error.signal]! : Number(error.code ?? 255)) : 0;
        done({ status, stdout, stderr });
      },
    );
    child.stdin?.on('error', () => {}); // it may end before it has read everything
    child.stdin?.end(options.input);
  });
}

export function tartan(args: readonly string[], options: RunOptions = {}): Promise<Result> {
  return run(process.execPath, [MAIN, ...args], options);
}

/** One that goes on; `ended` is what became of it. */
export function start(args: readonly string[]): { readonly child: ChildProcess; readonly ended: Promise<Result> } {
  const child = spawn(process.execPath, [MAIN, ...args], { env: environment(), stdio: ['pipe', 'pipe', 'pipe'] });
  const said = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].setEncoding('latin1').on('data', (text: string) => {
      said[name] += text;
    });
  child.stdin.on('error', () => {});
  const ended = new Promise<Result>((done) => {
    child.once('close', (code, signal) => {
      done({ status: code ?? 128 + SIGNAL_NUMBERS[signal!]!, ...said });
    });
  });
  return { child, ended };
}

/** One line, with the code, and no stack. */
export function isOneLine(t: Test, result: Result, status: number, code: string, text = /./): void {
  t.equal(result.status, status, `exit status for ${code}: ${result.stderr}`);
  t.match(result.stderr, new RegExp(`^tartan: ${code}: [^\\n]+\\n$`));
  t.match(result.stderr, text);
  t.equal(result.stdout, '');
}

/** A cluster in a folder of its own, ended by the test's teardown. */
export async function startCluster(t: Test, ...args: readonly string[]): Promise<string> {
  // Not the test's own folder: that goes before the teardown that ends what runs in it.
  const dir = join(mkdtempSync(join(tmpdir(), 'tartan-command-')), 'state');
  t.teardown(async () => {
    const { status, stderr } = await tartan(['--dir', dir, 'down']);
    if (status !== 0) throw new Error(`what was started may still run: ${stderr}`);
    rmSync(dirname(dir), { recursive: true });
  });
  const up = await tartan(['--dir', dir, 'up', '--ring-memory', '64MiB', '--size', '256MiB', ...args]);
  if (up.status !== 0) throw new Error(up.stderr);
  return dir;
}
