/** Starting and ending the cluster's processes. They say on standard output, in one JSON line, that they are ready. */
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as delay } from 'node:timers/promises';
import type { ProcessIdentity } from '../cluster/process-identity.js';
import { isRunning, ownIdentity } from '../cluster/process-identity.js';
import { errorFromPeer, TartanError } from '../wire/errors.js';
import { localError } from './local-files.js';
import type { ProcessRecord, ProcessRole } from './state-directory.js';

const READY_MS = 30_000;
const POLL_MS = 15;

export interface ChildSpec {
  readonly id: string;
  readonly role: ProcessRole;
  readonly host: string;
  /** Arguments after the script. */
  readonly args: readonly string[];
  /** Folder of ID.out and ID.err. */
  readonly logs: string;
  /** Ends with this process, also when this one is killed (needs setpriv from util-linux; without it, not so). */
  readonly dependent?: boolean;
  /** How long it may take to be ready. Default 30,000: machines that are emulated need more. */
  readonly readyMs?: number;
  /** A command that runs the one given to it in its place, e.g. in another network namespace. */
  readonly prefix?: readonly string[];
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>>;
}

const SCRIPTS = {
  switch: '../switch-agent/main.js',
  node: '../storage-node/main.js',
  repairer: './repairer/main.js',
} as const satisfies Record<ProcessRole, string>;

/**
 * Starts a process in the background and waits until it is ready.
 *
 * @param onSpawned  told at once, before it is ready: from then on `down` can find it
 * @throws {TartanError} with the child's own code when it ended with one; else ERR_NOT_RUNNING, or ERR_DEADLINE after
 *         30 s.
 *   It is ended then.
 */
export async function startChild(spec: ChildSpec, onSpawned: (record: ProcessRecord) => void): Promise<ProcessRecord> {
  const output = join(spec.logs, `${spec.id}.out`),
    errors = join(spec.logs, `${spec.id}.err`);
  const { out, err } = openLogs(spec.id, output, errors);
  const script = fileURLToPath(new URL(SCRIPTS[spec.role], import.meta.url));
  const command = [...(spec.prefix ?? []), process.execPath, '--enable-source-maps', script, ...spec.args];
  if (spec.dependent === true && canDieWithParent()) command.unshift('setpriv', '--pdeathsig', 'KILL');
  // A test runner's loaders are not the daemons' business.
  const { NODE_OPTIONS: _, ...env } = process.env;
  const child = spawn(command[0]!, command.slice(1), {
    detached: true,
    stdio: ['ignore', out, err],
    env: { ...env, ...spec.env },
  });
  closeSync(out);
  closeSync(err);
  let failure: Error | undefined;
  let ended = false;
  child.on('error', (error) => {
    failure = error;
    ended = true;
  });
  child.on('exit', () => {
    ended = true;
  });
  child.unref();
  if (child.pid === undefined) {
    await delay(0); // the error event comes next
    throw new TartanError('ERR_NOT_RUNNING', `Cannot start ${spec.id}: ${failure?.message ?? 'no process'}`, {
      cause: failure,
    });
  }
  const record: ProcessRecord = {
    id: spec.id,
    role: spec.role,
    host: spec.host,
    identity: identityOf(child.pid),
    port: 0,
    controlPort: 0,
    metricsPort: 0,
  };
  try {
    onSpawned(record);
  } catch (error) {
    await stopProcess(record.identity, 0); // one that nobody knows of would run for ever
    throw error;
  }

  const readyMs = spec.readyMs ?? READY_MS;
  const deadline = performance.now() + readyMs;
  for (;;) {
    const ready = readyLine(output);
    if (ready !== undefined) return { ...record, ...ready };
    if (ended) throw endedEarly(spec.id, errors);
    if (performance.now() > deadline) {
      await stopProcess(record.identity, 0);
      throw new TartanError(
        'ERR_DEADLINE',
        `Cannot start ${spec.id}: it was not ready within ${readyMs / 1000} s, see ${errors}`,
      );
    }
    await delay(POLL_MS);
  }
}

/** @throws {TartanError} ERR_LOCAL_FILE: on a full disk nobody would hear that it is ready */
function openLogs(id: string, output: string, errors: string): { readonly out: number; readonly err: number } {
  const opened: number[] = [];
  try {
    for (const path of [output, errors]) opened.push(openSync(path, 'w', 0o600));
    // The block of this empty line has room for the ready line, however full the disk is by then.
    writeSync(opened[0]!, '\n');
    return { out: opened[0]!, err: opened[1]! };
  } catch (error) {
    for (const file of opened) closeSync(file);
    throw localError(`Cannot start ${id}, whose log is ${errors}`, error);
  }
}

/**
 * Asks a process to end, then kills it. Returns when it is gone; a process that is not that one is left alone.
 *
 * @returns 'ended', 'killed' (it did not obey within graceMs), or 'gone' (it did not run)
 */
export async function stopProcess(identity: ProcessIdentity, graceMs: number): Promise<'ended' | 'killed' | 'gone'> {
  if (!signal(identity, graceMs > 0 ? 'SIGTERM' : 'SIGKILL')) return 'gone';
  const deadline = performance.now() + graceMs;
  while (isRunning(identity) && performance.now() < deadline) await delay(POLL_MS);
  if (!isRunning(identity)) return graceMs > 0 ? 'ended' : 'killed';
  signal(identity, 'SIGKILL');
  while (isRunning(identity)) await delay(POLL_MS);
  return 'killed';
}

function signal(identity: ProcessIdentity, name: NodeJS.Signals): boolean {
  if (!isRunning(identity)) return false;
  try {
    return process.kill(identity.pid, name);
  } catch {
    return false; // it ended in between
  }
}

/** The identity of a child of this process (its pid cannot be reused before it is reaped). */
function identityOf(pid: number): ProcessIdentity {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return { bootId: ownIdentity().bootId, pid, startTime: stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]! };
  } catch {
    return { bootId: ownIdentity().bootId, pid, startTime: '' }; // never equal to one that runs
  }
}

function readyLine(path: string): Pick<ProcessRecord, 'port' | 'controlPort' | 'metricsPort'> | undefined {
  for (const line of readFileSync(path, 'utf8').split('\n').slice(0, -1)) {
    try {
      const message = JSON.parse(line) as Partial<Record<'ready' | 'port' | 'controlPort' | 'metricsPort', unknown>>;
      const port = (value: unknown): number => (typeof value === 'number' ? value : 0);
      if (message.ready === true)
        return {
          port: port(message.port),
          controlPort: port(message.controlPort),
          metricsPort: port(message.metricsPort),
        };
    } catch {
      /* not the ready line */
    }
  }
  return undefined;
}

/** The child's own one-line error, as a command of ours prints it, or the last line of its log. */
function endedEarly(id: string, errors: string): TartanError {
  const lines = readFileSync(errors, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '');
  for (const line of lines.reverse()) {
    const own = /\b(ERR_[A-Z_]+): (.*)$/.exec(line);
    if (own) return errorFromPeer(own[1]!, `Cannot start ${id}: ${own[2]!}`);
  }
  return new TartanError(
    'ERR_NOT_RUNNING',
    `Cannot start ${id}: it ended at ` +
      `once${lines[0] === undefined ? '' : ` (${lines[0].trim().slice(0, 200)})`}, see ${errors}`,
  );
}

let dieWithParent: boolean | undefined;
function canDieWithParent(): boolean {
  dieWithParent ??= spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true'], { stdio: 'ignore' }).status === 0;
  return dieWithParent;
}
