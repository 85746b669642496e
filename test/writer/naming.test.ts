/** A file appears under its name when it is complete; what never got so far leaves nothing. */
import t from 'tap';
import { once } from 'node:events';
import { listFiles, listUnnamed } from '../../cluster/files.js';
import { sleep } from '../../wire/clock.js';
import { SimCluster, randomBytes, inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

const COMPLETE = { appears: 'complete', unitBytes: 1024 } as const;

const withCluster = (body: Body): Promise<void> => inCluster({ seed: 11 }, body);

/** Units of a file on all nodes. */
async function unitsOf(cluster: SimCluster, fileId: number): Promise<number> {
  const held = await Promise.all(cluster.nodes.map(({ id }) => cluster.inventory(id, fileId)));
  return held.flat().length;
}

void t.test('nobody finds a file before it is complete; then all of it is there', async (t) => {
  await withCluster(async (cluster) => {
    const client = await cluster.client('w1'),
      other = await cluster.client('w2'),
      data = randomBytes(cluster.world, 'data', 50_000);
    const writer = await client.create('a', COMPLETE);
    writer.write(data);
    await writer.flush();
    await t.rejects(other.open('a'), { code: 'ERR_NOT_FOUND' });
    await t.rejects(other.append('a'), { code: 'ERR_NOT_FOUND' });
    t.same([await other.list(), await listUnnamed(cluster.memory.client())], [[], [writer.fileId]]);
    t.equal((await listFiles(cluster.memory.client())).length, 1, 'who looks after nodes knows it');
    await end(writer);
    const reader = await other.open('a');
    t.equal(reader.length, data.length);
    t.ok((await reader.read(0, data.length)).equals(data));
    t.match(await other.stat('a'), { id: writer.fileId, state: 'closed' });
    t.same(await listUnnamed(cluster.memory.client()), []);
  });
});

void t.test(
  'of two that are written under one name the first to be complete has it; the other leaves nothing',
  async (t) => {
    await withCluster(async (cluster) => {
      const client = await cluster.client('w1'),
        late = await client.create('a', COMPLETE),
        first = await client.create('a', COMPLETE);
      late.write(randomBytes(cluster.world, 'late', 9000));
      await late.flush();
      t.ok((await unitsOf(cluster, late.fileId)) > 0);
      await end(first);
      await t.rejects(end(late), { code: 'ERR_EXISTS' });
      await t.rejects(client.create('a', COMPLETE), { code: 'ERR_EXISTS' }, 'before anything is written');
      t.equal((await client.stat('a')).id, first.fileId);
      t.equal(await unitsOf(cluster, late.fileId), 0);
      t.same(await listUnnamed(cluster.memory.client()), []);
    });
  },
);

void t.test('a file is replaced in one moment, and only by one that is complete', async (t) => {
  await withCluster(async (cluster) => {
    const client = await cluster.client('w1'),
      old = randomBytes(cluster.world, 'old', 30_000),
      data = randomBytes(cluster.world, 'new', 20_000);
    const writer = await client.create('a', { unitBytes: 1024 });
    writer.write(old);
    await end(writer);
    const given = await client.create('a', { ...COMPLETE, replace: true });
    given.write(data);
    await given.flush();
    given.on('error', () => {}).destroy();
    await once(given, 'close');
    const read = async (): Promise<Buffer> => {
      const reader = await client.open('a');
      const bytes = await reader.read(0, reader.length);
      await reader.close();
      return bytes;
    };
    t.ok((await read()).equals(old), 'one that was given up replaces nothing');
    t.equal(await unitsOf(cluster, given.fileId), 0);
    const next = await client.create('a', { ...COMPLETE, replace: true });
    next.write(data);
    await end(next);
    t.ok((await read()).equals(data));
    t.same(
      (await client.list()).map(({ id }) => id),
      [next.fileId],
    );
    t.equal(await unitsOf(cluster, writer.fileId), 0, 'the old one is freed');
    const absent = await client.create('b', { ...COMPLETE, replace: true });
    await end(absent);
    t.equal((await client.stat('b')).length, 0, 'there need be none');
  });
});

void t.test('who reads a file when it is replaced, or removed, reads it to its end; then it is freed', async (t) => {
  await withCluster(async (cluster) => {
    const client = await cluster.client('w1'),
      other = await cluster.client('r1'),
      old = randomBytes(cluster.world, 'old', 300_000),
      writer = await client.create('a', { unitBytes: 1024 });
    writer.write(old);
    await end(writer);
    const readers = [await other.open('a'), await other.open('a')];
    await end(await client.create('a', { ...COMPLETE, replace: true }));
    t.equal((await other.stat('a')).length, 0, 'another has the name');
    t.ok((await readers[0]!.read(0, old.length)).equals(old), 'all of the old one is there');
    await readers[0]!.close();
    t.ok((await readers[1]!.read(100_000, 100_000)).equals(old.subarray(100_000, 200_000)), 'until the last has read');
    await readers[1]!.close();
    const clock = cluster.clock('test');
    for (let i = 0; i < 100 && (await unitsOf(cluster, writer.fileId)) > 0; i++) await sleep(clock, 10);
    t.equal(await unitsOf(cluster, writer.fileId), 0);
  });
});

void t.test('what a writer that is gone has left is collected; one that is only slow goes on', async (t) => {
  await withCluster(async (cluster) => {
    const gone = cluster.memory.client(),
      dying = await cluster.client('w1', { cluster: gone }),
      client = await cluster.client('w2'),
      dead = await dying.create('dead', COMPLETE),
      slow = await client.create('slow', COMPLETE);
    for (const writer of [dead, slow]) {
      writer.write(randomBytes(cluster.world, writer.name, 9000));
      await writer.flush();
    }
    dead.on('error', () => {});
    await gone.close(); // as a killed one, it says nothing any more
    const stopper = new AbortController(),
      said: string[] = [];
    const repairing = (await cluster.client('r1')).repairer({
      tickMs: 100,
      ownerMs: 500,
      idleMs: 2000,
      scrubMs: 0,
      signal: stopper.signal,
      log: (line) => said.push(line),
    });
    const clock = cluster.clock('test');
    for (let i = 0; i < 200 && (await listUnnamed(cluster.memory.client())).length > 1; i++) await sleep(clock, 100);
    // The slow one is asked a few times more.
    await sleep(clock, 10_000);
    t.same(await listUnnamed(cluster.memory.client()), [slow.fileId]);
    t.match(said, ["'dead' is removed: whoever wrote it went before it was complete"]);
    t.equal(await unitsOf(cluster, dead.fileId), 0);
    await end(slow);
    t.equal((await client.stat('slow')).length, 9000);
    stopper.abort();
    await repairing;
  });
});
