/** One machine's cluster: the store, one switch, some nodes. `up`, `down` and the demo are made of this. */
import { existsSync, mkdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { isEtcdLocation } from '../cluster/etcd-location.js';
import { listFiles } from '../cluster/files.js';
import { createCluster, readMap } from '../cluster/membership.js';
import { openClusterStore, reserveStore } from '../cluster/open-store.js';
import { presentSince } from '../cluster/presence.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { startChild, stopProcess } from './child-process.js';
import { localError } from './local-files.js';
import { giveBackUnits, reserveUnits } from './reserved-store.js';
import type { ProcessRecord, ProcessRole, StartedWith, StateDirectory } from './state-directory.js';

export interface ClusterOptions {
  /** Of a new cluster. */
  readonly nodes: number;
  /** One that exists gets new nodes until it has so many. Default: it has those that it has. */
  readonly grows?: boolean;
  readonly host: string;
  /** Switch at basePort, its control at + 1, node i at + 1 + i; 0: whatever is free. */
  readonly basePort: number;
  readonly durability: string;
  readonly transport: string;
  /** Default 'soft'. */
  readonly device?: string;
  /** Bytes, of each process. */
  readonly ringMemoryBytes: number;
  /** Bytes of each node's store. */
  readonly sizeBytes: number;
  /** A new node's store takes all its bytes at once. */
  readonly reserves?: boolean;
  /** The processes end with this one. */
  readonly dependent: boolean;
  /** Of the cluster; without it, all of it listens on loopback only. */
  readonly secret?: string | undefined;
  /** Absent: none runs. */
  readonly repairer?: RepairerLimits | undefined;
}

/** What the repairer is told; seconds, bytes a second. */
export interface RepairerLimits {
  readonly downOutSeconds: number;
  readonly settleSeconds: number;
  readonly scrubSeconds: number;
  readonly bytesPerSecond: number;
}

export const SWITCH_ID = 's1';
const REPAIRER_ID = 'r1';
const STOP_MS = 5_000;
/** Laid aside for the cluster store: thousands of changes on a file system that is full. */
const STORE_RESERVE_BYTES = 16 << 20;

/** Makes the cluster store unless it is there. */
export async function createStore(state: StateDirectory): Promise<void> {
  state.create();
  state.keepCluster();
  const store = await openClusterStore(state.cluster, { create: true });
  try {
    await reserveStore(state.cluster, STORE_RESERVE_BYTES);
    if ((await store.get('cluster')) === undefined) await createCluster(store);
  } finally {
    await store.close();
  }
}

/**
 * Starts nodes n1 …, of a cluster that exists those that it has on this machine, then the switch and the repairer, and
 * returns when all are ready. After an error nothing that it started runs.
 *
 * @throws {TartanError} ERR_IN_USE when the cluster runs already, or a port is taken
 */
export async function startCluster(
  state: StateDirectory,
  options: ClusterOptions,
  onReady: (record: ProcessRecord) => void = () => {},
  signal?: AbortSignal,
): Promise<ProcessRecord[]> {
  state.create();
  const running = state.running();
  if (running.length > 0)
    throw new TartanError(
      'ERR_IN_USE',
      `Cannot start a cluster at ${state.path}: ${running.map((each) => each.id).join(', ')} of it already ` +
        `run; \`tartan down\` ends them`,
    );
  await createStore(state);
  const ids = await nodesToStart(state, options);
  if (options.basePort > 0) await requireFreePorts(options, ids);
  makeNodeFolders(state, options, ids);
  state.keepStartedWith(startedWith(options));
  state.write([]);
  try {
    // Settled, not raced: none may still be starting when the others are stopped.
    const settled = await Promise.allSettled(ids.map((id) => startNode(state, options, id).then(onReady)));
    for (const each of settled) if (each.status === 'rejected') throw each.reason;
    signal?.throwIfAborted();
    const others = await Promise.allSettled(
      [
        startSwitch(state, options),
        ...(options.repairer === undefined ? [] : [startRepairer(state, options, options.repairer)]),
      ].map((each) => each.then(onReady)),
    );
    for (const each of others) if (each.status === 'rejected') throw each.reason;
    signal?.throwIfAborted();
  } catch (error) {
    await stopCluster(state, 0);
    throw error;
  }
  return state.processes();
}

/** All of them, before anything runs, or none. */
function makeNodeFolders(state: StateDirectory, options: ClusterOptions, ids: readonly string[]): void {
  const made: string[] = [];
  try {
    for (const id of ids) if (makeNodeFolder(state, options, id)) made.push(id);
  } catch (error) {
    for (const id of made) giveBackUnits(state.node(id));
    throw error;
  }
}

/** Those that the map has and whose stores are here: nodes were added, and removed for good, since the first start. */
async function nodesToStart(state: StateDirectory, { nodes, grows = false }: ClusterOptions): Promise<string[]> {
  const store = await openClusterStore(state.cluster);
  const [map, files, present] = await Promise.all([readMap(store), listFiles(store), presentSince(store)]).finally(() =>
    store.close(),
  );
  const ids = map.nodes.map(({ id }) => id).filter((id) => existsSync(state.node(id)));
  // What a crash left of this folder's own goes by itself; what is present otherwise runs somewhere else.
  const own = new Set(state.processes().map(({ id }) => id));
  const others = [...present.keys()].filter(
    (id) => !own.has(id) && (ids.length === 0 || id === SWITCH_ID || ids.includes(id)),
  );
  if (others.length > 0)
    throw new TartanError(
      'ERR_IN_USE',
      `Cannot start a cluster at ${state.path}: its store, ${state.cluster}, serves one that runs elsewhere ` +
        `(${others.join(', ')}); end that, or, if it was killed a moment ago, try again in some seconds`,
    );
  const highest = Math.max(0, ...map.nodes.map(({ id }) => Number(/^n(\d+)$/.exec(id)?.[1] ?? 0)));
  // Without files it may be that its first start was cut short.
  const wanted = ids.length === 0 || files.length === 0 || grows ? nodes : 0;
  for (let number = highest + 1; ids.length < wanted; number++) ids.push(`n${number}`);
  return ids;
}

/**
 * How one process of a cluster that was started here is started again.
 *
 * @throws {TartanError} ERR_IN_USE: it runs · ERR_NOT_RUNNING: no cluster was ever started in this folder
 */
export function againOptions(state: StateDirectory, id: string, secret: string | undefined): ClusterOptions {
  const running = state.running(),
    itself = running.find((each) => each.id === id);
  if (itself !== undefined)
    throw new TartanError('ERR_IN_USE', `Cannot start ${id}: it runs, as process ${itself.identity.pid}`);
  const before = state.startedWith();
  if (before === undefined)
    throw new TartanError(
      'ERR_NOT_RUNNING',
      `Cannot start ${id}: nothing in ${state.path} says how its cluster was started; \`tartan up\` starts all of it`,
    );
  return { ...before, nodes: 1, dependent: false, secret };
}

/** What is remembered of options. */
export function startedWith(options: ClusterOptions): StartedWith {
  const { host, basePort, durability, transport, device = 'soft', ringMemoryBytes, sizeBytes } = options;
  return { host, basePort, durability, transport, device, ringMemoryBytes, sizeBytes };
}

export async function startNode(state: StateDirectory, options: ClusterOptions, id: string): Promise<ProcessRecord> {
  makeNodeFolder(state, options, id);
  return start(state, options, 'node', id, [
    '--store',
    state.node(id),
    '--port',
    String(portOf(id, options)),
    '--durability',
    options.durability,
    '--size',
    String(options.sizeBytes),
  ]);
}

/** @returns whether a store was made in it */
function makeNodeFolder(state: StateDirectory, { sizeBytes, reserves = false }: ClusterOptions, id: string): boolean {
  const folder = state.node(id);
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw localError(`Cannot make a store for ${id} in ${folder}`, error);
  }
  return reserves && reserveUnits(folder, id, sizeBytes);
}

function portOf(id: string, { basePort }: ClusterOptions): number {
  return basePort > 0 ? basePort + 1 + Number(id.slice(1)) : 0;
}

export function startSwitch(state: StateDirectory, options: ClusterOptions): Promise<ProcessRecord> {
  return start(state, options, 'switch', SWITCH_ID, [
    '--port',
    String(options.basePort),
    '--control-port',
    String(options.basePort > 0 ? options.basePort + 1 : 0),
  ]);
}

function startRepairer(state: StateDirectory, options: ClusterOptions, limits: RepairerLimits): Promise<ProcessRecord> {
  return start(state, options, 'repairer', REPAIRER_ID, [
    '--down-out',
    String(limits.downOutSeconds),
    '--settle',
    String(limits.settleSeconds),
    '--scrub-interval',
    String(limits.scrubSeconds),
    '--rate',
    String(limits.bytesPerSecond),
  ]);
}

async function start(
  state: StateDirectory,
  options: ClusterOptions,
  role: ProcessRole,
  id: string,
  args: readonly string[],
): Promise<ProcessRecord> {
  const device = options.device ?? 'soft';
  const started = await startChild(
    {
      id,
      role,
      host: options.host,
      logs: state.logs,
      dependent: options.dependent,
      // Not an argument, which everybody may read; never inherited, so that all of a cluster agrees.
      env: { TARTAN_SECRET: options.secret ?? '' },
      args: [
        '--cluster',
        state.cluster,
        '--id',
        id,
        '--host',
        options.host,
        ...args,
        '--ring-memory',
        String(options.ringMemoryBytes),
        '--transport',
        options.transport,
        '--device',
        device,
      ],
    },
    (spawned) => {
      state.record(spawned);
    },
  );
  const record = { ...started, device };
  try {
    state.record(record);
  } catch (error) {
    await stopProcess(started.identity, STOP_MS); // nobody could reach it
    throw error;
  }
  return record;
}

/**
 * Ends the processes that `startCluster` recorded, nodes last (so that nobody sees them fail), and
 * forgets them.
 *
 * @param graceMs  time to end by themselves, before they are killed
 * @returns what became of each
 */
export async function stopCluster(
  state: StateDirectory,
  graceMs = STOP_MS,
): Promise<{ id: string; how: 'ended' | 'killed' | 'gone' }[]> {
  // By name, not by who was ready first: what `down` prints is the same every time.
  const processes = state.processes().sort((a, b) => a.id.localeCompare(b.id, 'en', { numeric: true }));
  const stop = (role: ProcessRole) =>
    Promise.all(
      processes
        .filter((each) => each.role === role)
        .map(async (each) => ({ id: each.id, how: await stopProcess(each.identity, graceMs) })),
    );
  const stopped = [...(await stop('repairer')), ...(await stop('switch')), ...(await stop('node'))];
  state.forget();
  return stopped;
}

/** Removes everything that a cluster keeps: its keys in an etcd, and what is in its folder. */
export async function wipe(state: StateDirectory): Promise<void> {
  if (isEtcdLocation(state.cluster)) await removeKeys(state.cluster);
  state.remove();
}

async function removeKeys(location: string): Promise<void> {
  const store = await openClusterStore(location);
  try {
    const keys = (await store.range('')).map(({ key }) => key);
    for (let at = 0; at < keys.length; at += 100)
      await store.transact(
        [],
        keys.slice(at, at + 100).map((key) => ({ delete: key })),
      );
  } finally {
    await store.close();
  }
}

async function requireFreePorts(options: ClusterOptions, ids: readonly string[]): Promise<void> {
  const { basePort } = options;
  for (const port of [basePort, basePort + 1, ...ids.map((id) => portOf(id, options))]) {
    await new Promise<void>((resolve, reject) => {
      const server = createServer();
      server.once('error', (error) => {
        const code = codeOf(error) === 'EADDRINUSE' ? 'ERR_IN_USE' : 'ERR_LISTEN';
        reject(new TartanError(code, `Cannot use port ${port} on ${options.host}: ${error.message}`, { cause: error }));
      });
      server.listen({ host: options.host, port, exclusive: true }, () => {
        server.close(() => {
          resolve();
        });
      });
    });
  }
}
