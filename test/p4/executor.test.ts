/**
 * The switch programs, run by the executor: what leaves is what the reference coder says, byte for byte, for all
 * (k ≤ 8, m ≤ 4) and every class; what is not right is dropped and counted; what is not ours passes untouched.
 */
import t from 'tap';
import { multicastGroup, tableEntry, lpm } from 'tartan-p4runtime';
import {
  DropReason,
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  STRIPE_PORT,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  encodeProbeBody,
  type DropReasonName,
} from '../../wire/packet-header.js';
import { classes, loadProgram } from './artefacts.js';
import { loadBmv2Json } from './bmv2-json.js';
import { Bmv2Executor } from './bmv2-executor.js';
import { TO_SWITCH, arpFrame, sealIpv4, udpFrame } from './frames.js';
import { seeded, trial } from './packet-fuzz.js';
import { SERVICE, WRITER_PORT, expectedFrame, groupEntries, node, serviceEntry } from './parity-entries.js';
import { makeStripe, stripePacket, type Stripe } from './stripe-packets.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const shown = (packets: readonly { port: number; bytes: Uint8Array }[]) =>
  packets.map(({ port, bytes }) => `${port}: ${hex(bytes)}`);

function ready(name: string): Bmv2Executor {
  const { json, program } = loadProgram(name);
  const executor = new Bmv2Executor(json, program);
  executor.write(serviceEntry(program));
  return executor;
}

const seed = Number(process.env.TARTAN_SEED ?? 20260501);
const rounds = process.env.TARTAN_LONG === '1' ? 20 : 2;

for (const [name, programClass] of Object.entries(classes)) {
  t.test(
    `${name}: every k up to ${programClass.k} and m up to 4 gives the reference coder's bytes (seed ${seed})`,
    async (t) => {
      const random = seeded(seed),
        { program } = loadProgram(name),
        executor = ready(name);
      let packets = 0;
      for (let k = 1; k <= programClass.k; k++)
        for (let m = 1; m <= 4; m++) {
          const group = 100 * k + m;
          executor.write(...groupEntries(program, group, k, m));
          for (let round = 0; round < rounds; round++) {
            const { frame, expected, what } = trial(random, programClass, k, m, group);
            const sent = executor.process(WRITER_PORT, frame);
            packets++;
            if (shown(sent).join() !== shown(expected).join()) t.same(shown(sent), shown(expected), what);
          }
        }
      t.equal(packets, programClass.k * 4 * rounds);
      t.ok(
        executor.directCounters('group').every((counter) => counter.packets === BigInt(rounds)),
        'packets are counted by group',
      );
      t.ok(
        executor.directCounters('replica').every((counter) => counter.packets === BigInt(rounds)),
        'and by unit',
      );
    },
  );
}

const data = Uint8Array.from({ length: 4 * 1024 - 100 }, (_, index) => (index * 31) & 0xff);
const stripe: Stripe = makeStripe(4, 2, 1024, data);
const GROUP = 0x00c0_ffee & 0xffff;

t.test('a node that is down gets no copy; the others get theirs', async (t) => {
  const { program } = loadProgram('parity-k4-1500'),
    executor = ready('parity-k4-1500');
  executor.write(...groupEntries(program, GROUP, 4, 2, [1, 5]));
  const sent = executor.process(WRITER_PORT, udpFrame(TO_SWITCH, stripePacket(stripe, GROUP, 0, 304)));
  t.same(shown(sent), shown([0, 2, 3, 4].map((unit) => expectedFrame(stripe, unit, GROUP, 0, 304))));
});

t.test('malformed packets are dropped, each with its reason counted', async (t) => {
  const { program } = loadProgram('parity-k4-1500');
  const good = stripePacket(stripe, GROUP, 304, 304);
  /** Changes bytes of the UDP payload; with a right checksum, so that only this is wrong. */
  const changed = (change: (packet: Uint8Array) => void, { resealed = true } = {}) => {
    const packet = good.slice();
    change(packet);
    if (resealed) {
      packet[22] = packet[23] = 0;
      const view = new DataView(packet.buffer);
      const header = {
        type: packet[5]!,
        k: packet[6]!,
        m: packet[7]!,
        group: view.getUint32(8),
        mapEpoch: view.getUint32(12),
        offset: view.getUint32(16),
        chunkBytes: view.getUint16(20),
      };
      const version = packet[4]!;
      encodePacketHeader(header, packet, 88);
      packet[4] = version;
    }
    return packet;
  };
  const framed = (packet: Uint8Array, change: (frame: Uint8Array, view: DataView) => void = () => undefined) => {
    const frame = udpFrame(TO_SWITCH, packet);
    change(frame, new DataView(frame.buffer));
    sealIpv4(frame);
    return frame;
  };
  const cases: [DropReasonName, string, Uint8Array][] = [
    ['short', 'ends within the packet header', framed(good.subarray(0, 10))],
    ['short', 'ends within the magic', framed(good.subarray(0, 3))],
    ['short', 'ends within the stripe header', framed(good.subarray(0, 100))],
    ['short', 'ends within a descriptor', framed(good.subarray(0, 24 + 88 + 30))],
    ['short', 'ends within the last chunk', framed(good.subarray(0, good.length - 1))],
    ['short', 'has no payload', framed(good.subarray(0, 0))],
    [
      'type',
      'another magic',
      framed(
        changed(
          (packet) => {
            packet[0] = 0;
          },
          { resealed: false },
        ),
      ),
    ],
    [
      'version',
      'another packet version',
      framed(
        changed((packet) => {
          packet[4] = 2;
        }),
      ),
    ],
    [
      'version',
      'another unit version',
      framed(
        changed((packet) => {
          packet[24 + 4] = 2;
        }),
      ),
    ],
    [
      'version',
      'another unit magic',
      framed(
        changed((packet) => {
          packet[24] = 0;
        }),
      ),
    ],
    [
      'type',
      'a unit packet',
      framed(
        changed((packet) => {
          packet[5] = PacketType.UNIT;
        }),
      ),
    ],
    [
      'type',
      'a probe answer',
      framed(
        changed((packet) => {
          packet[5] = PacketType.PROBE_ANSWER;
        }),
      ),
    ],
    [
      'shape',
      'k 0',
      framed(
        changed((packet) => {
          packet[6] = 0;
        }),
      ),
    ],
    [
      'shape',
      'k 9',
      framed(
        changed((packet) => {
          packet[6] = 9;
        }),
      ),
    ],
    [
      'shape',
      'm 0',
      framed(
        changed((packet) => {
          packet[7] = 0;
        }),
      ),
    ],
    [
      'shape',
      'm 5',
      framed(
        changed((packet) => {
          packet[7] = 5;
        }),
      ),
    ],
    [
      'shape',
      "k not the stripe header's",
      framed(
        changed((packet) => {
          packet[24 + 6] = 3;
        }),
      ),
    ],
    [
      'shape',
      "m not the stripe header's",
      framed(
        changed((packet) => {
          packet[24 + 7] = 1;
        }),
      ),
    ],
    [
      'class',
      'more units than the class',
      framed(
        changed((packet) => {
          packet[6] = packet[24 + 6] = 5;
        }),
      ),
    ],
    [
      'class',
      'another chunk',
      framed(
        changed((packet) => {
          new DataView(packet.buffer).setUint16(20, 300);
        }),
      ),
    ],
    [
      'length',
      'fewer units than bytes',
      framed(
        changed((packet) => {
          packet[6] = packet[24 + 6] = 3;
        }),
      ),
    ],
    ['length', 'UDP says less', framed(good, (_, view) => view.setUint16(38, 100))],
    ['length', 'IPv4 says more', framed(good, (_, view) => view.setUint16(16, 1500))],
    [
      'length',
      'UDP and IPv4 say one byte less',
      framed(good, (_, view) => {
        view.setUint16(16, 28 + good.length - 1);
        view.setUint16(38, 8 + good.length - 1);
      }),
    ],
    [
      'checksum',
      'a bit of the packet header',
      framed(
        changed(
          (packet) => {
            packet[19]! ^= 1;
          },
          { resealed: false },
        ),
      ),
    ],
    [
      'checksum',
      'a bit of the stripe header',
      framed(
        changed(
          (packet) => {
            packet[24 + 60]! ^= 1;
          },
          { resealed: false },
        ),
      ),
    ],
    [
      'group',
      'an unknown group',
      framed(
        changed((packet) => {
          packet[8] = 0xff;
        }),
      ),
    ],
    [
      'map_epoch',
      'a stale map epoch',
      framed(
        changed((packet) => {
          packet[15]!--;
        }),
      ),
    ],
    [
      'map_epoch',
      'a map epoch to come',
      framed(
        changed((packet) => {
          packet[15]!++;
        }),
      ),
    ],
    [
      'group_shape',
      "another m than the group's",
      framed(
        changed((packet) => {
          packet[7] = packet[24 + 7] = 1;
        }),
      ),
    ],
  ];
  const badIpv4 = udpFrame(TO_SWITCH, good);
  badIpv4[24]! ^= 1;
  cases.push(['checksum', 'a bit of the IPv4 header', badIpv4]);
  for (const [reason, what, frame] of cases) {
    const executor = ready('parity-k4-1500');
    executor.write(...groupEntries(program, GROUP, 4, 2));
    t.same(shown(executor.process(WRITER_PORT, frame)), [], `${what}: nothing leaves`);
    const counted = Object.entries(DropReason)
      .filter(([, index]) => executor.counter('ingress_drops', index) !== 0n)
      .map(([name]) => name);
    t.same(counted, [reason], what);
  }
});

t.test('a copy without an entry is dropped in egress as no_replica', async (t) => {
  const { program } = loadProgram('parity-k4-1500'),
    executor = ready('parity-k4-1500');
  const entries = groupEntries(program, GROUP, 4, 2);
  executor.write(...entries.filter((_, index) => index !== 3));
  const sent = executor.process(WRITER_PORT, udpFrame(TO_SWITCH, stripePacket(stripe, GROUP, 0, 304)));
  t.equal(sent.length, 5);
  t.equal(executor.counter('egress_drops', DropReason.no_replica), 1n);
});

t.test('a probe is answered with version, cookie and class; ARP for the service address too', async (t) => {
  const executor = ready('parity-k8-9000');
  const packet = new Uint8Array(PACKET_HEADER_BYTES + PROBE_BODY_BYTES);
  encodeProbeBody({ nonce: 77n, cookie: 0n, program: 0, k: 0, m: 0, chunkBytes: 0 }, packet);
  encodePacketHeader(
    { type: PacketType.PROBE, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
    packet,
    0,
  );
  const [answer, ...more] = executor.process(WRITER_PORT, udpFrame(TO_SWITCH, packet));
  t.same([answer?.port, more.length], [WRITER_PORT, 0]);
  const payload = answer!.bytes.slice(42);
  t.match(decodePacketHeader(payload), { type: PacketType.PROBE_ANSWER });
  t.same(decodeProbeBody(payload), { nonce: 77n, cookie: SERVICE.cookie, program: 1, k: 8, m: 4, chunkBytes: 1024 });
  t.equal(
    hex(answer!.bytes),
    hex(
      udpFrame(
        {
          ...TO_SWITCH,
          srcMac: SERVICE.mac,
          dstMac: TO_SWITCH.srcMac,
          srcIp: SERVICE.ip,
          dstIp: TO_SWITCH.srcIp,
          srcPort: STRIPE_PORT,
          dstPort: TO_SWITCH.srcPort,
        },
        payload,
      ),
    ),
  );
  t.same(executor.process(WRITER_PORT, udpFrame(TO_SWITCH, packet.subarray(0, 47))), [], 'a short one is not');
  t.equal(executor.counter('ingress_drops', DropReason.short), 1n);

  const asker = { mac: TO_SWITCH.srcMac, ip: TO_SWITCH.srcIp };
  const asked = arpFrame(1, 0xffff_ffff_ffffn, asker, { mac: 0n, ip: SERVICE.ip });
  t.same(
    shown(executor.process(3, asked)),
    shown([{ port: 3, bytes: arpFrame(2, asker.mac, { mac: SERVICE.mac, ip: SERVICE.ip }, asker) }]),
  );
});

for (const name of ['parity-k2-1500', 'forward']) {
  t.test(`${name}: traffic that is not ours passes by route or bridge, untouched but for the hop`, async (t) => {
    const { json, program } = loadProgram(name),
      executor = new Bmv2Executor(json, program);
    if (name !== 'forward') executor.write(serviceEntry(program));
    executor.write(
      tableEntry(program, {
        table: 'ipv4_route',
        match: { 'hdr.ipv4.dst': lpm(0x0a000100, 24) },
        action: { name: 'route', params: { port: 5, src_mac: 0xaan, dst_mac: 0xbbn } },
      }),
      tableEntry(program, {
        table: 'ipv4_route',
        match: { 'hdr.ipv4.dst': lpm(0x0a000107, 32) },
        action: { name: 'route', params: { port: 6, src_mac: 0xaan, dst_mac: 0xccn } },
      }),
      tableEntry(program, {
        table: 'bridge',
        match: { 'hdr.ethernet.dst': 0x0200_0000_0009n },
        action: { name: 'to_port', params: { port: 7 } },
      }),
      tableEntry(program, {
        table: 'bridge',
        match: { 'hdr.ethernet.dst': 0xffff_ffff_ffffn },
        action: { name: 'flood', params: { ports: 1 } },
      }),
      multicastGroup(
        1,
        [1, 2, 3].map((port) => ({ port, instance: 0 })),
      ),
    );
    const routed = { ...TO_SWITCH, dstIp: 0x0a000133, ttl: 9 };
    const hop = (addresses: typeof routed, dstMac: bigint) => ({ ...addresses, srcMac: 0xaan, dstMac, ttl: 8 });
    const stripePayload = stripePacket(makeStripe(2, 1, 512, data.subarray(0, 1000)), 1, 0, 640);
    t.same(
      shown(executor.process(1, udpFrame(routed, stripePayload))),
      shown([{ port: 5, bytes: udpFrame(hop(routed, 0xbbn), stripePayload) }]),
      'even what looks like a stripe, to another address',
    );
    t.same(
      shown(executor.process(1, udpFrame(routed, stripePayload.subarray(0, 150)))),
      shown([{ port: 5, bytes: udpFrame(hop(routed, 0xbbn), stripePayload.subarray(0, 150)) }]),
      'cut short as well',
    );
    const host = { ...routed, dstIp: 0x0a000107, dstPort: 53 };
    t.same(
      shown(executor.process(1, udpFrame(host, Buffer.from('hello')))),
      shown([{ port: 6, bytes: udpFrame(hop(host, 0xccn), Buffer.from('hello')) }]),
      'the longest prefix',
    );

    // One in 256 headers makes the adjusted checksum wrap.
    const wrapping = Array.from({ length: 65536 }, (_, identification) => ({ ...routed, identification })).find(
      (addresses) => udpFrame(addresses, Buffer.of(1))[24] === 0xff,
    )!;
    t.same(
      shown(executor.process(1, udpFrame(wrapping, Buffer.of(1)))),
      shown([{ port: 5, bytes: udpFrame(hop(wrapping, 0xbbn), Buffer.of(1)) }]),
      'a checksum that wraps',
    );

    const withOptions = Uint8Array.from([
      ...udpFrame(routed, Buffer.alloc(20)).subarray(0, 34),
      1,
      1,
      1,
      1,
      ...Buffer.alloc(28),
    ]);
    withOptions[14] = 0x46;
    sealIpv4(withOptions);
    const after = withOptions.slice();
    after.set(udpFrame(hop(routed, 0xbbn), Buffer.alloc(0)).subarray(0, 12));
    after[22] = 8;
    sealIpv4(after);
    t.same(
      shown(executor.process(1, withOptions)),
      shown([{ port: 5, bytes: after }]),
      'IPv4 options: the checksum stays right',
    );

    const dying = udpFrame({ ...routed, ttl: 1 }, Buffer.from('x'));
    t.same(executor.process(1, dying), []);
    t.equal(executor.counter('ingress_drops', DropReason.ttl), 1n);
    const bridged = udpFrame({ ...TO_SWITCH, dstMac: 0x0200_0000_0009n, dstIp: 0x0b000001 }, Buffer.from('bridged'));
    t.same(shown(executor.process(1, bridged)), shown([{ port: 7, bytes: bridged }]), 'as it came');
    const broadcast = arpFrame(1, 0xffff_ffff_ffffn, { mac: 1n, ip: 2 }, { mac: 0n, ip: 3 });
    t.same(
      shown(executor.process(2, broadcast)),
      shown([
        { port: 1, bytes: broadcast },
        { port: 3, bytes: broadcast },
      ]),
      'not back to where it came from',
    );
    const nowhere = Uint8Array.from([...Buffer.from('020000000077020000000001' + '86dd', 'hex'), 1, 2, 3]);
    t.same(executor.process(1, nowhere), []);
    t.equal(executor.counter('ingress_drops', DropReason.no_route), 1n);
  });
}

t.test('forward.p4 answers no probe and codes no stripe', async (t) => {
  const { json, program } = loadProgram('forward'),
    executor = new Bmv2Executor(json, program);
  t.notOk(program.has('table', 'service_address'));
  t.same(executor.process(1, udpFrame(TO_SWITCH, stripePacket(stripe, GROUP, 0, 304))), []);
  t.equal(executor.counter('ingress_drops', DropReason.no_route), 1n);
  t.equal(node(0).port, 2);
});

t.test('the executor refuses programs with what it does not know', async (t) => {
  const { json } = loadProgram('forward');
  const changed = (change: (program: Record<string, unknown[]>) => void) => {
    const program = JSON.parse(json) as Record<string, unknown[]>;
    change(program);
    return () => loadBmv2Json(JSON.stringify(program));
  };
  t.doesNotThrow(changed(() => undefined));
  t.throws(
    changed((program) => {
      program.register_arrays = [{ name: 'r' }];
    }),
    /section register_arrays/,
  );
  t.throws(
    changed((program) => {
      (program.actions![0] as { primitives: unknown[] }).primitives.push({ op: 'recirculate', parameters: [] });
    }),
    /recirculate/,
  );
  t.throws(
    changed((program) => {
      (program.pipelines![0] as { conditionals: { expression: unknown }[] }).conditionals[0]!.expression = {
        type: 'expression',
        value: { op: '**', left: null, right: null },
      };
    }),
    /operator: \*\*/,
  );
  t.throws(() => loadBmv2Json(loadProgram('conformance_program').json), /the executor does not know/);
});
