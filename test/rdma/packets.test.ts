/**
 * The packet data plane of the soft device: units and stripes as packets, lost, overtaking each other and damaged, and
 * what arrives in the slots. A switch that computes stands between as the executor of p4/parity.p4.
 */
import { createSocket, type Socket } from 'node:dgram';
import { randomInt } from 'node:crypto';
import t from 'tap';
import {
  Opcode,
  Status,
  ipv4Of,
  openSoftDevice,
  type MemoryRegion,
  type PacketCounters,
  type PacketSocket,
} from 'tartan-rdma';
import { crc32c } from '../../erasure/code/index.js';
import { PACKET_HEADER_BYTES, PacketType, encodePacketHeader } from '../../wire/packet-header.js';
import { PAGE_BYTES, stripeSlotLayout, unitSlotBytes, headerOffsetIn } from '../../wire/slot-layout.js';
import { headerBytesOf } from '../../wire/unit-header.js';
import { loadProgram, classes } from '../p4/artefacts.js';
import { Bmv2Executor } from '../p4/bmv2-executor.js';
import { udpFrame, TO_SWITCH } from '../p4/frames.js';
import { groupEntries, node, serviceEntry } from '../p4/parity-entries.js';
import { NAME, makeStripe, type Stripe } from '../p4/stripe-packets.js';

const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(1, 2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);
const HOST = '127.0.0.1';
const SLOTS = 16;

const device = openSoftDevice();
t.teardown(() => device.close());

interface Arrived {
  header: Uint8Array;
  payload: Uint8Array;
}

/** A node's end: hands on what arrives, and releases its slots at once. */
class Sink {
  readonly arrived: Arrived[] = [];
  /** unit, stripe, counter, map epoch */
  readonly duplicates: number[][] = [];
  onArrived: (() => void) | undefined;
  region!: MemoryRegion;
  held = false;
  readonly waiting: number[] = [];
  release!: (slot: number, durable: boolean) => void;

  constructor(
    readonly socket: PacketSocket,
    readonly unitBytes: number,
  ) {}

  receive(from: { port: number }, writerEpoch = NAME.writerEpoch, reclaimMs?: number): this {
    const slotBytes = unitSlotBytes(this.unitBytes);
    this.region = device.allocate(SLOTS * slotBytes);
    const bytes = new Uint8Array(this.region.buffer);
    const onUnit = (slot: number, headerBytes: number, byteLength: number): void => {
      const at = slot * slotBytes + PAGE_BYTES;
      this.arrived.push({
        header: bytes.slice(at - headerBytes, at),
        payload: bytes.slice(at, at + byteLength - headerBytes),
      });
      if (this.held) this.waiting.push(slot);
      else receiver.release(slot, true);
      this.onArrived?.();
    };
    const receiver = this.socket.createReceiver(
      {
        peerAddress: ipv4Of(HOST),
        peerPort: from.port,
        fileId: NAME.fileId,
        writerEpoch,
        region: this.region,
        slots: SLOTS,
        slotBytes,
        unitBytes: this.unitBytes,
        ...(reclaimMs !== undefined && { reclaimMs }),
      },
      onUnit,
      (...duplicate) => {
        this.duplicates.push(duplicate);
        this.onArrived?.();
      },
    );
    this.release = (slot, durable) => {
      receiver.release(slot, durable);
      device.ring();
    };
    return this;
  }
}

/** Puts a stripe where a writer has it; parity only for tests of unit packets. */
function place(stripe: Stripe, region: MemoryRegion, base: number): ReturnType<typeof stripeSlotLayout> {
  const { k, m } = stripe.code,
    layout = stripeSlotLayout(k, m, stripe.unitBytes),
    bytes = new Uint8Array(region.buffer);
  stripe.headers.forEach((header, unit) => {
    bytes.set(header, base + headerOffsetIn(layout, unit));
  });
  stripe.units.forEach((unit, index) => {
    bytes.set(unit, base + layout.unitsOffset + index * stripe.unitBytes);
  });
  return layout;
}

/** Stripes of one file that differ by their counter and stripe number. */
function namedStripe(k: number, m: number, unitBytes: number, data: Uint8Array, counter: number): Stripe {
  Object.assign(NAME, { counter, stripe: 0x1_0000_0000 + counter });
  return makeStripe(k, m, unitBytes, data);
}

function randomData(random: (below: number) => number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, () => random(256));
}

const bytesOf = (random: () => number) => (below: number) => Math.floor(random() * below);

t.test('units in packets arrive whole, whatever is lost and overtaken, once each', async (t) => {
  const random = bytesOf(mulberry(seed));
  for (const [lossPerMille, reorderPerMille] of [
    [0, 0],
    [10, 100],
    [100, 300],
  ] as const) {
    const impaired = (salt: number) =>
      lossPerMille === 0 ? {} : { impairment: { seed: (seed ^ salt) >>> 0 || 1, lossPerMille, reorderPerMille } };
    const writer = await device.openPacketSocket!(HOST, 0, impaired(1)),
      receiving = await device.openPacketSocket!(HOST, 0, impaired(2));
    const sink = new Sink(receiving, 65536).receive(writer);
    const region = device.allocate(8 << 20);
    const done: number[] = [];
    let finished: () => void = () => undefined;
    const sender = writer.createSender((opcode, status, wrId) => {
      if (opcode !== Opcode.SEND_UNIT || status !== Status.SUCCESS)
        throw new Error(`completion ${opcode} with ${status}`);
      done.push(wrId);
      finished();
    });
    const wanted: Arrived[] = [];
    for (let round = 0; round < 12; round++) {
      const k = 1 + random(8),
        m = 1 + random(4),
        unitBytes = 512 << random(8);
      const stripe = namedStripe(
        k,
        m,
        unitBytes,
        randomData(random, 1 + random(k * unitBytes)),
        100 * (lossPerMille + 1) + round,
      );
      const layout = place(stripe, region, 0);
      const unit = random(k + m); // a node holds one unit of a stripe
      wanted.push({ header: stripe.headers[unit]!, payload: stripe.units[unit]! });
      const all = new Promise<void>((resolve) => {
        finished = resolve;
      });
      sender.postUnit(
        unit,
        region,
        headerOffsetIn(layout, unit),
        headerBytesOf(unit, k),
        layout.unitsOffset + unit * unitBytes,
        stripe.units[unit]!.length,
        [256, 1336, 8900][random(3)]!,
        ipv4Of(HOST),
        receiving.port,
      );
      device.ring();
      await all;
      while (sink.arrived.length < wanted.length)
        await new Promise<void>((resolve) => {
          sink.onArrived = resolve;
        });
    }
    t.same(sink.arrived, wanted, `loss ${lossPerMille / 10} %`);
    t.equal(done.length, wanted.length);
    const { malformed, unknown, stale, noSlot, mismatch, packetsRetransmitted } = receiving.counters();
    t.same(
      { malformed, unknown, stale, noSlot, mismatch },
      { malformed: 0, unknown: 0, stale: 0, noSlot: 0, mismatch: 0 },
    );
    if (lossPerMille === 0) t.equal(packetsRetransmitted, 0);
    await writer.close();
    await receiving.close();
    await region.deregister();
    await sink.region.deregister();
  }
});

function mulberry(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The first half of a stripe's first unit, as one packet of 512 bytes. */
function halfOf(stripe: Stripe): Uint8Array {
  const header = stripe.headers[0]!,
    packet = new Uint8Array(PACKET_HEADER_BYTES + header.length + 512);
  packet.set(header, PACKET_HEADER_BYTES);
  packet.set(stripe.units[0]!.subarray(0, 512), PACKET_HEADER_BYTES + header.length);
  encodePacketHeader(
    { type: PacketType.UNIT, k: 2, m: 1, group: 0, mapEpoch: NAME.mapEpoch, offset: 0, chunkBytes: 512 },
    packet,
    header.length,
  );
  return packet;
}

/**
 * The P4 program between a writer and its nodes; nodes know it by its own address, so it carries acknowledgements back.
 */
class ExecutorSwitch {
  readonly executor: Bmv2Executor;
  readonly socket: Socket = createSocket('udp4');
  writerPort = 0;
  /** Share of 1000 lost on each side. */
  lossPerMille = 0;

  constructor(
    readonly className: string,
    readonly random: (below: number) => number,
    readonly ports: () => readonly number[],
  ) {
    const { json, program } = loadProgram(className);
    this.executor = new Bmv2Executor(json, program);
    this.executor.write(serviceEntry(program));
    this.socket.on('message', (packet, { port }) => {
      this.take(packet, port);
    });
  }

  enter(group: number, k: number, m: number, without: readonly number[] = []): void {
    this.executor.write(...groupEntries(loadProgram(this.className).program, group, k, m, without));
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => {
      this.socket.bind(0, HOST, resolve);
    });
    return this.socket.address().port;
  }

  private take(packet: Uint8Array, from: number): void {
    if (this.random(1000) < this.lossPerMille) return;
    if (from !== this.writerPort) {
      this.socket.send(packet, this.writerPort, HOST);
      return;
    }
    for (const copy of this.executor.process(1, udpFrame(TO_SWITCH, packet))) {
      if (this.random(1000) < this.lossPerMille) continue;
      const unit = Array.from({ length: 12 }, (_, each) => node(each).port).indexOf(copy.port);
      this.socket.send(copy.bytes.subarray(14 + 28), this.ports()[unit]!, HOST);
    }
  }
}

for (const [name, { k: most, chunkBytes }] of Object.entries(classes)) {
  t.test(
    `${name}: stripes go through the switch program and arrive as the host's own units, 5 % lost on every hop`,
    async (t) => {
      const random = bytesOf(mulberry(seed ^ most ^ chunkBytes));
      const sinks: Sink[] = [];
      const between = new ExecutorSwitch(name, random, () => sinks.map(({ socket }) => socket.port));
      const port = await between.listen();
      const writer = await device.openPacketSocket!(HOST, 0);
      between.writerPort = writer.port;
      for (let u = 0; u < 12; u++)
        sinks.push(new Sink(await device.openPacketSocket!(HOST, 0), 4096).receive({ port }));
      const region = device.allocate(1 << 20);
      let settle: (status: number) => void = () => undefined;
      const sender = writer.createSender((_opcode, status) => {
        settle(status);
      });
      between.lossPerMille = 50;
      for (let round = 0; round < 8; round++) {
        const k = 1 + random(most),
          m = 1 + random(4),
          unitBytes = 512 << random(4),
          group = 100 * (round + 1);
        const stripe = namedStripe(k, m, unitBytes, randomData(random, 1 + random(k * unitBytes)), 1000 + round);
        const down = round % 3 === 2 ? [random(k + m)] : [];
        between.enter(group, k, m, down);
        const layout = place(stripe, region, 0);
        // The switch makes the parity: what lies there must not matter.
        new Uint8Array(region.buffer).fill(
          0xee,
          layout.unitsOffset + k * unitBytes,
          layout.unitsOffset + (k + m) * unitBytes,
        );
        const waited = Array.from({ length: k + m }, (_, unit) => unit).filter((unit) => !down.includes(unit));
        const before = sinks.map(({ arrived }) => arrived.length);
        const status = new Promise<number>((resolve) => {
          settle = resolve;
        });
        sender.postStripe(
          round,
          region,
          layout.dataHeadersOffset,
          layout.unitsOffset,
          unitBytes,
          group,
          chunkBytes,
          waited.reduce((set, unit) => set | (1 << unit), 0),
          ipv4Of(HOST),
          port,
        );
        device.ring();
        t.equal(await status, Status.SUCCESS);
        for (let unit = 0; unit < 12; unit++) {
          const wanted = waited.includes(unit) ? [{ header: stripe.headers[unit]!, payload: stripe.units[unit]! }] : [];
          t.same(
            sinks[unit]!.arrived.slice(before[unit]),
            wanted,
            `k ${k}, m ${m}, units of ${unitBytes}, ${stripe.stripeLength} bytes: unit ${unit}`,
          );
        }
      }
      t.ok(writer.counters().packetsRetransmitted > 0, 'something was lost');
      between.socket.close();
      await Promise.all([writer.close(), ...sinks.map(({ socket }) => socket.close())]);
    },
  );
}

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

t.test(
  'a durable unit that is sent again takes no slot, and is said to be durable again; a refused one is taken again',
  async (t) => {
    const writer = await device.openPacketSocket!(HOST, 0),
      receiving = await device.openPacketSocket!(HOST, 0);
    const sink = new Sink(receiving, 4096).receive(writer);
    const region = device.allocate(1 << 20),
      stripe = namedStripe(2, 1, 4096, randomData(bytesOf(mulberry(5)), 8192), 11_000),
      layout = place(stripe, region, 0);
    let done: () => void = () => undefined;
    const sender = writer.createSender(() => {
      done();
    });
    const send = async (): Promise<void> => {
      const all = new Promise<void>((resolve) => {
        done = resolve;
      });
      sender.postUnit(
        1,
        region,
        layout.dataHeadersOffset + 88,
        88,
        layout.unitsOffset + 4096,
        4096,
        1024,
        ipv4Of(HOST),
        receiving.port,
      );
      device.ring();
      await all;
    };
    const arrives = (condition: () => boolean): Promise<void> =>
      new Promise((resolve) => {
        sink.onArrived = () => {
          if (condition()) resolve();
        };
        sink.onArrived();
      });
    await send();
    await arrives(() => sink.arrived.length === 1);
    await send();
    await arrives(() => sink.duplicates.length > 0);
    t.same([sink.arrived.length, sink.duplicates[0]], [1, [1, NAME.stripe, NAME.counter, NAME.mapEpoch]]);
    sink.held = true;
    Object.assign(stripe, namedStripe(2, 1, 4096, randomData(bytesOf(mulberry(6)), 8192), 11_001));
    place(stripe, region, 0);
    await send();
    await arrives(() => sink.arrived.length === 2);
    sink.release(sink.waiting[0]!, false);
    await send();
    await arrives(() => sink.arrived.length === 3);
    t.same(sink.arrived[2], sink.arrived[1]);
    await writer.close();
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
