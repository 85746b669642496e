/**
 * Gathers what one batch of completions produced, so that a device is rung and messages are sent once a batch.
 *
 * Whoever has something to flush calls `touch(this)`; the hub calls its `flush()` once, at the end of the device's
 * batch or, outside one (timers, disk completions), in a microtask; then rings.
 */
import type { Device } from 'tartan-rdma';

export interface Flushable { flush(): void; touched: boolean }

export class Hub {
  readonly device: Device;
  private list: Flushable[] = [];
  private spare: Flushable[] = [];
  private scheduled = false;
  private readonly run = (): void => {
    this.scheduled = false;
    if (this.list.length > 0) this.flush();
    this.device.ring();
  };

  constructor(device: Device) {
    this.device = device;
    device.onBatchEnd = () => { this.flush(); };
  }

  touch(item: Flushable): void {
    if (!item.touched) { item.touched = true; this.list.push(item); }
    this.wake();
  }

  /** Rings soon, though nothing is to be flushed: something was posted. */
  wake(): void {
    if (!this.scheduled) { this.scheduled = true; queueMicrotask(this.run); }
  }

  /** Flushes until nothing is touched any more; does not ring. */
  flush(): void {
    while (this.list.length > 0) {
      const items = this.list;
      this.list = this.spare;
      for (const item of items) { item.touched = false; item.flush(); }
      items.length = 0;
      this.spare = items;
    }
  }
}
