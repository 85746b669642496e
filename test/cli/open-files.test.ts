/** A process that may open no more files is itself to blame: what it can't reach is not down. */
import t from 'tap';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readMap } from '../../cluster/membership.js';
import { openClusterStore } from '../../cluster/open-store.js';
import { run, startCluster } from './command.js';

t.test('a client with too many files open says so, and marks no node down', async (t) => {
  const dir = await startCluster(t, '--no-repairer'),
    cluster = join(dir, 'cluster');
  const store = await openClusterStore(cluster);
  t.teardown(() => store.close());
  const before = await readMap(store);
  const child = fileURLToPath(new URL('open-files-child.ts', import.meta.url));
  const line = 'ulimit -n 256; exec "$0" --import tsx "$@"';
  const { status, stdout, stderr } = await run('bash', ['-c', line, process.execPath, child, cluster, 'tcp']);
  t.same([status, stderr], [0, '']);
  const { outcomes, words } = JSON.parse(stdout) as { outcomes: string[]; words: Record<string, string[]> };
  t.comment(outcomes.join(' '));
  t.same(words, {
    with: ['ERR_CONNECT', 'ERR_CONNECT'],
    without: ['ERR_TOO_MANY_FILES', 'ERR_TOO_MANY_FILES'],
  });
  t.equal(outcomes[0], 'stored');
  t.equal(outcomes.at(-1), 'stored', 'with files closed again it goes on');
  t.same(
    outcomes.filter((each) => ['ERR_CONNECT', 'ERR_DEADLINE', 'ERR_TOO_MANY_LOST'].includes(each)),
    [],
    'and never that somebody else was at fault',
  );
  const after = await readMap(store);
  t.same([after.epoch, after.nodes.map(({ state }) => state)], [before.epoch, ['up', 'up', 'up']]);
});
