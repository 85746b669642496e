/**
 * Operation graphs, prepared once per shape and shared by all instances.
 *
 * A node is one piece of work (write a unit, read a unit, encode, commit); an arrow says what must be done before.
 * Nodes without predecessors hang on the head. The numbers are small, so a template is a handful of typed arrays.
 */
export const NodeKind = {
  /** Make a data or parity unit durable on its node; argument: unit index. */
  WRITE_UNIT: 1,
  /** Bring a unit into memory; argument: unit index. */
  READ_UNIT: 2,
  /** Compute parity, missing units, or digests alone. */
  ENCODE: 3,
  /** The operation's last word: acknowledge, deliver. */
  COMMIT: 4,
} as const;

export interface GraphNode {
  readonly kind: number;
  readonly argument: number /** Indexes of nodes that must be done first. */;
  readonly after: readonly number[];
}

export interface GraphTemplate {
  readonly name: string;
  readonly nodeCount: number;
  readonly kinds: Uint8Array;
  readonly args: Uint8Array;
  /** Number of predecessors per node. */
  readonly waits: Uint8Array;
  /** Successors of node i: successors[successorStart[i] … successorStart[i + 1]). */
  readonly successorStart: Uint16Array;
  readonly successors: Uint8Array;
}

/** Most nodes in one graph: 36 units, an encode and a commit fit. */
export const MAX_GRAPH_NODES = 64;

/**
 * @param nodes in any order without cycles; at most MAX_GRAPH_NODES
 * @throws {RangeError} when the graph has a cycle, an unknown predecessor or too many nodes: a bug of the caller
 */
export function graphTemplate(name: string, nodes: readonly GraphNode[]): GraphTemplate {
  const count = nodes.length;
  if (count === 0 || count > MAX_GRAPH_NODES)
    throw new RangeError(`graph '${name}' has ${count} nodes, expected 1 to ${MAX_GRAPH_NODES}`);
  const waits = new Uint8Array(count),
    starts = new Uint16Array(count + 1);
  const followers: number[][] = nodes.map(() => []);
  nodes.forEach((node, i) => {
    for (const before of node.after) {
      if (before < 0 || before >= count || before === i)
        throw new RangeError(`graph '${name}': node ${i} waits for ${before}, which is no other node`);
      followers[before]!.push(i);
      waits[i]!++;
    }
  });
  followers.forEach((list, i) => {
    starts[i + 1] = starts[i]! + list.length;
  });
  assertAcyclic(name, waits, followers);
  return {
    name,
    nodeCount: count,
    waits,
    successorStart: starts,
    successors: Uint8Array.from(followers.flat()),
    kinds: Uint8Array.from(nodes, (node) => node.kind),
    args: Uint8Array.from(nodes, (node) => node.argument),
  };
}

function assertAcyclic(name: string, waits: Uint8Array, followers: readonly (readonly number[])[]): void {
  const left = Uint8Array.from(waits);
  const ready = [...left.keys()].filter((i) => left[i] === 0);
  let seen = 0;
  for (let node = ready.pop(); node !== undefined; node = ready.pop()) {
    seen++;
    for (const next of followers[node]!) if (--left[next]! === 0) ready.push(next);
  }
  if (seen !== waits.length) throw new RangeError(`graph '${name}' has a cycle`);
}

/**
 * The full-stripe write. Data units leave at once where their headers are sealed already (the switch); otherwise
 * (`sealed` false: a writer in host mode) everything waits for the encode that seals them.
 *
 *          ┌▶ WRITE data 0 … k−1 ─────────┐               ENCODE ─▶ WRITE 0 … k+m−1 ─▶ COMMIT
 *   head ──┤                              ├▶ COMMIT
 *          └▶ ENCODE ─▶ WRITE parity 0…m−1┘
 *
 * @param missing unit indexes that are not written (their nodes are marked down)
 * Node i is the write of unit i; missing units have no node, so use `unitNode` to find one.
 */
export function fullStripeWrite(
  k: number,
  m: number,
  sealed: boolean,
  missing: ReadonlySet<number> = new Set(),
): GraphTemplate {
  const nodes: GraphNode[] = [{ kind: NodeKind.ENCODE, argument: 0, after: [] }];
  for (let unit = 0; unit < k + m; unit++) {
    if (!missing.has(unit))
      nodes.push({ kind: NodeKind.WRITE_UNIT, argument: unit, after: sealed && unit < k ? [] : [0] });
  }
  nodes.push({ kind: NodeKind.COMMIT, argument: 0, after: nodes.map((_, i) => i) });
  return graphTemplate(
    `write(${k}+${m}${sealed ? ',sealed' : ''}${missing.size > 0 ? `,without ${[...missing].join(' ')}` : ''})`,
    nodes,
  );
}

/** A read of units, decoded when `decode` is set, delivered at the end. */
export function stripeRead(units: readonly number[], decode: boolean): GraphTemplate {
  const nodes: GraphNode[] = units.map((unit) => ({ kind: NodeKind.READ_UNIT, argument: unit, after: [] }));
  if (decode) nodes.push({ kind: NodeKind.ENCODE, argument: 0, after: nodes.map((_, i) => i) });
  nodes.push({ kind: NodeKind.COMMIT, argument: 0, after: decode ? [nodes.length - 1] : nodes.map((_, i) => i) });
  return graphTemplate(`${decode ? 'degraded-read' : 'read'}(${units.join(' ')})`, nodes);
}

/** For each unit, the graph node that writes or reads it, or -1. */
export function unitNodes(template: GraphTemplate, units: number): Int8Array {
  const nodes = new Int8Array(units).fill(-1);
  for (let i = 0; i < template.nodeCount; i++) {
    const kind = template.kinds[i];
    if (kind === NodeKind.WRITE_UNIT || kind === NodeKind.READ_UNIT) nodes[template.args[i]!] = i;
  }
  return nodes;
}
