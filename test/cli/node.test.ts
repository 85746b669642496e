/** `tartan node` on a real cluster: listed, added, replaced, removed; and refused where data would be lost. */
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import t, { type Test } from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { presentNodes, readMap } from '../../cluster/membership.js';
import { openClusterStore } from '../../cluster/open-store.js';
import { RepairHold, percentOf, readRepair } from '../../cluster/repair-hold.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { realClock } from '../../wire/clock.js';
import { randomBytes } from '../random-bytes.js';
import { until } from '../until.js';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');

interface NodeRow {
  readonly id: string;
  readonly state: string;
  readonly purpose: string;
  readonly files: number;
  readonly present: boolean;
  readonly store: string;
  readonly pid: number | null;
}

/** Of SIGTERM in a mask of signals. */
const TERM_BIT = 1 << 14;

function statusOf(pid: number): string {
  return readFileSync(`/proc/${pid}/status`, 'latin1');
}

async function cluster(t: Test, nodes: number) {
  // Not the test's own folder: that goes before the teardown that ends what runs in it.
  const dir = join(mkdtempSync(join(tmpdir(), 'tartan-node-')), 'state');
  const { NODE_OPTIONS: _, ...env } = process.env;
  const run = (...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> =>
    new Promise((done) => {
      execFile(
        process.execPath,
        [MAIN, '--dir', dir, ...args],
        { env, maxBuffer: 1 << 26 },
        (error, stdout, stderr) => {
          done({ status: error ? Number(error.code ?? 255) : 0, stdout, stderr });
        },
      );
    });
  const well = async (...args: string[]): Promise<string> => {
    const { status, stdout, stderr } = await run(...args);
    if (status !== 0) t.fail(`tartan ${args.join(' ')}: ${status} ${stderr}`);
    return stdout;
  };
  t.teardown(async () => {
    const { status, stderr } = await run('down');
    if (status !== 0) throw new Error(`what was started may still run: ${stderr}`);
    rmSync(dirname(dir), { recursive: true });
  });
  await well('up', '--nodes', String(nodes), '--size', '256MiB', '--no-repairer');
  const put = async (name: string, bytes: number, code: string): Promise<string> => {
    const file = join(dir, `${name}.original`),
      data = randomBytes(bytes);
    writeFileSync(file, data);
    await well('put', file, name, '--code', code);
    return createHash('sha256').update(data).digest('hex');
  };
  const sha = async (name: string): Promise<string> => {
    await well('get', name, join(dir, `${name}.copy`), '--force');
    return createHash('sha256')
      .update(readFileSync(join(dir, `${name}.copy`)))
      .digest('hex');
  };
  /** What it waits for is asked of the store itself: a command for each question costs half a second. */
  const store = async (action: (open: ClusterStore) => Promise<void>): Promise<void> => {
    const open = await openClusterStore(join(dir, 'cluster'));
    await action(open).finally(() => open.close());
  };
  const list = async (): Promise<NodeRow[]> => JSON.parse(await well('node', 'list', '--json')) as NodeRow[];
  return { dir, run, well, put, sha, list, store, env };
}

t.test(
  "a node's store is replaced and filled, another dies, every byte is there; more than the code bears is refused",
  async (t) => {
    const { dir, run, well, put, sha, list, store } = await cluster(t, 3);
    const first = await put('a', 3_000_001, 'xor(2+1)'),
      second = await put('b', 1, 'xor(2+1)');
    const before = await list();
    t.same(
      before.map(({ id, state, files }) => [id, state, files]),
      [
        ['n1', 'up', 2],
        ['n2', 'up', 2],
        ['n3', 'up', 2],
      ],
    );
    const said = await well('node', 'replace', 'n2', '--size', '256MiB');
    t.match(said, /n2 runs with a blank store on port \d+; the old one is .*n2\.replaced-1/);
    t.match(said, /^a +23 .* 0$/m, 'every stripe was looked at, none is lost');
    t.ok(existsSync(join(dir, 'nodes', 'n2.replaced-1', 'units')));
    const after = await list();
    t.not(after[1]!.store, before[1]!.store, 'another store');
    t.equal(after[1]!.state, 'up');
    process.kill(after[2]!.pid!, 'SIGKILL');
    // The map calls it up until somebody needs it; that its lease is gone is enough.
    await store((open) => until(async () => !(await presentNodes(open)).has('n3'), 'the end of its lease'));
    t.same([await sha('a'), await sha('b')], [first, second], 'read without n3, so from what n2 was given');
    const refused = await run('node', 'replace', 'n1');
    t.equal(refused.status, 1);
    t.match(
      refused.stderr,
      /^tartan: ERR_WOULD_LOSE: Cannot replace the store of node n1: .*n3.*'a', 'b' would be lost/,
    );
    t.equal((await list())[0]!.pid, before[0]!.pid, 'n1 goes on undisturbed');
    for (const [args, code] of [
      [['node', 'replace', 'n9'], 'ERR_NOT_FOUND'],
      [['node', 'remove', 'n9'], 'ERR_NOT_FOUND'],
      [['node', 'replace', 's1'], 'ERR_NOT_FOUND'],
    ] as const) {
      t.match((await run(...args)).stderr, new RegExp(`^tartan: ${code}: [^\\n]+\\n$`), args.join(' '));
    }
  },
);

t.test(
  'a replacement that is interrupted or killed leaves the old store or a new one, and is done again',
  async (t) => {
    const { dir, well, put, sha, list, store, env } = await cluster(t, 3);
    const bytes = await put('a', 3_000_001, 'xor(2+1)');
    const before = await list();
    const replacing = (...args: string[]) => {
      const child = spawn(
        process.execPath,
        [MAIN, '--dir', dir, 'node', 'replace', 'n2', '--size', '256MiB', ...args],
        { env, stdio: ['ignore', 'ignore', 'pipe'] },
      );
      t.teardown(() => {
        child.kill('SIGKILL');
      });
      let said = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        said += text;
      });
      const ended = new Promise<readonly [string | null, string]>((done) => {
        child.once('close', (_, signal) => {
          done([signal, said]);
        });
      });
      return { child, ended };
    };
    /** One that waits for n2, which has been told to end and can't hear it. */
    const stopping = async () => {
      const pid = (await list())[1]!.pid!;
      process.kill(pid, 'SIGSTOP');
      const replacement = replacing();
      await until(
        () => (parseInt(/^ShdPnd:\s*(\S+)/m.exec(statusOf(pid))![1]!.slice(-8), 16) & TERM_BIT) !== 0,
        'the word to end',
      );
      return { ...replacement, goOn: () => process.kill(pid, 'SIGCONT') };
    };

    const first = await stopping();
    first.child.kill('SIGINT');
    first.goOn();
    const [signal, said] = await first.ended;
    t.equal(signal, 'SIGINT');
    t.match(
      said,
      /^tartan: ERR_INTERRUPTED: Replacing the store of node n2 was interrupted: n2 goes on with the store/m,
    );
    t.match((await list())[1], { state: 'up', store: before[1]!.store });

    const second = await stopping();
    second.child.kill('SIGKILL');
    await second.ended;
    second.goOn();
    await store((open) => until(async () => !(await presentNodes(open)).has('n2'), 'the end of its lease'));
    t.equal(await sha('a'), bytes, 'read without it');
    // Begun again, and killed when the new store is there and nothing in it.
    const pidOf = () =>
      (
        JSON.parse(readFileSync(join(dir, 'processes.json'), 'utf8')) as {
          processes: { id: string; identity: { pid: number } }[];
        }
      ).processes.find(({ id }) => id === 'n2')?.identity.pid;
    const old = pidOf(),
      third = replacing('--no-rebuild');
    await until(() => pidOf() !== old, 'another process');
    third.child.kill('SIGKILL');
    await third.ended;
    await well('node', 'replace', 'n2', '--size', '256MiB');
    const after = await list();
    t.match(after[1], { state: 'up' });
    t.not(after[1]!.store, before[1]!.store);
    process.kill(after[2]!.pid!, 'SIGKILL');
    await store((open) => until(async () => !(await presentNodes(open)).has('n3'), 'the end of its lease'));
    t.equal(await sha('a'), bytes, 'read without n3, so from what n2 was given');
  },
);

t.test('a node is added, used by new files, and removed when no file needs it', async (t) => {
  const { run, well, put, sha, list } = await cluster(t, 3);
  const old = await put('old', 500_000, 'xor(2+1)');
  t.equal((await run('put', MAIN, 'wide', '--code', 'rs(2,2)')).status, 1, 'three nodes are too few for it');
  t.match(await well('node', 'add', '--size', '256MiB'), /^n4 runs on port \d+/);
  const wide = await put('wide', 500_000, 'rs(2,2)');
  t.same(
    (await list()).map(({ id, files }) => [id, files]),
    [
      ['n1', 2],
      ['n2', 2],
      ['n3', 2],
      ['n4', 1],
    ],
  );
  const refused = await run('node', 'remove', 'n4');
  t.match(refused.stderr, /^tartan: ERR_WOULD_LOSE: Cannot remove node n4: 'wide' keeps units there/);
  t.equal(await sha('wide'), wide);
  await well('rm', 'wide');
  t.match(await well('node', 'remove', 'n4'), /^n4 is removed/);
  t.same(
    (await list()).map(({ id }) => id),
    ['n1', 'n2', 'n3'],
  );
  t.equal(await sha('old'), old);
  t.match((await run('node', 'remove', 'n3')).stderr, /ERR_WOULD_LOSE/);
});

t.test('a node is drained while files are read and written, removed, and another dies', async (t) => {
  const { run, well, put, sha, list, store } = await cluster(t, 3);
  const old = await put('old', 5_000_001, 'xor(2+1)');
  t.match(
    (await run('node', 'drain', 'n2')).stderr,
    /^tartan: ERR_NOT_ENOUGH_NODES: Cannot empty node n2: 'old' uses every node that is up; add a node first\n$/,
  );
  t.match(
    await list(),
    [{ id: 'n1' }, { id: 'n2', purpose: 'member' }, { id: 'n3' }],
    'a refused drain changes nothing',
  );
  await well('node', 'add', '--size', '256MiB');
  const refused = await run('node', 'remove', 'n2');
  t.match(
    refused.stderr,
    /^tartan: ERR_WOULD_LOSE: Cannot remove node n2: 'old' keeps units there; `tartan node drain n2` moves them/,
  );
  const draining = well('node', 'drain', 'n2', '--rate', '400KB');
  await store((open) =>
    until(
      async () => (await readMap(open)).nodes.some(({ id, leaving }) => id === 'n2' && leaving === true),
      'the drain to begin',
    ),
  );
  const wide = await put('wide', 700_000, 'xor(2+1)');
  t.equal(await sha('old'), old, 'read meanwhile');
  t.match(await draining, /^n2 holds nothing any more: 1 file moved, \S+ \S+; `tartan node remove n2` takes it out\n$/);
  t.match(await well('node', 'remove', 'n2'), /^n2 is removed/);
  t.match((await run('node', 'drain', 'n2')).stderr, /^tartan: ERR_NOT_FOUND/);
  const rows = await list();
  t.same(
    rows.map(({ id, files }) => [id, files]),
    [
      ['n1', 2],
      ['n3', 2],
      ['n4', 2],
    ],
  );
  t.match(await well('node', 'rebalance', '--rate', '20MB'), /^ID +BEFORE +AFTER\nn1 [\s\S]*\n\d+ shares? moved, /);
  t.match((await run('node', 'rebalance', 'n9')).stderr, /^tartan: ERR_NOT_FOUND: Cannot move shares to node 'n9'/);
  await well('down');
  t.notMatch(await well('up', '--size', '256MiB', '--no-repairer'), /^n2/m, 'who was removed is not started again');
  t.same(
    (await list()).map(({ id, state, present }) => [id, state, present]),
    [
      ['n1', 'up', true],
      ['n3', 'up', true],
      ['n4', 'up', true],
    ],
    'and who was added is',
  );
  process.kill((await list())[0]!.pid!, 'SIGKILL');
  t.equal(await sha('old'), old, 'and with n1 gone');
  t.equal(await sha('wide'), wide);
});

t.test(
  'one rebuild at a time: status tells how far it is, another is refused; a killed one leaves nothing in the way',
  async (t) => {
    const { dir, run, well, put, list, store, env } = await cluster(t, 3);
    await put('a', 8_000_000, 'xor(2+1)');
    await well('node', 'replace', 'n1', '--size', '256MiB', '--no-rebuild', '--discard');
    const slow = spawn(process.execPath, [MAIN, '--dir', dir, 'rebuild', '--rate', '50KB'], { stdio: 'ignore', env });
    const ended = new Promise((done) => {
      slow.once('exit', done);
    });
    t.teardown(() => {
      slow.kill('SIGKILL');
    });
    await store((open) => until(async () => (await readRepair(open)) !== undefined, 'the rebuild'));
    t.match(
      await well('status'),
      new RegExp(
        `^rebuild: \\d+ % \\(\\d+ of 62 stripes, .* restored\\), (about \\d+ s left|time left unknown); ` +
          `process ${slow.pid} on `,
        'm',
      ),
    );
    for (const args of [['rebuild'], ['scrub'], ['node', 'replace', 'n2', '--no-rebuild']]) {
      const refused = await run(...args);
      t.equal(refused.status, 1);
      t.match(
        refused.stderr,
        /^tartan: ERR_IN_USE: Cannot (rebuild|scrub): process \d+ on .* is at it \(rebuild, /,
        args.join(' '),
      );
    }
    t.equal((await list())[1]!.state, 'up', 'n2 goes on with the store it had');
    slow.kill('SIGKILL');
    await ended;
    await store((open) => until(async () => (await readRepair(open)) === undefined, 'the end of the rebuild'));
    const rest = JSON.parse(await well('rebuild', '--json')) as {
      unitsRestored: number;
      unitsMissing: number;
      stripesLost: number;
    }[];
    t.match(rest, [{ stripesLost: 0 }]);
    t.ok(
      rest[0]!.unitsRestored > 0 && rest[0]!.unitsRestored < 62,
      `what was restored before stays: ${rest[0]!.unitsRestored} of 62 were left`,
    );
    t.equal((await list())[0]!.state, 'up');
  },
);

t.test('the hold on repairing is told, kept and released', async (t) => {
  const shared = new MemoryCluster(realClock),
    store = shared.client();
  t.teardown(() => {
    shared.close();
  });
  t.equal(await readRepair(store), undefined);
  const hold = await RepairHold.take(store, 'scrub', 2, 8);
  await t.rejects(RepairHold.take(store, 'rebuild', 1, 1), {
    code: 'ERR_IN_USE',
    message: /Cannot rebuild: process \d+ on .* is at it \(scrub, 0 %\)/,
  });
  hold.tell({ filesDone: 1, stripesDone: 6, bytesRestored: 9 });
  for (let i = 0; i < 500 && (await readRepair(store))?.stripesDone === 0; i++) await new Promise(setImmediate);
  const told = (await readRepair(store))!;
  t.match(told, {
    what: 'scrub',
    files: 2,
    filesDone: 1,
    stripes: 8,
    stripesDone: 6,
    bytesRestored: 9,
    pid: process.pid,
  });
  t.equal(percentOf(told), 75);
  await hold.release();
  t.equal(await readRepair(store), undefined);
  await (await RepairHold.take(store, 'rebuild', 0, 0)).release();
});
