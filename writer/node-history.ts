/**
 * What somebody who watches the map knows of each node: since when it is gone, or back, and whether what it may lack
 * has been looked for. Pure: clock readings come with the calls.
 *
 *     up ──gone──▶ down ──for downOutMs──▶ out        up again, or with another store ──for settleMs──▶ to be looked at
 *
 * Nothing of it is durable: whoever begins to watch counts from then on, and takes every node for one that came back.
 */
import type { ClusterMap, NodeEntry } from '../cluster/records.js';

interface Seen {
  goneAt: number | undefined;
  stamp: number;
  stampAt: number;
  lookedAt: number;
}

export class NodeHistory {
  private readonly seen = new Map<string, Seen>();

  /** @param present  ids of the nodes whose lease stands  @param now  ms of a monotonic clock */
  observe(map: ClusterMap, present: ReadonlySet<string>, now: number): void {
    for (const node of map.nodes) {
      const isGone = node.state === 'down' || !present.has(node.id),
        stamp = stampOf(node);
      const known = this.seen.get(node.id) ?? { goneAt: undefined, stamp: -1, stampAt: now, lookedAt: -1 };
      this.seen.set(node.id, known);
      known.goneAt = isGone ? (known.goneAt ?? now) : undefined;
      if (stamp !== known.stamp) Object.assign(known, { stamp, stampAt: now });
    }
    for (const id of this.seen.keys()) if (!map.nodes.some((node) => node.id === id)) this.seen.delete(id);
  }

  /**
   * Nodes that have been gone for so long that they are not waited for. More than half of all at once: something else
   * is wrong, none are.
   */
  out(now: number, downOutMs: number): string[] {
    const ids = [...this.seen]
      .filter(([, { goneAt }]) => goneAt !== undefined && now - goneAt >= downOutMs)
      .map(([id]) => id);
    return ids.length > Math.max(1, Math.floor(this.seen.size / 2)) ? [] : ids;
  }

  /** Nodes that are back, or have another store, since they were last looked at, and have been so for `settleMs`. */
  returned(now: number, settleMs: number): string[] {
    return [...this.seen]
      .filter(([, each]) => each.goneAt === undefined && each.stamp !== each.lookedAt && now - each.stampAt >= settleMs)
      .map(([id]) => id);
  }

  /** Whatever the node lacked until now is being looked for. */
  looked(id: string): void {
    const known = this.seen.get(id);
    if (known !== undefined) known.lookedAt = known.stamp;
  }
}

/** Another number: the node was down, or has another store, in between. */
function stampOf(node: NodeEntry): number {
  return Math.max(node.since ?? 0, node.storeSince ?? 0);
}
