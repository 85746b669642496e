/** A sender's link to one node: every unit that was sent is answered, whatever the answer looks like. */
import t from 'tap';
import type { MessageChannel } from '../../pipeline/channel.js';
import { MessageType } from '../../wire/ring-messages.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = 3;

t.test('an acknowledgement whose version was damaged is the answer to its slot: the unit is sent again', async (t) => {
  const cluster = new SimCluster({ seed: SEED, withSwitch: false });
  t.comment(`seed ${SEED}`);
  let damaged = 0;
  const run = (async () => {
    await cluster.start();
    const client = await cluster.client('w1', { parity: 'host' });
    const data = randomBytes(cluster.world, 'data', 20_000);
    const writer = await client.create('a', { unitBytes: 1024 });
    for (const index of [0, 1, 2]) {
      const { channel } = writer.internals.nodes.linkTo(index) as unknown as { channel: MessageChannel };
      const real = channel.onRecords;
      let isFirst = true;
      channel.onRecords = (type, words, w, count, mapEpoch) => {
        if (type === MessageType.ACK && isFirst) {
          isFirst = false;
          damaged++;
          words[w + 1 + (index % 2)]! ^= 4;
        }
        real(type, words, w, count, mapEpoch);
      };
    }
    await new Promise<void>((resolve, reject) => writer.once('error', reject).once('finish', resolve).end(data));
    const reader = await client.open('a');
    t.ok((await reader.read(0, reader.length)).equals(data));
    t.ok(writer.progress.stripesRedriven > 0);
    await client.close();
  })();
  await cluster.world.complete(run, 60_000);
  t.equal(damaged, 3);
});
