/** What a batch that has become durable changes in the index, and which entries go with it. */
import type { Batch, MovedEntry } from './batch.js';
import type { Chores } from './chores.js';
import type { FileIndex } from './file-index.js';
import { E, EntryFlag, type IndexTable } from './index-table.js';
import type { Durability } from './log-writer.js';
import type { Segments } from './segments.js';
import { freeSuperseded } from './versions.js';

export class BatchEffects {
  /** Files whose replaced versions are being freed: what a higher mark adds is freed with them. */
  private readonly freeing = new Set<FileIndex>();

  constructor(
    private readonly index: IndexTable,
    private readonly segments: Segments,
    private readonly durability: Durability,
    private readonly chores: Chores,
  ) {}

  /** Unit i of the batch is as durable as the log makes it. */
  becomeDurable(batch: Batch, i: number): void {
    const file = batch.files[i]!,
      stripe = batch.stripes[i]!,
      entry = batch.entries[i]!;
    this.index.setFlag(entry, EntryFlag.PENDING, false);
    if (this.durability === 'discard') this.index.setFlag(entry, EntryFlag.NO_PAYLOAD, true);
    this.index.setPlace(entry, batch.headerBlockOf(i), batch.headerByteOf(i), batch.payloadBlockOf(i));
    this.segments.add(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
    file.durableFence = Math.max(file.durableFence, this.index.get(entry, E.WRITER_EPOCH));
    if (this.index.get(this.index.first(file, stripe), E.NEXT) !== 0) {
      this.removeReplaced(file, stripe, entry);
      this.index.noteVersions(file, stripe, entry);
      this.freeSuperseded(file);
    }
  }

  /** The index follows a copy, if the unit is still held where it was copied from. */
  applyMove(batch: Batch, move: MovedEntry): void {
    const file = this.index.peekFile(move.fileId);
    const entry = file === undefined ? 0 : this.index.findAt(file, move.stripe, move.headerBlock, move.headerByte);
    if (entry === 0) return;
    const place = batch.placeOfMove(move),
      blocks = this.index.payloadBlocks(entry);
    this.segments.remove(move.headerBlock, blocks);
    this.index.setPlace(entry, place.headerBlock, place.headerByte, place.payloadBlock);
    this.segments.add(place.headerBlock, blocks);
  }

  /** Removes the damaged copy that a durable one of the same name has replaced. */
  private removeReplaced(file: FileIndex, stripe: number, entry: number): void {
    const unit = this.index.unit(entry),
      writerEpoch = this.index.get(entry, E.WRITER_EPOCH),
      counter = this.index.get(entry, E.COUNTER);
    for (let other = this.index.first(file, stripe), next = 0; other !== 0; other = next) {
      next = this.index.get(other, E.NEXT);
      if (
        other === entry ||
        this.index.unit(other) !== unit ||
        this.index.get(other, E.WRITER_EPOCH) !== writerEpoch ||
        this.index.get(other, E.COUNTER) !== counter
      )
        continue;
      this.removeEntry(file, stripe, other);
    }
  }

  /** Frees what newer versions at or below the commit mark have replaced; much of it some turns later. */
  freeSuperseded(file: FileIndex): void {
    if (file.superseded.size === 0 || this.freeing.has(file)) return;
    this.freeing.add(file);
    this.chores.add(this.freeAll(file));
  }

  private *freeAll(file: FileIndex): Generator<void> {
    yield* freeSuperseded(this.index, file, (stripe, entry) => {
      this.removeEntry(file, stripe, entry);
    });
    this.freeing.delete(file);
  }

  /** Removes a durable entry. */
  removeEntry(file: FileIndex, stripe: number, entry: number): void {
    this.segments.remove(this.index.headerBlock(entry), this.index.payloadBlocks(entry));
    this.index.remove(file, stripe, entry);
  }
}
