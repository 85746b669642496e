import { setTimeout as delay } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { ClusterStore, WatchEvent } from '../../cluster/cluster-store.js';
import { parseEtcdLocation } from '../../cluster/etcd-location.js';
import { openEtcdStore } from '../../cluster/etcd-store.js';
import { codeOf } from '../../wire/errors.js';
import { conformance } from './conformance.js';
import { etcdMissing, EtcdServer } from './etcd-server.js';
import { CuttableLine } from './cuttable-line.js';
import { collect } from './watching.js';

const missing = etcdMissing();

// Each on an etcd of its own: revisions are the whole server's.
if (missing !== false) t.test('etcd', { skip: missing }, () => {});
else
  conformance('etcd', async () => {
    const server = await EtcdServer.start();
    const clients: ClusterStore[] = [];
    return {
      client: async () => {
        const client = await openEtcdStore(server.location());
        clients.push(client);
        return client;
      },
      pass: () => Promise.resolve(),
      close: async () => {
        await Promise.all(clients.map((client) => client.close()));
        await server.stop();
      },
      keepsAll: true,
    };
  });

t.test('a location names members and a prefix, or is refused', (t) => {
  t.same(parseEtcdLocation('etcd://a'), { endpoints: ['a:2379'], prefix: 'tartan/' });
  t.same(parseEtcdLocation('etcd://10.0.0.1:1,[::1]:2,b/x/y/'), {
    endpoints: ['10.0.0.1:1', '[::1]:2', 'b:2379'],
    prefix: 'x/y/',
  });
  for (const wrong of [
    'etcd://',
    'etcd:///p',
    'etcd://a:0',
    'etcd://a:99999',
    'etcd://a,,b',
    'etcd://a b',
    'etcd://a/p?q',
    'http://a',
    '/a',
  ]) {
    t.throws(() => parseEtcdLocation(wrong), { code: 'ERR_ARGUMENT', message: /etcd:\/\/HOST:PORT/ }, wrong);
  }
  t.end();
});

t.test('clusters under two prefixes of one etcd do not see each other', { skip: missing }, async (t) => {
  const server = await started(t);
  const one = await store(t, server, 'one'),
    two = await store(t, server, 'on');
  const seen = collect(two, '');
  await one.transact([], [{ put: 'a', value: '1' }]);
  const { revision } = await two.transact([], [{ put: 'b', value: '2' }]);
  await seen.until((events) => events.length > 0);
  t.same(seen.events, [{ type: 'put', key: 'b', value: '2', revision }]);
  t.same(
    (await one.range('')).map(({ key }) => key),
    ['a'],
  );
  t.equal(await two.get('a'), undefined);
  seen.close();
});

t.test('a thousand keys come in one range, and a watch tells them all', { skip: missing }, async (t) => {
  const server = await started(t),
    client = await store(t, server);
  const keys = Array.from({ length: 1100 }, (_, i) => `k/${String(i).padStart(4, '0')}`);
  const seen = collect(client, 'k/');
  for (let at = 0; at < keys.length; at += 100)
    await client.transact(
      [],
      keys.slice(at, at + 100).map((key) => ({ put: key, value: key })),
    );
  t.same(
    (await client.range('k/')).map(({ key }) => key),
    keys,
  );
  await seen.until((events) => events.length === keys.length);
  t.same(
    seen.events.map(({ key }) => key),
    keys,
  );
  seen.close();
});

t.test(
  'while etcd is gone calls say so; afterwards the watch has missed nothing, and leases are as they were',
  { skip: missing },
  async (t) => {
    const server = await started(t),
      client = await store(t, server, 'test', 500),
      patient = await store(t, server);
    const lease = await client.grantLease(60_000);
    await client.transact([], [{ put: 'n/a', value: '1', lease: lease.id }]);
    const seen = collect(client, 'n/', 0);
    await seen.until((events) => events.length === 1);
    for (let round = 0; round < 2; round++) {
      await server.kill(0);
      const calls: (() => Promise<unknown>)[] = [
        () => client.get('n/a'),
        () => client.range(''),
        () => client.transact([], [{ put: 'n/no', value: '' }]),
        () => client.grantLease(1000),
        () => lease.keepAlive(),
      ];
      for (const call of calls) {
        await t.rejects(call(), { code: 'ERR_MAP_UNAVAILABLE', message: /etcd does not answer/ });
      }
      const waiting = patient.get('n/a');
      server.run(0);
      t.match(await waiting, { value: '1' }, 'a read waits for etcd within its deadline');
      await server.answers();
      // Other clients may be heard before the watch is there again.
      await patient.transact([], [{ put: 'n/b', value: String(round) }]);
      await seen.until((events) => events.at(-1)?.value === String(round));
      await eventually(() => lease.keepAlive());
      t.equal((await patient.get('n/a'))?.lease, lease.id);
    }
    t.same(
      seen.events.map(({ key, value }) => [key, value]),
      [
        ['n/a', '1'],
        ['n/b', '0'],
        ['n/b', '1'],
      ],
    );
    seen.close();
  },
);

t.test('a watch that etcd has compacted away meanwhile tells how every key ended', { skip: missing }, async (t) => {
  const server = await started(t),
    other = await store(t, server);
  const line = await CuttableLine.to(server.port(0));
  t.teardown(() => line.close());
  const client = await openEtcdStore(`etcd://127.0.0.1:${line.port}/test`);
  t.teardown(() => client.close());
  await client.transact(
    [],
    ['c/gone', 'c/back', 'c/still', 'd'].map((key) => ({ put: key, value: '1' })),
  );
  const seen = collect(client, 'c/');
  await client.transact([], [{ put: 'c/seen', value: '1' }]);
  await seen.until((events) => events.length === 1);
  await client.range('c/'); // Sent after what the watch asks for to learn which keys there are.
  await delay(100); // Most often that is answered by now; where it is not, the watch asks again after the cut.
  line.cut();
  for (let i = 0; i < 20; i++) await other.transact([], [{ put: 'c/busy', value: String(i) }]);
  await other.transact([], [{ delete: 'c/gone' }, { delete: 'c/back' }, { delete: 'd' }]);
  await other.transact([], [{ put: 'c/back', value: '2' }]);
  const revision = await other.revision();
  await server.compact(revision + 1);
  line.mend();
  await other.transact([], [{ put: 'c/last', value: '1' }]);
  await seen.until((events) => events.some(({ key }) => key === 'c/last'));
  const last = new Map<string, WatchEvent>(seen.events.map((event) => [event.key, event]));
  t.same([...last].map(([key, event]) => [key, event.type, event.value]).sort(), [
    ['c/back', 'put', '2'],
    ['c/busy', 'put', '19'],
    ['c/gone', 'delete', undefined],
    ['c/last', 'put', '1'],
    ['c/seen', 'put', '1'],
  ]);
  t.ok(seen.events.filter(({ key }) => key === 'c/busy').length === 1, 'of a busy key only the end');
  t.same(
    seen.events.map((event) => event.revision),
    [...seen.events.map((event) => event.revision)].sort((a, b) => a - b),
    'in order',
  );
  seen.close();

  const late = collect(client, 'c/', 0);
  await late.until((events) => events.some(({ key }) => key === 'c/last'));
  t.ok(late.events.length < 20, 'from the compacted past only the latest changes come');
  t.equal(late.events.find(({ key }) => key === 'c/busy')?.value, '19');
  late.close();
});

t.test('one member of three is lost: calls and watches turn to another', { skip: missing }, async (t) => {
  const server = await EtcdServer.start(3);
  t.teardown(() => server.stop());
  const client = await store(t, server);
  const seen = collect(client, '');
  const written: string[] = [];
  for (let member = 0; member < 3; member++) {
    await server.kill(member);
    // The leader may have been the one: until another is elected, changes are refused, and may yet have happened.
    await eventually(async () => {
      const value = `${member}.${written.length}`;
      written.push(value);
      await client.transact([], [{ put: 'a', value }]);
    });
    server.run(member);
    await eventually(async () => {
      await client.revision();
    });
  }
  const { value } = (await client.get('a'))!;
  await seen.until((events) => events.at(-1)?.value === value);
  t.ok(seen.events.every((event) => written.includes(event.value!)));
  t.equal(new Set(seen.events.map(({ revision }) => revision)).size, seen.events.length, 'each once');
  seen.close();
});

async function started(t: Test): Promise<EtcdServer> {
  const server = await EtcdServer.start();
  t.teardown(() => server.stop());
  return server;
}

async function store(t: Test, server: EtcdServer, prefix = 'test', deadlineMs = 10_000): Promise<ClusterStore> {
  const opened = await openEtcdStore(server.location(prefix), { deadlineMs });
  t.teardown(() => opened.close());
  return opened;
}

async function eventually(attempt: () => Promise<unknown>): Promise<void> {
  for (const until = Date.now() + 60_000; ; ) {
    try {
      await attempt();
      return;
    } catch (error) {
      if (codeOf(error) !== 'ERR_MAP_UNAVAILABLE' || Date.now() > until) throw error;
      await delay(100);
    }
  }
}
