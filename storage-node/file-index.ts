/** What a store knows of one file besides its units: fence, commit mark, recorded missing units, and the order of its stripes. */
import { compareVersions } from '../wire/unit-header.js';

export class FileIndex {
  /** Lower writer epochs are refused. */
  fence = 0;
  /** The fence as far as the disk has it. */
  durableFence = 0;
  /** Highest commit mark any header carried: versions of markEpoch with counter ≤ markCounter, and what survives of older epochs. */
  markEpoch = 0;
  markCounter = 0;
  /** Stripes with more than one version of a unit, for freeing once the mark passes. */
  readonly superseded = new Set<number>();
  /** Units recorded missing, by stripe and version. */
  readonly missing = new Map<string, { readonly stripe: number; readonly writerEpoch: number; readonly counter: number; mask: bigint }>();
  /** Stripe → first entry of its chain. */
  private readonly chains = new Map<number, number>();
  /** Stripes in ascending order, some perhaps gone; those that came out of order wait in `late`. */
  private order: number[] = [];
  private late: number[] = [];

  first(stripe: number): number { return this.chains.get(stripe) ?? 0; }

  setFirst(stripe: number, entry: number): void {
    if (entry === 0) { this.chains.delete(stripe); return; }
    if (!this.chains.has(stripe)) {
      const last = this.order[this.order.length - 1];
      if (last === undefined || stripe > last) this.order.push(stripe);
      // A stripe that went and came back is still in order: duplicates are dropped when sorting.
      else this.late.push(stripe);
    }
    this.chains.set(stripe, entry);
  }

  /** Stripes held from `from` on, ascending; a snapshot up to what the caller consumes in one go. */
  *stripesFrom(from: number): Generator<number> {
    const order = this.sorted();
    for (let i = lowerBound(order, from); i < order.length; i++) if (this.chains.has(order[i]!)) yield order[i]!;
  }

  /** Counter 0 says nothing: a new owner that has not decided yet. @returns true when the mark rose */
  raiseMark(epoch: number, counter: number): boolean {
    if (counter === 0 || compareVersions(epoch, counter, this.markEpoch, this.markCounter) <= 0) return false;
    this.markEpoch = epoch;
    this.markCounter = counter;
    return true;
  }

  recordMissing(stripe: number, writerEpoch: number, counter: number, mask: bigint): void {
    const key = `${stripe}/${writerEpoch}/${counter}`;
    const known = this.missing.get(key);
    if (known === undefined) this.missing.set(key, { stripe, writerEpoch, counter, mask });
    else known.mask |= mask;
  }

  missingOf(stripe: number, writerEpoch: number, counter: number): bigint {
    return this.missing.size === 0 ? 0n : this.missing.get(`${stripe}/${writerEpoch}/${counter}`)?.mask ?? 0n;
  }

  private sorted(): number[] {
    if (this.late.length > 0) {
      const merged = Float64Array.from([...this.order, ...this.late]).sort();
      this.order = [];
      for (const stripe of merged) if (stripe !== this.order[this.order.length - 1] && this.chains.has(stripe)) this.order.push(stripe);
      this.late = [];
    }
    return this.order;
  }
}

/** Index of the first element ≥ value. */
function lowerBound(order: readonly number[], value: number): number {
  let low = 0, high = order.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (order[middle]! < value) low = middle + 1; else high = middle;
  }
  return low;
}
