/** What would be lost with one node more: asked before a node's store is given up. */
import { parseCode } from '../erasure/code/index.js';
import { NOBODY } from '../erasure/layout/index.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';

/**
 * A node that the map calls up may have died: without its lease nobody may count on it.
 *
 * Files of which some stripes would have more than m units on nodes that are down, if the node `id` were too. Cautious:
 * where a file is spread over more than k+m nodes not every stripe touches all of them.
 *
 * @param present  ids of the nodes whose lease stands
 */
export function filesAtRisk(
  map: ClusterMap,
  files: readonly FileRecord[],
  present: ReadonlySet<string>,
  id: string,
): FileRecord[] {
  const down = new Set(
    map.nodes.filter((node) => node.state === 'down' || !present.has(node.id)).map((node) => node.id),
  );
  down.add(id);
  return files.filter((file) => {
    if (file.length === 0 || !file.nodes.includes(id)) return false;
    return (
      file.nodes.filter((node) => node !== NOBODY && (down.has(node) || !map.nodes.some((entry) => entry.id === node)))
        .length > parseCode(file.code).m
    );
  });
}
