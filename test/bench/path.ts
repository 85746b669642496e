/**
 * The whole path, writer → switch → 3 nodes, 2+1, 64 KiB units, in real processes on one machine, beside plain C
 * programs (relay.c) that move and check the same bytes: ours, theirs, ours, theirs …, in one run.
 *
 * No goal is set on switch parity against host parity: the gain exists where the writer's link is the limit, and on
 * loopback the switch only adds work.
 */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Sample } from './processes.js';
import { BenchCluster, STRIPE_BYTES, freePorts, makeFolder, run, yardstick } from './processes.js';
import type { Figure } from './report.js';
import { spread } from './report.js';

/** From dist/test/bench. */
const RELAY_SOURCE = fileURLToPath(new URL('../../../test/bench/relay.c', import.meta.url));
const UNIT_BYTES = 65536;
const HASHED_BYTES = 512 * STRIPE_BYTES;

export interface PathOptions {
  /** Interleaved pairs; one more goes before them and is not counted. */
  readonly repetitions: number;
  /** Of one transfer. Rounded down to whole stripes. */
  readonly bytes: number;
  readonly note: (line: string) => void;
  /** Sections wanted: 'write', 'read', 'sync'. */
  readonly wanted: (section: string) => boolean;
}

/** @throws when bytes read back differ, or a transfer did not go the way that it is to measure */
export async function pathFigures(options: PathOptions): Promise<Figure[]> {
  const { repetitions, note, wanted } = options;
  const bytes = Math.floor(options.bytes / STRIPE_BYTES) * STRIPE_BYTES;
  if (!['write', 'read', 'sync'].some(wanted)) return [];
  const folder = makeFolder();
  const relay = join(folder, 'relay');
  await run(['gcc', '-O3', '-march=native', '-o', relay, RELAY_SOURCE]);
  const figures: Figure[] = [];
  if (wanted('write')) {
    note('writes over TCP, storage that discards');
    figures.push(...(await writesOverTcp(relay, repetitions, bytes)));
    note('writes over shared memory, storage that discards');
    figures.push(...(await writesOverShm(relay, repetitions, bytes)));
  }
  if (wanted('read')) {
    note('reads over TCP, healthy and degraded');
    figures.push(...(await reads(relay, repetitions, bytes)));
  }
  if (wanted('sync')) {
    note('writes over TCP to syncing storage');
    figures.push(...(await syncedWrites(relay, folder, repetitions, bytes)));
  }
  return figures;
}

async function writesOverTcp(relay: string, repetitions: number, bytes: number): Promise<Figure[]> {
  const cluster = await BenchCluster.start('tcp', 'discard');
  const theirs = async (): Promise<Sample> => {
    const [port, ...sinks] = await freePorts(4);
    return yardstick(bytes, [
      ...sinks.map((sink) => [relay, 'sink', sink]),
      [relay, 'relay', port!, ...sinks],
      [relay, 'source', port!, String(bytes)],
    ]);
  };
  const [ours, host, relayed] = await interleaved(repetitions, [
    (i) => cluster.transfer('put', `s${i}`, bytes, 'switch', 'any'),
    (i) => cluster.transfer('put', `h${i}`, bytes, 'host', 'any'),
    theirs,
  ]);
  await cluster.end();
  return [
    ...beside('write', 'over TCP', 'C relay', ours!, relayed!, 0.8),
    {
      section: 'write',
      name: 'over TCP, switch ÷ host parity (information: no gain is claimed on loopback)',
      unit: '×',
      ...spread(ours!.map((each, i) => each.mbPerS / host![i]!.mbPerS)),
    },
    { section: 'write', name: 'over TCP, host parity', unit: 'MB/s', ...spread(host!.map((each) => each.mbPerS)) },
  ];
}

async function writesOverShm(relay: string, repetitions: number, bytes: number): Promise<Figure[]> {
  const cluster = await BenchCluster.start('shm', 'discard');
  const [ours, copies] = await interleaved(repetitions, [
    (i) => cluster.transfer('put', `s${i}`, bytes, 'switch', 'any'),
    () => yardstick(bytes, [[relay, 'memcpy', String(bytes)]]),
  ]);
  await cluster.end();
  return beside('write', 'over shared memory', 'memcpy of the same bytes', ours!, copies!);
}

async function reads(relay: string, repetitions: number, bytes: number): Promise<Figure[]> {
  const cluster = await BenchCluster.start('tcp', 'volatile');
  const hash = await putHashed(cluster);
  await cluster.transfer('put', 'timed', bytes, 'switch', 'any');
  // Ours reads its disks; the feeds send from memory: the yardstick is what the network and the checks alone would
  // allow.
  const units = bytes / UNIT_BYTES;
  const theirs = async (): Promise<Sample> => {
    const [port] = await freePorts(1);
    const each = String(Math.floor(units / 3));
    return yardstick(Math.floor(units / 3) * 3 * UNIT_BYTES, [
      [relay, 'gather', port!, '3', each],
      ...Array.from({ length: 3 }, () => [relay, 'feed', port!, each]),
    ]);
  };
  const get = async (isDegraded: boolean): Promise<Sample> => {
    const read = await cluster.transfer('get', 'timed', bytes, 'switch', 'any');
    if (read.degraded > 0 !== isDegraded)
      throw new Error(`${read.degraded} stripes were decoded, ${isDegraded ? 'some' : 'none'} were expected to be`);
    return read;
  };
  await requireHash(cluster, hash);
  const [healthy, gathered] = await interleaved(repetitions, [() => get(false), theirs]);
  await cluster.kill('n2');
  await requireHash(cluster, hash);
  const [degraded, gatheredAgain] = await interleaved(repetitions, [() => get(true), theirs]);
  await cluster.end();
  return [
    ...beside('read', 'healthy, over TCP', 'C fan-in from memory', healthy!, gathered!),
    ...beside('read', 'degraded, over TCP', 'C fan-in from memory', degraded!, gatheredAgain!),
  ];
}

async function syncedWrites(relay: string, folder: string, repetitions: number, bytes: number): Promise<Figure[]> {
  const cluster = await BenchCluster.start('tcp', 'sync');
  await requireHash(cluster, await putHashed(cluster));
  // The yardstick syncs as often as the nodes did in the transfer that warms them up.
  await cluster.transfer('put', 'first', bytes, 'switch', 'any');
  const batch = await cluster.bytesPerBatch(UNIT_BYTES);
  if (!(batch > 0)) throw new Error('the nodes do not count their batches');
  const [ours, plain] = await interleaved(repetitions, [
    (i) => cluster.transfer('put', `s${i}`, bytes, 'switch', 'any'),
    () => yardstick(bytes, [[relay, 'odirect', folder, String(bytes), String(Math.round(batch))]]),
  ]);
  await cluster.end();
  return [
    ...beside('sync', 'over TCP', 'three plain O_DIRECT writers', ours!, plain!),
    {
      section: 'sync',
      name: 'bytes a node writes between two syncs, its yardstick too',
      unit: 'KiB',
      ...spread([batch / 1024]),
    },
  ];
}

async function putHashed(cluster: BenchCluster): Promise<string> {
  return (await cluster.transfer('put', 'hashed', HASHED_BYTES, 'switch', 'hashed')).sha256;
}

async function requireHash(cluster: BenchCluster, expected: string): Promise<void> {
  const { sha256 } = await cluster.transfer('get', 'hashed', HASHED_BYTES, 'switch', 'hashed');
  if (sha256 !== expected)
    throw new Error(`other bytes came back than were written: SHA-256 ${sha256}, expected ${expected}`);
}

/** Takes turns, so that what disturbs the machine disturbs all alike; the first round warms up and does not count. */
async function interleaved(
  repetitions: number,
  subjects: readonly ((round: number) => Promise<Sample>)[],
): Promise<Sample[][]> {
  const samples: Sample[][] = subjects.map(() => []);
  for (let round = 0; round <= repetitions; round++) {
    for (const [i, subject] of subjects.entries()) {
      const sample = await subject(round);
      if (round > 0) samples[i]!.push(sample);
    }
  }
  return samples;
}

function beside(
  section: string,
  name: string,
  yard: string,
  ours: readonly Sample[],
  theirs: readonly Sample[],
  goal?: number,
): Figure[] {
  return [
    {
      section,
      name: `${name}, ours ÷ ${yard}`,
      unit: '×',
      ...spread(ours.map((each, i) => each.mbPerS / theirs[i]!.mbPerS)),
      ...(goal === undefined ? {} : { goal, better: 'higher' as const }),
    },
    { section, name: `${name}, ours`, unit: 'MB/s', ...spread(ours.map((each) => each.mbPerS)) },
    { section, name: `${name}, ${yard}`, unit: 'MB/s', ...spread(theirs.map((each) => each.mbPerS)) },
    {
      section,
      name: `${name}, CPU per byte, ours ÷ ${yard}`,
      unit: '×',
      ...spread(ours.map((each, i) => each.cpuPerGb / theirs[i]!.cpuPerGb)),
    },
    { section, name: `${name}, CPU of ours`, unit: 's/GB', ...spread(ours.map((each) => each.cpuPerGb)) },
    { section, name: `${name}, CPU of ${yard}`, unit: 's/GB', ...spread(theirs.map((each) => each.cpuPerGb)) },
  ];
}
