/** Counters of 32 bits near their end: an owner goes on under its next writer epoch, and nothing is lost by it. */
import t from 'tap';
import { readFile, takeOver } from '../../cluster/files.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import type { Client, FileWriter } from '../../writer/index.js';
import { PacketCluster, finish } from '../packets/packet-cluster.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';
import { randomBytes as anyBytes } from '../random-bytes.js';

const LAST = 0xffff_ffff;
const UNIT = 1024;

async function withCluster(
  options: Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>,
  body: (cluster: SimCluster) => Promise<void>,
): Promise<void> {
  const cluster = new SimCluster({ seed: 11, ...options });
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      await body(cluster);
    })(),
    3_600_000,
  );
}

/** As if so many versions had been written before. */
function setCounter(writer: FileWriter, next: number): void {
  writer['session'].window['nextCounter'] = next;
}

async function readAll(client: Client, name: string): Promise<Buffer> {
  const reader = await client.open(name);
  const bytes = await reader.read(0, reader.length);
  await reader.close();
  return bytes;
}

for (const parity of ['auto', 'host'] as const) {
  void t.test(
    `versions that reach 2^32 (parity ${parity}): every acknowledged byte reads back, then and from the next writer`,
    async (t) => {
      await withCluster({}, async (cluster) => {
        const client = await cluster.client('w1', { parity, ringMemoryBytes: 512 << 10 });
        const data = randomBytes(cluster.world, 'data', 60_000);
        const writer = await client.create('a', { unitBytes: UNIT });
        writer.on('error', (error) => t.fail(error.message));
        writer.write(data.subarray(0, 5000));
        await writer.flush();
        setCounter(writer, LAST - 1); // stripe 2 is being filled: its tail has version LAST - 1 when it is full
        let at = 5000;
        for (const to of [5001, 6200, 20_000, 20_001, 45_000]) {
          writer.write(data.subarray(at, to));
          at = to;
          await writer.flush();
          t.equal(writer.progress.acknowledgedBytes, to);
          t.ok((await readAll(client, 'a')).equals(data.subarray(0, to)), `${to} bytes read back`);
        }
        t.match(await client.stat('a'), { writerEpoch: 2, renewedFrom: 1, decidedEpoch: 2, decidedStripes: 3 });
        // Again, and now nobody closes the file.
        setCounter(writer, 2 ** 31);
        writer.write(data.subarray(at, 52_000));
        await writer.flush();
        t.equal((await client.stat('a')).writerEpoch, 3);
        cluster.world.killHost('w1');
        const second = await cluster.client('w2');
        const appended = await second.append('a');
        t.equal(appended.progress.acknowledgedBytes, 52_000);
        appended.write(data.subarray(52_000));
        await finish(appended);
        t.ok((await readAll(second, 'a')).equals(data));
      });
    },
  );
}

void t.test('a file gets its next epoch while a node is down, and another writer goes on with it', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1');
    const data = randomBytes(cluster.world, 'data', 60_000);
    const writer = await client.create('a', { unitBytes: UNIT });
    writer.write(data.subarray(0, 30_000));
    await writer.flush();
    cluster.world.killHost('n2');
    setCounter(writer, 2 ** 31);
    writer.write(data.subarray(30_000));
    await writer.flush();
    t.equal((await client.stat('a')).writerEpoch, 2);
    t.ok((await readAll(client, 'a')).equals(data));
    cluster.world.killHost('w1');
    const second = await cluster.client('w2');
    t.equal((await second.append('a')).progress.acknowledgedBytes, data.length);
    t.ok((await readAll(second, 'a')).equals(data));
  });
});

void t.test('a store that cannot be read puts the next epoch off; the file goes on meanwhile', async (t) => {
  await withCluster({}, async (cluster) => {
    const store = cluster.memory.client();
    const client = await cluster.client('w1', { cluster: store });
    const data = randomBytes(cluster.world, 'data', 40_000);
    const writer = await client.create('a', { unitBytes: UNIT });
    const session = writer['session'];
    store.cutOff();
    setCounter(writer, 2 ** 31);
    writer.write(data.subarray(0, 20_000));
    while (writer.progress.acknowledgedBytes < 20_000) {
      await session.flush(); // of what has found room by now
      await sleep(cluster.clock('test'), 10);
    }
    t.equal(session.file.writerEpoch, 1);
    // There comes a point where it can be put off no longer.
    setCounter(writer, LAST - 2 ** 27);
    writer.write(data.subarray(20_000));
    await sleep(cluster.clock('test'), 20_000);
    const waits = writer.progress.acknowledgedBytes;
    t.ok(waits < 24_000, `${waits} bytes: the next stripe waits`);
    store.heal();
    await finish(writer);
    t.match(await client.stat('a'), { writerEpoch: 2, length: data.length, state: 'closed' });
    t.ok((await readAll(client, 'a')).equals(data));
  });
});

void t.test('a store whose answer is lost is asked again: the writer is not fenced by itself', async (t) => {
  await withCluster({}, async (cluster) => {
    const store = cluster.memory.client();
    const client = await cluster.client('w1', { cluster: store });
    const data = randomBytes(cluster.world, 'data', 40_000);
    const writer = await client.create('a', { unitBytes: UNIT });
    const transact = store.transact.bind(store);
    let lost = 0;
    store.transact = async (...args) => {
      const result = await transact(...args);
      if (!JSON.stringify(args).includes('renewedFrom') || lost > 0) return result;
      lost++;
      store.cutOff();
      cluster.world.setTimer(1000, () => {
        store.heal();
      });
      return store.get('never answered') as never;
    };
    setCounter(writer, 2 ** 31);
    writer.write(data);
    await finish(writer);
    t.equal(lost, 1);
    t.equal((await client.stat('a')).writerEpoch, 2);
    t.ok((await readAll(client, 'a')).equals(data));
  });
});

void t.test('who has lost the file to another owner gets no next epoch', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1');
    const writer = await client.create('a', { unitBytes: UNIT });
    await takeOver(cluster.memory.client(), writer.fileId);
    setCounter(writer, 2 ** 31);
    const failure = new Promise<Error>((resolve) => writer.once('error', resolve));
    writer.write(Buffer.alloc(5000));
    t.equal(codeOf(await failure), 'ERR_FENCED');
    t.equal((await readFile(cluster.memory.client(), writer.fileId)).writerEpoch, 2);
  });
});

void t.test('versions that are used up within one stripe, and stripes beyond 2^53 bytes, end the writer', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1');
    const used = await client.create('used', { unitBytes: UNIT });
    used.write(Buffer.of(1));
    await used.flush();
    setCounter(used, LAST + 1);
    const end = new Promise<Error>((resolve) => used.once('error', resolve));
    used.write(Buffer.of(2));
    const flushed = t.rejects(used.flush(), { code: 'ERR_CAPACITY' });
    t.equal(codeOf(await end), 'ERR_CAPACITY');
    await flushed;
    const writer = await client.create('long', { unitBytes: UNIT });
    writer['session'].window.seek(2 ** 53 / (2 * UNIT) - 1, 0);
    const failure = new Promise<Error>((resolve) => writer.once('error', resolve));
    writer.write(Buffer.of(1));
    t.equal(codeOf(await failure), 'ERR_CAPACITY');
  });
});

void t.test('a connection that has asked 2^32 times is answered on', async (t) => {
  await withCluster({}, async (cluster) => {
    const client = await cluster.client('w1');
    const writer = await client.create('a', { unitBytes: UNIT });
    const { nodes } = writer['session'],
      link = nodes.linkTo(0)!;
    link['nextRequest'] = LAST - 1;
    for (let i = 0; i < 4; i++) await link.request({ $case: 'adoptMap', value: { mapEpoch: nodes.map.epoch } });
    t.equal(link['nextRequest'], 3);
    await finish(writer);
  });
});

void t.test('units that go as packets are taken under the next epoch too', async (t) => {
  const cluster = new PacketCluster(undefined);
  try {
    await cluster.start(3);
    const client = await cluster.client();
    const data = anyBytes(200_000);
    const writer = await client.create('a', { unitBytes: 4096 });
    writer.write(data.subarray(0, 50_000));
    await writer.flush();
    setCounter(writer, 2 ** 31);
    writer.write(data.subarray(50_000));
    await finish(writer);
    t.match(await client.stat('a'), { writerEpoch: 2, length: data.length });
    t.ok((await readAll(client, 'a')).equals(data));
    await client.close();
  } finally {
    await cluster.end();
  }
});
