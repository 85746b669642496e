/** `tartan node`: the storage nodes of a cluster, and those that run on this machine. */
import { existsSync, renameSync, rmSync } from 'node:fs';
import { filesAtRisk } from './at-risk.js';
import { listFiles } from '../cluster/files.js';
import { nodeLeaseKey } from '../cluster/keys.js';
import { presentNodes, purposeOf, readMap, removeNode, setNodePurpose } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { stopProcess } from './child-process.js';
import type { ClusterOptions } from './cluster-processes.js';
import { againOptions, startNode } from './cluster-processes.js';
import { interruptible } from './interruption.js';
import type { ClientOptions } from './file-commands.js';
import { table } from './quantities.js';
import { repair } from './repair-commands.js';
import type { ProcessRecord, StateDirectory } from './state-directory.js';

const STOP_MS = 5_000;
/** Files that a message names. */
const NAMED = 3;

/** What a node that is started here is told; the rest it has in common with those that run. */
export type NodeOptions = Pick<
  ClusterOptions,
  'durability' | 'transport' | 'ringMemoryBytes' | 'sizeBytes' | 'reserves' | 'secret'
>;

export async function listNodes(state: StateDirectory, json: boolean): Promise<void> {
  const { map, files, present } = await look(state, (store) => readAll(store));
  const running = new Map(state.running().map((each) => [each.id, each.identity.pid]));
  const nodes = [...map.nodes].sort((a, b) => a.id.localeCompare(b.id, 'en', { numeric: true }));
  const rows = nodes.map((node) => ({
    id: node.id,
    state: node.state,
    purpose: purposeOf(node),
    present: present.has(node.id),
    host: node.host,
    port: node.port,
    pid: running.get(node.id) ?? null,
    store: node.store ?? null,
    since: node.since ?? null,
    files: files.filter((file) => file.nodes.includes(node.id)).length,
  }));
  if (json) process.stdout.write(`${JSON.stringify(rows)}\n`);
  else
    process.stdout.write(
      table([
        ['ID', 'STATE', 'ADDRESS', 'PID', 'FILES', 'STORE'],
        ...rows.map((each) => [
          each.id,
          [each.state, ...(each.present ? [] : ['silent']), ...(each.purpose === 'member' ? [] : [each.purpose])].join(
            ', ',
          ),
          `${each.host}:${each.port}`,
          String(each.pid ?? '-'),
          String(each.files),
          each.store ?? '-',
        ]),
      ]) + '\n',
    );
}

/**
 * Starts one node more on this machine, with the next free id. Files made from now on use it too, unless it is a spare.
 * @returns its id
 */
export async function addNode(
  state: StateDirectory,
  options: NodeOptions & { readonly spare: boolean },
  json: boolean,
): Promise<string> {
  return state.locked(async () => {
    const running = state.requireRunning();
    const { nodes } = await look(state, (store) => readMap(store));
    const numbers = [...nodes.map(({ id }) => id), ...state.processes().map(({ id }) => id)].map((id) =>
      Number(/^n(\d+)$/.exec(id)?.[1] ?? 0),
    );
    const id = `n${Math.max(0, ...numbers) + 1}`;
    const record = await startNode(state, startOptions(running, options), id);
    if (options.spare) await look(state, (store) => setNodePurpose(store, id, 'spare'));
    if (json) process.stdout.write(`${JSON.stringify(record)}\n`);
    else
      process.stdout.write(
        `${id} runs on port ${record.port}; ` +
          (options.spare ? 'it waits as a spare' : 'files made from now on use it') +
          '\n',
      );
    return id;
  });
}

/**
 * Starts a node of this machine again, with the store that it has.
 *
 * @throws {TartanError} ERR_IN_USE: it runs · ERR_NOT_FOUND: no such node has its store here
 */
export async function startNodeAgain(
  state: StateDirectory,
  id: string,
  secret: string | undefined,
  json: boolean,
): Promise<void> {
  if (!/^n\d+$/.test(id) || !existsSync(state.node(id)))
    throw new TartanError(
      'ERR_NOT_FOUND',
      `Cannot start node '${id}': there is no store of it in ${state.path}; \`tartan node add\` makes a new node`,
    );
  againOptions(state, id, secret);
  await state.locked(async () => {
    const store = await openClusterStore(state.cluster);
    const { nodes } = await readMap(store).finally(() => store.close());
    if (!nodes.some((node) => node.id === id))
      throw new TartanError('ERR_NOT_FOUND', `Cannot start node '${id}': it was removed from the cluster`);
    const record = await startNode(state, againOptions(state, id, secret), id);
    if (json) process.stdout.write(`${JSON.stringify(record)}\n`);
    else process.stdout.write(`${id} runs on port ${record.port}\n`);
  });
}

/**
 * Gives a node of this machine a new, blank store under the same id, and restores what the old one held. Before, what
 * the other nodes lack is restored without it: if that can't be, it goes on with its old store. That is set aside in
 * the end, or removed with `discard`.
 *
 * @throws {TartanError} ERR_WOULD_LOSE when so many nodes are down that its store is still needed; ERR_NOT_FOUND;
 *         ERR_IN_USE
 *   while another rebuilds; what rebuild throws: then the node runs, and `tartan rebuild` goes on. ERR_INTERRUPTED: it
 *   runs with the one store or the other; killed at any step, the same command finishes it
 */
export async function replaceNode(
  id: string,
  options: NodeOptions & {
    readonly discard: boolean;
    readonly rebuild: boolean;
    readonly bytesPerSecond: number | undefined;
  },
  client: ClientOptions,
): Promise<void> {
  const { state } = client;
  let outcome = 'nothing has changed';
  const replace = async (signal: AbortSignal): Promise<void> => {
    const running = state.requireRunning();
    const record = state.processes().find((each) => each.id === id && each.role === 'node');
    if (record === undefined)
      throw new TartanError(
        'ERR_NOT_FOUND',
        `Cannot replace node '${id}': it is not one of this machine's; on its own machine stop it, start it ` +
          `with another --store, then \`tartan rebuild\``,
      );
    await look(state, async (store) => {
      const { map, files, present } = await readAll(store);
      const lost = filesAtRisk(map, files, present, id);
      if (lost.length > 0)
        throw wouldLose(
          `replace the store of node ${id}`,
          `with what is down (${downOf(map, present, id)}) stripes of ${named(lost)} would be lost; bring ` +
            'those nodes back first',
        );
    });
    signal.throwIfAborted();
    const goOn = async (): Promise<void> => {
      await startNode(state, startOptions(running, options), id);
      outcome = `${id} goes on with the store that it had`;
    };
    outcome = `${id} is stopped; \`tartan node start ${id}\` starts it with the store that it had`;
    await stopProcess(record.identity, STOP_MS);
    // The others must do without it: whatever they lack is restored before its store is given up. Nodes that are only
    // being filled show here too: the map does not tell them from full ones.
    await repair({ ...client, names: [], verify: false, bytesPerSecond: options.bytesPerSecond, quiet: true }).catch(
      async (error: unknown) => {
        await goOn();
        if (codeOf(error) !== 'ERR_TOO_MANY_LOST') throw error;
        throw wouldLose(
          `replace the store of node ${id}`,
          `the other nodes lack too much (${(error as Error).message})`,
        );
      },
    );
    if (signal.aborted) {
      await goOn();
      signal.throwIfAborted();
    }
    // From here to the next start it is not worth an interruption.
    const aside = setAside(state, id, options.discard);
    const started = await startNode(state, startOptions(running, options), id);
    outcome = `${id} runs with a blank store; \`tartan rebuild\` fills it`;
    if (!client.json)
      process.stdout.write(
        `${id} runs with a blank store on ` +
          `port ${started.port}${aside === undefined ? '' : `; the old one is ${aside}`}\n`,
      );
  };
  await interruptible(
    () => `Replacing the store of node ${id} was interrupted: ${outcome}`,
    (signal) => state.locked(() => replace(signal)),
  );
  if (options.rebuild) await repair({ ...client, names: [], verify: false, bytesPerSecond: options.bytesPerSecond });
}

/**
 * Takes a node out of the cluster for good.
 *
 * @throws {TartanError} ERR_WOULD_LOSE while files keep units there; ERR_NOT_FOUND; ERR_IN_USE while it runs elsewhere
 */
export async function removeNodeFor(state: StateDirectory, id: string, json: boolean): Promise<void> {
  await state.locked(() =>
    look(state, async (store) => {
      const { map, files } = await readAll(store);
      if (!map.nodes.some((node) => node.id === id))
        throw new TartanError(
          'ERR_NOT_FOUND',
          `Cannot remove node '${id}': the cluster has ${map.nodes.map((node) => node.id).join(', ')}`,
        );
      const needed = files.filter((file) => file.nodes.includes(id));
      if (needed.length > 0)
        throw wouldLose(
          `remove node ${id}`,
          `${named(needed)} keep${needed.length === 1 ? 's' : ''} units there; \`tartan node drain ${id}\` moves them`,
        );
      const record = state.processes().find((each) => each.id === id && each.role === 'node');
      if (record !== undefined) await stopProcess(record.identity, STOP_MS);
      else if ((await store.get(nodeLeaseKey(id))) !== undefined)
        throw new TartanError(
          'ERR_IN_USE',
          `Cannot remove node '${id}': it runs on another machine; stop it there first`,
        );
      const now = await removeNode(store, id);
      // Whoever made a file meanwhile counted on it.
      const late = (await listFiles(store)).filter((file) => file.nodes.includes(id));
      if (record !== undefined) state.write(state.processes().filter((each) => each.id !== id));
      if (json) process.stdout.write(`${JSON.stringify({ removed: id, mapEpoch: now.epoch })}\n`);
      else process.stdout.write(`${id} is removed; its store stays in ${state.node(id)}\n`);
      if (late.length > 0)
        process.stderr.write(`${named(late)} ${late.length === 1 ? 'was' : 'were'} made meanwhile and counted on it\n`);
    }),
  );
}

function startOptions(running: readonly ProcessRecord[], options: NodeOptions): ClusterOptions {
  const like = running.find((each) => each.role === 'node') ?? running[0]!;
  const { durability, transport, ringMemoryBytes, sizeBytes, reserves, secret } = options;
  return {
    durability,
    transport,
    ringMemoryBytes,
    sizeBytes,
    secret,
    ...(reserves !== undefined && { reserves }),
    nodes: 1,
    host: like.host,
    basePort: 0,
    dependent: false,
    ...(like.device === undefined ? {} : { device: like.device }),
  };
}

/** @returns where the old store is now; undefined when it is gone */
function setAside(state: StateDirectory, id: string, discard: boolean): string | undefined {
  const path = state.node(id);
  if (!existsSync(path)) return undefined;
  if (discard) {
    rmSync(path, { recursive: true });
    return undefined;
  }
  let number = 1;
  while (existsSync(`${path}.replaced-${number}`)) number++;
  renameSync(path, `${path}.replaced-${number}`);
  return `${path}.replaced-${number}`;
}

async function look<T>(state: StateDirectory, action: (store: ClusterStore) => Promise<T>): Promise<T> {
  state.requireRunning();
  const store = await openClusterStore(state.cluster);
  try {
    return await action(store);
  } finally {
    await store.close();
  }
}

async function readAll(store: ClusterStore): Promise<{ map: ClusterMap; files: FileRecord[]; present: Set<string> }> {
  const [map, files, present] = await Promise.all([readMap(store), listFiles(store), presentNodes(store)]);
  return { map, files, present };
}

function downOf(map: ClusterMap, present: ReadonlySet<string>, id: string): string {
  return (
    map.nodes
      .filter((node) => (node.state === 'down' || !present.has(node.id)) && node.id !== id)
      .map((node) => node.id)
      .join(', ') || 'none'
  );
}

function named(files: readonly FileRecord[]): string {
  const names = files
    .slice(0, NAMED)
    .map(({ name }) => `'${name}'`)
    .join(', ');
  return files.length > NAMED ? `${names} and ${files.length - NAMED} more files` : names;
}

function wouldLose(attempt: string, why: string): TartanError {
  return new TartanError('ERR_WOULD_LOSE', `Cannot ${attempt}: ${why}`);
}
