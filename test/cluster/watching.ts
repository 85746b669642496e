/** Waits for what a watch delivers. */
import type { ClusterStore, WatchEvent } from '../../cluster/cluster-store.js';

export interface Collector {
  readonly events: WatchEvent[];
  /** Delivered at once, in order of delivery. */
  readonly batches: WatchEvent[][];
  /** Resolves when `isEnough` holds of all events so far; rejects after a generous time. */
  until(isEnough: (events: readonly WatchEvent[]) => boolean): Promise<void>;
  close(): void;
}

const PATIENCE_MS = 60_000;

export function collect(store: ClusterStore, prefix: string, fromRevision?: number): Collector {
  const events: WatchEvent[] = [],
    batches: WatchEvent[][] = [];
  const waiting = new Set<() => void>();
  const watch = store.watch(
    prefix,
    (batch) => {
      batches.push([...batch]);
      events.push(...batch);
      for (const look of [...waiting]) look();
    },
    fromRevision,
  );
  return {
    events,
    batches,
    until: (isEnough) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          waiting.delete(look);
          reject(new Error(`watch of '${prefix}' stayed at ${JSON.stringify(events)}`));
        }, PATIENCE_MS);
        const look = () => {
          if (!isEnough(events)) return;
          clearTimeout(timer);
          waiting.delete(look);
          resolve();
        };
        waiting.add(look);
        look();
      }),
    close: () => {
      watch.close();
    },
  };
}
