/** Host mode over packets: the writer sends units straight to the nodes, and all that holds over rings holds. */
import { randomInt } from 'node:crypto';
import t from 'tap';
import { PacketCluster, finish } from './packet-cluster.js';
import { randomBytes } from '../random-bytes.js';

const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(1, 2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);

for (const [code, nodes, unitBytes, lossPerMille, reorderPerMille] of [
  ['xor(2+1)', 3, 65536, 0, 0],
  ['xor(2+1)', 4, 4096, 10, 100],
  ['rs(4,2)', 6, 16384, 100, 200],
  ['rs(8,3)', 11, 8192, 10, 200],
  ['copies(1,2)', 3, 512, 100, 200],
] as const) {
  void t.test(
    `${code} over ${nodes} nodes, ${lossPerMille / 10} % lost, ${reorderPerMille / 10} % overtaken: written, ` +
      'appended to, read back, also with nodes gone',
    async (t) => {
      const cluster = new PacketCluster(lossPerMille === 0 ? undefined : { seed, lossPerMille, reorderPerMille });
      try {
        await cluster.start(nodes);
        const client = await cluster.client();
        const data = randomBytes(40 * unitBytes + 12345);
        const writer = await client.create('a', { code, unitBytes });
        writer.write(data.subarray(0, 100));
        await writer.flush();
        writer.write(data.subarray(100, data.length - 5000));
        await finish(writer);
        const second = await client.append('a');
        second.write(data.subarray(data.length - 5000));
        await finish(second);
        const counters = cluster.nodes.map(({ node }) => node!.packetCounters()!);
        t.ok(
          counters.every(({ unitsPlaced }) => unitsPlaced > 0),
          'every node got its units in packets',
        );
        t.equal(
          counters.reduce((sum, { malformed, mismatch }) => sum + malformed + mismatch, 0),
          0,
        );
        const whole = await client.open('a');
        t.ok((await whole.read(0, data.length)).equals(data), 'reads back');
        await whole.close();
        const m = code === 'copies(1,2)' ? 2 : code === 'rs(8,3)' ? 3 : code === 'rs(4,2)' ? 2 : 1;
        for (let i = 0; i < m; i++) await cluster.stopNode(i);
        const degraded = await client.open('a');
        t.ok((await degraded.read(0, data.length)).equals(data), `reads back with ${m} nodes gone`);
        await degraded.close();
        await client.close();
      } finally {
        await cluster.end();
      }
    },
  );
}

void t.test('a code that is too wide for packets goes over rings, beside nodes that take packets', async (t) => {
  const cluster = new PacketCluster(undefined);
  try {
    await cluster.start(11);
    const client = await cluster.client(),
      data = randomBytes(9 * 4096 * 3 + 77);
    const writer = await client.create('wide', { code: 'rs(9,2)', unitBytes: 4096 });
    writer.write(data);
    await finish(writer);
    t.ok((await (await client.open('wide')).read(0, data.length)).equals(data));
    t.ok(cluster.nodes.every(({ node }) => node!.packetCounters()!.packetsReceived === 0));
    await client.close();
  } finally {
    await cluster.end();
  }
});

void t.test('a node that goes and comes back while a file is written loses nothing', async (t) => {
  const cluster = new PacketCluster({ seed, lossPerMille: 20, reorderPerMille: 100 });
  try {
    await cluster.start(4);
    const client = await cluster.client();
    const writer = await client.create('a', { unitBytes: 8192 });
    const data = randomBytes(3 << 20);
    for (let round = 0; round < 6; round++) {
      const half = data.subarray(round * (data.length / 6), (round + 1) * (data.length / 6));
      writer.write(half.subarray(0, half.length / 2));
      if (round % 2 === 0) await cluster.stopNode(round / 2);
      else await cluster.startNode((round - 1) / 2);
      writer.write(half.subarray(half.length / 2));
      await writer.flush();
    }
    await finish(writer);
    const reader = await client.open('a');
    t.ok((await reader.read(0, data.length)).equals(data));
    await client.close();
  } finally {
    await cluster.end();
  }
});
