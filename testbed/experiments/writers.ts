/**
 * One to eight writers, one and two switches: where the links between switch and nodes become the limit.
 *
 * With 2+1 over three nodes a switch's three node links carry half of every byte each: they are full at twice a link's
 * rate, that is with two writers that each fill their own. Every switch has node links of its own.
 */
import { iperf } from '../iperf.js';
import { COLOURS } from '../report/draw.js';
import type { Result, Row } from '../report/result.js';
import { spread } from '../report/result.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE, measureStreams } from './measure-stream.js';

const CODE = 'xor(2+1)';
const UNIT_BYTES = 65536;
const FULL = { writers: [1, 2, 3, 4, 6, 8], switches: [1, 2], repetitions: 3, seconds: 5 };
const QUICK = { writers: [1, 2, 4], switches: [1, 2], repetitions: 1, seconds: 3 };

export const writers: Experiment = {
  name: 'writers',
  about: 'aggregate throughput of 1 to 8 writers through one and two switches',
  rateMbit: { full: 100, quick: 50 },
  run,
};

async function run(context: ExperimentContext): Promise<Result> {
  const plan = context.quick ? QUICK : FULL;
  const { rateMbit, progress } = context;
  const setting = settingOf(context, { durability: 'discard', repetitions: plan.repetitions });
  progress.expect(plan.switches.length * (1 + plan.repetitions * plan.writers.length * 2));
  const rows: Row[] = [];
  let link = 0;
  for (const switches of plan.switches) {
    await Testbed.use(
      {
        topology: starTopology({ nodes: 3, writers: Math.max(...plan.writers), switches, rateMbit }),
        code: CODE,
        durability: 'discard',
        ...common(context),
      },
      async (testbed) => {
        progress.step('iperf3 over one link');
        link = await iperf(testbed.network, 'w1', 's1', testbed.address('s1'), plan.seconds);
        for (const count of plan.writers) {
          const measured = {
            switch: { rates: [] as number[], idle: [] as number[] },
            host: { rates: [] as number[], idle: [] as number[] },
          };
          for (let round = 0; round < plan.repetitions; round++) {
            for (const parity of ['switch', 'host'] as const) {
              progress.step(
                `${switches} switch${switches > 1 ? 'es' : ''}, ${count} writer${count > 1 ? 's' : ''}, ` +
                  `parity ${parity}`,
              );
              const figures = await measureStreams(
                testbed,
                Array.from({ length: count }, (_, i) => ({
                  writer: `w${i + 1}`,
                  name: `${count}-${parity}-${round}-${i}`,
                  code: CODE,
                  unitBytes: UNIT_BYTES,
                  parity,
                  warmupSeconds: 1.5,
                  seconds: plan.seconds,
                })),
              );
              measured[parity].rates.push(figures.bytesPerSecond);
              measured[parity].idle.push(figures.idle);
            }
          }
          const counts = Math.min(...measured.switch.idle, ...measured.host.idle) >= LEAST_IDLE;
          for (const parity of ['switch', 'host'] as const) {
            const { median, least, most } = spread(measured[parity].rates);
            // In host mode a writer's link carries 3/2 of its bytes; either way three node links carry half of every
            // byte each.
            const limit = Math.min(count * (parity === 'switch' ? 1 : 2 / 3), 2 * Math.min(switches, count)) * link;
            rows.push({
              switches,
              writers: count,
              parity,
              mbPerS: median / 1e6,
              least: least / 1e6,
              most: most / 1e6,
              limitMbPerS: limit / 1e6,
              ofLimit: median / limit,
              idle: Math.min(...measured[parity].idle),
              counts,
              repetitions: plan.repetitions,
            });
          }
        }
      },
    );
  }
  const most = (switches: number): Row =>
    rows
      .filter((row) => row['switches'] === switches && row['parity'] === 'switch')
      .reduce((a, b) => (Number(b['mbPerS']) > Number(a['mbPerS']) ? b : a));
  const one = most(1),
    two = most(2);
  return {
    name: 'writers',
    title: 'Many writers, one and two switches',
    setting,
    rows,
    goals: [],
    summary:
      `writers: one switch carries at most ${digits(Number(one['mbPerS']))} MB/s ` +
      `(${String(one['writers'])} writers), two ${digits(Number(two['mbPerS']))} MB/s ` +
      `(${String(two['writers'])} writers), on links ` +
      (`of ${digits(link / 1e6)} MB/s` +
        (rows.some((row) => row['counts'] === false)
          ? '; some points do not count, the CPUs were not idle enough'
          : '')),
    columns: [
      { name: 'switches', unit: '', about: 'switch hosts; writer i is linked to switch i modulo switches' },
      { name: 'writers', unit: '', about: 'at once' },
      { name: 'parity', unit: '', about: 'where it was computed' },
      { name: 'mbPerS', unit: 'MB/s', about: 'acknowledged, all writers, median' },
      { name: 'least', unit: 'MB/s', about: 'least' },
      { name: 'most', unit: 'MB/s', about: 'most' },
      {
        name: 'limitMbPerS',
        unit: 'MB/s',
        about: "what iperf3's rate of one link allows: the writers' links, or all node links",
      },
      { name: 'ofLimit', unit: '', about: 'share of that' },
      { name: 'idle', unit: '', about: 'least share of idle CPU' },
      { name: 'counts', unit: '', about: 'at least 20 % idle in both modes' },
      { name: 'repetitions', unit: '', about: '' },
    ],
    references: [],
    notes: [
      '2+1 over three nodes: a node link carries half of every byte, so three of them are full at twice a ' +
        "link's rate; a second switch has three more.",
      'Thin lines: what the links allow.',
    ],
    chart: {
      title: {
        text: 'Aggregate throughput of several writers',
        subtitle: [
          `xor(2+1), 64 KiB units, links of ${formatMbit(rateMbit)}`,
          'dashed: what the links allow; hollow: the CPUs were not idle enough to count',
        ],
      },
      data: {
        values: rows.map((row) => ({
          ...row,
          mode: row['parity'] === 'switch' ? 'parity in the switch' : 'parity on the host',
          of: `${String(row['switches'])} switch${row['switches'] === 1 ? '' : 'es'}`,
        })),
      },
      facet: { field: 'of', type: 'nominal', title: null },
      columns: 2,
      spec: {
        width: 300,
        height: 220,
        layer: [
          {
            mark: { type: 'line', strokeWidth: 1, strokeDash: [4, 3], opacity: 0.7 },
            encoding: {
              x: { field: 'writers', type: 'quantitative' },
              y: { field: 'limitMbPerS', type: 'quantitative' },
              color: { field: 'mode', type: 'nominal' },
            },
          },
          {
            mark: { type: 'errorbar' },
            encoding: {
              x: { field: 'writers', type: 'quantitative' },
              y: { field: 'least', type: 'quantitative', title: 'acknowledged, all writers (MB/s)' },
              y2: { field: 'most' },
              color: { field: 'mode', type: 'nominal' },
            },
          },
          {
            mark: { type: 'line', strokeWidth: 2 },
            encoding: {
              x: { field: 'writers', type: 'quantitative', title: 'writers', axis: { tickMinStep: 1, grid: false } },
              y: { field: 'mbPerS', type: 'quantitative', title: 'acknowledged, all writers (MB/s)' },
              color: {
                field: 'mode',
                type: 'nominal',
                title: null,
                scale: {
                  domain: ['parity in the switch', 'parity on the host'],
                  range: [COLOURS.switch, COLOURS.host],
                },
                legend: { orient: 'bottom', symbolType: 'stroke', symbolStrokeWidth: 3 },
              },
            },
          },
          {
            mark: { type: 'point', size: 50, opacity: 1 },
            encoding: {
              x: { field: 'writers', type: 'quantitative' },
              y: { field: 'mbPerS', type: 'quantitative' },
              color: { field: 'mode', type: 'nominal' },
              fill: {
                condition: [
                  { test: 'datum.counts && datum.parity === "switch"', value: COLOURS.switch },
                  { test: 'datum.counts', value: COLOURS.host },
                ],
                value: 'white',
              },
            },
          },
        ],
      },
    } as Result['chart'],
  };
}
