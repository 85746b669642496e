/**
 * Silent damage: what disks and faulty generators do to units that were acknowledged is found, repaired, and never
 * returned. Short form: 140 corruptions; TARTAN_LONG=1: a thousand and more. Each failure names its seed.
 */
import t from 'tap';
import { encode, parseCode } from '../../erasure/code/index.js';
import { makeLayout } from '../../erasure/layout/index.js';
import { sleep } from '../../wire/clock.js';
import { doubts, type CheckedUnit } from '../../writer/stripe-doubt.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';
import { damages, find, forge } from './damage.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const UNIT = 4096;

async function withCluster(seed: number, nodes: number, body: (cluster: SimCluster) => Promise<void>): Promise<void> {
  const cluster = new SimCluster({ seed, nodes, diskBytes: 16 << 20 });
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      await body(cluster);
    })(),
    3_600_000,
  );
}

async function restart(cluster: SimCluster): Promise<void> {
  for (const node of cluster.nodes) await node.node!.stop();
  for (const node of cluster.nodes) {
    node.disk = node.disk.crash(() => true);
    await cluster.startNode(node);
  }
  await sleep(cluster.clock('test'), 1000);
}

const rounds = LONG ? 52 : 7;
t.test(`${rounds} times 20 corruptions: all are found, all repaired, none is returned to a reader`, async (t) => {
  const total = new Map<string, number>();
  for (let seed = 1; seed <= rounds; seed++) {
    await withCluster(seed, 7, async (cluster) => {
      const code = parseCode('rs(4,2)'),
        layout = makeLayout({ nodes: 7, k: 4, m: 2, unitBytes: UNIT }),
        stripes = 28;
      const client = await cluster.client('w1', { repairBytesPerSecond: 0 });
      const data = randomBytes(cluster.world, 'data', stripes * 4 * UNIT);
      const writer = await client.create('a', { code: code.name, unitBytes: UNIT });
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.once('finish', resolve);
        writer.end(data);
      });
      const { id } = await client.stat('a'),
        random = cluster.world.fork('damage');

      // At most m units of a stripe: what the code promises to bear.
      const hurt = new Map<number, Set<number>>();
      const isFree = (stripe: number, unit: number): boolean => {
        const units = hurt.get(stripe) ?? new Set();
        return units.size < code.m && !units.has(unit);
      };
      const wound = (stripe: number, unit: number): void => {
        hurt.set(stripe, (hurt.get(stripe) ?? new Set()).add(unit));
      };
      let done = 0;
      while (done < 20) {
        const damage = damages[(seed + done) % damages.length]!,
          stripe = random.int(stripes),
          unit = random.int(6),
          other = random.int(stripes);
        if (stripe === other || !isFree(stripe, unit)) continue;
        const target = find(cluster, layout, id, stripe, unit);
        // Another unit of the same disk.
        const otherUnit = [0, 1, 2, 3, 4, 5].find(
          (each) => find(cluster, layout, id, other, each).node === target.node && isFree(other, each),
        );
        if (otherUnit === undefined) continue;
        await damage.do(target, find(cluster, layout, id, other, otherUnit), () => random.random());
        wound(stripe, unit);
        if (damage.both === true) {
          wound(other, otherUnit);
          done++;
        }
        done++;
        total.set(damage.what, (total.get(damage.what) ?? 0) + 1);
      }
      const wounds = [...hurt.values()].reduce((sum, { size }) => sum + size, 0);

      const before = await client.open('a');
      if (!(await before.read(0, data.length)).equals(data)) t.fail(`seed ${seed}: a reader got other bytes`);
      const report = await client.scrub('a');
      if (
        report.unitsDamaged !== wounds ||
        report.unitsRestored !== wounds ||
        report.unitsFailed + report.stripesLost + report.unitsMissing > 0
      )
        t.fail(
          `seed ${seed}: ${wounds} units were damaged, ${report.unitsDamaged} found, ${report.unitsRestored} restored`,
        );
      // What was repaired is durable, and the stores open, whatever their logs went through.
      await restart(cluster);
      const again = await client.scrub('a');
      if (again.unitsChecked !== stripes * 6 || again.unitsDamaged + again.unitsMissing + again.parityMismatches !== 0)
        t.fail(
          `seed ${seed}: a second scrub of ${again.unitsChecked} units ` +
            `finds ${again.unitsDamaged} damaged, ${again.unitsMissing} missing`,
        );
      const after = await client.open('a');
      if (!(await after.read(0, data.length)).equals(data) || after.progress.degradedStripes > 0)
        t.fail(`seed ${seed}: reads are not whole again`);
      await client.close();
    });
  }
  t.equal(total.size, damages.length, [...total].map(([what, count]) => `${what}: ${count}`).join('; '));
});

t.test('a read repairs what it finds damaged, in the background, and counts it', async (t) => {
  await withCluster(3, 3, async (cluster) => {
    const layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: UNIT }),
      client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 20 * 2 * UNIT);
    const writer = await client.create('a', { unitBytes: UNIT });
    await new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('finish', resolve);
      writer.end(data);
    });
    const { id } = await client.stat('a');
    for (const stripe of [1, 7, 8])
      await damages[0]!.do(find(cluster, layout, id, stripe, stripe % 2), find(cluster, layout, id, 0, 0), () => 0.4);
    const reader = await client.open('a');
    t.ok((await reader.read(0, data.length)).equals(data));
    t.equal(reader.progress.degradedStripes, 3);
    await client.repaired();
    t.match(client.repairs, { noticed: 3, dropped: 0, stripes: 3, unitsRestored: 3, unitsFailed: 0 });
    const again = await client.open('a');
    t.ok((await again.read(0, data.length)).equals(data));
    t.equal(again.progress.degradedStripes, 0, 'nothing has to be decoded any more');
    t.equal((await client.scrub('a')).unitsDamaged, 0);
    t.equal(client.repairs.noticed, 3, "a whole unit is nobody's business");
    await client.close();
  });
});

t.test('a continuous scrub repairs what is damaged between its passes, at its rate, until it is ended', async (t) => {
  await withCluster(9, 3, async (cluster) => {
    const layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: UNIT }),
      client = await cluster.client('w1'),
      ids = new Map<string, number>();
    for (const name of ['a', 'b']) {
      const writer = await client.create(name, { unitBytes: UNIT });
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.once('finish', resolve);
        writer.end(randomBytes(cluster.world, name, 20 * 2 * UNIT));
      });
      ids.set(name, (await client.stat(name)).id);
    }
    const stopper = new AbortController(),
      began = cluster.world.now();
    const patrolling = client.patrol({ bytesPerSecond: 2 << 20, restMs: 5000, signal: stopper.signal });
    for (const [name, stripe] of [
      ['a', 3],
      ['b', 11],
      ['a', 17],
    ] as const) {
      await damages[2]!.do(
        find(cluster, layout, ids.get(name)!, stripe, 1),
        find(cluster, layout, ids.get(name)!, 0, 0),
        () => 0.3,
      );
      await sleep(cluster.clock('test'), 12_000);
    }
    await client.remove('b');
    await sleep(cluster.clock('test'), 12_000);
    stopper.abort();
    const sum = await patrolling;
    t.match(sum, {
      unitsDamaged: 3,
      unitsRestored: 3,
      unitsFailed: 0,
      stripesLost: 0,
      unitsMissing: 0,
      parityMismatches: 0,
    });
    t.ok(sum.passes >= 5, `${sum.passes} passes, ${sum.unitsChecked} units`);
    t.ok(sum.unitsChecked * UNIT <= ((2 << 20) * (cluster.world.now() - began)) / 1000, 'no faster than it may');
    t.equal((await client.scrub('a')).unitsDamaged, 0);
    await client.close();
  });
});

for (const [name, nodes] of [
  ['xor(2+1)', 3],
  ['rs(4,2)', 6],
  ['copies(1,2)', 3],
] as const) {
  t.test(
    `${name}: scrub tells parity that was made wrong from data that was stored wrong, and writes again what is wrong`,
    async (t) => {
      await withCluster(5, nodes, async (cluster) => {
        const code = parseCode(name),
          { k, m } = code,
          layout = makeLayout({ nodes, k, m, unitBytes: UNIT });
        const client = await cluster.client('w1'),
          data = randomBytes(cluster.world, 'data', 12 * k * UNIT);
        const writer = await client.create('a', { code: name, unitBytes: UNIT });
        await new Promise<void>((resolve, reject) => {
          writer.once('error', reject);
          writer.once('finish', resolve);
          writer.end(data);
        });
        const { id } = await client.stat('a');
        const bytes = (_: unknown, payload: Uint8Array): void => {
          payload[17]! ^= 0x5a;
        };
        await forge(cluster, layout, id, 1, k, bytes); // parity's bytes
        await forge(cluster, layout, id, 2, k, (header) => {
          header.dataCrcs[0]! ^= 1;
        }); // parity's list
        await forge(cluster, layout, id, 3, k, (header, payload) => {
          header.dataCrcs[0]! ^= 1;
          bytes(header, payload);
        });
        await forge(cluster, layout, id, 4, 0, bytes); // data
        await forge(cluster, layout, id, 5, k - 1, bytes);
        // all parity
        if (m > 1) for (let unit = k; unit < k + m; unit++) await forge(cluster, layout, id, 6, unit, bytes);
        const found = m > 1 ? 6 : 5,
          units = m > 1 ? 5 + m : 5;
        const report = await client.scrub('a');
        t.same(
          [
            report.parityMismatches,
            report.mismatchesRepaired,
            report.unitsRestored,
            report.unitsFailed,
            report.unitsDamaged,
          ],
          [found, found, units, 0, 0],
        );
        const again = await client.scrub('a');
        t.same([again.parityMismatches, again.unitsDamaged, again.unitsMissing, again.unitsRestored], [0, 0, 0, 0]);
        const reader = await client.open('a');
        t.ok((await reader.read(0, data.length)).equals(data));
        // And the parity is right: with m nodes away it decodes.
        for (const node of cluster.nodes.slice(0, m)) await node.node!.stop();
        const degraded = await client.open('a');
        t.ok((await degraded.read(0, data.length)).equals(data));
        await client.close();
      });
    },
  );
}

t.test("units that fit together are not doubted, and of those that don't the smallest explanation comes first", (t) => {
  const code = parseCode('rs(4,2)'),
    crc = (values: readonly number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);
  const data = [1, 2, 3, 4].map((seed) => Uint8Array.from({ length: 16 }, (_, i) => seed * 31 + i)),
    parity = encode(code, data);
  const units: CheckedUnit[] = [...data, ...parity].map((summary, unit) => ({
    unit,
    payloadCrc: 100 + unit,
    summary,
    dataCrcs: unit < 4 ? new Uint8Array(0) : crc([100, 101, 102, 103]),
  }));
  const but = (unit: number, change: Partial<CheckedUnit>): CheckedUnit[] =>
    units.map((each) => (each.unit === unit ? { ...each, ...change } : each));
  t.same(doubts(code, units), []);
  t.same(doubts(code, units.slice(1)), [], 'without all data there is nothing to compare with');
  t.same(
    doubts(code, but(5, { summary: data[0]! })),
    [{ wrong: [5], avoid: [4, 5] }],
    'one parity fits: the data is right',
  );
  t.same(
    doubts(code, but(2, { payloadCrc: 7, summary: data[0]! })),
    [
      { wrong: [2], avoid: [2, 5] },
      { wrong: [2], avoid: [2, 4] },
      { wrong: [4, 5], avoid: [4, 5] },
    ],
    'both call one data unit another: it is decoded, by either',
  );
  t.end();
});
