import type { MemoryRegion, QueuePair } from '../device.js';
import type { SoftDevice } from './soft-device.js';

/** Registered memory of a soft device. The device unmaps it; this object only remembers whether it has. */
export class SoftMemoryRegion implements MemoryRegion {
  readonly byteLength: number;
  #gone: Promise<void> | undefined;

  constructor(
    readonly device: SoftDevice,
    readonly lkey: number,
    readonly rkey: number,
    readonly buffer: ArrayBuffer,
  ) {
    this.byteLength = buffer.byteLength;
  }

  grant(qp: QueuePair): void {
    if (this.#gone === undefined) this.device.grant(this, qp);
  }

  deregister(): Promise<void> {
    this.#gone ??= this.device.deregister(this);
    return this.#gone;
  }
}
