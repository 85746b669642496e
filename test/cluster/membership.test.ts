import t, { type Test } from 'tap';
import type { ClusterStore, WatchEvent } from '../../cluster/cluster-store.js';
import { MemoryCluster, type MemoryClient } from '../../cluster/memory-store.js';
import {
  createCluster,
  readIdentity,
  readMap,
  registerNode,
  registerSwitch,
  removeNode,
  setNodeState,
  setSwitchState,
  watchMap,
} from '../../cluster/membership.js';
import type { ClusterMap } from '../../cluster/records.js';
import { VirtualClock, settle } from './virtual-clock.js';

const n1 = { id: 'n1', host: '10.0.0.1', port: 7001, controlPort: 7101 };
const n2 = { id: 'n2', host: '10.0.0.2', port: 7001, controlPort: 0 };

t.test('a cluster is created once, whoever else tries', async (t) => {
  const cluster = new MemoryCluster(new VirtualClock());
  const results = await Promise.allSettled(Array.from({ length: 4 }, () => createCluster(cluster.client())));
  const made = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  t.equal(made.length, 1);
  for (const result of results) if (result.status === 'rejected') t.match(result.reason, { code: 'ERR_EXISTS' });
  t.same(await readIdentity(cluster.client()), made[0]);
  t.same(await readMap(cluster.client()), { epoch: 1, changes: 1, nodes: [], switches: [] });
});

t.test('the cluster id is the low 32 bits of the uuid', async (t) => {
  const store = new MemoryCluster(new VirtualClock()).client();
  const identity = await createCluster(store, { uuid: '01234567-89ab-4cde-8f01-2345f6789abc' });
  t.equal(identity.clusterId, 0xf6789abc);
});

t.test('a store without a cluster, or with a newer one, is refused', async (t) => {
  const store = new MemoryCluster(new VirtualClock()).client();
  await t.rejects(readIdentity(store), { code: 'ERR_NOT_FOUND' });
  await t.rejects(readMap(store), { code: 'ERR_NOT_FOUND' });
  await t.rejects(registerNode(store, n1), { code: 'ERR_NOT_FOUND' });
  await t.rejects(setNodeState(store, 'n1', 'up'), { code: 'ERR_NOT_FOUND' });
  await store.transact([], [{ put: 'cluster', value: JSON.stringify({ uuid: 'u', clusterId: 1, formatVersion: 3 }) }]);
  await t.rejects(readIdentity(store), { code: 'ERR_STORE_VERSION' });
  await store.transact([], [{ put: 'map', value: '{' }]);
  await t.rejects(readMap(store), { code: 'ERR_STORE' });
});

t.test('registering adds, updates the address, and leaves the state alone unless told', async (t) => {
  const store = await cluster();
  t.same(await registerNode(store, n1), {
    epoch: 2,
    changes: 2,
    nodes: [{ ...n1, state: 'down', since: 2 }],
    switches: [],
  });
  t.equal((await registerNode(store, n1)).epoch, 2, 'saying the same again changes nothing');
  t.same(await setNodeState(store, 'n1', 'up'), {
    epoch: 3,
    changes: 3,
    nodes: [{ ...n1, state: 'up', since: 3 }],
    switches: [],
  });
  const moved = await registerNode(store, { ...n1, port: 7009 });
  t.match(moved, { epoch: 4, nodes: [{ port: 7009, state: 'up', since: 3 }] });
  await setNodeState(store, 'n1', 'down');
  t.match(await registerNode(store, n1), { epoch: 6, nodes: [{ port: 7001, state: 'down' }] });
  t.match(await registerNode(store, { ...n1, state: 'up' }), { epoch: 7, nodes: [{ state: 'up' }] });
  t.match(await registerNode(store, n2), { epoch: 8, nodes: [{ id: 'n1' }, { id: 'n2', state: 'down' }] });
  t.same(await readMap(store), await registerNode(store, n2));
});

t.test('switches are registered and change state as nodes do', async (t) => {
  const store = await cluster();
  const s1 = { id: 's1', host: 'localhost', port: 7000, controlPort: 7100 };
  t.match(await registerSwitch(store, s1), { epoch: 1, changes: 2, switches: [{ ...s1, state: 'down' }] });
  t.match(await setSwitchState(store, 's1', 'programmable'), {
    epoch: 1,
    changes: 3,
    switches: [{ state: 'programmable' }],
  });
  t.match(await registerSwitch(store, { ...s1, port: 1 }), {
    epoch: 1,
    changes: 4,
    switches: [{ port: 1, state: 'programmable' }],
  });
  t.match(await setSwitchState(store, 's1', 'forwarding', { ifEpoch: 1 }), { epoch: 1, changes: 5 });
  await t.rejects(setSwitchState(store, 's1', 'down', { ifEpoch: 4 }), { code: 'ERR_STALE_MAP' });
  await t.rejects(setSwitchState(store, 's2', 'down'), { code: 'ERR_NOT_FOUND' });
});

t.test('where a member takes packets is registered with it, and goes when it is registered without', async (t) => {
  const store = await cluster();
  const packets = { host: '10.0.0.1', port: 21_586 };
  const taking = await registerNode(store, { ...n1, state: 'up', packets });
  t.same(taking.nodes[0]?.packets, packets);
  t.same(await registerNode(store, { ...n1, packets: { ...packets } }), taking, 'the same again changes nothing');
  t.match(await setNodeState(store, 'n1', 'down'), { nodes: [{ packets }] });
  const { nodes, epoch } = await registerNode(store, n1);
  t.equal(epoch, taking.epoch + 2);
  t.notOk('packets' in nodes[0]!);
  const s1 = { id: 's1', host: 'localhost', port: 7000, controlPort: 7000, packets: { ...packets, mtu: 9000 } };
  t.same((await registerSwitch(store, s1)).switches, [{ ...s1, state: 'down' }]);
  t.same((await registerSwitch(store, { ...s1, packets: { ...packets, mtu: 1500 } })).switches[0]?.packets, {
    ...packets,
    mtu: 1500,
  });
});

t.test('entries that cannot be meant are refused', async (t) => {
  const store = await cluster();
  for (const change of [
    { id: '' },
    { id: 'a b' },
    { id: '-a' },
    { id: 'a/b' },
    { id: 'x'.repeat(65) },
    { host: '' },
    { host: 'a b' },
    { port: 0 },
    { port: 65_536 },
    { port: 1.5 },
    { controlPort: -1 },
  ]) {
    await t.rejects(registerNode(store, { ...n1, ...change }), { code: 'ERR_ARGUMENT' }, JSON.stringify(change));
  }
  t.equal((await readMap(store)).epoch, 1);
});

t.test('a state judged by an older map is not set, unless it is so already', async (t) => {
  const store = await cluster();
  await registerNode(store, { ...n1, state: 'up' });
  const { epoch } = await registerNode(store, { ...n2, state: 'up' });
  t.match(await setNodeState(store, 'n1', 'down', { ifEpoch: epoch }), { epoch: epoch + 1 });
  await t.rejects(setNodeState(store, 'n2', 'down', { ifEpoch: epoch }), {
    code: 'ERR_STALE_MAP',
    message: /mark node n2 down/,
  });
  t.match(
    await setNodeState(store, 'n1', 'down', { ifEpoch: epoch }),
    { epoch: epoch + 1 },
    'two that notice the same death agree',
  );
  await t.rejects(setNodeState(store, 'n9', 'down'), { code: 'ERR_NOT_FOUND' });
});

t.test('a node judged by another map than the present one, older or newer, is not removed', async (t) => {
  const store = await cluster();
  await registerNode(store, n1);
  const before = await registerNode(store, n2);
  for (const ifEpoch of [before.epoch - 1, before.epoch + 1])
    await t.rejects(removeNode(store, 'n1', { ifEpoch }), { code: 'ERR_STALE_MAP', message: /remove node n1/ });
  t.same(await readMap(store), before);
  const after = await removeNode(store, 'n1', { ifEpoch: before.epoch });
  t.match(after, { epoch: before.epoch + 1, nodes: [{ id: 'n2' }] });
  t.equal(after.nodes.length, 1);
});

t.test('a watcher is never taken back to an older map, whatever order a store tells changes in', async (t) => {
  const store = await cluster();
  await registerNode(store, n1);
  const older = (await store.get('map'))!;
  let tell: (events: readonly WatchEvent[]) => void = () => {};
  const disorderly: ClusterStore = new Proxy(store, {
    get: (target, name) => {
      if (name === 'watch')
        return (_prefix: string, onEvents: typeof tell) => {
          tell = onEvents;
          return { close: () => {} };
        };
      const member: unknown = Reflect.get(target, name);
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
  const maps = watched(t, disorderly);
  await settle();
  await setNodeState(store, 'n1', 'up');
  const newer = (await store.get('map'))!;
  const told = ({ value, modRevision }: typeof newer): WatchEvent[] => [
    { type: 'put', key: 'map', value, revision: modRevision },
  ];
  for (const row of [newer, older, newer]) tell(told(row));
  t.same(
    maps.map((map) => map.epoch),
    [2, 3],
  );
});

t.test('concurrent changes are all applied, each with its own epoch', async (t) => {
  const shared = new MemoryCluster(new VirtualClock());
  await createCluster(shared.client());
  const ids = Array.from({ length: 20 }, (_, i) => `n${i}`);
  const maps = await Promise.all(ids.map((id) => registerNode(shared.client(), { ...n1, id })));
  t.same(
    maps.map((map) => map.epoch).sort((a, b) => a - b),
    ids.map((_, i) => i + 2),
  );
  const map = await readMap(shared.client());
  t.equal(map.epoch, 21);
  t.same(map.nodes.map((node) => node.id).sort(), [...ids].sort());
});

t.test('a watcher gets the present map, then each newer one, epochs ascending', async (t) => {
  const store = await cluster();
  await registerNode(store, n1);
  const maps = watched(t, store);
  t.same(maps, [], 'never before watchMap() returns');
  await settle();
  t.same(
    maps.map((map) => map.epoch),
    [2],
  );
  await setNodeState(store, 'n1', 'up');
  await store.transact([], [{ put: 'mapping', value: 'not the map' }]);
  await settle();
  await setNodeState(store, 'n1', 'down');
  await settle();
  t.same(
    maps.map((map) => [map.epoch, map.nodes[0]?.state]),
    [
      [2, 'down'],
      [3, 'up'],
      [4, 'down'],
    ],
  );
});

t.test('a watcher that begins or lives while the store is away catches up', async (t) => {
  const shared = new MemoryCluster(new VirtualClock()),
    away = shared.client(),
    other = shared.client();
  await createCluster(other);
  away.cutOff();
  const maps = watched(t, away);
  await settle();
  t.same(maps, []);
  await registerNode(other, n1);
  away.heal();
  await settle();
  t.same(
    maps.map((map) => map.epoch),
    [2],
  );
  away.cutOff();
  for (const state of ['up', 'down', 'up'] as const) await setNodeState(other, 'n1', state);
  away.heal();
  await settle();
  t.same(
    maps.map((map) => map.epoch),
    [2, 5],
  );
});

t.test('a closed watch is silent, also when it is closed at once or its store is', async (t) => {
  const store = await cluster(),
    maps: ClusterMap[] = [];
  watchMap(store, (map) => {
    maps.push(map);
  }).close();
  const closing = watchMap(store, (map) => {
    maps.push(map);
  });
  await store.close();
  await settle();
  closing.close();
  t.same(maps, []);
  const second = await cluster();
  const last = watchMap(second, (map) => {
    maps.push(map);
    void second.close();
  });
  await settle();
  t.equal(maps.length, 1, 'a watcher may close the store');
  last.close();
});

async function cluster(): Promise<MemoryClient> {
  const store = new MemoryCluster(new VirtualClock()).client();
  await createCluster(store);
  return store;
}

function watched(t: Test, store: ClusterStore): ClusterMap[] {
  const maps: ClusterMap[] = [];
  const watch = watchMap(store, (map) => {
    maps.push(map);
  });
  t.teardown(() => {
    watch.close();
  });
  return maps;
}
