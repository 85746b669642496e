/**
 * A hash from (file number, stripe) to the first entry of the stripe's chain: open addressing over typed arrays, the
 * keys read from the entries themselves.
 *
 * Intuition: 4 bytes a slot, between a third and two thirds of them taken, so 6 to 12 bytes a stripe. It is split into
 * parts that grow one by one: doubling the whole at once would hold the node up for as long as it takes to hash
 * everything.
 *
 * Invariant: no slot between a key's home and its place is empty (a removal shifts the followers back).
 */
const PARTS = 256;
const FIRST_SLOTS = 8;

/** The key of an entry, for comparing and rehashing. */
export interface EntryKeys {
  fileOf(entry: number): number;
  stripeLowOf(entry: number): number;
  stripeHighOf(entry: number): number;
}

export class ChainMap {
  private readonly parts: Uint32Array[] = Array.from({ length: PARTS }, () => new Uint32Array(FIRST_SLOTS));
  private readonly taken = new Uint32Array(PARTS);

  constructor(private readonly keys: EntryKeys) {}

  /** Bytes of its arrays. */
  get bytes(): number {
    return this.parts.reduce((sum, part) => sum + part.byteLength, 0);
  }

  /** The first entry of the chain, or 0. */
  first(file: number, low: number, high: number): number {
    const hash = hashOf(file, low, high),
      part = this.parts[hash >>> 24]!;
    return part[this.place(part, hash, file, low, high)]!;
  }

  /** Makes `entry` the first of its own key's chain. */
  set(entry: number): void {
    const file = this.keys.fileOf(entry),
      low = this.keys.stripeLowOf(entry),
      high = this.keys.stripeHighOf(entry);
    const hash = hashOf(file, low, high),
      which = hash >>> 24;
    let part = this.parts[which]!,
      at = this.place(part, hash, file, low, high);
    if (part[at] === 0) {
      if (++this.taken[which]! * 3 > part.length * 2) {
        part = this.grow(which);
        at = this.place(part, hash, file, low, high);
      }
    }
    part[at] = entry;
  }

  /** Forgets a key whose chain has ended; `entry` was its last, and still holds the key. */
  delete(entry: number): void {
    const file = this.keys.fileOf(entry),
      low = this.keys.stripeLowOf(entry),
      high = this.keys.stripeHighOf(entry);
    const hash = hashOf(file, low, high),
      which = hash >>> 24,
      part = this.parts[which]!,
      mask = part.length - 1;
    let hole = this.place(part, hash, file, low, high);
    if (part[hole] === 0) return;
    this.taken[which]!--;
    for (let at = (hole + 1) & mask; part[at] !== 0; at = (at + 1) & mask) {
      const home = this.homeOf(part[at]!) & mask;
      // The follower may move back only as far as its home.
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      part[hole] = part[at]!;
      hole = at;
    }
    part[hole] = 0;
  }

  /** The slot that holds the key, or the empty one where it would go. */
  private place(part: Uint32Array, hash: number, file: number, low: number, high: number): number {
    const mask = part.length - 1;
    for (let at = hash & mask; ; at = (at + 1) & mask) {
      const entry = part[at]!;
      if (
        entry === 0 ||
        (this.keys.stripeLowOf(entry) === low &&
          this.keys.fileOf(entry) === file &&
          this.keys.stripeHighOf(entry) === high)
      )
        return at;
    }
  }

  private homeOf(entry: number): number {
    return hashOf(this.keys.fileOf(entry), this.keys.stripeLowOf(entry), this.keys.stripeHighOf(entry));
  }

  private grow(which: number): Uint32Array {
    const old = this.parts[which]!,
      part = (this.parts[which] = new Uint32Array(old.length * 2)),
      mask = part.length - 1;
    for (const entry of old) {
      if (entry === 0) continue;
      let at = this.homeOf(entry) & mask;
      while (part[at] !== 0) at = (at + 1) & mask;
      part[at] = entry;
    }
    return part;
  }
}

/** 32 bits; the top eight choose the part, the low ones the slot. The finisher of MurmurHash3 spreads them. */
function hashOf(file: number, low: number, high: number): number {
  let x = low ^ Math.imul(high, 0x9e3779b1) ^ Math.imul(file + 1, 0x85ebca77);
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}
