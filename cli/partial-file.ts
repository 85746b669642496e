/** A local file that appears, or replaces another, only when it is complete. */
import { randomBytes } from 'node:crypto';
import type { WriteStream } from 'node:fs';
import {
  chmodSync,
  createWriteStream,
  existsSync,
  linkSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { TartanError, codeOf } from '../wire/errors.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** Of the target's name in the temporary one, which must not become too long. */
const NAME_LENGTH = 40;

/**
 * Written beside its target under a name that nobody can foresee, made exclusively, and removed by discard(), by a
 * failed keep(), and by the signals that end the process.
 */
export class PartialFile {
  readonly stream: WriteStream;
  private readonly path: string;
  private readonly target: string;
  private readonly mode: number | undefined;
  private readonly onSignal: (signal: NodeJS.Signals) => void;

  /** @param target  a file that exists is replaced, and keeps its permissions; of a link, what it leads to */
  constructor(target: string) {
    const existing = statSync(target, { throwIfNoEntry: false });
    this.mode = existing === undefined ? undefined : existing.mode & 0o777;
    this.target = existing === undefined ? target : realpathSync(target);
    const shown = basename(this.target).slice(0, NAME_LENGTH);
    this.path = join(dirname(this.target), `.${shown}.${randomBytes(12).toString('hex')}.partial`);
    // Nobody reads what replaces a private file before it has that file's permissions.
    // Opened at once: nothing can come into being after discard().
    const fd = openSync(this.path, 'wx', this.mode === undefined ? 0o666 : 0o600);
    this.stream = createWriteStream(this.path, { fd });
    this.onSignal = (signal) => {
      this.discard();
      process.kill(process.pid, signal); // and now as if nobody had listened
    };
    for (const signal of SIGNALS) process.on(signal, this.onSignal);
  }

  /** Gives it its target's name. @throws {TartanError} ERR_EXISTS: a file of that name was made meanwhile */
  keep(): void {
    try {
      if (this.mode === undefined) {
        this.keepNew();
      } else {
        chmodSync(this.path, this.mode);
        renameSync(this.path, this.target);
      }
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
      if (codeOf(error) === 'EEXIST' || existsSync(this.target)) throw error;
      renameSync(this.path, this.target);
    }
  }

  /** Removes it, if it has not got its name; may be repeated. */
  discard(): void {
    for (const signal of SIGNALS) process.off(signal, this.onSignal);
    rmSync(this.path, { force: true });
  }
}
