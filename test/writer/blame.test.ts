/** What a writer does about nodes that it can't use, and whom it blames: told in the simulated cluster. */
import t, { type Test } from 'tap';
import { readMap, registerNode } from '../../cluster/membership.js';
import { MessageChannel } from '../../pipeline/channel.js';
import type { RingMemory } from '../../pipeline/ring-memory.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import { PROTOCOL_VERSION } from '../../wire/ring-messages.js';
import type { FileWriter } from '../../writer/index.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = 5;
/** Each story lasts so long in virtual time at most. */
const LIMIT_MS = 300_000;

function story(
  name: string,
  options: Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>,
  body: (t: Test, cluster: SimCluster) => Promise<void>,
): void {
  void t.test(name, async (t) => {
    t.comment(`seed ${SEED}`);
    const cluster = new SimCluster({ seed: SEED, withSwitch: false, ...options });
    await cluster.world.complete(
      cluster.start().then(() => body(t, cluster)),
      LIMIT_MS,
    );
  });
}

async function mapOf(cluster: SimCluster) {
  return readMap(cluster.memory.client());
}

function ended(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => writer.once('error', reject).once('finish', resolve).end());
}

/** Lets a writer write a little, so that all its links are in use. */
async function begun(cluster: SimCluster, code: string, host = 'w1'): Promise<FileWriter> {
  const client = await cluster.client(host, { parity: 'host' });
  const writer = await client.create('a', { code, unitBytes: 1024 });
  writer.write(randomBytes(cluster.world, 'data', 10_000));
  await writer.flush();
  return writer;
}

/** From now on the Hellos of a client are of another version. */
function sayVersion(t: Test, name: string): void {
  const send = MessageChannel.prototype.sendControl;
  MessageChannel.prototype.sendControl = function (message) {
    const hello = message.kind?.$case === 'hello' ? message.kind.value : undefined;
    if (hello?.name === name) hello.protocol = PROTOCOL_VERSION + 1;
    send.call(this, message);
  };
  t.teardown(() => {
    MessageChannel.prototype.sendControl = send;
  });
}

story('a client of another protocol version marks no node down, and is told why', {}, async (t, cluster) => {
  const { epoch } = await mapOf(cluster);
  const writer = await begun(cluster, 'xor(2+1)', 'w1');
  // What such a client sends: frames, and a Hello, of its version.
  const device = cluster.world.openDevice('w2');
  const connect = device.connect.bind(device);
  device.connect = async (...args) => {
    const qp = await connect(...args);
    const post = qp.postSend.bind(qp);
    qp.postSend = (wrId, region, offset, ...rest) => {
      new Uint8Array(region.buffer)[offset + 1] = PROTOCOL_VERSION + 1;
      post(wrId, region, offset, ...rest);
    };
    return qp;
  };
  sayVersion(t, 'w2');
  const other = await cluster.client('w2', { device, parity: 'host' });
  t.equal(await other.create('b').then(() => '', codeOf), 'ERR_VERSION');
  await ended(writer);
  t.equal((await mapOf(cluster)).epoch, epoch);
});

story(
  'a writer whose nodes refuse it at a reconnect ends with their reason, and blames none',
  {},
  async (t, cluster) => {
    const writer = await begun(cluster, 'xor(2+1)');
    const { epoch } = await mapOf(cluster);
    sayVersion(t, 'w1');
    const failure = new Promise<unknown>((resolve) => writer.once('error', resolve));
    for (const { host } of cluster.nodes) cluster.world.breakConnections('w1', host);
    writer.write(Buffer.alloc(5000));
    t.equal(codeOf(await failure), 'ERR_VERSION');
    t.equal((await mapOf(cluster)).epoch, epoch);
  },
);

story('a node without ring memory for a reconnect is waited for, not marked down', {}, async (t, cluster) => {
  const writer = await begun(cluster, 'xor(2+1)');
  const { epoch } = await mapOf(cluster);
  const { memory } = cluster.nodes[1]!.node as unknown as { memory: RingMemory };
  const waiting = new Promise<string>((resolve) => writer.once('waiting', resolve));
  const hoard = memory.limit - memory.used;
  memory.used += hoard;
  const take = memory.take.bind(memory);
  let asked = 0;
  memory.take = (...args) => {
    if (++asked > 5) memory.used = Math.min(memory.used, memory.limit - hoard);
    else memory.used = memory.limit;
    return take(...args);
  };
  cluster.world.breakConnections('w1', 'n2');
  writer.write(Buffer.alloc(5000));
  t.match(await waiting, /ring memory/);
  await ended(writer);
  t.ok(asked > 5);
  t.equal((await mapOf(cluster)).epoch, epoch);
});

story('a writer that is cut off from more nodes than may be lost marks none down', {}, async (t, cluster) => {
  const writer = await begun(cluster, 'xor(2+1)');
  const { epoch } = await mapOf(cluster);
  const waiting = new Promise<string>((resolve) => writer.once('waiting', resolve));
  cluster.world.partition('w1', 'n1');
  cluster.world.partition('w1', 'n2');
  writer.write(Buffer.alloc(5000));
  t.match(await waiting, /n1, n2 can't be reached from here/);
  cluster.world.heal('w1', 'n1');
  cluster.world.heal('w1', 'n2');
  await ended(writer);
  t.equal((await mapOf(cluster)).epoch, epoch);
});

story('a node that has lost only the cluster store stops no writer: it is proposed down', {}, async (t, cluster) => {
  const writer = await begun(cluster, 'xor(2+1)');
  cluster.nodes[1]!.store.cutOff();
  // The map moves on without that node.
  await registerNode(cluster.memory.client(), { id: 'n9', host: 'n9', port: 7000, controlPort: 0, state: 'down' });
  const data = randomBytes(cluster.world, 'more', 20_000);
  writer.write(data);
  await ended(writer);
  t.equal((await mapOf(cluster)).nodes.find(({ id }) => id === 'n2')?.state, 'down');
  cluster.nodes[1]!.store.heal();
  for (let i = 0; i < 100 && (await mapOf(cluster)).nodes.some(({ id, state }) => id === 'n2' && state === 'down'); i++)
    await sleep(cluster.clock('test'), 100);
  t.equal((await mapOf(cluster)).nodes.find(({ id }) => id === 'n2')?.state, 'up', 'and comes back with the store');
});

story('nor does one that can not read which file it is, though it has the map', {}, async (t, cluster) => {
  const client = await cluster.client('w1', { parity: 'host' });
  cluster.nodes[1]!.store.cutOff();
  const writer = await client.create('b', { unitBytes: 1024 });
  writer.write(randomBytes(cluster.world, 'data', 20_000));
  await ended(writer);
  t.equal((await mapOf(cluster)).nodes.find(({ id }) => id === 'n2')?.state, 'down');
});
