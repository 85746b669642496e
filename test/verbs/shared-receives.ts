/** Shared receive queues, and a completion queue that overruns: what only an adapter has. */
import type { Test } from 'tap';
import {
  Access,
  Flag,
  openVerbsDevice,
  Opcode,
  type QueuePair,
  Status,
  statusName,
  type VerbsDevice,
} from 'tartan-rdma';
import { bytesOf, fill, Log } from '../rdma/conformance-world.js';
import { pause } from '../stories/running-cluster.js';
import { ADDRESSES, DEVICE } from './machine.js';

const { SIGNALED } = Flag;
const MESSAGE = 256;

async function until(condition: () => boolean, limitMs = 20_000): Promise<boolean> {
  for (const end = performance.now() + limitMs; !condition(); await pause(2)) if (performance.now() > end) return false;
  return true;
}

/** A server whose connections share receives, and clients of it; each side's log. */
async function world(t: Test, clients: number, depth: number) {
  const server = openVerbsDevice({ device: DEVICE, name: 'server' }),
    client = openVerbsDevice({ device: DEVICE, name: 'client' });
  t.teardown(() => Promise.all([client.close(), server.close()]));
  const shared = server.createSharedReceiveQueue(depth);
  const memory = server.allocate(64 * MESSAGE),
    source = client.allocate(64 * MESSAGE);
  fill(bytesOf(source), 7);
  const served: { qp: QueuePair; log: Log }[] = [];
  const listener = await server.listen(
    ADDRESSES[0]!,
    0,
    (qp) => {
      const log = new Log();
      log.attach(qp);
      served.push({ qp, log });
    },
    { sharedReceiveQueue: shared },
  );
  const left = new Log();
  shared.handler = left.handler;
  const connected: { qp: QueuePair; log: Log }[] = [];
  for (let i = 0; i < clients; i++) {
    const qp = await client.connect(ADDRESSES[0]!, listener.port),
      log = new Log();
    log.attach(qp);
    connected.push({ qp, log });
  }
  await until(() => served.length === clients);
  const received = () => served.flatMap(({ log }) => log.entries);
  return { server, client, shared, memory, source, served, connected, left, received };
}

/** Receives with these wrIds; the memory of each is its own, modulo 64. */
function post(
  device: VerbsDevice,
  shared: { postRecv: QueuePair['postRecv'] },
  memory: Parameters<QueuePair['postRecv']>[1],
  from: number,
  to: number,
): void {
  for (let wrId = from; wrId < to; wrId++) shared.postRecv(wrId, memory, (wrId % 64) * MESSAGE, MESSAGE);
  device.ring();
}

export function run(t: Test): void {
  t.test(
    'connections share receives: each message takes one, each receive completes once, with its bytes',
    async (t) => {
      const { server, client, shared, memory, source, connected, served, left, received } = await world(t, 4, 16);
      post(server, shared, memory, 0, 64); // More than the adapter takes at once.
      for (let n = 0; n < 15; n++)
        for (const [i, { qp }] of connected.entries())
          qp.postSend(n, source, ((n + i) % 64) * MESSAGE, 1 + n + i, SIGNALED);
      client.ring();
      t.ok(await until(() => received().length === 60), `${received().length} of 60 messages came`);
      t.same(
        received()
          .map(({ wrId }) => wrId)
          .sort((a, b) => a - b),
        Array.from({ length: 60 }, (_, i) => i),
        'the oldest receives, each once',
      );
      t.ok(received().every(({ status, opcode }) => status === Status.SUCCESS && opcode === Opcode.RECV));
      for (const [i, { log }] of served.entries()) {
        t.equal(log.entries.length, 15, `connection ${i} got its own messages`);
        const lengths = log.entries.map(({ byteLength }) => byteLength);
        t.same(
          lengths,
          lengths.map((_, n) => lengths[0]! + n),
          'in the order of sending',
        );
      }
      for (const { wrId, byteLength } of received()) {
        const got = bytesOf(memory, (wrId % 64) * MESSAGE, byteLength);
        const want = [0, 1, 2, 3].map((i) => bytesOf(source, ((byteLength - 1 - i + i) % 64) * MESSAGE, byteLength));
        if (!want.some((bytes) => Buffer.from(got).equals(bytes))) t.fail(`the bytes of receive ${wrId}`);
      }
      // A wrong key: this connection ends, the others go on.
      connected[0]!.qp.postWriteWithImm(99, source, 0, 8, 0, 0, 5, SIGNALED);
      client.ring();
      t.ok(await until(() => served.some(({ log }) => log.errors.length > 0)), 'one connection failed');
      connected[1]!.qp.postSend(100, source, 0, 9, SIGNALED);
      client.ring();
      t.ok(
        await until(() =>
          received().some(
            ({ byteLength, status }) => byteLength === 9 && status === Status.SUCCESS && received().length > 60,
          ),
        ),
        'another still receives',
      );
      await t.rejects(shared.destroy(), { code: 'ERR_IN_USE' });
      await Promise.all(served.map(({ qp }) => qp.destroy()));
      await shared.destroy();
      const all = [...received(), ...left.entries].map(({ wrId }) => wrId).sort((a, b) => a - b);
      t.same(
        all,
        Array.from({ length: 64 }, (_, i) => i),
        'every receive completed once',
      );
      t.ok(
        left.entries.every(({ status }) => status === Status.FLUSHED) && left.entries.length > 0,
        'what was left is flushed',
      );
      await memory.deregister();
      t.equal(memory.buffer.byteLength, 0, 'nothing holds the memory any more');
    },
  );

  t.test('a shared receive queue says once that few are left, and a SEND waits until there are more', async (t) => {
    const { server, client, shared, memory, source, connected, received } = await world(t, 2, 32);
    let told = 0;
    shared.onLimit = () => {
      told++;
    };
    post(server, shared, memory, 0, 12);
    shared.armLimit(4);
    t.throws(
      () => {
        shared.armLimit(32);
      },
      { code: 'ERR_ARGUMENT' },
    );
    for (let n = 0; n < 10; n++) connected[n % 2]!.qp.postSend(n, source, 0, 8, SIGNALED);
    client.ring();
    t.ok(await until(() => received().length === 10 && told > 0), 'told that few are left');
    for (let n = 10; n < 20; n++) connected[n % 2]!.qp.postSend(n, source, 0, 8, SIGNALED);
    client.ring();
    t.ok(await until(() => received().length === 12), 'the last two are taken');
    await pause(200); // Whatever came by mistake, however late, would be one too many at the end.
    t.equal(received().length, 12, 'the others wait');
    t.equal(told, 1);
    post(server, shared, memory, 12, 24);
    t.ok(await until(() => received().length === 20), 'until there are receives again');
    t.same(
      connected.map(({ log }) => log.errors.length),
      [0, 0],
    );
  });

  t.test(
    'receives of its own on a connection that shares, and memory that is none, complete with their status',
    async (t) => {
      const { server, shared, served, memory, left } = await world(t, 1, 8);
      served[0]!.qp.postRecv(1, memory, 0, 8);
      shared.postRecv(2, memory, 64 * MESSAGE - 4, 8);
      server.ring();
      t.ok(await until(() => served[0]!.log.entries.length === 1 && left.entries.length === 1));
      t.equal(statusName(served[0]!.log.entries[0]!.status), 'INVALID_REQUEST');
      t.equal(statusName(left.entries[0]!.status), 'LOCAL_PROTECTION_ERROR');
    },
  );

  t.test(
    'a completion queue that overruns ends its connections with that reason, everything posted completes, and ' +
      'the device lives on',
    async (t) => {
      const events: string[] = [];
      const device = openVerbsDevice({ device: DEVICE, adapterCompletions: 8, reserveCompletions: false });
      device.onAsyncEvent = ({ text }) => {
        events.push(text);
      };
      t.teardown(() => device.close());
      const peer = openVerbsDevice({ device: DEVICE });
      t.teardown(() => peer.close());
      const target = peer.allocate(4096, Access.REMOTE_WRITE),
        source = device.allocate(4096);
      const listener = await peer.listen(ADDRESSES[0]!, 0, () => {});
      const qp = await device.connect(ADDRESSES[0]!, listener.port),
        log = new Log();
      log.attach(qp);
      for (let n = 0; n < 100; n++) qp.postWrite(n, source, 0, 64, target.rkey, 0, SIGNALED);
      device.ring();
      // Nobody takes completions meanwhile: this thread is busy.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500);
      t.ok(await until(() => log.entries.length === 100), `${log.entries.length} of 100 completed`);
      t.same(
        log.entries.map(({ wrId }) => wrId),
        Array.from({ length: 100 }, (_, i) => i),
        'each once, in order',
      );
      t.match(log.errors, [/completion queue overran/]);
      t.ok(
        log.entries.some(({ status }) => status === Status.FLUSHED),
        'what was not known to be done is flushed',
      );
      t.match(events, [/CQ|completion queue/i], "the adapter's event is told");
      t.equal(qp.state, 'error');
      const again = await device.connect(ADDRESSES[0]!, listener.port),
        second = new Log();
      second.attach(again);
      again.postWrite(1, source, 0, 64, target.rkey, 0, SIGNALED);
      device.ring();
      t.ok(await until(() => second.entries.length === 1 || second.errors.length > 0));
      t.same(second.statuses, [[1, Status.SUCCESS]], 'a new connection works');
    },
  );
}
