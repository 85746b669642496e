/**
 * Which entries' headers call units of their stripe missing: entry number → 64-bit mask. Most units are written with
 * every node up, so this stays out of the entries; a unit that is in it costs 18 to 36 bytes more.
 *
 * Open addressing with three words a slot; entry 0 is "empty".
 */
const SLOT_WORDS = 3;

export class MaskTable {
  private slots = new Uint32Array(16 * SLOT_WORDS);
  private taken = 0;

  get bytes(): number {
    return this.slots.byteLength;
  }
  get size(): number {
    return this.taken;
  }

  get(entry: number): bigint {
    const at = this.place(entry) * SLOT_WORDS;
    return this.slots[at] === 0 ? 0n : BigInt(this.slots[at + 1]!) | (BigInt(this.slots[at + 2]!) << 32n);
  }

  set(entry: number, low: number, high: number): void {
    let at = this.place(entry) * SLOT_WORDS;
    if (this.slots[at] === 0) {
      if (++this.taken * 3 * SLOT_WORDS > this.slots.length * 2) {
        this.grow();
        at = this.place(entry) * SLOT_WORDS;
      }
    }
    this.slots[at] = entry;
    this.slots[at + 1] = low;
    this.slots[at + 2] = high;
  }

  delete(entry: number): void {
    const { slots } = this,
      mask = slots.length / SLOT_WORDS - 1;
    let hole = this.place(entry);
    if (slots[hole * SLOT_WORDS] === 0) return;
    this.taken--;
    for (let at = (hole + 1) & mask; slots[at * SLOT_WORDS] !== 0; at = (at + 1) & mask) {
      const home = hashOf(slots[at * SLOT_WORDS]!) & mask;
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      slots.copyWithin(hole * SLOT_WORDS, at * SLOT_WORDS, (at + 1) * SLOT_WORDS);
      hole = at;
    }
    slots.fill(0, hole * SLOT_WORDS, (hole + 1) * SLOT_WORDS);
  }

  /** A copy that stays as it is. */
  copy(): MaskTable {
    const copy = new MaskTable();
    copy.slots = this.slots.slice();
    copy.taken = this.taken;
    return copy;
  }

  private place(entry: number): number {
    const mask = this.slots.length / SLOT_WORDS - 1;
    for (let at = hashOf(entry) & mask; ; at = (at + 1) & mask) {
      const here = this.slots[at * SLOT_WORDS];
      if (here === 0 || here === entry) return at;
    }
  }

  private grow(): void {
    const old = this.slots;
    this.slots = new Uint32Array(old.length * 2);
    for (let at = 0; at < old.length; at += SLOT_WORDS) {
      if (old[at] !== 0) this.slots.set(old.subarray(at, at + SLOT_WORDS), this.place(old[at]!) * SLOT_WORDS);
    }
  }
}

function hashOf(entry: number): number {
  const x = Math.imul(entry, 0x9e3779b1);
  return (x ^ (x >>> 15)) >>> 0;
}
