/**
 * A file open for appending, as a Node Writable: each byte goes to the nodes once, with parity made in the network or,
 * when there is no programmable switch, here.
 *
 * `write()` calls back when the bytes are in the staging ring (one copy); 'finish' and `flush()` mean acknowledged:
 * durable with their redundancy. Backpressure is the ring's: a write waits while every staging slot is under way.
 */
import { Writable } from 'node:stream';
import type { FileRecord } from '../cluster/records.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { checkArgument, expected } from './arguments.js';
import type { ClientContext } from './context.js';
import type { Naming, ParityMode } from './file-session.js';
import { FileSession } from './file-session.js';
import { freeUnits, removeFile } from './removal.js';

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
  private readonly context: ClientContext;
  private readonly session: FileSession;
  private readonly onClose: (writer: FileWriter) => void;
  private pending: { chunk: Uint8Array; at: number; callback: (error?: Error | null) => void } | undefined;
  private reserved = false;
  /** A reservation found the ring full: 'drain' tells when there is room. */
  private wantsRoom = false;

  private constructor(
    context: ClientContext,
    session: FileSession,
    name: string,
    onClose: (writer: FileWriter) => void,
  ) {
    super({ highWaterMark: 1 << 20, decodeStrings: true });
    this.context = context;
    this.session = session;
    this.name = name;
    this.onClose = onClose;
  }

  /**
   * Used by the client: opens the session of a file whose record names this writer's epoch.
   * @param naming  the file has no name yet: it gets it when it is ended, and is removed when it is destroyed before
   */
  static async open(
    context: ClientContext,
    file: FileRecord,
    onClose: (writer: FileWriter) => void,
    naming?: Naming,
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
    session.naming = naming;
    writer = new FileWriter(context, session, file.name, onClose);
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

  /**
   * Resolves when all bytes written so far are acknowledged: nothing loses them any more.
   *
   * @returns whether they are published, too, so that whoever opens the file sees them; false while the cluster store
   *          is away: they are published when it is back, and 'waiting' is emitted
   * @throws {TartanError} ERR_CLOSED after destroy(); what ended the file
   */
  async flush(): Promise<boolean> {
    if (this.destroyed) throw this.isClosed('flush');
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
    try {
      await this.session.publish();
      return true;
    } catch (error) {
      if (codeOf(error) !== 'ERR_MAP_UNAVAILABLE') throw error;
      this.session.publishLater();
      this.emit('waiting', 'the cluster store does not answer; what is durable is shown to readers when it is back');
      return false;
    }
  }

  /**
   * Hands out ring memory to be filled in place, which avoids the copy.
   *
   * @param bytes wanted; the view may be shorter (the stripe ends), and is empty when the ring is full: then await
   *         'drain'
   * @returns the view, and commit(count) which appends its first `count` bytes; nothing else may be written in between
   * @throws {TartanError} ERR_ARGUMENT · ERR_CLOSED: the file is ended or destroyed · ERR_IN_USE: the last reservation
   *         or write is not finished
   */
  reserve(bytes: number): { readonly view: Uint8Array; commit(count: number): void } {
    checkArgument(`reserve room in '${this.name}'`, 'bytes', bytes, expected.positive);
    if (this.destroyed || this.writableEnded) throw this.isClosed('reserve room in');
    if (this.reserved || this.writableLength > 0)
      throw new TartanError(
        'ERR_IN_USE',
        `Cannot reserve room in '${this.name}': the last ${this.reserved ? 'reservation' : 'write'} is not finished`,
      );
    const view = this.session.window.reserve(bytes);
    this.reserved = view.length > 0;
    this.wantsRoom = !this.reserved;
    let isDone = !this.reserved;
    return {
      view,
      commit: (count) => {
        if (this.destroyed) throw this.isClosed('commit to');
        if (isDone || !Number.isInteger(count) || count < 0 || count > view.length)
          throw new TartanError(
            'ERR_ARGUMENT',
            `Cannot commit ${count} bytes to '${this.name}': expected 0 to ${view.length}, once`,
          );
        isDone = true;
        this.reserved = false;
        this.session.window.commit(count);
      },
    };
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    if (this.reserved) {
      // Appended now, it would lie before what the reservation holds, or after it, by chance.
      callback(new TartanError('ERR_IN_USE', `Cannot write to '${this.name}': a reservation is not committed`));
      return;
    }
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

  /**
   * Removes what is left of the file that this one has replaced, or of this one when it has not got its name. What
   * can't be reached now is collected later.
   */
  private async clearAway(): Promise<void> {
    const { context, session } = this;
    const { naming, replaced } = session;
    session.naming = session.replaced = undefined;
    try {
      if (replaced !== undefined) await freeUnits(context, replaced);
      else if (naming !== undefined) await removeFile(context, this.fileId, { onlyUnnamed: true });
    } catch (error) {
      if (!isOperating(error)) throw error;
    }
  }

  private isClosed(attempt: string): TartanError {
    return new TartanError('ERR_CLOSED', `Cannot ${attempt} '${this.name}': it is closed`);
  }

  private async shutDown(): Promise<void> {
    await this.session.destroy();
    await this.clearAway(); // before the client may take it for closed
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
