/**
 * What must be true, kept beside the cluster: who wrote which bytes of which file, what was acknowledged, what was
 * read.
 *
 * Intuition: a file is a list of segments, one for each owner that took it over and got it: from where on its bytes
 * are. An owner's bytes are a function of its number and the offset, so nothing needs to be kept to compare them.
 *
 *     owner 1: ├───────────── written ─────────────┤          acknowledged ≤ kept ≤ written
 *     owner 2:                    └─ kept ─├──────── written …
 */
import { SimRandom } from 'tartan-rdma';
import type { FileRecord } from '../../cluster/records.js';
import type { FileWriter } from '../../writer/index.js';

/** A promise that was not kept. `kind` says which; a shrinker looks for the same one. */
export class Violation extends Error {
  readonly kind: string;
  constructor(kind: string, message: string, options?: ErrorOptions) {
    super(`${kind}: ${message}`, options);
    this.name = 'Violation';
    this.kind = kind;
  }
}

/** A prime larger than any file, so that no two stripes of a file have the same bytes. */
const PATTERN_BYTES = 1_000_003;
const pattern = makePattern();

/** All owners' bytes are cut from it, at places of their own; twice, so that a cut never reaches its end. */
function makePattern(): Buffer {
  const random = new SimRandom('pattern'),
    words = new Uint32Array(Math.ceil(PATTERN_BYTES / 4));
  for (let i = 0; i < words.length; i++) words[i] = random.uint32();
  const once = Buffer.from(words.buffer, 0, PATTERN_BYTES);
  return Buffer.concat([once, once]);
}

/** Who owned a file, from one open to the next owner's. */
export interface Owner {
  readonly number: number;
  readonly host: string;
  readonly writer: FileWriter;
  /** Its first byte in the file. */
  readonly base: number;
  /** End of what it was given to write. */
  written: number;
  /** What the next owner kept. Acknowledgements that were on their way may still come, but never for more than that. */
  frozenAt: number | undefined;
  /** The owner before it was still there. */
  readonly isSecond: boolean;
}

export class FileModel {
  readonly owners: Owner[] = [];
  readonly segments: { readonly start: number; readonly owner: Owner }[] = [];
  /** Readers have seen so many bytes committed. */
  seen = 0;
  /** A flush or close has published so many. */
  published = 0;
  removed = false;
  newestEpoch = 0;
  /** The last name of this file's that was given to other bytes. */
  forged: { readonly epoch: number; readonly counter: number } | undefined;
  /** An owner was lost between the two: units under one name differ, and nobody can know whose they are. */
  isTainted = false;

  constructor(
    readonly id: number,
    readonly name: string,
    readonly code: string,
    readonly unitBytes: number,
  ) {}

  /**
   * The last owner is succeeded, or lost: was a name of its taken by other bytes, and not answered yet?
   * @returns isTainted
   */
  lose(): boolean {
    const last = this.segments[this.segments.length - 1]?.owner.writer.internals;
    if (
      last !== undefined &&
      this.forged?.epoch === last.file.writerEpoch &&
      last.window.acknowledgedCounter < this.forged.counter
    )
      this.isTainted = true;
    return this.isTainted;
  }

  get written(): number {
    return this.segments[this.segments.length - 1]?.owner.written ?? 0;
  }

  get acknowledged(): number {
    return Math.max(0, ...this.owners.map((owner) => owner.writer.progress.acknowledgedBytes));
  }
}

export class Model {
  readonly files = new Map<number, FileModel>();
  /** Names that were given to other bytes: file/stripe/epoch/counter. */
  readonly forgedNames = new Set<string>();
  private owners = 0;
  counts = { bytesRead: 0, stripesRead: 0, takeovers: 0, flushes: 0 };

  file(record: FileRecord): FileModel {
    let file = this.files.get(record.id);
    if (file === undefined)
      this.files.set(record.id, (file = new FileModel(record.id, record.name, record.code, record.unitBytes)));
    return file;
  }

  /** Somebody has a file now: created, or taken over. */
  owned(host: string, writer: FileWriter): Owner {
    const file = this.file(writer.internals.file);
    const kept = writer.progress.acknowledgedBytes;
    const previous = file.segments[file.segments.length - 1]?.owner;
    const { writerEpoch } = writer.internals.file;
    const name = `file ${file.id} '${file.name}', taken by ${host} with epoch ${writerEpoch}`;
    if (writerEpoch < file.newestEpoch) {
      // It got the file, and before it heard so another had it: nothing of its own may ever be acknowledged.
      const late: Owner = {
        number: ++this.owners,
        host,
        writer,
        base: kept,
        written: kept,
        frozenAt: kept,
        isSecond: true,
      };
      file.owners.push(late);
      return late;
    }
    file.newestEpoch = writerEpoch;
    if (!file.lose()) this.checkKept(file, kept, previous, name);
    for (const owner of file.owners) owner.frozenAt ??= kept;
    const owner: Owner = {
      number: ++this.owners,
      host,
      writer,
      base: kept,
      written: kept,
      frozenAt: undefined,
      isSecond: previous !== undefined && !previous.writer.destroyed,
    };
    file.owners.push(owner);
    file.segments.push({ start: kept, owner });
    if (previous !== undefined) this.counts.takeovers++;
    return owner;
  }

  private checkKept(file: FileModel, kept: number, previous: Owner | undefined, name: string): void {
    if (kept < file.acknowledged)
      throw new Violation(
        'acknowledged bytes lost',
        `${name}: ${kept} bytes kept, ${file.acknowledged} were acknowledged`,
      );
    if (kept < file.seen)
      throw new Violation('read bytes taken back', `${name}: ${kept} bytes kept, readers had seen ${file.seen}`);
    if (kept > (previous?.written ?? 0))
      throw new Violation(
        'bytes from nowhere',
        `${name}: ${kept} bytes kept, ${previous?.written ?? 0} were ever written`,
      );
  }

  /** The owner's next bytes, to be written. */
  next(owner: Owner, length: number): Buffer {
    const bytes = this.ownBytes(owner, owner.written, length);
    owner.written += length;
    return Buffer.from(bytes);
  }

  /** What a reader was given must be what was written there. */
  read(file: FileModel, offset: number, bytes: Uint8Array, reader: string): void {
    if (file.isTainted) return;
    const end = offset + bytes.length;
    const name = `file ${file.id} '${file.name}', ${reader} at ${offset}`;
    if (end > file.written)
      throw new Violation(
        'bytes from nowhere',
        `${name}: ${bytes.length} bytes read, ${file.written} were ever written`,
      );
    const expected = this.content(file, offset, bytes.length);
    const at = firstDifference(expected, bytes);
    if (at >= 0)
      throw new Violation(
        'wrong bytes read',
        `${name}: byte ${offset + at} is ${bytes[at]}, written was ${expected[at]}`,
      );
    file.seen = Math.max(file.seen, end);
    this.counts.bytesRead += bytes.length;
  }

  /** The file's bytes as they are to be now. */
  content(file: FileModel, offset: number, length: number): Buffer {
    const out = Buffer.alloc(length);
    // Later segments lie on top of what earlier owners wrote beyond what was kept.
    for (const { start, owner } of file.segments) {
      const from = Math.max(offset, start),
        to = Math.min(offset + length, owner.written);
      if (from < to) this.ownBytes(owner, from, to - from).copy(out, from - offset);
    }
    return out;
  }

  /** What must hold at any moment. */
  check(): void {
    for (const file of this.files.values())
      for (const owner of file.isTainted ? [] : file.owners) {
        const { acknowledgedBytes } = owner.writer.progress;
        if (owner.frozenAt !== undefined && acknowledgedBytes > owner.frozenAt) {
          throw new Violation(
            'fenced writer acknowledged',
            `file ${file.id} '${file.name}': ${owner.host} has ${acknowledgedBytes} bytes acknowledged, the ` +
              `next owner kept ${owner.frozenAt}`,
          );
        }
        if (acknowledgedBytes > owner.written)
          throw new Violation(
            'bytes from nowhere',
            `file ${file.id}: ${acknowledgedBytes} bytes acknowledged, ${owner.written} written`,
          );
      }
  }

  private ownBytes(owner: Owner, offset: number, length: number): Buffer {
    const at = (offset + owner.number * 7919) % PATTERN_BYTES;
    return pattern.subarray(at, at + length);
  }
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i;
  return a.length;
}
