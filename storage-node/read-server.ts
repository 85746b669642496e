/**
 * Answers reads: from the disk into a ring of this node's own, checked there, then written into the reader's memory.
 *
 *     READ ─▶ queue ─▶ slot ─▶ disk ─▶ VERIFY ─▶ WRITE header, WRITE_WITH_IMM payload ─▶ slot free when both completed
 *                  │                │        └── checksum: READ_FAILED, and the unit is marked damaged
 *                  └── no unit, too little room: READ_FAILED
 *
 * A slot is two blocks for the header's blocks, then the payload. Two sizes of slots, so that small units have many.
 * Bounded: slots by memory, waiting reads by connection; a reader beyond its bound loses its connection, and so does
 * one that lets what was written to it lie. The last free slot is for readers that hold none, so that one that takes
 * nothing does not stop the others meanwhile.
 */
import type { CodingQueue, Coder, Device, MemoryRegion } from 'tartan-rdma';
import { Flag, Status } from 'tartan-rdma';
import type { MessageChannel } from '../pipeline/channel.js';
import { refusalOf, detach } from '../wire/front-door.js';
import { MessageType, READ_WORDS, Refusal } from '../wire/ring-messages.js';
import { headerFileId, headerStripe, headerUnit, MAX_UNIT_BYTES, UNIT_MAGIC, W } from '../wire/unit-header.js';
import { BLOCK_BYTES } from './disk.js';
import type { RingMemory } from '../pipeline/ring-memory.js';
import { emptyLocation, type UnitLocation, type UnitStore } from './unit-store.js';

const HEADER_AREA_BYTES = 2 * BLOCK_BYTES;
const SMALL_UNIT_BYTES = 64 << 10;
const SMALL_SLOT_BYTES = HEADER_AREA_BYTES + SMALL_UNIT_BYTES;
const LARGE_SLOT_BYTES = HEADER_AREA_BYTES + MAX_UNIT_BYTES;
/** Reads that one connection may have waiting or under way. */
const MAX_READS = 4096;
/** Bits of a work request id: the payload's write carries the slot, the header's this bit too. */
const HEADER_WRITE = 0x4000_0000;

/** One connection's reads. */
export interface Reader {
  readonly channel: MessageChannel;
  reads: number;
  /** Of those, in slots. */
  readSlots: number;
}

export interface ReadCounters {
  unitsRead: number;
  bytesRead: number;
  readsFailed: number;
  checksumFailures: number;
}

interface ReadSlot {
  readonly index: number;
  readonly region: MemoryRegion;
  readonly offset: number;
  readonly large: boolean;
  readonly header: Uint8Array;
  readonly payload: Uint8Array;
  readonly location: UnitLocation;
  reader: Reader | undefined;
  /** Since its answer was posted: how often `untaken()` has found it so, and 1; 0: it is not posted. */
  age: number;
  fileId: number;
  stripe: number;
  unit: number;
  request: Uint32Array;
}

/** Readers whose requests wait for a slot, in the order in which they are served: each in turn. */
type Waiting = Map<Reader, Uint32Array[]>;

export class ReadServer {
  private readonly regions: MemoryRegion[] = [];
  private readonly slots: ReadSlot[] = [];
  private readonly free = { small: [] as ReadSlot[], large: [] as ReadSlot[] };
  private readonly waiting = { small: new Map() as Waiting, large: new Map() as Waiting };
  private readonly found = emptyLocation();
  private readonly bytesTaken: number;
  private readonly largeSlots: number;
  private stopped = false;
  private onIdle: (() => void) | undefined;

  /**
   * @param budget  bytes to take of `memory`, at least one large slot
   * @param onDamage  told of each unit whose checksum failed
   */
  constructor(
    private readonly store: UnitStore,
    device: Device,
    private readonly coding: CodingQueue,
    private readonly coder: Coder,
    private readonly memory: RingMemory,
    private readonly counters: ReadCounters,
    budget: number,
    private readonly wrIdBase: number,
    private readonly onDamage: (fileId: number, stripe: number, unit: number) => void,
  ) {
    const large = Math.max(1, Math.floor((budget * 3) / 4 / LARGE_SLOT_BYTES));
    const small = Math.max(0, Math.min(256, Math.floor((budget - large * LARGE_SLOT_BYTES) / SMALL_SLOT_BYTES)));
    this.largeSlots = large;
    const bytes = large * LARGE_SLOT_BYTES + small * SMALL_SLOT_BYTES;
    this.bytesTaken = memory.take(bytes, bytes, bytes, 'set up the ring for reads');
    this.addSlots(device, large, LARGE_SLOT_BYTES, true);
    if (small > 0) this.addSlots(device, small, SMALL_SLOT_BYTES, false);
  }

  /**
   * A READ record, READ_WORDS words from `w`; copied.
   *
   * @param stale  the reader acts under an older map than this node's
   * @returns false: this reader asks for more than it may
   */
  request(reader: Reader, words: Uint32Array, w: number, stale: boolean): boolean {
    if (reader.reads >= MAX_READS) return false;
    reader.reads++;
    if (stale) this.refuse(reader, words.slice(w, w + READ_WORDS), Refusal.STALE_MAP);
    else this.begin(reader, words.slice(w, w + READ_WORDS));
    return true;
  }

  /** The disk's bytes were checked. */
  verified(index: number, status: number): void {
    const slot = this.slots[index]!;
    if (status === Status.CHECKSUM_ERROR) this.damaged(slot);
    else if (status !== Status.SUCCESS || slot.reader!.channel.closed) this.release(slot);
    else this.send(slot);
  }

  /** A write to a reader has completed or been flushed: work request id as posted. */
  written(wrId: number): void {
    // Completions come in the order of posting: with the payload's, the header's has come too.
    if ((wrId & HEADER_WRITE) === 0) this.release(this.slots[wrId]!);
  }

  /** To be called at equal intervals. @returns readers that let an answer lie for a whole interval */
  untaken(): Set<Reader> {
    const readers = new Set<Reader>();
    for (const slot of this.slots) if (slot.age > 0 && ++slot.age > 2) readers.add(slot.reader!);
    return readers;
  }

  /** Resolves when no slot is in use, and gives the memory back. */
  async stop(): Promise<void> {
    this.stopped = true;
    for (const waiting of [this.waiting.small, this.waiting.large]) {
      for (const [reader, requests] of waiting) reader.reads -= requests.length;
      waiting.clear();
    }
    if (this.free.small.length + this.free.large.length < this.slots.length)
      await new Promise<void>((resolve) => {
        this.onIdle = resolve;
      });
    await Promise.all(this.regions.map((region) => region.deregister()));
    this.memory.give(this.bytesTaken);
  }

  private addSlots(device: Device, count: number, slotBytes: number, large: boolean): void {
    const region = device.allocate(count * slotBytes);
    this.regions.push(region);
    for (let i = 0; i < count; i++) {
      const offset = i * slotBytes;
      const slot: ReadSlot = {
        index: this.slots.length,
        region,
        offset,
        large,
        location: emptyLocation(),
        reader: undefined,
        age: 0,
        fileId: 0,
        stripe: 0,
        unit: 0,
        request: noRequest,
        header: new Uint8Array(region.buffer, offset, HEADER_AREA_BYTES),
        payload: new Uint8Array(region.buffer, offset + HEADER_AREA_BYTES, slotBytes - HEADER_AREA_BYTES),
      };
      this.slots.push(slot);
      this.pool(slot).push(slot);
    }
  }

  private pool(slot: ReadSlot): ReadSlot[] {
    return slot.large ? this.free.large : this.free.small;
  }

  private begin(reader: Reader, request: Uint32Array): void {
    if (this.stopped) {
      this.refuse(reader, request, Refusal.CLOSED);
      return;
    }
    const fileId = pair(request, 1),
      stripe = pair(request, 3),
      unit = request[5]! & 0xff;
    const exactEpoch = request[12]!,
      exactCounter = request[13]!;
    const held =
      exactEpoch !== 0 || exactCounter !== 0
        ? this.store.lookupExact(fileId, stripe, unit, exactEpoch, exactCounter, this.found)
        : this.store.lookup(fileId, stripe, unit, request[6]!, request[7]!, this.found);
    if (!held) {
      this.refuse(reader, request, Refusal.NO_UNIT);
      return;
    }
    if (this.found.unitLength > request[10]!) {
      this.refuse(reader, request, Refusal.CAPACITY);
      return;
    }
    const small = this.found.unitLength <= SMALL_UNIT_BYTES && this.hasSmall;
    const pool = small ? this.free.small : this.free.large;
    const slot = this.isReserved(pool, small, reader) ? undefined : pool.pop();
    if (slot === undefined) {
      const waiting = small ? this.waiting.small : this.waiting.large;
      const requests = waiting.get(reader);
      if (requests === undefined) waiting.set(reader, [request]);
      else requests.push(request);
      return;
    }
    slot.reader = reader;
    reader.readSlots++;
    slot.request = request;
    slot.fileId = fileId;
    slot.stripe = stripe;
    slot.unit = unit;
    Object.assign(slot.location, this.found);
    detach(this.load(slot));
  }

  private get hasSmall(): boolean {
    return this.regions.length > 1;
  }

  private async load(slot: ReadSlot): Promise<void> {
    try {
      await this.store.read(slot.location, slot.header, slot.payload);
    } catch (error) {
      if (refusalOf(error) === undefined) throw error;
      this.fail(slot, Refusal.DISK);
      return;
    }
    if (slot.reader!.channel.closed || this.stopped) {
      this.release(slot);
      return;
    }
    // The header is at a place of its own in two blocks; a misplaced or stale one shows here, a damaged one in VERIFY.
    if (!this.isNamed(slot)) {
      this.damaged(slot);
      return;
    }
    const { location, offset, region } = slot;
    this.coding.postVerify(
      (this.wrIdBase | slot.index) >>> 0,
      this.coder,
      region,
      offset + location.headerByte,
      location.headerBytes,
      offset + HEADER_AREA_BYTES,
      location.unitLength,
    );
    slot.reader!.channel.hub.wake();
  }

  private isNamed({ header, location, fileId, stripe, unit }: ReadSlot): boolean {
    return isUnit(
      new Uint32Array(header.buffer, header.byteOffset + location.headerByte, location.headerBytes >> 2),
      0,
      location,
      fileId,
      stripe,
      unit,
    );
  }

  private send(slot: ReadSlot): void {
    const { request, location, offset, region, index } = slot;
    const { qp, hub } = slot.reader!.channel;
    const requestId = request[0]!,
      rkey = request[8]!;
    slot.age = 1;
    this.counters.unitsRead++;
    this.counters.bytesRead += location.unitLength;
    qp.postWrite(index | HEADER_WRITE, region, offset + location.headerByte, location.headerBytes, rkey, request[11]!);
    qp.postWriteWithImm(
      index,
      region,
      offset + HEADER_AREA_BYTES,
      location.unitLength,
      rkey,
      request[9]!,
      requestId,
      Flag.SIGNALED,
    );
    hub.wake();
  }

  private damaged(slot: ReadSlot): void {
    this.counters.checksumFailures++;
    this.store.markDamaged(slot.fileId, slot.stripe, slot.unit, slot.location);
    this.onDamage(slot.fileId, slot.stripe, slot.unit);
    this.fail(slot, Refusal.CHECKSUM);
  }

  private fail(slot: ReadSlot, refusal: number): void {
    this.tell(slot.reader!, slot.request, refusal);
    this.release(slot);
  }

  private refuse(reader: Reader, request: Uint32Array, refusal: number): void {
    reader.reads--;
    this.tell(reader, request, refusal);
  }

  private tell({ channel }: Reader, request: Uint32Array, refusal: number): void {
    this.counters.readsFailed++;
    if (channel.closed) return;
    const mark = this.store.fileMark(pair(request, 1));
    const queue = channel.records(MessageType.READ_FAILED);
    const at = queue.push(),
      record = queue.words;
    record[at] = request[0]!;
    record[at + 1] = refusal;
    record[at + 2] = mark.commitEpoch;
    record[at + 3] = mark.commitCounter;
    channel.touch();
  }

  private release(slot: ReadSlot): void {
    slot.reader!.reads--;
    slot.reader!.readSlots--;
    slot.reader = undefined;
    slot.age = 0;
    slot.request = noRequest;
    this.pool(slot).push(slot);
    if (this.stopped) {
      if (this.free.small.length + this.free.large.length === this.slots.length) this.onIdle?.();
      return;
    }
    this.serveWaiting(slot.large);
  }

  /** One request of each reader in turn, as long as there are slots for them. */
  private serveWaiting(large: boolean): void {
    const waiting = large ? this.waiting.large : this.waiting.small,
      pool = large ? this.free.large : this.free.small;
    for (const [reader, requests] of waiting) {
      if (pool.length === 0) return;
      if (reader.channel.closed) {
        waiting.delete(reader);
        reader.reads -= requests.length;
        continue;
      }
      if (this.isReserved(pool, !large, reader)) continue;
      const request = requests.shift()!;
      // Its turn comes again after all others'.
      waiting.delete(reader);
      if (requests.length > 0) waiting.set(reader, requests);
      this.begin(reader, request);
    }
  }

  /** The last slot is for readers that hold none. */
  private isReserved(pool: readonly ReadSlot[], small: boolean, reader: Reader): boolean {
    const slots = small ? this.slots.length - this.largeSlots : this.largeSlots;
    return pool.length === 1 && slots > 1 && reader.readSlots > 0;
  }
}

/**
 * Whether the header at `w`, as read from the disk, names what the index has at this place. Its seal is for VERIFY to
 * check.
 */
export function isUnit(
  words: Uint32Array,
  w: number,
  location: UnitLocation,
  fileId: number,
  stripe: number,
  unit: number,
): boolean {
  return (
    words[w] === UNIT_MAGIC &&
    headerFileId(words, w) === fileId &&
    headerStripe(words, w) === stripe &&
    headerUnit(words, w) === unit &&
    words[w + W.WRITER_EPOCH] === location.writerEpoch &&
    words[w + W.COUNTER] === location.counter &&
    words[w + W.UNIT_LENGTH] === location.unitLength &&
    words[w + W.PAYLOAD_CRC] === location.payloadCrc
  );
}

const noRequest = new Uint32Array(READ_WORDS);
function pair(words: Uint32Array, w: number): number {
  return words[w + 1]! * 0x1_0000_0000 + words[w]!;
}
