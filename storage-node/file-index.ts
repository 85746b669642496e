/**
 * What a store knows of one file besides its units: fence, commit mark, recorded missing units, and where its stripes
 * lie.
 */
import { compareVersions } from '../wire/unit-header.js';
import { Superseded } from './superseded.js';

/** Stripes of one page; a file remembers pages, not stripes. */
export const PAGE_STRIPES = 256;

export class FileIndex {
  /** Lower writer epochs are refused. */
  fence = 0;
  /** The fence as far as the disk has it. */
  durableFence = 0;
  /**
   * Highest commit mark any header carried: versions of markEpoch with counter ≤ markCounter, and what survives of
   * older epochs.
   */
  markEpoch = 0;
  markCounter = 0;
  /** Stripes with more than one version of a unit, for freeing once the mark passes. */
  readonly superseded = new Superseded();
  /** Units recorded missing, by stripe and version. */
  readonly missing = new Map<
    string,
    { readonly stripe: number; readonly writerEpoch: number; readonly counter: number; mask: bigint }
  >();
  /** Stripes held. */
  stripes = 0;
  readonly pages = new PageList();

  /** @param number  what entries call the file: small, and reused when the file is gone */
  constructor(
    readonly id: number,
    readonly number: number,
  ) {}

  /** Counter 0 says nothing: a new owner that has not decided yet. @returns true when the mark rose */
  raiseMark(epoch: number, counter: number): boolean {
    if (counter === 0 || compareVersions(epoch, counter, this.markEpoch, this.markCounter) <= 0) return false;
    this.markEpoch = epoch;
    this.markCounter = counter;
    return true;
  }

  recordMissing(stripe: number, writerEpoch: number, counter: number, mask: bigint): void {
    const key = keyOf(stripe, writerEpoch, counter),
      known = this.missing.get(key);
    if (known === undefined) this.missing.set(key, { stripe, writerEpoch, counter, mask });
    else known.mask |= mask;
  }

  missingOf(stripe: number, writerEpoch: number, counter: number): bigint {
    return this.missing.size === 0 ? 0n : (this.missing.get(keyOf(stripe, writerEpoch, counter))?.mask ?? 0n);
  }

  /** The version is gone, and so is what was recorded of it. */
  forgetMissing(stripe: number, writerEpoch: number, counter: number): void {
    if (this.missing.size > 0) this.missing.delete(keyOf(stripe, writerEpoch, counter));
  }
}

function keyOf(stripe: number, writerEpoch: number, counter: number): string {
  return `${stripe}/${writerEpoch}/${counter}`;
}

/**
 * The pages in which a file holds stripes, ascending; some may have become empty. A file written from its beginning on
 * needs 8 bytes for 256 stripes.
 */
class PageList {
  private order: Float64Array = new Float64Array(4);
  private count = 0;
  /** Pages that came out of order, until they are merged. */
  private late = new Set<number>();

  get length(): number {
    return this.count + this.late.size;
  }

  add(page: number): void {
    if (this.count > 0 && page <= this.order[this.count - 1]!) {
      if (this.order[this.lowerBound(page)] === page) return;
      this.late.add(page);
      if (this.late.size > 64 + (this.count >> 2)) this.merge();
      return;
    }
    if (this.count === this.order.length) this.order = copyOf(this.order, this.count + (this.count >> 1));
    this.order[this.count++] = page;
  }

  /** The first page ≥ this one, or −1. */
  from(page: number): number {
    this.merge();
    const at = this.lowerBound(page);
    return at < this.count ? this.order[at]! : -1;
  }

  /** Keeps the pages that `isHeld` says are. */
  filter(isHeld: (page: number) => boolean): void {
    this.merge();
    this.order = this.order.subarray(0, this.count).filter(isHeld);
    this.count = this.order.length;
    if (this.count === 0) this.order = new Float64Array(4);
  }

  private merge(): void {
    if (this.late.size === 0) return;
    const merged = copyOf(this.order.subarray(0, this.count), this.count + this.late.size);
    merged.set([...this.late], this.count);
    this.order = merged.sort();
    this.count = merged.length;
    this.late = new Set();
  }

  /** Index of the first page ≥ this one. */
  private lowerBound(page: number): number {
    let low = 0,
      high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.order[middle]! < page) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

function copyOf(pages: Float64Array, length: number): Float64Array {
  const copy = new Float64Array(length);
  copy.set(pages);
  return copy;
}
