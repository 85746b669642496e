/** The cluster map as this node holds it: only ever a newer one replaces it. */
import type { ClusterStore, Watch } from '../cluster/cluster-store.js';
import { readMap, watchMap } from '../cluster/membership.js';
import type { ClusterMap } from '../cluster/records.js';

export class MapKeeper {
  private held: ClusterMap = { epoch: 0, changes: 0, nodes: [], switches: [] };
  private watching: Watch | undefined;
  private refreshing: Promise<boolean> | undefined;

  /** @param onMap called after each newer map was adopted */
  constructor(
    private readonly store: ClusterStore,
    private readonly onMap: (map: ClusterMap) => void,
  ) {}

  get map(): ClusterMap {
    return this.held;
  }
  get epoch(): number {
    return this.held.epoch;
  }

  adopt(map: ClusterMap): void {
    if (map.epoch <= this.held.epoch) return;
    this.held = map;
    this.onMap(map);
  }

  /** Reads the map from the store; several callers share one reading. @returns false when the store can't be read */
  refresh(): Promise<boolean> {
    return (this.refreshing ??= readMap(this.store)
      .then(
        (map) => {
          this.adopt(map);
          return true;
        },
        () => false,
      )
      .finally(() => {
        this.refreshing = undefined;
      }));
  }

  /** @returns whether the map held is of `epoch` or newer, after asking the store if need be */
  async reach(epoch: number): Promise<boolean> {
    // A reading that was under way when we came may be older than the change we were told of: ask once more.
    for (let i = 0; i < 2 && this.epoch < epoch; i++) if (!(await this.refresh())) return false;
    return this.epoch >= epoch;
  }

  watch(): void {
    this.watching = watchMap(this.store, (map) => {
      this.adopt(map);
    });
  }
  close(): void {
    this.watching?.close();
  }
}
