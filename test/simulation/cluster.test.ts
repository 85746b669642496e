/** Writer, switch and nodes in one process in virtual time; every test prints nothing but is replayed by its seed. */
import t from 'tap';
import { sleep } from '../../wire/clock.js';
import type { FileWriter } from '../../writer/index.js';
import { SimCluster, randomBytes } from './cluster.js';

async function withCluster(
  options: ConstructorParameters<typeof SimCluster>[0],
  body: (cluster: SimCluster) => Promise<void>,
): Promise<SimCluster> {
  const cluster = new SimCluster(options);
  const run = (async () => {
    await cluster.start();
    await body(cluster);
  })();
  await cluster.world.complete(run, 600_000);
  return cluster;
}

void t.test('a file written through the switch reads back equal', async (t) => {
  await withCluster({ seed: 1 }, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 100_000);
    const writer = await client.create('a', { unitBytes: 4096 });
    t.equal(writer.parityMode, 'switch');
    await new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('finish', resolve);
      writer.end(data);
    });
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

/** Writes `data` and calls `inject` once when between `fraction` and 80 % of it is acknowledged. */
async function writeAround(
  cluster: SimCluster,
  writer: FileWriter,
  data: Buffer,
  fraction: number,
  inject: () => void | Promise<void>,
): Promise<void> {
  let at = 1;
  const watch = (async () => {
    while (writer.progress.acknowledgedBytes < data.length * fraction) await sleep(cluster.clock('test'), 0.05);
    at = writer.progress.acknowledgedBytes / data.length;
    await inject();
  })();
  await new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end(data);
  });
  await watch;
  if (at > 0.8) throw new Error(`the fault came late, when ${Math.round(at * 100)} % was acknowledged`);
}

/** Worlds that each story is told in. */
const SEEDS = process.env['TARTAN_LONG'] === '1' ? 3 : 1;

const faults: {
  name: string;
  inject: (cluster: SimCluster) => void | Promise<void>;
  mode: string;
  degraded: boolean;
}[] = [
  { name: 'the switch loses its program', inject: (c) => c.switchCore!.unload(), mode: 'host', degraded: false },
  {
    name: 'the switch is killed',
    inject: (c) => {
      c.world.killHost('s1');
    },
    mode: 'host',
    degraded: false,
  },
  {
    name: 'the switch is stopped',
    inject: (c) => {
      c.world.pauseHost('s1');
    },
    mode: 'host',
    degraded: false,
  },
  {
    name: 'the switch is cut off from the writer',
    inject: (c) => {
      c.world.partition('w1', 's1');
    },
    mode: 'host',
    degraded: false,
  },
  {
    name: 'the switch is cut off from a node',
    inject: (c) => {
      c.world.partition('n2', 's1');
    },
    mode: 'any',
    degraded: false,
  },
  {
    name: 'a node is killed',
    inject: (c) => {
      c.world.killHost('n2');
    },
    mode: 'any',
    degraded: true,
  },
  {
    name: 'a node is stopped',
    inject: (c) => {
      c.world.pauseHost('n2');
    },
    mode: 'any',
    degraded: true,
  },
];

for (const fault of faults) {
  for (const [code, nodes, unitBytes] of [
    ['xor(2+1)', 3, 4096],
    ['rs(4,2)', 7, 1024],
    ['copies(1,2)', 3, 512],
  ] as const) {
    void t.test(`nothing is lost when ${fault.name} in the middle of a write with ${code}`, async (t) => {
      for (let seed = 1; seed <= SEEDS; seed++) {
        await withCluster({ seed, nodes, network: { bytesPerMs: 5_000 } }, async (cluster) => {
          const client = await cluster.client('w1', { ringMemoryBytes: 1 << 20 });
          const data = randomBytes(cluster.world, 'data', (code === 'copies(1,2)' ? 100_000 : 400_000) + seed * 977);
          const writer = await client.create('a', { code, unitBytes });
          await writeAround(cluster, writer, data, 0.3, () => fault.inject(cluster));
          if (fault.mode !== 'any') t.equal(writer.parityMode, fault.mode, `seed ${seed}`);
          t.equal(writer.progress.acknowledgedBytes, data.length, `seed ${seed}`);
          const reader = await client.open('a');
          t.ok((await reader.read(0, reader.length)).equals(data), `seed ${seed}: reads back equal`);
          if (fault.degraded && code !== 'copies(1,2)')
            t.ok(reader.progress.degradedStripes > 0, `seed ${seed}: some stripes were decoded`);
          await client.close();
        });
      }
    });
  }
}
