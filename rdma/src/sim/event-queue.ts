/** What will happen at a moment of virtual time. */
export interface SimEvent {
  /** Virtual milliseconds. */
  readonly time: number;
  /** Breaks ties: events of one moment happen in the order in which they were scheduled. */
  readonly sequence: number;
  /** Set to undefined to cancel. */
  fire: (() => void) | undefined;
  /** Whose event it is: a paused process does nothing, a dead one never will. Undefined: the world's own. */
  readonly owner: EventOwner | undefined;
}

export interface EventOwner {
  readonly isAlive: boolean;
  readonly isPaused: boolean;
  /** Keeps an event that came due while its owner was paused. */
  defer(event: SimEvent): void;
}

/** A binary heap of events by (time, sequence). The order is total, so popping is deterministic. */
export class EventQueue {
  readonly #heap: SimEvent[] = [];
  #sequence = 0;

  get size(): number {
    return this.#heap.length;
  }

  push(time: number, fire: () => void, owner: EventOwner | undefined): SimEvent {
    const event: SimEvent = { time, sequence: this.#sequence++, fire, owner };
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
    return event;
  }

  peek(): SimEvent | undefined {
    return this.#heap[0];
  }

  pop(): SimEvent | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || top === last) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

function isBefore(a: SimEvent, b: SimEvent): boolean {
  return a.time < b.time || (a.time === b.time && a.sequence < b.sequence);
}
