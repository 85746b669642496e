/**
 * Peers that break the protocol on purpose, or say nothing at all: whatever they do costs them their connection, and
 * nobody else anything.
 */
import t from 'tap';
import { Access, type Device, Flag, openSoftDevice, type QueuePair, Status, statusName } from 'tartan-rdma';
import { Frame, frame, RawPeer } from './raw-peer.js';

const MESSAGE_BYTES = 256;
const SENDS = 4;
const RECEIVES = 8;

interface Served {
  readonly qp: QueuePair;
  readonly statuses: string[];
  readonly reasons: string[];
}

/** A device that listens and sends each newcomer some messages, as a server that challenges its clients does. */
class Server {
  readonly device: Device = openSoftDevice({ name: 'server' });
  readonly memory = this.device.allocate(RECEIVES * MESSAGE_BYTES);
  readonly granted = this.device.allocate(4096, Access.REMOTE_WRITE | Access.REMOTE_READ);
  readonly served: Served[] = [];
  port = 0;
  #wake: () => void = () => undefined;

  static async start(): Promise<Server> {
    const server = new Server();
    const listener = await server.device.listen('127.0.0.1', 0, (qp) => server.#serve(qp));
    server.port = listener.port;
    return server;
  }

  #serve(qp: QueuePair): void {
    const served: Served = { qp, statuses: [], reasons: [] };
    this.served.push(served);
    qp.handler = (_opcode, status) => {
      served.statuses.push(statusName(status));
      this.#wake();
    };
    qp.onError = (reason) => {
      served.reasons.push(reason);
      this.#wake();
    };
    for (let i = 0; i < RECEIVES; i++) qp.postRecv(100 + i, this.memory, i * MESSAGE_BYTES, MESSAGE_BYTES);
    for (let i = 0; i < SENDS; i++) qp.postSend(i, this.memory, 0, 64, Flag.SIGNALED);
    this.#wake();
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition())
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
  }

  /** A client that keeps to the protocol is served. */
  async servesOthers(): Promise<boolean> {
    const client = openSoftDevice({ name: 'client' });
    try {
      const memory = client.allocate(4096);
      const qp = await client.connect('127.0.0.1', this.port, { transport: 'tcp' });
      const got = await new Promise<number>((resolve) => {
        qp.handler = (_opcode, status) => resolve(status);
        qp.postSend(1, memory, 0, 16, Flag.SIGNALED);
        client.ring();
      });
      return got === Status.SUCCESS;
    } finally {
      await client.close();
    }
  }
}

/** Frames that end a connection; the peer has taken two messages by then and acknowledged none. */
const BREACHES: Readonly<Record<string, Buffer>> = {
  'of an unknown type': frame({ type: 99 }),
  'with reserved fields set': frame({ type: Frame.ACK, zero: 1 }),
  'that acknowledges what was never sent': frame({ type: Frame.ACK, ack: 3 }),
  'out of sequence': frame({ type: Frame.SEND, seq: 7, length: 16 }),
  'that answers nothing': frame({ type: Frame.READ_DATA, seq: 0, length: 16 }),
  'that answers a request not yet sent': frame({ type: Frame.READ_DATA, seq: 3, length: 16 }),
  'longer than any receive': frame({ type: Frame.SEND, length: MESSAGE_BYTES + 1 }),
  'of shared memory': frame({ type: Frame.PLACED, length: 16 }),
  'that refuses with an unknown status': frame({ type: Frame.NAK, status: 200 }),
};

for (const [name, breach] of Object.entries(BREACHES)) {
  t.test(`a frame ${name}, and anything after it, ends its own connection alone`, async (t) => {
    const server = await Server.start();
    t.teardown(() => server.device.close());
    const peer = await RawPeer.open(server.port);
    peer.write(frame({ type: Frame.ACK, recvs: 2 }));
    await peer.until(() => peer.frames().filter((head) => head[0] === Frame.SEND).length === 2);
    peer.write(breach);
    const [served] = server.served;
    await server.until(() => served!.reasons.length > 0);
    // The server has said why and lingers: each of these would be news to a queue pair that still listened.
    await peer.until(() => peer.frames().some((head) => head[0] === Frame.NAK));
    peer.write(Buffer.of(1));
    peer.write(
      frame({ type: Frame.ACK, ack: 2, recvs: 100 }),
      frame({ type: Frame.SEND, length: 16 }),
      Buffer.alloc(16),
    );
    await server.until(() => served!.statuses.length >= SENDS + RECEIVES);
    t.ok(await server.servesOthers());
    const expected = name === 'longer than any receive' ? ['LENGTH_ERROR'] : [];
    t.strictSame(
      served!.statuses,
      [...expected, ...new Array<string>(SENDS + RECEIVES - expected.length).fill('FLUSHED')],
      'one completion for each request',
    );
    t.equal(served!.reasons.length, 1);
    await served!.qp.destroy();
    t.equal(served!.statuses.length, SENDS + RECEIVES);
    peer.destroy();
  });
}

t.test('a crowd that connects and says nothing locks nobody out: its oldest goes first', async (t) => {
  const server = await Server.start();
  t.teardown(() => server.device.close());
  const crowd: RawPeer[] = [];
  for (let i = 0; i < 300; i++) crowd.push(await RawPeer.silent(server.port));
  t.ok(await server.servesOthers());
  await crowd[0]!.closed();
  t.notOk(crowd.at(-1)!.isClosed, 'the youngest may still speak');
  const client = openSoftDevice({ name: 'neighbour' });
  t.equal((await client.connect('127.0.0.1', server.port, { transport: 'shm' })).transport, 'shm');
  await client.close();
  for (const peer of crowd) peer.destroy();
});
