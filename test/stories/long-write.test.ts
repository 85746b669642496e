/**
 * One long write while the switch dies, or sleeps, again and again; a node lost in the middle; memory and counters.
 */
import t from 'tap';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { FileWriter } from '../../writer/index.js';
import { RunningCluster, finish, fresh, pause, pour, readAll } from './running-cluster.js';
import { until } from '../until.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const ROUNDS = LONG ? 10 : 3;

/** Pours the same piece again and again until told to stop. @returns how many times */
async function pourUntil(writer: FileWriter, piece: Buffer, stop: () => boolean): Promise<number> {
  let times = 0;
  for (; !stop(); times++) {
    await pour(writer, piece);
    await pause(5);
  }
  return times;
}

for (const [name, signal] of [
  ['killed and restarted', 'SIGKILL'],
  ['stopped and woken up', 'SIGSTOP'],
] as const) {
  void t.test(
    `the switch is ${name} ${ROUNDS} times during one long write: nothing lost, nothing doubled, the writer is back ` +
      'on it at the end',
    async (t) => {
      const cluster = new RunningCluster(['--nodes', '3', '--size', '4GiB']);
      await cluster.up();
      t.teardown(() => cluster.end());
      const client = await cluster.client();
      const writer = await client.create('long');
      const piece = fresh(1_000_003);
      let rounds = 0;
      const pouring = pourUntil(writer, piece, () => rounds === ROUNDS);
      for (let round = 0; round < ROUNDS; round++) {
        const before = writer.progress.acknowledgedBytes;
        await until(
          () => writer.parityMode === 'switch' && writer.progress.acknowledgedBytes > before,
          'progress through the switch',
        );
        cluster.signal('s1', signal);
        await until(() => writer.parityMode === 'host', 'the parity to move to the writer');
        const during = writer.progress.acknowledgedBytes;
        await until(() => writer.progress.acknowledgedBytes > during, 'progress without the switch');
        if (signal === 'SIGSTOP') {
          await pause(LONG ? 3000 : 500);
          cluster.signal('s1', 'SIGCONT');
        } else {
          await cluster.newSwitch();
        }
        await until(() => writer.parityMode === 'switch', 'the writer to go back');
        rounds++;
      }
      const times = await pouring;
      t.equal(writer.parityMode, 'switch');
      t.equal(writer.progress.modeChanges, 2 * ROUNDS + 1, 'once at the start, twice a round');
      await finish(writer);
      t.equal(writer.progress.acknowledgedBytes, times * piece.length);
      const reader = await client.open('long');
      t.equal(reader.length, times * piece.length);
      for (let i = 0; i < times; i++) {
        if (!(await reader.read(i * piece.length, piece.length)).equals(piece))
          t.fail(`piece ${i} of ${times} differs`);
      }
      await client.close();
    },
  );
}

void t.test(
  'a node lost during a write: it goes on degraded, and what is missing is known after everything restarts',
  async (t) => {
    const cluster = new RunningCluster(['--nodes', '3', '--size', '1GiB']);
    await cluster.up();
    t.teardown(() => cluster.end());
    const client = await cluster.client();
    const writer = await client.create('degraded');
    const data = fresh(40_000_000);
    const poured = pour(writer, data.subarray(0, 30_000_000));
    await until(() => writer.progress.acknowledgedBytes > 8_000_000, 'the middle');
    cluster.signal('n2', 'SIGKILL');
    await poured;
    await pour(writer, data.subarray(30_000_000));
    await finish(writer);
    t.ok((await readAll(client, 'degraded')).bytes.equals(data));
    await client.close();
    await cluster.restart();
    const again = await cluster.client();
    const read = await readAll(again, 'degraded');
    t.ok(read.bytes.equals(data), 'after every process was restarted, the lost node among them');
    // Of the last 10 MB, written when the node was surely gone, two stripes in three have a data unit on it.
    t.ok(read.degraded >= 50, `${read.degraded} stripes lack their unit on the node that was lost`);
    await again.close();
    await cluster.tartan('down');
    cluster.loseStore('n2');
    await cluster.up();
    const last = await cluster.client();
    t.ok((await readAll(last, 'degraded')).bytes.equals(data), 'and without its store');
    await last.close();
  },
);

/** Resident set and its part that is not shared, of a process, bytes. */
function residentOf(pid: number): { anonymous: number; all: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name: string): number => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)![1]) * 1024;
  return { anonymous: field('RssAnon'), all: field('VmRSS') };
}

void t.test(
  `a ${LONG ? '10 GiB' : '640 MiB'} put holds every process under 300 MiB beside its rings; no unit is copied, ` +
    'no buffer made per stripe',
  async (t) => {
    const total = LONG ? 10 * 2 ** 30 : 640 << 20;
    const cluster = new RunningCluster(['--nodes', '3', '--size', LONG ? '8GiB' : '1GiB']);
    await cluster.up();
    t.teardown(() => cluster.end());
    const client = await cluster.client();
    const writer = await client.create('big');
    const piece = fresh(16 << 20);
    const counters = async () => (await cluster.switchControl((control) => control.status())).counters;
    let most = 0,
      settled: Record<string, number> | undefined;
    for (let at = 0; at < total; at += piece.length) {
      await pour(writer, piece);
      // By now everything that is set up once has been.
      if (settled === undefined && writer.progress.acknowledgedBytes > 64 << 20) settled = await counters();
      for (const { identity } of cluster.processes()) most = Math.max(most, residentOf(identity.pid).all);
    }
    const after = await counters();
    await finish(writer);
    t.ok(most < (300 << 20) + (256 << 20), `${Math.round(most / 2 ** 20)} MiB at most`);
    t.ok(
      (after['tartan_switch_stripes'] ?? 0) > (settled!['tartan_switch_stripes'] ?? 0) + 1000,
      'stripes went through the switch meanwhile',
    );
    t.equal(after['tartan_switch_units_copied'], 0);
    t.equal(after['tartan_device_bytes_copied'], 0);
    t.equal(after['tartan_switch_buffers'], settled!['tartan_switch_buffers']);
    t.equal(after['tartan_device_allocations'], settled!['tartan_device_allocations']);
    t.equal(writer.progress.copiedUnits, 0);
    const reader = await client.open('big');
    t.ok((await reader.read(total - piece.length, piece.length)).equals(piece));
    await client.close();
  },
);

void t.test('sixteen writers get rings, or are refused with a code', async (t) => {
  const cluster = new RunningCluster(['--nodes', '3', '--size', '1GiB', '--ring-memory', '64MiB']);
  await cluster.up();
  t.teardown(() => cluster.end());
  const client = await cluster.client({ ringMemoryBytes: 1 << 30 });
  const outcomes = await Promise.allSettled(
    Array.from({ length: 16 }, (_, i) => client.create(`f${i}`, { unitBytes: 1 << 20 })),
  );
  const codes = outcomes.flatMap((each) =>
    each.status === 'rejected' ? [(each.reason as { code?: string }).code] : [],
  );
  t.ok(
    codes.every((code) => code === 'ERR_RING_MEMORY'),
    codes.join(),
  );
  const writers = outcomes.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
  t.ok(writers.length >= 4, `${writers.length} of 16 were served`);
  const data = fresh(5_000_000);
  await Promise.all(
    writers.map(async (writer) => {
      await pour(writer, data);
      await finish(writer);
    }),
  );
  for (const writer of writers) t.ok((await readAll(client, writer.name)).bytes.equals(data), writer.name);
  await client.close();
  for (const { identity } of cluster.processes()) t.ok(residentOf(identity.pid).all < (300 + 64) << 20);
});

if (LONG) {
  void t.test('1 GiB of every code, the switch killed in the middle, reads back equal', async (t) => {
    const cluster = new RunningCluster(['--nodes', '11', '--size', '4GiB']);
    await cluster.up();
    t.teardown(() => cluster.end());
    const piece = fresh(16 << 20),
      pieces = 64;
    for (const code of ['xor(2+1)', 'rs(4,2)', 'rs(8,3)', 'copies(1,2)']) {
      const client = await cluster.client();
      const writer = await client.create(code, { code });
      for (let i = 0; i < pieces; i++) {
        await pour(writer, piece);
        if (i === pieces / 2) cluster.signal('s1', 'SIGKILL');
      }
      await finish(writer);
      t.ok(writer.progress.modeChanges >= 2, `${code}: the parity moved`);
      t.equal(writer.progress.acknowledgedBytes, 1 << 30);
      const reader = await client.open(code);
      let equal = 0;
      for (let i = 0; i < pieces; i++) if ((await reader.read(i * piece.length, piece.length)).equals(piece)) equal++;
      t.equal(equal, pieces, `${code}: pieces of 16 MiB that are equal`);
      await client.close();
      await cluster.newSwitch();
    }
  });
}

void t.test('one byte in rs(8,3) with 1 MiB units costs bytes, not megabytes', async (t) => {
  const cluster = new RunningCluster(['--nodes', '11', '--size', '256MiB']);
  await cluster.up();
  t.teardown(() => cluster.end());
  const stored = (): number =>
    Array.from(
      { length: 11 },
      (_, i) => statSync(join(cluster.dir, 'nodes', `n${i + 1}`, 'units')).blocks * 512,
    ).reduce((a, b) => a + b);
  const before = stored();
  const client = await cluster.client();
  const writer = await client.create('one', { code: 'rs(8,3)', unitBytes: 1 << 20 });
  writer.write(Buffer.of(7));
  await finish(writer);
  t.same([...(await readAll(client, 'one')).bytes], [7]);
  await client.close();
  const cost = stored() - before;
  t.ok(cost <= 11 * 2 * 4096 + 65536, `${cost} bytes on all eleven disks`);
});
