/**
 * Rebuild and scrub on the simulated cluster: what lacks is restored, nothing else is touched, and it may be
 * interrupted.
 */
import t from 'tap';
import { fileIdKey } from '../../cluster/keys.js';
import { nodeOfUnit } from '../../erasure/layout/index.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import { rebuildFile } from '../../writer/rebuild.js';
import { judgeStripe } from '../../writer/takeover.js';
import { SimCluster, randomBytes, inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

const DISK_BYTES = 16 << 20;

type Options = Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>;

const withCluster = (options: Options, body: Body): Promise<void> =>
  inCluster({ seed: 11, diskBytes: DISK_BYTES, ...options }, body);

/** As a process that is killed: its disk stays, unless a blank one takes its place. */
async function stop(cluster: SimCluster, index: number): Promise<void> {
  await cluster.nodes[index]!.node!.stop();
}

async function start(cluster: SimCluster, index: number, isBlank = false): Promise<void> {
  const entry = cluster.nodes[index]!;
  entry.disk = isBlank ? new MemoryDisk(DISK_BYTES) : entry.disk.crash(() => true);
  await cluster.startNode(entry);
  await sleep(cluster.clock('test'), 500);
}

for (const [code, nodes, lost] of [
  ['xor(2+1)', 3, [1]],
  ['rs(4,2)', 7, [0, 3]],
  ['copies(1,2)', 3, [0, 1]],
] as const) {
  void t.test(
    `${code} on ${nodes} nodes: what was missed while nodes were down is restored, and others may then be lost`,
    async (t) => {
      await withCluster({ nodes }, async (cluster) => {
        const client = await cluster.client('w1');
        const data = randomBytes(cluster.world, 'data', 150_001);
        const writer = await client.create('a', { code, unitBytes: 1024 });
        writer.write(data.subarray(0, 70_000));
        await writer.flush();
        for (const index of lost) await stop(cluster, index);
        writer.write(data.subarray(70_000));
        await end(writer);
        for (const index of lost) await start(cluster, index);

        const report = await client.rebuild('a');
        t.same(report.nodesDown, []);
        t.ok(report.unitsMissing > 20, `${report.unitsMissing} units were missing`);
        t.equal(report.unitsRestored, report.unitsMissing);
        t.same(
          [report.stripesLost, report.unitsFailed, report.unitsDamaged, report.stripesDone],
          [0, 0, 0, report.stripes],
        );
        const again = await client.rebuild('a');
        t.equal(again.unitsMissing, 0, 'a second rebuild finds nothing');

        // As many others as the code bears: the restored units are needed now.
        const others = cluster.nodes
          .map((_, index) => index)
          .filter((index) => !(lost as readonly number[]).includes(index))
          .slice(0, lost.length);
        for (const index of others.slice(0, nodes === 3 && code === 'copies(1,2)' ? 1 : others.length))
          await stop(cluster, index);
        const reader = await client.open('a');
        t.ok((await reader.read(0, data.length)).equals(data));
        t.equal(reader.progress.checksumFailures, 0);
        await client.close();
      });
    },
  );
}

void t.test(
  'a node that comes back with a blank disk is filled again, versions of earlier owners included; writers go on',
  async (t) => {
    await withCluster({ nodes: 3 }, async (cluster) => {
      const client = await cluster.client('w1');
      const data = randomBytes(cluster.world, 'data', 120_000);
      const first = await client.create('a', { unitBytes: 1024 });
      first.write(data.subarray(0, 50_000));
      await end(first);
      const second = await client.append('a');
      second.write(data.subarray(50_000, 80_000));
      await second.flush();
      await stop(cluster, 2);
      await start(cluster, 2, true);
      const map = await client.map();
      const since = (id: string): number => map.nodes.find((node) => node.id === id)?.storeSince ?? 0;
      t.ok(since('n3') > since('n1') && since('n1') > 0, 'the map knows that its store is a newer one');

      // The owner goes on meanwhile; what it publishes later is not this rebuild's.
      const rebuilding = client.rebuild('a');
      second.write(data.subarray(80_000));
      await end(second);
      const report = await rebuilding;
      t.ok(report.unitsRestored >= 39, `${report.unitsRestored} units`);
      t.same([report.stripesLost, report.unitsFailed], [0, 0]);
      t.equal((await client.rebuild('a')).unitsFailed, 0);
      t.equal((await client.rebuild('a')).unitsMissing, 0);
      await stop(cluster, 0);
      const reader = await client.open('a');
      t.ok((await reader.read(0, data.length)).equals(data));
      await client.close();
    });
  },
);

void t.test(
  'on many nodes files are spread: through the switch, and a lost node is rebuilt by all the others',
  async (t) => {
    await withCluster({ nodes: 14 }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 100 * 4 * 512);
      const writer = await client.create('a', { code: 'rs(4,2)', unitBytes: 512 });
      writer.write(data);
      await end(writer);
      t.equal((await client.stat('a')).layout, 'spread');
      t.ok(cluster.switchCore!.counters().stripes > 0, 'the switch places units as the writer does');
      await stop(cluster, 4);
      await start(cluster, 4, true);
      const before = cluster.nodes.map(({ node }) => node!.counters.unitsRead),
        report = await client.rebuild('a');
      const read = cluster.nodes
        .map(({ node }, index) => node!.counters.unitsRead - before[index]!)
        .filter((_, index) => index !== 4);
      t.ok(report.unitsRestored > 20 && report.unitsFailed + report.stripesLost === 0, `${report.unitsRestored} units`);
      t.ok(
        read.every((units) => units > 0),
        `units read of each survivor: ${read.join(' ')}`,
      );
      for (const index of [0, 1]) await stop(cluster, index);
      t.ok((await (await client.open('a')).read(0, data.length)).equals(data));
      await client.close();
    });
  },
);

void t.test('scrub finds damaged units by their checksums, restores them, and reads are whole again', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 24 * 8192);
    const writer = await client.create('a', { unitBytes: 4096 });
    writer.write(data);
    await end(writer);
    t.same(
      [(await client.scrub('a')).unitsChecked, (await client.scrub('a')).unitsDamaged],
      [72, 0],
      'three units of each of 24 stripes',
    );

    // Five data units, wherever they lie: a flipped bit, a lost sector.
    const random = cluster.world.fork('damage');
    const wounded = new Set<number>();
    while (wounded.size < 5) wounded.add(random.int(24));
    for (const stripe of wounded) {
      const node = cluster.nodes[nodeOfUnit({ nodes: 3, k: 2, m: 1, unitBytes: 4096 }, stripe, 1)]!;
      const payload = data.subarray(stripe * 8192 + 4096, stripe * 8192 + 8192);
      let found = false;
      for (let block = 0; block < 1024 && !found; block++) {
        const bytes = Buffer.alloc(4096);
        await node.disk.read(bytes, block * 4096);
        if (!bytes.equals(payload)) continue;
        found = true;
        if (stripe % 2 === 0)
          node.disk.corrupt(block * 4096 + 100, (at) => {
            at[0]! ^= 4;
          });
        else
          for (let i = 0; i < 512; i++)
            node.disk.corrupt(block * 4096 + 512 + i, (at) => {
              at[0] = 0;
            });
      }
      t.ok(found);
    }
    t.equal((await client.rebuild('a')).unitsDamaged, 0, 'nobody has looked yet');
    const report = await client.scrub('a');
    t.same(
      [report.unitsDamaged, report.unitsRestored, report.unitsFailed, report.stripesLost, report.parityMismatches],
      [5, 5, 0, 0, 0],
    );
    t.equal((await client.scrub('a')).unitsDamaged, 0);
    const reader = await client.open('a');
    t.ok((await reader.read(0, data.length)).equals(data));
    t.equal(reader.progress.degradedStripes, 0, 'nothing had to be decoded');
    await client.close();
  });
});

void t.test(
  "a node takes no unit from a rebuilder of a version that the file's record does not call committed",
  async (t) => {
    await withCluster({ nodes: 3 }, async (cluster) => {
      const client = await cluster.client('w1');
      const writer = await client.create('a', { unitBytes: 1024 });
      writer.write(randomBytes(cluster.world, 'data', 20 * 2048));
      await end(writer);
      await stop(cluster, 2);
      await start(cluster, 2, true);
      // The record is set back to ten stripes committed: the rebuilder believes the older copy, the node doesn't.
      const record = await client.stat('a'),
        store = cluster.memory.client();
      const put = (value: typeof record) =>
        store.transact([], [{ put: fileIdKey(record.id), value: JSON.stringify(value) }]);
      await put({ ...record, commitCounter: 10 });
      const eager = await rebuildFile(client['context'], record, false);
      t.same([eager.unitsMissing, eager.unitsRestored, eager.unitsFailed], [20, 10, 10]);
      await put(record);
      t.equal((await client.rebuild('a')).unitsRestored, 10);
      await client.close();
    });
  },
);

void t.test('what cannot be restored is counted, and nothing is made up', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 40 * 2048);
    const writer = await client.create('a', { unitBytes: 1024 });
    writer.write(data);
    await end(writer);
    for (const index of [1, 2]) {
      await stop(cluster, index);
      await start(cluster, index, true);
    }
    const report = await client.rebuild('a');
    t.same([report.stripesLost, report.unitsRestored], [40, 0]);
    await t.rejects((await client.open('a')).read(0, 10), { code: 'ERR_TOO_MANY_LOST' });
    await sleep(cluster.clock('test'), 2000);
    t.equal(codeOf(await client.rebuild('none').catch((error: unknown) => error)), 'ERR_NOT_FOUND');
    await client.close();
  });
});

void t.test('a rate bounds a rebuild, and it may be ended early', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 1_300_000);
    const writer = await client.create('a', { unitBytes: 1024 });
    writer.write(data);
    await end(writer);
    await stop(cluster, 0);
    await start(cluster, 0, true);
    const began = cluster.world.now();
    const stopper = new AbortController();
    const partly = await client.rebuild('a', {
      bytesPerSecond: 100_000,
      signal: stopper.signal,
      onProgress: () => {
        stopper.abort();
      },
    });
    t.ok(
      partly.stripesDone > 0 && partly.stripesDone < partly.stripes,
      `${partly.stripesDone} of ${partly.stripes} stripes`,
    );
    const seconds = (cluster.world.now() - began) / 1000;
    t.ok(
      seconds >= (partly.bytesRestored / 100_000) * 0.8,
      `${partly.bytesRestored} bytes in ${seconds} s of virtual time`,
    );
    const rest = await client.rebuild('a');
    t.equal(rest.unitsMissing + partly.unitsRestored, rest.stripes, 'it goes on where it was: one unit of each stripe');
    await client.close();
  });
});

void t.test('a node with a new disk proves no hole in what is older than its store', (t) => {
  const version = {
    epoch: 1,
    counter: 5,
    dataLength: 100,
    mapEpoch: 4,
    units: new Set([0]),
    missing: new Set<number>(),
  };
  const fenced = [true, true, false],
    no = (): boolean => false;
  t.equal(judgeStripe(2, [version], fenced, no).kind, 'hole', 'a node that had its disk all the time does');
  t.equal(
    judgeStripe(2, [version], fenced, no, fenced, 200, [2, 4, 2], 3).kind,
    'hole',
    'its store came with this map or before',
  );
  t.equal(
    judgeStripe(2, [version], fenced, no, fenced, 200, [2, 5, 2], 3).kind,
    'undecided',
    'its store is newer: it may have held the unit',
  );
  t.equal(
    judgeStripe(2, [], fenced, no, [false, false, false], 200, [2, 2, 2], 3).kind,
    'hole',
    'one silent node can hide nothing',
  );
  t.equal(
    judgeStripe(2, [], fenced, no, [false, false, false], 200, [2, 5, 2], 3).kind,
    'hidden',
    'with a new disk there are two',
  );
  t.end();
});
