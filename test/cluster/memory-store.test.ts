import t from 'tap';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { conformance } from './conformance.js';
import { VirtualClock, settle } from './virtual-clock.js';
import { collect } from './watching.js';

conformance('memory', (options) => {
  const clock = new VirtualClock();
  const cluster = new MemoryCluster(clock, options);
  return Promise.resolve({
    client: () => Promise.resolve(cluster.client()),
    pass: (ms) => clock.advance(ms),
    close: () => {
      cluster.close();
      return Promise.resolve();
    },
  });
});

t.test('a lease lasts exactly its time in virtual time, and each keepAlive extends it', async (t) => {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock),
    store = cluster.client();
  const lease = await store.grantLease(1000),
    short = await store.grantLease(10);
  await store.transact(
    [],
    [
      { put: 'a', value: '1', lease: lease.id },
      { put: 'b', value: '1', lease: short.id },
    ],
  );
  await clock.advance(10);
  t.equal(await store.get('b'), undefined, 'the lease that ends first ends first');
  await clock.advance(989);
  await lease.keepAlive();
  await clock.advance(999);
  t.ok(await store.get('a'));
  await clock.advance(1);
  t.equal(await store.get('a'), undefined);
  await t.rejects(lease.keepAlive(), { code: 'ERR_NOT_FOUND' });
});

t.test('calls and watches take the latency they are given', async (t) => {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock, { latencyMs: () => 5 }),
    store = cluster.client();
  const seen = collect(store, '');
  let answer: unknown;
  void store.transact([], [{ put: 'a', value: '1' }]).then((result) => {
    answer = result;
  });
  await clock.advance(4);
  t.equal(cluster.engine.revision(), 0);
  await clock.advance(1);
  t.equal(cluster.engine.revision(), 1, 'takes effect one way later');
  t.equal(answer, undefined);
  t.equal(seen.events.length, 0);
  await clock.advance(5);
  t.same(answer, { succeeded: true, revision: 1 });
  t.equal(seen.events.length, 1);
});

t.test('a client that is cut off rejects, others go on, and a healed one catches up', async (t) => {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock),
    store = cluster.client(),
    other = cluster.client();
  const seen = collect(store, '');
  const lease = await store.grantLease(100);
  await store.transact([], [{ put: 'mine', value: '1', lease: lease.id }]);
  await settle();
  store.cutOff();
  await t.rejects(store.get('a'), { code: 'ERR_MAP_UNAVAILABLE' });
  await t.rejects(store.transact([], [{ put: 'lost', value: '1' }]), { code: 'ERR_MAP_UNAVAILABLE' });
  await t.rejects(lease.keepAlive(), { code: 'ERR_MAP_UNAVAILABLE' });
  await other.transact([], [{ put: 'b', value: '1' }]);
  await clock.advance(100);
  t.equal(await other.get('mine'), undefined, 'its lease expires meanwhile');
  t.equal(await other.get('lost'), undefined);
  t.equal(seen.events.length, 1, 'its watches are silent');
  store.heal();
  await settle();
  t.same(
    seen.events.map(({ type, key }) => [type, key]),
    [
      ['put', 'mine'],
      ['put', 'b'],
      ['delete', 'mine'],
    ],
  );
  t.match(await store.get('b'), { value: '1' });
});

t.test('a call cut off on its way back rejects although it took effect', async (t) => {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock, { latencyMs: () => 5 }),
    store = cluster.client();
  const call = store.transact([], [{ put: 'a', value: '1' }]);
  const rejected = t.rejects(call, { code: 'ERR_MAP_UNAVAILABLE' });
  await clock.advance(7);
  store.cutOff();
  await clock.advance(5);
  await rejected;
  t.equal(cluster.engine.get('a')?.value, '1');
});
