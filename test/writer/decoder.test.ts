/**
 * Units that lack are decoded in the switch: k go in, one comes out; without it, or when it goes away, they are decoded
 * here.
 */
import t from 'tap';
import type { Device } from 'tartan-rdma';
import { parseCode } from '../../erasure/code/index.js';
import { makeLayout, unitOfNode } from '../../erasure/layout/index.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { sleep } from '../../wire/clock.js';
import type { Client, RebuildReport } from '../../writer/index.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';
import { forge } from './damage.js';

const UNIT = 4096,
  DISK = 16 << 20;

async function withFile(
  code: string,
  nodes: number,
  stripes: number,
  body: (cluster: SimCluster, data: Buffer) => Promise<void>,
  seed = 21,
): Promise<void> {
  const cluster = new SimCluster({ seed, nodes, diskBytes: DISK });
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', stripes * parseCode(code).k * UNIT - 1000);
      const writer = await client.create('a', { code, unitBytes: UNIT, layout: 'rotated' });
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.once('finish', resolve);
        writer.end(data);
      });
      await client.close();
      await body(cluster, data);
    })(),
    3_600_000,
  );
}

/** As a disk that was replaced by a blank one. */
async function blank(cluster: SimCluster, index: number): Promise<void> {
  const entry = cluster.nodes[index]!;
  await entry.node!.stop();
  entry.disk = new MemoryDisk(DISK);
  await cluster.startNode(entry);
  await sleep(cluster.clock('test'), 500);
}

const deviceOf = (client: Client): Device => client['context'].device;

for (const [name, nodes] of [
  ['xor(2+1)', 3],
  ['rs(4,2)', 6],
  ['rs(8,2)', 10],
] as const) {
  t.test(`${name}: a rebuilder whose switch decodes receives each unit once; without it, k others`, async (t) => {
    const { k, m } = parseCode(name),
      reports: RebuildReport[] = [],
      received: number[] = [];
    for (const parity of ['auto', 'host'] as const) {
      await withFile(name, nodes, 40, async (cluster, data) => {
        await blank(cluster, 1);
        const client = await cluster.client('r1', { parity }),
          before = deviceOf(client).counters().bytesReceived;
        reports.push(await client.rebuild('a'));
        received.push(deviceOf(client).counters().bytesReceived - before);
        t.equal(cluster.switchCore!.counters().unitsDecoded, parity === 'auto' ? reports[0]!.unitsRestored : 0);
        t.same(
          [(await client.rebuild('a')).unitsMissing, (await client.scrub('a')).parityMismatches],
          [0, 0],
          'parity, headers and lists are right',
        );
        // What came from the switch is needed now.
        for (const index of [0, 2, 3, 4].slice(0, m)) await cluster.nodes[index]!.node!.stop();
        t.ok((await (await client.open('a')).read(0, data.length)).equals(data));
        await client.close();
      });
    }
    const [relayed, here] = reports as [RebuildReport, RebuildReport];
    t.same([relayed.unitsRestored, relayed.unitsFromSwitch, here.unitsRestored, here.unitsFromSwitch], [40, 40, 40, 0]);
    const ratio = received[1]! / received[0]!;
    t.ok(
      ratio > 0.8 * k && ratio < 1.2 * k,
      `${received[1]} bytes against ${received[0]}: ${ratio.toFixed(2)} times, k = ${k}`,
    );
  });
}

t.test('two units of a stripe that lack are decoded one by one, data and parity alike', async (t) => {
  await withFile('rs(4,2)', 6, 30, async (cluster, data) => {
    for (const index of [0, 3]) await blank(cluster, index);
    const client = await cluster.client('r1'),
      report = await client.rebuild('a');
    t.same([report.unitsRestored, report.unitsFromSwitch, report.unitsFailed, report.stripesLost], [60, 60, 0, 0]);
    t.same([(await client.scrub('a')).parityMismatches, (await client.rebuild('a')).unitsMissing], [0, 0]);
    for (const index of [1, 4]) await cluster.nodes[index]!.node!.stop();
    t.ok((await (await client.open('a')).read(0, data.length)).equals(data));
    await client.close();
  });
});

for (const [what, leave] of [
  ['loses its program', (cluster: SimCluster) => cluster.switchCore!.unload()],
  ['is killed', (cluster: SimCluster) => cluster.switchCore!.stop()],
] as const) {
  t.test(`a switch that ${what} meanwhile costs nothing but the detour`, async (t) => {
    await withFile('rs(4,2)', 6, 120, async (cluster, data) => {
      await blank(cluster, 2);
      const client = await cluster.client('r1');
      // When some have come from it.
      const clock = cluster.clock('test'),
        leaving = (async () => {
          while (cluster.switchCore!.counters().unitsDecoded < 5) await sleep(clock, 0.05);
          await leave(cluster);
        })();
      const report = await client.rebuild('a');
      await leaving;
      t.ok(
        report.unitsFromSwitch > 0 && report.unitsFromSwitch < 120,
        `${report.unitsFromSwitch} of ${report.unitsRestored} units came from it`,
      );
      t.same([report.unitsRestored, report.unitsFailed, report.stripesLost], [120, 0, 0]);
      t.equal((await client.rebuild('a')).unitsMissing, 0);
      for (const index of [0, 1]) await cluster.nodes[index]!.node!.stop();
      t.ok((await (await client.open('a')).read(0, data.length)).equals(data));
      await client.close();
    });
  });
}

t.test('what a parity header contradicts is neither written nor passed on', async (t) => {
  await withFile('xor(2+1)', 3, 6, async (cluster) => {
    const layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: UNIT }),
      client = await cluster.client('r1'),
      { id } = await client.stat('a');
    // Node 0's data units will lack; the other data unit of one such stripe is not the one that parity was made from.
    const stripe = [0, 1, 2, 3, 4].find((each) => unitOfNode(layout, each, 0) < 2)!,
      other = 1 - unitOfNode(layout, stripe, 0);
    await forge(cluster, layout, id, stripe, other, (_, payload) => {
      payload[5]! ^= 1;
    });
    await blank(cluster, 0);
    const report = await client.rebuild('a');
    t.same([report.unitsMissing, report.unitsRestored, report.unitsFailed], [6, 5, 1]);
    t.equal(cluster.switchCore!.counters().decodesFailed, 1);
    await client.close();
  });
});

t.test(
  "small reads of a unit whose node is down come over the reader's link once, not k times; without the switch " +
    'they come all the same',
  async (t) => {
    await withFile('rs(8,2)', 10, 12, async (cluster, data) => {
      await cluster.nodes[1]!.node!.stop();
      const layout = makeLayout({ nodes: 10, k: 8, m: 2, unitBytes: UNIT }),
        bytes: number[] = [];
      const lone = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
        .map((stripe) => [stripe, unitOfNode(layout, stripe, 1)] as const)
        .filter(([, unit]) => unit >= 0 && unit < 8);
      for (const parity of ['auto', 'host'] as const) {
        const client = await cluster.client(`r-${parity}`, { parity }),
          reader = await client.open('a'),
          before = deviceOf(client).counters().bytesReceived;
        for (const [stripe, unit] of lone) {
          const at = (stripe * 8 + unit) * UNIT;
          t.ok((await reader.read(at + 100, 3000)).equals(data.subarray(at + 100, at + 3100)));
        }
        bytes.push(deviceOf(client).counters().bytesReceived - before);
        t.equal(reader.unitsFromSwitch, parity === 'auto' ? lone.length : 0);
        if (parity === 'auto') {
          await cluster.switchCore!.unload();
          await sleep(cluster.clock('test'), 50);
          const [stripe, unit] = lone[0]!,
            at = (stripe * 8 + unit) * UNIT;
          t.ok((await reader.read(at, UNIT)).equals(data.subarray(at, at + UNIT)), 'read degraded here');
          await cluster.switchCore!.load();
          await sleep(cluster.clock('test'), 3000);
          t.ok((await reader.read(at, UNIT)).equals(data.subarray(at, at + UNIT)));
          t.equal(reader.unitsFromSwitch, lone.length + 1, 'and by the switch again');
        }
        await client.close();
      }
      const ratio = bytes[1]! / bytes[0]!;
      t.ok(
        ratio > 0.8 * 8 && ratio < 1.2 * 8,
        `${bytes[1]} bytes against ${bytes[0]}: ${ratio.toFixed(2)} times, k = 8`,
      );
    });
  },
);
