/** Builds the index from the log's tail. Nothing is checked against rules that were checked when it was written. */
import { W, headerFileId, headerStripe, headerUnit } from '../wire/unit-header.js';
import type { IndexTable } from './index-table.js';
import type { HeaderPlace, LogReader, UnitPlace } from './recovery.js';
import { discardVersions, freeSuperseded } from './versions.js';

export class Replay implements LogReader {
  constructor(private readonly index: IndexTable) {}

  unit(
    words: Uint32Array,
    w: number,
    headerBytes: number,
    headerBlock: number,
    headerByte: number,
    payloadBlock: number,
  ): UnitPlace | undefined {
    const fileId = headerFileId(words, w),
      stripe = headerStripe(words, w),
      unit = headerUnit(words, w);
    if (this.index.isDeleted(fileId)) return undefined;
    const file = this.index.file(fileId);
    const writerEpoch = words[w + W.WRITER_EPOCH]!,
      counter = words[w + W.COUNTER]!;
    file.fence = file.durableFence = Math.max(file.fence, writerEpoch);
    // The same name again: the first copy had been damaged, so the later one counts.
    const known = this.index.find(file, stripe, unit, writerEpoch, counter);
    const replaced =
      known === 0
        ? undefined
        : {
            headerBlock: this.index.headerBlock(known),
            headerByte: this.index.headerByte(known),
            payloadBlock: this.index.payloadBlock(known),
          };
    if (known !== 0) this.index.remove(file, stripe, known);
    const entry = this.index.insert(
      file,
      stripe,
      {
        unit,
        headerWords: headerBytes >> 2,
        writerEpoch,
        counter,
        unitLength: words[w + W.UNIT_LENGTH]!,
        payloadCrc: words[w + W.PAYLOAD_CRC]!,
        stripeLength: words[w + W.STRIPE_LENGTH]!,
        missingLow: words[w + W.MISSING_LO]!,
        missingHigh: words[w + W.MISSING_HI]!,
        mapEpoch: words[w + W.MAP_EPOCH]!,
      },
      0,
    );
    this.index.setPlace(entry, headerBlock, headerByte, payloadBlock);
    this.index.noteVersions(file, stripe, entry);
    file.raiseMark(writerEpoch, words[w + W.COMMIT_MARK]!);
    return replaced;
  }

  moved(words: Uint32Array, w: number, from: HeaderPlace, to: UnitPlace): UnitPlace | undefined {
    const file = this.index.peekFile(headerFileId(words, w));
    const entry =
      file === undefined ? 0 : this.index.findAt(file, headerStripe(words, w), from.headerBlock, from.headerByte);
    // Discarded, deleted or replaced while it was being moved: then it stays so.
    if (entry === 0) return undefined;
    const fallback = { ...from, payloadBlock: this.index.payloadBlock(entry) };
    this.index.setPlace(entry, to.headerBlock, to.headerByte, to.payloadBlock);
    return fallback;
  }

  missing(fileId: number, stripe: number, writerEpoch: number, counter: number, mask: bigint): void {
    if (!this.index.isDeleted(fileId)) this.index.file(fileId).recordMissing(stripe, writerEpoch, counter, mask);
  }

  fence(fileId: number, writerEpoch: number): void {
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    file.fence = file.durableFence = Math.max(file.fence, writerEpoch);
  }

  discard(fileId: number, fromStripe: number, writerEpoch: number): void {
    if (this.index.isDeleted(fileId)) return;
    const file = this.index.file(fileId);
    discardVersions(this.index, file, fromStripe, writerEpoch, (stripe, entry) => {
      this.index.remove(file, stripe, entry);
    });
    this.fence(fileId, writerEpoch);
  }

  deleted(fileId: number): void {
    if (!this.index.isDeleted(fileId)) exhaust(this.index.deleteFile(fileId, () => undefined));
  }

  voided(fileId: number, stripe: number, place: HeaderPlace, fallback: UnitPlace | undefined): void {
    const file = this.index.peekFile(fileId),
      entry = this.entryAt(fileId, stripe, place);
    if (file === undefined || entry === 0) return;
    if (fallback === undefined) this.index.remove(file, stripe, entry);
    else this.index.setPlace(entry, fallback.headerBlock, fallback.headerByte, fallback.payloadBlock);
  }

  holdsAt(fileId: number, stripe: number, place: HeaderPlace): boolean {
    return this.entryAt(fileId, stripe, place) !== 0;
  }

  private entryAt(fileId: number, stripe: number, { headerBlock, headerByte }: HeaderPlace): number {
    const file = this.index.peekFile(fileId);
    return file === undefined ? 0 : this.index.findAt(file, stripe, headerBlock, headerByte);
  }

  /** Frees superseded versions: last of all, because a newer version may have turned out torn. */
  finish(): void {
    for (const id of this.index.fileIds()) {
      const file = this.index.peekFile(id)!;
      if (file.superseded.size > 0)
        exhaust(
          freeSuperseded(this.index, file, (stripe, entry) => {
            this.index.remove(file, stripe, entry);
          }),
        );
    }
  }
}

/** Nobody is served yet: all of it at once. */
function exhaust(steps: Iterator<unknown>): void {
  while (steps.next().done !== true);
}
