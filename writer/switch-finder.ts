/**
 * Finds a programmable switch for a file and keeps looking when there is none.
 *
 * A new path is offered once the switch has been programmable for the hold time (the first one at once, so that a file
 * starts on the switch). A switch that only forwards is kept connected: its in-band notice says when it is loaded
 * again.
 */
import type { ClusterMap, FileRecord, SwitchEntry } from '../cluster/records.js';
import { connectSession } from '../pipeline/session.js';
import { isOperating } from '../wire/errors.js';
import { MESSAGE_BYTES } from '../wire/ring-messages.js';
import type { ClientContext } from './context.js';
import type { StripePath, StripePathOwner } from './stripe-path.js';
import { SwitchPath } from './switch-path.js';
import type { WriteWindow } from './write-window.js';

const RETRY_MS = 50;
const MAX_RETRY_MS = 1000;
/** Stripe slots asked of a switch; it grants what its ring memory allows. */
const WANTED_SLOTS = 64;
/** Of the node ids in a Hello, with two bytes for each: half of what a message holds. */
const MOST_ID_BYTES = MESSAGE_BYTES / 2;

/** Ids are ASCII. */
function sum(ids: readonly string[]): number {
  return ids.reduce((bytes, id) => bytes + id.length + 2, 0);
}

export interface FinderOptions {
  readonly context: ClientContext;
  readonly file: FileRecord;
  readonly window: WriteWindow;
  readonly map: () => ClusterMap;
  readonly owner: StripePathOwner;
  /** A path through a packet switch; absent: this writer sends no packets. */
  readonly openPackets: ((entry: SwitchEntry) => Promise<StripePath>) | undefined;
  /** A path is ready for use. */
  readonly onPath: (path: StripePath) => void;
}

export class SwitchFinder {
  private readonly options: FinderOptions;
  private readonly paths = new Set<StripePath>();
  private readonly ending = new Set<Promise<void>>();
  private current: StripePath | undefined;
  private stopped = false;
  private trying = false;
  private looking: Promise<void> | undefined;
  private wake: (() => void) | undefined;

  constructor(options: FinderOptions) {
    this.options = options;
  }

  /** Tries every switch of the map once, without hold time; then goes on looking in the background. */
  async start(): Promise<void> {
    if (this.options.context.parity === 'host') return;
    await this.tryAll(0);
    this.looking = this.look();
  }

  /** The path in use was lost: looks for another. */
  lost(path: StripePath): void {
    this.paths.delete(path);
    this.bury(path.destroy('lost'));
    if (this.current === path) this.current = undefined;
    this.wake?.();
  }

  /** The map's switches changed: looks at once, unless it is looking. */
  nudge(): void {
    if (!this.trying && this.current === undefined) this.wake?.();
  }

  /** A connected switch changed its state: with a new program it gets a fresh session, and a ring. */
  changed(path: StripePath): void {
    if (path === this.current || path.state !== 'programmable') return;
    this.lost(path);
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.wake?.();
    await this.looking;
    for (const path of this.paths) this.bury(path.destroy('closed'));
    await Promise.all(this.ending);
  }

  private bury(end: Promise<void>): void {
    const done = end.finally(() => this.ending.delete(done));
    this.ending.add(done);
  }

  private async look(): Promise<void> {
    let delayMs = RETRY_MS;
    while (!this.stopped) {
      if (this.current?.usable !== true) {
        this.current = undefined;
        this.trying = true;
        delayMs = (await this.tryAll(this.options.context.holdMs).finally(() => {
          this.trying = false;
        }))
          ? RETRY_MS
          : Math.min(delayMs * 2, MAX_RETRY_MS);
      }
      if (this.stopped) return;
      await this.pause(this.current === undefined ? delayMs : MAX_RETRY_MS);
    }
  }

  /** Waits, or until somebody wakes this; leaves no timer behind. */
  private pause(ms: number): Promise<void> {
    const { clock } = this.options.context;
    return new Promise((resolve) => {
      const timer = clock.setTimer(ms, () => {
        this.wake = undefined;
        resolve();
      });
      this.wake = () => {
        this.wake = undefined;
        clock.clearTimer(timer);
        resolve();
      };
    });
  }

  /** @returns whether a path was found */
  private async tryAll(holdMs: number): Promise<boolean> {
    const { map } = this.options;
    for (const entry of map().switches) {
      if (this.stopped) return false;
      if ([...this.paths].some((path) => path.id === entry.id && path.up)) continue;
      try {
        const path = await this.open(entry);
        if (path === undefined) continue;
        this.paths.add(path);
        if (!path.usable) continue;
        if (holdMs > 0) await this.pause(holdMs);
        if (!path.usable || this.stopped) {
          this.lost(path);
          continue;
        }
        this.current = path;
        this.options.onPath(path);
        return true;
      } catch (error) {
        if (!isOperating(error)) throw error;
      }
    }
    return false;
  }

  /** @returns undefined when it can't be used now */
  private async open(entry: SwitchEntry): Promise<StripePath | undefined> {
    const { context, file, window, map, owner, openPackets } = this.options;
    if (entry.packets !== undefined) return entry.state === 'programmable' ? openPackets?.(entry) : undefined;
    const session = await connectSession(
      context,
      entry.host,
      entry.port,
      {
        role: 'writer',
        name: context.name,
        mapEpoch: map().epoch,
        k: window.slots.k,
        m: window.slots.m,
        unitBytes: window.slots.unitBytes,
        slots: WANTED_SLOTS,
        fileId: file.id,
        // A list that would not fit a Hello is read from the file's record by the switch.
        nodes: sum(file.nodes) <= MOST_ID_BYTES ? [...file.nodes] : [],
        tags: window.tags,
        code: file.code,
        ...(file.layout !== undefined && { layout: file.layout }),
      },
      { transport: context.transport, timeoutMs: context.deadlineMs },
    );
    return new SwitchPath(entry.id, session, {
      clock: context.clock,
      layout: window.slots,
      region: window.region,
      tags: window.tags,
      heartbeatMs: context.heartbeatMs,
      deadlineMs: context.deadlineMs,
      owner,
    });
  }
}
