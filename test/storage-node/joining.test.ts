/** A node's presence, when the cluster store answers late, never, or that the lease is gone. */
import t from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { createFile, publishCommit, takeOver } from '../../cluster/files.js';
import { nodeLeaseKey } from '../../cluster/keys.js';
import { setNodeState, watchMap } from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { Joining } from '../../storage-node/joining.js';
import type { MapKeeper } from '../../storage-node/map-keeper.js';
import { TartanError } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { VirtualClock } from '../cluster/virtual-clock.js';
import { Rig } from './rig.js';

const LEASE_MS = 3000;
const FILE = { code: 'xor(2+1)', unitBytes: 4096, nodes: ['n1', 'n2', 'n3'], modified: '2030-01-01T00:00:00.000Z' };
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

void t.test(
  'a node whose disk cannot be written goes down once, tries it ever more rarely, and comes back',
  async (t) => {
    const rig = await Rig.start(7, { rejoinMs: 1000, leaseMs: 3000 });
    const peer = await rig.peer();
    const states: string[] = [];
    let last = rig.node.mapEpoch;
    const watch = watchMap(rig.metadata, (map) => {
      if (map.epoch > last) states.push(map.nodes.find(({ id }) => id === 'n1')!.state);
      last = map.epoch;
    });
    t.teardown(() => {
      watch.close();
    });
    let writes = 0;
    rig.disk.faults.beforeWrite = () => {
      writes++;
      throw new TartanError('ERR_DISK', 'Cannot write: a fault of this test');
    };
    peer.post(0, rig.unit());
    await rig.pass(60_000);
    t.same(states, ['down'], 'in a minute it goes down, and not up');
    t.equal(rig.node.state, 'down');
    t.ok(writes < 60, `it was tried with ${writes} writes`);
    rig.disk.faults = {};
    await rig.pass(120_000);
    t.same(states, ['down', 'up']);
    t.equal(rig.node.state, 'up');
    await rig.run(rig.node.stop());
  },
);

void t.test('a node whose disk does not answer leaves the map, and refuses what waited for it', async (t) => {
  const rig = await Rig.start(8, { rejoinMs: 1000, leaseMs: 3000, diskDeadlineMs: 4000 });
  const peer = await rig.peer();
  rig.disk.faults.beforeSync = () => new Promise<void>(() => undefined);
  peer.post(0, rig.unit());
  await rig.pass(3000);
  t.equal(rig.node.state, 'up');
  t.equal(peer.acks.length, 0);
  await rig.pass(30_000);
  t.equal(rig.node.state, 'down', 'though its heartbeats go on');
  t.same(
    peer.acks.map(({ refusal }) => refusal),
    [Refusal.DISK],
  );
});

void t.test('a node that comes back reads the open files, and no closed ones, however many', async (t) => {
  const read: { closed: number; rows: number }[] = [];
  for (const closed of [0, 300]) {
    const rig = await Rig.start(9, { rejoinMs: 1000, leaseMs: 3000 });
    const open = [1, 2, 3].map((i) => createFile(rig.metadata, { ...FILE, name: `open-${i}` }));
    const ids = (await rig.run(Promise.all(open))).map(({ id }) => id);
    for (let i = 0; i < closed; i++) {
      const { id } = await rig.run(createFile(rig.metadata, { ...FILE, name: `closed-${i}` }));
      const commit = { writerEpoch: 1, length: 0, commitEpoch: 1, commitCounter: 0, state: 'closed' as const };
      await rig.run(publishCommit(rig.metadata, id, commit));
    }
    // Taken over while the node is down: it must know the new epoch before it serves anybody.
    await rig.run(setNodeState(rig.metadata, 'n1', 'down'));
    await rig.run(takeOver(rig.metadata, ids[1]!));
    let rows = 0;
    const range = rig.nodeStore.range.bind(rig.nodeStore),
      get = rig.nodeStore.get.bind(rig.nodeStore);
    rig.nodeStore.range = async (prefix) => {
      const found = await range(prefix);
      rows += found.length;
      return found;
    };
    rig.nodeStore.get = (key) => {
      rows++;
      return get(key);
    };
    await rig.pass(5000);
    t.equal(rig.node.state, 'up');
    const peer = await rig.peer();
    const marks = [];
    for (const fileId of ids) marks.push(await peer.request({ $case: 'fileMark', value: { fileId } }));
    t.same(
      marks.map(({ writerEpoch }) => writerEpoch),
      [1, 2, 1],
      'the fences of the open files',
    );
    read.push({ closed, rows });
    await rig.run(rig.node.stop());
  }
  t.ok(read[0]!.rows > 0);
  t.equal(read[1]!.rows, read[0]!.rows, `rows read: ${JSON.stringify(read)}`);
});
