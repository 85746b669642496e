/**
 * The stories of `npm start` on real processes, pairwise over everything that could matter: the switch loses its
 * program, is stopped, is killed, a node is killed, all in the middle of a transfer; then everything is restarted, and
 * a node's store taken away, and every byte is compared each time. Durability is sync.
 */
import t from 'tap';
import type { Test } from 'tap';
import type { Client, FileWriter } from '../../writer/index.js';
import { pairwise } from './pairwise.js';
import { RunningCluster, finish, fresh, pause, pour, readAll } from './running-cluster.js';

const LONG = process.env['TARTAN_LONG'] === '1';
/** What "many stripes" comes to, bytes; enough that a fault strikes in the middle. */
const MANY_BYTES = LONG ? 64 << 20 : 12 << 20;

const PARAMETERS = {
  fault: ['none', 'unload', 'stop switch', 'kill switch', 'kill node'],
  writers: [1, 8],
  code: ['xor(2+1)', 'rs(4,2)', 'rs(8,3)', 'copies(1,2)'],
  unitBytes: [512, 65536, 4096, 4 << 20],
  size: ['0', '1', 'unit-1', 'stripe+1', 'many'],
  transport: ['tcp', 'shm'],
} as const;
type Case = ReturnType<typeof pairwise<typeof PARAMETERS>>[number];

function kOf(code: string): number {
  return Number(/\d+/.exec(code)![0]);
}

function bytesOf({ size, code, unitBytes, writers }: Case): number {
  switch (size) {
    case '0':
      return 0;
    case '1':
      return 1;
    case 'unit-1':
      return unitBytes - 1;
    case 'stripe+1':
      return kOf(code) * unitBytes + 1;
    // Units of 512 bytes make many stripes of few bytes.
    default:
      return Math.floor((unitBytes === 512 ? MANY_BYTES / 12 : MANY_BYTES) / writers) + 12345;
  }
}

interface Written {
  name: string;
  data: Buffer;
  writer: FileWriter;
}

/** Strikes when between 20 and 80 % of all bytes are acknowledged; files too small for a middle are struck at once. */
async function strike(
  cluster: RunningCluster,
  { fault, size }: Case,
  files: readonly Written[],
): Promise<{ at: number; heal: () => Promise<void> }> {
  const total = files.reduce((sum, { data }) => sum + data.length, 0);
  const share = (): number =>
    total === 0 ? 1 : files.reduce((sum, { writer }) => sum + writer.progress.acknowledgedBytes, 0) / total;
  // A file that is less than a few stripes has no middle: nothing of it is sent before its end.
  while (size === 'many' && share() < 0.25) await pause(1);
  const at = share();
  switch (fault) {
    case 'none':
      return { at, heal: async () => {} };
    case 'unload':
      await cluster.switchControl((control) => control.unload());
      return {
        at,
        heal: async () => {
          await cluster.switchControl((control) => control.load('parity'));
        },
      };
    case 'stop switch':
      cluster.signal('s1', 'SIGSTOP');
      return {
        at,
        heal: async () => {
          cluster.signal('s1', 'SIGCONT');
        },
      };
    case 'kill switch':
      cluster.signal('s1', 'SIGKILL');
      return {
        at,
        heal: async () => {
          await cluster.tartan('switch', 'start');
        },
      };
    case 'kill node':
      cluster.signal('n3', 'SIGKILL');
      return {
        at,
        heal: async () => {
          await cluster.tartan('node', 'start', 'n3');
        },
      };
  }
}

async function tell(t: Test, cluster: RunningCluster, story: Case, number: number): Promise<Map<string, Buffer>> {
  const stored = new Map<string, Buffer>();
  const length = bytesOf(story);
  const client: Client = await cluster.client({ transport: story.transport, ringMemoryBytes: 1 << 30 });
  t.teardown(() => client.close());
  const files: Written[] = [];
  for (let i = 0; i < story.writers; i++) {
    const name = `story ${number}/${i}`;
    const writer = await client.create(name, { code: story.code, unitBytes: story.unitBytes });
    writer.on('error', () => {});
    files.push({ name, data: fresh(length), writer });
  }
  // The last part of a large file is held back until the fault has struck, so that it strikes in the middle.
  const part = story.size === 'many' && story.fault !== 'none' ? Math.floor(length * 0.6) : length;
  const first = files.map(({ writer, data }) => pour(writer, data.subarray(0, part)));
  const { at, heal } = await strike(cluster, story, files);
  await Promise.all(first);
  await Promise.all(
    files.map(async ({ writer, data }) => {
      await pour(writer, data.subarray(part));
      await finish(writer);
    }),
  );
  if (story.size === 'many' && story.fault !== 'none')
    t.ok(at >= 0.2 && at <= 0.8, `struck when ${Math.round(at * 100)} % was acknowledged`);
  for (const { name, data, writer } of files) {
    t.equal(writer.progress.acknowledgedBytes, data.length, name);
    t.equal(writer.progress.copiedUnits, 0);
    if (story.size === 'many' && ['unload', 'stop switch', 'kill switch'].includes(story.fault))
      t.ok(writer.progress.modeChanges >= 2, 'the parity moved to the writer');
    t.ok((await readAll(client, name)).bytes.equals(data), `${name} reads back equal`);
    stored.set(name, data);
  }
  await client.close();
  await heal();
  return stored;
}

void t.test('pairs of parameters are all met', async (t) => {
  const cases = pairwise(PARAMETERS);
  const missing: string[] = [];
  const names = Object.keys(PARAMETERS) as (keyof typeof PARAMETERS)[];
  for (const a of names)
    for (const b of names) {
      if (a >= b) continue;
      for (const x of PARAMETERS[a])
        for (const y of PARAMETERS[b])
          if (!cases.some((each) => each[a] === x && each[b] === y)) missing.push(`${a} ${x}, ${b} ${y}`);
    }
  t.same(missing, []);
  t.ok(cases.length <= 40, `${cases.length} cases`);
});

void t.test('the main job, pairwise', async (t) => {
  const cluster = new RunningCluster(['--nodes', '11', '--size', LONG ? '4GiB' : '1GiB']);
  await cluster.up();
  t.teardown(() => cluster.end());
  const stored = new Map<string, Buffer>();
  for (const [number, story] of pairwise(PARAMETERS).entries()) {
    await t.test(
      Object.entries(story)
        .map(([name, value]) => `${name} ${value}`)
        .join(', '),
      async (t) => {
        for (const [name, data] of await tell(t, cluster, story, number)) stored.set(name, data);
      },
    );
  }
  await cluster.tartan('down');
  cluster.loseStore('n3');
  await cluster.up();
  const client = await cluster.client();
  let degraded = 0;
  for (const [name, data] of stored) {
    const read = await readAll(client, name);
    t.ok(read.bytes.equals(data), `${name}, after every process was restarted and a store was lost`);
    degraded += read.degraded;
  }
  t.ok(degraded > 0, `${degraded} stripes were decoded`);
  await client.close();
});
