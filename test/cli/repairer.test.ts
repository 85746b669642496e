/**
 * The repairer on real processes: a node is killed for good, a spare takes its shares without a command; the repairer,
 * too, is killed.
 */
import t from 'tap';
import { RunningCluster, finish, pour, readAll } from '../stories/running-cluster.js';
import { randomBytes } from '../random-bytes.js';
import { until } from '../until.js';

interface Status {
  readonly repair?: {
    readonly what: string;
    readonly pid: number;
    readonly bytesRestored: number;
    readonly stripes: number;
  };
  readonly scrub?: {
    readonly passes: number;
    readonly last: { readonly unitsChecked: number; readonly unitsDamaged: number };
  };
}
interface NodeRow {
  readonly id: string;
  readonly purpose: string;
  readonly files: number;
}

const UP = ['--nodes', '4', '--size', '256MiB', '--ring-memory', '64MiB'];

t.test(
  'a node is killed for good: a spare takes its shares by itself, also when the repairer is killed amid; then ' +
    'others may go',
  async (t) => {
    const cluster = new RunningCluster([
      ...UP,
      '--down-out',
      '2',
      '--settle',
      '1',
      '--repair-rate',
      '400KiB',
      '--scrub-interval',
      '0',
    ]);
    t.teardown(() => cluster.end());
    await cluster.up();
    await cluster.tartan('node', 'add', '--spare', '--size', '256MiB');
    const status = async (): Promise<Status> => JSON.parse(await cluster.tartan('status', '--json')) as Status;
    const list = async (): Promise<NodeRow[]> =>
      JSON.parse(await cluster.tartan('node', 'list', '--json')) as NodeRow[];
    const client = await cluster.client();
    t.teardown(() => client.close());
    const data = new Map<string, Buffer>();
    for (const [name, code, bytes] of [
      ['a', 'rs(2,2)', 6_000_000],
      ['b', 'xor(2+1)', 1_000_001],
      ['c', 'copies(1,2)', 3],
    ] as const) {
      const writer = await client.create(name, { code });
      data.set(name, randomBytes(bytes));
      await pour(writer, data.get(name)!);
      await finish(writer);
    }
    t.match(await list(), [
      { id: 'n1' },
      { id: 'n2' },
      { id: 'n3' },
      { id: 'n4' },
      { id: 'n5', purpose: 'spare', files: 0 },
    ]);

    cluster.signal('n2', 'SIGKILL');
    let seen: Status = {};
    await until(async () => ((seen = await status()).repair?.bytesRestored ?? 0) > 0, 'the repairer is at it');
    t.match(seen.repair, { what: 'rebuild', pid: cluster.record('r1').identity.pid });
    t.match(
      await cluster.tartan('status'),
      /^rebuild: \d+ % \(\d+ of \d+ stripes, .* restored\), (about \d+ s left|time left unknown); process \d+ on /m,
    );
    cluster.signal('r1', 'SIGKILL');
    t.ok((await list())[1]!.files > 0, 'not everything had moved');
    await cluster.newRepairer(['--down-out', '2', '--settle', '1', '--scrub-interval', '0']);
    await until(async () => (await list())[1]!.files === 0, 'n2 holds nothing any more');
    await until(async () => (await list())[4]!.purpose === 'member', 'the spare is a member');
    t.match(await cluster.tartan('node', 'remove', 'n2'), /^n2 is removed/);
    const reports = JSON.parse(await cluster.tartan('rebuild', '--json')) as {
      unitsMissing: number;
      nodesDown: string[];
    }[];
    t.same(
      reports.map(({ unitsMissing, nodesDown }) => [unitsMissing, nodesDown]),
      [
        [0, []],
        [0, []],
        [0, []],
      ],
    );
    for (const [name, others] of [
      ['b', ['n1']],
      ['a', ['n3']],
      ['c', []],
    ] as const) {
      for (const id of others) cluster.signal(id, 'SIGKILL');
      t.ok(
        (await readAll(client, name)).bytes.equals(data.get(name)!),
        `'${name}' after ${others.join(' and ')} went too`,
      );
    }
  },
);

t.test('damage that nobody reads is found by a scrub that comes by itself', async (t) => {
  const cluster = new RunningCluster([
    '--nodes',
    '3',
    '--size',
    '64MiB',
    '--ring-memory',
    '64MiB',
    '--scrub-interval',
    '1',
    '--settle',
    '0',
  ]);
  t.teardown(() => cluster.end());
  await cluster.up();
  const client = await cluster.client(),
    writer = await client.create('a');
  t.teardown(() => client.close());
  await pour(writer, randomBytes(2_000_000));
  await finish(writer);
  let seen: Status = {};
  await until(
    async () =>
      ((seen = JSON.parse(await cluster.tartan('status', '--json')) as Status).scrub?.last.unitsChecked ?? 0) > 0,
    'a scrub has seen it',
  );
  t.match(seen.scrub, { last: { files: 1, unitsChecked: 48, unitsDamaged: 0, stripesLost: 0 } });
  t.match(
    await cluster.tartan('status'),
    /^last scrub ended \S+: 48 units checked, 0 found damaged, missing or unfit, 0 restored; \d+ in all$/m,
  );
});
