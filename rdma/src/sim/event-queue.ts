/** What will happen at a moment of virtual time. */
export interface SimEvent {
  /** Set to undefined to cancel. */
  fire: Fire | undefined;
  /** Whose event it is: a paused process does nothing, a dead one never will. Undefined: the world's own. */
  readonly owner: EventOwner | undefined;
}

/**
 * What an event returns that touched nothing but the device's inside: no promise can have settled, no handler has run.
 */
export const QUIET = Symbol('quiet');

/**
 * What happens at an event. Those that happen by the million are objects of classes: an engine forgets the compiled
 * code of a closure with the last closure, as each run of a simulation ends, and compiling them anew was a quarter of
 * all its work.
 */
export interface Firing {
  fire(): unknown;
}
export type Fire = (() => unknown) | Firing;

export function happen(fire: Fire): unknown {
  return typeof fire === 'function' ? fire() : fire.fire();
}

export interface EventOwner {
  readonly isAlive: boolean;
  readonly isPaused: boolean;
  /** Keeps an event that came due while its owner was paused. */
  defer(event: SimEvent): void;
}

/**
 * A binary heap of events by (time, sequence). The order is total, so popping is deterministic: events of one moment
 * happen in the order in which they were scheduled.
 *
 * The keys lie in typed arrays beside the events: a run of the simulation is millions of them, and comparing numbers
 * behind objects was the larger part of it.
 */
export class EventQueue {
  #times = new Float64Array(1024);
  #sequences = new Float64Array(1024);
  readonly #events: SimEvent[] = [];
  #size = 0;
  #sequence = 0;

  get size(): number {
    return this.#size;
  }

  /** When the next event is due; Infinity: there is none. */
  get nextTime(): number {
    return this.#size === 0 ? Infinity : this.#times[0]!;
  }

  push(time: number, fire: Fire, owner: EventOwner | undefined): SimEvent {
    if (this.#size === this.#times.length) this.#grow();
    const event: SimEvent = { fire, owner };
    const times = this.#times,
      sequences = this.#sequences,
      events = this.#events;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      // The newest sequence is the largest: at the same time the parent stays above.
      if (times[parent]! <= time) break;
      times[at] = times[parent]!;
      sequences[at] = sequences[parent]!;
      events[at] = events[parent]!;
      at = parent;
    }
    times[at] = time;
    sequences[at] = this.#sequence++;
    events[at] = event;
    return event;
  }

  pop(): SimEvent | undefined {
    if (this.#size === 0) return undefined;
    const times = this.#times,
      sequences = this.#sequences,
      events = this.#events;
    const top = events[0]!,
      size = --this.#size,
      last = events.pop()!;
    if (size === 0) return top;
    const time = times[size]!,
      sequence = sequences[size]!;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (
        child + 1 < size &&
        (times[child + 1]! < times[child]! ||
          (times[child + 1]! === times[child]! && sequences[child + 1]! < sequences[child]!))
      )
        child++;
      if (times[child]! > time || (times[child]! === time && sequences[child]! > sequence)) break;
      times[at] = times[child]!;
      sequences[at] = sequences[child]!;
      events[at] = events[child]!;
      at = child;
    }
    times[at] = time;
    sequences[at] = sequence;
    events[at] = last;
    return top;
  }

  #grow(): void {
    const times = new Float64Array(this.#size * 2),
      sequences = new Float64Array(this.#size * 2);
    times.set(this.#times);
    sequences.set(this.#sequences);
    this.#times = times;
    this.#sequences = sequences;
  }
}
