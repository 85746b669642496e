/**
 * Reads units back from the disk and checks them, for scrub: seal, payload CRC, summary, and that they are what the
 * index says. Payloads stay here; only summaries leave, and they show whether a stripe's units belong together.
 *
 * One unit at a time: scrub is to disturb nobody.
 */
import { Status, type Coder, type CodingQueue, type Device, type MemoryRegion } from 'tartan-rdma';
import type { RingMemory } from '../pipeline/ring-memory.js';
import { isOperating } from '../wire/errors.js';
import { roundUp } from '../wire/slot-layout.js';
import { MAX_UNIT_BYTES, W } from '../wire/unit-header.js';
import { BLOCK_BYTES } from './disk.js';
import { isUnit } from './read-server.js';
import { emptyLocation, type HeldUnit, type UnitStore } from './unit-store.js';

const HEADER_AREA_BYTES = 2 * BLOCK_BYTES;

export type NamedUnit = Pick<HeldUnit, 'stripe' | 'unit' | 'writerEpoch' | 'counter' | 'stripeLength'>;

/**
 * What scrub found of one unit: its summary (16 bytes) and, of a parity unit, the CRC32Cs of its data units (4 bytes
 * each); or that it is damaged; undefined: freed meanwhile.
 */
export type Checked = { readonly summary: Uint8Array; readonly dataCrcs: Uint8Array } | 'damaged' | undefined;

export class Scrubber {
  readonly counters = { unitsScrubbed: 0, bytesScrubbed: 0, unitsDamaged: 0 };
  private readonly coding: CodingQueue;
  private waiting: ((status: number) => void) | undefined;
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly store: UnitStore,
    private readonly device: Device,
    private readonly coder: Coder,
    private readonly memory: RingMemory,
    private readonly onDamage: (fileId: number, stripe: number, unit: number) => void,
  ) {
    this.coding = device.createCodingQueue((_opcode, status) => {
      this.waiting?.(status);
    });
  }

  /**
   * Checks units in turn.
   *
   * @returns one entry per unit, in the same order
   * @throws {TartanError} ERR_RING_MEMORY
   */
  check(fileId: number, units: readonly NamedUnit[]): Promise<Checked[]> {
    const run = this.turn.then(() => this.run(fileId, units));
    this.turn = run.catch(() => undefined); // whoever asked is told
    return run;
  }

  /** Resolves when nothing is being checked any more. */
  async stop(): Promise<void> {
    await this.turn;
    await this.coding.destroy();
  }

  private async run(fileId: number, units: readonly NamedUnit[]): Promise<Checked[]> {
    // A unit is never longer than its stripe's data.
    const longest = units.reduce((most, { stripeLength }) => Math.max(most, Math.min(stripeLength, MAX_UNIT_BYTES)), 0);
    const bytes = HEADER_AREA_BYTES + roundUp(longest, BLOCK_BYTES);
    this.memory.take(bytes, bytes, bytes, 'check units');
    const region = this.device.allocate(bytes);
    try {
      const checked: Checked[] = [];
      for (const unit of units) checked.push(await this.one(region, fileId, unit));
      return checked;
    } finally {
      await region.deregister();
      this.memory.give(bytes);
    }
  }

  private async one(
    region: MemoryRegion,
    fileId: number,
    { stripe, unit, writerEpoch, counter }: NamedUnit,
  ): Promise<Checked> {
    const location = emptyLocation();
    if (!this.store.lookupExact(fileId, stripe, unit, writerEpoch, counter, location)) return undefined;
    const header = new Uint8Array(region.buffer, 0, HEADER_AREA_BYTES),
      payload = new Uint8Array(region.buffer, HEADER_AREA_BYTES);
    const words = new Uint32Array(region.buffer, 0, HEADER_AREA_BYTES >> 2),
      w = location.headerByte >> 2;
    this.counters.unitsScrubbed++;
    this.counters.bytesScrubbed += location.unitLength;
    let holds = false;
    try {
      await this.store.read(location, header, payload);
      holds =
        isUnit(words, w, location, fileId, stripe, unit) &&
        (await this.verify(region, location.headerByte, location.headerBytes, location.unitLength));
    } catch (error) {
      if (!isOperating(error)) throw error; // a sector that can't be read is damaged as well
    }
    if (holds) {
      const at = w * 4,
        list = at + W.CRC_LIST * 4;
      return {
        summary: new Uint8Array(region.buffer.slice(at + W.SUMMARY * 4, at + W.SUMMARY * 4 + 16)),
        dataCrcs: new Uint8Array(region.buffer.slice(list, Math.max(list, at + location.headerBytes))),
      };
    }
    this.counters.unitsDamaged++;
    this.store.markDamaged(fileId, stripe, unit, location);
    this.onDamage(fileId, stripe, unit);
    return 'damaged';
  }

  private async verify(
    region: MemoryRegion,
    headerByte: number,
    headerBytes: number,
    payloadBytes: number,
  ): Promise<boolean> {
    const status = new Promise<number>((resolve) => {
      this.waiting = resolve;
    });
    this.coding.postVerify(0, this.coder, region, headerByte, headerBytes, HEADER_AREA_BYTES, payloadBytes);
    this.device.ring();
    return (await status) === Status.SUCCESS;
  }
}
