/** What the store holds, as readers, takeovers and scrub see it: durable units only, found through the index. */
import { roundUp } from '../wire/slot-layout.js';
import { compareVersions } from '../wire/unit-header.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import type { FileIndex } from './file-index.js';
import type { FileMark, HeldUnit } from './held-unit.js';
import { E, EntryFlag, type IndexTable } from './index-table.js';
import type { Segments } from './segments.js';
import type { UnitLocation } from './store-types.js';

export class IndexView {
  /** Units found damaged since the store was opened. */
  damaged = 0;

  /** @param onDamaged  told where the header of a unit lies that counts as damaged from now on */
  constructor(
    private readonly disk: Disk,
    private readonly index: IndexTable,
    private readonly segments: Segments,
    private readonly onDamaged: (headerBlock: number) => void,
  ) {}

  /**
   * The highest version of a unit at or below the given one that can be read.
   *
   * @returns true with `out` filled, false: none
   */
  lookup(
    fileId: number,
    stripe: number,
    unit: number,
    maxEpoch: number,
    maxCounter: number,
    out: UnitLocation,
  ): boolean {
    const file = this.index.peekFile(fileId);
    const entry =
      file === undefined
        ? 0
        : this.index.highest(file, stripe, unit, maxEpoch, maxCounter, EntryFlag.PENDING | EntryFlag.NO_PAYLOAD);
    return this.locate(entry, out);
  }

  /** As lookup(), for exactly this version. */
  lookupExact(
    fileId: number,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    out: UnitLocation,
  ): boolean {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, writerEpoch, counter);
    return this.locate(
      entry !== 0 && (this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.NO_PAYLOAD)) === 0 ? entry : 0,
      out,
    );
  }

  /**
   * Reads a unit; nothing is checked here.
   *
   * @param header   two blocks; the unit's header begins at `location.headerByte` in it
   * @param payload  at least the unit's length, rounded up to blocks
   * @throws {TartanError} ERR_DISK
   */
  async read(location: UnitLocation, header: Uint8Array, payload: Uint8Array): Promise<void> {
    const headerBlocks = location.headerByte + location.headerBytes > BLOCK_BYTES ? 2 : 1,
      segment = this.segments.of(location.headerBlock);
    // The unit may be moved or freed meanwhile; its old place must not be written anew before it has been read.
    this.segments.pin(segment);
    const reads = [this.disk.read(header.subarray(0, headerBlocks * BLOCK_BYTES), location.headerBlock * BLOCK_BYTES)];
    if (location.unitLength > 0)
      reads.push(
        this.disk.read(
          payload.subarray(0, roundUp(location.unitLength, BLOCK_BYTES)),
          location.payloadBlock * BLOCK_BYTES,
        ),
      );
    // Both must have settled before the memory is anybody else's.
    const results = await Promise.allSettled(reads);
    this.segments.unpin(segment);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /**
   * A read found the unit's checksum wrong: a new copy of the same name will be stored, no longer taken for a
   * duplicate.
   */
  markDamaged(fileId: number, stripe: number, unit: number, location: UnitLocation): void {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, location.writerEpoch, location.counter);
    if (
      entry === 0 ||
      this.index.headerBlock(entry) !== location.headerBlock ||
      this.index.headerByte(entry) !== location.headerByte
    )
      return;
    if ((this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.DAMAGED)) !== 0) return;
    this.flagDamaged(entry);
  }

  /**
   * A unit is sound and yet not its stripe's: from now on it counts as damaged, if it is held with exactly this
   * payload.
   */
  condemn(
    fileId: number,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    payloadCrc: number,
  ): void {
    const file = this.index.peekFile(fileId);
    const entry = file === undefined ? 0 : this.index.find(file, stripe, unit, writerEpoch, counter);
    if (
      entry === 0 ||
      this.index.get(entry, E.PAYLOAD_CRC) !== payloadCrc ||
      (this.index.flags(entry) & (EntryFlag.PENDING | EntryFlag.DAMAGED)) !== 0
    )
      return;
    this.flagDamaged(entry);
  }

  /** A unit's copy is damaged: found when it was read, or when it was to be moved. */
  flagDamaged(entry: number): void {
    this.index.setFlag(entry, EntryFlag.DAMAGED, true);
    this.damaged++;
    this.onDamaged(this.index.headerBlock(entry));
  }

  /**
   * The units held durably from a stripe on, ascending; whole stripes, at most `limit` units (a first stripe that alone
   * exceeds it is cut). Damaged units are listed: they were stored, and their lack must not be taken for a hole.
   */
  inventory(fileId: number, fromStripe: number, limit: number): { units: HeldUnit[]; more: boolean } {
    const units: HeldUnit[] = [];
    const file = this.index.peekFile(fileId);
    if (file === undefined) return { units, more: false };
    for (const stripe of this.index.stripesFrom(file, fromStripe)) {
      const here = this.heldUnits(file, stripe);
      if (here.length === 0) continue;
      if (units.length + here.length > limit) {
        if (units.length === 0) units.push(...here.slice(0, limit));
        return { units, more: true };
      }
      units.push(...here);
    }
    return { units, more: false };
  }

  /** The fence in force and the highest commit mark known. */
  fileMark(fileId: number): FileMark {
    const file = this.index.peekFile(fileId);
    return { writerEpoch: file?.fence ?? 0, commitEpoch: file?.markEpoch ?? 0, commitCounter: file?.markCounter ?? 0 };
  }

  private locate(entry: number, out: UnitLocation): boolean {
    if (entry === 0) return false;
    const words = this.index.words(entry),
      w = this.index.at(entry);
    out.writerEpoch = words[w + E.WRITER_EPOCH]!;
    out.counter = words[w + E.COUNTER]!;
    out.unitLength = words[w + E.UNIT_LENGTH]!;
    out.payloadCrc = words[w + E.PAYLOAD_CRC]!;
    out.headerBlock = this.index.headerBlock(entry);
    out.headerByte = this.index.headerByte(entry);
    out.headerBytes = this.index.headerBytes(entry);
    out.payloadBlock = this.index.payloadBlock(entry);
    return true;
  }

  private heldUnits(file: FileIndex, stripe: number): HeldUnit[] {
    const units: HeldUnit[] = [];
    for (let entry = this.index.first(file, stripe); entry !== 0; entry = this.index.get(entry, E.NEXT)) {
      if ((this.index.flags(entry) & EntryFlag.PENDING) !== 0) continue;
      const writerEpoch = this.index.get(entry, E.WRITER_EPOCH),
        counter = this.index.get(entry, E.COUNTER);
      units.push({
        stripe,
        unit: this.index.unit(entry),
        writerEpoch,
        counter,
        stripeLength: this.index.get(entry, E.STRIPE_LENGTH),
        payloadCrc: this.index.get(entry, E.PAYLOAD_CRC),
        mapEpoch: this.index.get(entry, E.MAP_EPOCH),
        damaged: (this.index.flags(entry) & EntryFlag.DAMAGED) !== 0,
        missing: this.index.missing(entry) | file.missingOf(stripe, writerEpoch, counter),
      });
    }
    return units.sort((a, b) => a.unit - b.unit || compareVersions(b.writerEpoch, b.counter, a.writerEpoch, a.counter));
  }
}
