/**
 * One batch being filled: its header blocks in aligned memory, the payloads' views in the order they will lie on disk,
 * and whom to tell. Pooled by the store and reused; nothing is allocated for a unit.
 */
import { BLOCK_BYTES } from './disk.js';
import type { FileIndex } from './file-index.js';
import {
  BATCH_HEADER_BYTES,
  entryHead,
  EntryKind,
  headerBlocksOf,
  MAX_HEADER_AREA_BYTES,
  MOVED_ENTRY_HEAD_WORDS,
  movedEntryWords,
  UNIT_ENTRY_HEAD_WORDS,
  unitEntryWords,
} from './log-format.js';

/** Who appended a unit. Called once for each queued one, in order of queueing within a batch. */
export interface AppendClient {
  /** @param refusal one of `Refusal`; NONE: the unit is durable */
  onAppended(token: number, refusal: number): void;
}

/** An entry that is not a unit. */
export interface ControlEntry {
  /** Applied to the index when the batch is durable, before `resolve`. */
  readonly apply: () => void;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** A unit on its way from one place of the log to another. */
export interface MovedEntry {
  readonly fileId: number;
  readonly stripe: number;
  /** Where its header lies now. */
  readonly headerBlock: number;
  readonly headerByte: number;
  /** Word of the entry in its batch; set by the batch. */
  start: number;
  /** Told when the copy is as durable as the log makes it, after the index was updated. @param refusal NONE: it is */
  readonly onMoved: (refusal: number) => void;
}

/** Page-aligned memory where the disk wants it; the store releases what it took. */
export interface AlignedMemory {
  readonly bytes: Uint8Array;
  release(): void;
}

export class Batch {
  readonly words: Uint32Array;
  readonly clients: (AppendClient | undefined)[] = [];
  readonly files: (FileIndex | undefined)[] = [];
  readonly tokens: Uint32Array;
  /** Index entries, stripes and the words where the units' entries begin. */
  readonly entries: Uint32Array;
  readonly stripes: Float64Array;
  readonly starts: Uint32Array;
  units = 0;
  controls: ControlEntry[] = [];
  /** Duplicates of units in this batch, waiting for it. */
  waiters: { readonly client: AppendClient; readonly token: number }[] = [];
  /** Slot 0 is for the header blocks; payloads follow. */
  readonly views: Uint8Array[] = [new Uint8Array(0)];
  payloadBlocks = 0;
  /** Where it was written, once it was. */
  firstBlock = 0;
  private usedWords = BATCH_HEADER_BYTES >> 2;

  constructor(
    readonly id: number,
    readonly memory: AlignedMemory,
    readonly maxUnits: number,
  ) {
    this.words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, MAX_HEADER_AREA_BYTES >> 2);
    this.tokens = new Uint32Array(maxUnits);
    this.entries = new Uint32Array(maxUnits);
    this.stripes = new Float64Array(maxUnits);
    this.starts = new Uint32Array(maxUnits);
  }

  get headerBytes(): number {
    return this.usedWords << 2;
  }
  get entryCount(): number {
    return this.units + this.controls.length + this.moves.length;
  }
  get empty(): boolean {
    return this.entryCount === 0;
  }

  /** Whether an entry of so many words and payload blocks still fits; the first always does. */
  hasRoom(entryWords: number, blocks: number, maxPayloadBlocks: number): boolean {
    if (this.empty) return true;
    return (
      this.units < this.maxUnits &&
      this.usedWords + entryWords <= MAX_HEADER_AREA_BYTES >> 2 &&
      (blocks === 0 || this.payloadBlocks + blocks <= maxPayloadBlocks)
    );
  }

  /** Units being moved by the cleaner. */
  moves: MovedEntry[] = [];

  /** Copies the unit's header (words from `w`) into the batch and takes its payload's view, whole blocks long. */
  addUnit(
    client: AppendClient,
    token: number,
    file: FileIndex,
    stripe: number,
    entry: number,
    words: Uint32Array,
    w: number,
    headerBytes: number,
    payload: Uint8Array,
  ): void {
    const start = this.usedWords,
      size = unitEntryWords(headerBytes);
    this.words[start] = entryHead(EntryKind.UNIT, size);
    this.words[start + 1] = this.payloadBlocks;
    this.words[start + size - 1] = 0;
    for (let i = 0; i < headerBytes >> 2; i++) this.words[start + UNIT_ENTRY_HEAD_WORDS + i] = words[w + i]!;
    const i = this.units++;
    this.clients[i] = client;
    this.files[i] = file;
    this.tokens[i] = token;
    this.entries[i] = entry;
    this.stripes[i] = stripe;
    this.starts[i] = start;
    if (payload.length > 0) this.views.push(payload);
    this.payloadBlocks += payload.length / BLOCK_BYTES;
    this.usedWords += size;
  }

  /** As addUnit(), for a copy of a unit that the log holds already. */
  addMoved(move: MovedEntry, words: Uint32Array, w: number, headerBytes: number, payload: Uint8Array): void {
    const start = this.usedWords,
      size = movedEntryWords(headerBytes);
    this.words.set([entryHead(EntryKind.MOVED, size), this.payloadBlocks, move.headerBlock, move.headerByte], start);
    this.words[start + size - 1] = 0;
    for (let i = 0; i < headerBytes >> 2; i++) this.words[start + MOVED_ENTRY_HEAD_WORDS + i] = words[w + i]!;
    move.start = start;
    this.moves.push(move);
    if (payload.length > 0) this.views.push(payload);
    this.payloadBlocks += payload.length / BLOCK_BYTES;
    this.usedWords += size;
  }

  /** @param fill writes the entry's words after the head, from the given index on */
  addControl(kind: number, size: number, fill: (words: Uint32Array, w: number) => void, control: ControlEntry): void {
    const start = this.usedWords;
    this.words.fill(0, start, start + size);
    this.words[start] = entryHead(kind, size);
    fill(this.words, start + 1);
    this.usedWords += size;
    this.controls.push(control);
  }

  /** Block of unit i's payload on disk, once written. */
  payloadBlockOf(i: number): number {
    return this.payloadBlockAt(this.starts[i]!);
  }
  /** Block and byte in it where unit i's header begins on disk. */
  headerBlockOf(i: number): number {
    return this.firstBlock + Math.floor(this.headerOffset(i) / BLOCK_BYTES);
  }
  headerByteOf(i: number): number {
    return this.headerOffset(i) % BLOCK_BYTES;
  }
  private headerOffset(i: number): number {
    return (this.starts[i]! + UNIT_ENTRY_HEAD_WORDS) * 4;
  }
  private payloadBlockAt(start: number): number {
    return this.firstBlock + headerBlocksOf(this.headerBytes) + this.words[start + 1]!;
  }

  /** Where a moved unit lies, once written. */
  placeOfMove({ start }: MovedEntry): { headerBlock: number; headerByte: number; payloadBlock: number } {
    const offset = (start + MOVED_ENTRY_HEAD_WORDS) * 4;
    return {
      headerBlock: this.firstBlock + Math.floor(offset / BLOCK_BYTES),
      headerByte: offset % BLOCK_BYTES,
      payloadBlock: this.payloadBlockAt(start),
    };
  }

  /** Makes it empty for its next use. */
  reset(): void {
    this.clients.fill(undefined, 0, this.units);
    this.files.fill(undefined, 0, this.units);
    this.units = 0;
    this.controls = [];
    this.moves = [];
    this.waiters = [];
    this.views.length = 1;
    this.payloadBlocks = 0;
    this.usedWords = BATCH_HEADER_BYTES >> 2;
  }
}
