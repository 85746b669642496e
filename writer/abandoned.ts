/**
 * Files that never got their name, because whoever wrote them is gone: nobody can find them, and their room is wanted.
 *
 *     without a name ──unchanged for idleMs──▶ its owner is asked ──answers──▶ left alone for another idleMs
 *          └ closed: who took it over can't name it ──▶ removed ◄──silent for ownerMs──┘
 *
 * Nothing depends on being right: an owner whose file is removed all the same is fenced, as by any new owner.
 */
import { listUnnamed, readFile } from '../cluster/files.js';
import { askOwners } from '../cluster/moves.js';
import type { FileRecord } from '../cluster/records.js';
import { sleep } from '../wire/clock.js';
import { codeOf, isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { removeFile } from './removal.js';

const IDLE_MS = 30_000;
const OWNER_MS = 5000;
const POLL_MS = 50;
/** Records that one question changes in one transaction. */
const ASKED_AT_ONCE = 32;

export class AbandonedFiles {
  /** When each was last seen changed, and as what. */
  private readonly seen = new Map<number, { at: number; state: string }>();

  constructor(
    private readonly context: ClientContext,
    private readonly idleMs = IDLE_MS,
    private readonly ownerMs = OWNER_MS,
  ) {}

  /** @returns names of the files that were removed; for some seconds only when one's owner seems gone */
  async collect(): Promise<string[]> {
    const ids = await listUnnamed(this.context.store);
    for (const id of this.seen.keys()) if (!ids.includes(id)) this.seen.delete(id);
    const idle = (await Promise.all(ids.map((id) => this.look(id)))).filter((file) => file !== undefined);
    const silent = await this.silent(idle.filter(({ state }) => state !== 'closed').slice(0, ASKED_AT_ONCE));
    const removed: string[] = [];
    for (const { id, name } of [...idle.filter(({ state }) => state === 'closed'), ...silent]) {
      try {
        await removeFile(this.context, id, { onlyUnnamed: true });
        removed.push(name);
      } catch (error) {
        // Named, or removed by its own owner, meanwhile.
        if (codeOf(error) !== 'ERR_EXISTS' && codeOf(error) !== 'ERR_NOT_FOUND') throw error;
      }
    }
    return removed;
  }

  /** The file's record when there was nothing to be seen of its owner for long. */
  private async look(id: number): Promise<FileRecord | undefined> {
    const file = await this.read(id);
    if (file?.unnamed === undefined) return undefined;
    const { writerEpoch, length, commitEpoch, commitCounter, answered } = file,
      state = [file.state, writerEpoch, length, commitEpoch, commitCounter, answered].join(' '),
      before = this.seen.get(id),
      now = this.context.clock.now();
    if (before?.state !== state) {
      this.seen.set(id, { at: now, state });
      return undefined;
    }
    return now - before.at >= this.idleMs ? file : undefined;
  }

  /** Those whose owners say nothing when they are asked. */
  private async silent(files: readonly FileRecord[]): Promise<FileRecord[]> {
    if (files.length === 0) return [];
    const { clock, store } = this.context;
    await askOwners(
      store,
      files.map(({ id }) => id),
    );
    let waiting = [...files];
    const deadline = clock.now() + this.ownerMs;
    do {
      await sleep(clock, POLL_MS);
      const now = await Promise.all(waiting.map(({ id }) => this.read(id)));
      waiting = now.filter((file): file is FileRecord => file?.unnamed === true && file.answered !== file.asked);
    } while (waiting.length > 0 && clock.now() < deadline);
    return waiting;
  }

  private async read(id: number): Promise<FileRecord | undefined> {
    try {
      return await readFile(this.context.store, id);
    } catch (error) {
      if (!isOperating(error) || codeOf(error) !== 'ERR_NOT_FOUND') throw error;
      return undefined;
    }
  }
}
