/** Taking over files that were closed: what their last owner settled stays so, whatever happened to nodes since. */
import t, { type Test } from 'tap';
import { createFile, giveUp, isSettled, publishCommit, readFile, takeOver } from '../../cluster/files.js';
import { readMap, setNodePurpose } from '../../cluster/membership.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { codeOf } from '../../wire/errors.js';
import type { Client, FileWriter } from '../../writer/index.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = 9;
const DISK_BYTES = 8 << 20;

function story(
  name: string,
  options: Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>,
  body: (t: Test, cluster: SimCluster) => Promise<void>,
): void {
  void t.test(name, async (t) => {
    t.comment(`seed ${SEED}`);
    const cluster = new SimCluster({ seed: SEED, withSwitch: false, diskBytes: DISK_BYTES, ...options });
    await cluster.world.complete(
      cluster.start().then(() => body(t, cluster)),
      600_000,
    );
  });
}

function ended(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => writer.once('error', reject).once('finish', resolve).end());
}

/** The node is down for a while, and is back with its disk or with a blank one. */
async function restarted(cluster: SimCluster, index: number, isBlank: boolean): Promise<void> {
  const node = cluster.nodes[index]!;
  await node.node!.stop();
  cluster.world.killHost(node.host);
  node.disk = isBlank ? new MemoryDisk(DISK_BYTES) : node.disk.restart();
  await cluster.startNode(node);
}

async function readAll(client: Client, name: string): Promise<Buffer> {
  const reader = await client.open(name);
  const bytes = await reader.read(0, reader.length);
  await reader.close();
  return bytes;
}

for (const [code, replaced] of [
  ['xor(2+1)', 2],
  ['copies(1,2)', 1],
] as const)
  story(
    `a closed file with ${code} can be appended to after ${replaced} replaced disks and restarts`,
    {},
    async (t, cluster) => {
      const client = await cluster.client('w1', { parity: 'host' });
      const data = randomBytes(cluster.world, 'data', 10_300),
        more = randomBytes(cluster.world, 'more', 5000);
      const writer = await client.create('a', { code, unitBytes: 1024 });
      writer.write(data);
      await ended(writer);
      for (let index = 0; index < 3; index++) {
        await restarted(cluster, index, index < replaced);
        await client.rebuild('a');
      }
      const appended = await client.append('a');
      appended.write(more);
      await ended(appended);
      t.ok((await readAll(client, 'a')).equals(Buffer.concat([data, more])));
      t.ok(isSettled(await client.stat('a')));
    },
  );

story('a takeover that fails leaves a closed file closed, and the next one succeeds', {}, async (t, cluster) => {
  const client = await cluster.client('w1', { parity: 'host' });
  const data = randomBytes(cluster.world, 'data', 5000);
  const writer = await client.create('a', { unitBytes: 1024 });
  writer.write(data);
  await ended(writer);
  const { writerEpoch } = await client.stat('a');
  // Too few nodes: no epoch is raised.
  for (const { node, host } of cluster.nodes.slice(1)) {
    await node!.stop();
    cluster.world.killHost(host);
  }
  t.equal(await client.append('a').then(() => '', codeOf), 'ERR_UNDECIDED');
  t.match(await client.stat('a'), { state: 'closed', writerEpoch });
  for (const node of cluster.nodes.slice(1)) {
    node.disk = node.disk.restart();
    await cluster.startNode(node);
  }
  // Nodes that have no memory for a writer: the takeover has begun, and gives up.
  const hoards = cluster.nodes.map(
    ({ node }) => (node as unknown as { memory: { used: number; limit: number } }).memory,
  );
  for (const memory of hoards) memory.used += memory.limit;
  t.equal(await client.append('a').then(() => '', codeOf), 'ERR_RING_MEMORY');
  const given = await client.stat('a');
  t.match(given, { state: 'closed', writerEpoch: writerEpoch + 1, closedEpoch: writerEpoch });
  t.ok(isSettled(given), 'and may be moved, as any closed file');
  for (const memory of hoards) memory.used -= memory.limit;
  const appended = await client.append('a');
  appended.write(data);
  await ended(appended);
  t.ok((await readAll(client, 'a')).equals(Buffer.concat([data, data])));
  t.equal((await client.stat('a')).closedEpoch, undefined, 'what has been decided since counts');
});

story('an open file is not closed by a takeover that gives up', {}, async (t, cluster) => {
  const store = cluster.memory.client();
  const { id } = await createFile(store, { name: 'b', code: 'xor(2+1)', unitBytes: 512, nodes: ['n1', 'n2', 'n3'] });
  const { writerEpoch } = await takeOver(store, id);
  await giveUp(store, id, writerEpoch);
  t.match(await readFile(store, id), { state: 'open', closedEpoch: undefined });
  const commit = { writerEpoch, length: 0, commitEpoch: 0, commitCounter: 0, state: 'closed' } as const;
  t.notOk(isSettled(await publishCommit(store, id, commit)), 'its owner has not decided');
});

story('a file that is created while a node begins to leave does not use it', { nodes: 4 }, async (t, cluster) => {
  const store = cluster.memory.client();
  const client = await cluster.client('w1', { cluster: store, parity: 'host' });
  const transact = store.transact.bind(store);
  let marked = false;
  store.transact = async (...args) => {
    if (!marked) {
      marked = true;
      await setNodePurpose(cluster.memory.client(), 'n2', 'leaving');
    }
    return transact(...args);
  };
  const writer = await client.create('a', { unitBytes: 1024 });
  t.ok(marked);
  t.same((await client.stat('a')).nodes, ['n1', 'n3', 'n4']);
  await ended(writer);
  t.equal((await readMap(store)).nodes.length, 4);
});
