/**
 * Takes units into the log: each is judged by the index, queued or refused at once; a unit for which room is being made
 * waits.
 */
import { Refusal } from '../wire/ring-messages.js';
import { compareVersions, headerFileId, headerStripe, headerUnit, W } from '../wire/unit-header.js';
import type { AppendClient } from './batch.js';
import { BLOCK_BYTES } from './disk.js';
import type { FileIndex } from './file-index.js';
import { E, EntryFlag, type EntryFields, type IndexTable } from './index-table.js';
import { EntryKind, missingEntry, unitEntryWords } from './log-format.js';
import type { LogWriter } from './log-writer.js';
import type { PendingDiscards } from './pending-discards.js';
import { QUEUED } from './store-types.js';

/** Of tryAppend(): a discard that is about the unit is pending. */
const COVERED = -2;

/** A unit that append() took and could not place yet. */
interface ParkedUnit {
  readonly client: AppendClient;
  readonly token: number;
  readonly words: Uint32Array;
  readonly headerBytes: number;
  readonly rebuilt: boolean;
  readonly payload: Uint8Array;
}

export interface AppenderOptions {
  readonly index: IndexTable;
  readonly log: LogWriter;
  readonly isDeleted: (fileId: number) => boolean;
  readonly discards: PendingDiscards;
  /** The file's commit mark has risen. */
  readonly onMark: (file: FileIndex) => void;
  /** There is no room. @returns whether some is being made: retryParked() is called then */
  readonly makeRoom: () => boolean;
}

export class Appender {
  readonly counts = { duplicates: 0, refused: 0 };
  private readonly index: IndexTable;
  private readonly log: LogWriter;
  private parked: ParkedUnit[] = [];
  /** Units that wait for discards. */
  private covered: ParkedUnit[] = [];

  constructor(private readonly options: AppenderOptions) {
    this.index = options.index;
    this.log = options.log;
  }

  /** Units that wait for room. */
  get parkedUnits(): number {
    return this.parked.length;
  }

  /** As UnitStore.append(). */
  append(
    client: AppendClient,
    token: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
    payload: Uint8Array,
    rebuilt: boolean,
  ): number {
    const refusal = this.tryAppend(client, token, words, w, headerBytes, payload, rebuilt);
    if (refusal === COVERED || (refusal === Refusal.DISK_FULL && this.options.makeRoom())) {
      const unit = { client, token, words: words.slice(w, w + (headerBytes >> 2)), headerBytes, payload, rebuilt };
      (refusal === COVERED ? this.covered : this.parked).push(unit);
      return QUEUED;
    }
    if (refusal === Refusal.NONE) this.counts.duplicates++;
    else if (refusal !== QUEUED) this.counts.refused++;
    return refusal;
  }

  /** Some room was made, or no more will be. @param isLast  no more room will be made now */
  retryParked(isLast: boolean): void {
    for (const unit of this.parked.splice(0)) this.retry(unit, !isLast);
  }

  /** A discard has settled. */
  retryCovered(): void {
    for (const unit of this.covered.splice(0)) this.retry(unit, this.options.makeRoom());
  }

  /** @param mayPark  when there is no room for it */
  private retry(unit: ParkedUnit, mayPark: boolean): void {
    const { client, token, words, headerBytes, payload, rebuilt } = unit;
    const refusal = this.tryAppend(client, token, words, 0, headerBytes, payload, rebuilt);
    if (refusal === QUEUED) return;
    if (refusal === COVERED) this.covered.push(unit);
    else if (refusal === Refusal.DISK_FULL && mayPark) this.parked.push(unit);
    else {
      if (refusal === Refusal.NONE) this.counts.duplicates++;
      else this.counts.refused++;
      client.onAppended(token, refusal);
    }
  }

  private tryAppend(
    client: AppendClient,
    token: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
    payload: Uint8Array,
    rebuilt: boolean,
  ): number {
    if (this.log.refusal !== Refusal.NONE) return this.log.refusal;
    const fileId = headerFileId(words, w),
      stripe = headerStripe(words, w),
      unit = headerUnit(words, w);
    if (this.options.isDeleted(fileId)) return Refusal.NO_UNIT;
    const file = this.index.file(fileId);
    const writerEpoch = words[w + W.WRITER_EPOCH]!,
      counter = words[w + W.COUNTER]!;
    if (writerEpoch < file.fence && !rebuilt) return Refusal.STALE_WRITER_EPOCH;
    if (this.options.discards.covers(fileId, stripe, writerEpoch)) return COVERED;
    file.fence = Math.max(file.fence, writerEpoch);
    if (file.raiseMark(writerEpoch, words[w + W.COMMIT_MARK]!)) this.options.onMark(file);

    const held = this.index.find(file, stripe, unit, writerEpoch, counter);
    if (held !== 0) {
      const flags = this.index.flags(held);
      const same =
        this.index.get(held, E.PAYLOAD_CRC) === words[w + W.PAYLOAD_CRC] &&
        this.index.get(held, E.UNIT_LENGTH) === words[w + W.UNIT_LENGTH] &&
        this.index.get(held, E.STRIPE_LENGTH) === words[w + W.STRIPE_LENGTH];
      // Whoever rebuilds has shown that the unit of this name is another one than the damaged copy says.
      if (!same && !(rebuilt && (flags & EntryFlag.DAMAGED) !== 0)) return Refusal.NAME_CONFLICT;
      const missing = this.newlyMissing(file, stripe, held, words, w);
      if (missing !== 0n && (flags & EntryFlag.DAMAGED) === 0)
        return this.appendMissing(client, token, fileId, file, stripe, unit, writerEpoch, counter, missing);
      if ((flags & EntryFlag.PENDING) !== 0) {
        // Durable when the first copy is, not before.
        this.log.batch(this.index.get(held, E.HEADER_BLOCK)).waiters.push({ client, token });
        return QUEUED;
      }
      if ((flags & EntryFlag.DAMAGED) === 0) return Refusal.NONE;
    } else {
      const newest = this.index.highest(file, stripe, unit, 0xffffffff, 0xffffffff, 0);
      if (
        newest !== 0 &&
        compareVersions(
          writerEpoch,
          counter,
          this.index.get(newest, E.WRITER_EPOCH),
          this.index.get(newest, E.COUNTER),
        ) < 0
      )
        return Refusal.STALE_VERSION;
    }

    const batch = this.log.batchForUnit(unitEntryWords(headerBytes), payload.length / BLOCK_BYTES);
    if (batch === undefined) return Refusal.DISK_FULL;
    // A damaged copy stays until the new one is durable: it is known to have been stored.
    const entry = this.index.insert(
      file,
      stripe,
      this.fieldsOf(file, stripe, unit, words, w, headerBytes),
      EntryFlag.PENDING,
    );
    this.index.setBatch(entry, batch.id);
    batch.addUnit(client, token, file, stripe, entry, words, w, headerBytes, payload);
    this.log.kick();
    return QUEUED;
  }

  /** Units that a duplicate's header calls missing and what is held does not. */
  private newlyMissing(file: FileIndex, stripe: number, entry: number, words: Uint32Array, w: number): bigint {
    if (words[w + W.MISSING_LO] === 0 && words[w + W.MISSING_HI] === 0) return 0n;
    const wanted = BigInt(words[w + W.MISSING_LO]!) | (BigInt(words[w + W.MISSING_HI]!) << 32n);
    const known = this.index.missing(entry) | file.missingOf(stripe, words[w + W.WRITER_EPOCH]!, words[w + W.COUNTER]!);
    return wanted & ~known;
  }

  /**
   * Answers a duplicate once what it adds is durable. The unit, queued before, has then been settled: it may have
   * failed.
   */
  private appendMissing(
    client: AppendClient,
    token: number,
    fileId: number,
    file: FileIndex,
    stripe: number,
    unit: number,
    writerEpoch: number,
    counter: number,
    missing: bigint,
  ): number {
    const refusal = this.log.addControl(
      EntryKind.MISSING,
      missingEntry(fileId, stripe, writerEpoch, counter, missing),
      {
        apply: () => {
          file.recordMissing(stripe, writerEpoch, counter, missing);
        },
        resolve: () => {
          client.onAppended(
            token,
            this.index.find(file, stripe, unit, writerEpoch, counter) === 0 ? Refusal.DISK : Refusal.NONE,
          );
        },
        reject: () => {
          client.onAppended(token, this.log.refusal === Refusal.NONE ? Refusal.DISK : this.log.refusal);
        },
      },
    );
    return refusal === Refusal.NONE ? QUEUED : refusal;
  }

  private fieldsOf(
    file: FileIndex,
    stripe: number,
    unit: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
  ): EntryFields {
    fields.unit = unit;
    fields.headerWords = headerBytes >> 2;
    fields.writerEpoch = words[w + W.WRITER_EPOCH]!;
    fields.counter = words[w + W.COUNTER]!;
    fields.unitLength = words[w + W.UNIT_LENGTH]!;
    fields.payloadCrc = words[w + W.PAYLOAD_CRC]!;
    fields.stripeLength = words[w + W.STRIPE_LENGTH]!;
    fields.missingLow = words[w + W.MISSING_LO]!;
    fields.missingHigh = words[w + W.MISSING_HI]!;
    fields.mapEpoch = words[w + W.MAP_EPOCH]!;
    return fields;
  }
}

/** One object for all insertions: insert() copies it. */
const fields: EntryFields = {
  unit: 0,
  headerWords: 0,
  writerEpoch: 0,
  counter: 0,
  unitLength: 0,
  payloadCrc: 0,
  stripeLength: 0,
  missingLow: 0,
  missingHigh: 0,
  mapEpoch: 0,
};
