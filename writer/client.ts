/** The way in: connect to a cluster, create, append to, read, list and remove files. */
import type { Device } from 'tartan-rdma';
import { openDevice } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import { createFile, deleteFile, listFiles, lookupFile, readFile, takeOver } from '../cluster/files.js';
import { purposeOf, readIdentity, readMap } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutFor, layoutOf, type LayoutName } from '../erasure/layout/index.js';
import { Hub } from '../pipeline/hub.js';
import { NodeSet } from '../pipeline/node-set.js';
import { RingMemory } from '../pipeline/ring-memory.js';
import type { Clock } from '../wire/clock.js';
import { realClock } from '../wire/clock.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { drainNode, type DrainOptions, type DrainReport } from './drain.js';
import { FileReader } from './file-reader.js';
import { FileWriter } from './file-writer.js';
import type { PatrolOptions, PatrolReport } from './patrol.js';
import { patrol } from './patrol.js';
import type { ReadRepairCounts } from './read-repair.js';
import { ReadRepair } from './read-repair.js';
import type { RebuildOptions, RebuildReport } from './rebuild.js';
import { rebalance, type RebalanceOptions, type RebalanceReport } from './rebalance.js';
import { rebuildFile } from './rebuild.js';
import { runRepairer, type RepairerOptions } from './repairer.js';
import { recoverTail } from './takeover.js';

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
}

export const DEFAULT_RING_MEMORY = 256 << 20;
const DEFAULT_REPAIR_RATE = 16 << 20;

/** @throws {TartanError} ERR_STORE, ERR_FOREIGN_STORE, ERR_STORE_VERSION when the cluster can't be opened */
export async function connect(options: ConnectOptions): Promise<Client> {
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
  private readonly context: ClientContext;
  private readonly owned: readonly (() => Promise<void>)[];
  private readonly writers = new Set<FileWriter>();
  private readonly readers = new Set<FileReader>();

  private readonly repair: ReadRepair;

  constructor(context: ClientContext, owned: readonly (() => Promise<void>)[], repairBytesPerSecond: number) {
    this.context = context;
    this.owned = owned;
    this.repair = new ReadRepair(context, repairBytesPerSecond);
    if (repairBytesPerSecond > 0)
      context.onDamaged = (fileId, stripe) => {
        this.repair.note(fileId, stripe);
      };
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
   * @throws {TartanError} ERR_EXISTS, ERR_UNKNOWN_CODE, ERR_NOT_ENOUGH_NODES, ERR_UNIT_BYTES, …
   */
  async create(name: string, options: CreateOptions = {}): Promise<FileWriter> {
    const code = parseCode(options.code ?? 'xor(2+1)');
    const unitBytes = options.unitBytes ?? 65536;
    const map = await readMap(this.context.store);
    const nodes = map.nodes.filter((node) => purposeOf(node) === 'member').map((node) => node.id);
    const layout = options.layout ?? layoutFor(nodes.length, code.k + code.m);
    layoutOf({ id: 0, nodes, unitBytes, layout }, code);
    const file = await createFile(this.context.store, {
      name,
      code: code.name,
      unitBytes,
      nodes,
      mapEpoch: map.epoch,
      ...(layout !== 'rotated' && { layout }),
    });
    try {
      return await this.openWriter(file);
    } catch (error) {
      // Nothing was written: the name must not stay taken.
      await deleteFile(this.context.store, file.id).catch(() => {});
      throw error;
    }
  }

  /**
   * Takes a file over for appending: fences its last owner, settles what it left unfinished, continues at the end.
   * @throws {TartanError} ERR_NOT_FOUND, ERR_UNDECIDED, ERR_TOO_MANY_LOST, ERR_FENCED
   */
  async append(name: string): Promise<FileWriter> {
    return this.appendTo((await lookupFile(this.context.store, name)).id);
  }

  private async appendTo(fileId: number): Promise<FileWriter> {
    const file = await takeOver(this.context.store, fileId);
    const writer = await this.openWriter(file);
    // The caller has no writer yet to listen to: what goes wrong meanwhile is what this call rejects with.
    const ignore = (): void => {};
    writer.on('error', ignore);
    try {
      await recoverTail(this.context, writer.internals, file);
      writer.off('error', ignore);
      return writer;
    } catch (error) {
      writer.destroy();
      throw (await this.overtaken(file, error)) ?? error;
    }
  }

  /** Opens a file for reading, as committed now. @throws {TartanError} ERR_NOT_FOUND */
  async open(name: string): Promise<FileReader> {
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
   * @returns what was found and done; a stripe that can't be restored is counted there, not thrown
   * @throws {TartanError} ERR_NOT_FOUND, ERR_RING_MEMORY, ERR_MAP_UNAVAILABLE
   */
  async rebuild(name: string, options: RebuildOptions = {}): Promise<RebuildReport> {
    return rebuildFile(this.context, await lookupFile(this.context.store, name), false, options);
  }

  /** As rebuild(), after every node has read its units back and checked them, and parity was compared with data. */
  async scrub(name: string, options: RebuildOptions = {}): Promise<RebuildReport> {
    return rebuildFile(this.context, await lookupFile(this.context.store, name), true, options);
  }

  /**
   * Scrubs all files in turn, again and again, at a bounded rate, until the signal ends it. Rejects only for faults of
   * its own.
   */
  patrol(options: PatrolOptions = {}): Promise<PatrolReport> {
    return patrol(this.context, options);
  }

  /**
   * Moves everything that a node holds to other nodes; new files don't use it from now on. Files that somebody writes
   * move when they are closed; those whose writer is gone are taken over and closed. May be interrupted and called
   * again.
   *
   * @throws {TartanError} ERR_NOT_FOUND, ERR_NOT_ENOUGH_NODES, ERR_WOULD_LOSE, ERR_MAP_UNAVAILABLE
   */
  drain(id: string, options: DrainOptions = {}): Promise<DrainReport> {
    return drainNode(this.context, id, (fileId) => this.closeFor(fileId), options);
  }

  /**
   * Evens out what the nodes hold: one that was added gets its share.
   * @throws {TartanError} ERR_NOT_FOUND, ERR_ARGUMENT, ERR_MAP_UNAVAILABLE
   */
  rebalance(options: RebalanceOptions = {}): Promise<RebalanceReport> {
    return rebalance(this.context, (fileId) => this.closeFor(fileId), options);
  }

  /**
   * Looks after the cluster until the signal ends it: shares of nodes that are lost go to spares, what nodes lack that
   * came back is restored, files are scrubbed now and then. Rejects only for faults of its own.
   */
  repairer(options: RepairerOptions = {}): Promise<void> {
    return runRepairer(this.context, (fileId) => this.closeFor(fileId), options);
  }

  list(): Promise<FileRecord[]> {
    return listFiles(this.context.store);
  }

  stat(name: string): Promise<FileRecord> {
    return lookupFile(this.context.store, name);
  }

  map(): Promise<ClusterMap> {
    return readMap(this.context.store);
  }

  /**
   * Removes a file: its name is free at once, nodes free its units as they hear of it.
   *
   * @param which  a name, or the id of a file: then it is this file or none, whoever has its name now
   * @throws {TartanError} ERR_NOT_FOUND
   */
  async remove(which: string | number): Promise<void> {
    const { context } = this;
    const id = typeof which === 'number' ? which : (await lookupFile(context.store, which)).id;
    const file = await deleteFile(context.store, id);
    const nodes = new NodeSet(await readMap(context.store), {
      context,
      nodes: [...file.nodes, ...(file.moves ?? []).map(({ to }) => to)],
      role: 'reader',
      name: context.name,
      fileId: file.id,
      unitBytes: 0,
      slots: 0,
      receiveSlots: 0,
      transport: context.transport,
      heartbeatMs: context.heartbeatMs,
      deadlineMs: context.deadlineMs,
      owner: { locate: () => {}, onWritten: () => {}, onAnswer: () => {}, onLinkDown: () => {} },
    });
    try {
      await nodes.connectUp(context.deadlineMs);
      await Promise.all(
        nodes.upIndexes().map(async (index) => {
          try {
            await nodes.linkTo(index)?.request({ $case: 'deleteFile', value: { fileId: file.id } });
          } catch (error) {
            if (!isOperating(error)) throw error;
          }
        }),
      );
    } finally {
      await nodes.destroy('done');
    }
  }

  /** Ends everything; writers still open are destroyed, what they had not flushed is not acknowledged. */
  async close(): Promise<void> {
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
    const now = await readFile(this.context.store, file.id).catch(() => undefined);
    if (now === undefined || now.writerEpoch <= file.writerEpoch) return undefined;
    return new TartanError(
      'ERR_FENCED',
      `Cannot take over '${file.name}': writer epoch ${now.writerEpoch} has been given out since ${file.writerEpoch}`,
      { cause },
    );
  }

  private async openWriter(file: FileRecord): Promise<FileWriter> {
    const writer = await FileWriter.open(this.context, file, (closed) => this.writers.delete(closed));
    this.writers.add(writer);
    return writer;
  }
}
