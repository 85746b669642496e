/**
 * What one `tartan up` leaves on a machine, below one folder:
 *
 *   cluster/         the cluster store (SQLite), or
 *   cluster.location where it is instead: etcd://…
 *   nodes/n1/ …      the unit stores
 *   log/n1.out       a process's standard output: its ready line; log/n1.err: its log
 *   started.json     what `up` was last told, for those that are started again one by one
 *   processes.json   the processes that `up` started, for `down` and `status`
 *   in-use           empty; locked by an `up`, `down` or other change at work
 *
 * A process is known by boot, pid and start time, so that a stale record, left by a crash or a reboot, is never taken
 * for a process that runs, and no stranger with a reused pid is ever signalled.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { isEtcdLocation } from '../cluster/etcd-location.js';
import { absoluteLocation } from '../cluster/open-store.js';
import type { ProcessIdentity } from '../cluster/process-identity.js';
import { isRunning } from '../cluster/process-identity.js';
import { holdsStore } from '../cluster/store-files.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { localError } from './local-files.js';

/** Of the file that is locked, in the folder. */
export const LOCK_FILE = 'in-use';

export type ProcessRole = 'switch' | 'node' | 'repairer';

export interface ProcessRecord {
  /** 's1', 'n2', 'r1'. */
  readonly id: string;
  readonly role: ProcessRole;
  readonly identity: ProcessIdentity;
  readonly host: string;
  /** Ports are 0 until the process has said that it is ready; a repairer has none. */
  readonly port: number;
  readonly controlPort: number;
  readonly metricsPort: number;
  /** What it was told to open; undefined until it is ready. */
  readonly device?: string;
}

/** What the processes of a cluster have in common, as `up` was told. */
export interface StartedWith {
  readonly host: string;
  readonly basePort: number;
  readonly durability: string;
  readonly transport: string;
  readonly device: string;
  readonly ringMemoryBytes: number;
  readonly sizeBytes: number;
}

export class StateDirectory {
  readonly path: string;
  /** What the user named as the cluster store. */
  private readonly given: string | undefined;

  /** @throws {TartanError} ERR_ARGUMENT: a malformed etcd:// location */
  constructor(path: string, clusterStore?: string) {
    this.path = resolve(path);
    this.given = clusterStore === undefined || clusterStore === '' ? undefined : absoluteLocation(clusterStore);
  }

  /** `dir`, or $XDG_STATE_HOME/tartan, or ~/.local/state/tartan. */
  static choose(dir: string | undefined, clusterStore?: string): StateDirectory {
    if (dir !== undefined && dir !== '') return new StateDirectory(dir, clusterStore);
    const base = process.env['XDG_STATE_HOME'];
    return new StateDirectory(
      join(base !== undefined && base.startsWith('/') ? base : join(homedir(), '.local', 'state'), 'tartan'),
      clusterStore,
    );
  }

  /** Location of the cluster store, as openClusterStore() takes it. */
  get cluster(): string {
    return this.given ?? this.kept ?? this.ownCluster;
  }

  /**
   * Remembers the store that the user named, for commands that don't name it.
   *
   * @throws {TartanError} ERR_EXISTS: this folder's cluster has another
   */
  keepCluster(): void {
    if (this.given === undefined) return;
    const present = this.kept ?? (holdsStore(this.ownCluster) ? this.ownCluster : undefined);
    if (present === this.given) return;
    if (present !== undefined)
      throw new TartanError(
        'ERR_EXISTS',
        `Cannot keep a cluster with its store at ${this.given} in ${this.path}: the cluster there has its ` +
          `store at ${present}; \`tartan down --wipe\` removes it`,
      );
    this.replace(this.locationFile, `${this.given}\n`);
  }

  /** Removes all that this folder keeps: while locked, or nobody else uses it. */
  remove(): void {
    // The lock's own file last: who comes then begins anew.
    for (const path of [
      this.ownCluster,
      this.locationFile,
      this.startedFile,
      this.logs,
      join(this.path, 'nodes'),
      this.processesFile,
      this.lockFile,
    ])
      rmSync(path, { recursive: true, force: true });
  }

  private get kept(): string | undefined {
    try {
      return readFileSync(this.locationFile, 'utf8').trim() || undefined;
    } catch {
      return undefined;
    }
  }

  private get ownCluster(): string {
    return join(this.path, 'cluster');
  }
  private get locationFile(): string {
    return join(this.path, 'cluster.location');
  }
  get logs(): string {
    return join(this.path, 'log');
  }
  node(id: string): string {
    return join(this.path, 'nodes', id);
  }
  private get processesFile(): string {
    return join(this.path, 'processes.json');
  }
  private get startedFile(): string {
    return join(this.path, 'started.json');
  }
  private get lockFile(): string {
    return join(this.path, LOCK_FILE);
  }

  create(): void {
    try {
      const folders = [
        this.path,
        ...(isEtcdLocation(this.cluster) ? [] : [this.cluster]),
        this.logs,
        join(this.path, 'nodes'),
      ];
      for (const folder of folders) mkdirSync(folder, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw new TartanError('ERR_ARGUMENT', `Cannot keep a cluster in ${this.path}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }

  /** What `up` was last told; undefined: it never was, or was one that did not write it down. */
  startedWith(): StartedWith | undefined {
    try {
      return JSON.parse(readFileSync(this.startedFile, 'utf8')) as StartedWith;
    } catch {
      return undefined; // it only saves telling again
    }
  }

  keepStartedWith(options: StartedWith): void {
    this.replace(this.startedFile, `${JSON.stringify(options)}\n`);
  }

  /** Every process recorded, whether it still runs or not. */
  processes(): ProcessRecord[] {
    let text: string;
    try {
      text = readFileSync(this.processesFile, 'utf8');
    } catch (error) {
      if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return [];
      throw error;
    }
    try {
      return (JSON.parse(text) as { processes: ProcessRecord[] }).processes;
    } catch (error) {
      throw new TartanError(
        'ERR_ARGUMENT',
        `Cannot read ${this.processesFile}: it is damaged; end its processes by hand, then remove it`,
        { cause: error },
      );
    }
  }

  running(): ProcessRecord[] {
    return this.processes().filter((each) => isRunning(each.identity));
  }

  /**
   * What of the cluster runs on this machine.
   *
   * @throws {TartanError} ERR_NOT_RUNNING when nothing does, and the cluster is not named by its store: then it may run
   *         elsewhere
   */
  requireRunning(): ProcessRecord[] {
    const running = this.running();
    if (running.length === 0 && this.given === undefined)
      throw new TartanError('ERR_NOT_RUNNING', `No cluster runs at ${this.path}: start one with \`tartan up\``);
    return running;
  }

  /** Adds or replaces the record with the same id. Readers see the old list or the new one. */
  record(entry: ProcessRecord): void {
    this.write([...this.processes().filter((each) => each.id !== entry.id), entry]);
  }

  /** @throws {TartanError} ERR_LOCAL_FILE: it can't be written, and what was recorded stays as it was */
  write(processes: readonly ProcessRecord[]): void {
    this.replace(this.processesFile, `${JSON.stringify({ version: 1, processes }, undefined, 1)}\n`);
  }

  /** That none runs: on a disk that is full, too. */
  forget(): void {
    rmSync(this.processesFile, { force: true });
  }

  private replace(path: string, text: string): void {
    const partial = `${path}.${process.pid}`;
    try {
      writeFileSync(partial, text, { mode: 0o600, flush: true } as Parameters<typeof writeFileSync>[2]);
      renameSync(partial, path);
    } catch (error) {
      rmSync(partial, { force: true });
      throw localError(`Cannot write ${path}`, error);
    }
  }

  /**
   * Runs `action` while no other `up` or `down` works on this folder. The lock ends with its process.
   *
   * @throws {TartanError} ERR_IN_USE while another holds it
   */
  async locked<T>(action: () => Promise<T>): Promise<T> {
    const { lockPath } = await import('../cluster/process-lock.js');
    const lock = lockPath(this.lockFile);
    if ('heldBy' in lock)
      throw new TartanError('ERR_IN_USE', `Cannot change the cluster at ${this.path}: ${lock.heldBy} is working on it`);
    try {
      return await action();
    } finally {
      lock.release();
    }
  }
}
