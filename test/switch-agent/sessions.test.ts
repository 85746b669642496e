/** Sessions of the software switch: what a Hello may leave out, and peers that are gone before they are served. */
import t from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { Hub } from '../../pipeline/hub.js';
import { connectSession } from '../../pipeline/session.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = 4;

t.test('a file on nodes whose ids fill more than a message goes through the switch', async (t) => {
  t.comment(`seed ${SEED}`);
  // As long as ids may be.
  const idOf = (i: number): string => `n${i}`.padEnd(64, '-node');
  const cluster = new SimCluster({ seed: SEED, nodes: 70, idOf, diskBytes: 2 << 20, ringMemoryBytes: 64 << 20 });
  const run = (async () => {
    await cluster.start();
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 50_000);
    const writer = await client.create('a', { unitBytes: 512 });
    t.equal(writer.parityMode, 'switch');
    await new Promise<void>((resolve, reject) => writer.once('error', reject).once('finish', resolve).end(data));
    const reader = await client.open('a');
    t.ok((await reader.read(0, reader.length)).equals(data));
    await client.close();
  })();
  await cluster.world.complete(run, 600_000);
});

t.test('a peer that is gone while the cluster store is slow leaves nothing behind', async (t) => {
  t.comment(`seed ${SEED}`);
  const cluster = new SimCluster({ seed: SEED });
  const run = (async () => {
    await cluster.start();
    const client = await cluster.client('w1', { parity: 'host' });
    const writer = await client.create('a', { unitBytes: 512 });
    const { store } = (cluster.switchCore as unknown as { options: { store: ClusterStore } }).options;
    const get = store.get.bind(store);
    store.get = async (key) => {
      await sleep(cluster.clock('s1'), 100);
      return get(key);
    };
    const device = cluster.world.openDevice('p1');
    const context = {
      device,
      hub: new Hub(device),
      clock: cluster.clock('p1'),
      secret: undefined,
      clusterId: cluster.clusterId,
    };
    const shape = { k: 2, m: 1, unitBytes: 512, slots: 4, tags: 8, code: 'xor(2+1)', fileId: writer.fileId };
    for (const role of ['decoder', 'writer']) {
      const attempt = connectSession(context, 's1', 7100, { role, name: 'p1', ...shape }, { timeoutMs: 20 });
      t.equal(await attempt.then(() => '', codeOf), 'ERR_CONNECT');
    }
    await sleep(cluster.clock('test'), 2000);
    t.match(cluster.switchCore!.counters(), { sessions: 0, decoders: 0, ringMemoryUsed: 0 });
    const connected = cluster.nodes.map(({ node }) => node!.counters.connections);
    await sleep(cluster.clock('test'), 2000);
    t.same(
      cluster.nodes.map(({ node }) => node!.counters.connections),
      connected,
    );
    await client.close();
  })();
  await cluster.world.complete(run, 600_000);
});
