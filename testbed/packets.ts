/**
 * Units as packets against units over rings, parity on the host, on the same shaped links:
 *
 *     sudo node dist/testbed/packets.js [--seconds 4] [--rounds 3]
 *
 * For 20 Mbit/s, 200 Mbit/s and 1 Gbit/s: acknowledged MB/s of one writer, side by side in each round, and how packets
 * did it.
 */
import { parseArgs } from 'node:util';
import { spread } from './report/result.js';
import { Testbed } from './testbed.js';
import { formatMbit, starTopology } from './topology.js';

const RATES = [20, 200, 1000];
const UNIT_BYTES = 65536;

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '4' }, rounds: { type: 'string', default: '3' } },
});
const seconds = Number(values.seconds),
  rounds = Number(values.rounds);
process.stdout.write(
  `xor(2+1), ${UNIT_BYTES / 1024} KiB units, parity on the host, storage that discards, MTU ` +
    `1500; ${rounds} rounds of ${seconds} s\n`,
);
for (const rateMbit of RATES) {
  await Testbed.use(
    { topology: starTopology({ nodes: 3, rateMbit }), durability: 'discard', packets: true, deadlineMs: 5000 },
    async (testbed) => {
      const rates = { ring: [] as number[], packets: [] as number[] };
      for (let round = 0; round < rounds; round++) {
        for (const dataPath of ['ring', 'packets'] as const) {
          const { bytesPerSecond } = await testbed.worker('w1').call('stream', {
            // A window that passes the link in a fraction of the measurement, but never less than a few stripes.
            access: {
              cluster: testbed.cluster,
              parity: 'host',
              dataPath,
              deadlineMs: 5000,
              ringMemoryBytes: Math.min(256 << 20, Math.max(32 << 20, rateMbit * 125_000 * seconds)),
            },
            file: { name: `${dataPath}-${round}`, code: 'xor(2+1)', unitBytes: UNIT_BYTES },
            warmupSeconds: 1,
            seconds,
          });
          rates[dataPath].push(bytesPerSecond / 1e6);
        }
      }
      const ratio = spread(rates.packets.map((rate, round) => rate / rates.ring[round]!)),
        share = spread(rates.packets).median / (rateMbit / 8 / 1.5);
      process.stdout.write(
        `${formatMbit(rateMbit).padEnd(11)} ring ${spread(rates.ring).median.toFixed(2)} MB/s, ` +
          `packets ${spread(rates.packets).median.toFixed(2)}; packets / ` +
          (`ring ${ratio.median.toFixed(2)} (${ratio.least.toFixed(2)}-${ratio.most.toFixed(2)}` +
            `), ${share.toFixed(2)} of `) +
          `what the link's bits allow\n`,
      );
    },
  );
}
