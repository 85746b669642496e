/** A node's presence, when the cluster store answers late, never, or that the lease is gone. */
import t from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { nodeLeaseKey } from '../../cluster/keys.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { Joining } from '../../storage-node/joining.js';
import type { MapKeeper } from '../../storage-node/map-keeper.js';
import { TartanError } from '../../wire/errors.js';
import { VirtualClock } from '../cluster/virtual-clock.js';

const LEASE_MS = 3000;
type Fate = 'answered' | 'lost before' | 'lost after';

/** A store whose next transactions meet these fates; then all are answered. */
function withFates(store: ClusterStore, fates: Fate[]): ClusterStore {
  const unavailable = () => new TartanError('ERR_MAP_UNAVAILABLE', 'the cluster store does not answer');
  return {
    get: (key) => store.get(key),
    range: (prefix) => store.range(prefix),
    grantLease: (ttlMs) => store.grantLease(ttlMs),
    watch: (...args) => store.watch(...args),
    revision: () => store.revision(),
    close: () => store.close(),
    transact: async (compares, mutations) => {
      const fate = fates.shift() ?? 'answered';
      if (fate === 'lost before') throw unavailable();
      const result = await store.transact(compares, mutations);
      if (fate === 'lost after') throw unavailable();
      return result;
    },
  };
}

for (const fates of [
  ['answered'],
  ['lost before', 'answered'],
  ['lost after', 'answered'],
  ['lost before', 'lost after', 'lost before'],
] as Fate[][]) {
  void t.test(`a node whose lease is gone appears again, its transactions ${fates.join(', ')}`, async (t) => {
    const clock = new VirtualClock(),
      cluster = new MemoryCluster(clock),
      store = cluster.client();
    t.teardown(() => {
      cluster.close();
    });
    const key = nodeLeaseKey('n1'),
      planned: Fate[] = [];
    let displaced = 0;
    const joining = new Joining({
      clusterStore: withFates(store, planned),
      clock,
      id: 'n1',
      maps: {} as MapKeeper,
      log: () => {},
      leaseMs: LEASE_MS,
      onDisplaced: () => {
        displaced++;
      },
    });
    await joining.appear();
    const first = (await store.get(key))!.lease!;
    planned.push(...fates);
    cluster.engine.endLease(first);
    for (let i = 0; i < 8; i++) await clock.advance(LEASE_MS / 3);
    t.equal(planned.length, 0, 'all of these fates were met');
    t.equal(displaced, 0);
    const again = (await store.get(key))?.lease;
    t.ok(again !== undefined && again !== first, 'present, under another lease');
    for (let i = 0; i < 30; i++) await clock.advance(LEASE_MS / 3);
    t.equal((await store.get(key))?.lease, again, 'which is kept alive');
  });
}

void t.test('a node whose id another process has taken meanwhile is told, and does not take it back', async (t) => {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock),
    store = cluster.client();
  t.teardown(() => {
    cluster.close();
  });
  const key = nodeLeaseKey('n1');
  let displaced = 0;
  const joining = new Joining({
    clusterStore: store,
    clock,
    id: 'n1',
    maps: {} as MapKeeper,
    log: () => {},
    leaseMs: LEASE_MS,
    onDisplaced: () => {
      displaced++;
    },
  });
  await joining.appear();
  cluster.engine.endLease((await store.get(key))!.lease!);
  const other = await store.grantLease(600_000);
  await store.transact([], [{ put: key, value: '{"id":"n1"}', lease: other.id }]);
  await clock.advance(LEASE_MS);
  t.ok(displaced > 0);
  t.equal((await store.get(key))?.lease, other.id);
});
