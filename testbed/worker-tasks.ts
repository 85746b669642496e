/** What a worker can be told to do: write for a while, write a timeline, read back, measure latency, ask the switch. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { SwitchControl } from '../wire/control.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import type { FileWriter } from '../writer/index.js';
import { connect } from '../writer/index.js';
import { acceptWrites, exchangeWrites, registerOrReuse } from './device-tasks.js';
import { echoDatagram, nodeStatus, openGroups, sendDatagrams } from './packet-tasks.js';
import { Timeline } from './timeline.js';

const MOST_RESERVED = 1 << 20;
const DRAIN_MS = 200;
/** A stream that has not been measured after so many times its duration is given up. */
const PATIENCE = 6000;

export interface Access {
  readonly cluster: string;
  readonly parity: 'switch' | 'host';
  readonly ringMemoryBytes?: number;
  readonly deadlineMs?: number;
  readonly holdMs?: number;
  readonly dataPath?: 'ring' | 'packets';
}
export interface FileSpec {
  readonly name: string;
  readonly code: string;
  readonly unitBytes: number;
}

export interface StreamResult {
  /** Acknowledged bytes a second, between warm-up and end. */
  readonly bytesPerSecond: number;
  /** Acknowledged bytes of the whole file, before and after included. */
  readonly totalBytes: number;
  readonly stripesRedriven: number;
  readonly modeChanges: number;
  readonly cpuSeconds: number;
}

export interface LatencyResult {
  /** Of each write, in order. */ readonly ms: readonly number[];
  readonly totalBytes: number;
  readonly modeChanges: number;
}

const secret = (): string | undefined => process.env['TARTAN_SECRET'];

function open({ cluster, parity, ...more }: Access) {
  return connect({
    cluster,
    parity: parity === 'host' ? 'host' : 'auto',
    transport: 'tcp',
    ...(secret() === undefined ? {} : { secret: secret()! }),
    ...more,
  });
}

const timelines = new Map<string, Timeline>();

export const tasks = {
  /**
   * Writes one file sequentially for a time, filled in place, whatever lies in the ring; ends when all is acknowledged.
   */
  async stream({
    access,
    file,
    warmupSeconds,
    seconds,
    startAtMs = 0,
  }: {
    access: Access;
    file: FileSpec;
    warmupSeconds: number;
    seconds: number /** Date.now() when all writers begin together */;
    startAtMs?: number;
  }): Promise<StreamResult> {
    const client = await open(access);
    try {
      const writer = await client.create(file.name, { code: file.code, unitBytes: file.unitBytes });
      if (startAtMs > Date.now())
        await new Promise((resolve) => {
          setTimeout(resolve, startAtMs - Date.now());
        });
      const begun = performance.now();
      const marks: { at: number; bytes: number; cpu: NodeJS.CpuUsage }[] = [];
      // From one acknowledgement to another: with stripes of megabytes, bytes at two arbitrary moments would be steps,
      // not a rate.
      let last = { at: begun, bytes: 0 };
      // The first window is acknowledged late and at once, many connections filling together: a rate begins after it.
      const windowBytes = writer.internals.window.region.byteLength;
      let ending: NodeJS.Timeout | undefined;
      const mark = (): void => {
        marks.push({ ...last, cpu: process.cpuUsage() });
      };
      const observe = (): void => {
        const bytes = writer.progress.acknowledgedBytes;
        if (bytes === last.bytes) return;
        last = { at: performance.now(), bytes };
        if (marks.length > 0 || bytes < windowBytes || last.at - begun < warmupSeconds * 1000) return;
        mark();
        ending = setTimeout(mark, seconds * 1000);
      };
      writer.on('drain', observe);
      try {
        await fillUntil(
          writer,
          () => marks.length === 2 || performance.now() - begun > (warmupSeconds + seconds) * PATIENCE,
        );
      } finally {
        clearTimeout(ending);
      }
      const { stripesRedriven, modeChanges } = await finish(writer);
      const [from, to] = marks;
      if (from === undefined || to === undefined || to.at <= from.at)
        throw new Error('too little was acknowledged in the time to tell a rate');
      return {
        bytesPerSecond: ((to.bytes - from.bytes) / (to.at - from.at)) * 1000,
        totalBytes: writer.progress.acknowledgedBytes,
        stripesRedriven,
        modeChanges,
        cpuSeconds: (to.cpu.user - from.cpu.user + to.cpu.system - from.cpu.system) / 1e6,
      };
    } finally {
      await client.close();
    }
  },

  /** Begins a write that goes on until `endTimeline`, sampled every `sampleMs`. */
  async beginTimeline({ access, file, sampleMs }: { access: Access; file: FileSpec; sampleMs: number }): Promise<void> {
    timelines.set(file.name, await Timeline.begin(await open(access), file, sampleMs));
  },

  /** Ends it; everything written is acknowledged then. */
  async endTimeline({ name }: { name: string }) {
    const timeline = timelines.get(name);
    if (timeline === undefined) throw new Error(`no timeline ${name}`);
    timelines.delete(name);
    return timeline.end();
  },

  /** Reads a file from its start. @returns length and SHA-256 of what came */
  async read({
    access,
    name,
  }: {
    access: Access;
    name: string;
  }): Promise<{ bytes: number; sha256: string; degradedStripes: number; checksumFailures: number }> {
    const client = await open(access);
    try {
      const reader = await client.open(name);
      const hash = createHash('sha256');
      let bytes = 0;
      for await (const chunk of reader.stream()) {
        hash.update(chunk as Buffer);
        bytes += (chunk as Buffer).length;
      }
      const { degradedStripes, checksumFailures } = reader.progress;
      return { bytes, sha256: hash.digest('hex'), degradedStripes, checksumFailures };
    } finally {
      await client.close();
    }
  },

  /** Single stripes, one after the other, each until it is durable. */
  async latency({
    access,
    file,
    stripeBytes,
    count,
  }: {
    access: Access;
    file: FileSpec;
    stripeBytes: number;
    count: number;
  }): Promise<LatencyResult> {
    const client = await open(access);
    try {
      const writer = await client.create(file.name, { code: file.code, unitBytes: file.unitBytes });
      const ms: number[] = [];
      for (let i = 0; i < count; i++) {
        const begun = performance.now();
        let left = stripeBytes;
        while (left > 0) {
          const { view, commit } = writer.reserve(left);
          if (view.length === 0) {
            await once(writer, 'drain');
            continue;
          }
          commit(view.length);
          left -= view.length;
        }
        // Acknowledged, not published: that is the writer's to decide when, and another matter.
        await writer.internals.flush();
        ms.push(performance.now() - begun);
      }
      const { modeChanges } = await finish(writer);
      return { ms, totalBytes: writer.progress.acknowledgedBytes, modeChanges };
    } finally {
      await client.close();
    }
  },

  /** Stores files of one size for a time, `parallel` at once: created, written, durable, closed. */
  async storeFiles({
    access,
    file,
    bytes,
    parallel,
    seconds,
  }: {
    access: Access;
    file: FileSpec;
    bytes: number;
    parallel: number;
    seconds: number;
  }): Promise<{ files: number; seconds: number; modeChanges: number }> {
    const client = await open(access);
    try {
      const begun = performance.now();
      let files = 0,
        modeChanges = 0;
      const lane = async (): Promise<void> => {
        while (performance.now() - begun < seconds * 1000) {
          const writer = await client.create(`${file.name}-${files++}`, { code: file.code, unitBytes: file.unitBytes });
          let left = bytes;
          while (left > 0) {
            const { view, commit } = writer.reserve(Math.min(left, MOST_RESERVED));
            if (view.length === 0) {
              await once(writer, 'drain');
              continue;
            }
            commit(view.length);
            left -= view.length;
          }
          ({ modeChanges } = await finish(writer));
        }
      };
      await Promise.all(Array.from({ length: parallel }, lane));
      return { files, seconds: (performance.now() - begun) / 1000, modeChanges };
    } finally {
      await client.close();
    }
  },

  acceptWrites,
  exchangeWrites,
  registerOrReuse,
  echoDatagram,
  nodeStatus,
  openGroups,
  sendDatagrams,

  /** One control call to a switch agent. */
  async switch({
    host,
    controlPort,
    verb,
  }: {
    host: string;
    controlPort: number;
    verb: 'load' | 'unload' | 'status';
  }): Promise<SwitchStatus> {
    const control = new SwitchControl(host, controlPort, { secret: secret() });
    try {
      return await (verb === 'load' ? control.load('parity') : verb === 'unload' ? control.unload() : control.status());
    } finally {
      control.close();
    }
  },
} as const;

export type Tasks = typeof tasks;

async function fillUntil(writer: FileWriter, isOver: () => boolean): Promise<void> {
  let failure: Error | undefined;
  writer.once('error', (error) => {
    failure = error;
  });
  while (!isOver()) {
    if (failure !== undefined) throw failure;
    const { view, commit } = writer.reserve(MOST_RESERVED);
    if (view.length > 0) {
      commit(view.length);
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

/** Closes a file: when it returns every byte is acknowledged. */
async function finish(writer: FileWriter) {
  await new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });
  return writer.progress;
}
