/**
 * The server's side of the handshake, and a channel whose peer does not take what is sent, towards peers that
 * misbehave.
 */
import t, { type Test } from 'tap';
import { Access, type Device, Opcode, openSoftDevice, type QueuePair, Status } from 'tartan-rdma';
import { MAX_QUEUED_BYTES, MessageChannel } from '../../pipeline/channel.js';
import { Hub } from '../../pipeline/hub.js';
import { acceptSession, connectSession, MAX_UNPROVEN, proofOf, type SessionContext } from '../../pipeline/session.js';
import { realClock } from '../../wire/clock.js';
import type { Control, Hello } from '../../wire/generated/ring.js';
import { ACK_WORDS, MessageType, PROTOCOL_VERSION } from '../../wire/ring-messages.js';

const SECRET = 'a test';

function contextOf(device: Device): SessionContext {
  return { device, hub: new Hub(device), clock: realClock, secret: SECRET, clusterId: 7 };
}

/** A server that grants nothing but says yes, and a device to reach it from. */
async function serve(t: Test) {
  const server = openSoftDevice({ name: 'server' });
  const client = openSoftDevice({ name: 'client' });
  t.teardown(async () => {
    await client.close();
    await server.close();
  });
  const context = contextOf(server);
  const granted: string[] = [];
  const listener = await server.listen('127.0.0.1', 0, (qp) => {
    acceptSession(context, qp, 4, (hello) => {
      granted.push(hello.name);
      return { name: 'server', rkey: 0, slots: 0, slotBytes: 0, mapEpoch: 1, state: '', packetPort: 0 };
    });
  });
  return { server, client, context, granted, port: listener.port };
}

function helloOf(name: string): Hello {
  return {
    protocol: PROTOCOL_VERSION,
    clusterId: 7,
    nonce: Buffer.alloc(16, 1),
    mapEpoch: 0,
    k: 2,
    m: 1,
    unitBytes: 4096,
    slots: 4,
    fileId: 0,
    nodes: [],
    tags: 0,
    code: '',
    role: 'writer',
    name,
  } as unknown as Hello;
}

/** Says a Hello and proves another; resolves with what comes back of it. */
async function shake(context: SessionContext, port: number, said: Hello, proved: Hello): Promise<Control> {
  const qp = await context.device.connect('127.0.0.1', port, { transport: 'tcp' });
  const channel = new MessageChannel(context.hub, context.device, qp, 8);
  return await new Promise<Control>((resolve, reject) => {
    channel.onClosed = (reason) => {
      reject(new Error(reason));
    };
    channel.onControl = (message) => {
      if (message.kind?.$case !== 'challenge') return resolve(message);
      const proof = Buffer.from(proofOf(SECRET, 'client', proved, message.kind.value.nonce));
      channel.sendControl({ kind: { $case: 'proof', value: { proof } } });
    };
    channel.sendControl({ kind: { $case: 'hello', value: said } });
  });
}

t.test('a proof is one of the Hello that was said, of every field', async (t) => {
  const { client, granted, port } = await serve(t);
  const context = contextOf(client);
  const said = helloOf('honest');
  t.equal((await shake(context, port, said, said)).kind?.$case, 'grant');
  const others = [{ unitBytes: 8192 }, { slots: 5 }, { name: 'other' }, { fileId: 1 }, { role: 'reader' }, { k: 3 }];
  const answers = [];
  for (const other of others) answers.push(await shake(context, port, said, { ...said, ...other } as Hello));
  t.strictSame(
    answers.map(({ kind }) => (kind?.$case === 'refuse' ? kind.value.code : kind?.$case)),
    others.map(() => 'ERR_AUTHENTICATION'),
  );
  t.strictSame(granted, ['honest']);
});

t.test('a name as long as a message is refused as any other, and its channel closed', async (t) => {
  const { client, port } = await serve(t);
  const long = { ...helloOf('n'.repeat(3900)), protocol: 99 };
  const answer = await shake(contextOf(client), port, long, long);
  t.match(answer, { kind: { $case: 'refuse', value: { code: 'ERR_VERSION' } } });
});

t.test('who connects and proves nothing costs the oldest of its kind its place, and nobody else theirs', async (t) => {
  const { client, port } = await serve(t);
  const crowd: QueuePair[] = [];
  for (let i = 0; i < MAX_UNPROVEN + 2; i++) crowd.push(await client.connect('127.0.0.1', port, { transport: 'tcp' }));
  const ended = new Promise<void>((resolve) => {
    crowd[0]!.onError = () => {
      resolve();
    };
  });
  const session = await connectSession(contextOf(client), '127.0.0.1', port, { role: 'writer', name: 'honest' });
  t.equal(session.channel.qp.transport, 'shm');
  await ended;
  t.equal(crowd.at(-1)!.state, 'connected', 'the youngest still has time');
  await session.channel.destroy('done');
});

t.test('nothing more is received from a peer that does not take what is queued for it', async (t) => {
  const receives = 8;
  const posted: number[] = [];
  const sends: number[] = [];
  const qp = {
    postRecv: (wrId: number) => posted.push(wrId),
    postSend: (wrId: number) => sends.push(wrId),
  } as unknown as QueuePair;
  const device = {
    allocate: (byteLength: number, access: number = Access.LOCAL) => ({
      buffer: new ArrayBuffer(byteLength),
      ...{ byteLength, access },
    }),
    ring: () => undefined,
  } as unknown as Device;
  const channel = new MessageChannel(new Hub(device), device, qp, undefined);
  channel.grow(device, receives);
  const free = posted.splice(0);
  // It asks: each of its writes is answered with records.
  channel.onWrite = () => {
    const queue = channel.records(MessageType.ACK);
    for (let i = 0; i < 256; i++) queue.push();
    channel.flush();
  };
  let asked = 0;
  while (free.length > 0) {
    qp.handler(Opcode.RECV_WRITE_WITH_IMM, Status.SUCCESS, free.shift()!, 0, 0, 0);
    free.push(...posted.splice(0));
    asked++;
    if (asked > 10_000) break;
  }
  const bound = MAX_QUEUED_BYTES + (receives + 1) * 256 * ACK_WORDS * 4;
  t.ok(channel.queuedBytes <= bound, `${channel.queuedBytes} bytes after ${asked} requests`);
  // It takes them after all: its receives come back.
  while (sends.length > 0) {
    qp.handler(Opcode.SEND, Status.SUCCESS, sends.shift()!, 0, 0, 0);
    channel.flush();
  }
  t.equal(channel.queuedBytes, 0);
  t.equal(posted.length, receives);
});
