/**
 * Files through a real BMv2 (docs/p4.md): written while packets are lost, while the program is swapped for one that
 * only forwards and back, while the switch is killed and its agent is; read back equal, also with as many nodes gone as
 * the code bears. TARTAN_LONG=1 writes longer.
 */
import { randomInt } from 'node:crypto';
import t, { type Test } from 'tap';
import type { TimelineResult } from '../../testbed/timeline.js';
import type { Bmv2Network as Bmv2NetworkOf } from './bmv2-network.js';

// As built: it starts processes from files beside those it imports, which only the build has.
const { Bmv2Network, noStories } = (await import(
  new URL('../../dist/test/stories/bmv2-network.js', import.meta.url).href
)) as typeof import('./bmv2-network.js');
type Bmv2Network = Bmv2NetworkOf;

const seed = Number(process.env['TARTAN_TEST_SEED'] ?? randomInt(1, 2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);
const long = process.env['TARTAN_LONG'] === '1';
const ACCESS = { parity: 'switch', deadlineMs: 3000, holdMs: 300, ringMemoryBytes: 128 << 20 } as const;
const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

const ECHO =
  `const s = require('node:dgram').createSocket('udp4'); s.on('message', (m, { port, address }) => s.send(m, ` +
  'port, address)); s.bind(9000);';
const CLIENT = `const s = require('node:dgram').createSocket('udp4'); let sent = 0, received = 0;
s.on('message', () => { received++; });
const timer = setInterval(() => { s.send('not ours', 9000, '10.5.0.12'); sent++; }, 20);
process.stdin.resume().on('end', () => { clearInterval(timer);
  setTimeout(() => { console.log(JSON.stringify({ sent, received })); process.exit(); }, 500); });`;

/**
 * Writes a file while `meanwhile` goes on, and compares what reads back, with `gone` nodes killed before the second
 * reading.
 */
async function story(
  t: Test,
  network: Bmv2Network,
  file: { name: string; code: string; unitBytes: number },
  meanwhile: () => Promise<void>,
  gone: readonly string[] = [],
): Promise<TimelineResult> {
  const access = { cluster: network.cluster, ...ACCESS },
    worker = network.worker();
  await worker.call('beginTimeline', { access, file, sampleMs: 50 });
  await meanwhile();
  const result = await worker.call('endTimeline', { name: file.name });
  t.ok(
    result.bytes > 0,
    `${(result.bytes / 1e6).toFixed(1)} MB written, ${result.stripesRedriven} stripes driven again`,
  );
  const whole = await worker.call('read', { access, name: file.name });
  t.same([whole.bytes, whole.sha256], [result.bytes, result.sha256], `${file.name} reads back`);
  for (const name of gone) await network.kill(name);
  if (gone.length > 0) {
    const degraded = await worker.call('read', { access, name: file.name });
    t.same([degraded.bytes, degraded.sha256], [result.bytes, result.sha256], `and with ${gone.join(', ')} gone`);
  }
  return result;
}

for (const [code, k, m, artefact] of [
  ['xor(2+1)', 2, 1, 'parity-k2-9000'],
  ['rs(4,2)', 4, 2, 'parity-k4-9000'],
  ['rs(8,3)', 8, 3, 'parity-k8-9000'],
] as const) {
  void t.test(
    `${code} through BMv2, with 1 % and 10 % of all packets lost, reads back, also with ${m} nodes gone`,
    { skip: noStories },
    async (t) => {
      await Bmv2Network.use({ nodes: k + m, artefact }, async (network) => {
        for (const percent of [0, 1, 10]) {
          network.lose(percent);
          const result = await story(
            t,
            network,
            { name: `lost-${percent}`, code, unitBytes: 16384 },
            () => pause(long ? 20_000 : 3000),
            percent === 10 ? network.nodeNames.slice(0, m) : [],
          );
          t.equal(result.modes[0]?.mode, 'switch', 'through the switch');
          t.comment(
            `${code}, ${percent} % lost: ${(result.bytes / 1e6 / (result.samples.at(-1)!.ms / 1000)).toFixed(2)} MB/s`,
          );
        }
      });
    },
  );
}

for (const [code, nodes, artefact, mtu] of [
  ['xor(2+1)', 3, 'parity-k2-1500', 1500],
  ['rs(4,2)', 6, 'parity-k4-1500', 1500],
  ['rs(4,2)', 6, 'parity-k8-9000', 9500],
] as const) {
  void t.test(
    `${code} through ${artefact} with links of MTU ${mtu}, 2 % lost and 20 % overtaken at the endpoints, reads back`,
    { skip: noStories },
    async (t) => {
      await Bmv2Network.use({ nodes, artefact, mtu, impairment: `${seed},20,200` }, async (network) => {
        const result = await story(
          t,
          network,
          { name: 'overtaken', code, unitBytes: 4096 },
          () => pause(long ? 20_000 : 3000),
          ['n1'],
        );
        t.equal(result.modes[0]?.mode, 'switch', 'through the switch');
        t.comment(`${(result.bytes / 1e6 / (result.samples.at(-1)!.ms / 1000)).toFixed(2)} MB/s`);
      });
    },
  );
}

void t.test(
  'a code that the program does not compute is computed by the writer, and decodes',
  { skip: noStories },
  async (t) => {
    await Bmv2Network.use({ nodes: 6, artefact: 'parity-k4-9000' }, async (network) => {
      const result = await story(
        t,
        network,
        { name: 'cauchy', code: 'cauchy(4,2)', unitBytes: 16384 },
        () => pause(1500),
        ['n1', 'n2'],
      );
      t.same(result.modes, [], 'never through the switch');
    });
  },
);

void t.test(
  'the program is swapped for one that only forwards and back ten times while a file is written; other traffic goes on',
  { skip: noStories },
  async (t) => {
    await Bmv2Network.use({ nodes: 4, artefact: 'parity-k2-9000' }, async (network) => {
      // What isn't ours: a datagram every 20 ms from the writer's host to a node's, and back.
      const echo = network.spawn('n2', ECHO),
        client = network.spawn('w1', CLIENT);
      let text = '';
      client.stdout!.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
      const result = await story(
        t,
        network,
        { name: 'swapped', code: 'xor(2+1)', unitBytes: 16384 },
        async () => {
          for (let round = 0; round < 10; round++) {
            await pause(1000);
            await network.program('unload');
            await pause(300);
            await network.program('load');
            await network.until('programmable again', ({ switches }) => switches[0]?.state === 'programmable');
          }
          await pause(1000); // The write goes on.
        },
        ['n2'],
      );
      const modes = result.modes.map(({ mode }) => mode);
      t.ok(modes.filter((mode) => mode === 'host').length >= 5, `the writer fell back: ${modes.join(' ')}`);
      const over = new Promise((resolve) => {
        client.once('close', resolve);
      });
      client.stdin!.end();
      await over;
      echo.kill('SIGKILL');
      const { sent, received } = JSON.parse(text) as { sent: number; received: number };
      t.comment(`${sent} datagrams of others, ${received} answered`);
      // A swap of the pipeline takes tens of milliseconds, in which BMv2 forwards nothing.
      t.ok(sent > 300 && received >= sent * 0.8, 'foreign traffic goes on');
    });
  },
);

void t.test('BMv2 is killed and restarted while a file is written', { skip: noStories }, async (t) => {
  await Bmv2Network.use({ nodes: 3, artefact: 'parity-k2-9000' }, async (network) => {
    const result = await story(
      t,
      network,
      { name: 'killed', code: 'xor(2+1)', unitBytes: 16384 },
      async () => {
        await pause(1000); // The write goes on.
        await network.killBmv2();
        await pause(500); // The write goes on.
        await network.startBmv2();
        await network.until(
          'programmable again',
          ({ switches, nodes }) => switches[0]?.state === 'programmable' && nodes.every(({ state }) => state === 'up'),
        );
        await pause(2000); // The write goes on.
      },
      ['n1'],
    );
    t.match(
      result.modes.map(({ mode }) => mode),
      ['switch', 'host', 'switch'],
      'to the host, and back',
    );
  });
});

void t.test(
  'the agent is killed and restarted while a file is written: the switch goes on without it',
  { skip: noStories },
  async (t) => {
    await Bmv2Network.use({ nodes: 3, artefact: 'parity-k2-9000' }, async (network) => {
      const result = await story(
        t,
        network,
        { name: 'agent', code: 'xor(2+1)', unitBytes: 16384 },
        async () => {
          await pause(800); // The write goes on.
          await network.kill('s1');
          await pause(1000); // The write goes on.
          await network.start('s1');
          await network.until('programmable again', ({ switches }) => switches[0]?.state === 'programmable');
          await pause(1500); // The write goes on.
        },
        ['n3'],
      );
      t.equal(result.modes[0]?.mode, 'switch');
    });
  },
);

void t.test('a node is killed and restarted while a file is written', { skip: noStories }, async (t) => {
  await Bmv2Network.use({ nodes: 4, artefact: 'parity-k2-9000', durability: 'sync' }, async (network) => {
    await story(t, network, { name: 'node', code: 'xor(2+1)', unitBytes: 16384 }, async () => {
      await pause(800); // The write goes on.
      await network.kill('n2');
      await pause(3000); // The write goes on.
      await network.start('n2');
      await network.until('up again', ({ nodes }) => nodes.every(({ state }) => state === 'up'));
      await pause(1500); // The write goes on.
    });
  });
});
