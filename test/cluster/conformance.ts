/** What every ClusterStore must do, whatever stands behind it. */
import t, { type Test } from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { collect } from './watching.js';

export interface Bench {
  /** One more client of the bench's one store. */
  client(): Promise<ClusterStore>;
  /** Lets at least `ms` pass for leases; real stores just wait for what they expect. */
  pass(ms: number): Promise<void>;
  close(): Promise<void>;
  /** The log is never pruned by itself: a watch that lags misses nothing. Default false. */
  readonly keepsAll?: boolean;
}

/** @param logRevisions  passed on, so that pruning shows within a short test */
export function conformance(name: string, open: (options: { logRevisions?: number }) => Promise<Bench>): void {
  const test = (title: string, fn: (tt: Test, bench: Bench, store: ClusterStore) => Promise<void>, options = {}) =>
    t.test(`${name}: ${title}`, async (tt) => {
      const bench = await open(options);
      try {
        await fn(tt, bench, await bench.client());
      } finally {
        await bench.close();
      }
    });

  test('a put is read back with its revisions', async (tt, _bench, store) => {
    tt.equal(await store.get('a'), undefined);
    tt.equal(await store.revision(), 0, 'an empty store is at revision 0');
    tt.same(await store.transact([], [{ put: 'a', value: '1' }]), { succeeded: true, revision: 1 });
    tt.same(await store.transact([], [{ put: 'b', value: '2' }]), { succeeded: true, revision: 2 });
    tt.same(await store.transact([], [{ put: 'a', value: '3' }]), { succeeded: true, revision: 3 });
    tt.same(await store.get('a'), { key: 'a', value: '3', createRevision: 1, modRevision: 3, lease: undefined });
    tt.equal(await store.revision(), 3);
  });

  test('a deleted key starts anew', async (tt, _bench, store) => {
    await store.transact([], [{ put: 'a', value: '1' }]);
    tt.same(await store.transact([], [{ delete: 'a' }]), { succeeded: true, revision: 2 });
    tt.equal(await store.get('a'), undefined);
    tt.same(
      await store.transact([], [{ delete: 'a' }]),
      { succeeded: true, revision: 2 },
      'deleting nothing changes nothing',
    );
    await store.transact([], [{ put: 'a', value: '2' }]);
    tt.match(await store.get('a'), { createRevision: 3, modRevision: 3 });
  });

  test('a transaction applies all of its mutations or none', async (tt, _bench, store) => {
    await store.transact(
      [],
      [
        { put: 'a', value: '1' },
        { put: 'b', value: '1' },
      ],
    );
    tt.match(await store.get('b'), { modRevision: 1 }, 'its changes share one revision');
    const stale = await store.transact(
      [
        { key: 'a', modRevision: 1 },
        { key: 'b', modRevision: 0 },
      ],
      [{ put: 'a', value: '2' }, { delete: 'b' }, { put: 'c', value: '2' }],
    );
    tt.same(stale, { succeeded: false, revision: 1 });
    tt.match(await store.get('a'), { value: '1' });
    tt.match(await store.get('b'), { value: '1' });
    tt.equal(await store.get('c'), undefined);
    tt.ok(
      (
        await store.transact(
          [
            { key: 'a', modRevision: 1 },
            { key: 'c', modRevision: 0 },
          ],
          [{ put: 'c', value: '2' }],
        )
      ).succeeded,
    );
  });

  test('of many transactions that compare the same revision one succeeds', async (tt, bench) => {
    const clients = await Promise.all(Array.from({ length: 8 }, () => bench.client()));
    const results = await Promise.all(
      clients.map((client, i) => client.transact([{ key: 'a', modRevision: 0 }], [{ put: 'a', value: String(i) }])),
    );
    tt.equal(results.filter((result) => result.succeeded).length, 1);
    tt.equal((await clients[0]!.get('a'))?.value, String(results.findIndex((result) => result.succeeded)));
  });

  test('a range holds the keys under its prefix, ascending by their bytes', async (tt, _bench, store) => {
    const under = [
      'p/',
      'p/\u0001',
      'p/a',
      'p/a/b',
      'p/b',
      'p/é',
      'p/\ue000',
      'p/\uffff',
      'p/\u{10000}',
      'p/\u{10ffff}',
    ];
    const beside = ['o/z', 'p', 'p0', 'p.', 'q/a'];
    await store.transact(
      [],
      [...under, ...beside].reverse().map((key) => ({ put: key, value: key })),
    );
    tt.same(
      (await store.range('p/')).map(({ key }) => key),
      under,
    );
    tt.same(
      (await store.range('p/a')).map(({ key }) => key),
      ['p/a', 'p/a/b'],
    );
    tt.same(await store.range('none'), []);
    tt.equal((await store.range('')).length, under.length + beside.length);
  });

  test('transactions that cannot be meant are refused', async (tt, _bench, store) => {
    await tt.rejects(store.transact([], [{ put: '', value: '' }]), { code: 'ERR_ARGUMENT' }, 'empty key');
    await tt.rejects(store.transact([], [{ put: 'k'.repeat(1025), value: '' }]), { code: 'ERR_ARGUMENT' }, 'long key');
    await tt.rejects(
      store.transact([], [{ put: '\ud800', value: '' }]),
      { code: 'ERR_ARGUMENT' },
      'half a surrogate pair',
    );
    await tt.rejects(
      store.transact([], [{ put: 'a', value: 'v'.repeat((1 << 20) + 1) }]),
      { code: 'ERR_ARGUMENT' },
      'long value',
    );
    await tt.rejects(
      store.transact([], [{ put: 'a', value: '' }, { delete: 'a' }]),
      { code: 'ERR_ARGUMENT' },
      'one key twice',
    );
    await tt.rejects(
      store.transact([], [{ put: 'a', value: '', lease: 'ffff' }]),
      { code: 'ERR_NOT_FOUND' },
      'unknown lease',
    );
    await tt.rejects(store.grantLease(0), { code: 'ERR_ARGUMENT' }, 'no time to live');
    tt.equal(await store.revision(), 0);
    const longest = 'k'.repeat(1024),
      value = '"\u0000é\u{1f600}'.repeat(1000);
    await store.transact([], [{ put: longest, value }]);
    tt.equal((await store.get(longest))?.value, value, 'the longest key and any text are taken');
  });

  test('a watch delivers every change after its start, in order, only under its prefix', async (tt, bench, store) => {
    const other = await bench.client();
    await store.transact([], [{ put: 'w/old', value: '0' }]);
    const seen = collect(store, 'w/');
    await store.range('w/'); // By its answer the watch has begun: what another client does is told from here on.
    for (let i = 0; i < 20; i++)
      await other.transact(
        [],
        [
          { put: `w/${i % 3}`, value: String(i) },
          { put: 'x', value: String(i) },
        ],
      );
    await other.transact([], [{ delete: 'w/old' }]);
    await seen.until((events) => events.some((event) => event.type === 'delete'));
    tt.same(seen.events, [
      ...Array.from({ length: 20 }, (_, i) => ({ type: 'put', key: `w/${i % 3}`, value: String(i), revision: i + 2 })),
      { type: 'delete', key: 'w/old', value: undefined, revision: 22 },
    ]);
    seen.close();
    await other.transact([], [{ put: 'w/late', value: '' }]);
    const witness = collect(store, 'w/late', 22);
    await witness.until((events) => events.length === 1);
    tt.equal(seen.events.length, 21, 'a closed watch is silent');
    witness.close();
  });

  test('a watch resumes from a revision, and a revision is never split', async (tt, _bench, store) => {
    for (let i = 1; i <= 5; i++)
      await store.transact(
        [],
        [
          { put: 'r/a', value: String(i) },
          { put: 'r/b', value: String(i) },
        ],
      );
    for (let from = 0; from <= 5; from++) {
      const seen = collect(store, 'r/', from);
      if (from < 5) await seen.until((events) => events.length >= 2 * (5 - from));
      tt.same(
        seen.events.map((event) => event.revision),
        Array.from({ length: 5 - from }, (_, i) => [from + 1 + i, from + 1 + i]).flat(),
      );
      for (const batch of seen.batches) tt.equal(batch.length % 2, 0);
      seen.close();
    }
  });

  test(
    'a watch that lags behind the pruned log still learns the last change of every key',
    async (tt, bench, store) => {
      await store.transact(
        [],
        [
          { put: 'l/gone', value: '1' },
          { put: 'l/back', value: '1' },
          { put: 'l/still', value: '1' },
          { put: 'm', value: '1' },
        ],
      );
      const from = await store.revision();
      await store.transact([], [{ put: 'l/new', value: 'n' }]);
      await store.transact([], [{ delete: 'l/gone' }, { delete: 'l/back' }, { delete: 'm' }]);
      await store.transact([], [{ put: 'l/back', value: '2' }]);
      for (let i = 0; i < 40; i++) await store.transact([], [{ put: 'l/busy', value: String(i) }]);
      const seen = collect(store, 'l/', from);
      await seen.until((events) => events.at(-1)?.value === '39');
      // Who keeps all tells, besides, that this one was away in between.
      const told =
        bench.keepsAll === true
          ? seen.events.filter((event) => !(event.key === 'l/back' && event.type === 'delete'))
          : seen.events;
      tt.same(told.slice(0, 3), [
        { type: 'put', key: 'l/new', value: 'n', revision: 2 },
        { type: 'delete', key: 'l/gone', value: undefined, revision: 3 },
        { type: 'put', key: 'l/back', value: '2', revision: 4 },
      ]);
      const busy = told.slice(3);
      if (bench.keepsAll === true) tt.equal(busy.length, 40);
      else tt.ok(busy.length >= 8 && busy.length < 40, 'only the latest changes of a busy key are kept');
      tt.same(
        busy.map((event) => event.revision),
        Array.from({ length: busy.length }, (_, i) => 44 - busy.length + 1 + i),
      );
      seen.close();
    },
    { logRevisions: 8 },
  );

  test('the keys of a lease go with it, in one revision, and only then', async (tt, bench, store) => {
    const other = await bench.client();
    const lease = await store.grantLease(600_000),
      second = await store.grantLease(600_000);
    tt.not(lease.id, second.id);
    const { revision } = await store.transact(
      [],
      [
        { put: 'n/a', value: '1', lease: lease.id },
        { put: 'n/b', value: '1', lease: lease.id },
        { put: 'n/c', value: '1', lease: second.id },
      ],
    );
    await store.transact([], [{ put: 'n/b', value: '2' }]);
    tt.equal((await store.get('n/a'))?.lease, lease.id);
    tt.equal((await store.get('n/b'))?.lease, undefined, 'a put without the lease takes the key out of it');
    await store.transact([], [{ put: 'n/d', value: '1', lease: second.id }]);
    await store.transact([], [{ put: 'n/d', value: '2', lease: lease.id }]);
    const seen = collect(other, 'n/');
    await other.range('n/'); // The watch has begun.
    await lease.keepAlive();
    tt.equal(await store.revision(), revision + 3, 'keeping alive is no change');
    await lease.revoke();
    await seen.until((events) => events.length === 2);
    tt.same(
      seen.events.map(({ type, key }) => [type, key]),
      [
        ['delete', 'n/a'],
        ['delete', 'n/d'],
      ],
    );
    tt.equal(seen.events[0]?.revision, seen.events[1]?.revision);
    tt.same(
      (await store.range('n/')).map(({ key }) => key),
      ['n/b', 'n/c'],
    );
    await tt.rejects(lease.keepAlive(), { code: 'ERR_NOT_FOUND' });
    await lease.revoke();
    await second.revoke();
    seen.close();
  });

  test('a lease that nobody keeps alive expires', async (tt, bench, store) => {
    const lease = await store.grantLease(300);
    await store.transact([], [{ put: 'e/a', value: '1', lease: lease.id }]);
    const seen = collect(store, 'e/', 0);
    await bench.pass(300);
    await seen.until((events) => events.at(-1)?.type === 'delete');
    tt.equal(await store.get('e/a'), undefined);
    await tt.rejects(lease.keepAlive(), { code: 'ERR_NOT_FOUND' });
    await tt.rejects(store.transact([], [{ put: 'e/b', value: '1', lease: lease.id }]), { code: 'ERR_NOT_FOUND' });
    seen.close();
  });

  test('a closed client refuses', async (tt, bench, store) => {
    const other = await bench.client();
    await other.transact([], [{ put: 'a', value: '1' }]);
    await other.close();
    await other.close();
    const calls: (() => Promise<unknown>)[] = [
      () => other.get('a'),
      () => other.range('a'),
      () => other.revision(),
      () => other.transact([], []),
      () => other.grantLease(1000),
    ];
    for (const call of calls) await tt.rejects(call(), { code: 'ERR_CLOSED' });
    tt.throws(() => other.watch('', () => undefined), { code: 'ERR_CLOSED' });
    tt.match(await store.get('a'), { value: '1' }, 'the other clients go on');
  });
}
