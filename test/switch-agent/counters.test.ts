/** The switch's counts, asked for at every moment of a session's life and end: they never step back. */
import t from 'tap';
import { sleep } from '../../wire/clock.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

void t.test("a session that ends takes none of its stripes out of the switch's counts", async (t) => {
  const cluster = new SimCluster({ seed: 3 });
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      const client = await cluster.client('w1'),
        clock = cluster.clock('test');
      const data = randomBytes(cluster.world, 'data', 100_000);
      let over = false;
      const seen: number[] = [];
      const watching = (async () => {
        while (!over) {
          seen.push(cluster.switchCore!.counters().stripes);
          await sleep(clock, 0.05);
        }
      })();
      for (const name of ['a', 'b']) {
        const writer = await client.create(name, { unitBytes: 1024 });
        writer.write(data);
        await new Promise<void>((resolve, reject) => {
          writer.once('error', reject);
          writer.once('close', resolve);
          writer.end();
        });
      }
      await sleep(clock, 500);
      over = true;
      await watching;
      t.equal(seen.at(-1), 2 * 49);
      t.same(
        seen.filter((count, i) => i > 0 && count < seen[i - 1]!),
        [],
        `${seen.length} looks`,
      );
      t.equal(cluster.switchCore!.counters().sessions, 0);
      await client.close();
    })(),
    3_600_000,
  );
});
