/**
 * After Fig. 9 of the reference: sequential writes of one writer, parity in the switch against parity on the host, over
 * stripe units and codes, on the same shaped links.
 *
 * The writer's link carries each byte once when the switch computes the parity, (k+m)/k times when the writer does: on
 * a link that is the limit the ratio's ceiling is (k+m)/k.
 */
import { parseCode } from '../../erasure/code/index.js';
import { iperf } from '../iperf.js';
import { COLOURS } from '../report/draw.js';
import type { Goal, Result, Row } from '../report/result.js';
import { spread } from '../report/result.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { BMV2_CAPTION, BMV2_NOTE, common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE, measureStreams } from './measure-stream.js';

const KIB = 1024;
const FULL = {
  codes: ['xor(2+1)', 'rs(4,2)', 'rs(8,4)', 'copies(1,2)'],
  units: [4, 8, 16, 32, 64, 128, 256, 512],
  repetitions: 3,
  warmupSeconds: 1,
  seconds: 4,
};
const QUICK = { codes: ['xor(2+1)'], units: [4, 16, 32, 128], repetitions: 2, warmupSeconds: 0.7, seconds: 2 };

export interface StripeSizePlan {
  readonly codes: readonly string[];
  readonly units: readonly number[];
  readonly repetitions: number;
  readonly warmupSeconds: number;
  readonly seconds: number;
}

export const stripeSize: Experiment = {
  name: 'stripe-size',
  about:
    'write throughput over the stripe unit, parity in the switch against parity on the host (Fig. 9 of the reference)',
  rateMbit: { full: 200, quick: 100 },
  bmv2Mbit: 50,
  run: (context) =>
    runStripeSize(context, {
      ...(context.quick ? QUICK : FULL),
      ...(context.codes === undefined ? {} : { codes: context.codes }),
    }),
};

/** @param plan  units in KiB */
export async function runStripeSize(context: ExperimentContext, plan: StripeSizePlan): Promise<Result> {
  const { codes, units, repetitions, warmupSeconds, seconds } = plan;
  const { rateMbit, progress } = context;
  const setting = settingOf(context, { durability: 'discard (nodes verify, acknowledge and forget)', repetitions });
  progress.expect(codes.length * repetitions * (units.length * 2 + 1));
  const rows: Row[] = [];
  for (const code of codes) {
    const { k, m } = parseCode(code);
    await Testbed.use(
      { topology: starTopology({ nodes: k + m, rateMbit }), code, durability: 'discard', ...common(context) },
      async (testbed) => {
        const rates = new Map(
          units.flatMap((unit) =>
            (['switch', 'host'] as const).map((parity) => [
              `${unit}/${parity}`,
              { rates: [] as number[], ofLink: [] as number[], idle: [] as number[], onLink: [] as number[] },
            ]),
          ),
        );
        const links: number[] = [];
        for (let round = 0; round < repetitions; round++) {
          progress.step(`${code}, round ${round + 1}: iperf3 over the writer's link`);
          const link = await iperf(testbed.network, 'w1', 's1', testbed.address('s1'), Math.ceil(seconds));
          links.push(link);
          for (const unit of units) {
            // Side by side: what disturbs the machine disturbs both.
            for (const parity of ['switch', 'host'] as const) {
              progress.step(`${code}, ${unit} KiB, parity ${parity}`);
              const figures = await measureStreams(testbed, [
                {
                  writer: 'w1',
                  name: `${unit}-${parity}-${round}`,
                  code,
                  unitBytes: unit * KIB,
                  parity,
                  warmupSeconds,
                  seconds,
                },
              ]);
              const into = rates.get(`${unit}/${parity}`)!;
              into.rates.push(figures.bytesPerSecond);
              into.ofLink.push(figures.bytesPerSecond / link);
              into.idle.push(figures.idle);
              into.onLink.push(figures.writerBytesPerByte);
            }
          }
        }
        for (const unit of units) {
          const inSwitch = rates.get(`${unit}/switch`)!,
            onHost = rates.get(`${unit}/host`)!;
          const ratio = spread(inSwitch.rates.map((rate, round) => rate / onHost.rates[round]!));
          for (const [parity, each] of [
            ['switch', inSwitch],
            ['host', onHost],
          ] as const) {
            const { median, least, most } = spread(each.rates);
            rows.push({
              code,
              unitKiB: unit,
              parity,
              mbPerS: median / 1e6,
              least: least / 1e6,
              most: most / 1e6,
              ofLink: spread(each.ofLink).median,
              ratio: ratio.median,
              ratioLeast: ratio.least,
              ratioMost: ratio.most,
              ceiling: (k + m) / k,
              iperfMbPerS: spread(links).median / 1e6,
              onLink: spread(each.onLink).median,
              idle: Math.min(...each.idle),
              counts: Math.min(...inSwitch.idle, ...onHost.idle) >= LEAST_IDLE,
              repetitions,
            });
          }
        }
      },
    );
  }
  const goals = goalsOf(rows);
  const best = rows
    .filter((row) => row['parity'] === 'switch')
    .reduce((a, b) => (Number(b['ratio']) > Number(a['ratio']) ? b : a));
  const uncounted = rows.filter((row) => row['counts'] === false).length;
  return {
    name: context.switchKind === 'bmv2' ? 'stripe-size-bmv2' : 'stripe-size',
    title: `Write throughput over the stripe unit${context.switchKind === 'bmv2' ? ', through BMv2' : ''}`,
    setting,
    rows,
    goals,
    summary:
      `stripe-size: parity in the switch up to ${digits(Number(best['ratio']))} × parity on the host ` +
      `(${String(best['code'])}, ${String(best['unitKiB'])} KiB; ` +
      `ceiling ${digits(Number(best['ceiling']))} ×), ${digits(Number(best['ofLink']) * 100)} % of ` +
      (`iperf3's ${digits(Number(best['iperfMbPerS']))} MB/s` +
        (uncounted > 0
          ? `; ${uncounted} of ${rows.length} points do not count: less than ${LEAST_IDLE * 100} ` +
            '% of the CPUs was ' +
            'idle'
          : '')),
    columns: [
      { name: 'code', unit: '', about: 'code; copies(1,2) is 3-way replication' },
      { name: 'unitKiB', unit: 'KiB', about: 'stripe unit' },
      { name: 'parity', unit: '', about: 'where the parity was computed' },
      { name: 'mbPerS', unit: 'MB/s', about: 'acknowledged, median of the repetitions' },
      { name: 'least', unit: 'MB/s', about: 'least of the repetitions' },
      { name: 'most', unit: 'MB/s', about: 'most of the repetitions' },
      { name: 'ofLink', unit: '', about: "share of what iperf3 got over the writer's link in the same round, median" },
      { name: 'ratio', unit: '×', about: 'switch ÷ host of the same round, median' },
      { name: 'ratioLeast', unit: '×', about: 'least' },
      { name: 'ratioMost', unit: '×', about: 'most' },
      { name: 'ceiling', unit: '×', about: '(k+m)/k' },
      { name: 'iperfMbPerS', unit: 'MB/s', about: 'iperf3, median' },
      {
        name: 'onLink',
        unit: '',
        about: "bytes on the writer's link for each byte acknowledged, headers of all layers included",
      },
      { name: 'idle', unit: '', about: 'least share of idle CPU in a repetition' },
      { name: 'counts', unit: '', about: `at least ${LEAST_IDLE * 100} % idle, both modes` },
      { name: 'repetitions', unit: '', about: 'measurements behind the median' },
    ],
    references: [
      {
        figure: 'gain at 8 KB stripes, 2+1',
        value: '+14 %',
        ours: gainAt(rows, 4),
        source: 'the reference prototype, FDR InfiniBand, Fig. 9',
      },
      {
        figure: 'gain at 64 KB stripes, 2+1',
        value: '+44 %',
        ours: gainAt(rows, 32),
        source: 'the reference prototype, Fig. 9',
      },
      {
        figure: 'best throughput, 2+1',
        value: '5,548 MB/s, about the link itself',
        ours:
          `${digits(Math.max(...rows.map((row) => Number(row['mbPerS']))))} MB/s on a link ` +
          `of ${digits(Number(best['iperfMbPerS']))} by iperf3`,
        source: 'the reference prototype',
      },
    ],
    notes: [
      ...(context.switchKind === 'bmv2' ? [BMV2_NOTE] : []),
      "The writer's link is shaped to be the limit, as in the reference; its rate here is far lower, the ratio " +
        'is what compares.',
      'A point counts only when both modes left at least 20 % of the CPUs idle in every repetition; hollow ' +
        'marks do not count.',
    ],
    chart: chartOf(rows, rateMbit, context.switchKind === 'bmv2' ? [BMV2_CAPTION] : []),
  };
}

/** Of 2+1, as a reader of the reference's figure would say it: a stripe of 2 units. @param unitKiB  half the stripe */
function gainAt(rows: readonly Row[], unitKiB: number): string {
  const row = rows.find((each) => each['code'] === 'xor(2+1)' && each['unitKiB'] === unitKiB);
  return row === undefined
    ? 'not measured'
    : `+${((Number(row['ratio']) - 1) * 100).toFixed(0)} %${row['counts'] === true ? '' : ' (does not count)'}`;
}

function goalsOf(rows: readonly Row[]): Goal[] {
  const counted = rows.filter((row) => row['counts'] === true && row['parity'] === 'switch');
  const worst = (wanted: readonly Row[], figure: (row: Row) => number): Row | undefined =>
    wanted.length === 0 ? undefined : wanted.reduce((a, b) => (figure(b) < figure(a) ? b : a));
  const goal = (text: string, wanted: readonly Row[], figure: (row: Row) => number, least: number): Goal => {
    const row = worst(wanted, figure);
    return {
      goal: text,
      reached:
        row === undefined
          ? 'no point that counts'
          : `${digits(figure(row))} (${String(row['code'])}, ${String(row['unitKiB'])} KiB)`,
      met: row === undefined ? null : figure(row) >= least,
    };
  };
  const share = (row: Row): number => Number(row['ratio']) / Number(row['ceiling']);
  const large = counted.filter((row) => Number(row['unitKiB']) >= 16);
  return [
    goal(
      'switch ÷ host at 4 KiB ≥ 0.95 × (k+m)/k, share of the ceiling',
      counted.filter((row) => row['unitKiB'] === 4),
      share,
      0.95,
    ),
    goal('switch ÷ host from 16 KiB up ≥ 0.98 × (k+m)/k, least share of the ceiling', large, share, 0.98),
    goal(
      'parity in the switch ≥ 0.97 × iperf3 from 16 KiB up, least share',
      large,
      (row) => Number(row['ofLink']),
      0.97,
    ),
  ];
}

export function chartOf(rows: readonly Row[], rateMbit: number, captions: readonly string[] = []): Result['chart'] {
  const codes = [...new Set(rows.map((row) => String(row['code'])))];
  const name = (parity: string): string => (parity === 'switch' ? 'parity in the switch' : 'parity on the host');
  const values = rows.map((row) => ({ ...row, mode: name(String(row['parity'])) }));
  const x = {
    field: 'unitKiB',
    type: 'ordinal' as const,
    title: 'stripe unit (KiB)',
    axis: { labelAngle: 0, grid: false },
  };
  const colour = {
    field: 'mode',
    type: 'nominal' as const,
    title: null,
    scale: {
      domain: [name('switch'), name('host'), 'iperf3 over the link'],
      range: [COLOURS.switch, COLOURS.host, COLOURS.link],
    },
    legend: { orient: 'bottom' as const, symbolType: 'stroke' as const, symbolStrokeWidth: 3, columns: 3 },
  };
  const many = codes.length > 1;
  const layers = {
    width: many ? 300 : 440,
    height: many ? 180 : 260,
    layer: [
      {
        mark: { type: 'rule' as const, strokeDash: [5, 4], strokeWidth: 1.5 },
        encoding: {
          y: { aggregate: 'mean' as const, field: 'iperfMbPerS', type: 'quantitative' as const },
          color: { datum: 'iperf3 over the link', type: 'nominal' as const },
        },
      },
      {
        mark: { type: 'errorbar' as const, ticks: { size: 6 } },
        encoding: {
          x,
          y: { field: 'least', type: 'quantitative' as const, title: 'acknowledged (MB/s)' },
          y2: { field: 'most' },
          color: colour,
        },
      },
      {
        mark: { type: 'line' as const, strokeWidth: 2 },
        encoding: {
          x,
          y: { field: 'mbPerS', type: 'quantitative' as const, title: 'acknowledged (MB/s)', scale: { zero: true } },
          color: colour,
        },
      },
      {
        mark: { type: 'point' as const, size: 55, strokeWidth: 1.5, opacity: 1 },
        encoding: {
          x,
          y: { field: 'mbPerS', type: 'quantitative' as const },
          color: colour,
          fill: {
            condition: [
              { test: 'datum.counts && datum.parity === "switch"', value: COLOURS.switch },
              { test: 'datum.counts', value: COLOURS.host },
            ],
            value: 'white',
          },
        },
      },
      {
        transform: [
          { filter: 'datum.parity === "switch"' },
          { calculate: '"×" + format(datum.ratio, ".2f")', as: 'gain' },
        ],
        mark: { type: 'text' as const, dy: 17, fontSize: 10, color: '#222' },
        encoding: { x, y: { field: 'least', type: 'quantitative' as const }, text: { field: 'gain' } },
      },
    ],
  };
  const title = {
    text: 'Sequential writes of one writer',
    subtitle: [
      `links of ${formatMbit(rateMbit)}; median, least and most; × is switch ÷ host`,
      'hollow: the CPUs were not idle enough for the point to count',
      ...captions,
    ],
  };
  return many
    ? ({
        title,
        data: { values },
        facet: { field: 'code', type: 'nominal', title: null, sort: codes },
        columns: 2,
        spec: layers,
        resolve: { scale: { y: 'independent', x: 'shared' } },
      } as Result['chart'])
    : ({
        title: { ...title, text: `${title.text}, ${codes[0] ?? ''}` },
        data: { values },
        ...layers,
      } as Result['chart']);
}
