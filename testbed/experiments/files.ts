/**
 * After Table 8 of the FPGA reference: the rate of storing whole files, request to acknowledgement, beside a real Ceph
 * on the same machine and links: erasure-coded pools of four plugins, same k and m, same sizes, same number at once.
 */
import { parseCode } from '../../erasure/code/index.js';
import { CEPH_PLUGINS, CEPH_SETTINGS, CephCluster, cephMissing } from '../ceph.js';
import { TestbedError } from '../errors.js';
import { iperf } from '../iperf.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import type { Result, Row } from '../report/result.js';
import { Testbed } from '../testbed.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { common, digits, settingOf } from './experiment.js';
import { isOperating } from '../../wire/errors.js';
import { LEAST_IDLE } from './measure-stream.js';

const FULL = {
  codes: ['rs(4,2)', 'rs(8,2)', 'rs(8,3)', 'rs(8,4)'],
  bytes: [10e3, 100e3, 1e6, 4e6, 100e6],
  seconds: 5,
  parallel: 8,
};
const QUICK = { codes: ['rs(4,2)'], bytes: [100e3, 1e6], seconds: 3, parallel: 8 };
const SYSTEMS = ['tartan, switch', 'tartan, host', ...CEPH_PLUGINS.map((plugin) => `ceph, ${plugin}`)] as const;
const COLOURS = ['#0072B2', '#D55E00', '#666666', '#8c8c8c', '#b0b0b0', '#d0d0d0'];

export const files: Experiment = {
  name: 'files',
  about: "rate of storing files of 10 KB to 100 MB beside Ceph's erasure-coded pools (Table 8 of the FPGA reference)",
  rateMbit: { full: 500, quick: 200 },
  run,
};

async function run(context: ExperimentContext): Promise<Result> {
  const plan = { ...(context.quick ? QUICK : FULL), ...(context.codes === undefined ? {} : { codes: context.codes }) };
  const { rateMbit, progress, note } = context;
  const setting = settingOf(context, {
    durability: `ours volatile: acknowledged by all k+m nodes, in memory. ${CEPH_SETTINGS}`,
    repetitions: 1,
  });
  progress.expect(plan.codes.length * (2 + plan.bytes.length * SYSTEMS.length));
  const rows: Row[] = [];
  const notes: string[] = [];
  for (const code of plan.codes) {
    const { k, m } = parseCode(code);
    await Testbed.use(
      { topology: starTopology({ nodes: k + m, rateMbit }), code, durability: 'volatile', ...common(context) },
      async (testbed) => {
        progress.step(`${code}: iperf3 over the writer's link`);
        const link = await iperf(testbed.network, 'w1', 's1', testbed.address('s1'), 2);
        const measure = async (system: string, bytes: number, store: () => Promise<number>): Promise<void> => {
          progress.step(`${code}, ${sizeOf(bytes)}, ${system}`);
          const before = linkBytes(testbed.network),
            cpu = cpuTimes(),
            begun = performance.now();
          const rate = await store();
          const seconds = (performance.now() - begun) / 1000;
          const idle = idleShare(cpu, cpuTimes());
          const { sent } = bytesBetween(before, linkBytes(testbed.network), (name) => name.startsWith('w'));
          // Both count whole files only: what is under way at the end is on the links, but not in the rate.
          if (sent < rate * bytes * Math.min(seconds, plan.seconds) * 0.9)
            throw new TestbedError(
              'ERR_MEASUREMENT',
              `Cannot count ${system} (${code}, ${sizeOf(bytes)}): the writer's link carried ${sent} bytes, ` +
                `too few for ${digits(rate)} files a second`,
            );
          rows.push({
            code,
            bytes,
            size: sizeOf(bytes),
            system,
            filesPerS: rate,
            mbPerS: (rate * bytes) / 1e6,
            ofLink: (rate * bytes) / link,
            iperfMbPerS: link / 1e6,
            idle,
            cpuBound: idle < LEAST_IDLE,
          });
        };
        for (const bytes of plan.bytes) {
          for (const parity of ['switch', 'host'] as const) {
            // One that fails leaves a gap, as one of Ceph's does: the others have taken many minutes.
            await measure(`tartan, ${parity}`, bytes, async () => {
              const { files: stored, seconds } = await testbed.worker('w1').call('storeFiles', {
                access: { cluster: testbed.cluster, parity, ringMemoryBytes: 512 << 20, deadlineMs: 5000 },
                file: { name: `${parity}-${bytes}`, code, unitBytes: unitFor(bytes, k) },
                bytes,
                parallel: Math.min(plan.parallel, Math.max(1, Math.floor(200e6 / bytes))),
                seconds: plan.seconds,
              });
              return stored / seconds;
            }).catch((error: unknown) => {
              if (!isOperating(error)) throw error;
              const why =
                `${code}, ${sizeOf(bytes)}: our bar, ` +
                `parity ${parity === 'switch' ? 'in the switch' : 'on the host'}, is ` +
                `missing: ${(error as Error).message}`;
              notes.push(why);
              note(why);
            });
          }
        }
        await besideCeph(testbed, code, measure, (why) => {
          notes.push(why);
          note(why);
        });
      },
    );
  }
  async function besideCeph(
    testbed: Testbed,
    code: string,
    measure: (system: string, bytes: number, store: () => Promise<number>) => Promise<void>,
    absent: (why: string) => void,
  ): Promise<void> {
    const { k, m } = parseCode(code);
    const missing = cephMissing();
    if (missing !== undefined) {
      absent(`${code}: no bars of Ceph: ${missing}`);
      return;
    }
    progress.step(`${code}: starting Ceph`);
    let ceph: CephCluster;
    try {
      ceph = await CephCluster.start(testbed);
    } catch (error) {
      absent(`${code}: no bars of Ceph: it did not start (${(error as Error).message})`);
      return;
    }
    try {
      for (const plugin of CEPH_PLUGINS) {
        try {
          const pool = await ceph.createPool(plugin, k, m);
          for (const bytes of plan.bytes)
            await measure(`ceph, ${plugin}`, bytes, () =>
              ceph.bench(pool, bytes, Math.min(plan.parallel, Math.max(1, Math.floor(200e6 / bytes))), plan.seconds),
            );
          await ceph.removePool(pool);
        } catch (error) {
          absent(`${code}: bars of Ceph's ${plugin} are missing: ${(error as Error).message}`);
        }
      }
    } finally {
      await ceph.stop();
    }
  }
  const ratios = rows
    .filter((row) => row['system'] === 'tartan, switch')
    .flatMap((ours) => {
      const theirs = rows
        .filter(
          (row) =>
            String(row['system']).startsWith('ceph') && row['code'] === ours['code'] && row['bytes'] === ours['bytes'],
        )
        .map((row) => Number(row['filesPerS']));
      return theirs.length === 0 ? [] : [{ ours, best: Number(ours['filesPerS']) / Math.max(...theirs) }];
    });
  const said = (at: (typeof ratios)[number]): string =>
    `${digits(at.best)} × at ${String(at.ours['code'])}, ${String(at.ours['size'])}`;
  const sorted = [...ratios].sort((a, b) => a.best - b.best);
  return {
    name: 'files',
    title: 'Storing whole files, beside Ceph',
    setting,
    rows,
    summary:
      sorted.length === 0
        ? 'files: no Ceph to compare with; ours up ' +
          `to ${digits(Math.max(...rows.map((row) => Number(row['mbPerS']))))} MB/s`
        : `files: parity in the switch against the fastest of Ceph's plugins: ${said(sorted.at(-1)!)} (best) ` +
          `to ${said(sorted[0]!)} (worst)`,
    columns: [
      { name: 'code', unit: '', about: 'k and m, ours and theirs' },
      { name: 'size', unit: '', about: 'of each file' },
      { name: 'bytes', unit: 'B', about: 'of each file' },
      { name: 'system', unit: '', about: 'whose, and where the parity was computed or by which plugin' },
      { name: 'filesPerS', unit: '1/s', about: 'request to acknowledgement, 8 at once (2 of 100 MB)' },
      { name: 'mbPerS', unit: 'MB/s', about: '' },
      { name: 'ofLink', unit: '', about: "share of iperf3 over the writer's link" },
      { name: 'iperfMbPerS', unit: 'MB/s', about: '' },
      { name: 'idle', unit: '', about: 'share of idle CPU' },
      { name: 'cpuBound', unit: '', about: `less than ${LEAST_IDLE * 100} % idle` },
    ],
    goals: [],
    references: [
      {
        figure: "best rate of storing files against Ceph's plugins",
        value: '3.04 ×',
        ours: sorted.length === 0 ? 'no Ceph' : said(sorted.at(-1)!),
        source: 'the FPGA reference, Table 8',
      },
    ],
    notes: [
      "Ceph's client sends each object once, to the primary OSD, which computes the parity and sends k+m−1 " +
        "shards over its own link: the writer's link carries 1 × in both systems. A file of ours is created in " +
        'the cluster store, opened on switch and nodes, written, committed and closed.',
      'Neither keeps anything on a disk here: ours in sparse files through the page cache or O_DIRECT without ' +
        'waiting, Ceph in memory.',
      'Where the CPUs were the limit (cpuBound) a bar compares implementations on this machine, not networks.',
      ...notes,
    ],
    chart: {
      title: {
        text: 'Storing whole files: megabytes a second',
        subtitle: [
          `links of ${formatMbit(rateMbit)}, 8 files at once, volatile on both sides; faint: the CPUs were the limit`,
        ],
      },
      data: { values: rows },
      facet: { field: 'code', type: 'nominal', title: null, sort: [...plan.codes] },
      columns: 2,
      spec: {
        width: 340,
        height: 200,
        mark: { type: 'bar' },
        encoding: {
          x: { field: 'size', type: 'ordinal', title: 'file', sort: plan.bytes.map(sizeOf), axis: { labelAngle: 0 } },
          xOffset: { field: 'system', sort: [...SYSTEMS] },
          y: { field: 'mbPerS', type: 'quantitative', title: 'stored (MB/s)' },
          color: {
            field: 'system',
            type: 'nominal',
            title: null,
            sort: [...SYSTEMS],
            scale: { domain: [...SYSTEMS], range: COLOURS },
            legend: { orient: 'bottom', columns: 3 },
          },
          opacity: { condition: { test: 'datum.cpuBound', value: 0.55 }, value: 1 },
        },
      },
    } as Result['chart'],
  };
}

/** One stripe where that makes units of 4 to 64 KiB. */
function unitFor(bytes: number, k: number): number {
  return Math.min(65536, Math.max(4096, 2 ** Math.ceil(Math.log2(bytes / k))));
}

function sizeOf(bytes: number): string {
  return bytes >= 1e6 ? `${bytes / 1e6} MB` : `${bytes / 1e3} KB`;
}
