/** flush(), reserve() and commit() in every order, and without the cluster store. */
import t from 'tap';
import { readFile } from '../../cluster/files.js';
import type { MemoryClient } from '../../cluster/memory-store.js';
import { sleep } from '../../wire/clock.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = 6;

t.test('a reservation that is committed after a flush has begun sends its stripe once, whole', async (t) => {
  t.comment(`seed ${SEED}`);
  const cluster = new SimCluster({ seed: SEED, withSwitch: false });
  const run = (async () => {
    await cluster.start();
    const client = await cluster.client('w1', { parity: 'host' });
    const data = randomBytes(cluster.world, 'data', 6000);
    const writer = await client.create('a', { unitBytes: 512 });
    let at = 0;
    const fill = async (bytes: number): Promise<void> => {
      const { view, commit } = writer.reserve(bytes);
      view.set(data.subarray(at, at + view.length));
      at += view.length;
      flushes.push(writer.flush());
      // The stripe's beginning is on its way, and not there yet.
      while (writer.internals.window.unacknowledged === 0) await Promise.resolve();
      commit(view.length);
    };
    const flushes: Promise<boolean>[] = [];
    while (at < data.length) {
      const { view, commit } = writer.reserve(Math.min(100, data.length - at));
      view.set(data.subarray(at, at + view.length));
      at += view.length;
      commit(view.length);
      if (at < data.length) await fill(Math.min(1024, data.length - at));
      await Promise.all(flushes);
      t.ok(writer.progress.acknowledgedBytes <= at);
      await writer.flush();
      t.equal(writer.progress.acknowledgedBytes, at);
    }
    await new Promise<void>((resolve, reject) => writer.once('error', reject).once('finish', resolve).end());
    const reader = await client.open('a');
    t.ok((await reader.read(0, reader.length)).equals(data));
    await client.close();
  })();
  await cluster.world.complete(run, 60_000);
});

t.test('flush() resolves while the cluster store is away; readers see the bytes when it is back', async (t) => {
  t.comment(`seed ${SEED}`);
  const cluster = new SimCluster({ seed: SEED, withSwitch: false });
  const run = (async () => {
    await cluster.start();
    const store: MemoryClient = cluster.memory.client();
    const client = await cluster.client('w1', { cluster: store, parity: 'host' });
    const writer = await client.create('a', { unitBytes: 512 });
    t.equal(await writer.flush(), true, 'published');
    store.cutOff();
    const waited: string[] = [];
    writer.on('waiting', (reason: string) => waited.push(reason));
    writer.write(Buffer.alloc(3000, 1));
    t.equal(await writer.flush(), false, 'durable, and not published');
    t.equal(writer.progress.acknowledgedBytes, 3000);
    t.equal(waited.length, 1);
    store.heal();
    const seen = async (): Promise<number> => (await readFile(cluster.memory.client(), writer.fileId)).length;
    for (let tries = 0; tries < 100 && (await seen()) < 3000; tries++) await sleep(cluster.clock('test'), 100);
    t.equal(await seen(), 3000, 'published without another write');
    await client.close();
  })();
  await cluster.world.complete(run, 60_000);
});
