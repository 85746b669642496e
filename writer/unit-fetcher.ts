/**
 * Small reads of a unit that lacks: one data unit, decoded by the switch, in place of the k units of its stripe.
 *
 *     fetch(stripe, unit) ─ decoder ─▶ slot ─ VERIFY, version, length ─▶ a copy of the bytes; undefined: read the
 *     stripe instead
 *
 * The switch reads k units at least, so it sees what a whole read would see of versions; here the unit must be at or
 * below the commit mark, of no rolled back epoch, and of a stripe as long as what is committed.
 */
import type { Coder, CodingQueue, MemoryRegion } from 'tartan-rdma';
import { Access, Status } from 'tartan-rdma';
import { epochFloor } from '../cluster/files.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import { PAGE_BYTES, unitSlotBytes } from '../wire/slot-layout.js';
import {
  DATA_HEADER_BYTES,
  W,
  checkHeader,
  compareVersions,
  digestLayout,
  headerFileId,
  headerStripe,
  headerUnit,
} from '../wire/unit-header.js';
import type { ClientContext } from './context.js';
import { Decoder } from './decoder.js';

const SLOTS = 8;
/** Without a switch that decodes, so long until the next look. */
const LOOK_AGAIN_MS = 2000;

export class UnitFetcher {
  readonly counters = { units: 0, refused: 0 };
  private readonly slotBytes: number;
  private readonly region: MemoryRegion;
  private readonly words: Uint32Array;
  private readonly bytes: Uint8Array;
  private readonly verifier: Coder;
  private readonly coding: CodingQueue;
  private readonly verified: (((holds: boolean) => void) | undefined)[] = [];
  private readonly free: number[] = [];
  private finding: Promise<Decoder | undefined> | undefined;
  private nextLook = 0;
  private underWay = new Set<Promise<unknown>>();
  private closed = false;

  /** @throws {TartanError} ERR_RING_MEMORY */
  constructor(
    private readonly context: ClientContext,
    private readonly code: Code,
    private readonly unitBytes: number,
    name: string,
  ) {
    this.slotBytes = unitSlotBytes(unitBytes);
    context.memory.take(
      SLOTS * this.slotBytes,
      SLOTS * this.slotBytes,
      SLOTS * this.slotBytes,
      `read units of '${name}' through a switch`,
    );
    this.region = context.device.allocate(SLOTS * this.slotBytes, Access.REMOTE_WRITE);
    this.words = new Uint32Array(this.region.buffer);
    this.bytes = new Uint8Array(this.region.buffer);
    for (let slot = 0; slot < SLOTS; slot++) this.free.push(slot);
    this.verifier = context.device.createCoder({
      k: 1,
      inputUnits: [0],
      outputUnits: [],
      matrix: new Uint8Array(0),
      digest: digestLayout,
    });
    this.coding = context.device.createCodingQueue((_opcode, status, slot) => {
      this.verified[slot]?.(status === Status.SUCCESS);
    });
  }

  /**
   * @param dataLength  bytes that are committed of the stripe
   * @returns the unit's bytes, the caller's own; undefined: not to be had this way
   */
  fetch(
    file: FileRecord,
    map: ClusterMap,
    stripe: number,
    unit: number,
    dataLength: number,
  ): Promise<Uint8Array | undefined> {
    const slot = this.closed ? undefined : this.free.pop();
    if (slot === undefined) return Promise.resolve(undefined);
    const work = this.into(slot, file, map, stripe, unit, dataLength).finally(() => {
      this.free.push(slot);
      this.underWay.delete(work);
    });
    this.underWay.add(work);
    return work;
  }

  async destroy(): Promise<void> {
    this.closed = true;
    await (await this.finding)?.destroy();
    await Promise.all(this.underWay);
    await this.coding.destroy();
    this.verifier.destroy();
    await this.region.deregister();
    this.context.memory.give(SLOTS * this.slotBytes);
  }

  private async into(
    slot: number,
    file: FileRecord,
    map: ClusterMap,
    stripe: number,
    unit: number,
    dataLength: number,
  ): Promise<Uint8Array | undefined> {
    const decoder = await this.decoder(file, map);
    if (decoder === undefined || this.closed) return undefined;
    const payloadOffset = slot * this.slotBytes + PAGE_BYTES,
      headerOffset = payloadOffset - DATA_HEADER_BYTES,
      w = headerOffset >> 2;
    decoder.adopt(map);
    const isThere = await decoder.want({
      fileId: file.id,
      stripe,
      unit,
      epoch: file.commitEpoch,
      counter: file.commitCounter,
      exact: false,
      region: this.region,
      payloadOffset,
      capacity: this.unitBytes,
      headerOffset,
    });
    if (
      !isThere ||
      !this.isWanted(w, file, stripe, unit, dataLength) ||
      !(await this.holds(slot, headerOffset, payloadOffset, this.words[w + W.UNIT_LENGTH]!))
    ) {
      this.counters.refused++;
      return undefined;
    }
    this.counters.units++;
    return this.bytes.slice(payloadOffset, payloadOffset + this.words[w + W.UNIT_LENGTH]!);
  }

  private isWanted(w: number, file: FileRecord, stripe: number, unit: number, dataLength: number): boolean {
    const { words } = this,
      length = words[w + W.UNIT_LENGTH]!,
      epoch = words[w + W.WRITER_EPOCH]!;
    return (
      length <= this.unitBytes &&
      checkHeader(words, w, DATA_HEADER_BYTES, length) === undefined &&
      headerFileId(words, w) === file.id &&
      headerStripe(words, w) === stripe &&
      headerUnit(words, w) === unit &&
      words[w + W.STRIPE_LENGTH]! >= dataLength &&
      epoch >= epochFloor(file, stripe) &&
      compareVersions(epoch, words[w + W.COUNTER]!, file.commitEpoch, file.commitCounter) <= 0
    );
  }

  private holds(slot: number, headerOffset: number, payloadOffset: number, bytes: number): Promise<boolean> {
    return new Promise((resolve) => {
      this.verified[slot] = resolve;
      this.coding.postVerify(slot, this.verifier, this.region, headerOffset, DATA_HEADER_BYTES, payloadOffset, bytes);
      this.context.hub.wake();
    });
  }

  private async decoder(file: FileRecord, map: ClusterMap): Promise<Decoder | undefined> {
    const now = this.context.clock.now(),
      found = await this.finding;
    if (found?.usable === true) return found;
    if (now < this.nextLook || this.closed) return undefined;
    this.nextLook = now + LOOK_AGAIN_MS;
    this.finding = (async () => {
      await found?.destroy();
      return Decoder.find(this.context, file, this.code, map, SLOTS);
    })();
    return this.finding;
  }
}
