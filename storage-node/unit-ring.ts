/**
 * One peer's ring of unit slots, and the way of a unit through it:
 *
 *             write with immediate          sound        map and file known          queued
 *     FREE ─────────────────────▶ VERIFYING ─────▶ (WAITING ─────────────▶) judged ────────▶ APPENDING
 *      ▲                              │                                       │                 │
 *      └──────────────────────────────┴──── ACK (refused) ────────────────────┴── ACK (durable) ┘
 *
 * Nothing of a unit's header is trusted before VERIFY has found its seal and payload sound. The slot is the peer's
 * again when the acknowledgement goes out; the receive that its write consumed has been posted again long before.
 * A peer whose immediates lie (slot, lengths, a slot that isn't its own) loses the connection.
 *
 * The region is deregistered only when no slot is being verified, awaited or written to disk.
 */
import type { MemoryRegion, PacketReceiver } from 'tartan-rdma';
import { Status } from 'tartan-rdma';
import { isCommitted } from '../cluster/files.js';
import type { FileRecord } from '../cluster/records.js';
import type { MessageChannel } from '../pipeline/channel.js';
import { detach } from '../wire/front-door.js';
import {
  ACK_WORDS,
  MessageType,
  Refusal,
  UNIT_ACK_WORDS,
  unitImmHeaderBytes,
  unitImmSlot,
} from '../wire/ring-messages.js';
import { PAGE_BYTES, roundUp, unitSlotBytes } from '../wire/slot-layout.js';
import {
  checkHeader,
  DATA_HEADER_BYTES,
  headerFileId,
  headerStripe,
  headerUnit,
  MAX_HEADER_BYTES,
  W,
} from '../wire/unit-header.js';
import type { MapKeeper } from './map-keeper.js';
import type { Placement, Placements } from './placements.js';
import { QUEUED, type AppendClient, type UnitStore } from './unit-store.js';

const TWO_32 = 0x1_0000_0000;
const FREE = 0,
  VERIFYING = 1,
  WAITING = 2,
  APPENDING = 3;

/** What a ring needs of its node. */
export interface RingHost {
  readonly clusterId: number;
  readonly store: UnitStore;
  readonly maps: MapKeeper;
  readonly placements: Placements;
  readonly counters: {
    unitsReceived: number;
    bytesReceived: number;
    unitsRefused: number;
    unitsAcknowledged: number;
    checksumFailures: number;
    protocolErrors: number;
  };
  /** Posts a VERIFY whose completion comes back as `ring.verified(slot, …)`. */
  verify(
    ring: UnitRing,
    slot: number,
    headerOffset: number,
    headerBytes: number,
    payloadOffset: number,
    payloadBytes: number,
  ): void;
  /** A peer broke the protocol: counts, says so once, ends the connection. */
  violation(channel: MessageChannel, reason: string): void;
}

export class UnitRing implements AppendClient {
  readonly slotBytes: number;
  private readonly words: Uint32Array;
  private readonly bytes: Uint8Array;
  private readonly state: Uint8Array;
  private readonly headerBytes: Uint16Array;
  /** A full payload's view of each slot, so that a full unit allocates none. */
  private readonly payloads: Uint8Array[];
  private busy = 0;
  private closed = false;
  private onIdle: (() => void) | undefined;
  /** Set when units come as packets: the device chose their slots, and gets them back. */
  packets: PacketReceiver | undefined;

  /**
   * @param id         names the ring in VERIFY completions
   * @param unitBytes  largest payload of a slot
   * @param region     `slots` × unitSlotBytes(unitBytes) bytes that the peer may write
   * @param rebuilds   the peer restores units of this file: only committed ones are taken, of older owners too
   */
  constructor(
    private readonly host: RingHost,
    readonly id: number,
    private readonly channel: MessageChannel,
    readonly region: MemoryRegion,
    readonly slots: number,
    private readonly unitBytes: number,
    private readonly rebuilds?: FileRecord,
  ) {
    this.slotBytes = unitSlotBytes(unitBytes);
    this.words = new Uint32Array(region.buffer);
    this.bytes = new Uint8Array(region.buffer);
    this.state = new Uint8Array(slots);
    this.headerBytes = new Uint16Array(slots);
    this.payloads = Array.from({ length: slots }, (_, slot) =>
      this.bytes.subarray(this.payloadOffset(slot), this.payloadOffset(slot) + roundUp(unitBytes, PAGE_BYTES)),
    );
  }

  /** A write with immediate has arrived. */
  arrive(imm: number, byteLength: number): void {
    if (this.closed) return;
    const slot = unitImmSlot(imm),
      headerBytes = unitImmHeaderBytes(imm);
    const payloadBytes = byteLength - headerBytes;
    if (slot >= this.slots) {
      this.violated(`slot ${slot} of ${this.slots}`);
      return;
    }
    if (this.state[slot] !== FREE) {
      this.violated(`slot ${slot} written again before it was acknowledged`);
      return;
    }
    if (
      headerBytes < DATA_HEADER_BYTES ||
      headerBytes > MAX_HEADER_BYTES ||
      payloadBytes < 0 ||
      payloadBytes > this.unitBytes
    ) {
      this.violated(`${headerBytes} bytes of header in a write of ${byteLength}`);
      return;
    }
    this.headerBytes[slot] = headerBytes;
    this.busy++;
    this.host.counters.unitsReceived++;
    this.host.counters.bytesReceived += byteLength;
    const w = this.wordOf(slot);
    const fault = checkHeader(this.words, w, headerBytes, payloadBytes);
    // A newer format or a code that this version does not know is refused; bytes that are no header at all are a lie.
    if (fault === 'version' || fault === 'shape') {
      this.answer(slot, Refusal.MALFORMED);
      return;
    }
    if (fault !== undefined) {
      this.free(slot);
      this.violated(`a header that contradicts the write: ${fault}`);
      return;
    }
    if (this.words[w + W.CLUSTER] !== this.host.clusterId) {
      this.answer(slot, Refusal.CLUSTER);
      return;
    }
    this.state[slot] = VERIFYING;
    this.host.verify(this, slot, w * 4, headerBytes, this.payloadOffset(slot), payloadBytes);
  }

  /** VERIFY has completed. */
  verified(slot: number, status: number): void {
    if (this.closed) {
      this.free(slot);
      return;
    }
    if (status === Status.CHECKSUM_ERROR) {
      this.host.counters.checksumFailures++;
      this.answer(slot, Refusal.CHECKSUM);
      return;
    }
    if (status !== Status.SUCCESS) {
      this.answer(slot, Refusal.CLOSED);
      return;
    }
    this.judge(slot, undefined);
  }

  /** The store has settled a unit that it had queued. */
  onAppended(slot: number, refusal: number): void {
    this.answer(slot, refusal);
  }

  /** A unit that is durable has come again as packets: the peer may not have heard of it. */
  repeat(unit: number, stripe: number, writerEpoch: number, counter: number, mapEpoch: number): void {
    if (this.closed) return;
    this.tell(unit, Refusal.NONE, stripe, writerEpoch, counter, mapEpoch);
    this.channel.touch();
  }

  /** Ends the ring: no more answers. Resolves when nobody reads its memory any more; then it may be deregistered. */
  close(): Promise<void> {
    this.closed = true;
    if (this.busy === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.onIdle = resolve;
    });
  }

  /**
   * Map, file and place of a sound unit; then the store.
   *
   * @param fetched  what reading the file's record gave, the second time around
   */
  private judge(slot: number, fetched: Placement | number | undefined): void {
    const w = this.wordOf(slot);
    const mapEpoch = this.words[w + W.MAP_EPOCH]!;
    if (mapEpoch < this.host.maps.epoch) {
      this.answer(slot, Refusal.STALE_MAP);
      return;
    }
    if (mapEpoch > this.host.maps.epoch) {
      this.wait(slot, this.host.maps.reach(mapEpoch), (reached) => {
        if (reached) this.judge(slot, undefined);
        else this.answer(slot, Refusal.MAP_UNAVAILABLE);
      });
      return;
    }
    const fileId = headerFileId(this.words, w);
    if (this.host.store.isDeleted(fileId) || fileId > Number.MAX_SAFE_INTEGER) {
      this.answer(slot, Refusal.NO_UNIT);
      return;
    }
    const placement = fetched ?? this.host.placements.get(fileId);
    if (placement === undefined) {
      this.wait(slot, this.host.placements.fetch(fileId), (found) => {
        this.judge(slot, found);
      });
      return;
    }
    const refusal = typeof placement === 'number' ? placement : placement.judge(this.words, w);
    if (refusal !== Refusal.NONE) {
      this.answer(slot, refusal);
      return;
    }
    if (this.rebuilds !== undefined && !this.mayRebuild(this.rebuilds, w)) {
      this.answer(slot, Refusal.NOT_COMMITTED);
      return;
    }
    this.append(slot, w);
  }

  private mayRebuild(record: FileRecord, w: number): boolean {
    const { words } = this;
    return (
      headerFileId(words, w) === record.id &&
      isCommitted(record, headerStripe(words, w), words[w + W.WRITER_EPOCH]!, words[w + W.COUNTER]!)
    );
  }

  private append(slot: number, w: number): void {
    const headerBytes = this.headerBytes[slot]!,
      length = this.words[w + W.UNIT_LENGTH]!;
    // Memory that a peer may write is looked at again where it bounds what we do.
    if (checkHeader(this.words, w, headerBytes, length) !== undefined || length > this.unitBytes) {
      this.free(slot);
      this.violated('a slot written while it was being checked');
      return;
    }
    let payload = this.payloads[slot]!;
    const padded = roundUp(length, PAGE_BYTES);
    if (padded !== payload.length) payload = payload.subarray(0, padded);
    if (length < padded) payload.fill(0, length);
    this.state[slot] = APPENDING;
    const refusal = this.host.store.append(
      this,
      slot,
      this.words,
      w,
      headerBytes,
      payload,
      this.rebuilds !== undefined,
    );
    if (refusal !== QUEUED) this.answer(slot, refusal);
  }

  private wait<T>(slot: number, promise: Promise<T>, then: (value: T) => void): void {
    this.state[slot] = WAITING;
    detach(
      promise.then((value) => {
        if (this.closed) this.free(slot);
        else then(value);
      }),
    );
  }

  /** Tells the peer, and gives the slot back to it. */
  private answer(slot: number, refusal: number): void {
    if (!this.closed) {
      if (this.packets === undefined) this.acknowledgeSlot(slot, refusal);
      else this.acknowledgeUnit(this.packets, slot, refusal);
      this.channel.touch();
      if (refusal === Refusal.NONE) this.host.counters.unitsAcknowledged++;
      else this.host.counters.unitsRefused++;
    }
    this.free(slot);
  }

  private acknowledgeSlot(slot: number, refusal: number): void {
    const w = this.wordOf(slot),
      queue = this.channel.records(MessageType.ACK);
    const at = queue.push(),
      record = queue.words;
    record[at] = (slot | (refusal << 16)) >>> 0;
    record[at + 1] = this.words[w + W.WRITER_EPOCH]!;
    record[at + 2] = this.words[w + W.COUNTER]!;
    record[at + 3] = this.host.maps.epoch;
    record[at + ACK_WORDS - 1] = this.words[w + W.STRIPE_LO]!;
  }

  private acknowledgeUnit(packets: PacketReceiver, slot: number, refusal: number): void {
    const { words } = this,
      w = this.wordOf(slot);
    this.tell(
      headerUnit(words, w),
      refusal,
      headerStripe(words, w),
      words[w + W.WRITER_EPOCH]!,
      words[w + W.COUNTER]!,
      words[w + W.MAP_EPOCH]!,
    );
    packets.release(slot, refusal === Refusal.NONE);
  }

  private tell(
    unit: number,
    refusal: number,
    stripe: number,
    writerEpoch: number,
    counter: number,
    mapEpoch: number,
  ): void {
    // Packets use up no receives, by which others are held back that do not take their answers.
    if (this.channel.isFull) {
      this.violated('it does not take its acknowledgements');
      return;
    }
    const queue = this.channel.records(MessageType.UNIT_ACK),
      at = queue.push(),
      record = queue.words;
    record[at] = (unit | (refusal << 8)) >>> 0;
    record[at + 1] = stripe % TWO_32;
    record[at + 2] = Math.floor(stripe / TWO_32);
    record[at + 3] = writerEpoch;
    record[at + 4] = counter;
    record[at + 5] = mapEpoch;
    record[at + UNIT_ACK_WORDS - 1] = this.host.maps.epoch;
  }

  private free(slot: number): void {
    this.state[slot] = FREE;
    this.busy--;
    if (this.busy === 0) this.onIdle?.();
  }

  private violated(reason: string): void {
    this.host.violation(this.channel, reason);
  }
  private wordOf(slot: number): number {
    return (slot * this.slotBytes + PAGE_BYTES - this.headerBytes[slot]!) >> 2;
  }
  private payloadOffset(slot: number): number {
    return slot * this.slotBytes + PAGE_BYTES;
  }
}
