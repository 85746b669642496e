/**
 * What a cluster does by itself about nodes that go and come back, and about damage that nobody has read yet.
 *
 *     every second: map and leases ─▶ a lease has run out ─▶ its holder is marked down
 *                                  ─▶ a node out, or left half drained ─▶ its shares go to spares, or to nodes with
 *     room
 *                                  ─▶ a node back, or with a blank store ─▶ what it lacks is restored
 *                                  ─▶ nothing of that, and it is time ─▶ a scrub of all files, until something is
 *
 * Several may run, one per machine: the hold on repairs (cluster/repair-hold.ts) lets one work at a time; an operator's
 * command goes first. Killed, it leaves what it has restored; whoever runs next finds the rest.
 *
 * Invariant: it decides nothing that is not safe to be wrong about. A node taken for lost that comes back has lost its
 * shares, no bytes.
 */
import { listDeleted } from '../cluster/file-states.js';
import { listFiles, readFile } from '../cluster/files.js';
import { enlistSpares } from '../cluster/moves.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { isWished, RepairHold, type RepairState } from '../cluster/repair-hold.js';
import { readScrub, recordScrub } from '../cluster/scrub-state.js';
import { parseCode } from '../erasure/code/index.js';
import { NOBODY } from '../erasure/layout/index.js';
import { isOperating } from '../wire/errors.js';
import { AbandonedFiles } from './abandoned.js';
import type { ClientContext } from './context.js';
import { markExpired, readPresence, type Presence } from './expired-leases.js';
import { freeLeftovers } from './leftovers.js';
import { moveShares, type Share } from './mover.js';
import { NodeHistory } from './node-history.js';
import { rebuildFile, type RebuildReport } from './rebuild.js';
import { Shares } from './shares.js';

export interface RepairerOptions {
  /** A node gone for so long is not waited for. Default 600,000. */
  readonly downOutMs?: number;
  /**
   * A node must have been back for so long. Default 30,000: restarts come in groups, and who replaces a store fills it
   * himself.
   */
  readonly settleMs?: number;
  /** From the end of one scrub to the next; 0: none. Default a week. */
  readonly scrubMs?: number;
  /** Most bytes restored, or read back by a scrub, in a second. Default 16 MiB. */
  readonly bytesPerSecond?: number;
  readonly tickMs?: number;
  readonly ownerMs?: number;
  /** A file that has no name yet, and does not change for so long: its owner is asked for. Default 30,000. */
  readonly idleMs?: number;
  /** Ends it; what is under way is finished. */
  readonly signal?: AbortSignal;
  /** One line for what an operator should know. */
  readonly log?: (message: string) => void;
}

const DAY_MS = 86_400_000;
const DEFAULTS = { downOutMs: 600_000, settleMs: 30_000, scrubMs: 7 * DAY_MS, bytesPerSecond: 16 << 20, tickMs: 1000 };
/** What can't be done now is tried again later, and later still. */
const RETRY_MS = 2_000;
const MAX_RETRY_MS = 60_000;
/** A file that is open may be so for days, and each look at it asks for all it has. */
const MAX_LOOK_MS = 600_000;
/** A node without files is not asked about for so long: files that are made meanwhile may use one that is down. */
const EMPTY_MS = 30_000;

/** Runs until the signal ends it. A cluster store that is away is waited for. */
export async function runRepairer(
  context: ClientContext,
  takeOver: (fileId: number) => Promise<void>,
  options: RepairerOptions = {},
): Promise<void> {
  await new Repairer(context, takeOver, options).run();
}

interface View {
  readonly map: ClusterMap;
  readonly present: ReadonlySet<string>;
}

class Repairer {
  private readonly history = new NodeHistory();
  /** Files to be looked at. */
  private readonly due = new Set<number>();
  private readonly patience = new Map<number, { at: number; waitMs: number }>();
  private readonly limits: typeof DEFAULTS;
  private readonly abandoned: AbandonedFiles;
  private readonly log: (message: string) => void;
  /** When nodes that files must do without were found to have none. */
  private readonly emptyAt = new Map<string, number>();
  private planAt = -Infinity;
  /** A spare may have got shares. */
  private mayEnlist = true;
  private lastScrubAt: number;
  private said = '';

  constructor(
    private readonly context: ClientContext,
    private readonly takeOver: (fileId: number) => Promise<void>,
    private readonly options: RepairerOptions,
  ) {
    this.limits = {
      ...DEFAULTS,
      ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)),
    };
    this.log = options.log ?? (() => undefined);
    this.lastScrubAt = context.clock.now();
    this.abandoned = new AbandonedFiles(context, options.idleMs, options.ownerMs);
  }

  async run(): Promise<void> {
    while (!this.isOver) {
      try {
        await this.tick();
      } catch (error) {
        if (!isOperating(error)) throw error;
        // Another is at it, or the store is away: its turn comes.
        this.say(`waiting: ${(error as Error).message}`);
      }
      await this.rest();
    }
  }

  private get isOver(): boolean {
    return this.options.signal?.aborted === true;
  }
  private get now(): number {
    return this.context.clock.now();
  }

  private async tick(): Promise<void> {
    for (const name of await this.abandoned.collect())
      this.say(`'${name}' is removed: whoever wrote it went before it was complete`);
    const view = this.observed(await this.judged()),
      from = this.homeless(view.map);
    if (from.length > 0 && this.now >= this.planAt) {
      const files = await listFiles(this.context.store),
        { shares, stuck } = this.plan(view, files, from);
      for (const file of stuck) {
        this.say(`'${file.name}' has no node to go to from ${file.nodes.find((id) => from.includes(id))}: add one`);
        this.later(file.id);
      }
      for (const id of from) if (!files.some((file) => file.nodes.includes(id))) this.emptyAt.set(id, this.now);
      this.planAt = this.now + RETRY_MS;
      if (shares.length > 0) {
        await this.moveAll(shares);
        return;
      }
    }
    if (from.length === 0 && this.mayEnlist && view.map.nodes.some(({ spare }) => spare === true)) {
      await enlistSpares(this.context.store);
      this.mayEnlist = false;
    }
    const back = this.history.returned(this.now, this.limits.settleMs);
    if (back.length > 0 || [...this.due].some((id) => this.mayTry(id))) {
      await this.lookAt(back);
      return;
    }
    if (!(await this.isScrubDue())) return;
    const files = await listFiles(this.context.store);
    await this.held('scrub', files, (hold, signal) => this.scrub(files, hold, signal));
  }

  /** Who is there, once those without a lease are marked down. */
  private async judged(): Promise<Presence> {
    const { store } = this.context,
      presence = await readPresence(store),
      expired = await markExpired(store, presence);
    if (expired.length === 0) return presence;
    this.say(`${expired.join(', ')} marked down: no lease`);
    return readPresence(store);
  }

  private observed({ map, nodes: present }: Presence): View {
    this.history.observe(map, present, this.now);
    return { map, present };
  }

  /** Nodes that files must do without: out, or being emptied; but for those that were found empty a moment ago. */
  private homeless(map: ClusterMap): string[] {
    const out = this.history.out(this.now, this.limits.downOutMs);
    return map.nodes
      .filter(
        (node) =>
          (out.includes(node.id) || node.leaving === true) &&
          this.now - (this.emptyAt.get(node.id) ?? -Infinity) >= EMPTY_MS,
      )
      .map(({ id }) => id);
  }

  /** What can move from these nodes now, and the files that have no node to go to. */
  private plan(
    { map, present }: View,
    files: readonly FileRecord[],
    from: readonly string[],
  ): { shares: Share[]; stuck: FileRecord[] } {
    const shares: Share[] = [],
      stuck: FileRecord[] = [],
      held = new Shares(map, present, files);
    for (const file of files) {
      const index = file.nodes.findIndex((id) => from.includes(id));
      if (index < 0 || !this.mayTry(file.id)) continue;
      const to = held.target(file, index);
      if (to === undefined) {
        stuck.push(file);
        continue;
      }
      held.move(file, file.nodes[index]!, to);
      shares.push({ file, index, to });
    }
    return { shares, stuck };
  }

  private async moveAll(shares: readonly Share[]): Promise<void> {
    this.say(
      `${shares.length} ` +
        (shares.length === 1 ? 'file moves' : 'files move') +
        ' from ' +
        [...new Set(shares.map(({ file, index }) => file.nodes[index]))].join(', ') +
        ' to ' +
        [...new Set(shares.map(({ to }) => (to === NOBODY ? 'those that are left' : to)))].join(', '),
    );
    this.mayEnlist = true;
    this.planAt = -Infinity;
    await this.held(
      'rebuild',
      shares.map(({ file }) => file),
      (hold, signal) => this.move(shares, hold, signal),
    );
  }

  /** What these nodes lack, and what was left to do before. */
  private async lookAt(back: readonly string[]): Promise<void> {
    const all = await listFiles(this.context.store),
      ids = new Set(all.map(({ id }) => id));
    for (const file of all) if (file.nodes.some((id) => back.includes(id))) this.due.add(file.id);
    for (const id of this.due) if (!ids.has(id)) this.due.delete(id);
    const files = all.filter(({ id }) => this.due.has(id) && this.mayTry(id));
    if (files.length > 0) await this.held('rebuild', files, (hold, signal) => this.restore(files, hold, signal));
    if (back.length === 0) return;
    const removed = await listDeleted(this.context.store);
    for (const id of back) {
      await freeLeftovers(
        this.context,
        id,
        [...all.filter((file) => !file.nodes.includes(id)), ...removed].map((file) => file.id),
      );
      this.history.looked(id);
    }
  }

  private async move(shares: readonly Share[], hold: RepairHold, signal: AbortSignal): Promise<void> {
    const { ownerMs } = this.options;
    const report = await moveShares(this.context, shares, this.takeOver, {
      bytesPerSecond: this.limits.bytesPerSecond,
      signal,
      ...(ownerMs !== undefined && { ownerMs }),
      onProgress: ({ filesMoved, stripesDone, bytesRestored }) => {
        hold.tell({ filesDone: filesMoved, stripesDone, bytesRestored });
      },
    });
    const left = new Set([...report.waiting, ...report.failed.map(({ name }) => name)]);
    for (const { file } of shares)
      if (left.has(file.name)) this.later(file.id);
      else this.patience.delete(file.id);
    this.say(
      `${report.filesMoved} ` +
        (report.filesMoved === 1 ? 'file has' : 'files have') +
        ` moved, ${report.unitsRestored} units ` +
        ('restored' +
          (report.waiting.length > 0 ? `, ${report.waiting.length} wait until they are closed` : '') +
          report.failed.map(({ name, why }) => `; '${name}': ${why}`).join('')),
    );
  }

  private async restore(files: readonly FileRecord[], hold: RepairHold, signal: AbortSignal): Promise<void> {
    let filesDone = 0,
      stripesBefore = 0,
      bytesBefore = 0,
      units = 0;
    for (const known of files) {
      if (signal.aborted) return;
      let report: RebuildReport, wasOpen: boolean;
      try {
        const file = await readFile(this.context.store, known.id);
        wasOpen = file.state === 'open';
        report = await rebuildFile(this.context, file, false, {
          bytesPerSecond: this.limits.bytesPerSecond,
          signal,
          onProgress: ({ stripesDone, bytesRestored }) => {
            hold.tell({
              filesDone,
              stripesDone: stripesBefore + stripesDone,
              bytesRestored: bytesBefore + bytesRestored,
            });
          },
        });
      } catch (error) {
        if (!isOperating(error)) throw error;
        this.later(known.id, MAX_LOOK_MS);
        continue;
      }
      filesDone++;
      stripesBefore += report.stripesDone;
      bytesBefore += report.bytesRestored;
      units += report.unitsRestored;
      // What its writer has not published yet can't be restored yet. A stripe that is lost is looked at when a node
      // comes back.
      if (wasOpen || report.unitsFailed > 0 || report.stripesDone < report.stripes) this.later(known.id, MAX_LOOK_MS);
      else {
        this.due.delete(known.id);
        this.patience.delete(known.id);
      }
      if (report.stripesLost > 0)
        this.say(`${report.stripesLost} stripes of '${known.name}' have fewer units than they need`);
    }
    if (units > 0) this.say(`${units} units restored in ${files.length} ${files.length === 1 ? 'file' : 'files'}`);
  }

  private async isScrubDue(): Promise<boolean> {
    const { scrubMs } = this.limits;
    if (scrubMs === 0) return false;
    if (this.now - this.lastScrubAt >= scrubMs) return true;
    // Another may have scrubbed since, or before this process was started. Dates only bring a scrub forward.
    const last = await readScrub(this.context.store);
    return last !== undefined && Date.now() - Date.parse(last.last.endedAt) >= scrubMs;
  }

  private async scrub(files: readonly FileRecord[], hold: RepairHold, signal: AbortSignal): Promise<void> {
    const startedAt = new Date().toISOString(),
      sum = {
        files: 0,
        filesFailed: 0,
        unitsChecked: 0,
        unitsDamaged: 0,
        unitsMissing: 0,
        parityMismatches: 0,
        unitsRestored: 0,
        unitsFailed: 0,
        stripesLost: 0,
      };
    let stripesBefore = 0,
      bytesBefore = 0;
    for (const known of files) {
      if (signal.aborted) break;
      try {
        const report = await rebuildFile(this.context, await readFile(this.context.store, known.id), true, {
          bytesPerSecond: this.limits.bytesPerSecond,
          signal,
          onProgress: ({ stripesDone, bytesRestored }) => {
            hold.tell({
              filesDone: sum.files,
              stripesDone: stripesBefore + stripesDone,
              bytesRestored: bytesBefore + bytesRestored,
            });
          },
        });
        sum.files++;
        stripesBefore += report.stripesDone;
        bytesBefore += report.bytesRestored;
        for (const key of [
          'unitsChecked',
          'unitsDamaged',
          'unitsMissing',
          'parityMismatches',
          'unitsRestored',
          'unitsFailed',
          'stripesLost',
        ] as const)
          sum[key] += report[key];
      } catch (error) {
        if (!isOperating(error)) throw error;
        sum.filesFailed++;
      }
    }
    if (signal.aborted) {
      this.say('the scrub gives way');
      return;
    }
    this.lastScrubAt = this.now;
    await recordScrub(this.context.store, { startedAt, endedAt: new Date().toISOString(), ...sum });
    const found = sum.unitsDamaged + sum.unitsMissing + sum.parityMismatches;
    this.say(
      `scrubbed ${sum.files} files: ${sum.unitsChecked} units, ${found} found damaged, missing or ` +
        `unfit, ${sum.unitsRestored} restored${sum.stripesLost > 0 ? `, ${sum.stripesLost} stripes lost` : ''}`,
    );
  }

  /** Works with the hold on repairs, until a command wants it, or, for a scrub, a node needs attention. */
  private async held(
    what: RepairState['what'],
    files: readonly FileRecord[],
    work: (hold: RepairHold, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const { store, clock } = this.context,
      stopper = new AbortController(),
      abort = (): void => {
        stopper.abort();
      };
    const stripes = files.reduce(
      (sum, { code, unitBytes, length }) => sum + Math.ceil(length / (parseCode(code).k * unitBytes)),
      0,
    );
    const hold = await RepairHold.take(store, what, files.length, stripes, { clock, givesWay: true });
    let isDone = false;
    this.options.signal?.addEventListener('abort', abort, { once: true });
    if (this.isOver) abort();
    const watching = this.watch(() => isDone, what === 'scrub', abort);
    try {
      await work(hold, stopper.signal);
    } finally {
      isDone = true;
      await hold.release();
      this.options.signal?.removeEventListener('abort', abort);
    }
    await watching;
  }

  private async watch(isDone: () => boolean, isScrub: boolean, abort: () => void): Promise<void> {
    for (await this.rest(); !isDone(); await this.rest()) {
      try {
        if (await isWished(this.context.store)) {
          abort();
          return;
        }
        if (isScrub && (await this.isNeeded())) {
          abort();
          return;
        }
      } catch (error) {
        if (!isOperating(error)) throw error;
      }
      if (this.isOver) return;
    }
  }

  /** Whether a node needs attention, and something can be done. */
  private async isNeeded(): Promise<boolean> {
    const view = this.observed(await readPresence(this.context.store)),
      from = this.homeless(view.map);
    if (this.history.returned(this.now, this.limits.settleMs).length > 0) return true;
    return from.length > 0 && this.plan(view, await listFiles(this.context.store), from).shares.length > 0;
  }

  /** A tick; shorter when it is over. */
  private rest(): Promise<void> {
    const {
      context: { clock },
      options: { signal },
    } = this;
    return new Promise((resolve) => {
      const end = (): void => {
        clock.clearTimer(timer);
        signal?.removeEventListener('abort', end);
        resolve();
      };
      const timer = clock.setTimer(this.limits.tickMs, end);
      signal?.addEventListener('abort', end, { once: true });
      if (signal?.aborted === true) end();
    });
  }

  private mayTry(fileId: number): boolean {
    return (this.patience.get(fileId)?.at ?? -Infinity) <= this.now;
  }

  private later(fileId: number, most = MAX_RETRY_MS): void {
    const waitMs = Math.min(most, (this.patience.get(fileId)?.waitMs ?? RETRY_MS / 2) * 2);
    this.patience.set(fileId, { at: this.now + waitMs, waitMs });
  }

  /** The same thing only once in a row. */
  private say(message: string): void {
    if (message === this.said) return;
    this.said = message;
    this.log(message);
  }
}
