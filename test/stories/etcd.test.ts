/** The cluster store is etcd: real processes, etcd killed under them, and what must go on does. */
import t, { type Test } from 'tap';
import { TartanError, codeOf } from '../../wire/errors.js';
import { etcdMissing, EtcdServer } from '../cluster/etcd-server.js';
import { RunningCluster, finish, fresh, pause, pour, readAll } from './running-cluster.js';
import { until } from '../until.js';

/** The nodes' leases are of 5 s: the outage outlasts them. The long form is the minute that is promised. */
const OUTAGE_MS = process.env['TARTAN_LONG'] === '1' ? 60_000 : 8_000;

async function start(t: Test): Promise<{ etcd: EtcdServer; cluster: RunningCluster; location: string }> {
  const etcd = await EtcdServer.start();
  t.teardown(() => etcd.stop());
  const location = etcd.location('story');
  const cluster = new RunningCluster(['--nodes', '4', '--size', '1GiB', '--cluster-store', location]);
  t.teardown(() => cluster.end());
  await cluster.up();
  return { etcd, cluster, location };
}

void t.test(
  'etcd is gone for longer than any lease: open files go on, creating says why not, and nothing is lost',
  { skip: etcdMissing() },
  async (t) => {
    const { etcd, cluster, location } = await start(t);
    const client = await cluster.client({ cluster: location });
    t.teardown(() => client.close());
    const early = fresh(3_000_017);
    const done = await client.create('early');
    await pour(done, early);
    await finish(done);
    const reader = await client.open('early');

    const writer = await client.create('long');
    const piece = fresh(500_009);
    await pour(writer, piece);
    await writer.flush();
    const before = await mapOf(cluster);
    await etcd.kill(0);
    let times = 1;
    for (const end = Date.now() + OUTAGE_MS; Date.now() < end; times++) {
      await pour(writer, piece);
      await pause(0);
      t.ok((await reader.read(1_000, 100_000)).equals(early.subarray(1_000, 101_000)), 'an open file is read');
      await pause(400);
    }
    // All but a short tail, which waits for more, or for a flush.
    const stripe = 2 * 65536,
      acknowledged = Math.floor((times * piece.length) / stripe) * stripe;
    await until(() => writer.progress.acknowledgedBytes >= acknowledged, 'the acknowledgements');
    await writer.flush();
    t.equal(writer.progress.acknowledgedBytes, times * piece.length, 'durable, though readers can not be told yet');
    t.equal(writer.parityMode, 'switch');
    await t.rejects(client.create('late'), { code: 'ERR_MAP_UNAVAILABLE' });
    await t.rejects(client.open('early'), { code: 'ERR_MAP_UNAVAILABLE' });
    etcd.run(0);
    await etcd.answers();
    await pour(writer, piece);
    await finish(writer);
    const { bytes, degraded } = await readAll(client, 'long');
    t.equal(bytes.length, (times + 1) * piece.length);
    for (let at = 0; at <= times; at++)
      if (!bytes.subarray(at * piece.length, (at + 1) * piece.length).equals(piece)) t.fail(`piece ${at} differs`);
    t.equal(degraded, 0);
    const late = await client.create('late');
    await pour(late, piece);
    await finish(late);
    t.equal((await mapOf(cluster)).epoch, before.epoch, 'nobody was taken for dead meanwhile');
    await reader.close();
  },
);

void t.test(
  'a node that sleeps past its lease is written around, and comes back; a writer that was replaced is fenced; ' +
    'wiping leaves no key',
  { skip: etcdMissing() },
  async (t) => {
    const { etcd, cluster, location } = await start(t);
    const client = await cluster.client({ cluster: location }),
      other = await cluster.client({ cluster: location });
    t.teardown(() => Promise.all([client.close(), other.close()]));
    const piece = fresh(700_001);
    const writer = await client.create('file', { code: 'rs(2,2)' });
    await pour(writer, piece);
    await writer.flush();
    cluster.signal('n2', 'SIGSTOP');
    await pour(writer, piece);
    await writer.flush();
    await until(
      async () => (await mapOf(cluster)).nodes.find(({ id }) => id === 'n2')?.state === 'down',
      'the sleeping node to be marked down',
    );
    await pause(6_000); // Longer than its lease.
    cluster.signal('n2', 'SIGCONT');
    await until(
      async () => (await mapOf(cluster)).nodes.find(({ id }) => id === 'n2')?.state === 'up',
      'the node to come back',
    );
    await pour(writer, piece);
    await writer.flush();

    const successor = await other.append('file');
    await pour(successor, piece);
    await finish(successor);
    const failed = new Promise<unknown>((resolve) => {
      writer.once('error', resolve);
    });
    await pour(writer, piece).catch(() => {});
    await writer.flush().catch(() => {});
    t.ok(['ERR_FENCED', 'ERR_STALE_EPOCH'].includes(codeOf(await failed) ?? ''), 'the writer before is fenced');
    const { bytes } = await readAll(other, 'file');
    t.ok(
      bytes.equals(Buffer.concat([piece, piece, piece, piece])),
      'its last bytes, never acknowledged, are not there',
    );

    await Promise.all([client.close(), other.close()]);
    await cluster.tartan('down', '--wipe');
    await t.rejects(cluster.tartan('--cluster-store', location, 'ls'), /ERR_NOT_FOUND/);
    t.ok(etcd.port(0) > 0);
  },
);

async function mapOf(cluster: RunningCluster): Promise<{ epoch: number; nodes: { id: string; state: string }[] }> {
  const status = JSON.parse(await cluster.tartan('status', '--json')) as {
    map?: { epoch: number; nodes: { id: string; state: string }[] };
  };
  if (status.map === undefined) throw new TartanError('ERR_NOT_FOUND', 'status told no map');
  return status.map;
}
