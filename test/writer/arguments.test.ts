/** What applications pass in is checked, what is closed says so, and what is promised is exported. */
import t from 'tap';
import { join, resolve } from 'node:path';
import ts from 'typescript';
import { codeOf } from '../../wire/errors.js';
import { connect } from '../../writer/index.js';
import { inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

const ROOT = resolve(import.meta.dirname, '../..');

const withCluster = (body: Body): Promise<void> => inCluster({ seed: 13 }, body);

/** What each call ends with: a code, or what it gave. */
async function outcomes(calls: Record<string, () => unknown>): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const [name, call] of Object.entries(calls)) {
    try {
      const value: unknown = await call();
      found[name] = `gave ${typeof value}`;
    } catch (error) {
      found[name] = codeOf(error) ?? String(error);
    }
  }
  return found;
}

const allAs = (calls: object, code: string): Record<string, string> =>
  Object.fromEntries(Object.keys(calls).map((name) => [name, code]));

/** As plain JavaScript would call it. */
type Loose = Record<string, (...args: readonly unknown[]) => unknown>;

void t.test('connect() refuses what can not be meant, before anything is opened', async (t) => {
  const loose = connect as (options?: unknown) => Promise<unknown>;
  const calls = Object.fromEntries(
    [
      undefined,
      null,
      'cluster',
      {},
      { cluster: '' },
      { cluster: 7 },
      { cluster: {} },
      ...[NaN, -1, 0, 1.5, Infinity, '1', null].map((ringMemoryBytes) => ({ cluster: 'x', ringMemoryBytes })),
      ...[NaN, -1, 0, Infinity, 2 ** 31, '1'].map((deadlineMs) => ({ cluster: 'x', deadlineMs })),
      ...[NaN, -1, Infinity, '1'].map((holdMs) => ({ cluster: 'x', holdMs })),
      ...[NaN, -1, '1'].map((repairBytesPerSecond) => ({ cluster: 'x', repairBytesPerSecond })),
      { cluster: 'x', transport: 'carrier pigeon' },
      { cluster: 'x', parity: 'odd' },
      { cluster: 'x', dataPath: 'scenic' },
      { cluster: 'x', device: 7 },
      { cluster: 'x', secret: '' },
      { cluster: 'x', secret: 7 },
      { cluster: 'x', name: 7 },
      { cluster: 'x', deadlineMS: 1000 },
    ].map((options) => [JSON.stringify(options) ?? 'nothing', () => loose(options)]),
  );
  t.same(await outcomes(calls), allAs(calls, 'ERR_ARGUMENT'));
});

void t.test('every method refuses what can not be meant, and nothing has happened', async (t) => {
  await withCluster(async (cluster) => {
    const client = await cluster.client('w1'),
      writer = await client.create('a', { unitBytes: 1024 });
    writer.write(Buffer.alloc(5000, 1));
    await writer.flush();
    const reader = await client.open('a'),
      loose = client as unknown as Loose,
      read = reader as unknown as Loose;
    const strange = [NaN, -1, 0.5, Infinity, -Infinity, 2 ** 53, '1', null, {}, 1n];
    const calls: Record<string, () => unknown> = {};
    for (const value of strange) {
      const shown = typeof value === 'object' ? JSON.stringify(value) : `${typeof value} ${value}`;
      calls[`read(${shown}, 1)`] = () => read['read']!(value, 1);
      calls[`read(0, ${shown})`] = () => read['read']!(0, value);
      calls[`stream start ${shown}`] = () => read['stream']!({ start: value });
      calls[`stream end ${shown}`] = () => read['stream']!({ end: value });
      calls[`reserve(${shown})`] = () => (writer as unknown as Loose)['reserve']!(value);
      calls[`create unitBytes ${shown}`] = () => loose['create']!('b', { unitBytes: value });
      if (value !== '1') calls[`create(${shown})`] = () => loose['create']!(value);
      if (typeof value !== 'number' || !(value > 0))
        calls[`rebuild rate ${shown}`] = () => loose['rebuild']!('a', { bytesPerSecond: value });
      if (typeof value !== 'string') {
        calls[`open(${shown})`] = () => loose['open']!(value);
        calls[`append(${shown})`] = () => loose['append']!(value);
        calls[`stat(${shown})`] = () => loose['stat']!(value);
        calls[`remove(${shown})`] = () => loose['remove']!(value);
        calls[`drain(${shown})`] = () => loose['drain']!(value);
      }
    }
    Object.assign(calls, {
      'stream(7)': () => read['stream']!(7),
      'stream start beyond end': () => read['stream']!({ start: 3, end: 2 }),
      'stream misspelt': () => read['stream']!({ begin: 0 }),
      'create(a, null)': () => loose['create']!('b', null),
      'create layout': () => loose['create']!('b', { layout: 'pretty' }),
      'create code': () => loose['create']!('b', { code: 7 }),
      'create appears': () => loose['create']!('b', { appears: 'never' }),
      'create replace at once': () => loose['create']!('b', { replace: true }),
      'create name': () => loose['create']!(''),
      'scrub onProgress': () => loose['scrub']!('a', { onProgress: 7 }),
      'patrol signal': () => loose['patrol']!({ signal: {} }),
      'rebalance to': () => loose['rebalance']!({ to: 7 }),
      'repairer tickMs': () => loose['repairer']!({ tickMs: 0 }),
    });
    const found = await outcomes(calls);
    // A number of bytes that is no power of two has a code of its own.
    for (const name of Object.keys(found)) if (found[name] === 'ERR_UNIT_BYTES') found[name] = 'ERR_ARGUMENT';
    t.same(found, allAs(calls, 'ERR_ARGUMENT'));
    t.same(
      (await client.list()).map(({ name, writerEpoch, state }) => [name, writerEpoch, state]),
      [['a', 1, 'open']],
    );
    await end(writer);
    t.equal((await client.stat('a')).length, 5000);
    t.equal((await reader.read(4999, 2 ** 53 - 1 - 4999)).length, 1, 'any length is cut at the end');
  });
});

void t.test(
  'after close() and destroy() every method rejects with ERR_CLOSED; closing again is harmless',
  async (t) => {
    await withCluster(async (cluster) => {
      const client = await cluster.client('w1'),
        writer = await client.create('a', { unitBytes: 1024 });
      writer.write(Buffer.alloc(5000, 1));
      await end(writer);
      const reader = await client.open('a'),
        other = await client.create('b'),
        kept = await client.open('a');
      other.destroy();
      await Promise.all([reader.close(), reader.close()]);
      const ofFiles = {
        'writer.flush': () => writer.flush(),
        'writer.reserve': () => writer.reserve(1),
        'other.flush': () => other.flush(),
        'other.reserve': () => other.reserve(1),
        'reader.read': () => reader.read(0, 1),
        'reader.refresh': () => reader.refresh(),
        'reader.stream': () => reader.stream(),
      };
      t.same(await outcomes(ofFiles), allAs(ofFiles, 'ERR_CLOSED'));
      const late = client.create('c').then(
        (late) => codeOf(late.destroyed ? { code: 'ERR_CLOSED' } : late),
        (error: unknown) => codeOf(error),
      );
      await Promise.all([client.close(), client.close()]);
      t.ok(
        ['ERR_CLOSED', undefined].includes(await late.then((each) => (typeof each === 'string' ? each : undefined))),
      );
      const ofClient = {
        create: () => client.create('d'),
        append: () => client.append('a'),
        open: () => client.open('a'),
        rebuild: () => client.rebuild('a'),
        scrub: () => client.scrub('a'),
        patrol: () => client.patrol(),
        drain: () => client.drain('n1'),
        rebalance: () => client.rebalance(),
        repairer: () => client.repairer(),
        list: () => client.list(),
        stat: () => client.stat('a'),
        map: () => client.map(),
        remove: () => client.remove('a'),
        'kept.read': () => kept.read(0, 1),
      };
      t.same(await outcomes(ofClient), allAs(ofClient, 'ERR_CLOSED'));
    });
  },
);

/** A program that names the type of everything that the methods take and return. */
const PROGRAM = `
import { Buffer } from 'node:buffer';
import type { Readable, Writable } from 'node:stream';
import {
  CodeError, LayoutError, OperatingError, RdmaError, TartanError, TooManyErasuresError, connect, isOperating,
  openDevice,
  type Client, type ClusterMap, type ClusterStore, type ConnectOptions, type CreateOptions, type Device,
  type DrainReport,
  type ErrorCode, type FileReader, type FileRecord, type FileWriter, type LayoutName, type NodeEntry,
  type ParityMode,
  type PatrolReport, type ReadProgress, type ReadRepairCounts, type RebalanceReport, type RebuildReport,
  type SwitchEntry, type WriterProgress,
} from 'tartan-storage';

async function everything(store: ClusterStore): Promise<void> {
  const device: Device = openDevice('soft', { name: 'x' });
  const options: ConnectOptions = { cluster: store, device };
  const client: Client = await connect(options);
  const layout: LayoutName = 'spread';
  const create: CreateOptions = { layout, appears: 'complete', replace: true };
  const writer: FileWriter = await client.create('a', create);
  const writable: Writable = writer;
  const progress: WriterProgress = writer.progress;
  const mode: ParityMode = writer.parityMode;
  const reader: FileReader = await client.open('a');
  const bytes: Buffer = await reader.read(0, 1);
  const readable: Readable = reader.stream({ start: 0, end: 1 });
  const read: ReadProgress = reader.progress;
  const files: FileRecord[] = await client.list();
  const map: ClusterMap = await client.map();
  const nodes: readonly NodeEntry[] = map.nodes;
  const switches: readonly SwitchEntry[] = map.switches;
  const rebuilt: RebuildReport = await client.rebuild('a');
  const drained: DrainReport = await client.drain('n1');
  const balanced: RebalanceReport = await client.rebalance();
  const patrolled: PatrolReport = await client.patrol();
  const repairs: ReadRepairCounts = client.repairs;
  void [writable, progress, mode, bytes, readable, read, files, nodes, switches];
  void [rebuilt, drained, balanced, patrolled, repairs];
}

function codeOfIt(error: unknown): ErrorCode | string {
  if (error instanceof TartanError) return error.code;
  if (error instanceof OperatingError || error instanceof CodeError || error instanceof LayoutError) return error.code;
  if (error instanceof RdmaError || error instanceof TooManyErasuresError) return error.code;
  return isOperating(error) ? error.code : 'a bug';
}

void [everything, codeOfIt];
`;

void t.test('a program that names the types of all that is passed in and handed out compiles', (t) => {
  const options: ts.CompilerOptions = {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
  };
  const path = join(ROOT, 'writer', 'a-program-of-somebody.ts'),
    host = ts.createCompilerHost(options),
    { fileExists, readFile } = host;
  host.fileExists = (name) => name === path || fileExists(name);
  host.readFile = (name) => (name === path ? PROGRAM : readFile(name));
  const found = ts.getPreEmitDiagnostics(ts.createProgram([path], options, host));
  t.same(
    found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' ')),
    [],
  );
  t.end();
});
