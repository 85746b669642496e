/** test/golden/packets.json: the packets that every implementation of the switch program must give. */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { goldenPackets, type GoldenPacket } from '../golden/packets.js';
import { fromHex } from '../golden/vectors.js';
import { loadProgram } from './artefacts.js';
import { Bmv2Executor } from './bmv2-executor.js';
import { WRITER_PORT, groupEntries, serviceEntry } from './parity-entries.js';

const packets = JSON.parse(readFileSync(new URL('../golden/packets.json', import.meta.url), 'utf8')) as GoldenPacket[];

t.test('the golden packets are what the reference coder gives', async (t) => {
  t.same(packets, goldenPackets(), 'else: docs/wire-format.md, p4/ and npx tsx test/golden/generate.ts go together');
});

for (const { what, program: name, group, k, m, frame, units } of packets) {
  t.test(`${name} makes the golden packets of ${what}`, async (t) => {
    const { json, program } = loadProgram(name),
      executor = new Bmv2Executor(json, program);
    executor.write(serviceEntry(program), ...groupEntries(program, group, k, m));
    t.same(
      executor
        .process(WRITER_PORT, fromHex(frame))
        .map(({ port, bytes }) => ({ port, frame: Buffer.from(bytes).toString('hex') })),
      units,
    );
  });
}
