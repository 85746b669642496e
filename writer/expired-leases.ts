/**
 * Whom the map calls up and whose lease has run out is called down, so that those who come next need not find out by a
 * deadline: nodes, and software switches. The agent of a packet switch may be gone while the switch itself forwards.
 */
import type { ClusterStore } from '../cluster/cluster-store.js';
import { presentNodes, presentSwitches, readMap, setNodeState, setSwitchState } from '../cluster/membership.js';
import type { ClusterMap } from '../cluster/records.js';
import { codeOf } from '../wire/errors.js';

/**
 * The map, and whose leases stand. In this order: who comes up has its lease first, so that one whom this map calls up
 * and who is not among them has lost it.
 */
export interface Presence {
  readonly map: ClusterMap;
  readonly nodes: ReadonlySet<string>;
  readonly switches: ReadonlySet<string>;
}

export async function readPresence(store: ClusterStore): Promise<Presence> {
  const map = await readMap(store);
  const [nodes, switches] = await Promise.all([presentNodes(store), presentSwitches(store)]);
  return { map, nodes, switches };
}

/**
 * Proposes down all that should be, each only while the map's epoch is the one that was judged.
 * @returns ids of those marked down
 */
export async function markExpired(store: ClusterStore, { map, nodes, switches }: Presence): Promise<string[]> {
  const gone = [
    ...map.nodes
      .filter(({ id, state }) => state === 'up' && !nodes.has(id))
      .map(({ id }) => ({ id, propose: setNodeState })),
    ...map.switches
      .filter(({ id, state, packets }) => state !== 'down' && packets === undefined && !switches.has(id))
      .map(({ id }) => ({ id, propose: setSwitchState })),
  ];
  const marked: string[] = [];
  let { epoch } = map;
  for (const { id, propose } of gone)
    try {
      ({ epoch } = await propose(store, id, 'down', { ifEpoch: epoch }));
      marked.push(id);
    } catch (error) {
      // Something has changed meanwhile: it is judged again by the next look.
      if (codeOf(error) !== 'ERR_STALE_MAP' && codeOf(error) !== 'ERR_NOT_FOUND') throw error;
      break;
    }
  return marked;
}
