/**
 * What one `tartan up` leaves on a machine, below one folder:
 *
 *   cluster/         the cluster store (SQLite), or
 *   cluster.location where it is instead: etcd://…
 *   nodes/n1/ …      the unit stores
 *   log/n1.out       a process's standard output: its ready line; log/n1.err: its log
 *   started.json     what `up` was last told, for those that are started again one by one
 *   processes.json   the processes that `up` started, for `down` and `status`
 *   lock             held by an `up` or `down` at work
 *
 * A process is known by boot, pid and start time, so that a stale record, left by a crash or a reboot, is never taken
 * for a process that runs, and no stranger with a reused pid is ever signalled.
 */
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { isEtcdLocation } from '../cluster/etcd-location.js';
import { absoluteLocation } from '../cluster/open-store.js';
import type { ProcessIdentity } from '../cluster/process-identity.js';
import { isRunning, ownIdentity } from '../cluster/process-identity.js';
import { holdsStore } from '../cluster/store-files.js';
import { TartanError, codeOf } from '../wire/errors.js';

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
    writeFileSync(this.locationFile, `${this.given}\n`, { mode: 0o600 });
  }

  /** Forgets where the store is, and removes it if it is this folder's own. */
  removeCluster(): void {
    rmSync(this.ownCluster, { recursive: true, force: true });
    rmSync(this.locationFile, { force: true });
    rmSync(this.startedFile, { force: true });
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
    return join(this.path, 'lock');
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
    writeFileSync(this.startedFile, `${JSON.stringify(options)}\n`, { mode: 0o600 });
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

  write(processes: readonly ProcessRecord[]): void {
    const partial = `${this.processesFile}.${process.pid}`;
    writeFileSync(partial, `${JSON.stringify({ version: 1, processes }, undefined, 1)}\n`, { mode: 0o600 });
    renameSync(partial, this.processesFile);
  }

  /**
   * Runs `action` while no other `up` or `down` works on this folder. A lock whose holder is gone is taken over.
   *
   * @throws {TartanError} ERR_IN_USE while its holder runs
   */
  async locked<T>(action: () => Promise<T>): Promise<T> {
    this.lock();
    try {
      return await action();
    } finally {
      rmSync(this.lockFile, { force: true });
    }
  }

  private lock(): void {
    const own = join(this.path, `lock.${process.pid}`);
    // Written beside and linked: a lock that exists is complete, also when its writer dies.
    writeFileSync(own, JSON.stringify(ownIdentity()), { mode: 0o600 });
    try {
      for (let attempt = 0; attempt < 8; attempt++) {
        try {
          linkSync(own, this.lockFile);
          return;
        } catch (error) {
          if (codeOf(error) !== 'EEXIST') throw error;
        }
        const holder = this.lockHolder();
        if (holder !== undefined && isRunning(holder))
          throw new TartanError(
            'ERR_IN_USE',
            `Cannot change the cluster at ${this.path}: process ${holder.pid} is working on it`,
          );
        this.removeStale(`${own}.stale`, holder);
      }
    } finally {
      rmSync(own, { force: true });
    }
    throw new TartanError('ERR_IN_USE', `Cannot lock ${this.path}: others keep taking the lock`);
  }

  /** Of two that find the lock stale, the slower may move the faster one's new lock: then it puts that back. */
  private removeStale(aside: string, holder: ProcessIdentity | undefined): void {
    try {
      renameSync(this.lockFile, aside);
    } catch {
      return;
    }
    const moved = this.lockHolder(aside);
    if (moved !== undefined && isRunning(moved) && moved.pid !== holder?.pid) {
      try {
        linkSync(aside, this.lockFile);
      } catch {
        /* a third took it meanwhile */
      }
    }
    rmSync(aside, { force: true });
  }

  private lockHolder(path = this.lockFile): ProcessIdentity | undefined {
    try {
      return JSON.parse(readFileSync(path, 'utf8')) as ProcessIdentity;
    } catch {
      return undefined;
    }
  }
}
