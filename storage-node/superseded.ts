/**
 * Stripes that hold several versions of a unit, by the version whose commit lets the older ones go: a heap, so that a
 * mark that rises looks only at what it frees. An owner that has decided nothing yet may write many thousands of them.
 */
import { compareVersions } from '../wire/unit-header.js';

export class Superseded {
  /** Three numbers each, smallest version first: writer epoch, counter, stripe. */
  private heap: number[] = [];

  get size(): number {
    return this.heap.length / FIELDS;
  }

  /** When this version is committed, older ones of the stripe may go. */
  add(writerEpoch: number, counter: number, stripe: number): void {
    const { heap } = this;
    let at = heap.length / FIELDS;
    heap.push(writerEpoch, counter, stripe);
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!this.isLess(at, above)) return;
      this.swap(at, above);
      at = above;
    }
  }

  /** Takes out one stripe whose version is at or below the mark. @returns the stripe, −1: there is none */
  takeUpTo(markEpoch: number, markCounter: number): number {
    const { heap } = this;
    if (heap.length === 0 || compareVersions(heap[0]!, heap[1]!, markEpoch, markCounter) > 0) return -1;
    const stripe = heap[2]!,
      last = heap.length / FIELDS - 1;
    this.swap(0, last);
    heap.length -= FIELDS;
    for (let at = 0; ; ) {
      const left = 2 * at + 1;
      if (left >= last) break;
      const least = left + 1 < last && this.isLess(left + 1, left) ? left + 1 : left;
      if (!this.isLess(least, at)) break;
      this.swap(at, least);
      at = least;
    }
    return stripe;
  }

  private isLess(a: number, b: number): boolean {
    const { heap } = this;
    return compareVersions(heap[a * FIELDS]!, heap[a * FIELDS + 1]!, heap[b * FIELDS]!, heap[b * FIELDS + 1]!) < 0;
  }

  private swap(a: number, b: number): void {
    const { heap } = this;
    for (let i = 0; i < FIELDS; i++) {
      const kept = heap[a * FIELDS + i]!;
      heap[a * FIELDS + i] = heap[b * FIELDS + i]!;
      heap[b * FIELDS + i] = kept;
    }
  }
}

const FIELDS = 3;
