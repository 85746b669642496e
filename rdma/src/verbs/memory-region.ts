import type { MemoryRegion } from '../device.js';
import { SoftMemoryRegion } from '../soft/memory-region.js';
import type { SoftDevice } from '../soft/soft-device.js';
import type { VerbsDevice } from './verbs-device.js';

/**
 * Memory of a verbs device: the soft device beside it maps it and codes in it, the adapter has it registered. It goes
 * in the opposite order: out of the adapter, then detached and unmapped.
 */
export class VerbsMemoryRegion extends SoftMemoryRegion {
  #gone: Promise<void> | undefined;

  constructor(
    readonly adapter: VerbsDevice,
    coder: SoftDevice,
    private readonly memory: MemoryRegion,
    rkey: number,
  ) {
    super(coder, memory.lkey, rkey, memory.buffer);
  }

  /** The adapter has one protection domain for all of its queue pairs. */
  override grant(): void {}

  override deregister(): Promise<void> {
    this.#gone ??= this.adapter.deregister(this).then(() => this.memory.deregister());
    return this.#gone;
  }
}
