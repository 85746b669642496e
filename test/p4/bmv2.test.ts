/** The same packets through the real BMv2: it, the executor and the reference coder must agree, copy by copy. */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { connect, counterEntry, lpm, tableEntry } from 'tartan-p4runtime';
import { DropReason } from '../../wire/packet-header.js';
import { classes, loadProgram } from './artefacts.js';
import { Bmv2Executor } from './bmv2-executor.js';
import { Bmv2Switch, DEVICE_ID, noBmv2 } from './bmv2-switch.js';
import { TO_SWITCH, udpFrame } from './frames.js';
import type { GoldenPacket } from '../golden/packets.js';
import { fromHex } from '../golden/vectors.js';
import { seeded, trial } from './packet-fuzz.js';
import { WRITER_PORT, groupEntries, serviceEntry } from './parity-entries.js';

const seed = Number(process.env.TARTAN_SEED ?? 20260502);
const rounds = process.env.TARTAN_LONG === '1' ? 50 : 3;
const shown = (packets: readonly { port: number; bytes: Uint8Array }[]) =>
  packets.map(({ port, bytes }) => `${port}: ${Buffer.from(bytes).toString('hex')}`);

for (const [name, programClass] of Object.entries(classes)) {
  t.test(`${name} on BMv2: all k up to ${programClass.k}, m up to 4 (seed ${seed})`, { skip: noBmv2 }, async (t) => {
    const device = await Bmv2Switch.start();
    t.teardown(() => device.close());
    const client = await connect({ address: device.address, deviceId: DEVICE_ID });
    t.teardown(() => client.close());
    t.ok((await client.arbitrate(1)).primary);
    const { json, program } = loadProgram(name),
      executor = new Bmv2Executor(json, program),
      random = seeded(seed);
    await client.setPipeline({ p4info: program.p4info, deviceConfig: Buffer.from(json), cookie: 1n });
    const entries = [
      serviceEntry(program),
      tableEntry(program, {
        table: 'ipv4_route',
        match: { 'hdr.ipv4.dst': lpm(0x0b000000, 8) },
        action: { name: 'route', params: { port: 9, src_mac: 1, dst_mac: 2 } },
      }),
    ];
    for (let k = 1; k <= programClass.k; k++)
      for (let m = 1; m <= 4; m++) entries.push(...groupEntries(program, 100 * k + m, k, m));
    await client.insert(...entries);
    executor.write(...entries);

    let packets = 0;
    for (let round = 0; round < rounds; round++)
      for (let k = 1; k <= programClass.k; k++)
        for (let m = 1; m <= 4; m++) {
          const { frame, expected, what } = trial(random, programClass, k, m, 100 * k + m);
          const real = shown(await device.process(WRITER_PORT, frame, k + m));
          packets += real.length;
          if (real.join() !== shown(expected).join())
            t.same(real, shown(expected), `BMv2 and the reference coder: ${what}`);
          if (real.join() !== shown(executor.process(WRITER_PORT, frame)).join())
            t.fail(`BMv2 and the executor differ: ${what}`);
        }
    t.ok(packets > 0, `${packets} packets came back`);

    // Damaged frames: what leaves is the same, and so are the counters. A routed packet afterwards shows that all
    // before it are through.
    const { frame } = trial(random, programClass, programClass.k, 1, 100 * programClass.k + 1);
    const tail = udpFrame({ ...TO_SWITCH, dstIp: 0x0b000001 }, Buffer.from('after'));
    for (let round = 0; round < 8 * rounds; round++) {
      const damaged = random() < 0.4 ? frame.slice(0, 14 + Math.floor(random() * (frame.length - 14))) : frame.slice();
      const at = 14 + Math.floor(random() * Math.min(130, damaged.length - 14));
      if (at < damaged.length) damaged[at]! ^= 1 << Math.floor(random() * 8);
      const expected = executor.process(WRITER_PORT, damaged);
      const real = shown(await device.process(WRITER_PORT, damaged, expected.length));
      if (real.join() !== shown(expected).join())
        t.same(real, shown(expected), `damaged frame ${Buffer.from(damaged).toString('hex')}`);
      const after = await device.process(WRITER_PORT, tail, 1);
      t.same(shown(after), shown(executor.process(WRITER_PORT, tail)));
    }
    const counted: Record<string, bigint> = {},
      wanted: Record<string, bigint> = {};
    for (const { entity } of await client.readAll(counterEntry(program, 'ingress_drops'))) {
      const reason = Object.entries(DropReason).find(
        ([, index]) => entity?.$case === 'counterEntry' && BigInt(index) === entity.value.index?.index,
      )?.[0];
      if (reason !== undefined && entity?.$case === 'counterEntry') counted[reason] = entity.value.data!.packetCount;
    }
    for (const reason of Object.keys(counted))
      wanted[reason] = executor.counter('ingress_drops', DropReason[reason as keyof typeof DropReason]);
    t.same(counted, wanted, 'drops by reason');
    t.ok(Object.values(wanted).some((count) => count > 0n));
  });
}

t.test('the golden packets on BMv2', { skip: noBmv2 }, async (t) => {
  const device = await Bmv2Switch.start();
  t.teardown(() => device.close());
  const client = await connect({ address: device.address, deviceId: DEVICE_ID });
  t.teardown(() => client.close());
  await client.arbitrate(1);
  const packets = JSON.parse(
    readFileSync(new URL('../golden/packets.json', import.meta.url), 'utf8'),
  ) as GoldenPacket[];
  // One switch, one pipeline after the other: as an agent changes classes.
  for (const { what, program: name, group, k, m, frame, units } of packets) {
    const { json, program } = loadProgram(name);
    await client.setPipeline({ p4info: program.p4info, deviceConfig: Buffer.from(json), cookie: BigInt(group) });
    await client.insert(serviceEntry(program), ...groupEntries(program, group, k, m));
    const real = await device.process(WRITER_PORT, fromHex(frame), k + m);
    t.same(
      real.map(({ port, bytes }) => ({ port, frame: Buffer.from(bytes).toString('hex') })),
      units,
      `${name}: ${what}`,
    );
  }
});
