/**
 * The packet data plane of the soft device: packets that are wrong, damaged, of strangers, of a unit that never becomes
 * whole. Each is counted for what it is, reaches no slot, and both sides go on.
 */
import { createSocket, type Socket } from 'node:dgram';
import t from 'tap';
import { Status, ipv4Of, type PacketCounters } from 'tartan-rdma';
import { crc32c } from '../../erasure/code/index.js';
import { PACKET_HEADER_BYTES, PacketType, encodePacketHeader } from '../../wire/packet-header.js';
import { NAME } from '../p4/stripe-packets.js';
import {
  HOST,
  SLOTS,
  device,
  Sink,
  place,
  namedStripe,
  randomData,
  bytesOf,
  mulberry,
  halfOf,
  seed,
} from './packet-sink.js';

t.comment(`TARTAN_TEST_SEED=${seed}`);
t.teardown(() => device.close());

t.test(
  'packets that are wrong, of nobody known, or of a full receiver are dropped and counted, and reach no slot',
  async (t) => {
    const receiving = await device.openPacketSocket!(HOST, 0);
    const raw = createSocket('udp4');
    await new Promise<void>((resolve) => {
      raw.bind(0, HOST, resolve);
    });
    // Slots that wait for the rest of a unit are not reclaimed, however slow this machine is.
    const sink = new Sink(receiving, 4096).receive({ port: raw.address().port }, NAME.writerEpoch, 3_600_000);
    const stranger = createSocket('udp4');
    const stripe = namedStripe(2, 1, 1024, randomData(bytesOf(mulberry(7)), 2048), 5000);
    const unitPacket = (
      unit: number,
      change: (packet: Uint8Array) => void = () => undefined,
      reseal = true,
    ): Uint8Array => {
      const header = stripe.headers[unit]!,
        packet = new Uint8Array(PACKET_HEADER_BYTES + header.length + 1024);
      packet.set(header, PACKET_HEADER_BYTES);
      packet.set(stripe.units[unit]!, PACKET_HEADER_BYTES + header.length);
      const seal = () => {
        encodePacketHeader(
          { type: PacketType.UNIT, k: 2, m: 1, group: 0, mapEpoch: NAME.mapEpoch, offset: 0, chunkBytes: 1024 },
          packet,
          header.length,
        );
      };
      seal();
      change(packet);
      if (reseal) {
        const kept = packet.slice(0, PACKET_HEADER_BYTES);
        kept.fill(0, 22, 24);
        packet.set(kept);
        sumInto(packet);
      }
      return packet;
    };
    /** Recomputes the checksum over what stands there. */
    function sumInto(packet: Uint8Array): void {
      let sum = 0;
      for (let i = 0; i < Math.min(packet.length, 112); i += 2) sum += (packet[i]! << 8) | packet[i + 1]!;
      while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
      new DataView(packet.buffer).setUint16(22, ~sum & 0xffff);
    }
    const expectDrop = async (reason: keyof PacketCounters, packet: Uint8Array, from: Socket = raw): Promise<void> => {
      const before = receiving.counters();
      from.send(packet, receiving.port, HOST);
      // A packet is counted as received first, and judged by the engine's thread when it pleases.
      await judged(before);
      t.equal(receiving.counters()[reason], before[reason] + 1, reason);
      t.equal(sink.arrived.length, 0, 'nothing arrived');
    };
    /** One packet more than `before` was dropped, for whatever reason. */
    const judged = async (before: PacketCounters): Promise<void> => {
      const dropped = ({ malformed, unknown, stale, noSlot, mismatch }: PacketCounters): number =>
        malformed + unknown + stale + noSlot + mismatch;
      while (dropped(receiving.counters()) === dropped(before)) await new Promise((resolve) => setImmediate(resolve));
    };
    await expectDrop('malformed', unitPacket(0).subarray(0, 20));
    await expectDrop('malformed', unitPacket(0).subarray(0, 100));
    await expectDrop(
      'malformed',
      unitPacket(
        0,
        (packet) => {
          packet[30]! ^= 1;
        },
        false,
      ),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[4] = 2;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[6] = 3;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[5] = PacketType.STRIPE;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[19] = 1;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[PACKET_HEADER_BYTES + 6] = 200;
        packet[6] = 200;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[PACKET_HEADER_BYTES + 32]! ^= 0xff;
      }),
    );
    await expectDrop(
      'malformed',
      unitPacket(0, (packet) => {
        packet[12]! ^= 1;
      }),
    );
    await expectDrop('malformed', unitPacket(0).subarray(0, 1000));
    await expectDrop(
      'unknown',
      unitPacket(0, (packet) => {
        packet[PACKET_HEADER_BYTES + 16]! ^= 1;
      }),
    );
    await expectDrop(
      'unknown',
      unitPacket(0, (packet) => {
        packet[PACKET_HEADER_BYTES + 44]! ^= 1;
      }),
    );
    await expectDrop('unknown', unitPacket(0), stranger);
    // A parity packet whose payload is not the one its header speaks of.
    await expectDrop(
      'mismatch',
      unitPacket(2, (packet) => {
        packet[5] = PacketType.PARITY;
        packet[packet.length - 1]! ^= 1;
      }),
    );
    const words = new Uint32Array(stripe.headers[0]!.slice().buffer);
    t.equal(words[14], crc32c(stripe.units[0]!), 'the stripe is as it should be: only what was changed was wrong');
    sink.held = true;
    raw.send(unitPacket(0), receiving.port, HOST);
    await new Promise<void>((resolve) => {
      sink.onArrived = resolve;
    });
    t.same(sink.arrived, [{ header: stripe.headers[0]!, payload: stripe.units[0]! }], 'and the right one arrives');
    sink.arrived.length = 0;
    // Fill the other slots with units of which a part is missing, then one more.
    const before = receiving.counters();
    for (let i = 1; i < SLOTS; i++) {
      const other = namedStripe(2, 1, 1024, stripe.units[0]!.slice(), 6000 + i);
      const packet = halfOf(other);
      raw.send(packet, receiving.port, HOST);
    }
    // One that comes before they have all been counted would be taken for the one that finds no slot.
    while (receiving.counters().packetsReceived < before.packetsReceived + SLOTS - 1)
      await new Promise((resolve) => setImmediate(resolve));
    await expectDrop('noSlot', halfOf(namedStripe(2, 1, 1024, stripe.units[0]!.slice(), 7000)));
    t.ok(receiving.counters().packetsReceived > before.packetsReceived);
    raw.close();
    stranger.close();
    await receiving.close();
  },
);

t.test('a unit that stays incomplete loses its slot; cancelled and flushed requests complete', async (t) => {
  const writer = await device.openPacketSocket!(HOST, 0),
    receiving = await device.openPacketSocket!(HOST, 0);
  const sink = new Sink(receiving, 4096).receive({ port: writer.port }, NAME.writerEpoch, 100);
  const region = device.allocate(1 << 20);
  const statuses: number[] = [];
  let done: () => void = () => undefined;
  const sender = writer.createSender((_opcode, status) => {
    statuses.push(status);
    done();
  });
  const stripe = namedStripe(2, 1, 4096, randomData(bytesOf(mulberry(3)), 8192), 9000);
  const layout = place(stripe, region, 0);
  const next = () =>
    new Promise<void>((resolve) => {
      done = resolve;
    });
  // Nobody listens there: it can only be given up.
  const cancelled = next();
  sender.postUnit(1, region, layout.dataHeadersOffset, 88, layout.unitsOffset, 4096, 1024, ipv4Of(HOST), 9);
  device.ring();
  sender.cancel(1);
  device.ring();
  await cancelled;
  t.same(statuses, [Status.FLUSHED]);
  const refused = next();
  sender.postUnit(2, region, region.byteLength - 10, 88, layout.unitsOffset, 4096, 1024, ipv4Of(HOST), 9);
  device.ring();
  await refused;
  t.same(statuses.slice(1), [Status.LOCAL_PROTECTION_ERROR]);
  // Only a part of a unit ever comes.
  const part = halfOf(stripe);
  const raw = createSocket('udp4');
  await new Promise<void>((resolve) => {
    raw.bind(0, HOST, resolve);
  });
  const second = new Sink(receiving, 4096).receive({ port: raw.address().port }, NAME.writerEpoch, 100);
  raw.send(part, receiving.port, HOST);
  while (receiving.counters().reclaimed === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  t.equal(receiving.counters().reclaimed, 1, 'its slot is free again');
  t.same([sink.arrived.length, second.arrived.length], [0, 0]);
  raw.close();
  const flushed = next();
  sender.postUnit(3, region, layout.dataHeadersOffset, 88, layout.unitsOffset, 4096, 1024, ipv4Of(HOST), 9);
  device.ring();
  await writer.close();
  await flushed;
  t.same(statuses.slice(2), [Status.FLUSHED]);
  await receiving.close();
});

t.test('damaged packets of every kind, thousands of them, are counted one by one, and both sides go on', async (t) => {
  const random = bytesOf(mulberry(seed ^ 77));
  const receiving = await device.openPacketSocket!(HOST, 0),
    writer = await device.openPacketSocket!(HOST, 0);
  const raw = createSocket('udp4');
  await new Promise<void>((resolve) => {
    raw.bind(0, HOST, resolve);
  });
  const sink = new Sink(receiving, 4096).receive({ port: raw.address().port }, NAME.writerEpoch, 50);
  const sender = writer.createSender(() => undefined);
  const region = device.allocate(1 << 20);
  const stripe = namedStripe(3, 2, 1024, randomData(random, 3000), 12_000),
    layout = place(stripe, region, 0);
  // Something is under way to which wrong acknowledgements might seem to belong.
  sender.postUnit(1, region, layout.dataHeadersOffset, 88, layout.unitsOffset, 1024, 256, ipv4Of(HOST), 9);
  device.ring();
  const good = [
    ...stripe.headers.map((header, unit) => {
      const packet = new Uint8Array(PACKET_HEADER_BYTES + header.length + 512);
      packet.set(header, PACKET_HEADER_BYTES);
      packet.set(stripe.units[unit]!.subarray(0, 512), PACKET_HEADER_BYTES + header.length);
      return {
        packet,
        type: unit < 3 ? PacketType.UNIT : random(2) === 0 ? PacketType.UNIT : PacketType.PARITY,
        to: receiving.port,
        headerBytes: header.length,
      };
    }),
    { packet: new Uint8Array(PACKET_HEADER_BYTES + 16 + 2 * 40), type: 6, to: writer.port, headerBytes: 0 },
  ];
  const view = new DataView(good.at(-1)!.packet.buffer);
  view.setBigUint64(24, BigInt(NAME.fileId), true);
  view.setUint32(32, NAME.writerEpoch, true);
  for (const at of [40, 80]) {
    view.setBigUint64(at, BigInt(NAME.stripe), true);
    view.setUint32(at + 8, NAME.counter, true);
    view.setUint32(at + 12, NAME.mapEpoch, true);
  }
  const packets = 6000;
  for (let i = 0; i < packets; i++) {
    const { packet: whole, type, to, headerBytes } = good[random(good.length)]!;
    const packet = whole.slice(0, random(10) === 0 ? random(whole.length + 1) : whole.length);
    const seal = (): void => {
      if (packet.length >= PACKET_HEADER_BYTES + Math.min(headerBytes, 88))
        encodePacketHeader(
          {
            type,
            k: type === 6 ? 0 : 3,
            m: type === 6 ? 0 : 2,
            group: 0,
            mapEpoch: type === 6 ? 0 : NAME.mapEpoch,
            offset: random(2) * 512,
            chunkBytes: type === 6 ? 2 : 512,
          },
          packet,
          headerBytes,
        );
    };
    const damage = (): void => {
      for (let n = random(4); n > 0 && packet.length > 0; n--) packet[random(packet.length)]! ^= 1 << random(8);
    };
    // Damaged before it is sealed: the checksum holds, what it covers does not.
    if (random(2) === 0) {
      damage();
      seal();
    } else {
      seal();
      damage();
    }
    await new Promise<void>((resolve) => {
      raw.send(packet, to, HOST, () => {
        resolve();
      });
    });
  }
  const settled = () => receiving.counters().packetsReceived + writer.counters().packetsReceived;
  for (let before = -1; before !== settled(); ) {
    before = settled();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  t.ok(settled() > packets * 0.9, `${settled()} of ${packets} came`);
  const { malformed, unknown, stale, noSlot, mismatch } = receiving.counters();
  t.comment(JSON.stringify({ malformed, unknown, stale, noSlot, mismatch, arrived: sink.arrived.length }));
  t.ok(malformed > 100 && unknown > 10 && writer.counters().malformed > 100);
  // Both sides still do what they should. (What was under way still is: nobody at its address acknowledged anything.)
  sender.cancel(1);
  const second = new Sink(receiving, 4096).receive(writer);
  sender.postUnit(2, region, layout.dataHeadersOffset, 88, layout.unitsOffset, 1024, 256, ipv4Of(HOST), receiving.port);
  device.ring();
  while (second.arrived.length === 0)
    await new Promise<void>((resolve) => {
      second.onArrived = resolve;
    });
  t.same(second.arrived, [{ header: stripe.headers[0]!, payload: stripe.units[0]! }]);
  raw.close();
  await writer.close();
  await receiving.close();
});
