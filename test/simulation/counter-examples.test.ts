/**
 * The design's counter-examples, each as a story in the simulated cluster: late copies, two owners, unfinished
 * versions, stale nodes, holes. Every story runs from two seeds, in the long form from
 * five.
 */
import t from 'tap';
import type { Test } from 'tap';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import type { Client, FileWriter } from '../../writer/index.js';
import { makeLayout, nodeOfUnit } from '../../erasure/layout/index.js';
import { SimCluster, randomBytes, type SimNode } from './cluster.js';

const SEEDS = process.env['TARTAN_LONG'] === '1' ? [1, 2, 3, 4, 5] : [1, 2];

function story(
  name: string,
  options: Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>,
  body: (t: Test, cluster: SimCluster, seed: number) => Promise<void>,
): void {
  void t.test(name, async (t) => {
    for (const seed of SEEDS) {
      const cluster = new SimCluster({ seed, ...options });
      await cluster.world.complete(
        (async () => {
          await cluster.start();
          await body(t, cluster, seed);
        })(),
        3_600_000,
      );
    }
  });
}

const end = (writer: FileWriter): Promise<void> =>
  new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });

async function readAll(client: Client, name: string): Promise<Buffer> {
  const reader = await client.open(name);
  const bytes = await reader.read(0, reader.length);
  await reader.close();
  return bytes;
}

story(
  'a flushed short tail reads back, and is written again as a newer version when the file grows',
  {},
  async (t, cluster, seed) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 30_000);
    const writer = await client.create('a', { unitBytes: 2048 });
    for (const [from, to] of [
      [0, 1],
      [1, 700],
      [700, 2048],
      [2048, 4096],
      [4096, 9000],
      [9000, 30_000],
    ] as const) {
      writer.write(data.subarray(from, to));
      await writer.flush();
      t.equal(writer.progress.acknowledgedBytes, to, `seed ${seed}`);
      t.ok((await readAll(client, 'a')).equals(data.subarray(0, to)), `seed ${seed}: ${to} bytes`);
    }
    await end(writer);
    t.ok((await readAll(client, 'a')).equals(data));
  },
);

story(
  'one byte in rs(8,3) with 1 MiB units costs bytes on the nodes, not megabytes',
  { nodes: 11, diskBytes: 16 << 20, ringMemoryBytes: 64 << 20 },
  async (t, cluster) => {
    const client = await cluster.client('w1');
    const writer = await client.create('a', { code: 'rs(8,3)', unitBytes: 1 << 20 });
    writer.write(Buffer.of(42));
    await end(writer);
    t.same([...(await readAll(client, 'a'))], [42]);
    const stored = cluster.nodes.reduce((sum, { node }) => sum + node!.storeStats().liveBytes, 0);
    t.ok(stored <= 11 * 4096, `${stored} bytes of payload blocks`);
  },
);

story(
  'after the writer dies a new owner finds every acknowledged byte, decides the rest, and goes on',
  {},
  async (t, cluster, seed) => {
    const data = randomBytes(cluster.world, 'data', 120_000);
    const first = await cluster.client('w1', { ringMemoryBytes: 512 << 10 });
    const writer = await first.create('a', { unitBytes: 1024 });
    writer.on('error', () => {});
    writer.write(data);
    while (writer.progress.acknowledgedBytes < 20_000 + seed * 3000) await sleep(cluster.clock('test'), 0.02);
    const acknowledged = writer.progress.acknowledgedBytes;
    cluster.world.killHost('w1');
    const second = await cluster.client('w2');
    const appended = await second.append('a');
    const kept = appended.progress.acknowledgedBytes;
    t.ok(kept >= acknowledged, `seed ${seed}: ${kept} of ${acknowledged} acknowledged bytes are there`);
    t.ok((await readAll(second, 'a')).equals(data.subarray(0, kept)), `seed ${seed}: and are the bytes written`);
    const more = randomBytes(cluster.world, 'more', 10_000);
    appended.write(more);
    await end(appended);
    t.ok((await readAll(second, 'a')).equals(Buffer.concat([data.subarray(0, kept), more])), `seed ${seed}`);
  },
);

story(
  'of two owners, with a node down, the older never has a write acknowledged again',
  { nodes: 4 },
  async (t, cluster, seed) => {
    const data = randomBytes(cluster.world, 'data', 20_000);
    const first = await cluster.client('w1');
    const old = await first.create('a', { unitBytes: 1024 });
    old.write(data);
    await old.flush();
    cluster.world.killHost('n3');
    const second = await cluster.client('w2');
    const young = await second.append('a');
    const before = old.progress.acknowledgedBytes;
    const failure = new Promise<unknown>((resolve) => {
      old.once('error', resolve);
    });
    old.write(randomBytes(cluster.world, 'late', 20_000));
    old.flush().catch(() => {});
    t.equal(codeOf(await failure), 'ERR_FENCED', `seed ${seed}`);
    t.equal(old.progress.acknowledgedBytes, before, `seed ${seed}`);
    const more = randomBytes(cluster.world, 'more', 5000);
    young.write(more);
    await end(young);
    t.ok((await readAll(second, 'a')).equals(Buffer.concat([data, more])), `seed ${seed}`);
  },
);

story('a switch that was stopped wakes up: its late copies change nothing', {}, async (t, cluster, seed) => {
  const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
  const data = randomBytes(cluster.world, 'data', 200_000);
  const writer = await client.create('a', { unitBytes: 1024 });
  const done = new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end(data);
  });
  while (writer.progress.acknowledgedBytes < 30_000) await sleep(cluster.clock('test'), 0.02);
  cluster.world.pauseHost('s1');
  await sleep(cluster.clock('test'), 150);
  cluster.world.resumeHost('s1');
  await done;
  await sleep(cluster.clock('test'), 500);
  t.ok(writer.progress.modeChanges >= 1, `seed ${seed}`);
  t.ok((await readAll(client, 'a')).equals(data), `seed ${seed}`);
  for (const { node } of cluster.nodes) t.equal(node!.counters.protocolErrors, 0);
});

story(
  'a switch killed and restarted ten times in one write: nothing lost, and the writer is back on it at the end',
  {},
  async (t, cluster, seed) => {
    const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
    const writer = await client.create('a', { unitBytes: 1024 });
    const random = cluster.world.fork('kills');
    const parts: Buffer[] = [];
    for (let round = 0; round < 10; round++) {
      const part = randomBytes(cluster.world, `part ${round}`, 30_000);
      parts.push(part);
      writer.write(part);
      await sleep(cluster.clock('test'), random.random() * 3);
      cluster.world.killHost('s1');
      writer.write(part);
      parts.push(part);
      await writer.flush();
      t.equal(writer.parityMode, 'host', `seed ${seed}`);
      await cluster.startSwitch();
      for (let i = 0; i < 4000 && writer.parityMode === 'host'; i++) await sleep(cluster.clock('test'), 1);
      t.equal(writer.parityMode, 'switch', `seed ${seed}, round ${round}`);
    }
    await end(writer);
    t.equal(writer.progress.modeChanges, 21, 'once at the start, twice a round');
    t.ok((await readAll(client, 'a')).equals(Buffer.concat(parts)), `seed ${seed}`);
  },
);

story(
  'a node lost during a write: the missing units are recorded, and still known after everything restarts',
  { nodes: 3 },
  async (t, cluster, seed) => {
    const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
    const data = randomBytes(cluster.world, 'data', 400_000);
    const writer = await client.create('a', { unitBytes: 1024 });
    const done = new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('finish', resolve);
      writer.end(data);
    });
    while (writer.progress.acknowledgedBytes < 20_000) await sleep(cluster.clock('test'), 0.02);
    cluster.world.killHost('n2');
    await done;
    t.ok((await readAll(client, 'a')).equals(data), `seed ${seed}`);
    await client.close();
    for (const host of ['n1', 'n3', 's1']) cluster.world.killHost(host);
    await sleep(cluster.clock('test'), 1000);
    for (const entry of cluster.nodes.filter(({ id }) => id !== 'n2')) {
      entry.disk = entry.disk.crash();
      await cluster.startNode(entry);
    }
    await cluster.startSwitch();
    const again = await cluster.client('w3');
    t.ok((await readAll(again, 'a')).equals(data), `seed ${seed}: after the restart`);
    // Every stripe that n2 lacks is known to lack it, on both of the others.
    const held = new Map<number, { units: Set<number>; missing: number[] }>();
    for (const id of ['n1', 'n3']) {
      for (const unit of await cluster.inventory(id, 1)) {
        const stripe = held.get(unit.stripe) ?? { units: new Set(), missing: [] };
        stripe.units.add(unit.unit);
        stripe.missing.push(unit.missing);
        held.set(unit.stripe, stripe);
      }
    }
    t.equal(held.size, Math.ceil(data.length / 2048));
    const recorded = [...held.values()].filter(({ missing }) => missing.every((mask) => mask !== 0)).length;
    const partly = [...held.values()].filter(
      ({ missing }) => missing.some((mask) => mask !== 0) && missing.some((mask) => mask === 0),
    ).length;
    t.ok(recorded > 10, `seed ${seed}: ${recorded} stripes know what they miss`);
    t.equal(partly, 0, `seed ${seed}: both holders of a stripe know it`);
  },
);

story(
  'a node that was down while stripes were rewritten does not speak for them when it returns',
  { nodes: 3 },
  async (t, cluster, seed) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 1500);
    const writer = await client.create('a', { code: 'copies(1,2)', unitBytes: 2048 });
    writer.write(data.subarray(0, 500));
    await writer.flush();
    cluster.world.killHost('n1');
    writer.write(data.subarray(500));
    await writer.flush();
    await cluster.startNode(cluster.nodes[0]!);
    await end(writer);
    for (let i = 0; i < 5; i++) t.ok((await readAll(client, 'a')).equals(data), `seed ${seed}`);
  },
);

story(
  'what was rolled back never comes again, though only nodes that missed it are left',
  { nodes: 5, withSwitch: false },
  async (t, cluster, seed) => {
    // rs(2,2), stripe 0 on A B C D (units 0 to 3). Version 1.1 reaches A and B only; owner 2 rolls it back while they
    // are down, and writes 2.1, owner 3 the same as 3.1, both on C and D alone. Then A and B are all that is left:
    // units enough for 1.1.
    const layout = makeLayout({ nodes: 5, k: 2, m: 2, unitBytes: 512 });
    const first = await cluster.client('w1');
    const writer = await first.create('a', { code: 'rs(2,2)', unitBytes: 512 });
    writer.on('error', () => {});
    const order = (await first.stat('a')).nodes;
    const [A, B, C, D] = [0, 1, 2, 3].map(
      (unit) => cluster.nodes.find(({ id }) => id === order[nodeOfUnit(layout, 0, unit)])!,
    ) as [SimNode, SimNode, SimNode, SimNode];
    const restart = async (entry: SimNode): Promise<void> => {
      entry.disk = entry.disk.restart();
      await cluster.startNode(entry);
    };
    const rolledBack = randomBytes(cluster.world, 'rolled back', 1024),
      data = randomBytes(cluster.world, 'data', 10);
    for (const { host } of [C, D]) cluster.world.partition('w1', host);
    writer.write(rolledBack);
    while ((await cluster.inventory(A.id, 1)).length + (await cluster.inventory(B.id, 1)).length < 2)
      await sleep(cluster.clock('test'), 1);
    for (const { host } of [A, B]) cluster.world.killHost(host);
    await first.close();

    const second = await cluster.client('w2');
    const owner = await second.append('a');
    t.equal(owner.progress.acknowledgedBytes, 0, `seed ${seed}: C and D prove that 1.1 was never finished`);
    owner.write(data);
    await owner.flush();
    await second.close();
    const third = await cluster.client('w3');
    t.equal((await third.append('a')).progress.acknowledgedBytes, 10, `seed ${seed}`);
    await third.close();
    await restart(A);
    await restart(B);
    for (const { host } of [C, D]) cluster.world.killHost(host);

    const reader = await (await cluster.client('r1')).open('a');
    t.equal(reader.length, 10);
    await t.rejects(
      reader.read(0, 10),
      { code: 'ERR_TOO_MANY_LOST' },
      `seed ${seed}: a reader does not take 1.1 for the file's bytes`,
    );
    const fourth = await cluster.client('w4');
    await t.rejects(fourth.append('a'), { code: 'ERR_UNDECIDED' }, `seed ${seed}: nor does a new owner`);
    await fourth.close();
    await restart(C);
    await restart(D);
    t.ok((await reader.read(0, 10)).equals(data), `seed ${seed}`);
    const last = await (await cluster.client('w5')).append('a');
    t.equal(last.progress.acknowledgedBytes, 10, `seed ${seed}`);
    await end(last);
    t.ok((await readAll(await cluster.client('r2'), 'a')).equals(data), `seed ${seed}`);
  },
);

story('a reader never sees an unfinished version', { nodes: 3 }, async (t, cluster, seed) => {
  const client = await cluster.client('w1');
  const data = randomBytes(cluster.world, 'data', 4000);
  const writer = await client.create('a', { unitBytes: 4096 });
  writer.on('error', () => {});
  writer.write(data.subarray(0, 1000));
  await writer.flush();
  const reader = await (await cluster.client('r1')).open('a');
  // The newer version reaches some nodes only: the writer is cut off from one, then dies.
  cluster.world.partition('s1', 'n3');
  cluster.world.partition('w1', 'n3');
  writer.write(data.subarray(1000));
  writer.flush().catch(() => {});
  await sleep(cluster.clock('test'), 2);
  cluster.world.killHost('w1');
  t.equal(reader.length, 1000);
  t.ok((await reader.read(0, 4000)).equals(data.subarray(0, 1000)), `seed ${seed}: the old version is whole`);
  t.equal(await reader.refresh(), 1000);
  cluster.world.heal('s1', 'n3');
  const owner = await (await cluster.client('w2')).append('a');
  await end(owner);
  const length = await reader.refresh();
  t.ok(length === 1000 || length === 4000, `seed ${seed}: ${length}`);
  t.ok((await reader.read(0, length)).equals(data.subarray(0, length)), `seed ${seed}`);
});

story('a reader that lost its nodes finds them again when they are back', {}, async (t, cluster, seed) => {
  const client = await cluster.client('w1');
  const data = randomBytes(cluster.world, 'data', 20_000);
  const writer = await client.create('a', { unitBytes: 1024 });
  writer.write(data);
  await end(writer);
  const reader = await (await cluster.client('r1')).open('a');
  t.ok((await reader.read(0, 5000)).equals(data.subarray(0, 5000)), `seed ${seed}`);
  for (const { host } of cluster.nodes) cluster.world.killHost(host);
  await t.rejects(reader.read(0, 5000), { code: 'ERR_TOO_MANY_LOST' });
  for (const entry of cluster.nodes) await cluster.startNode(entry);
  t.ok((await reader.read(0, 20_000)).equals(data), `seed ${seed}: after all nodes were restarted`);
});

story(
  'a write waits for nodes when too many are down, and goes on when they are back',
  {},
  async (t, cluster, seed) => {
    const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
    const data = randomBytes(cluster.world, 'data', 60_000);
    const writer = await client.create('a', { unitBytes: 1024 });
    let waited = 0;
    writer.on('waiting', () => waited++);
    const done = new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('finish', resolve);
      writer.end(data);
    });
    while (writer.progress.acknowledgedBytes < 10_000) await sleep(cluster.clock('test'), 0.02);
    for (const host of ['n1', 'n2']) cluster.world.killHost(host);
    await sleep(cluster.clock('test'), 3000);
    t.ok(writer.progress.acknowledgedBytes < data.length && waited > 0, `seed ${seed}`);
    for (const entry of cluster.nodes.slice(0, 2)) {
      entry.disk = entry.disk.crash();
      await cluster.startNode(entry);
    }
    await done;
    t.ok((await readAll(client, 'a')).equals(data), `seed ${seed}`);
  },
);

story('a write fails with a code when too many nodes stay down', {}, async (t, cluster, seed) => {
  const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
  const writer = await client.create('a', { unitBytes: 1024 });
  const failure = new Promise<unknown>((resolve) => {
    writer.once('error', resolve);
  });
  for (const host of ['n1', 'n2']) cluster.world.killHost(host);
  writer.write(randomBytes(cluster.world, 'data', 60_000));
  t.equal(codeOf(await failure), 'ERR_TOO_MANY_LOST', `seed ${seed}`);
  t.equal(writer.progress.acknowledgedBytes, 0);
});

story('many writers write many files at once', { nodes: 5 }, async (t, cluster) => {
  const files = await Promise.all(
    Array.from({ length: 6 }, async (_, i) => {
      const client = await cluster.client(`w${i}`, { ringMemoryBytes: 1 << 20 });
      const data = randomBytes(cluster.world, `data ${i}`, 10_000 * i);
      const writer = await client.create(`dir/file ${i}`, {
        code: i % 2 === 0 ? 'rs(3,2)' : 'xor(2+1)',
        unitBytes: 512 << (i % 3),
      });
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.once('finish', resolve);
        writer.end(data);
      });
      return { client, data, name: `dir/file ${i}` };
    }),
  );
  for (const { client, data, name } of files) t.ok((await readAll(client, name)).equals(data), name);
  t.equal((await files[0]!.client.list()).length, 6);
  await files[0]!.client.remove('dir/file 3');
  t.equal((await files[1]!.client.list()).length, 5);
});
