/** The writer library on the simulated cluster: what applications meet, good and bad. */
import t from 'tap';
import { once } from 'node:events';
import { nodeOfUnit } from '../../erasure/layout/index.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import { SimCluster, randomBytes, inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

type Options = Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>;

const withCluster = (options: Options, body: Body): Promise<void> => inCluster({ seed: 7, ...options }, body);

void t.test(
  'reserve() hands out ring memory; what is committed is appended without a copy by the caller',
  async (t) => {
    await withCluster({}, async (cluster) => {
      const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
      const writer = await client.create('a', { unitBytes: 1024 });
      const data = randomBytes(cluster.world, 'data', 100_000);
      let at = 0,
        waits = 0;
      while (at < data.length) {
        const { view, commit } = writer.reserve(data.length - at);
        if (view.length === 0) {
          waits++;
          await once(writer, 'drain');
          continue;
        }
        view.set(data.subarray(at, at + view.length));
        commit(view.length);
        at += view.length;
      }
      t.ok(waits > 0, 'the ring was full at times');
      t.throws(
        () => {
          writer.reserve(10).commit(11);
        },
        { code: 'ERR_ARGUMENT' },
      );
      await end(writer);
      const reader = await client.open('a');
      t.ok((await reader.read(0, data.length)).equals(data));
    });
  },
);

void t.test(
  'a disk that is full in the middle of a write fails it with ERR_DISK_FULL; what was acknowledged, and other ' +
    'files, read back',
  async (t) => {
    await withCluster({ diskBytes: 1 << 20 }, async (cluster) => {
      const client = await cluster.client('w1', { ringMemoryBytes: 512 << 10 });
      const small = randomBytes(cluster.world, 'small', 20_000);
      const before = await client.create('before', { unitBytes: 4096 });
      before.write(small);
      await end(before);
      const data = randomBytes(cluster.world, 'data', 4_000_000);
      const writer = await client.create('big', { unitBytes: 4096 });
      const failure = once(writer, 'error');
      writer.write(data);
      const [error] = (await failure) as [Error];
      t.equal(codeOf(error), 'ERR_DISK_FULL');
      t.match(error.message, /^Cannot write stripe \d+: the store of node n\d is full$/);
      const acknowledged = writer.progress.acknowledgedBytes;
      t.ok(acknowledged > 100_000, `${acknowledged} bytes were acknowledged before`);
      await sleep(cluster.clock('test'), 1000);
      const reader = await client.open('before');
      t.ok((await reader.read(0, small.length)).equals(small));
      // Only a new owner can publish what the failed one had not; its tail must fit the disk, so it reads what is
      // published.
      const big = await client.open('big');
      t.ok((await big.read(0, big.length)).equals(data.subarray(0, big.length)));
      await client.close();
    });
  },
);

void t.test('a unit damaged on a disk is never returned: the stripe is decoded, and the damage reported', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 8192);
    const writer = await client.create('a', { unitBytes: 4096 });
    writer.write(data);
    await end(writer);
    // The first data unit's payload lies page-aligned on its node's disk: flip a bit wherever it is.
    const holder = cluster.nodes[nodeOfUnit({ nodes: 3, k: 2, m: 1, unitBytes: 4096 }, 0, 0)]!;
    let damaged = 0;
    for (let block = 0; block < 64; block++) {
      const bytes = Buffer.alloc(4096);
      await holder.disk.read(bytes, block * 4096);
      if (!bytes.equals(data.subarray(0, 4096))) continue;
      holder.disk.corrupt(block * 4096 + 1000, (at) => {
        at[0]! ^= 1;
      });
      damaged++;
    }
    t.equal(damaged, 1);
    const reader = await client.open('a');
    t.ok((await reader.read(0, data.length)).equals(data));
    t.equal(reader.progress.degradedStripes, 1);
    t.equal(holder.node!.counters.checksumFailures, 1);
    t.ok(
      cluster.log.some((line) => line.startsWith(`${holder.id}:`) && /stripe 0/.test(line)),
      'the node says so',
    );
  });
});

void t.test(
  'a late copy with other bytes under the same names: the writer takes the next version, and its bytes are ' +
    'what is read',
  async (t) => {
    for (const parity of ['auto', 'host'] as const) {
      await withCluster({}, async (cluster) => {
        const client = await cluster.client('w1', { parity });
        const writer = await client.create('a', { unitBytes: 1024 });
        // Another process that believes to be the same owner: same file, same writer epoch, same counters, other bytes.
        const impostor = await (await cluster.client('w2', { parity: 'host' }))['openWriter'](await client.stat('a'));
        impostor.on('error', () => {});
        impostor.write(randomBytes(cluster.world, 'other', 3 * 2048));
        await impostor['session'].flush();
        const data = randomBytes(cluster.world, 'data', 20_000);
        writer.write(data);
        await writer.flush();
        t.equal(writer.progress.acknowledgedBytes, data.length, parity);
        t.ok(writer.progress.stripesRedriven > 0, `${parity}: driven again under new versions`);
        await end(writer);
        const reader = await client.open('a');
        t.ok((await reader.read(0, data.length)).equals(data), parity);
        t.equal(reader.progress.degradedStripes, 0);
      });
    }
  },
);

void t.test('bad wishes are one-line errors with a code, and leave no name behind', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1', { ringMemoryBytes: 2 << 20 });
    for (const [options, code] of [
      [{ code: 'rot(13)' }, 'ERR_UNKNOWN_CODE'],
      [{ code: 'rs(40,2)' }, 'ERR_CODE_OUT_OF_BOUNDS'],
      [{ code: 'rs(4,2)' }, 'ERR_NOT_ENOUGH_NODES'],
      [{ unitBytes: 3000 }, 'ERR_UNIT_BYTES'],
      [{ unitBytes: 256 }, 'ERR_UNIT_BYTES'],
      [{ unitBytes: 4 << 20 }, 'ERR_RING_MEMORY'],
    ] as const) {
      const error = await client.create('x', options).then(
        () => undefined,
        (reason: unknown) => reason,
      );
      t.equal(codeOf(error), code);
      t.notMatch((error as Error).message, /\n/);
    }
    t.same(await client.list(), []);
    await end(await client.create('x'));
    t.equal(codeOf(await client.create('x').catch((reason: unknown) => reason)), 'ERR_EXISTS');
    t.equal(codeOf(await client.open('y').catch((reason: unknown) => reason)), 'ERR_NOT_FOUND');
    t.equal(codeOf(await client.append('y').catch((reason: unknown) => reason)), 'ERR_NOT_FOUND');
    t.equal(codeOf(await client.remove('y').catch((reason: unknown) => reason)), 'ERR_NOT_FOUND');
    const reader = await client.open('x');
    t.equal((await reader.read(0, 10)).length, 0, 'an empty file reads as nothing');
    t.equal(codeOf(await reader.read(-1, 10).catch((reason: unknown) => reason)), 'ERR_ARGUMENT');
  });
});

void t.test(
  'while the cluster store is away, open files are written and read; what needs a new map waits and says so',
  async (t) => {
    await withCluster({}, async (cluster) => {
      const store = cluster.memory.client();
      const client = await cluster.client('w1', { cluster: store });
      const data = randomBytes(cluster.world, 'data', 60_000);
      const writer = await client.create('a', { unitBytes: 1024 });
      const waiting: string[] = [];
      writer.on('waiting', (reason: string) => waiting.push(reason));
      store.cutOff();
      writer.write(data.subarray(0, 30_000));
      for (let i = 0; i < 1000 && writer.progress.acknowledgedBytes < 28_000; i++)
        await sleep(cluster.clock('test'), 1);
      t.ok(writer.progress.acknowledgedBytes >= 28_000, 'goes on');
      cluster.world.killHost('n2');
      writer.write(data.subarray(30_000));
      await sleep(cluster.clock('test'), 2000);
      t.ok(writer.progress.acknowledgedBytes < data.length, 'a degraded write needs a new map');
      t.ok(waiting.length > 0);
      store.heal();
      await end(writer);
      const reader = await client.open('a');
      t.ok((await reader.read(0, data.length)).equals(data));
    });
  },
);
