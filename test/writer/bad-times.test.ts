/**
 * Disks that fail in parts, turn up in the wrong node or are replaced twice, on the simulated cluster: nothing wrong is
 * read, what can be is restored.
 */
import t, { type Test } from 'tap';
import { beginMoves, finishMoves, storesOf } from '../../cluster/moves.js';
import { readMap } from '../../cluster/membership.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { sleep } from '../../wire/clock.js';
import { TartanError, codeOf } from '../../wire/errors.js';
import type { Client } from '../../writer/index.js';
import { layoutAfter } from '../../writer/mover.js';
import { rebuildFile } from '../../writer/rebuild.js';
import {
  SimCluster,
  randomBytes,
  type SimNode,
  inCluster,
  type ClusterBody as Body,
  end,
} from '../simulation/cluster.js';

const DISK_BYTES = 16 << 20;

const withCluster = (nodes: number, body: Body): Promise<void> =>
  inCluster({ seed: 51, diskBytes: DISK_BYTES, nodes }, body);

const stop = async (entry: SimNode): Promise<void> => {
  await entry.node!.stop();
};

async function start(cluster: SimCluster, entry: SimNode, disk: MemoryDisk): Promise<void> {
  entry.disk = disk;
  await cluster.startNode(entry);
  await sleep(cluster.clock('test'), 500);
}

/** Writes `data` in units of 4096 bytes, each of which then fills a block of some disk. */
async function store(client: Client, name: string, data: Buffer): Promise<void> {
  const writer = await client.create(name, { unitBytes: 4096 });
  writer.write(data);
  await end(writer);
}

async function reads(
  t: Test,
  client: Client,
  name: string,
  data: Buffer,
  degraded: (stripes: number) => boolean,
): Promise<void> {
  const reader = await client.open(name);
  t.ok((await reader.read(0, data.length)).equals(data));
  t.ok(degraded(reader.progress.degradedStripes), `${reader.progress.degradedStripes} stripes degraded`);
  await reader.close();
}

void t.test("a sector that can't be read: reads do without it, repair it, and need it no more", async (t) => {
  await withCluster(3, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 30 * 8192),
      [entry] = cluster.nodes as [SimNode];
    await store(client, 'a', data);
    let bad = -1;
    for (let block = 0; bad < 0; block++) {
      const bytes = Buffer.alloc(4096);
      await entry.disk.read(bytes, block * 4096);
      if (data.indexOf(bytes) >= 0 && data.indexOf(bytes) % 4096 === 0) bad = block * 4096;
    }
    let tried = 0;
    entry.disk.faults = {
      beforeRead: (position, length) => {
        if (position < bad + 512 && position + length > bad) {
          tried++;
          throw new TartanError('ERR_DISK', 'Cannot read: EIO');
        }
      },
    };
    await reads(t, client, 'a', data, (stripes) => stripes === 1);
    await client.repaired();
    t.match(client.repairs, { noticed: 1, unitsRestored: 1, unitsFailed: 0 });
    const before = tried;
    await reads(t, client, 'a', data, (stripes) => stripes === 0);
    t.equal(tried, before, 'the unit lies elsewhere now');
    t.match(await client.scrub('a'), { unitsChecked: 90, unitsDamaged: 0, unitsMissing: 0 });
    await client.close();
  });
});

void t.test(
  'a disk that takes no more writes: its node goes down, serves nothing wrong, and is filled when it can write again',
  async (t) => {
    await withCluster(4, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 40 * 8192),
        entry = cluster.nodes[1]!;
      const writer = await client.create('a', { unitBytes: 4096 });
      writer.write(data.subarray(0, 150_000));
      await writer.flush();
      entry.disk.faults = {
        beforeWrite: () => {
          throw new TartanError('ERR_DISK', 'Cannot write: EROFS');
        },
      };
      writer.write(data.subarray(150_000));
      await end(writer);
      t.equal((await client.map()).nodes[1]!.state, 'down', 'it said so, or was found out');
      await reads(t, client, 'a', data, (stripes) => stripes > 0);
      t.same((await client.rebuild('a')).nodesDown, ['n2']);
      await stop(entry);
      await start(
        cluster,
        entry,
        entry.disk.crash(() => true),
      );
      t.ok((await client.rebuild('a')).unitsRestored > 0);
      await stop(cluster.nodes[0]!);
      await reads(t, client, 'a', data, (stripes) => stripes > 0);
      await client.close();
    });
  },
);

void t.test("two disks in each other's nodes: neither starts, and put back they are as they were", async (t) => {
  await withCluster(3, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 10 * 8192),
      [first, second] = cluster.nodes as [SimNode, SimNode];
    await store(client, 'a', data);
    for (const entry of [first, second]) await stop(entry);
    const disks = [first.disk.crash(() => true), second.disk.crash(() => true)] as const;
    await t.rejects(start(cluster, first, disks[1].snapshot()), { code: 'ERR_FOREIGN_STORE', message: /'n2'.*'n1'/ });
    await t.rejects(start(cluster, second, disks[0].snapshot()), { code: 'ERR_FOREIGN_STORE', message: /'n1'.*'n2'/ });
    await sleep(cluster.clock('test'), 1500);
    t.same(
      (await client.map()).nodes.map(({ state }) => state),
      ['down', 'down', 'up'],
    );
    t.equal(
      codeOf(await (await client.open('a')).read(0, 9).catch((error: unknown) => error)),
      'ERR_TOO_MANY_LOST',
      'and no byte is made up',
    );
    await start(cluster, first, disks[0]);
    await start(cluster, second, disks[1]);
    await reads(t, client, 'a', data, (stripes) => stripes === 0);
    t.equal((await client.scrub('a')).unitsDamaged, 0);
    await client.close();
  });
});

void t.test(
  'a store replaced while it is being filled: the fill ends, the next one fills the newer store',
  async (t) => {
    await withCluster(3, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 60 * 8192),
        entry = cluster.nodes[2]!;
      await store(client, 'a', data);
      await stop(entry);
      await start(cluster, entry, new MemoryDisk(DISK_BYTES));
      const filling = client.rebuild('a', { bytesPerSecond: 100_000 });
      await sleep(cluster.clock('test'), 1000);
      await stop(entry);
      await start(cluster, entry, new MemoryDisk(DISK_BYTES));
      const cut = await filling;
      t.ok(cut.unitsRestored < 60 && cut.stripesLost === 0, `${cut.unitsRestored} units of 60`);
      const rest = await client.rebuild('a');
      t.same([rest.unitsMissing, rest.unitsRestored], [60, 60], 'what the older store got is gone with it');
      await stop(cluster.nodes[0]!);
      await reads(t, client, 'a', data, () => true);
      await client.close();
    });
  },
);

void t.test(
  'a share is not given to a node whose store was replaced after it was filled, nor of a file that was written since',
  async (t) => {
    await withCluster(4, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 20 * 8192),
        clusterStore = cluster.memory.client(),
        [, , , target] = cluster.nodes as [SimNode, SimNode, SimNode, SimNode];
      const writer = await client.create('a', { unitBytes: 4096 });
      writer.write(data);
      await end(writer);
      // On four nodes: one is left out by hand.
      const record = await client.stat('a'),
        index = 1;
      t.same(record.nodes, ['n1', 'n2', 'n3', 'n4'], 'every node is in use');
      cluster.nodes.push({
        id: 'n5',
        host: 'n5',
        disk: new MemoryDisk(DISK_BYTES),
        node: undefined,
        store: cluster.memory.client(),
      });
      await cluster.startNode(cluster.nodes[4]!);
      const fill = async () => {
        const share = { file: await client.stat('a'), index, to: 'n5' },
          begun = await beginMoves(clusterStore, [{ ...share, stores: storesOf(await readMap(clusterStore), share) }]);
        t.equal(
          (await rebuildFile(client['context'], begun[0]!.file, false, { move: { index, to: 'n5' } })).unitsNotMoved,
          0,
        );
        return begun;
      };
      const first = await fill();
      await stop(cluster.nodes[4]!);
      await start(cluster, cluster.nodes[4]!, new MemoryDisk(DISK_BYTES));
      t.same(await finishMoves(clusterStore, first, layoutAfter), [], 'another store');
      const second = await fill();
      const appended = await client.append('a');
      t.same(await finishMoves(clusterStore, second, layoutAfter), [], 'it has an owner');
      appended.write(data);
      await end(appended);
      t.same(await finishMoves(clusterStore, second, layoutAfter), [], 'it has changed');
      const third = await fill();
      await stop(cluster.nodes[4]!);
      t.same(await finishMoves(clusterStore, third, layoutAfter), [], 'the new node is down');
      await start(
        cluster,
        cluster.nodes[4]!,
        cluster.nodes[4]!.disk.crash(() => true),
      );
      t.equal((await finishMoves(clusterStore, await fill(), layoutAfter)).length, 1);
      t.same((await client.stat('a')).nodes, ['n1', 'n5', 'n3', 'n4']);
      await stop(target);
      await reads(t, client, 'a', Buffer.concat([data, data]), (stripes) => stripes > 0);
      await client.close();
    });
  },
);
