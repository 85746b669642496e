/**
 * The testbed on real namespaces and shaped links: it goes up, it goes away whatever happens, and the quick forms of
 * two experiments have the shape they must have. Root and Mininet are needed; speed decides nothing here.
 */
import t from 'tap';
import type { Test } from 'tap';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ExperimentContext } from '../../testbed/experiments/experiment.js';
import { requireMachine } from '../../testbed/requirements.js';
import { starTopology } from '../../testbed/topology.js';
import type { Topology } from '../../testbed/topology.js';
import { until } from '../until.js';

// The built modules: they start processes from files beside them, which only the build has.
const built = (path: string): Promise<unknown> =>
  import(new URL(`../../dist/testbed/${path}.js`, import.meta.url).href);
const { Testbed } = (await built('testbed')) as typeof import('../../testbed/testbed.js');
const { run } = (await built('network')) as typeof import('../../testbed/network.js');
const { runStripeSize } = (await built(
  'experiments/stripe-size',
)) as typeof import('../../testbed/experiments/stripe-size.js');
const { runFallback } = (await built('experiments/fallback')) as typeof import('../../testbed/experiments/fallback.js');

const HOLDER = join(fileURLToPath(new URL('../../dist/test/testbed/', import.meta.url)), 'hold.js');

const lacking = (() => {
  try {
    requireMachine();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
})();
const needs = { skip: lacking ?? false };

/** Slow enough that two busy CPUs keep up with it. */
const RATE_MBIT = 40;
const TINY: Topology = starTopology({ nodes: 1, rateMbit: RATE_MBIT });

function place(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'tartan-testbed-test-'));
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}

function contextOf(folder: string): ExperimentContext {
  return {
    quick: true,
    rateMbit: RATE_MBIT,
    command: 'test',
    folder,
    note: () => {},
    progress: { expect: () => {}, step: () => {} },
  };
}

/**
 * Processes that name the folder, Mininet's shells of the network that is marked with it, and interfaces that show
 * outside.
 */
function traces(folder: string): string[] {
  const named = readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid) && Number(pid) !== process.pid)
    .flatMap((pid) => {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ');
        const isShell =
          command.includes('mininet:') &&
          readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`TARTAN_TESTBED=${folder}`);
        return isShell || command.includes(`${folder}/`) ? [command] : [];
      } catch {
        return [];
      }
    });
  const bridges = readdirSync('/sys/class/net').filter((name) => /^([bnsw]\d+-|b1$)/.test(name));
  return [...named, ...bridges];
}

async function untilGone(folder: string): Promise<string[]> {
  await until(() => traces(folder).length === 0, `the end of everything that ${folder} names`);
  return traces(folder);
}

/** A testbed held by another process. @returns it, and the namespaces' processes, when it stands */
async function held(folder: string) {
  const { NODE_OPTIONS: _, ...env } = process.env;
  const child = spawn(process.execPath, [HOLDER, folder], { stdio: ['ignore', 'pipe', 'pipe'], env });
  let err = '';
  child.stderr.on('data', (chunk: Buffer) => {
    err += chunk.toString();
  });
  const [first] = (await Promise.race([
    once(child.stdout, 'data'),
    once(child, 'exit').then(() => {
      throw new Error(`the holder ended: ${err}`);
    }),
  ])) as [Buffer];
  return { child, pids: JSON.parse(first.toString()) as number[] };
}

t.test(
  "hosts reach each other over their links, at most at the links' rate; nothing is left afterwards",
  needs,
  async (t) => {
    const folder = place(t);
    let namespaces: number[] = [];
    await Testbed.use(
      { topology: starTopology({ nodes: 2, rateMbit: RATE_MBIT, bypass: true }), durability: 'discard', folder },
      async (testbed) => {
        namespaces = ['w1', 's1', 'n1', 'n2'].map((host) => testbed.network.pidOf(host));
        t.ok(traces(folder).length >= 7, 'shells and processes are seen while they run');
        t.ok(
          (await run([...testbed.network.enter('w1'), 'ip', 'route', 'get', testbed.address('n1')])).includes(
            'dev w1-s1',
          ),
          'to a node: through the switch host',
        );
        t.match(await run([...testbed.network.enter('s1'), 'tc', 'class', 'show', 'dev', 's1-n2']), /rate 40Mbit/);
        await testbed.setLink('w1', 's1', false);
        t.ok(
          (await run([...testbed.network.enter('w1'), 'ip', 'route', 'get', testbed.address('n1')])).includes(
            'dev w1-b1',
          ),
          'its link cut: over the bridge',
        );
        await testbed.setLink('w1', 's1', true);
        t.ok(
          (await run([...testbed.network.enter('w1'), 'ip', 'route', 'get', testbed.address('n1')])).includes(
            'dev w1-s1',
          ),
          'and back',
        );
        t.notOk(readdirSync('/sys/class/net').includes('b1'), 'no bridge shows outside');
        t.equal(
          (await testbed.switch('s1', 'status')).state,
          'programmable',
          "control calls are authenticated by the testbed's secret",
        );
      },
    );
    t.same(await untilGone(folder), []);
    for (const pid of namespaces) t.notOk(existsSync(`/proc/${pid}/ns/net`), `namespace of ${pid}`);
    t.same(readdirSync(folder), [], 'nothing in its folder');
  },
);

t.test('a testbed whose work fails is taken down, and the failure is what is told', needs, async (t) => {
  const folder = place(t);
  await t.rejects(
    Testbed.use({ topology: TINY, durability: 'discard', folder }, async () => {
      throw new Error('the work failed');
    }),
    { message: 'the work failed' },
  );
  t.same(await untilGone(folder), []);
});

t.test('a port in use is told in one line, and the machine left clean', needs, async (t) => {
  const folder = place(t);
  await Testbed.use({ topology: TINY, durability: 'discard', folder }, async (testbed) => {
    // The agent runs already: its address and port are taken.
    await t.rejects(testbed.start('s1'), { message: /^Cannot start s1: [^\n]*(in use|listen)[^\n]*$/i });
  });
  t.same(await untilGone(folder), []);
});

t.test('a second testbed in the same place is refused while the first runs', needs, async (t) => {
  const folder = place(t);
  const { child } = await held(folder);
  await t.rejects(
    Testbed.use({ topology: TINY, durability: 'discard', folder }, async () => {}),
    { code: 'ERR_IN_USE' },
  );
  child.kill('SIGINT');
  const [status] = (await once(child, 'exit')) as [number];
  t.equal(status, 3, 'the holder was told that it was interrupted');
  t.same(await untilGone(folder), []);
  t.same(readdirSync(folder), []);
});

t.test(
  'killed, a testbed takes processes and namespaces with it; its folder is removed by the next',
  needs,
  async (t) => {
    const folder = place(t);
    const { child, pids } = await held(folder);
    child.kill('SIGKILL');
    await once(child, 'exit');
    t.same(await untilGone(folder), [], 'no process, no bridge');
    for (const pid of pids) t.notOk(existsSync(`/proc/${pid}/ns/net`), `namespace of ${pid}`);
    const notes: string[] = [];
    await Testbed.use(
      {
        topology: TINY,
        durability: 'discard',
        folder,
        note: (line) => {
          notes.push(line);
        },
      },
      async () => {},
    );
    t.match(notes, ['removed what an earlier testbed left']);
    t.same(readdirSync(folder), []);
  },
);

t.test(
  "stripe-size: the writer's link carries each byte once with parity in the switch, and the gain is told",
  needs,
  async (t) => {
    const folder = place(t);
    const result = await runStripeSize(contextOf(folder), {
      codes: ['xor(2+1)'],
      units: [16, 64],
      repetitions: 1,
      warmupSeconds: 1,
      seconds: 2,
    });
    t.equal(result.rows.length, 4);
    for (const row of result.rows) {
      const once = row['parity'] === 'switch';
      t.ok(
        Number(row['onLink']) >= (once ? 1 : 1.5) && Number(row['onLink']) < (once ? 1.15 : 1.7),
        `${String(row['unitKiB'])} KiB, ${String(row['parity'])}: ${String(row['onLink'])} bytes a byte`,
      );
      t.ok(
        Number(row['mbPerS']) > 0 && Number(row['mbPerS']) < (RATE_MBIT / 8) * 1.2,
        `${String(row['mbPerS'])} MB/s on a link of ${RATE_MBIT / 8}`,
      );
    }
    t.ok(
      result.rows.some((row) => Number(row['ratio']) > 0),
      'the gain is told; how much it is, the experiment says',
    );
    t.same(await untilGone(folder), []);
  },
);

t.test('fallback: the writer goes to host parity at every loss, comes back, and nothing is lost', needs, async (t) => {
  const folder = place(t);
  const result = await runFallback(contextOf(folder), {
    phaseMs: 2000,
    unitBytes: 16384,
    deadlineMs: 600,
    holdMs: 200,
    naiveSeconds: 1,
    repetitions: 1,
  });
  const lost = result.goals.find((each) => each.goal.startsWith('acknowledged bytes lost'));
  t.equal(lost?.met, true, lost?.reached ?? 'no such goal');
  const events = result.rows.filter((row) => row['event'] !== null);
  t.same(
    events.map((row) => row['event']),
    ['program lost', 'program back', 'killed', 'started again', 'stopped', 'goes on', 'link cut', 'link back'],
  );
  const modes = result.rows.map((row) => row['mode']).filter((mode, i, all) => i === 0 || mode !== all[i - 1]);
  // On a busy machine a loss may come before the writer is back from the one before.
  t.ok(
    modes.filter((mode) => mode === 'host').length >= 2 && modes.filter((mode) => mode === 'switch').length >= 2,
    `the parity was made in: ${modes.join(', ')}`,
  );
  const moved = result.rows.reduce((sum, row) => sum + Number(row['mbPerS']) / 100, 0);
  t.ok(moved > 0, `about ${moved.toFixed(0)} MB were acknowledged in the timeline`);
  t.same(await untilGone(folder), []);
});
