/** A local file that appears, or replaces another, only when it is complete. */
import { randomBytes } from 'node:crypto';
import type { WriteStream } from 'node:fs';
import {
  chmodSync,
  createWriteStream,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { isRunning, ownIdentity } from '../cluster/process-identity.js';
import { TartanError, codeOf } from '../wire/errors.js';

/** Of the target's name in the temporary one, which must not become too long. */
const NAME_LENGTH = 40;

/**
 * Written beside its target under a name that nobody can foresee, made exclusively, and removed by discard() and by a
 * failed keep(). Who makes one sees to it that signals come to discard(). What a process leaves that is killed goes
 * with the next one for that target: the name says whose it is. (A file without a name could not be given one: link(2),
 * all that Node has, does not follow /proc/self/fd.)
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
    const folder = dirname(this.target);
    removeOrphans(folder, shown);
    this.path = join(folder, `.${shown}.${ownTag()}.${randomBytes(12).toString('hex')}.partial`);
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

/** Which process, of those whose life can be told from here: of this boot, in this namespace of pids. */
function ownTag(): string {
  const { pid, startTime } = ownIdentity();
  return `${pid}-${startTime}-${tagOfPlace()}`;
}

function tagOfPlace(): string {
  const namespace = readlinkSync('/proc/self/ns/pid').replaceAll(/\D/g, '');
  return `${namespace}-${ownIdentity().bootId.replaceAll('-', '')}`;
}

/** Removes what processes left beside a target that were killed. Those of other machines, on a shared disk, stay. */
function removeOrphans(folder: string, shown: string): void {
  const { bootId } = ownIdentity(),
    place = tagOfPlace();
  for (const name of namesIn(folder)) {
    if (!name.startsWith(`.${shown}.`)) continue;
    const found = /^(\d+)-(\d+)-(\d+-[0-9a-f]+)\.[0-9a-f]+\.partial$/.exec(name.slice(shown.length + 2));
    if (found === null || found[3] !== place) continue;
    if (isRunning({ bootId, pid: Number(found[1]), startTime: found[2]! })) continue;
    try {
      rmSync(join(folder, name), { force: true });
    } catch {
      /* another user's: it is theirs to remove */
    }
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return []; // it may be written to, and not read; or making the file says what is wrong
  }
}
