/** A local file that appears, or replaces another, only when it is complete. */
import { randomBytes } from 'node:crypto';
import type { WriteStream } from 'node:fs';
import {
  chmodSync,
  createWriteStream,
  linkSync,
  lstatSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { TartanError, codeOf } from '../wire/errors.js';

/** Of the target's name in the temporary one, which must not become too long. */
const NAME_LENGTH = 40;

/**
 * Written beside its target under a name that nobody can foresee, made exclusively, and removed by discard() and by a
 * failed keep(). Who makes one sees to it that signals come to discard().
 */
export class PartialFile {
  readonly stream: WriteStream;
  private readonly path: string;
  private readonly target: string;
  private readonly mode: number | undefined;

  /**
   * @param target  a file that exists is replaced, and keeps its permissions; of a link, what it leads to
   * @param replaces  whatever has the name, also a link that leads nowhere
   */
  constructor(
    target: string,
    private readonly replaces = false,
  ) {
    const existing = statSync(target, { throwIfNoEntry: false });
    this.mode = existing === undefined ? undefined : existing.mode & 0o777;
    this.target = existing === undefined ? target : realpathSync(target);
    const shown = basename(this.target).slice(0, NAME_LENGTH);
    this.path = join(dirname(this.target), `.${shown}.${randomBytes(12).toString('hex')}.partial`);
    // Nobody reads what replaces a private file before it has that file's permissions.
    // Opened at once: nothing can come into being after discard().
    const fd = openSync(this.path, 'wx', this.mode === undefined ? 0o666 : 0o600);
    // Flushed: what a full disk has to say about it is said before the file has its name.
    this.stream = createWriteStream(this.path, { fd, flush: true } as Parameters<typeof createWriteStream>[1]);
    // Above `ulimit -f` the next write fails, instead of this signal ending the process.
    process.on('SIGXFSZ', ignore);
  }

  /** Gives it its target's name. @throws {TartanError} ERR_EXISTS: a file of that name was made meanwhile */
  keep(): void {
    try {
      if (this.mode !== undefined) chmodSync(this.path, this.mode);
      if (this.replaces || this.mode !== undefined) renameSync(this.path, this.target);
      else this.keepNew();
    } catch (error) {
      if (codeOf(error) !== 'EEXIST') throw error;
      throw new TartanError('ERR_EXISTS', `Cannot write ${this.target}: it was made meanwhile; --force replaces it`, {
        cause: error,
      });
    } finally {
      this.discard();
    }
  }

  private keepNew(): void {
    try {
      linkSync(this.path, this.target); // unlike a rename it replaces nothing
    } catch (error) {
      // A file system without hard links.
      if (codeOf(error) === 'EEXIST' || lstatSync(this.target, { throwIfNoEntry: false }) !== undefined) throw error;
      renameSync(this.path, this.target);
    }
  }

  /** Removes it, if it has not got its name; may be repeated. */
  discard(): void {
    process.off('SIGXFSZ', ignore);
    rmSync(this.path, { force: true });
  }
}

function ignore(): void {}
