/** Writer, switch and nodes in one process in virtual time; every test prints nothing but is replayed by its seed. */
import t from 'tap';
import { SimCluster, randomBytes } from './cluster.js';

async function withCluster(options: ConstructorParameters<typeof SimCluster>[0], body: (cluster: SimCluster) => Promise<void>): Promise<SimCluster> {
  const cluster = new SimCluster(options);
  const run = (async () => { await cluster.start(); await body(cluster); })();
  await cluster.world.complete(run, 600_000);
  return cluster;
}

void t.test('a file written through the switch reads back equal', async (t) => {
  await withCluster({ seed: 1 }, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 100_000);
    const writer = await client.create('a', { unitBytes: 4096 });
    t.equal(writer.parityMode, 'switch');
    await new Promise<void>((resolve, reject) => { writer.once('error', reject); writer.end(data, resolve); });
    t.equal(writer.progress.acknowledgedBytes, data.length);
    t.equal(writer.progress.stripesRedriven, 0);
    t.equal(cluster.switchCore!.counters().unitsCopied, 0);
    const reader = await client.open('a');
    t.equal(reader.length, data.length);
    t.ok((await reader.read(0, data.length)).equals(data));
    t.ok((await reader.read(5000, 20_000)).equals(data.subarray(5000, 25_000)));
    t.equal(reader.progress.degradedStripes, 0);
    await client.close();
  });
});
