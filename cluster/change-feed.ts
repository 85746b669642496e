/**
 * Tells watchers of an embedded store about changes, whichever process made them: the revision log says what changed;
 * the file system's notification hints when to look, and a slow poll covers a hint that is late or never comes.
 */
import { watch as watchDirectory, type FSWatcher } from 'node:fs';
import type { Watch, WatchEvent } from './cluster-store.js';
import { isOperating } from '../wire/errors.js';
import type { StoreEngine } from './store-engine.js';

/** Half of the 50 ms within which a change is seen; one look costs a few microseconds. */
const POLL_MS = 25;

interface Subscriber {
  readonly prefix: string;
  readonly onEvents: (events: readonly WatchEvent[]) => void;
  /** Everything up to this revision is delivered. */
  seen: number;
}

export class ChangeFeed {
  readonly #dir: string;
  readonly #read: <T>(fn: (engine: StoreEngine) => T) => T;
  readonly #subscribers = new Set<Subscriber>();
  #poll: NodeJS.Timeout | undefined;
  #hints: FSWatcher | undefined;
  #isQueued = false;

  /** @param read  runs a function on the engine, on one snapshot; throws when the store cannot be read */
  constructor(dir: string, read: <T>(fn: (engine: StoreEngine) => T) => T) {
    this.#dir = dir;
    this.#read = read;
  }

  subscribe(prefix: string, onEvents: (events: readonly WatchEvent[]) => void, fromRevision: number): Watch {
    const subscriber: Subscriber = { prefix, onEvents, seen: fromRevision };
    this.#subscribers.add(subscriber);
    this.#start();
    this.check();
    return {
      close: () => {
        this.#subscribers.delete(subscriber);
        if (this.#subscribers.size === 0) this.close();
      },
    };
  }

  /** Looks for changes soon, once for all calls of this turn; never calls a watcher from inside its caller. */
  check(): void {
    if (this.#isQueued || this.#subscribers.size === 0) return;
    this.#isQueued = true;
    setImmediate(() => {
      this.#isQueued = false;
      this.#deliver();
    });
  }

  close(): void {
    this.#subscribers.clear();
    clearInterval(this.#poll);
    this.#poll = undefined;
    this.#hints?.close();
    this.#hints = undefined;
  }

  #start(): void {
    if (this.#poll) return;
    this.#poll = setInterval(() => {
      this.#deliver();
    }, POLL_MS);
    try {
      this.#hints = watchDirectory(this.#dir, { persistent: false }, () => {
        this.check();
      });
      this.#hints.on('error', () => {
        this.#hints?.close();
        this.#hints = undefined;
      });
    } catch {
      // Out of inotify watches: the poll alone is enough.
    }
  }

  #deliver(): void {
    if (this.#subscribers.size === 0) return;
    for (const [subscriber, events] of this.#collect()) {
      // An earlier watcher of this round may have closed this one.
      if (events.length > 0 && this.#subscribers.has(subscriber)) subscriber.onEvents(events);
    }
  }

  /** Reads all that is due on one snapshot, before any watcher runs and moves it. */
  #collect(): [Subscriber, WatchEvent[]][] {
    const due: [Subscriber, WatchEvent[]][] = [];
    let revision: number;
    try {
      revision = this.#read((engine) => {
        const present = engine.revision();
        for (const subscriber of this.#subscribers) {
          if (subscriber.seen < present)
            due.push([subscriber, engine.changesSince(subscriber.prefix, subscriber.seen)]);
        }
        return present;
      });
    } catch (error) {
      if (!isOperating(error)) throw error;
      return []; // the store cannot be read now: the next poll tries again, nothing is skipped
    }
    for (const [subscriber] of due) subscriber.seen = revision;
    return due;
  }
}
