/**
 * What the cluster does by itself, on the simulated cluster: nodes that are lost, come back or are left half drained;
 * damage.
 */
import t, { type Test } from 'tap';
import { MemoryCluster } from '../../cluster/memory-store.js';
import {
  createCluster,
  presentNodes,
  purposeOf,
  readMap,
  registerNode,
  registerSwitch,
  setNodePurpose,
  setNodeState,
  setSwitchState,
} from '../../cluster/membership.js';
import type { ClusterMap, FileRecord } from '../../cluster/records.js';
import { readRepair, RepairHold } from '../../cluster/repair-hold.js';
import { readScrub } from '../../cluster/scrub-state.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { realClock, sleep } from '../../wire/clock.js';
import type { Client, RepairerOptions } from '../../writer/index.js';
import { NodeHistory } from '../../writer/node-history.js';
import { SimCluster, randomBytes, inCluster, type ClusterBody as Body, end } from '../simulation/cluster.js';

const DISK_BYTES = 16 << 20;
const LIMITS = { downOutMs: 3000, settleMs: 400, scrubMs: 0, tickMs: 100, ownerMs: 300 };

type Options = Omit<ConstructorParameters<typeof SimCluster>[0], 'seed'>;

const withCluster = (options: Options, body: Body): Promise<void> =>
  inCluster({ seed: 31, diskBytes: DISK_BYTES, ...options }, body);

const nodeOf = (cluster: SimCluster, id: string) => cluster.nodes.find((each) => each.id === id)!;
const stop = async (cluster: SimCluster, id: string): Promise<void> => {
  await nodeOf(cluster, id).node!.stop();
};
const pause = (cluster: SimCluster, ms: number): Promise<void> => sleep(cluster.clock('test'), ms);

async function start(cluster: SimCluster, id: string, isBlank = false): Promise<void> {
  const entry = nodeOf(cluster, id);
  entry.disk = isBlank ? new MemoryDisk(DISK_BYTES) : entry.disk.crash(() => true);
  await cluster.startNode(entry);
}

async function addNode(cluster: SimCluster, isSpare = false): Promise<string> {
  const id = `n${cluster.nodes.length + 1}`;
  cluster.nodes.push({
    id,
    host: id,
    disk: new MemoryDisk(DISK_BYTES),
    node: undefined,
    store: cluster.memory.client(),
  });
  await cluster.startNode(cluster.nodes.at(-1)!);
  if (isSpare) await setNodePurpose(cluster.memory.client(), id, 'spare');
  return id;
}

/** A repairer on a host of its own; `kill` ends it as a process is killed: its lease runs out by itself. */
async function repairer(cluster: SimCluster, host: string, options: RepairerOptions = {}) {
  const stopper = new AbortController(),
    said: string[] = [],
    store = cluster.memory.client(),
    client = await cluster.client(host, { cluster: store });
  const working = client.repairer({
    ...LIMITS,
    ...options,
    signal: stopper.signal,
    log: (line) => {
      said.push(line);
    },
  });
  return {
    said,
    end: async (): Promise<void> => {
      stopper.abort();
      await working;
      await client.close();
    },
    kill: async (): Promise<void> => {
      void working.catch(() => {});
      cluster.world.killHost(host);
      await store.close();
    },
  };
}

async function until(cluster: SimCluster, what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 1200; i++) {
    if (await holds()) return;
    await pause(cluster, 50);
  }
  throw new Error(`a minute has passed, and not: ${what}`);
}

async function store(client: Client, name: string, data: Buffer, code = 'xor(2+1)'): Promise<FileRecord> {
  const writer = await client.create(name, { unitBytes: 1024, code });
  writer.write(data);
  await end(writer);
  return client.stat(name);
}

async function reads(t: Test, client: Client, name: string, data: Buffer, what: string): Promise<void> {
  const reader = await client.open(name);
  t.ok((await reader.read(0, data.length + 1)).equals(data), what);
  await reader.close();
}

for (const [code, nodes, m] of [
  ['xor(2+1)', 3, 1],
  ['rs(4,2)', 6, 2],
] as const) {
  void t.test(`${code}: a node is lost for good, a spare takes its shares by itself; then others may go`, async (t) => {
    await withCluster({ nodes }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 80_000),
        shared = cluster.memory.client();
      const spares = [await addNode(cluster, true), await addNode(cluster, true)];
      const file = await store(client, 'a', data, code);
      t.notOk(
        file.nodes.some((id) => spares.includes(id)),
        "new files don't use a spare",
      );
      const open = await client.create('open', { unitBytes: 1024, code });
      open.write(data.subarray(0, 30_000));
      await open.flush();
      const watching = await repairer(cluster, 'r1');
      await pause(cluster, 1000);
      await stop(cluster, 'n2');
      await pause(cluster, 2000);
      t.same((await client.stat('a')).nodes, file.nodes, 'it is waited for');
      await until(cluster, 'the spare has it', async () => (await client.stat('a')).nodes.includes(spares[0]!));
      t.same(
        (await client.stat('a')).nodes,
        file.nodes.map((id) => (id === 'n2' ? spares[0] : id)),
      );
      t.ok((await client.stat('open')).nodes.includes('n2'), 'what is written waits');
      open.write(data.subarray(30_000));
      await end(open);
      await until(
        cluster,
        'the file that was closed has moved',
        async () => !(await client.stat('open')).nodes.includes('n2'),
      );
      await until(
        cluster,
        'it is a member',
        async () => purposeOf((await readMap(shared)).nodes.find(({ id }) => id === spares[0])!) === 'member',
      );
      t.equal(
        purposeOf((await readMap(shared)).nodes.find(({ id }) => id === spares[1])!),
        'spare',
        'the other one is still a spare',
      );
      await watching.end();
      t.match(watching.said.join('\n'), /1 file moves from n2 to n\d/);
      for (const name of ['a', 'open']) t.equal((await client.rebuild(name)).unitsMissing, 0);
      for (const id of file.nodes.filter((each) => each !== 'n2').slice(0, m)) await stop(cluster, id);
      for (const name of ['a', 'open']) await reads(t, client, name, data, `${name} with ${m} others gone`);
      await client.close();
    });
  });
}

void t.test(
  'a repairer dies amid: another goes on; the lost node comes back, and frees what is not its any more',
  async (t) => {
    await withCluster({ nodes: 3 }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 1_300_000),
        shared = cluster.memory.client();
      const file = await store(client, 'a', data);
      await addNode(cluster, true);
      const first = await repairer(cluster, 'r1', { bytesPerSecond: 500_000 });
      await stop(cluster, 'n3');
      await until(cluster, 'it is at it', async () => ((await readRepair(shared))?.bytesRestored ?? 0) > 0);
      t.match(await readRepair(shared), { what: 'rebuild', files: 1, stripes: 635 });
      await first.kill();
      t.same((await client.stat('a')).moves, [{ index: 2, to: 'n4' }]);
      const before = nodeOf(cluster, 'n4').node!.counters.unitsAcknowledged;
      t.ok(before > 0 && before < 635, `${before} units had been moved`);
      const second = await repairer(cluster, 'r2');
      await until(cluster, 'the share has moved', async () => (await client.stat('a')).nodes.includes('n4'));
      t.equal(nodeOf(cluster, 'n4').node!.counters.unitsAcknowledged, 635, 'none was moved twice');
      await start(cluster, 'n3');
      t.ok((await cluster.inventory('n3', file.id)).length > 0);
      await until(
        cluster,
        'it has freed its old share',
        async () => (await cluster.inventory('n3', file.id)).length === 0,
      );
      await second.end();
      await stop(cluster, 'n1');
      await reads(t, client, 'a', data, 'with n1 gone');
      await client.close();
    });
  },
);

void t.test(
  'a node that comes back with a blank store is filled, one that missed writes gets them, a drain that was ' +
    'left is finished',
  async (t) => {
    await withCluster({ nodes: 3 }, async (cluster) => {
      const client = await cluster.client('w1'),
        data = randomBytes(cluster.world, 'data', 90_000),
        shared = cluster.memory.client();
      const writer = await client.create('a', { unitBytes: 1024 });
      writer.write(data.subarray(0, 40_000));
      await writer.flush();
      const removed = await store(client, 'removed', data.subarray(0, 9000)),
        watching = await repairer(cluster, 'r1');
      await stop(cluster, 'n2');
      writer.write(data.subarray(40_000));
      await writer.flush();
      await client.remove('removed');
      await start(cluster, 'n2');
      t.ok((await cluster.inventory('n2', removed.id)).length > 0, 'it has not heard of the removal');
      await until(cluster, 'its room is free', async () => (await cluster.inventory('n2', removed.id)).length === 0);
      const { id } = await client.stat('a');
      // Its writer is there all the time: what it has published is restored, and the rest when it is.
      await until(cluster, 'n2 has all', async () => (await cluster.inventory('n2', id)).length >= 44);
      await end(writer);
      await stop(cluster, 'n1');
      await start(cluster, 'n1', true);
      await until(cluster, 'n1 is full', async () => (await cluster.inventory('n1', id)).length >= 44);
      await pause(cluster, 500);
      t.equal((await client.rebuild('a')).unitsMissing, 0);
      await addNode(cluster);
      await setNodePurpose(shared, 'n3', 'leaving');
      await until(cluster, 'n3 is empty', async () => !(await client.stat('a')).nodes.includes('n3'));
      await watching.end();
      await stop(cluster, 'n1');
      await reads(t, client, 'a', data, 'with n1 gone');
      await client.close();
    });
  },
);

void t.test('it scrubs now and then, tells what it found, and gives way to a repair', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 120 * 8192),
      shared = cluster.memory.client();
    const writer = await client.create('a', { unitBytes: 4096 });
    writer.write(data);
    await end(writer);
    const { disk } = nodeOf(cluster, 'n2'),
      flipped = 8;
    for (let block = 0, found = 0; block < disk.size / 4096 && found < flipped; block++) {
      const bytes = Buffer.alloc(4096);
      await disk.read(bytes, block * 4096);
      const at = data.indexOf(bytes);
      if (at < 0 || at % 4096 !== 0) continue;
      disk.corrupt(block * 4096 + 77, (byte) => {
        byte[0]! ^= 16;
      });
      found++;
    }
    const watching = await repairer(cluster, 'r1', { scrubMs: 5000 });
    await until(cluster, 'a scrub has ended', async () => (await readScrub(shared)) !== undefined);
    t.match(await readScrub(shared), {
      passes: 1,
      last: {
        files: 1,
        filesFailed: 0,
        unitsChecked: 360,
        unitsDamaged: flipped,
        unitsRestored: flipped,
        unitsFailed: 0,
        stripesLost: 0,
      },
    });
    await until(cluster, 'and another', async () => (await readScrub(shared))?.passes === 2);
    t.match((await readScrub(shared))?.last, { unitsDamaged: 0, unitsRestored: 0 });
    await watching.end();

    const slow = await repairer(cluster, 'r2', { scrubMs: 1000, bytesPerSecond: 20_000, settleMs: 500 });
    await until(cluster, 'it scrubs', async () => (await readRepair(shared))?.what === 'scrub');
    await stop(cluster, 'n1');
    await start(cluster, 'n1', true);
    await until(cluster, 'it repairs', async () => (await readRepair(shared))?.what === 'rebuild');
    t.ok(slow.said.includes('the scrub gives way'));
    await slow.end();
    await client.close();
  });
});

void t.test("it gives way to an operator's command, and goes on afterwards", async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 600_000),
      shared = cluster.memory.client(),
      clock = cluster.clock('operator');
    const file = await store(client, 'a', data);
    const watching = await repairer(cluster, 'r1', { bytesPerSecond: 20_000 });
    await stop(cluster, 'n1');
    await start(cluster, 'n1', true);
    await until(cluster, 'it repairs', async () => (await readRepair(shared))?.what === 'rebuild');
    await t.rejects(
      RepairHold.take(shared, 'rebuild', 0, 0, { clock, givesWay: true }),
      { code: 'ERR_IN_USE' },
      'to another repairer it gives no way',
    );
    const hold = await RepairHold.take(shared, 'drain', 1, 1, { clock });
    t.match(await readRepair(shared), { what: 'drain' });
    await pause(cluster, 3000);
    t.match(await readRepair(shared), { what: 'drain' }, 'it waits');
    await t.rejects(
      RepairHold.take(shared, 'rebuild', 0, 0, { clock }),
      { code: 'ERR_IN_USE' },
      'another command does not',
    );
    await hold.release();
    await until(cluster, 'all is there', async () => (await cluster.inventory('n1', file.id)).length === 293);
    await watching.end();
    await client.close();
  });
});

void t.test('when most nodes seem lost, or there is none to go to, nothing moves', async (t) => {
  await withCluster({ nodes: 4 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 30_000);
    const file = await store(client, 'a', data, 'rs(2,2)');
    const watching = await repairer(cluster, 'r1');
    await stop(cluster, 'n2');
    await pause(cluster, 5000);
    t.match(watching.said, [/'a' has no node to go to from n2: add one/]);
    for (const id of ['n3', 'n4']) await stop(cluster, id);
    await addNode(cluster);
    await pause(cluster, 10_000);
    t.same((await client.stat('a')).nodes, file.nodes);
    for (const id of ['n3', 'n4']) await start(cluster, id);
    await until(cluster, "n2's share has moved", async () => (await client.stat('a')).nodes.includes('n5'));
    t.same((await client.stat('a')).nodes, ['n1', 'n5', 'n3', 'n4']);
    await watching.end();
    await client.close();
  });
});

void t.test('a lost node that nobody can stand in for keeps no scrub from its end', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const client = await cluster.client('w1'),
      shared = cluster.memory.client();
    await store(client, 'a', randomBytes(cluster.world, 'data', 300_000));
    const watching = await repairer(cluster, 'r1', { scrubMs: 1000, downOutMs: 500, bytesPerSecond: 300_000 });
    await stop(cluster, 'n3');
    await until(cluster, 'two scrubs have ended', async () => ((await readScrub(shared))?.passes ?? 0) >= 2);
    t.match((await readScrub(shared))?.last, {
      files: 1,
      filesFailed: 0,
      unitsChecked: 294,
      unitsDamaged: 0,
      stripesLost: 0,
    });
    t.ok(watching.said.includes("'a' has no node to go to from n3: add one"));
    await watching.end();
    await client.close();
  });
});

void t.test("without a spare a lost node's share of a spread file goes to all the others", async (t) => {
  await withCluster({ nodes: 9 }, async (cluster) => {
    const client = await cluster.client('w1'),
      data = randomBytes(cluster.world, 'data', 200_000);
    const file = await store(client, 'a', data, 'xor(2+1)');
    t.equal(file.layout, 'spread');
    const watching = await repairer(cluster, 'r1');
    await stop(cluster, 'n4');
    await until(cluster, 'it is spread over the others', async () => !(await client.stat('a')).nodes.includes('n4'));
    t.same(
      (await client.stat('a')).nodes,
      file.nodes.map((id) => (id === 'n4' ? '-' : id)),
    );
    await watching.end();
    await stop(cluster, 'n7');
    await reads(t, client, 'a', data, 'with another gone');
    await client.close();
  });
});

void t.test('the history of nodes: gone, out, back, another store', async (t) => {
  const shared = new MemoryCluster(realClock),
    clusterStore = shared.client();
  t.teardown(() => {
    shared.close();
  });
  await createCluster(clusterStore);
  for (const id of ['a', 'b', 'c', 'd'])
    await registerNode(clusterStore, { id, host: 'h', port: 1, controlPort: 0, state: 'up', store: `${id}-1` });
  const history = new NodeHistory(),
    all = new Set(['a', 'b', 'c', 'd']);
  const see = (map: ClusterMap, now: number, present: ReadonlySet<string> = all): void => {
    history.observe(map, present, now);
  };
  let map = await readMap(clusterStore);
  t.equal((await presentNodes(clusterStore)).size, 0);
  see(map, 0);
  t.same(
    [history.returned(9, 10), history.returned(10, 10)],
    [[], ['a', 'b', 'c', 'd']],
    'whoever begins to watch looks at all',
  );
  for (const id of all) history.looked(id);
  t.same(history.returned(20, 10), []);
  see(map, 20, new Set(['a', 'c', 'd']));
  t.same(
    [history.out(119, 100), history.out(120, 100)],
    [[], ['b']],
    'without a lease it is gone, whatever the map says',
  );
  map = await setNodeState(clusterStore, 'b', 'down');
  see(map, 120, new Set(['a', 'c', 'd']));
  t.same(history.out(120, 100), ['b']);
  t.same(history.returned(500, 10), [], 'one that is gone is not back');
  map = await setNodeState(clusterStore, 'b', 'up');
  see(map, 130);
  t.same([history.out(1000, 100), history.returned(139, 10), history.returned(140, 10)], [[], [], ['b']]);
  history.looked('b');
  map = await registerNode(clusterStore, { id: 'c', host: 'h', port: 1, controlPort: 0, store: 'c-2' });
  see(map, 200);
  t.same(history.returned(210, 10), ['c'], 'a blank store');
  see(map, 300, new Set());
  t.same(history.out(1000, 100), [], 'all at once: it is not the nodes');
  see(map, 300, new Set(['a', 'b']));
  t.same(history.out(1000, 100), ['c', 'd']);
  see({ ...map, nodes: map.nodes.filter(({ id }) => id !== 'c') }, 400, new Set(['a', 'b']));
  t.same(history.out(1000, 100), ['d'], 'one that was removed is forgotten');
});

void t.test('whose lease has run out is marked down though nobody writes, nodes and switches', async (t) => {
  await withCluster({ nodes: 4 }, async (cluster) => {
    const shared = cluster.memory.client(),
      states = async (): Promise<object> => {
        const { nodes, switches } = await readMap(shared);
        return Object.fromEntries([...nodes, ...switches].map(({ id, state }) => [id, state]));
      };
    const watching = await repairer(cluster, 'r1', { downOutMs: 600_000 });
    await pause(cluster, 2000);
    const before = await states();
    t.same(before, { n1: 'up', n2: 'up', n3: 'up', n4: 'up', s1: 'programmable' });
    for (const host of ['n2', 's1']) cluster.world.killHost(host);
    await until(cluster, 'both are down', async () => {
      const now = (await states()) as Record<string, string>;
      return now['n2'] === 'down' && now['s1'] === 'down';
    });
    t.same(await states(), { ...before, n2: 'down', s1: 'down' }, 'and nobody else is');
    t.match(watching.said.join('\n'), /n2(, s1)? marked down: no lease/);
    // Cut off for longer than its lease: it says itself that it is there again.
    cluster.world.pauseHost('n3');
    await until(cluster, 'n3 is down', async () => ((await states()) as Record<string, string>)['n3'] === 'down');
    cluster.world.resumeHost('n3');
    await until(cluster, 'n3 is up', async () => ((await states()) as Record<string, string>)['n3'] === 'up');
    await watching.end();
  });
});

void t.test('a switch that was marked down wrongly says what it is, and a packet switch is left alone', async (t) => {
  await withCluster({ nodes: 3 }, async (cluster) => {
    const shared = cluster.memory.client();
    await registerSwitch(shared, {
      id: 'p4',
      host: 'p4',
      port: 1,
      controlPort: 0,
      state: 'programmable',
      packets: { host: '10.0.0.1', port: 1, mtu: 1500 },
    });
    const watching = await repairer(cluster, 'r1');
    const states: string[] = [];
    for (const state of ['down', 'forwarding'] as const) {
      await setSwitchState(shared, 's1', state);
      await pause(cluster, 500);
      states.push((await readMap(shared)).switches.map((each) => each.state).join(' '));
      await pause(cluster, 5000);
      states.push((await readMap(shared)).switches.map((each) => each.state).join(' '));
    }
    t.same(states, [
      'down programmable',
      'programmable programmable',
      'forwarding programmable',
      'programmable programmable',
    ]);
    await watching.end();
  });
});
