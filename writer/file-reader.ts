/**
 * A file open for reading: random reads and a Readable, over a window of stripes read ahead.
 * It shows what was committed when it was opened, or last refreshed; never an unfinished version.
 */
import { Readable } from 'node:stream';
import { epochFloor, readFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import type { FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import type { Layout } from '../erasure/layout/index.js';
import { layoutOf, placeOfOffset, stripeBytes, stripeDataLength } from '../erasure/layout/index.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { checkArgument, checkOptions, expected } from './arguments.js';
import type { ClientContext } from './context.js';
import type { ReadProgress, StripeResult } from '../pipeline/stripe-reader.js';
import { StripeReader } from '../pipeline/stripe-reader.js';
import { UnitFetcher } from './unit-fetcher.js';

export class FileReader {
  readonly name: string;
  private file: FileRecord;
  private readonly context: ClientContext;
  private readonly layout: Layout;
  private readonly stripes: StripeReader;
  private fetcher: UnitFetcher | undefined;
  private closing: Promise<void> | undefined;
  private readonly onClose: (reader: FileReader) => void;

  private constructor(
    context: ClientContext,
    file: FileRecord,
    layout: Layout,
    stripes: StripeReader,
    onClose: (reader: FileReader) => void,
  ) {
    this.context = context;
    this.file = file;
    this.layout = layout;
    this.stripes = stripes;
    this.onClose = onClose;
    this.name = file.name;
  }

  static async open(
    context: ClientContext,
    file: FileRecord,
    onClose: (reader: FileReader) => void,
  ): Promise<FileReader> {
    const code = parseCode(file.code);
    const layout = layoutOf(file, code);
    const stripes = new StripeReader(context, file, code, layout, await readMap(context.store));
    stripes.onDamaged = (stripe) => {
      context.onDamaged?.(file.id, stripe);
    };
    await stripes.connect();
    return new FileReader(context, file, layout, stripes, onClose);
  }

  /** Committed bytes. */
  get length(): number {
    return this.file.length;
  }

  get progress(): ReadProgress {
    return this.stripes.progress;
  }

  /** Looks for bytes committed since. @returns the new length @throws {TartanError} ERR_CLOSED, ERR_MAP_UNAVAILABLE */
  async refresh(): Promise<number> {
    this.checkOpen('refresh');
    this.file = await readFile(this.context.store, this.file.id);
    // What is committed now may be newer than what a node holds whose share has moved.
    this.stripes.follow(this.file);
    return this.file.length;
  }

  /**
   * Reads a range.
   *
   * @param offset bytes from the file's start  @param length bytes; less is returned at the file's end
   * @throws {TartanError} ERR_TOO_MANY_LOST when a stripe can't be had whole or decoded; ERR_ARGUMENT; ERR_CLOSED
   */
  async read(offset: number, length: number): Promise<Buffer> {
    checkArgument(`read '${this.name}'`, 'offset', offset, expected.count);
    checkArgument(`read '${this.name}'`, 'length', length, expected.count);
    this.checkOpen('read');
    const end = Math.min(offset + length, this.file.length);
    if (end <= offset) return Buffer.alloc(0);
    const lone = await this.loneUnit(offset, end);
    if (lone !== undefined) return lone;
    const out = Buffer.allocUnsafe(end - offset);
    let at = 0;
    for await (const piece of this.pieces(offset, end)) {
      out.set(piece, at);
      at += piece.length;
    }
    return out;
  }

  /** A range within one data unit whose node can't be asked: the switch may decode it. Undefined: read the stripe. */
  private async loneUnit(offset: number, end: number): Promise<Buffer | undefined> {
    const { file, layout } = this,
      { stripe, unit, offset: from } = placeOfOffset(layout, offset);
    if (
      from + end - offset > layout.unitBytes ||
      this.stripes.canReach(stripe, unit) ||
      layout.k <= layout.m ||
      this.context.parity === 'host'
    )
      return undefined;
    try {
      this.fetcher ??= new UnitFetcher(this.context, parseCode(file.code), file.unitBytes, file.name);
    } catch (error) {
      if (codeOf(error) !== 'ERR_RING_MEMORY') throw error;
      return undefined;
    }
    const bytes = await this.fetcher.fetch(
      file,
      this.stripes.nodes.map,
      stripe,
      unit,
      stripeDataLength(layout, file.length, stripe),
    );
    return bytes === undefined ? undefined : Buffer.from(bytes.buffer, bytes.byteOffset + from, end - offset);
  }

  /** Units that a switch decoded for this reader. */
  get unitsFromSwitch(): number {
    return this.fetcher?.counters.units ?? 0;
  }

  /**
   * A Readable over [start, end) bytes, the whole file by default; an end beyond the file's is the file's.
   * @throws {TartanError} ERR_ARGUMENT, ERR_CLOSED
   */
  stream(options: { start?: number; end?: number } = {}): Readable {
    checkOptions(`read '${this.name}'`, options, { start: expected.count, end: expected.count });
    const { start = 0, end = this.file.length } = options;
    if (options.end !== undefined && start > end)
      throw new TartanError('ERR_ARGUMENT', `Cannot read '${this.name}': start ${start} lies beyond end ${end}`);
    this.checkOpen('read');
    const copy = async function* (pieces: AsyncGenerator<Uint8Array>): AsyncGenerator<Buffer> {
      for await (const piece of pieces) yield Buffer.from(piece);
    };
    return Readable.from(copy(this.pieces(start, Math.min(end, this.file.length))), { objectMode: false });
  }

  /** Ends reads that are under way, which reject; closing again does nothing more. */
  close(): Promise<void> {
    this.closing ??= this.closeAll();
    return this.closing;
  }

  private checkOpen(attempt: string): void {
    if (this.closing !== undefined)
      throw new TartanError('ERR_CLOSED', `Cannot ${attempt} '${this.name}': it is closed`);
  }

  private async closeAll(): Promise<void> {
    await this.fetcher?.destroy();
    await this.stripes.destroy();
    this.onClose(this);
  }

  /** Views of ring memory, in order, each valid until the next is asked for; stripes ahead are under way meanwhile. */
  private async *pieces(start: number, end: number): AsyncGenerator<Uint8Array> {
    const { file, layout } = this;
    const full = stripeBytes(layout);
    const ahead = Math.max(1, this.stripes.slotCount - 1);
    const queue: { stripe: number; result: Promise<StripeResult> }[] = [];
    let next = Math.floor(start / full);
    const last = Math.ceil(end / full);
    const fill = (): void => {
      while (next < last && queue.length < ahead) {
        const stripe = next++;
        const result = this.stripes.read({
          stripe,
          dataLength: stripeDataLength(layout, file.length, stripe),
          epoch: file.commitEpoch,
          counter: file.commitCounter,
          exact: false,
          floorEpoch: epochFloor(file, stripe),
        });
        // Awaited below, in order; a rejection of a later one must not count as unhandled meanwhile.
        result.catch(() => {});
        queue.push({ stripe, result });
      }
    };
    try {
      for (fill(); queue.length > 0; fill()) {
        this.checkOpen('read');
        const { stripe, result } = queue.shift()!;
        const read = await result;
        try {
          const from = Math.max(0, start - stripe * full),
            to = Math.min(read.dataLength, end - stripe * full);
          yield read.bytes.subarray(from, to);
        } finally {
          read.release();
        }
      }
    } finally {
      for (const { result } of queue)
        result.then(
          (read) => {
            read.release();
          },
          () => {},
        );
    }
  }
}
