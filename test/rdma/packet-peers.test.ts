/** What a packet socket believes of acknowledgements, and what becomes of chunks that were acknowledged and let go. */
import { createSocket, type Socket } from 'node:dgram';
import t from 'tap';
import { ipv4Of, openSoftDevice, type PacketSocket, Status } from 'tartan-rdma';
import { PAGE_BYTES, unitSlotBytes } from '../../wire/slot-layout.js';
import { NAME, makeStripe } from '../p4/stripe-packets.js';

const HOST = '127.0.0.1';
const UNIT_BYTES = 4096;
const HEADER_BYTES = 88;
const OFFSET_AT = 16; // of the chunk, in a packet's header
const device = openSoftDevice();
t.teardown(() => device.close());

function bound(): Promise<Socket> {
  const socket = createSocket('udp4');
  return new Promise((resolve) => {
    socket.bind(0, HOST, () => {
      resolve(socket);
    });
  });
}

interface Way {
  readonly writer: PacketSocket;
  readonly node: PacketSocket;
  readonly arrived: Buffer[];
  /** Sends one unit by the relay, or to another port; resolves with its status. */
  send(port?: number): Promise<number>;
  readonly payload: Buffer;
  readonly relay: Socket;
}

/** A writer and a node with a relay between them, which decides what passes. */
async function way(relayed: (packet: Buffer, isToNode: boolean, pass: () => void) => void): Promise<Way> {
  const writer = await device.openPacketSocket!(HOST, 0);
  const node = await device.openPacketSocket!(HOST, 0);
  const relay = await bound();
  relay.on('message', (packet, from) => {
    const isToNode = from.port === writer.port;
    relayed(packet, isToNode, () => relay.send(packet, isToNode ? node.port : writer.port, HOST));
  });
  const slotBytes = unitSlotBytes(UNIT_BYTES);
  const slots = device.allocate(4 * slotBytes);
  const arrived: Buffer[] = [];
  const receiver = node.createReceiver(
    {
      peerAddress: ipv4Of(HOST),
      peerPort: relay.address().port,
      fileId: NAME.fileId,
      writerEpoch: NAME.writerEpoch,
      region: slots,
      slots: 4,
      slotBytes,
      unitBytes: UNIT_BYTES,
      reclaimMs: 50,
    },
    (slot, headerBytes, byteLength) => {
      arrived.push(Buffer.from(slots.buffer.slice(slot * slotBytes + PAGE_BYTES).slice(0, byteLength - headerBytes)));
      receiver.release(slot, true);
    },
    () => undefined,
  );
  const stripe = makeStripe(
    2,
    1,
    UNIT_BYTES,
    Uint8Array.from({ length: 2 * UNIT_BYTES }, (_, i) => (i * 7 + (i >> 8)) & 0xff),
  );
  const region = device.allocate(2 * UNIT_BYTES);
  const bytes = new Uint8Array(region.buffer);
  bytes.set(stripe.headers[0]!, 0);
  bytes.set(stripe.units[0]!, UNIT_BYTES);
  const sent: ((status: number) => void)[] = [];
  const sender = writer.createSender((_opcode, status, wrId) => sent[wrId]!(status));
  const send = (port = relay.address().port): Promise<number> =>
    new Promise((resolve) => {
      sender.postUnit(
        sent.push(resolve) - 1,
        region,
        0,
        HEADER_BYTES,
        UNIT_BYTES,
        UNIT_BYTES,
        1024,
        ipv4Of(HOST),
        port,
      );
      device.ring();
    });
  return { writer, node, arrived, send, relay, payload: Buffer.from(stripe.units[0]!) };
}

t.test('chunks that were acknowledged and let go are sent again, and the unit arrives whole', async (t) => {
  let node: PacketSocket | undefined;
  const { arrived, send, payload, relay, ...ends } = await way((packet, isToNode, pass) => {
    const isLast = isToNode && packet.readUInt32BE(OFFSET_AT) === 3072;
    if (!isLast || node!.counters().reclaimed > 0) pass();
  });
  node = ends.node;
  t.equal(await send(), Status.SUCCESS);
  t.equal(node.counters().reclaimed, 1);
  t.strictSame(arrived, [payload]);
  relay.close();
});

t.test('an acknowledgement counts only from where the unit was sent', async (t) => {
  const stranger = await bound();
  let writer: PacketSocket | undefined;
  const { send, relay, ...ends } = await way((packet, isToNode, pass) => {
    if (isToNode || writer!.counters().unknown > 0) pass();
    else stranger.send(packet, writer!.port, HOST);
  });
  writer = ends.writer;
  t.equal(await send(), Status.SUCCESS);
  t.ok(writer.counters().unknown > 0, 'what the stranger said changed nothing');
  relay.close();
  stranger.close();
});

t.test('a unit under way to a node that is silent does not take the acknowledgements of another', async (t) => {
  const silent = await bound();
  const { send, relay, writer, arrived, payload } = await way((_packet, _isToNode, pass) => {
    pass();
  });
  // The same unit, by name: it was to go to one node, and now goes to another.
  const first = send(silent.address().port);
  t.equal(await send(), Status.SUCCESS);
  t.strictSame(arrived, [payload]);
  silent.close();
  await writer.close();
  t.equal(await first, Status.FLUSHED);
  relay.close();
});
