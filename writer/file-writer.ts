/**
 * A file open for appending, as a Node Writable: each byte goes to the nodes once, with parity made in the network or,
 * when there is no programmable switch, here.
 *
 * `write()` calls back when the bytes are in the staging ring (one copy); 'finish' and `flush()` mean acknowledged:
 * durable with their redundancy. Backpressure is the ring's: a write waits while every staging slot is under way.
 */
import { Writable } from 'node:stream';
import type { FileRecord } from '../cluster/records.js';
import { TartanError } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import type { ParityMode } from './file-session.js';
import { FileSession } from './file-session.js';

export interface WriterProgress {
  /** Acknowledged bytes of the file, from its start. */
  acknowledgedBytes: number;
  stripes: number;
  /** Stripes sent more than once. */
  stripesRedriven: number;
  /** Changes between switch and host parity since the file was opened. */
  modeChanges: number;
  /** Data units copied after the caller's bytes were placed in the ring; stays 0. */
  copiedUnits: number;
}

/** Events besides Writable's: 'mode' ({ mode, reason }), 'waiting' (reason). */
export class FileWriter extends Writable {
  readonly name: string;
  private readonly session: FileSession;
  private readonly onClose: (writer: FileWriter) => void;
  private pending: { chunk: Uint8Array; at: number; callback: (error?: Error | null) => void } | undefined;
  private reserved = false;
  /** A reservation found the ring full: 'drain' tells when there is room. */
  private wantsRoom = false;

  private constructor(session: FileSession, name: string, onClose: (writer: FileWriter) => void) {
    super({ highWaterMark: 1 << 20, decodeStrings: true });
    this.session = session;
    this.name = name;
    this.onClose = onClose;
  }

  /** Used by the client: opens the session of a file whose record names this writer's epoch. */
  static async open(
    context: ClientContext,
    file: FileRecord,
    onClose: (writer: FileWriter) => void,
  ): Promise<FileWriter> {
    let writer: FileWriter | undefined;
    const early: { mode: ParityMode; reason: string }[] = [];
    const session = await FileSession.open(context, file, {
      onAcknowledged: () => {
        writer?.feed();
      },
      onMode: (mode, reason) => {
        if (writer === undefined) early.push({ mode, reason });
        else writer.emit('mode', { mode, reason });
      },
      onWaiting: (reason) => {
        writer?.emit('waiting', reason);
      },
      onFatal: (error) => {
        writer?.destroy(error);
      },
    });
    writer = new FileWriter(session, file.name, onClose);
    for (const event of early)
      process.nextTick(() => {
        writer.emit('mode', event);
      });
    return writer;
  }

  /** The library's own access to the session (takeover fills the window before the caller gets the writer). */
  get internals(): FileSession {
    return this.session;
  }

  /** The file's id: never given to another file, unlike its name. */
  get fileId(): number {
    return this.session.file.id;
  }

  get parityMode(): ParityMode {
    return this.session.mode;
  }

  get progress(): WriterProgress {
    const { window } = this.session;
    return {
      acknowledgedBytes: window.acknowledgedBytes,
      stripes: window.counters.stripes,
      stripesRedriven: window.counters.redriven,
      modeChanges: this.session.modeChanges,
      copiedUnits: window.pipeline.counters.unitsCopied,
    };
  }

  /** Resolves when all bytes written so far are acknowledged, and published for readers. @throws {TartanError} */
  async flush(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      if (this.writableLength === 0) {
        resolve();
        return;
      }
      this.write(Buffer.alloc(0), (error) => {
        if (error) reject(error);
        else resolve();
      });
    });
    await this.session.flush();
    await this.session.publish();
  }

  /**
   * Hands out ring memory to be filled in place, which avoids the copy.
   *
   * @param bytes wanted; the view may be shorter (the stripe ends), and is empty when the ring is full: then await
   *         'drain'
   * @returns the view, and commit(count) which appends its first `count` bytes; nothing else may be written in between
   */
  reserve(bytes: number): { readonly view: Uint8Array; commit(count: number): void } {
    if (this.reserved || this.writableLength > 0 || this.writableEnded)
      throw new RangeError('reserve(): the last reservation or write is not finished, or the file is ended');
    const view = this.session.window.reserve(bytes);
    this.reserved = view.length > 0;
    this.wantsRoom = !this.reserved;
    return {
      view,
      commit: (count) => {
        if (!this.reserved || count < 0 || count > view.length)
          throw new RangeError(`commit(${count}): expected 0 to ${view.length} bytes, once`);
        this.reserved = false;
        this.session.window.commit(count);
      },
    };
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.pending = { chunk, at: 0, callback };
    this.feed();
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.session
      .flush()
      .then(() => this.session.publish('closed'))
      .then(() => this.shutDown())
      .then(() => {
        callback();
      }, callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    // Node answers the writes that wait behind this one, but not the one that waits for room.
    const pending = this.pending;
    this.pending = undefined;
    pending?.callback(error ?? new TartanError('ERR_CLOSED', `'${this.name}' was closed before this write found room`));
    this.shutDown().then(
      () => {
        callback(error);
      },
      (other: Error) => {
        callback(error ?? other);
      },
    );
  }

  private async shutDown(): Promise<void> {
    await this.session.destroy();
    this.onClose(this);
  }

  private feed(): void {
    if (this.wantsRoom && this.session.window.room > 0) {
      this.wantsRoom = false;
      this.emit('drain');
    }
    const pending = this.pending;
    if (pending === undefined) return;
    const { window } = this.session;
    pending.at += window.append(pending.at === 0 ? pending.chunk : pending.chunk.subarray(pending.at));
    if (pending.at < pending.chunk.length) return;
    this.pending = undefined;
    pending.callback();
  }
}
