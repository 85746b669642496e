/**
 * Latency of single-stripe durable writes, one after the other: both modes, alone and beside a writer that fills its
 * link.
 */
import { iperf } from '../iperf.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import { COLOURS } from '../report/draw.js';
import type { Result, Row } from '../report/result.js';
import { percentile } from '../report/result.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE, requireShapedLinks } from './measure-stream.js';

const CODE = 'xor(2+1)',
  K = 2;
const UNIT_BYTES = 4096;
const FULL = { writes: 3000, repetitions: 3 };
const QUICK = { writes: 300, repetitions: 1 };
const PERCENTILES = [
  ['p50', 0.5],
  ['p99', 0.99],
  ['p99.9', 0.999],
] as const;
/** The writer that loads the links, at a window that a link of this rate holds for a moment only. */
const LOAD_RING_BYTES = 16 << 20;

export const latency: Experiment = {
  name: 'latency',
  about: 'p50, p99 and p99.9 of single-stripe durable writes, both modes, idle and under load',
  rateMbit: { full: 200, quick: 100 },
  run,
};

async function run(context: ExperimentContext): Promise<Result> {
  const plan = context.quick ? QUICK : FULL;
  const { rateMbit, progress } = context;
  const setting = settingOf(context, {
    durability: 'sync: acknowledged means on the disks of all nodes (all on one disk here)',
    repetitions: plan.repetitions,
  });
  progress.expect(1 + plan.repetitions * 4);
  const samples = new Map<string, { ms: number[]; idle: number[] }>();
  let link = 0;
  await Testbed.use(
    { topology: starTopology({ nodes: 3, writers: 2, rateMbit }), code: CODE, durability: 'sync', ...common(context) },
    async (testbed) => {
      progress.step("iperf3 over the writer's link");
      link = await iperf(testbed.network, 'w1', 's1', testbed.address('s1'), 2);
      for (let round = 0; round < plan.repetitions; round++) {
        for (const load of ['idle', 'loaded'] as const) {
          for (const parity of ['switch', 'host'] as const) {
            progress.step(`parity ${parity}, ${load}`);
            const name = `${parity}-${load}-${round}`;
            const access = { cluster: testbed.cluster, parity, deadlineMs: testbed.deadlineMs };
            if (load === 'loaded')
              await testbed.worker('w2').call('beginTimeline', {
                access: { ...access, ringMemoryBytes: LOAD_RING_BYTES },
                file: { name: `${name}-load`, code: CODE, unitBytes: 65536 },
                sampleMs: 100,
              });
            const before = linkBytes(testbed.network),
              cpu = cpuTimes();
            const result = await testbed.worker('w1').call('latency', {
              access,
              file: { name, code: CODE, unitBytes: UNIT_BYTES },
              stripeBytes: K * UNIT_BYTES,
              count: plan.writes,
            });
            const idle = idleShare(cpu, cpuTimes());
            const after = linkBytes(testbed.network);
            if (load === 'loaded') await testbed.worker('w2').call('endTimeline', { name: `${name}-load` });
            else {
              // One small write at a time: acknowledgements and probes weigh more beside it, so only the least is asked
              // for.
              const atWriters = bytesBetween(before, after, (each) => each.startsWith('w1')),
                atNodes = bytesBetween(before, after, (each) => each.startsWith('n'));
              const all = parity === 'switch' ? 1 : (K + 1) / K;
              requireShapedLinks({
                code: CODE,
                parity,
                totalBytes: result.totalBytes,
                atWriters: { ...atWriters, sent: Math.min(atWriters.sent, all * result.totalBytes) },
                atNodes: { ...atNodes, received: Math.min(atNodes.received, ((K + 1) / K) * result.totalBytes) },
              });
            }
            const into = samples.get(`${parity}/${load}`) ?? { ms: [], idle: [] };
            // The first few find cold code.
            into.ms.push(...result.ms.slice(Math.floor(plan.writes / 20)));
            into.idle.push(idle);
            samples.set(`${parity}/${load}`, into);
          }
        }
      }
    },
  );
  const rows: Row[] = [...samples].map(([key, { ms, idle }]) => {
    const [parity, load] = key.split('/') as [string, string];
    return {
      parity,
      load,
      p50: percentile(ms, 0.5),
      p99: percentile(ms, 0.99),
      p999: percentile(ms, 0.999),
      least: Math.min(...ms),
      most: Math.max(...ms),
      writes: ms.length,
      idle: Math.min(...idle),
      counts: Math.min(...idle) >= LEAST_IDLE,
    };
  });
  const of = (parity: string, load: string): Row =>
    rows.find((row) => row['parity'] === parity && row['load'] === load)!;
  return {
    name: 'latency',
    title: 'Latency of single-stripe durable writes',
    setting,
    rows,
    goals: [],
    references: [],
    summary:
      `latency: p50 ${digits(Number(of('switch', 'idle')['p50']))} ms in the ` +
      `switch, ${digits(Number(of('host', 'idle')['p50']))} ms on the host; ` +
      `p99 ${digits(Number(of('switch', 'idle')['p99']))} and ${digits(Number(of('host', 'idle')['p99']))} ms; ` +
      (`under load p50 ${digits(Number(of('switch', 'loaded')['p50']))} and ` +
        `${digits(Number(of('host', 'loaded')['p50']))} ms`),
    columns: [
      { name: 'parity', unit: '', about: 'where it was computed' },
      {
        name: 'load',
        unit: '',
        about: 'loaded: a second writer fills its own link through the same switch and nodes, in the same mode',
      },
      { name: 'p50', unit: 'ms', about: 'until all three units are on disk and acknowledged' },
      { name: 'p99', unit: 'ms', about: '' },
      { name: 'p999', unit: 'ms', about: '' },
      { name: 'least', unit: 'ms', about: '' },
      { name: 'most', unit: 'ms', about: '' },
      { name: 'writes', unit: '', about: 'measured' },
      { name: 'idle', unit: '', about: 'least share of idle CPU' },
      { name: 'counts', unit: '', about: 'at least 20 % idle' },
    ],
    notes: [
      `Each write is one stripe of ${K} × ${UNIT_BYTES / 1024} KiB, on its own until it is acknowledged. The ` +
        `way through the switch is one hop of software longer; what it saves is the writer's link.`,
      `iperf3 over the writer's link: ${digits(link / 1e6)} MB/s.`,
      ...(plan.writes * plan.repetitions < 1000 ? ['p99.9 of fewer than 1000 writes is their maximum.'] : []),
    ],
    chart: {
      title: {
        text: 'Latency of single-stripe durable writes',
        subtitle: [`xor(2+1), ${UNIT_BYTES / 1024} KiB units, links of ${formatMbit(rateMbit)}, synced`],
      },
      data: {
        values: rows.flatMap((row) =>
          PERCENTILES.map(([name]) => ({
            percentile: name,
            ms: row[name.replace('.', '')],
            mode: row['parity'] === 'switch' ? 'parity in the switch' : 'parity on the host',
            load: row['load'] === 'idle' ? 'nothing else' : 'beside a full writer',
          })),
        ),
      },
      facet: { field: 'load', type: 'nominal', title: null, sort: ['nothing else', 'beside a full writer'] },
      columns: 2,
      spec: {
        width: 260,
        height: 240,
        layer: [
          { mark: { type: 'line', strokeDash: [2, 3], strokeWidth: 1.5 } },
          { mark: { type: 'point', filled: true, size: 80, opacity: 1 } },
          {
            mark: { type: 'text', dx: 9, dy: -6, align: 'left', fontSize: 10 },
            encoding: { text: { field: 'ms', type: 'quantitative', format: '.3~s' } },
          },
        ],
        encoding: {
          x: {
            field: 'percentile',
            type: 'ordinal',
            title: null,
            axis: { labelAngle: 0 },
            sort: PERCENTILES.map(([name]) => name),
          },
          y: { field: 'ms', type: 'quantitative', title: 'until durable (ms)', scale: { type: 'log', nice: false } },
          color: {
            field: 'mode',
            type: 'nominal',
            title: null,
            scale: { domain: ['parity in the switch', 'parity on the host'], range: [COLOURS.switch, COLOURS.host] },
            legend: { orient: 'bottom' },
          },
        },
      },
    } as Result['chart'],
  };
}
