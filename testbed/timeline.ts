/** A write that goes on until it is ended, and what was acknowledged when. */
import { createHash } from 'node:crypto';
import type { Client, FileWriter } from '../writer/index.js';
import type { FileSpec } from './worker-tasks.js';

export interface TimelineResult {
  /** Milliseconds since the epoch (Date.now()'s clock, comparable within one machine) of the first sample. */
  readonly startedAt: number;
  /** Milliseconds after startedAt, and bytes acknowledged by then, of every sample. */
  readonly samples: readonly { readonly ms: number; readonly bytes: number }[];
  /**
   * The longest time without a newly acknowledged byte, by window of interest: [from, to] of each gap longer than 20
   * ms.
   */
  readonly gaps: readonly { readonly fromMs: number; readonly toMs: number }[];
  readonly modes: readonly { readonly ms: number; readonly mode: string; readonly reason: string }[];
  readonly bytes: number;
  readonly sha256: string;
  readonly stripesRedriven: number;
}

/** A gap is told when it is longer than this. */
const GAP_MS = 20;
/** The writer waits for room at most so long before it looks again whether it is to end. */
const DRAIN_MS = 20;

export class Timeline {
  private readonly samples: { ms: number; bytes: number }[] = [];
  private readonly gaps: { fromMs: number; toMs: number }[] = [];
  private readonly modes: { ms: number; mode: string; reason: string }[] = [];
  private readonly hash = createHash('sha256');
  private readonly started = performance.now();
  private readonly startedAt = Date.now();
  private over = false;
  private lastMs = 0;
  private lastBytes = 0;
  private readonly filling: Promise<void>;
  private readonly sampling: NodeJS.Timeout;
  private failure: Error | undefined;

  private constructor(
    private readonly client: Client,
    private readonly writer: FileWriter,
    sampleMs: number,
  ) {
    writer.on('mode', ({ mode, reason }: { mode: string; reason: string }) => {
      this.modes.push({ ms: this.now(), mode, reason });
    });
    writer.on('error', (error) => {
      this.failure = error;
    });
    // Told by the writer at once when something was acknowledged and room came of it, not by the next sample.
    writer.on('drain', () => {
      this.observe();
    });
    this.sampling = setInterval(() => {
      this.observe();
      this.samples.push({ ms: this.now(), bytes: this.lastBytes });
    }, sampleMs);
    this.filling = this.fill();
  }

  static async begin(client: Client, file: FileSpec, sampleMs: number): Promise<Timeline> {
    try {
      return new Timeline(
        client,
        await client.create(file.name, { code: file.code, unitBytes: file.unitBytes }),
        sampleMs,
      );
    } catch (error) {
      await client.close();
      throw error;
    }
  }

  /** Stops writing, waits until all is acknowledged. @throws what the writer failed with */
  async end(): Promise<TimelineResult> {
    const { writer } = this;
    this.over = true;
    try {
      await this.filling;
      if (this.failure !== undefined) throw this.failure;
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.once('finish', resolve);
        writer.end();
      });
      return {
        startedAt: this.startedAt,
        samples: this.samples,
        gaps: this.gaps,
        modes: this.modes,
        bytes: writer.progress.acknowledgedBytes,
        sha256: this.hash.digest('hex'),
        stripesRedriven: writer.progress.stripesRedriven,
      };
    } finally {
      clearInterval(this.sampling);
      await this.client.close();
    }
  }

  private now(): number {
    return performance.now() - this.started;
  }

  private observe(): void {
    const bytes = this.writer.progress.acknowledgedBytes,
      ms = this.now();
    if (bytes === this.lastBytes) return;
    if (this.lastBytes > 0 && ms - this.lastMs > GAP_MS) this.gaps.push({ fromMs: this.lastMs, toMs: ms });
    this.lastBytes = bytes;
    this.lastMs = ms;
  }

  private async fill(): Promise<void> {
    const { writer } = this;
    const state = new Uint32Array([0x2545f491]);
    while (!this.over && this.failure === undefined) {
      const { view, commit } = writer.reserve(1 << 20);
      if (view.length > 0) {
        pseudoRandom(view, state);
        this.hash.update(view);
        commit(view.length);
        // Timers and acknowledgements must have their turn also while there is room.
        await new Promise((resolve) => {
          setImmediate(resolve);
        });
        continue;
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(done, DRAIN_MS);
        function done(): void {
          clearTimeout(timer);
          writer.off('drain', done);
          resolve();
        }
        writer.once('drain', done);
      });
    }
  }
}

/** Bytes that no two stripes share, going on where `state` stopped (an xorshift generator, four bytes a step). */
function pseudoRandom(view: Uint8Array, state: Uint32Array): void {
  let x = state[0]!;
  const words = new DataView(view.buffer, view.byteOffset, view.length);
  let at = 0;
  for (; at + 4 <= view.length; at += 4) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words.setUint32(at, x >>> 0, true);
  }
  for (; at < view.length; at++) view[at] = (x >>> (8 * (at & 3))) & 0xff;
  state[0] = x;
}
