/** The way in: connect to a cluster, create, append to, read, list and remove files. */
import type { Device } from 'tartan-rdma';
import { openDevice } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import { checkFileName } from '../cluster/file-name.js';
import { createFile, deleteFile, giveUp, listFiles, lookupFile, readFile, takeOver } from '../cluster/files.js';
import { purposeOf, readIdentity, readMap } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { type Code, parseCode } from '../erasure/code/index.js';
import { layoutFor, layoutOf, type LayoutName } from '../erasure/layout/index.js';
import { Hub } from '../pipeline/hub.js';
import { RingMemory } from '../pipeline/ring-memory.js';
import type { Clock } from '../wire/clock.js';
import { realClock } from '../wire/clock.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { checkArgument, checkOptions, expected } from './arguments.js';
import type { ClientContext } from './context.js';
import { drainNode, type DrainOptions, type DrainReport } from './drain.js';
import { FileReader } from './file-reader.js';
import type { Naming } from './file-session.js';
import { FileWriter } from './file-writer.js';
import type { PatrolOptions, PatrolReport } from './patrol.js';
import { patrol } from './patrol.js';
import { ProposalHistory } from './proposals.js';
import type { ReadRepairCounts } from './read-repair.js';
import { ReadRepair } from './read-repair.js';
import type { RebuildOptions, RebuildReport } from './rebuild.js';
import { rebalance, type RebalanceOptions, type RebalanceReport } from './rebalance.js';
import { rebuildFile } from './rebuild.js';
import { removeFile } from './removal.js';
import { runRepairer, type RepairerOptions } from './repairer.js';
import { checkFenceable, recoverTail } from './takeover.js';
import { tolerate } from '../wire/front-door.js';

export interface ConnectOptions {
  /** Directory of the embedded cluster store, `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`, or a store. */
  readonly cluster: string | ClusterStore;
  /**
   * A device, or the name of one to open for this client: 'soft' (default), 'verbs:rxe0', 'auto'. The cluster's kind.
   */
  readonly device?: Device | string;
  readonly clock?: Clock;
  readonly transport?: 'auto' | 'tcp' | 'shm';
  /** Bytes of all rings of this client. Default 256 MiB. */
  readonly ringMemoryBytes?: number;
  /** The cluster's secret, needed beyond loopback. */
  readonly secret?: string;
  readonly name?: string;
  /** A peer silent for so long is taken for gone. Default 1000. */
  readonly deadlineMs?: number;
  /** Default 1000: how long a switch must have been programmable before a writer goes back to it. */
  readonly holdMs?: number;
  /** 'host': compute parity here, never use a switch. Default 'auto'. */
  readonly parity?: 'auto' | 'host';
  /**
   * How units of files being written travel: 'packets' (UDP), 'ring', or 'auto': packets where the cluster has a packet
   * switch.
   */
  readonly dataPath?: 'auto' | 'ring' | 'packets';
  /**
   * Most bytes a second for repairing, in the background, what reads find damaged; 0: it is left to scrubs. Default 16
   * MiB.
   */
  readonly repairBytesPerSecond?: number;
}

export interface CreateOptions {
  /** Default 'xor(2+1)'. */
  readonly code?: string;
  /** Power of two, 512 to 4 MiB. Default 64 KiB. */
  readonly unitBytes?: number;
  /**
   * 'rotated': over neighbours in turn; 'spread': every pair of nodes shares about as many stripes. Default: 'spread'
   * on more nodes than two stripes take.
   */
  readonly layout?: LayoutName;
  /**
   * When others find the file under its name. 'at-once' (default): empty, then as it grows. 'complete': when it has
   * been ended and every byte is acknowledged; destroyed before, or left by a process that is gone, it never was.
   */
  readonly appears?: 'at-once' | 'complete';
  /**
   * With `appears: 'complete'`: a file of that name is replaced in the moment in which this one appears. Who reads the
   * old one reads on.
   */
  readonly replace?: boolean;
}

const LAYOUTS: readonly LayoutName[] = ['rotated', 'spread'];
const CREATE_OPTIONS = {
  code: expected.text,
  unitBytes: expected.positive,
  layout: expected.oneOf(...LAYOUTS),
  appears: expected.oneOf('at-once', 'complete'),
  replace: expected.flag,
};
const CONNECT_OPTIONS = {
  cluster: (value: unknown) =>
    expected.text(value) === undefined || isStore(value) ? undefined : 'a directory, etcd://…, or a cluster store',
  device: (value: unknown) =>
    expected.text(value) === undefined || (typeof value === 'object' && value !== null)
      ? undefined
      : 'a device or the name of one',
  clock: (value: unknown) => (typeof value === 'object' && value !== null ? undefined : 'a clock'),
  transport: expected.oneOf('auto', 'tcp', 'shm'),
  ringMemoryBytes: expected.positive,
  secret: expected.text,
  name: expected.text,
  deadlineMs: expected.milliseconds,
  holdMs: expected.millisecondsOrNone,
  parity: expected.oneOf('auto', 'host'),
  dataPath: expected.oneOf('auto', 'ring', 'packets'),
  repairBytesPerSecond: (value: unknown) => (value === 0 ? undefined : expected.rate(value)),
};
const REBUILD_OPTIONS = {
  bytesPerSecond: expected.rate,
  onProgress: expected.callback,
  signal: expected.signal,
  stripes: (value: unknown) =>
    Array.isArray(value) && value.every((each) => expected.count(each) === undefined) ? undefined : 'stripe numbers',
  move: (value: unknown) => (typeof value === 'object' ? undefined : 'a move'),
};
const PATROL_OPTIONS = {
  bytesPerSecond: expected.rate,
  restMs: expected.millisecondsOrNone,
  signal: expected.signal,
  onFile: expected.callback,
};
const MOVE_OPTIONS = {
  bytesPerSecond: expected.rate,
  signal: expected.signal,
  ownerMs: expected.millisecondsOrNone,
  onProgress: expected.callback,
  to: expected.text,
};
const REPAIRER_OPTIONS = {
  ...Object.fromEntries(['downOutMs', 'settleMs', 'scrubMs'].map((each) => [each, expected.count])),
  bytesPerSecond: expected.rate,
  tickMs: expected.milliseconds,
  ownerMs: expected.millisecondsOrNone,
  idleMs: expected.milliseconds,
  signal: expected.signal,
  log: expected.callback,
};

function isStore(value: unknown): boolean {
  return (
    typeof value === 'object' &&
    value !== null &&
    ['get', 'range', 'transact', 'watch', 'close'].every(
      (each) => typeof (value as Record<string, unknown>)[each] === 'function',
    )
  );
}

export const DEFAULT_RING_MEMORY = 256 << 20;
const DEFAULT_REPAIR_RATE = 16 << 20;
/** Times that the map may change while a file is created. */
const CREATE_ATTEMPTS = 100;

/**
 * @throws {TartanError} ERR_ARGUMENT · ERR_STORE, ERR_FOREIGN_STORE, ERR_STORE_VERSION, ERR_NOT_FOUND when the cluster
 *         can't be opened · ERR_MAP_UNAVAILABLE: its store does not answer
 */
export async function connect(options: ConnectOptions): Promise<Client> {
  checkOptions('connect', options, CONNECT_OPTIONS);
  checkArgument('connect', 'cluster', options.cluster, CONNECT_OPTIONS.cluster);
  const owned: (() => Promise<void>)[] = [];
  let store: ClusterStore;
  if (typeof options.cluster === 'string') {
    store = await openClusterStore(options.cluster);
    owned.push(() => store.close());
  } else {
    store = options.cluster;
  }
  const device =
    typeof options.device === 'object'
      ? options.device
      : openDevice(options.device ?? 'soft', { name: options.name ?? 'writer' });
  if (device !== options.device) owned.unshift(() => device.close());
  const deadlineMs = options.deadlineMs ?? 1000;
  try {
    const identity = await readIdentity(store);
    return new Client(
      {
        device,
        hub: new Hub(device),
        clock: options.clock ?? realClock,
        secret: options.secret,
        clusterId: identity.clusterId,
        store,
        name: options.name ?? `writer-${process.pid}`,
        transport: options.transport ?? 'auto',
        deadlineMs,
        heartbeatMs: Math.max(5, deadlineMs / 10),
        holdMs: options.holdMs ?? 1000,
        parity: options.parity ?? 'auto',
        dataPath: options.dataPath ?? 'auto',
        memory: new RingMemory(options.ringMemoryBytes ?? DEFAULT_RING_MEMORY),
        proposals: new ProposalHistory(deadlineMs),
      },
      owned,
      options.repairBytesPerSecond ?? DEFAULT_REPAIR_RATE,
    );
  } catch (error) {
    for (const close of owned) await close();
    throw error;
  }
}

export class Client {
  private readonly shared: ClientContext;
  private closing: Promise<void> | undefined;
  private readonly owned: readonly (() => Promise<void>)[];
  private readonly writers = new Set<FileWriter>();
  private readonly readers = new Set<FileReader>();

  private readonly repair: ReadRepair;

  constructor(context: ClientContext, owned: readonly (() => Promise<void>)[], repairBytesPerSecond: number) {
    this.shared = context;
    this.owned = owned;
    this.repair = new ReadRepair(context, repairBytesPerSecond);
    if (repairBytesPerSecond > 0)
      context.onDamaged = (fileId, stripe) => {
        this.repair.note(fileId, stripe);
      };
  }

  /** For every use of the cluster. @throws {TartanError} ERR_CLOSED after close() */
  private get context(): ClientContext {
    if (this.closing !== undefined) throw new TartanError('ERR_CLOSED', 'Cannot use this client: it is closed');
    return this.shared;
  }

  /** What readers found damaged, and what became of it. */
  get repairs(): ReadRepairCounts {
    return this.repair.counts;
  }

  /** Resolves when everything that readers have found damaged so far has been looked at. */
  repaired(): Promise<void> {
    return this.repair.idle();
  }

  /**
   * Creates a file and opens it for appending.
   * @throws {TartanError} ERR_ARGUMENT, ERR_EXISTS, ERR_UNKNOWN_CODE, ERR_CODE_OUT_OF_BOUNDS, ERR_NOT_ENOUGH_NODES,
   *         ERR_UNIT_BYTES, ERR_RING_MEMORY, ERR_MAP_UNAVAILABLE, ERR_CLOSED
   */
  async create(name: string, options: CreateOptions = {}): Promise<FileWriter> {
    const { context } = this;
    checkArgument('create a file', 'its name', name, isText);
    checkFileName(name);
    checkOptions(`create '${name}'`, options, CREATE_OPTIONS);
    const unnamed = options.appears === 'complete',
      replace = options.replace === true;
    if (replace && !unnamed)
      throw new TartanError('ERR_ARGUMENT', `Cannot create '${name}': replace needs appears: 'complete'`);
    const code = parseCode(options.code ?? 'xor(2+1)');
    const unitBytes = options.unitBytes ?? 65536;
    const file = await this.placed(name, { code, unitBytes, unnamed, replace, layout: options.layout });
    try {
      return await this.openWriter(file, unnamed ? { replace } : undefined);
    } catch (error) {
      // Nothing was written: the name must not stay taken.
      await deleteFile(context.store, file.id).catch(tolerate);
      throw error;
    }
  }

  /** Creates the record of a file on the members there are; a node that leaves meanwhile is not among them. */
  private async placed(
    name: string,
    options: {
      readonly code: Code;
      readonly unitBytes: number;
      readonly unnamed: boolean;
      readonly replace: boolean;
      readonly layout: LayoutName | undefined;
    },
  ): Promise<FileRecord> {
    const { store } = this.context,
      { code, unitBytes, unnamed, replace } = options;
    for (let attempt = 1; ; attempt++) {
      const map = await readMap(store);
      const nodes = map.nodes.filter((node) => purposeOf(node) === 'member').map((node) => node.id);
      const layout = options.layout ?? layoutFor(nodes.length, code.k + code.m);
      layoutOf({ id: 0, nodes, unitBytes, layout }, code);
      try {
        return await createFile(store, {
          name,
          code: code.name,
          unitBytes,
          nodes,
          mapEpoch: map.epoch,
          mapChanges: map.changes,
          unnamed,
          replace,
          ...(layout !== 'rotated' && { layout }),
        });
      } catch (error) {
        if (codeOf(error) !== 'ERR_STALE_MAP' || attempt === CREATE_ATTEMPTS) throw error;
      }
    }
  }

  /**
   * Takes a file over for appending: fences its last owner, settles what it left unfinished, continues at the end.
   * @throws {TartanError} ERR_NOT_FOUND, ERR_UNDECIDED, ERR_TOO_MANY_LOST, ERR_FENCED
   */
  async append(name: string): Promise<FileWriter> {
    checkArgument('append to a file', 'its name', name, isText);
    return this.appendTo((await lookupFile(this.context.store, name)).id);
  }

  private async appendTo(fileId: number): Promise<FileWriter> {
    const { context } = this;
    await checkFenceable(context, await readFile(context.store, fileId));
    const file = await takeOver(context.store, fileId);
    try {
      return await this.recovered(file);
    } catch (error) {
      // What it was before: nobody is to look for an owner of a closed file.
      await giveUp(context.store, file.id, file.writerEpoch).catch((other: unknown) => {
        if (!isOperating(other)) throw other;
      });
      throw (await this.overtaken(file, error)) ?? error;
    }
  }

  /** A writer of a file that has just been taken over, whose end is settled. */
  private async recovered(file: FileRecord): Promise<FileWriter> {
    const writer = await this.openWriter(file);
    // The caller has no writer yet to listen to: what goes wrong meanwhile is what this call rejects with.
    const ignore = (): void => {};
    writer.on('error', ignore);
    try {
      await recoverTail(this.context, writer.internals, file);
      writer.off('error', ignore);
      return writer;
    } catch (error) {
      // Until it is closed it may write.
      if (!writer.closed) await new Promise<void>((resolve) => writer.once('close', resolve).destroy());
      throw error;
    }
  }

  /** Opens a file for reading, as committed now. @throws {TartanError} ERR_NOT_FOUND */
  async open(name: string): Promise<FileReader> {
    checkArgument('open a file', 'its name', name, isText);
    const reader = await FileReader.open(this.context, await lookupFile(this.context.store, name), (closed) =>
      this.readers.delete(closed),
    );
    this.readers.add(reader);
    return reader;
  }

  /**
   * Restores what the file's nodes lack: after one came back or got a new disk. Writers and readers go on meanwhile;
   * may be interrupted and called again.
   *
   * @param which  a name, or the id of a file, which also leads to one that has no name yet
   * @returns what was found and done; a stripe that can't be restored is counted there, not thrown
   * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT, ERR_RING_MEMORY, ERR_MAP_UNAVAILABLE, ERR_CLOSED
   */
  async rebuild(which: string | number, options: RebuildOptions = {}): Promise<RebuildReport> {
    checkOptions('rebuild a file', options, REBUILD_OPTIONS);
    return rebuildFile(this.context, await this.find('rebuild a file', which), false, options);
  }

  /** As rebuild(), after every node has read its units back and checked them, and parity was compared with data. */
  async scrub(which: string | number, options: RebuildOptions = {}): Promise<RebuildReport> {
    checkOptions('scrub a file', options, REBUILD_OPTIONS);
    return rebuildFile(this.context, await this.find('scrub a file', which), true, options);
  }

  /**
   * Scrubs all files in turn, again and again, at a bounded rate, until the signal ends it. Rejects only for faults of
   * its own.
   */
  async patrol(options: PatrolOptions = {}): Promise<PatrolReport> {
    checkOptions('patrol', options, PATROL_OPTIONS);
    return patrol(this.context, options);
  }

  /**
   * Moves everything that a node holds to other nodes; new files don't use it from now on. Files that somebody writes
   * move when they are closed; those whose writer is gone are taken over and closed. May be interrupted and called
   * again.
   *
   * @throws {TartanError} ERR_NOT_FOUND, ERR_NOT_ENOUGH_NODES, ERR_WOULD_LOSE, ERR_MAP_UNAVAILABLE
   */
  async drain(id: string, options: DrainOptions = {}): Promise<DrainReport> {
    checkArgument('drain a node', 'its id', id, isText);
    checkOptions(`drain node ${id}`, options, { ...MOVE_OPTIONS, onWaiting: expected.callback });
    return drainNode(this.context, id, (fileId) => this.closeFor(fileId), options);
  }

  /**
   * Evens out what the nodes hold: one that was added gets its share.
   * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT, ERR_MAP_UNAVAILABLE
   */
  async rebalance(options: RebalanceOptions = {}): Promise<RebalanceReport> {
    checkOptions('rebalance', options, MOVE_OPTIONS);
    return rebalance(this.context, (fileId) => this.closeFor(fileId), options);
  }

  /**
   * Looks after the cluster until the signal ends it: shares of nodes that are lost go to spares, what nodes lack that
   * came back is restored, files are scrubbed now and then. Rejects only for faults of its own.
   */
  async repairer(options: RepairerOptions = {}): Promise<void> {
    checkOptions('repair', options, REPAIRER_OPTIONS);
    return runRepairer(this.context, (fileId) => this.closeFor(fileId), options);
  }

  /** All files that have a name, by id. */
  async list(): Promise<FileRecord[]> {
    return (await listFiles(this.context.store)).filter(({ unnamed }) => unnamed !== true);
  }

  /** @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT */
  async stat(name: string): Promise<FileRecord> {
    checkArgument('look at a file', 'its name', name, isText);
    return lookupFile(this.context.store, name);
  }

  async map(): Promise<ClusterMap> {
    return readMap(this.context.store);
  }

  /**
   * Removes a file: its name is free at once, nodes free its units as they hear of it.
   *
   * @param which  a name, or the id of a file: then it is this file or none, whoever has its name now
   * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT
   */
  async remove(which: string | number): Promise<void> {
    const { context } = this;
    await removeFile(context, (await this.find('remove a file', which)).id);
  }

  /**
   * Ends everything; writers still open are destroyed, what they had not flushed is not acknowledged. From now on every
   * other call rejects with ERR_CLOSED; closing again does nothing more.
   */
  close(): Promise<void> {
    this.closing ??= this.closeAll();
    return this.closing;
  }

  private async closeAll(): Promise<void> {
    for (const writer of this.writers) {
      writer.on('error', () => {});
      await new Promise<void>((resolve) => {
        writer.once('close', resolve);
        writer.destroy();
      });
    }
    await Promise.all([...this.readers].map((reader) => reader.close()));
    await this.repair.close();
    for (const close of this.owned) await close();
  }

  private async find(attempt: string, which: string | number): Promise<FileRecord> {
    checkArgument(attempt, 'its name or id', which, (value) =>
      typeof value === 'number' ? expected.positive(value) : isText(value),
    );
    if (typeof which === 'string') return lookupFile(this.context.store, which);
    const file = await readFile(this.context.store, which);
    if (file.state === 'deleted') throw new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: file ${which} is deleted`);
    return file;
  }

  /** Settles what an owner that is gone has left. */
  private async closeFor(fileId: number): Promise<void> {
    const writer = await this.appendTo(fileId);
    await new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('close', resolve);
      writer.end();
    });
  }

  /**
   * A newer owner frees and discards what an older one still counts: then it is not lost, but the file is another's.
   */
  private async overtaken(file: FileRecord, cause: unknown): Promise<TartanError | undefined> {
    if (!['ERR_TOO_MANY_LOST', 'ERR_UNDECIDED', 'ERR_NO_UNIT'].includes(codeOf(cause) ?? '')) return undefined;
    const now = await readFile(this.context.store, file.id).catch(tolerate);
    if (now === undefined || now.writerEpoch <= file.writerEpoch) return undefined;
    return new TartanError(
      'ERR_FENCED',
      `Cannot take over '${file.name}': writer epoch ${now.writerEpoch} has been given out since ${file.writerEpoch}`,
      { cause },
    );
  }

  private async openWriter(file: FileRecord, naming?: Naming): Promise<FileWriter> {
    const { context } = this;
    const writer = await FileWriter.open(context, file, (closed) => this.writers.delete(closed), naming);
    // close() may have begun while it was opened, and has not seen it.
    if (this.closing !== undefined) {
      await new Promise<void>((resolve) => writer.once('close', resolve).destroy());
      throw new TartanError('ERR_CLOSED', `Cannot open '${file.name}': the client was closed meanwhile`);
    }
    this.writers.add(writer);
    return writer;
  }
}

/** An empty one is for checkFileName() to refuse. */
function isText(value: unknown): string | undefined {
  return typeof value === 'string' ? undefined : 'a text';
}
