/** Registering memory for every transfer against a ring that stays registered: the reason for rings. */
import { iperf } from '../iperf.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import { TestbedError } from '../errors.js';
import { COLOURS } from '../report/draw.js';
import type { Result, Row } from '../report/result.js';
import { spread } from '../report/result.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE } from './measure-stream.js';

const FULL = { sizesKiB: [4, 16, 64, 256, 1024], repetitions: 5, seconds: 2 };
const QUICK = { sizesKiB: [4, 64, 1024], repetitions: 2, seconds: 1 };
const PORT = 7100;

export const registration: Experiment = {
  name: 'registration',
  about: 'memory registered for every transfer against a ring that stays registered',
  rateMbit: { full: 10_000, quick: 10_000 },
  run,
};

async function run(context: ExperimentContext): Promise<Result> {
  const plan = context.quick ? QUICK : FULL;
  const { rateMbit, progress } = context;
  const setting = settingOf(context, { durability: 'none: raw device writes', repetitions: plan.repetitions });
  progress.expect(1 + plan.repetitions * plan.sizesKiB.length * 2);
  const rows: Row[] = [];
  await Testbed.use(
    { topology: starTopology({ nodes: 1, rateMbit }), durability: 'discard', ...common(context) },
    async (testbed) => {
      progress.step('iperf3 over the link');
      const link = await iperf(testbed.network, 'w1', 's1', testbed.address('s1'), 2);
      await testbed.worker('s1').call('acceptWrites', { host: testbed.address('s1'), port: PORT });
      for (const size of plan.sizesKiB) {
        const found = { each: [] as number[], ring: [] as number[], idle: [] as number[] };
        for (let round = 0; round < plan.repetitions; round++) {
          for (const mode of ['each', 'ring'] as const) {
            progress.step(`${size} KiB, ${mode === 'each' ? 'registered each time' : 'from the ring'}`);
            const before = linkBytes(testbed.network),
              cpu = cpuTimes();
            const result = await testbed.worker('w1').call('registerOrReuse', {
              host: testbed.address('s1'),
              port: PORT,
              transferBytes: size * 1024,
              mode,
              seconds: plan.seconds,
            });
            found.idle.push(idleShare(cpu, cpuTimes()));
            const { sent } = bytesBetween(before, linkBytes(testbed.network), (name) => name.startsWith('w1'));
            if (sent < result.totalBytes)
              throw new TestbedError(
                'ERR_MEASUREMENT',
                `Cannot count ${size} KiB: the link carried ${sent} bytes, ${result.totalBytes} were written`,
              );
            found[mode].push(result.transfersPerSecond);
          }
        }
        const each = spread(found.each),
          ring = spread(found.ring),
          ratio = spread(found.ring.map((rate, i) => rate / found.each[i]!));
        for (const [memory, rate] of [
          ['registered each time', each],
          ['ring', ring],
        ] as const) {
          rows.push({
            sizeKiB: size,
            memory,
            transfersPerS: rate.median,
            least: rate.least,
            most: rate.most,
            mbPerS: (rate.median * size * 1024) / 1e6,
            usPerTransfer: 1e6 / rate.median,
            ratio: ratio.median,
            ratioLeast: ratio.least,
            ratioMost: ratio.most,
            iperfMbPerS: link / 1e6,
            idle: Math.min(...found.idle),
            counts: Math.min(...found.idle) >= LEAST_IDLE,
            repetitions: plan.repetitions,
          });
        }
      }
    },
  );
  const first = rows[0]!,
    last = rows.at(-1)!;
  return {
    name: 'registration',
    title: "Registering every transfer's memory against a registered ring",
    setting,
    rows,
    goals: [],
    summary:
      `registration: a ring makes ${digits(Number(first['ratio']))} × as many transfers ` +
      `of ${String(first['sizeKiB'])} KiB, ${digits(Number(last['ratio']))} × of ${String(last['sizeKiB'])} KiB, ` +
      'as registering memory each time',
    columns: [
      { name: 'sizeKiB', unit: 'KiB', about: 'of one transfer' },
      { name: 'memory', unit: '', about: 'registered each time: allocated, filled, written, deregistered' },
      { name: 'transfersPerS', unit: '1/s', about: 'one at a time, median' },
      { name: 'least', unit: '1/s', about: '' },
      { name: 'most', unit: '1/s', about: '' },
      { name: 'mbPerS', unit: 'MB/s', about: '' },
      { name: 'usPerTransfer', unit: 'µs', about: '' },
      { name: 'ratio', unit: '×', about: 'ring ÷ each, same round' },
      { name: 'ratioLeast', unit: '×', about: '' },
      { name: 'ratioMost', unit: '×', about: '' },
      { name: 'iperfMbPerS', unit: 'MB/s', about: 'iperf3 over the link' },
      { name: 'idle', unit: '', about: 'least share of idle CPU' },
      { name: 'counts', unit: '', about: 'at least 20 % idle' },
      { name: 'repetitions', unit: '', about: '' },
    ],
    references: [
      {
        figure: 'why ring buffers',
        value: 'registration per transfer costs more than the transfer',
        ours: `${digits(Number(first['ratio']))} × as many transfers of ${String(first['sizeKiB'])} KiB from a ring`,
        source: 'the reference prototype',
      },
    ],
    notes: [
      'The soft device registers by mapping memory: no pinning, no translation table in an adapter. With a ' +
        'real adapter registration costs more, so this is the lower bound of what rings save.',
      'One transfer at a time; both fill the memory that they send.',
    ],
    chart: {
      title: {
        text: 'Time of one transfer',
        subtitle: [`device writes, one at a time, link of ${formatMbit(rateMbit)}`, 'median, least and most'],
      },
      width: 420,
      height: 260,
      data: {
        values: rows.map((row) => ({ ...row, from: 1e6 / Number(row['most']), to: 1e6 / Number(row['least']) })),
      },
      encoding: {
        x: { field: 'sizeKiB', type: 'ordinal', title: 'transfer (KiB)', axis: { labelAngle: 0, grid: false } },
        color: {
          field: 'memory',
          type: 'nominal',
          title: null,
          scale: { domain: ['ring', 'registered each time'], range: [COLOURS.switch, COLOURS.host] },
          legend: { orient: 'bottom', symbolType: 'stroke', symbolStrokeWidth: 3 },
        },
      },
      layer: [
        {
          mark: { type: 'errorbar', ticks: { size: 6 } },
          encoding: {
            y: {
              field: 'from',
              type: 'quantitative',
              title: 'time of one transfer (µs)',
              scale: { type: 'log', nice: false },
            },
            y2: { field: 'to' },
          },
        },
        {
          mark: { type: 'line', point: { filled: true, size: 55 } },
          encoding: {
            y: {
              field: 'usPerTransfer',
              type: 'quantitative',
              title: 'time of one transfer (µs)',
              scale: { type: 'log' },
            },
          },
        },
      ],
    } as Result['chart'],
  };
}
