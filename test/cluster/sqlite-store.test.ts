import { cpSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database from 'better-sqlite3';
import { open } from 'lmdb';
import t, { type Test } from 'tap';
import type { ClusterStore, WatchEvent } from '../../cluster/cluster-store.js';
import { openDatabase } from '../../cluster/sqlite-database.js';
import { openSqliteStore } from '../../cluster/sqlite-store.js';
import { DATABASE_FILE } from '../../cluster/store-files.js';
import { ownIdentity, isRunning } from '../../cluster/process-identity.js';
import { mayMount } from '../small-file-system.js';
import { startChild, type Child } from './children.js';
import { conformance } from './conformance.js';
import { collect } from './watching.js';

conformance('SQLite', async (options) => {
  const dir = temporaryDirectory();
  const clients: ClusterStore[] = [];
  // One stays open: the sweep of leases must not depend on who closes.
  clients.push(await openSqliteStore(dir, { create: true, ...options }));
  return {
    client: async () => {
      const client = await openSqliteStore(dir);
      clients.push(client);
      return client;
    },
    pass: () => Promise.resolve(),
    close: async () => {
      await Promise.all(clients.map((client) => client.close()));
      rmSync(dir, { recursive: true });
    },
  };
});

t.test('what was acknowledged is there when the store is opened again', async (t) => {
  const dir = directory(t);
  const first = await openSqliteStore(dir, { create: true });
  await first.transact([], [{ put: 'a', value: '1' }]);
  await first.close();
  const again = await store(t, dir);
  t.match(await again.get('a'), { value: '1', modRevision: 1 });
  t.same(await again.transact([], [{ put: 'b', value: '2' }]), { succeeded: true, revision: 2 });
});

t.test('opening while the last user closes works, by any name of the directory', async (t) => {
  const dir = directory(t),
    link = `${dir}-link`;
  symlinkSync(dir, link);
  t.teardown(() => {
    rmSync(link);
  });
  for (let i = 0; i < 20; i++) {
    const one = await openSqliteStore(dir, { create: true });
    const closing = one.close(),
      two = await openSqliteStore(link);
    await two.transact([], [{ put: 'a', value: String(i) }]);
    t.equal((await two.get('a'))?.value, String(i));
    await Promise.all([closing, two.close()]);
  }
});

t.test('a directory that holds no store is refused, in one line', async (t) => {
  const dir = directory(t);
  const refuses = async (path: string, code: string, create: boolean) => {
    const error = await openSqliteStore(path, { create }).then(
      () => undefined,
      (e: unknown) => e as Error & { code: string },
    );
    t.equal(error?.code, code, `${path} ${create ? 'with' : 'without'} create: ${error?.message ?? 'opened'}`);
    t.notMatch(error?.message, '\n');
    t.match(error?.message, path);
  };
  const at = (name: string, content?: Buffer | string) => {
    mkdirSync(join(dir, name));
    if (content !== undefined) writeFileSync(join(dir, name, DATABASE_FILE), content);
    return join(dir, name);
  };
  await refuses(join(dir, 'absent'), 'ERR_NOT_FOUND', false);
  await refuses(at('empty'), 'ERR_NOT_FOUND', false);
  for (const create of [false, true]) {
    await refuses(at(`garbage-${create}`, 'x'.repeat(20_000)), 'ERR_FOREIGN_STORE', create);
    await refuses(at(`short-${create}`, 'x'), 'ERR_FOREIGN_STORE', create);
    const full = at(`full-${create}`);
    writeFileSync(join(full, 'photo.jpg'), '');
    await refuses(full, 'ERR_FOREIGN_STORE', create);
    writeFileSync(join(dir, `file-${create}`), '');
    await refuses(join(dir, `file-${create}`), 'ERR_FOREIGN_STORE', create);
    const other = new Database(join(at(`other-${create}`), DATABASE_FILE));
    other.exec('CREATE TABLE hello (world)');
    other.close();
    await refuses(join(dir, `other-${create}`), 'ERR_FOREIGN_STORE', create);
    const newer = openDatabase(at(`newer-${create}`), true);
    newer.pragma('user_version = 2');
    newer.close();
    await refuses(join(dir, `newer-${create}`), 'ERR_STORE_VERSION', create);
  }
});

t.test('a store of the format before this one, in LMDB, becomes one of this, once', async (t) => {
  const dir = directory(t);
  const old = open<unknown, (string | number)[]>({ path: dir, noSubdir: false, encoding: 'json' });
  await old.put(['format', 'tartan-cluster-store'], { version: 1 });
  await old.put(['number', 'revision'], 7);
  await old.put(['number', 'last-lease'], 11);
  await old.put(['key', 'a'], { value: '1', createRevision: 3, modRevision: 7 });
  await old.put(['key', 'ü'], { value: '2', createRevision: 6, modRevision: 6, lease: 'b' });
  await old.put(['log', 6], [{ type: 'put', key: 'ü', value: '2' }]);
  await old.put(['log', 7], [{ type: 'put', key: 'a', value: '1' }]);
  await old.put(['tombstone', 'gone'], 2);
  await old.put(['lease', 'b'], { ttlMs: 1e9, deadlineMs: 1e15, keys: ['ü'] });
  await old.close();
  const first = await openSqliteStore(dir);
  t.same(await first.range(''), [
    { key: 'a', value: '1', createRevision: 3, modRevision: 7, lease: undefined },
    { key: 'ü', value: '2', createRevision: 6, modRevision: 6, lease: 'b' },
  ]);
  t.equal(await first.revision(), 7);
  const seen = collect(first, '', 5);
  await seen.until((events) => events.length === 2);
  seen.close();
  t.match(await first.grantLease(1000), { id: 'c' });
  await first.transact([], [{ put: 'a', value: 'new' }]);
  await first.close();
  t.match(await (await store(t, dir)).get('a'), { value: 'new', modRevision: 8 });
  t.ok(existsSync(join(dir, 'data.mdb.migrated')) && !existsSync(join(dir, 'data.mdb')));

  // Cut off before the new database was made: it is made now. Cut off before the old file was put aside: only that.
  const cut = directory(t);
  cpSync(join(dir, 'data.mdb.migrated'), join(cut, 'data.mdb'));
  writeFileSync(join(cut, DATABASE_FILE), '');
  const resumed = await openSqliteStore(cut, { create: true });
  t.match(await resumed.get('a'), { value: '1', modRevision: 7 });
  await resumed.transact([], [{ put: 'a', value: 'newer' }]);
  await resumed.close();
  renameSync(join(cut, 'data.mdb.migrated'), join(cut, 'data.mdb'));
  t.match(await (await store(t, cut)).get('a'), { value: 'newer', modRevision: 8 });

  const foreign = directory(t);
  const other = open({ path: foreign, noSubdir: false });
  await other.put('hello', 'world');
  await other.close();
  await t.rejects(openSqliteStore(foreign), { code: 'ERR_FOREIGN_STORE' });
  const newer = directory(t);
  const later = open<unknown, string[]>({ path: newer, noSubdir: false, encoding: 'json' });
  await later.put(['format', 'tartan-cluster-store'], { version: 2 });
  await later.close();
  await t.rejects(openSqliteStore(newer), { code: 'ERR_STORE_VERSION' });
});

t.test('a store whose files are replaced while it is open refuses to go on', async (t) => {
  const dir = directory(t);
  const lost = await openSqliteStore(dir, { create: true });
  t.teardown(() => lost.close());
  await lost.transact([], [{ put: 'a', value: '1' }]);
  renameSync(dir, `${dir}-moved`);
  t.teardown(() => {
    rmSync(`${dir}-moved`, { recursive: true });
  });
  const error = await eventually(() =>
    lost.get('a').then(
      () => undefined,
      (e: unknown) => e as Error,
    ),
  );
  t.match(error, { code: 'ERR_MAP_UNAVAILABLE', message: /removed while it was open/ });
});

t.test('four processes that increment one counter end with the exact sum', async (t) => {
  const dir = directory(t),
    counter = await store(t, dir),
    each = 100;
  const children = Array.from({ length: 4 }, () => start(t, ['increment', dir, 'counter', String(each)]));
  t.same(await Promise.all(children.map((child) => child.ended)), [0, 0, 0, 0]);
  t.match(await counter.get('counter'), { value: String(4 * each), modRevision: 4 * each });
});

t.test('another process sees each change once, in order', async (t) => {
  const dir = directory(t),
    writer = await store(t, dir);
  const watcher = start(t, ['watch', dir, 'w/']);
  t.equal(await watcher.line(), 'watching');
  const seen: WatchEvent[] = [];
  for (let i = 1; i <= 200; i++) {
    await writer.transact([], [{ put: 'w/a', value: String(i) }]);
    // Sometimes it has caught up when the next change comes, sometimes not.
    if (i % 20 === 0) while (seen.at(-1)?.revision !== i) seen.push(JSON.parse(await watcher.line()) as WatchEvent);
  }
  t.same(
    seen,
    Array.from({ length: 200 }, (_, i) => ({ type: 'put', key: 'w/a', value: String(i + 1), revision: i + 1 })),
  );
});

t.test('a watch sees what another process wrote, also before it began', async (t) => {
  const dir = directory(t),
    watching = await store(t, dir);
  const seen = collect(watching, '', 0);
  t.equal(await start(t, ['put', dir, 'k', 'v']).ended, 0);
  await seen.until((events) => events.length === 1);
  t.same(seen.events, [{ type: 'put', key: 'k', value: 'v', revision: 1 }]);
  seen.close();
});

t.test(
  'a process killed in a storm of writes leaves whole transactions, all the acknowledged ones, and no lock',
  async (t) => {
    const dir = directory(t),
      survivor = await store(t, dir);
    for (let round = 0; round < 5; round++) {
      const child = start(t, ['storm', dir]);
      for (let i = 0; i < 10 + round * 17; i++) await child.line();
      await child.kill();
      const acknowledged = Math.max(0, ...child.rest().map(Number));
      // Killed between writing its meta page and publishing its number, a transaction shows only when the next writer
      // takes the dead one's lock: it was never acknowledged, so it may, but not between the reads below.
      t.ok((await survivor.transact([], [{ put: 'before', value: String(round) }])).succeeded);
      const a = await survivor.get('storm/a'),
        b = await survivor.get('storm/b');
      t.equal(a?.value, b?.value);
      t.equal(a?.modRevision, b?.modRevision);
      t.ok(Number(a?.value) >= acknowledged, `${a?.value ?? '-'} is there, ${acknowledged} was acknowledged`);
      t.ok(
        (
          await survivor.transact(
            [{ key: 'storm/a', modRevision: a?.modRevision ?? 0 }],
            [{ put: 'after', value: String(round) }],
          )
        ).succeeded,
      );
    }
  },
);

t.test('a process stuck in a transaction blocks writers, who are told; reads go on; killing it heals', async (t) => {
  const dir = directory(t),
    patient = await store(t, dir);
  const hasty = await openSqliteStore(dir, { deadlineMs: 100 });
  t.teardown(() => hasty.close());
  await patient.transact([], [{ put: 'a', value: '1' }]);
  const child = start(t, ['lock', dir]);
  t.equal(await child.line(), 'locked');
  await t.rejects(hasty.transact([], [{ put: 'a', value: '2' }]), {
    code: 'ERR_MAP_UNAVAILABLE',
    message: /write lock/,
  });
  t.match(await hasty.get('a'), { value: '1' });
  const waiting = patient.transact([], [{ put: 'b', value: '3' }]);
  await child.kill();
  t.ok((await waiting).succeeded);
  t.equal(await patient.get('locked'), undefined, 'nothing of the killed transaction stays');
});

t.test(
  'on a full file system changes take from the reserve, then reject, and nothing else happens',
  { skip: mayMount() ? false : 'only root may mount a small file system' },
  async (t) => {
    const dir = directory(t);
    const child = fileURLToPath(new URL('sqlite-child.ts', import.meta.url));
    const { stdout, stderr } = spawnSync(
      'unshare',
      [
        '-m',
        'sh',
        '-c',
        'mount -t tmpfs -o size=8m tmpfs "$0" && mkdir "$0/store" && exec "$@" full "$0/store"',
        dir,
        ...[process.execPath, '--import', 'tsx', child],
      ],
      { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } },
    );
    t.equal(stderr, '');
    const seen = JSON.parse(stdout) as Record<string, unknown>;
    t.match(seen, {
      early: ['done', 'done'],
      other: [0, 'y'],
      refusal: 'ERR_MAP_UNAVAILABLE',
      afterwards: 'done',
    });
    t.equal(seen['kept'], seen['acknowledged'], 'what was refused is not there, what was acknowledged is');
  },
);

t.test('the lease of a killed process ends long before its time', async (t) => {
  const dir = directory(t),
    watching = await store(t, dir);
  const seen = collect(watching, 'node/');
  const child = start(t, ['lease', dir, 'node/n1', '86400000']);
  t.equal(await child.line(), 'leased');
  await seen.until((events) => events.length === 1);
  child.signal('SIGSTOP');
  t.equal((await watching.range('node/')).length, 1, 'a stopped process keeps it until its deadline');
  await child.kill();
  await seen.until((events) => events.length === 2);
  t.match(seen.events[1], { type: 'delete', key: 'node/n1' });
  seen.close();
});

t.test('the lease of a stopped process ends at its deadline', async (t) => {
  const dir = directory(t),
    watching = await store(t, dir);
  const seen = collect(watching, 'node/');
  const child = start(t, ['lease', dir, 'node/n1', '500']);
  t.equal(await child.line(), 'leased');
  child.signal('SIGSTOP');
  await seen.until((events) => events.at(-1)?.type === 'delete');
  t.equal((await watching.range('node/')).length, 0);
  seen.close();
});

t.test('a process is told from another that has its pid, and from one of an earlier boot', (t) => {
  const own = ownIdentity();
  t.ok(isRunning(own));
  t.notOk(isRunning({ ...own, startTime: `${Number(own.startTime) - 1}` }));
  t.notOk(isRunning({ ...own, bootId: '00000000-0000-0000-0000-000000000000' }));
  t.end();
});

function temporaryDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'tartan-store.'));
}

function directory(t: Test): string {
  const dir = temporaryDirectory();
  t.teardown(() => {
    rmSync(dir, { recursive: true, force: true });
  });
  return dir;
}

async function store(t: Test, dir: string): Promise<ClusterStore> {
  const opened = await openSqliteStore(dir, { create: true });
  t.teardown(() => opened.close());
  return opened;
}

function start(t: Test, args: readonly string[]): Child {
  const child = startChild('sqlite-child.ts', args);
  t.teardown(() => child.kill());
  return child;
}

async function eventually<T>(attempt: () => Promise<T | undefined>): Promise<T> {
  for (;;) {
    const result = await attempt();
    if (result !== undefined) return result;
    await new Promise((resolve) => {
      setTimeout(resolve, 50);
    });
  }
}
