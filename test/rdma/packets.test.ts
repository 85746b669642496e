/**
 * The packet data plane of the soft device: units and stripes as packets, lost, overtaking each other and damaged, and
 * what arrives in the slots. A switch that computes stands between as the executor of p4/parity.p4.
 */
import { createSocket, type Socket } from 'node:dgram';
import t from 'tap';
import { Opcode, Status, ipv4Of } from 'tartan-rdma';
import { headerOffsetIn } from '../../wire/slot-layout.js';
import { headerBytesOf } from '../../wire/unit-header.js';
import { loadProgram, classes } from '../p4/artefacts.js';
import { Bmv2Executor } from '../p4/bmv2-executor.js';
import { udpFrame, TO_SWITCH } from '../p4/frames.js';
import { groupEntries, node, serviceEntry } from '../p4/parity-entries.js';
import { NAME } from '../p4/stripe-packets.js';
import {
  HOST,
  device,
  type Arrived,
  Sink,
  place,
  namedStripe,
  randomData,
  bytesOf,
  mulberry,
  seed,
} from './packet-sink.js';

t.comment(`TARTAN_TEST_SEED=${seed}`);
t.teardown(() => device.close());

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
