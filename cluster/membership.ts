/**
 * The cluster's identity and its map: which nodes and switches there are, and in which state. Typed operations on any
 * ClusterStore; every change of the map is a compare-and-swap of one key; one of the nodes raises its epoch by one.
 */
import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { TartanError, codeOf } from '../wire/errors.js';
import type { ClusterStore, Watch } from './cluster-store.js';
import { editJson, parseJson } from './compare-and-swap.js';
import { buildStateIndex } from './file-states.js';
import { CLUSTER_KEY, FILE_ID_KEY, MAP_KEY, NODE_LEASES, SWITCH_LEASES } from './keys.js';
import type { ClusterIdentity, ClusterMap, NodeEntry, SwitchEntry } from './records.js';
import { detach } from '../wire/front-door.js';

/** 2: with the index of files by state. */
const CLUSTER_FORMAT_VERSION = 2;
const WITHOUT_STATE_INDEX = 1;
/** As headers and frames carry it: 32 bits. */
const MAX_MAP_EPOCH = 0xffff_ffff;

/** An entry to register: without a state, a known member keeps its own and a new one begins 'down'. */
export type Registration<Entry extends { state: string }> = Omit<Entry, 'state'> & Partial<Pick<Entry, 'state'>>;

export interface StateOptions {
  /** Change the state only while this is the map's epoch: what the caller saw when it judged. */
  readonly ifEpoch?: number;
}

/**
 * Makes an empty cluster in a store: map epoch 1, no members, no files.
 *
 * @param options.uuid  given by simulations; random otherwise
 * @throws {TartanError} ERR_EXISTS when the store holds a cluster
 */
export async function createCluster(
  store: ClusterStore,
  options: { readonly uuid?: string } = {},
): Promise<ClusterIdentity> {
  const uuid = options.uuid ?? randomUUID();
  const identity: ClusterIdentity = {
    uuid,
    clusterId: Number.parseInt(uuid.slice(-8), 16) >>> 0,
    formatVersion: CLUSTER_FORMAT_VERSION,
  };
  const map: ClusterMap = { epoch: 1, changes: 1, nodes: [], switches: [] };
  const { succeeded } = await store.transact(
    [
      { key: CLUSTER_KEY, modRevision: 0 },
      { key: MAP_KEY, modRevision: 0 },
    ],
    [
      { put: CLUSTER_KEY, value: JSON.stringify(identity) },
      { put: MAP_KEY, value: JSON.stringify(map) },
      { put: FILE_ID_KEY, value: '0' },
    ],
  );
  if (!succeeded) throw new TartanError('ERR_EXISTS', 'Cannot create a cluster in this store: it holds one already');
  return identity;
}

/**
 * The cluster's identity. One of format 1 becomes one of this format first, once: no process of an older version may
 * use the store any more, and none that is started afterwards does.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no cluster in this store · ERR_STORE_VERSION: one of a newer format
 */
export async function readIdentity(store: ClusterStore): Promise<ClusterIdentity> {
  const row = await store.get(CLUSTER_KEY);
  if (!row) throw noCluster('read the cluster');
  const identity = parseJson<ClusterIdentity>(row);
  if (identity.formatVersion === WITHOUT_STATE_INDEX) {
    const guard = { key: CLUSTER_KEY, modRevision: row.modRevision };
    if (await buildStateIndex(store, guard))
      await store.transact(
        [guard],
        [
          {
            put: CLUSTER_KEY,
            value: JSON.stringify({ ...identity, formatVersion: CLUSTER_FORMAT_VERSION } satisfies ClusterIdentity),
          },
        ],
      );
    return readIdentity(store);
  }
  if (identity.formatVersion !== CLUSTER_FORMAT_VERSION) {
    throw new TartanError(
      'ERR_STORE_VERSION',
      `Cannot use the cluster ${identity.uuid}: its format is version ${identity.formatVersion}, this program ` +
        `knows ${CLUSTER_FORMAT_VERSION}`,
    );
  }
  return identity;
}

/** @throws {TartanError} ERR_NOT_FOUND: no cluster in this store */
export async function readMap(store: ClusterStore): Promise<ClusterMap> {
  const row = await store.get(MAP_KEY);
  if (!row) throw noCluster('read the map');
  return parseJson<ClusterMap>(row);
}

/** Ids of the nodes whose lease stands: one that the map calls up may have died since. */
export async function presentNodes(store: ClusterStore): Promise<Set<string>> {
  return new Set((await store.range(NODE_LEASES)).map(({ key }) => key.slice(NODE_LEASES.length)));
}

/** Ids of the software switches whose lease stands. */
export async function presentSwitches(store: ClusterStore): Promise<Set<string>> {
  return new Set((await store.range(SWITCH_LEASES)).map(({ key }) => key.slice(SWITCH_LEASES.length)));
}

/**
 * Follows the map: calls `onMap` with the present one soon after (never before this returns), then with newer ones;
 * `changes` ascends, and may skip when several come at once; the epoch is the same where only switches changed. A store
 * that does not answer is waited for.
 */
export function watchMap(store: ClusterStore, onMap: (map: ClusterMap) => void): Watch {
  let watch: Watch | undefined,
    isClosed = false,
    lastChange = 0;
  const offer = (value: string) => {
    const map = JSON.parse(value) as ClusterMap;
    if (isClosed || map.changes <= lastChange) return;
    lastChange = map.changes;
    onMap(map);
  };
  detach(
    readPresent(store).then((present) => {
      if (present === undefined) return;
      if (present.value !== undefined) offer(present.value);
      if (isClosed) return;
      try {
        watch = store.watch(
          MAP_KEY,
          (events) => {
            const value = events.findLast((event) => event.key === MAP_KEY && event.type === 'put')?.value;
            if (value !== undefined) offer(value);
          },
          present.revision,
        );
      } catch (error) {
        if (codeOf(error) !== 'ERR_CLOSED') throw error; // the store was closed meanwhile, onMap() may have done it
      }
    }),
  );
  return {
    close: () => {
      isClosed = true;
      watch?.close();
    },
  };
}

/**
 * Adds a node, or updates its address. A node that is known keeps its state unless the entry names one.
 *
 * @returns the resulting map, unchanged when it said all that already
 * @throws {TartanError} ERR_ARGUMENT: an id or address that cannot be meant · ERR_NOT_FOUND: no cluster in this store
 */
export async function registerNode(store: ClusterStore, entry: Registration<NodeEntry>): Promise<ClusterMap> {
  checkEntry('node', entry);
  return editMap(store, `register node ${entry.id}`, (map) => {
    const nodes = upsert<NodeEntry>(map.nodes, entry, 'down');
    return nodes === map.nodes ? map : withNodes(map, nodes);
  });
}

/** As registerNode, for a switch. */
export async function registerSwitch(store: ClusterStore, entry: Registration<SwitchEntry>): Promise<ClusterMap> {
  checkEntry('switch', entry);
  return editMap(store, `register switch ${entry.id}`, (map) => {
    const switches = upsert<SwitchEntry>(map.switches, entry, 'down');
    return switches === map.switches ? map : { ...map, changes: map.changes + 1, switches };
  });
}

/**
 * Marks a node up or down, whoever notices.
 *
 * @returns the resulting map, unchanged when the node had that state
 * @throws {TartanError} ERR_STALE_MAP: the epoch is not `ifEpoch` any more, and the state differs: judge again ·
 * ERR_NOT_FOUND: no such node
 */
export function setNodeState(
  store: ClusterStore,
  id: string,
  state: NodeEntry['state'],
  options: StateOptions = {},
): Promise<ClusterMap> {
  const attempt = `mark node ${id} ${state}`;
  return editMap(store, attempt, (map) => {
    const nodes = withState<NodeEntry>(map, map.nodes, id, state, attempt, options);
    return nodes === map.nodes ? map : withNodes(map, nodes);
  });
}

/**
 * Takes a node out of the map. Whether anything needs it is for the caller to know.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no such node · ERR_STALE_MAP: the epoch is not `ifEpoch` any more
 */
export function removeNode(store: ClusterStore, id: string, options: StateOptions = {}): Promise<ClusterMap> {
  const attempt = `remove node ${id}`;
  return editMap(store, attempt, (map) => {
    if (!map.nodes.some((node) => node.id === id))
      throw new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: the map of epoch ${map.epoch} does not have it`);
    if (options.ifEpoch !== undefined && options.ifEpoch !== map.epoch)
      throw new TartanError(
        'ERR_STALE_MAP',
        `Cannot ${attempt}: the map's epoch is ${map.epoch}, that was judged by ${options.ifEpoch}`,
      );
    return withNodes(
      map,
      map.nodes.filter((node) => node.id !== id),
    );
  });
}

/**
 * Marks what a node is for: a spare, a node that leaves, or neither. Disturbs nobody: the epoch stays.
 *
 * @throws {TartanError} ERR_NOT_FOUND: no such node
 */
export function setNodePurpose(
  store: ClusterStore,
  id: string,
  purpose: 'member' | 'spare' | 'leaving',
): Promise<ClusterMap> {
  const attempt = `make node ${id} a ${purpose === 'leaving' ? 'leaving one' : purpose}`;
  return editMap(store, attempt, (map) => {
    const old = map.nodes.find((node) => node.id === id);
    if (old === undefined)
      throw new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: the map of epoch ${map.epoch} does not have it`);
    if (purposeOf(old) === purpose) return map;
    return {
      ...map,
      changes: map.changes + 1,
      nodes: map.nodes.map((node) => (node === old ? withPurpose(node, purpose) : node)),
    };
  });
}

export function purposeOf(node: NodeEntry): 'member' | 'spare' | 'leaving' {
  return node.leaving === true ? 'leaving' : node.spare === true ? 'spare' : 'member';
}

/** The entry with that purpose. */
function withPurpose(
  { spare: _spare, leaving: _leaving, ...node }: NodeEntry,
  purpose: 'member' | 'spare' | 'leaving',
): NodeEntry {
  return {
    ...node,
    ...(purpose === 'spare' && { spare: true as const }),
    ...(purpose === 'leaving' && { leaving: true as const }),
  };
}

/** As setNodeState, for a switch. */
export function setSwitchState(
  store: ClusterStore,
  id: string,
  state: SwitchEntry['state'],
  options: StateOptions = {},
): Promise<ClusterMap> {
  const attempt = `mark switch ${id} ${state}`;
  return editMap(store, attempt, (map) => {
    const switches = withState<SwitchEntry>(map, map.switches, id, state, attempt, options);
    return switches === map.switches ? map : { ...map, changes: map.changes + 1, switches };
  });
}

function editMap(store: ClusterStore, attempt: string, edit: (map: ClusterMap) => ClusterMap): Promise<ClusterMap> {
  return editJson<ClusterMap>(store, MAP_KEY, attempt, (map) => {
    if (!map) throw noCluster(attempt);
    return edit(map);
  });
}

/**
 * The map's value, and a revision no newer than it. When the store does not answer: revision 0, from which a watch
 * delivers the map as soon as it does. Undefined when the store is closed: there is nothing to follow.
 */
async function readPresent(store: ClusterStore): Promise<{ revision: number; value: string | undefined } | undefined> {
  try {
    // In this order: a change between the two is delivered twice, never missed.
    const revision = await store.revision();
    return { revision, value: (await store.get(MAP_KEY))?.value };
  } catch (error) {
    if (codeOf(error) === 'ERR_CLOSED') return undefined;
    if (codeOf(error) !== 'ERR_MAP_UNAVAILABLE') throw error;
    return { revision: 0, value: undefined };
  }
}

/** The next epoch, which entries whose state or store it changes remember. */
function withNodes(map: ClusterMap, nodes: readonly NodeEntry[]): ClusterMap {
  const epoch = map.epoch + 1;
  if (epoch > MAX_MAP_EPOCH)
    throw new TartanError('ERR_CAPACITY', `Cannot change the nodes of the map: its epoch is ${map.epoch}, the last`);
  const stamped = nodes.map((node) => {
    const old = map.nodes.find(({ id }) => id === node.id);
    const isNewStore = node.store !== undefined && old?.store !== node.store;
    const storeSince = isNewStore ? epoch : old?.storeSince;
    const since = old?.state === node.state && !(isNewStore && old.store !== undefined) ? old.since : epoch;
    return { ...node, ...(since !== undefined && { since }), ...(storeSince !== undefined && { storeSince }) };
  });
  return { ...map, epoch, changes: map.changes + 1, nodes: stamped };
}

/** The list with the entry added or updated; the very same list when that changes nothing. */
function upsert<Entry extends NodeEntry | SwitchEntry>(
  entries: readonly Entry[],
  entry: Registration<Entry>,
  initial: Entry['state'],
): readonly Entry[] {
  const old = entries.find(({ id }) => id === entry.id);
  const { id, host, port, controlPort } = entry;
  const stores = entry as { readonly store?: string },
    known = old as { readonly store?: string } | undefined;
  const store = stores.store ?? known?.store;
  const { packets } = entry;
  // What a node is for is not its own to say.
  const { spare, leaving } = (old ?? {}) as Partial<NodeEntry>;
  const made = {
    id,
    host,
    port,
    state: entry.state ?? old?.state ?? initial,
    controlPort,
    ...(store !== undefined && { store }),
    ...(packets !== undefined && { packets }),
    ...(spare && { spare }),
    ...(leaving && { leaving }),
  } as Entry;
  if (!old) return [...entries, made];
  if (
    old.host === host &&
    old.port === port &&
    old.controlPort === controlPort &&
    old.state === made.state &&
    known?.store === store &&
    isDeepStrictEqual(old.packets, packets)
  )
    return entries;
  return entries.map((other) => (other === old ? made : other));
}

function withState<Entry extends NodeEntry | SwitchEntry>(
  map: ClusterMap,
  entries: readonly Entry[],
  id: string,
  state: Entry['state'],
  attempt: string,
  { ifEpoch }: StateOptions,
): readonly Entry[] {
  const old = entries.find((entry) => entry.id === id);
  if (!old) throw new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: the map of epoch ${map.epoch} does not have it`);
  if (old.state === state) return entries;
  if (ifEpoch !== undefined && ifEpoch !== map.epoch) {
    throw new TartanError(
      'ERR_STALE_MAP',
      `Cannot ${attempt}: the map's epoch is ${map.epoch}, that was judged by ${ifEpoch}`,
    );
  }
  return entries.map((entry) => (entry === old ? { ...entry, state } : entry));
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

function checkEntry(
  kind: string,
  { id, host, port, controlPort }: Registration<NodeEntry> | Registration<SwitchEntry>,
): void {
  const isPort = (value: number) => Number.isInteger(value) && value >= 0 && value <= 65_535;
  const fault = !ID.test(id)
    ? 'an id is 1 to 64 letters, digits, dots, dashes and underscores'
    : host === '' || /\s/.test(host)
      ? `'${host}' is not a host`
      : !isPort(port) || port === 0
        ? `${port} is not a port`
        : !isPort(controlPort)
          ? `${controlPort} is not a control port`
          : undefined;
  if (fault !== undefined) throw new TartanError('ERR_ARGUMENT', `Cannot register ${kind} '${id}': ${fault}`);
}

function noCluster(attempt: string): TartanError {
  return new TartanError('ERR_NOT_FOUND', `Cannot ${attempt}: this store holds no cluster`);
}
