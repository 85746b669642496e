/** What a software device makes of whoever speaks no preamble, or a good one and then nonsense. */
import { once } from 'node:events';
import { connect as connectTcp, type Socket } from 'node:net';
import t from 'tap';
import { Access, openSoftDevice } from 'tartan-rdma';
import { TRANSPORTS, closed, until } from './soft-pair.js';

t.test('garbage connections are closed and counted, and the listener goes on', async (t) => {
  const device = openSoftDevice();
  t.teardown(() => device.close());
  const listener = await device.listen('127.0.0.1', 0, () => t.fail('nobody connected properly'));
  const preamble = Buffer.alloc(32);
  preamble.write('TARTNRDM');
  preamble.writeUInt16LE(1, 8);
  preamble.writeUInt8(1, 10);
  const garbage: Record<string, Buffer> = {
    'random bytes': Buffer.from(Array.from({ length: 100 }, (_, i) => (i * 73 + 5) & 0xff)),
    'an HTTP request': Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    'another version': Buffer.concat([preamble.subarray(0, 8), Buffer.from([2, 0]), preamble.subarray(10)]),
    'half a preamble, then nonsense': Buffer.concat([preamble.subarray(0, 16), Buffer.from('nonsense')]),
  };
  for (const [name, bytes] of Object.entries(garbage)) {
    const before = device.counters().errors;
    const socket = connectTcp(listener.port, '127.0.0.1');
    socket.write(bytes);
    await closed(socket);
    t.equal(device.counters().errors, before + 1, name);
  }
  const before = device.counters().errors;
  const silent = connectTcp(listener.port, '127.0.0.1');
  await closed(silent);
  t.equal(device.counters().errors, before + 1, 'silence');
  await listener.close();
  await device.close();
});

/** Speaks the preamble as a peer that will misbehave. */
async function rawPeer(port: number, transport: 'tcp' | 'shm'): Promise<Socket> {
  const socket =
    transport === 'tcp'
      ? connectTcp(port, '127.0.0.1')
      : connectTcp(`\0tartan-rdma/127.0.0.1:${port}`.padEnd(108, '\0'));
  const preamble = Buffer.alloc(32);
  preamble.write('TARTNRDM');
  preamble.writeUInt16LE(1, 8);
  preamble.writeUInt8(transport === 'tcp' ? 1 : 2, 10);
  socket.write(preamble);
  const [answer] = (await once(socket, 'data')) as [Buffer]; // frames may follow it
  if (!answer.subarray(0, 32).equals(preamble)) throw new Error('the device answered with another preamble');
  return socket;
}

function frame(
  type: number,
  fields: {
    follow?: number;
    status?: number;
    zero?: number;
    seq?: number;
    ack?: number;
    rkey?: number;
    offset?: number;
    length?: number;
  } = {},
): Buffer {
  const header = Buffer.alloc(32);
  header.writeUInt8(type, 0);
  header.writeUInt8(fields.follow ?? 0, 1);
  header.writeUInt8(fields.status ?? 0, 2);
  header.writeUInt8(fields.zero ?? 0, 3);
  header.writeUInt32LE(fields.seq ?? 0, 4);
  header.writeUInt32LE(fields.ack ?? 0, 8);
  header.writeUInt32LE(fields.rkey ?? 0, 12);
  header.writeUInt32LE(fields.offset ?? 0, 16);
  header.writeUInt32LE(fields.length ?? 0, 24);
  return header;
}

t.test('a connected peer that sends malformed frames is refused, and nothing else suffers', async (t) => {
  const device = openSoftDevice();
  t.teardown(() => device.close());
  const region = device.allocate(65536, Access.REMOTE_WRITE | Access.REMOTE_READ);
  const reasons: string[] = [];
  const listener = await device.listen('127.0.0.1', 0, (qp) => {
    qp.onError = (reason) => {
      reasons.push(reason);
      void qp.destroy();
    };
    qp.postRecv(0, region, 0, 64);
    device.ring();
  });
  const [WRITE, WRITE_IMM, SEND, READ, READ_DATA, ACK, NAK, MAP, MAP_FD, PLACED, PLACED_IMM] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12,
  ] as const;
  const cases: Record<string, Buffer> = {
    'an unknown type': frame(200),
    'type 0': frame(0),
    'a huge length': frame(WRITE, { rkey: region.rkey, length: 0xffffffff }),
    'a huge SEND': frame(SEND, { length: 0xffffffff }),
    'a wrong sequence number': frame(WRITE, { seq: 5, rkey: region.rkey, length: 4 }),
    'an acknowledgement of nothing': frame(ACK, { ack: 1 }),
    'reserved bits': frame(ACK, { zero: 1 }),
    'an answer to nothing': frame(READ_DATA, { length: 100 }),
    'a refusal of nothing': frame(NAK, { status: 4 }),
    'a refusal with an unknown status': frame(NAK, { status: 77 }),
    'a mapping over TCP': frame(MAP, { rkey: region.rkey }),
    'a descriptor over TCP': frame(MAP_FD, { rkey: region.rkey, length: 65536 }),
    'bytes it claims to have placed over TCP': frame(PLACED, { rkey: region.rkey, length: 1 }),
    'a payload where bare headers were announced': Buffer.concat([
      frame(ACK, { follow: 63 }),
      frame(WRITE_IMM, { rkey: region.rkey, length: 128 }),
      Buffer.alloc(128, 1),
    ]),
    'too many READs': Buffer.concat(
      Array.from({ length: 100_000 }, (_, seq) => frame(READ, { seq, rkey: region.rkey, length: 65536 })),
    ),
  };
  const casesOverShm: Record<string, Buffer> = {
    'a descriptor with a wrong key': frame(PLACED_IMM, { rkey: (region.rkey ^ 1) >>> 0, length: 1 }),
    'a descriptor that lies about where': frame(PLACED, { rkey: region.rkey, offset: 65535, length: 2 }),
    'a descriptor of nearly everything': frame(PLACED_IMM, { rkey: region.rkey, length: 0xffffffff }),
    'a mapping of an unknown region': frame(MAP, { rkey: 1 }),
    'a mapping that nobody asked for': frame(MAP_FD, { rkey: region.rkey, length: 65536 }),
    'mappings without end': Buffer.concat(Array.from({ length: 100_000 }, () => frame(MAP, { rkey: region.rkey }))),
  };
  const all = [
    ...Object.entries(cases).map(([name, bytes]) => [name, 'tcp', bytes] as const),
    ...Object.entries(casesOverShm).map(([name, bytes]) => [name, 'shm', bytes] as const),
  ];
  for (const [name, transport, bytes] of all) {
    const before = reasons.length;
    const socket = await rawPeer(listener.port, transport);
    socket.on('error', () => undefined);
    if (bytes.length > 1000) socket.pause(); // it asks and never listens
    socket.write(bytes);
    await until(() => reasons.length === before + 1);
    socket.destroy();
    t.ok(reasons[before], `${name}: ${reasons[before]}`);
  }
  // Random streams behind a good preamble: whatever they do, the device goes on.
  let seed = 12345;
  const random = (): number => ((seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 16) & 0xff;
  for (let round = 0; round < 100; round++) {
    const socket = await rawPeer(listener.port, TRANSPORTS[(round >> 1) & 1]!);
    const bytes = Buffer.from(Array.from({ length: 320 }, random));
    if (round % 2 === 0) bytes.writeUInt32LE(random() % 13, 0);
    socket.end(bytes);
    await closed(socket);
  }
  await until(() => reasons.length === all.length + 100);
  const qp = await device.connect('127.0.0.1', listener.port);
  t.equal(qp.state, 'connected');
  await device.close();
});
