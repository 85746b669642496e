/** The demo's two transfers: a file into the cluster, with a fault in the middle if asked, and back with its hash. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from '../writer/index.js';
import { ProgressBar } from './progress-bar.js';
import { describeParity } from './wording.js';

/** The fault comes when so much is acknowledged; no more than FEED_UNTIL is sent before it has struck. */
const STRIKE_AT = 0.4;
const FEED_UNTIL = 0.75;
const POLL_MS = 2;
/** A writer goes back to a switch only after it has been programmable for a while. */
const SWITCH_MS = 15_000;

export interface Source {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Stored {
  readonly bytes: number;
  readonly ms: number;
  /** In order; `at` is the acknowledged share of the file. */
  readonly modeChanges: readonly { mode: 'switch' | 'host'; reason: string; at: number }[];
  readonly stripesRedriven: number;
  /** The switch computed the parity when the first byte was sent. */
  readonly beganInSwitch: boolean;
  /** Acknowledged shares of the file before and after the fault struck. */
  readonly struck: { before: number; after: number } | undefined;
}

/**
 * Stores a file under `name`.
 *
 * @param strike  called once, when 40 % is acknowledged; the file's last quarter is sent only after it resolved
 * @param say     gets a line for each change of the parity's place
 */
export async function store(
  client: Client,
  source: Source,
  name: string,
  say: (line: string) => void,
  strike?: () => Promise<void>,
): Promise<Stored> {
  const writer = await client.create(name, { code: 'xor(2+1)', unitBytes: 65536 });
  await waitFor(() => writer.parityMode === 'switch', SWITCH_MS);
  const beganInSwitch = writer.parityMode === 'switch';
  const share = (): number => writer.progress.acknowledgedBytes / source.bytes;
  const modeChanges: { mode: 'switch' | 'host'; reason: string; at: number }[] = [];
  const bar = new ProgressBar(name, source.bytes, process.stdout);
  let last = writer.parityMode;
  writer.on('mode', ({ mode, reason }: { mode: 'switch' | 'host'; reason: string }) => {
    if (mode === last) return;
    last = mode;
    modeChanges.push({ mode, reason, at: share() });
    bar.finish();
    say(`at ${percent(share())}: ${describeParity(mode)} (${reason})`);
  });

  let struck: Stored['struck'];
  let striking: Promise<void> | undefined;
  const gate = new Gate(strike === undefined);
  const ticking = setInterval(() => {
    bar.update(writer.progress.acknowledgedBytes, describeParity(writer.parityMode));
    if (strike === undefined || striking !== undefined || share() < STRIKE_AT) return;
    const before = share();
    striking = strike().then(
      () => {
        struck = { before, after: share() };
        gate.open();
      },
      (error: unknown) => {
        gate.fail(error);
      },
    );
  }, POLL_MS);
  const started = performance.now();
  try {
    await pipeline(feed(source, gate), writer);
    await striking;
  } finally {
    clearInterval(ticking);
    bar.finish();
  }
  return {
    bytes: writer.progress.acknowledgedBytes,
    ms: performance.now() - started,
    modeChanges,
    beganInSwitch,
    struck,
    stripesRedriven: writer.progress.stripesRedriven,
  };
}

/** Reads a stored file from end to end. */
export async function readBack(
  client: Client,
  name: string,
  bytes: number,
): Promise<{ bytes: number; ms: number; sha256: string; degradedStripes: number }> {
  const reader = await client.open(name);
  const hash = createHash('sha256');
  const bar = new ProgressBar(name, bytes, process.stdout);
  const started = performance.now();
  let read = 0;
  try {
    for await (const chunk of reader.stream() as AsyncIterable<Buffer>) {
      hash.update(chunk);
      read += chunk.length;
      bar.update(read, reader.progress.degradedStripes > 0 ? 'reading, degraded' : 'reading');
    }
  } finally {
    bar.finish();
    await reader.close();
  }
  return {
    bytes: read,
    ms: performance.now() - started,
    sha256: hash.digest('hex'),
    degradedStripes: reader.progress.degradedStripes,
  };
}

export async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`;
}

/** @returns whether it became true in time */
async function waitFor(condition: () => boolean, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (!condition() && performance.now() < deadline) await delay(10);
  return condition();
}

/** The file, in pieces small enough that the pause falls where it should in a small file too. */
async function* feed(source: Source, gate: Gate): AsyncGenerator<Buffer> {
  const piece = Math.max(4096, Math.min(1 << 20, Math.floor(source.bytes / 64)));
  let sent = 0;
  for await (const chunk of createReadStream(source.path, { highWaterMark: piece }) as AsyncIterable<Buffer>) {
    if (sent + chunk.length > source.bytes * FEED_UNTIL) await gate.passed;
    sent += chunk.length;
    yield chunk;
  }
}

class Gate {
  readonly passed: Promise<void>;
  open!: () => void;
  fail!: (error: unknown) => void;
  constructor(isOpen: boolean) {
    this.passed = new Promise((resolve, reject) => {
      this.open = resolve;
      this.fail = reject;
    });
    this.passed.catch(() => {}); // also told where it is awaited
    if (isOpen) this.open();
  }
}
