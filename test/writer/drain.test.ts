/**
 * Draining on the simulated cluster: shares go to other nodes, with nothing lost, whoever reads, writes or dies
 * meanwhile.
 */
import t, { type Test } from 'tap';
import { setNodePurpose } from '../../cluster/membership.js';
import type { FileRecord } from '../../cluster/records.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { sleep } from '../../wire/clock.js';
import type { Client, DrainReport, FileWriter } from '../../writer/index.js';
import { SimCluster, randomBytes, inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

const DISK_BYTES = 16 << 20;

type Options = Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>;

const withCluster = (options: Options, body: Body): Promise<void> =>
  inCluster({ seed: 21, diskBytes: DISK_BYTES, ...options }, body);

async function store(
  client: Client,
  name: string,
  data: Buffer,
  options: { code?: string; unitBytes?: number } = {},
): Promise<FileRecord> {
  const writer = await client.create(name, { unitBytes: 1024, ...options });
  writer.write(data);
  await end(writer);
  return client.stat(name);
}

/** One node more: later files use it, earlier ones don't. */
async function addNode(cluster: SimCluster): Promise<string> {
  const id = `n${cluster.nodes.length + 1}`;
  cluster.nodes.push({
    id,
    host: id,
    disk: new MemoryDisk(DISK_BYTES),
    node: undefined,
    store: cluster.memory.client(),
  });
  await cluster.startNode(cluster.nodes.at(-1)!);
  return id;
}

const nodeOf = (cluster: SimCluster, id: string) => cluster.nodes.find((each) => each.id === id)!;
const stop = async (cluster: SimCluster, id: string): Promise<void> => {
  await nodeOf(cluster, id).node!.stop();
};

async function start(cluster: SimCluster, id: string, isBlank = false): Promise<void> {
  const entry = nodeOf(cluster, id);
  entry.disk = isBlank ? new MemoryDisk(DISK_BYTES) : entry.disk.crash(() => true);
  await cluster.startNode(entry);
  await sleep(cluster.clock('test'), 500);
}

async function reads(t: Test, client: Client, name: string, data: Buffer, what: string): Promise<void> {
  const reader = await client.open(name);
  t.ok((await reader.read(0, data.length + 1)).equals(data), what);
  t.equal(reader.progress.checksumFailures, 0);
  await reader.close();
}

/**
 * Every unit is where the record says, and none where it doesn't: the files' nodes hold so many, the others nothing.
 */
async function holds(t: Test, cluster: SimCluster, file: FileRecord, width: number, stripes: number): Promise<void> {
  let units = 0;
  for (const { id, node } of cluster.nodes) {
    if (node!.state !== 'up') continue;
    const held = await cluster.inventory(id, file.id);
    if (!file.nodes.includes(id)) t.same(held, [], `${id} holds nothing`);
    units += held.length;
  }
  t.equal(units, width * stripes, 'every unit is somewhere');
}

for (const [code, nodes, leaving] of [
  ['xor(2+1)', 3, 'n2'],
  ['rs(4,2)', 7, 'n1'],
  ['copies(1,2)', 3, 'n3'],
  ['rs(4,2)', 14, 'n5'],
] as const) {
  void t.test(
    `${code} on ${nodes} nodes: a node is drained to a new one, nothing else moves, and others may then be lost`,
    async (t) => {
      await withCluster({ nodes }, async (cluster) => {
        const client = await cluster.client('w1'),
          data = randomBytes(cluster.world, 'data', 150_001);
        const before = await store(client, 'a', data, { code });
        const added = await addNode(cluster),
          early = await client.open('a');
        const written = cluster.nodes.map(({ node }) => node!.counters.unitsAcknowledged),
          read = cluster.nodes.map(({ node }) => node!.counters.unitsRead);
        const report = await client.drain(leaving);
        t.match(report, { node: leaving, files: 1, filesMoved: 1, waiting: [], failed: [] });
        const after = await client.stat('a'),
          map = await client.map();
        t.same(
          after.nodes,
          before.nodes.map((id) => (id === leaving ? added : id)),
        );
        t.same(
          [after.moves, after.nodesSince?.[before.nodes.indexOf(leaving)], after.length],
          [undefined, map.moved, before.length],
        );
        const { k, m } = { 'xor(2+1)': { k: 2, m: 1 }, 'rs(4,2)': { k: 4, m: 2 }, 'copies(1,2)': { k: 1, m: 2 } }[code];
        await holds(t, cluster, after, k + m, Math.ceil(data.length / (k * 1024)));
        const moved = cluster.nodes
          .map(({ id, node }, index) => [id, node!.counters.unitsAcknowledged - written[index]!] as const)
          .filter(([, units]) => units > 0);
        t.same(moved, [[added, report.unitsRestored]], 'only the new node was written to');
        const given = cluster.nodes
          .map(({ id, node }, index) => [id, node!.counters.unitsRead - read[index]!] as const)
          .filter(([, units]) => units > 0);
        t.same(given, [[leaving, report.unitsRestored]], 'and only the leaving one was read');
        t.equal((await client.rebuild('a')).unitsMissing, 0);

        // Who had the file open follows; who opens it for writing uses the new node, through the switch.
        for (const id of [added, leaving]) t.equal(nodeOf(cluster, id).node!.state, 'up');
        t.ok((await early.read(0, data.length)).equals(data), 'a reader that knew the old list');
        const throughSwitch = cluster.switchCore!.counters().stripes,
          more = randomBytes(cluster.world, 'more', 30_000);
        const writer = await client.append('a');
        writer.write(more);
        await end(writer);
        t.ok(cluster.switchCore!.counters().stripes > throughSwitch, 'the switch places units as before');
        t.equal((await client.rebuild('a')).unitsMissing, 0);

        await stop(cluster, leaving);
        for (const id of after.nodes.filter((each) => each !== added).slice(0, m)) await stop(cluster, id);
        await reads(t, client, 'a', Buffer.concat([data, more]), `with ${m} others gone`);
        await client.close();
      });
    },
  );
}

void t.test(
  'a file that is spread over all nodes goes on with fewer: each survivor takes a part of the share, and ' +
    'nothing else moves',
  async (t) => {
    await withCluster({ nodes: 14 }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 400_000),
        stripes = Math.ceil(data.length / 4096);
      const before = await store(client, 'a', data, { code: 'rs(4,2)' }),
        early = await client.open('a');
      const share = (await cluster.inventory('n5', before.id)).length,
        written = cluster.nodes.map(({ node }) => node!.counters.unitsAcknowledged);
      const report = await client.drain('n5'),
        after = await client.stat('a');
      t.match(report, { filesMoved: 1, unitsRestored: share, failed: [] });
      t.same(
        after.nodes,
        before.nodes.map((id) => (id === 'n5' ? '-' : id)),
      );
      t.equal(after.layout, `spread:${before.nodes.map((id) => (id === 'n5' ? '-n5' : id)).join(' ')}`);
      const taken = cluster.nodes.map(({ node }, index) => node!.counters.unitsAcknowledged - written[index]!);
      t.equal(
        taken.reduce((a, b) => a + b, 0),
        share,
        'only what it had moved',
      );
      t.ok(taken.filter((units) => units > 0).length >= 10, `and it is spread: ${taken.join(' ')}`);
      await holds(t, cluster, after, 6, stripes);
      t.ok((await early.read(0, data.length)).equals(data), 'a reader that knew the old places');
      const degraded = early.progress.degradedStripes;
      t.ok((await early.read(0, data.length)).equals(data));
      t.equal(early.progress.degradedStripes, degraded, 'it knows the new ones by now');
      const throughSwitch = cluster.switchCore!.counters().stripes,
        writer = await client.append('a');
      writer.write(data);
      await end(writer);
      t.ok(cluster.switchCore!.counters().stripes > throughSwitch, 'the switch knows the places');

      // A second one dies, and is blank when it comes back; a third leaves.
      await stop(cluster, 'n9');
      t.match(await client.drain('n9'), { filesMoved: 1, failed: [] }, 'one that is down');
      await client.drain('n1');
      t.equal((await client.stat('a')).nodes.filter((id) => id === '-').length, 3);
      t.match(await client.rebuild('a'), { unitsMissing: 0, stripesLost: 0, nodesDown: [] });
      for (const id of ['n2', 'n3']) await stop(cluster, id);
      await reads(t, client, 'a', Buffer.concat([data, data]), 'with 2 others gone');
      await client.close();
    });
  },
);

void t.test(
  'what the leaving node lacks or holds damaged is restored on the way; one that is down is drained from the others',
  async (t) => {
    await withCluster({ nodes: 3 }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 60_000);
      await store(client, 'a', data);
      await addNode(cluster);
      await stop(cluster, 'n2');
      const down = await client.drain('n2');
      t.match(down, { filesMoved: 1, unitsRestored: 30, failed: [] });
      await start(cluster, 'n2');
      t.same((await client.stat('a')).nodes, ['n1', 'n4', 'n3']);

      // What it still holds of its old share is not taken for units of another index that it gets.
      t.ok((await cluster.inventory('n2', (await client.stat('a')).id)).length > 0, 'it has not heard of it');
      await client.drain('n3', { to: 'n2' }).then(
        () => {
          t.fail('a leaving node takes nothing');
        },
        (error: unknown) => {
          t.match(error, { code: 'ERR_ARGUMENT' });
        },
      );
      const shared = cluster.memory.client();
      await setNodePurpose(shared, 'n2', 'member');
      await client.drain('n3', { to: 'n2' });
      t.same((await client.stat('a')).nodes, ['n1', 'n4', 'n2']);
      await stop(cluster, 'n4');
      await start(cluster, 'n4', true);
      const refilled = await client.rebuild('a');
      t.same(
        [refilled.unitsMissing, refilled.unitsRestored],
        [30, 30],
        "all of the blank node's units lack, though another holds some of them",
      );
      await stop(cluster, 'n1');
      await reads(t, client, 'a', data, 'with n1 gone');
      await client.close();
    });
  },
);

void t.test('a drainer that dies leaves a drain that another finishes, and finds less to do', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      first = randomBytes(cluster.world, 'first', 1_300_000),
      second = randomBytes(cluster.world, 'second', 40_000);
    await store(client, 'a', first);
    await store(client, 'b', second);
    await addNode(cluster);
    const victim = await cluster.client('drainer');
    let seen = 0;
    void victim
      .drain('n2', {
        bytesPerSecond: 500_000,
        onProgress: ({ unitsRestored }) => {
          seen = unitsRestored;
        },
      })
      .catch(() => {});
    while (seen === 0) await sleep(cluster.clock('test'), 5);
    cluster.world.killHost('drainer');
    const half = await client.stat('a');
    t.same(
      [half.nodes, half.moves],
      [['n1', 'n2', 'n3'], [{ index: 1, to: 'n4' }]],
      'the old node has its share until the new one is full',
    );
    await reads(t, client, 'a', first, 'amid');
    t.equal((await client.rebuild('a')).unitsMissing, 0, 'a rebuild knows nothing of it');
    await addNode(cluster);
    const rest = await client.drain('n2');
    t.same(
      [(await client.stat('a')).nodes, (await client.stat('b')).nodes.includes('n2')],
      [['n1', 'n4', 'n3'], false],
      'it goes on with the same target',
    );
    t.ok(rest.unitsRestored < 635 + 20 && rest.unitsRestored > 20, `${rest.unitsRestored} units were left`);
    await stop(cluster, 'n1');
    await reads(t, client, 'a', first, 'a');
    await reads(t, client, 'b', second, 'b');
    await client.close();
  });
});

void t.test('a file that is written moves when it is closed; one whose writer died is settled and moves', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 50_000);
    const mortal = cluster.memory.client(),
      lost = await (await cluster.client('dies', { cluster: mortal })).create('lost', { unitBytes: 1024 });
    lost.write(data);
    await lost.flush();
    cluster.world.killHost('dies');
    await mortal.close();
    const open = await client.create('open', { unitBytes: 1024 });
    open.write(data.subarray(0, 20_000));
    await open.flush();
    await addNode(cluster);
    const waiting: string[][] = [];
    let report: DrainReport | undefined;
    const draining = (await cluster.client('w2'))
      .drain('n1', {
        ownerMs: 500,
        onWaiting: (names) => {
          waiting.push([...names]);
        },
      })
      .then((done) => {
        report = done;
      });
    while (waiting.length < 2) await sleep(cluster.clock('test'), 100);
    t.same(waiting, [['open'], ['open']]);
    t.match(await client.stat('lost'), { state: 'closed', nodes: ['n4', 'n2', 'n3'], length: data.length });
    open.write(data.subarray(20_000));
    await open.flush();
    t.equal(report, undefined, 'its owner was not disturbed');
    await end(open);
    await draining;
    t.match(report, { filesMoved: 2, waiting: [], failed: [] });
    for (const id of ['n1', 'n2']) await stop(cluster, id);
    for (const name of ['open', 'lost']) await reads(t, client, name, data, name);
    await client.close();
  });
});

void t.test('a file that got the name of one to be taken over keeps its writer', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 20_000),
      mortal = cluster.memory.client();
    const lost = await (await cluster.client('dies', { cluster: mortal })).create('a', { unitBytes: 1024 });
    lost.write(data);
    await lost.flush();
    cluster.world.killHost('dies');
    await mortal.close();
    await addNode(cluster);
    // Just when the drainer has asked for the owner, the file is replaced.
    const store = cluster.memory.client(),
      transact = store.transact.bind(store);
    let replacement: FileWriter | undefined;
    store.transact = async (conditions, mutations) => {
      const result = await transact(conditions, mutations);
      if (replacement === undefined && mutations.some((each) => 'value' in each && each.value.includes('"asked"'))) {
        await client.remove('a');
        replacement = await client.create('a', { unitBytes: 1024 });
      }
      return result;
    };
    const ending = new AbortController();
    await (await cluster.client('drainer', { cluster: store })).drain('n1', {
      ownerMs: 0,
      signal: ending.signal,
      onProgress: () => {
        ending.abort();
      },
    });
    t.match(await client.stat('a'), { id: replacement!.fileId, state: 'open', writerEpoch: 1 }, 'nobody fenced it');
    replacement!.write(data);
    await end(replacement!);
    await reads(t, client, 'a', data, 'its writer went on');
    await client.close();
  });
});

void t.test("a drain is refused without a node to go to, and a share that can't be had again stays", async (t) => {
  await withCluster({ nodes: 4 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 60_000);
    await store(client, 'a', data, { code: 'rs(2,2)' });
    await t.rejects(client.drain('n2'), {
      code: 'ERR_NOT_ENOUGH_NODES',
      message: /'a' uses every node that is up; add a node first/,
    });
    await t.rejects(client.drain('n9'), { code: 'ERR_NOT_FOUND' });
    const changed = (await client.map()).nodes.filter(({ leaving }) => leaving === true);
    t.same(changed, [], 'a refused drain has changed nothing');
    await addNode(cluster);
    await t.rejects(client.drain('n2', { to: 'n3' }), { code: 'ERR_NOT_ENOUGH_NODES', message: /'a' uses n3 already/ });
    // Three of four hold nothing any more: what n2 has can't be checked against anything, and is not given up.
    for (const id of ['n1', 'n3', 'n4']) {
      await stop(cluster, id);
      await start(cluster, id, true);
    }
    await t.rejects(client.drain('n2'), {
      code: 'ERR_WOULD_LOSE',
      message: new RegExp(
        "Cannot empty node n2: 'a': node n5 still lacks 30 of its units, " +
          '30 of its stripes have fewer units than they need; it keeps that share',
      ),
    });
    t.same((await client.stat('a')).nodes, ['n1', 'n2', 'n3', 'n4']);
    t.equal((await cluster.inventory('n2', (await client.stat('a')).id)).length, 30);
    // New files don't use it.
    t.notOk((await store(client, 'b', data)).nodes.includes('n2'));
    await client.close();
  });
});
