/**
 * Gathers what one batch of completions produced, so that a device is rung and messages are sent once a batch.
 *
 * Whoever has something to flush calls `touch(this)`; the hub calls its `flush()` once, at the end of the device's
 * batch or, outside one (timers, disk completions), soon; then rings.
 */
import type { Device } from 'tartan-rdma';

export interface Flushable {
  flush(): void;
  touched: boolean;
}

export class Hub {
  readonly device: Device;
  private list: Flushable[] = [];
  private spare: Flushable[] = [];
  private scheduled = false;
  private readonly defer: (run: () => void) => void;
  private readonly run = (): void => {
    this.scheduled = false;
    if (this.list.length > 0) this.flush();
    this.device.ring();
  };

  /**
   * @param defer  calls a function soon, after what runs now. Where disk completions come many at a time, each in a
   *         callback of
   *   its own, `setImmediate` gathers them; microtasks come between them
   */
  constructor(device: Device, defer: (run: () => void) => void = queueMicrotask) {
    this.device = device;
    this.defer = defer;
    device.onBatchEnd = () => {
      this.flush();
    };
  }

  touch(item: Flushable): void {
    if (!item.touched) {
      item.touched = true;
      this.list.push(item);
    }
    this.wake();
  }

  /** Rings soon, though nothing is to be flushed: something was posted. */
  wake(): void {
    if (this.scheduled || this.device.isDispatching === true) return;
    this.scheduled = true;
    this.defer(this.run);
  }

  /** Flushes until nothing is touched any more; does not ring. */
  flush(): void {
    while (this.list.length > 0) {
      const items = this.list;
      this.list = this.spare;
      for (const item of items) {
        item.touched = false;
        item.flush();
      }
      items.length = 0;
      this.spare = items;
    }
  }
}
