/**
 * Repairs in the background what readers found damaged: the read itself was answered from the other units; here the
 * stripe is looked at as by a scrub, and what fails is written again.
 *
 *     reader ─ note() ─▶ queue (bounded) ─▶ after a while, a file's stripes together ─▶ rebuildFile(), verifying, at a
 *     bounded rate
 *
 * Nothing waits for it, and nothing depends on it: what it drops or can't restore the next read or scrub finds again.
 */
import { readFile } from '../cluster/files.js';
import type { TimerHandle } from '../wire/clock.js';
import { isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { rebuildFile } from './rebuild.js';

/** Counts since the client was connected. */
export interface ReadRepairCounts {
  /** Stripes that readers named, each once; and those of them that were not queued, because too many were. */
  noticed: number;
  dropped: number;
  /** Stripes looked at, units written again, units that could not be. */
  stripes: number;
  unitsRestored: number;
  unitsFailed: number;
}

const MOST_WAITING = 4096;
/** Stripes that one look at a file takes. */
const AT_ONCE = 64;
/** Damage comes in groups: what is noticed soon after goes together. */
const DELAY_MS = 50;
/** A stripe that was looked at is left alone for so long: it may be beyond repair, and read again and again. */
const REST_MS = 30_000;

export class ReadRepair {
  readonly counts: ReadRepairCounts = { noticed: 0, dropped: 0, stripes: 0, unitsRestored: 0, unitsFailed: 0 };
  private readonly waiting = new Map<number, Set<number>>();
  private readonly lookedAt = new Map<string, number>();
  private queued = 0;
  private timer: TimerHandle | undefined;
  private running: Promise<void> | undefined;
  private readonly stopper = new AbortController();

  constructor(
    private readonly context: ClientContext,
    private readonly bytesPerSecond: number,
  ) {}

  /** A unit of this stripe failed its checksum. */
  note(fileId: number, stripe: number): void {
    if (this.stopper.signal.aborted) return;
    const key = `${fileId} ${stripe}`,
      now = this.context.clock.now(),
      before = this.lookedAt.get(key);
    if (before !== undefined && now - before < REST_MS) return;
    if (this.queued >= MOST_WAITING) {
      this.counts.dropped++;
      return;
    }
    this.remember(key, now);
    this.counts.noticed++;
    const stripes = this.waiting.get(fileId) ?? new Set();
    this.waiting.set(fileId, stripes.add(stripe));
    this.queued++;
    if (this.running === undefined)
      this.timer ??= this.context.clock.setTimer(DELAY_MS, () => {
        this.timer = undefined;
        this.running = this.run().finally(() => {
          this.running = undefined;
        });
      });
  }

  /** Resolves when nothing is queued or being repaired. */
  async idle(): Promise<void> {
    while (this.queued > 0 || this.running !== undefined) {
      if (this.timer !== undefined)
        await new Promise<void>((resolve) => {
          this.context.clock.setTimer(DELAY_MS, resolve);
        });
      await this.running;
    }
  }

  /** Ends after what is under way. */
  async close(): Promise<void> {
    this.stopper.abort();
    if (this.timer !== undefined) this.context.clock.clearTimer(this.timer);
    this.timer = undefined;
    await this.running;
  }

  private async run(): Promise<void> {
    for (let next = this.take(); next !== undefined && !this.stopper.signal.aborted; next = this.take()) {
      try {
        const file = await readFile(this.context.store, next.fileId);
        if (file.state === 'deleted') continue;
        const report = await rebuildFile(this.context, file, true, {
          stripes: next.stripes,
          bytesPerSecond: this.bytesPerSecond,
          signal: this.stopper.signal,
        });
        this.counts.stripes += report.stripesDone;
        this.counts.unitsRestored += report.unitsRestored;
        this.counts.unitsFailed += report.unitsFailed + report.stripesLost;
      } catch (error) {
        // No memory for it now, a store that is away, a file that is gone: nobody waits for this.
        if (!isOperating(error)) throw error;
        this.counts.unitsFailed += next.stripes.length;
      }
    }
  }

  private take(): { fileId: number; stripes: number[] } | undefined {
    const [first] = this.waiting;
    if (first === undefined) return undefined;
    const [fileId, all] = first,
      stripes = [...all].sort((a, b) => a - b).slice(0, AT_ONCE);
    for (const stripe of stripes) all.delete(stripe);
    if (all.size === 0) this.waiting.delete(fileId);
    this.queued -= stripes.length;
    return { fileId, stripes };
  }

  private remember(key: string, now: number): void {
    this.lookedAt.delete(key);
    this.lookedAt.set(key, now);
    if (this.lookedAt.size > 4 * MOST_WAITING) this.lookedAt.delete(this.lookedAt.keys().next().value!);
  }
}
