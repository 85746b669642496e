/**
 * Stripes spread over many more nodes than a stripe is wide: each unit goes to the node that draws the highest lot for
 * it.
 *
 * Intuition: a lot is a hash of (file, stripe, unit, node's name). The units of a stripe draw one after the other, each
 * among the nodes that are not taken yet. So any two nodes share about as many stripes as any other two, all survivors
 * help to rebuild a lost node; and since lots go by name, a node that is added takes its share from everybody and
 * hardly anything else moves: only where it displaced a node that a later unit of the stripe then prefers.
 *
 * A node that left for good without a successor stays in the list, as '-NAME': units that it drew are drawn for again,
 * in the order of the units, among the nodes that are there and have none of the stripe. So when it leaves only its own
 * units move; hardly any other when several have left.
 *
 * Invariants: the same list of names, in any order, gives the same nodes; the units of a stripe are on different nodes.
 * The hash is part of the format: docs/wire-format.md.
 *
 * Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (highest random weight).
 */

/** Stripes whose nodes are remembered: more than are under way at once. A power of two. */
const KEPT = 512;

export class Spread {
  private readonly keys: Uint32Array;
  private readonly seed: number;
  /** Stripe in each row of `order`; −1: none. */
  private readonly rows = new Float64Array(KEPT).fill(-1);
  private readonly order: Uint16Array;
  private readonly taken: Uint8Array;

  /** 1: has left. */
  private readonly gone: Uint8Array;
  private readonly anyGone: boolean;

  /**
   * @param names  of the nodes, all different, '-' before those that have left
   * @param width  units of a stripe, at most as many as are left
   * @param fileId  so that files don't all begin on the same nodes
   */
  constructor(
    names: readonly string[],
    private readonly width: number,
    fileId: number,
  ) {
    this.keys = Uint32Array.from(names, (name) => hashOf(name.startsWith('-') ? name.slice(1) : name));
    this.gone = Uint8Array.from(names, (name) => (name.startsWith('-') ? 1 : 0));
    this.anyGone = this.gone.includes(1);
    this.seed = mix(mix(fileId >>> 0) ^ Math.floor(fileId / 0x1_0000_0000));
    this.order = new Uint16Array(KEPT * width);
    this.taken = new Uint8Array(names.length);
  }

  /** Index of the node that holds a unit. */
  nodeOf(stripe: number, unit: number): number {
    return this.order[this.rowOf(stripe) + unit]!;
  }

  /** The unit that a node holds, or −1. */
  unitOf(stripe: number, node: number): number {
    const row = this.rowOf(stripe);
    for (let unit = 0; unit < this.width; unit++) if (this.order[row + unit] === node) return unit;
    return -1;
  }

  private rowOf(stripe: number): number {
    const slot = stripe % KEPT,
      row = slot * this.width;
    if (this.rows[slot] !== stripe) {
      this.draw(stripe, row);
      this.rows[slot] = stripe;
    }
    return row;
  }

  private draw(stripe: number, row: number): void {
    const { taken, order, gone } = this,
      lot = mix(this.seed ^ mix((stripe >>> 0) ^ mix(Math.floor(stripe / 0x1_0000_0000))));
    taken.fill(0);
    for (let unit = 0; unit < this.width; unit++) taken[(order[row + unit] = this.best(lot, unit))] = 1;
    if (!this.anyGone) return;
    for (let node = 0; node < gone.length; node++) if (gone[node] === 1) taken[node] = 1;
    for (let unit = 0; unit < this.width; unit++)
      if (gone[order[row + unit]!] === 1) taken[(order[row + unit] = this.best(lot, unit))] = 1;
  }

  /** Of the nodes that are not taken the one with the highest lot for this unit. */
  private best(lot: number, unit: number): number {
    const { keys, taken } = this,
      draw = mix(lot + Math.imul(unit + 1, 0x9e3779b1));
    let best = -1,
      most = -1;
    for (let node = 0; node < keys.length; node++) {
      if (taken[node] === 1) continue;
      const score = mix(draw ^ keys[node]!);
      // Equal lots are decided by name too, never by place in the list.
      if (score > most || (score === most && keys[node]! > keys[best]!)) {
        most = score;
        best = node;
      }
    }
    return best;
  }
}

/** FNV-1a over the UTF-16 units of a name, mixed. */
function hashOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return mix(hash);
}

/** Spreads 32 bits: every bit of the input changes about half of the result's. */
function mix(value: number): number {
  let x = value >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}
