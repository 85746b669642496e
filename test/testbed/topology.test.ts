/**
 * Networks as data, what is said of those that can't be, and what experiments make of their figures. No root needed.
 */
import t from 'tap';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { networkSpec, serviceAddress } from '../../testbed/addressing.js';
import { EXPERIMENTS } from '../../testbed/experiments/all.js';
import { eventFigures } from '../../testbed/experiments/fallback.js';
import { requireShapedLinks } from '../../testbed/experiments/measure-stream.js';
import { bytesBetween, idleShare } from '../../testbed/probes.js';
import { toCsv } from '../../testbed/report/csv.js';
import { toPng, toSvg } from '../../testbed/report/draw.js';
import { reportHtml } from '../../testbed/report/html.js';
import type { Result } from '../../testbed/report/result.js';
import { percentile, spread } from '../../testbed/report/result.js';
import { writeResult } from '../../testbed/report/write-result.js';
import { requireMachine, requireVerbsMachine } from '../../testbed/requirements.js';
import type { Role, Topology } from '../../testbed/topology.js';
import { parseRate, starTopology, validateTopology } from '../../testbed/topology.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** Runs the command. @returns exit status and what it printed */
function tartan(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  return new Promise((resolve) => {
    const { NODE_OPTIONS: _, ...env } = process.env;
    execFile(process.execPath, [MAIN, ...args], { env }, (error, out, err) => {
      resolve({ status: error === null ? 0 : Number(error.code ?? -1), out, err });
    });
  });
}

t.test('a star has one link per writer, and one per node and switch', async (t) => {
  const { hosts, links } = starTopology({ nodes: 3, writers: 4, switches: 2, rateMbit: 100 });
  t.same(
    hosts.map((host) => host.name),
    ['w1', 'w2', 'w3', 'w4', 's1', 's2', 'n1', 'n2', 'n3'],
  );
  t.same(
    links.map(({ ends }) => ends.join('-')),
    ['w1-s1', 'w2-s2', 'w3-s1', 'w4-s2', 'n1-s1', 'n1-s2', 'n2-s1', 'n2-s2', 'n3-s1', 'n3-s2'],
  );
  validateTopology({ hosts, links }, 'xor(2+1)');
});

t.test('a writer reaches nodes through its own switch host, and over a bridge when that link is gone', async (t) => {
  const topology = starTopology({ nodes: 2, writers: 2, switches: 2, rateMbit: 100, bypass: true });
  validateTopology(topology);
  const spec = networkSpec(topology);
  const of = (name: string) => spec.hosts.find((host) => host.name === name)!;
  t.same(of('w1').routes, [
    '10.254.0.1/32 via 10.1.0.2 metric 10',
    '10.255.0.1/32 via 10.1.0.2 metric 10',
    '10.255.0.2/32 via 10.1.0.2 metric 10',
    '10.255.0.1/32 via 10.2.0.3 metric 20',
    '10.255.0.2/32 via 10.2.0.4 metric 20',
  ]);
  t.notOk(
    of('w2').routes.some((route) => route.startsWith('10.254.0.1')),
    "a switch that a writer is not linked to can't be reached by it",
  );
  t.ok(
    of('n1').routes.includes('10.1.0.0/30 via 10.1.2.2'),
    'a node answers over the switch that the writer is linked to',
  );
  t.same([of('s1').forwards, of('n1').forwards, of('w1').forwards], [true, false, false]);
  t.same(of('n2').addresses, [`${serviceAddress(topology, 'n2')}/32`]);
  const addresses = spec.links
    .flatMap(({ ends }) => ends.map((end) => end.address))
    .filter((address) => address !== null);
  t.equal(new Set(addresses).size, addresses.length, 'no address is given twice');
  t.ok(spec.links.every(({ ends }) => ends.every((end) => end.interface.length <= 15)));
});

t.test("a network that can't be is refused in one line with a code", async (t) => {
  const good = starTopology({ nodes: 3, rateMbit: 100 });
  const broken: [string, RegExp, Topology, string?][] = [
    [
      'ERR_TOPOLOGY',
      /n1 has the role 'router', expected one of writer, switch, node, bridge/,
      { ...good, hosts: good.hosts.map((host) => (host.name === 'n1' ? { ...host, role: 'router' as Role } : host)) },
    ],
    ['ERR_TOPOLOGY', /w1–s1 has a rate of 0 Mbit\/s/, starTopology({ nodes: 3, rateMbit: 0 })],
    ['ERR_TOPOLOGY', /w1–s1 has a rate of NaN Mbit\/s/, starTopology({ nodes: 3, rateMbit: NaN })],
    [
      'ERR_TOPOLOGY',
      /leads to 's9', which is no host/,
      { ...good, links: [...good.links, { ends: ['w1', 's9'], rateMbit: 1 }] },
    ],
    [
      'ERR_TOPOLOGY',
      /leads back to where it comes from/,
      { ...good, links: [...good.links, { ends: ['w1', 'w1'], rateMbit: 1 }] },
    ],
    ['ERR_TOPOLOGY', /two links s1–w1/, { ...good, links: [...good.links, { ends: ['s1', 'w1'], rateMbit: 1 }] }],
    ['ERR_TOPOLOGY', /two hosts are called n1/, { ...good, hosts: [...good.hosts, { name: 'n1', role: 'node' }] }],
    ['ERR_TOPOLOGY', /called 'a; reboot'/, { ...good, hosts: [...good.hosts, { name: 'a; reboot', role: 'node' }] }],
    ['ERR_TOPOLOGY', /it has no switch/, starTopology({ nodes: 3, rateMbit: 100, writers: 0, switches: 0 })],
    [
      'ERR_TOPOLOGY',
      /n3 is not linked to s1/,
      { ...good, links: good.links.filter(({ ends }) => !ends.includes('n3')) },
    ],
    [
      'ERR_TOPOLOGY',
      /w1 is linked to no switch/,
      { ...good, links: good.links.filter(({ ends }) => !ends.includes('w1')) },
    ],
    ['ERR_NOT_ENOUGH_NODES', /rs\(4,2\) on this network: it wants 6 storage nodes, there are 3/, good, 'rs(4,2)'],
    ['ERR_UNKNOWN_CODE', /./, good, 'magic(2)'],
  ];
  for (const [code, message, topology, fileCode] of broken) {
    try {
      validateTopology(topology, fileCode);
      t.fail(`${String(message)} was not refused`);
    } catch (error) {
      t.equal((error as { code?: string }).code, code, String(message));
      t.match((error as Error).message, message);
      t.notMatch((error as Error).message, /\n/);
    }
  }
});

t.test('rates are read as people write them', async (t) => {
  t.same(['200mbit', '1gbit', '2.5Gbit', '500'].map(parseRate), [200, 1000, 2500, 500]);
  for (const text of ['0', '0mbit', '-1gbit', 'fast', '', '1000gbit', '1kbit'])
    t.throws(() => parseRate(text), { code: 'ERR_ARGUMENT' }, text);
});

t.test('what the machine lacks is named with the command that installs it', async (t) => {
  const machine = { uid: 0, has: () => true, hasMininet: () => true };
  requireMachine(machine);
  t.throws(
    () => {
      requireMachine({ ...machine, uid: 1000 });
    },
    { code: 'ERR_NOT_ROOT', message: /sudo/ },
  );
  t.throws(
    () => {
      requireMachine({ ...machine, hasMininet: () => false });
    },
    {
      code: 'ERR_MISSING_PACKAGE',
      message: 'Cannot build a network: mininet missing; run `apt-get install --no-install-recommends mininet`',
    },
  );
  requireVerbsMachine(machine);
  t.throws(
    () => {
      requireVerbsMachine({ ...machine, uid: 1000 });
    },
    { code: 'ERR_NOT_ROOT', message: /sudo/ },
  );
  t.throws(
    () => {
      requireVerbsMachine({ ...machine, has: (tool) => tool !== 'rdma' });
    },
    { code: 'ERR_MISSING_PACKAGE', message: /iproute2 missing/ },
  );
  t.throws(
    () => {
      requireMachine({ ...machine, has: (tool) => !['mnexec', 'iperf3', 'tc', 'ip'].includes(tool) });
    },
    { message: /mininet, iproute2, iperf3 missing/ },
  );
});

t.test('the commands refuse wrong arguments in one line, before anything is built', async (t) => {
  const wrong: [string[], RegExp][] = [
    [['experiment', 'warp'], /ERR_ARGUMENT: Cannot run experiment 'warp': expected all or one of stripe-size/],
    [['experiment', 'stripe-size', '--rate', '0mbit'], /ERR_ARGUMENT: Cannot use '0mbit' as a link's rate/],
    [['testbed', '--rate', 'none'], /ERR_ARGUMENT: Cannot use 'none' as a link's rate/],
    [['testbed', '--nodes', '0'], /ERR_ARGUMENT: Cannot use '0' as --nodes/],
    [
      ['testbed', '--nodes', '3', '--code', 'rs(8,4)'],
      /ERR_NOT_ENOUGH_NODES: Cannot use rs\(8,4\) on this network: it wants 12 storage nodes, there are 3/,
    ],
  ];
  for (const [args, message] of wrong) {
    const { status, out, err } = await tartan(...args);
    t.match(err, message);
    t.equal(err.trim().split('\n').length, 1, `one line: ${args.join(' ')}`);
    t.equal(out, '');
    t.not(status, 0);
  }
});

t.test('the links must have carried what was acknowledged, once or with its parity', async (t) => {
  const bytes = (sent: number, received: number) => ({
    atWriters: { sent, received: 0 },
    atNodes: { sent: 0, received },
  });
  requireShapedLinks({ code: 'xor(2+1)', parity: 'switch', totalBytes: 1000, ...bytes(1030, 1540) });
  requireShapedLinks({ code: 'xor(2+1)', parity: 'host', totalBytes: 1000, ...bytes(1550, 1540) });
  t.throws(
    () => {
      requireShapedLinks({ code: 'xor(2+1)', parity: 'switch', totalBytes: 1000, ...bytes(30, 1540) });
    },
    { code: 'ERR_MEASUREMENT', message: /writers' links carried 0\.030 bytes/ },
    'shared memory carried them',
  );
  t.throws(
    () => {
      requireShapedLinks({ code: 'xor(2+1)', parity: 'switch', totalBytes: 1000, ...bytes(1550, 1540) });
    },
    { code: 'ERR_MEASUREMENT' },
    'the writer sent the parity',
  );
  t.throws(
    () => {
      requireShapedLinks({ code: 'xor(2+1)', parity: 'host', totalBytes: 1000, ...bytes(1550, 1010) });
    },
    { message: /nodes' links carried 1\.010 bytes for each byte acknowledged, expected 1\.500/ },
  );
});

t.test('interface and CPU readings are subtracted', async (t) => {
  const before = new Map([
    ['w1-s1', { sent: 10, received: 1 }],
    ['n1-s1', { sent: 5, received: 100 }],
  ]);
  const after = new Map([
    ['w1-s1', { sent: 30, received: 2 }],
    ['n1-s1', { sent: 6, received: 160 }],
  ]);
  t.same(
    bytesBetween(before, after, (name) => name.startsWith('n')),
    { sent: 1, received: 60 },
  );
  t.equal(idleShare({ idle: 10, total: 100 }, { idle: 35, total: 200 }), 0.25);
});

t.test('a timeline tells what each event cost', async (t) => {
  // 1000 bytes every 10 ms; nothing between 100 and 400 ms; the mode changes at 130 ms.
  const samples = Array.from({ length: 100 }, (_, i) => ({
    ms: i * 10,
    bytes: 1000 * (i <= 10 ? i : i < 40 ? 10 : i - 30),
  }));
  const timeline = {
    startedAt: 0,
    samples,
    gaps: [{ fromMs: 100, toMs: 400 }],
    modes: [
      { ms: 1, mode: 'switch', reason: '' },
      { ms: 130, mode: 'host', reason: '' },
      { ms: 700, mode: 'switch', reason: '' },
    ],
    bytes: 69_000,
    sha256: '',
    stripesRedriven: 0,
  };
  const [lost, back] = eventFigures(timeline, [
    { event: 'killed', atMs: 105 },
    { event: 'started again', atMs: 600 },
  ]);
  t.match(lost, { event: 'killed', detectionMs: 25, gapMs: 300, mode: 'host' });
  t.match(back, { detectionMs: 100, gapMs: 0, mode: 'switch' });
  t.ok(Math.abs(lost!.settledBytesPerSecond - 100_000) < 7000, `${lost!.settledBytesPerSecond}`);
});

t.test('medians, spreads and percentiles', async (t) => {
  t.same(spread([3, 1, 2]), { median: 2, least: 1, most: 3 });
  t.same(spread([4, 1]), { median: 2.5, least: 1, most: 4 });
  t.equal(
    percentile(
      Array.from({ length: 100 }, (_, i) => i + 1),
      0.99,
    ),
    99,
  );
  t.equal(percentile([7], 0.5), 7);
});

const RESULT: Result = {
  name: 'sample',
  title: 'A <sample>',
  summary: 'sample: 1.5 × the host',
  notes: ['A note & more.'],
  references: [{ figure: 'gain', value: '+44 %', ours: '+48 %', source: 'Fig. 9' }],
  setting: {
    command: 'tartan experiment sample',
    date: '2026-01-01',
    machine: 'a machine',
    kernel: 'Linux',
    links: '100 Mbit/s',
    durability: 'discard',
    repetitions: 3,
    loadBefore: 0.25,
  },
  columns: [
    { name: 'unit', unit: 'KiB', about: 'stripe unit' },
    { name: 'rate', unit: 'MB/s', about: 'rate' },
    { name: 'said', unit: '', about: '' },
  ],
  rows: [
    { unit: 4, rate: 11.98765432, said: 'a "b", c' },
    { unit: 64, rate: null, said: true },
  ],
  goals: [
    { goal: 'ratio ≥ 1.4', reached: '1.5', met: true },
    { goal: 'x', reached: 'no point', met: null },
  ],
  chart: {
    data: {
      values: [
        { unit: 4, rate: 1 },
        { unit: 64, rate: 2 },
      ],
    },
    mark: 'line',
    title: 'A title',
    width: 200,
    height: 100,
    encoding: { x: { field: 'unit', type: 'ordinal' }, y: { field: 'rate', type: 'quantitative' } },
  },
};

t.test('CSV has a heading with units, quotes what needs it, six digits, nothing for null', async (t) => {
  t.equal(toCsv(RESULT), 'unit (KiB),rate (MB/s),said\n4,11.9877,"a ""b"", c"\n64,,true\n');
  const broken = {
    columns: [{ name: 'said', unit: '', about: '' }],
    rows: [{ said: 'a\nb' }, { said: 'a\rb' }, { said: 'a b' }],
  };
  t.equal(toCsv(broken), 'said\n"a\nb"\n"a\rb"\na b\n', 'a line break of either kind is quoted, or it ends the row');
});

t.test('a chart becomes SVG with its texts, and a PNG in which something is drawn', async (t) => {
  const svg = await toSvg(RESULT.chart);
  t.match(svg, /^<svg /);
  for (const text of ['A title', '>4<', '>64<', '>rate<', '>unit<']) t.ok(svg.includes(text), text);
  const png = toPng(svg);
  t.same([...png.subarray(0, 4)], [0x89, 0x50, 0x4e, 0x47]);
  t.ok(png.readUInt32BE(16) > 400, 'twice as wide as the chart');
  const blank = toPng('<svg xmlns="http://www.w3.org/2000/svg" width="250" height="160"></svg>');
  t.ok(png.length > 2 * blank.length, 'more than an empty picture');
});

t.test("an experiment's files hold its figures", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'tartan-report-'));
  t.teardown(() => {
    rmSync(folder, { recursive: true });
  });
  t.same(
    (await writeResult(folder, RESULT)).map((path) => path.slice(folder.length + 1)),
    ['sample.csv', 'sample.json', 'sample.svg', 'sample.png'],
  );
  const json = JSON.parse(readFileSync(join(folder, 'sample.json'), 'utf8')) as Result;
  t.same(json.rows, RESULT.rows);
  t.match(json.setting, { command: 'tartan experiment sample', durability: 'discard', repetitions: 3 });
});

t.test('the report holds charts, goals and references in one file, and says what failed', async (t) => {
  const html = reportHtml([RESULT], [{ name: 'files', message: 'no Ceph <here>' }], () => Buffer.from('picture'));
  t.ok(html.includes(`data:image/png;base64,${Buffer.from('picture').toString('base64')}`));
  t.notMatch(html, /(src|href)="(?!data:|#)/, 'nothing outside is needed');
  for (const text of [
    'A &lt;sample&gt;',
    '<td>+44 %</td><td><b>+48 %</b></td>',
    'Fig. 9',
    'ratio ≥ 1.4',
    '>met<',
    '>not measured<',
    'no Ceph &lt;here&gt;',
    'A note &amp; more.',
    '100 Mbit/s',
    'durability: discard',
    '3 repetitions',
    '<td class="n">11.99</td>',
  ])
    t.ok(html.includes(text), text);
});

t.test('experiments have names of their own', async (t) => {
  t.equal(new Set(EXPERIMENTS.map((each) => each.name)).size, EXPERIMENTS.length);
  for (const each of EXPERIMENTS)
    t.ok(each.rateMbit.quick > 0 && each.rateMbit.full >= each.rateMbit.quick && each.about.length > 20, each.name);
});
