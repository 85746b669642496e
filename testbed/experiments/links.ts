/**
 * After Fig. 8 of the reference: aggregate throughput of the switch host with 1, 2, 3 … links, both directions at once.
 * Proportional when nothing but the links is the limit: no shared bus, no CPU, no bridge.
 *
 * Raw writes of the soft device (RDMA WRITE over TCP, no codes, no storage), from a peer to the switch host and back,
 * beside iperf3 over one link.
 */
import { iperf } from '../iperf.js';
import { COLOURS } from '../report/draw.js';
import type { Result, Row } from '../report/result.js';
import { spread } from '../report/result.js';
import { TestbedError } from '../errors.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE } from './measure-stream.js';

const FULL = { links: [1, 2, 3, 4, 5, 6], repetitions: 3, seconds: 4 };
const QUICK = { links: [1, 2, 3], repetitions: 2, seconds: 2 };
const PORT = 7100;
const WRITE_BYTES = 65536;

export const links: Experiment = {
  name: 'links',
  about: 'aggregate bidirectional throughput of the switch host with 1, 2, 3 … links (Fig. 8 of the reference)',
  rateMbit: { full: 200, quick: 100 },
  run,
};

async function run(context: ExperimentContext): Promise<Result> {
  const plan = context.quick ? QUICK : FULL;
  const { rateMbit, progress } = context;
  const setting = settingOf(context, { durability: 'none: raw device writes', repetitions: plan.repetitions });
  progress.expect(1 + plan.links.length * plan.repetitions);
  const count = Math.max(...plan.links);
  const rates = new Map(plan.links.map((each) => [each, { rates: [] as number[], idle: [] as number[] }]));
  let link = 0;
  await Testbed.use(
    { topology: starTopology({ nodes: count, rateMbit }), durability: 'discard', ...common(context) },
    async (testbed) => {
      progress.step('iperf3 over one link');
      link = await iperf(testbed.network, 'n1', 's1', testbed.address('s1'), plan.seconds);
      await testbed.worker('s1').call('acceptWrites', { host: testbed.address('s1'), port: PORT });
      for (let round = 0; round < plan.repetitions; round++) {
        for (const wanted of plan.links) {
          progress.step(`${wanted} link${wanted > 1 ? 's' : ''}, both directions`);
          const before = linkBytes(testbed.network),
            cpu = cpuTimes();
          const results = await Promise.all(
            Array.from({ length: wanted }, (_, i) =>
              testbed.worker(`n${i + 1}`).call('exchangeWrites', {
                host: testbed.address('s1'),
                port: PORT,
                writeBytes: WRITE_BYTES,
                warmupSeconds: 0.7,
                seconds: plan.seconds,
              }),
            ),
          );
          const idle = idleShare(cpu, cpuTimes());
          const carried = bytesBetween(before, linkBytes(testbed.network), (name) => name.startsWith('n'));
          const sent = results.reduce((sum, each) => sum + each.sentBytes, 0),
            received = results.reduce((sum, each) => sum + each.receivedBytes, 0);
          if (carried.sent < sent || carried.received < received)
            throw new TestbedError(
              'ERR_MEASUREMENT',
              `Cannot count ${wanted} links: they ` +
                `carried ${carried.sent} and ${carried.received} bytes, ${sent} and ${received} were written`,
            );
          rates.get(wanted)!.rates.push(results.reduce((sum, each) => sum + each.bytesPerSecond, 0));
          rates.get(wanted)!.idle.push(idle);
        }
      }
    },
  );
  const single = spread(rates.get(plan.links[0]!)!.rates).median / plan.links[0]!;
  const rows: Row[] = plan.links.map((wanted) => {
    const each = rates.get(wanted)!,
      { median, least, most } = spread(each.rates);
    return {
      links: wanted,
      mbPerS: median / 1e6,
      least: least / 1e6,
      most: most / 1e6,
      ofProportional: median / (single * wanted),
      ofIperf: median / (2 * wanted * link),
      iperfMbPerS: link / 1e6,
      idle: Math.min(...each.idle),
      counts: Math.min(...each.idle) >= LEAST_IDLE,
      repetitions: plan.repetitions,
    };
  });
  const worst = rows.reduce((a, b) => (Number(b['ofProportional']) < Number(a['ofProportional']) ? b : a));
  const last = rows.at(-1)!;
  return {
    name: 'links',
    title: 'Throughput of the switch host over its number of links',
    setting,
    rows,
    goals: [],
    summary:
      `links: ${count} links carry ${digits(Number(last['mbPerS']))} MB/s both directions ` +
      `together, ${digits(Number(last['ofProportional']))} of ${count} × one link ` +
      (`(least ${digits(Number(worst['ofProportional']))} at ${String(worst['links'])})` +
        (rows.some((row) => row['counts'] === false)
          ? '; some points do not count, the CPUs were not idle enough'
          : '')),
    columns: [
      { name: 'links', unit: '', about: 'of the switch host, used at once' },
      { name: 'mbPerS', unit: 'MB/s', about: 'both directions together, median' },
      { name: 'least', unit: 'MB/s', about: '' },
      { name: 'most', unit: 'MB/s', about: '' },
      { name: 'ofProportional', unit: '', about: 'share of links × the rate of one' },
      { name: 'ofIperf', unit: '', about: 'share of links × 2 × iperf3 over one link, one direction' },
      { name: 'iperfMbPerS', unit: 'MB/s', about: 'iperf3, one direction' },
      { name: 'idle', unit: '', about: 'least share of idle CPU' },
      { name: 'counts', unit: '', about: 'at least 20 % idle' },
      { name: 'repetitions', unit: '', about: '' },
    ],
    references: [
      {
        figure: 'aggregate throughput over adapters',
        value: 'proportional to their number',
        ours: `${digits(Number(last['ofProportional']))} of proportional with ${count}`,
        source: 'the reference prototype, Fig. 8',
      },
    ],
    notes: [
      'Raw device writes of 64 KiB, both directions at once: no code, no storage.',
      'The line is proportional to the first point.',
    ],
    chart: {
      title: {
        text: 'Throughput of the switch host, both directions',
        subtitle: [
          `links of ${formatMbit(rateMbit)}, device writes of 64 KiB; median, least and most`,
          'dashed: proportional; hollow: the CPUs were not idle enough to count',
        ],
      },
      width: 420,
      height: 260,
      data: { values: rows.map((row) => ({ ...row, proportional: (single * Number(row['links'])) / 1e6 })) },
      layer: [
        {
          mark: { type: 'line', strokeDash: [5, 4], color: COLOURS.link },
          encoding: { x: { field: 'links', type: 'quantitative' }, y: { field: 'proportional', type: 'quantitative' } },
        },
        {
          mark: { type: 'errorbar', ticks: { size: 6 }, color: COLOURS.switch },
          encoding: {
            x: { field: 'links', type: 'quantitative' },
            y: { field: 'least', type: 'quantitative', title: 'both directions together (MB/s)' },
            y2: { field: 'most' },
          },
        },
        {
          mark: { type: 'line', color: COLOURS.switch },
          encoding: {
            x: {
              field: 'links',
              type: 'quantitative',
              title: 'links of the switch host',
              axis: { tickMinStep: 1, grid: false },
            },
            y: { field: 'mbPerS', type: 'quantitative', title: 'both directions together (MB/s)' },
          },
        },
        {
          mark: { type: 'point', size: 60, stroke: COLOURS.switch, opacity: 1 },
          encoding: {
            x: { field: 'links', type: 'quantitative' },
            y: { field: 'mbPerS', type: 'quantitative' },
            fill: { condition: { test: 'datum.counts', value: COLOURS.switch }, value: 'white' },
          },
        },
      ],
    } as Result['chart'],
  };
}
