/** Running Node with the native addon under the compiler's sanitizers, and reading what they report. */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

export type Sanitizer = 'address' | 'thread';
export const SANITIZERS: readonly Sanitizer[] = ['address', 'thread'];

const root = resolve(import.meta.dirname, '..', '..', '..');
/** What a suppression is for stands in the file, above each. */
const SUPPRESSIONS = join(root, 'test/sanitize/thread-suppressions.txt');
const LIBRARIES: Record<Sanitizer, readonly string[]> = {
  address: ['libasan.so', 'libubsan.so'],
  thread: ['libtsan.so'],
};

/** Builds the addon with a sanitizer beside the ordinary one. @throws when the compiler refuses */
export function buildAddon(sanitizer: Sanitizer): void {
  execFileSync(process.execPath, [join(root, 'rdma/build-addon.mjs')], {
    env: { ...process.env, TARTAN_SANITIZE: sanitizer },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
}

/** A folder for one run's reports. */
export const reportFolder = (): string => mkdtempSync(join(tmpdir(), 'tartan-sanitize-'));

/**
 * Starts Node with the sanitizer's library preloaded and the sanitized addon chosen.
 *
 * @param args     of Node
 * @param reports  folder that reports go to; several processes may share it
 */
export function startSanitized(sanitizer: Sanitizer, args: readonly string[], reports: string): ChildProcess {
  const libraries = LIBRARIES[sanitizer].map((name) =>
    execFileSync(process.env['CXX'] ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim(),
  );
  const log = `log_path=${join(reports, 'report')}`;
  const env = {
    ...process.env,
    TARTAN_SANITIZE: sanitizer,
    // Under load a test takes as long as it takes.
    TAP_TIMEOUT: '3000',
    ASAN_OPTIONS: `detect_leaks=1:exitcode=23:fast_unwind_on_malloc=0:${log}`,
    // Leaks of V8 and Node end no run: readReports() looks for the addon's.
    LSAN_OPTIONS: `exitcode=0:print_suppressions=0`,
    UBSAN_OPTIONS: `print_stacktrace=1:${log}`,
    // Node itself is not instrumented: what it does among its own threads can't be judged.
    TSAN_OPTIONS: `exitcode=23:ignore_noninstrumented_modules=1:suppressions=${SUPPRESSIONS}:${log}`,
  };
  // ThreadSanitizer's shadow memory and a randomised address space do not always fit each other.
  return spawn('setarch', ['-R', 'env', `LD_PRELOAD=${libraries.join(' ')}`, process.execPath, ...args], {
    cwd: root,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** The reports that count: every error, and of the leaks those that the addon is part of. */
export function readReports(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const text = readFileSync(join(folder, name), 'utf8');
    if (!text.includes('LeakSanitizer')) return text.trim() === '' ? [] : [text];
    return text.split(/\n\n+/).filter((block) => /leak of/.test(block) && /\btartan::|\/rdma\/native\//.test(block));
  });
}

/** Waits for a child. @returns its exit status (128 + n for signal n, as shells say), and all that it printed */
export function outcomeOf(child: ChildProcess): Promise<{ status: number; output: string }> {
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  return new Promise((done, failed) => {
    child.on('error', failed);
    child.on('close', (code, signal) => {
      done({ status: code ?? (signal === null ? 1 : 128), output });
    });
  });
}
