/** A node that is added gets its share of the files that are there, and only that moves. */
import t from 'tap';
import type { ClusterMap, FileRecord } from '../../cluster/records.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import type { Client } from '../../writer/index.js';
import { plan } from '../../writer/rebalance.js';
import { SimCluster, randomBytes, end } from '../simulation/cluster.js';

function world(
  nodes: number,
  files: readonly { readonly nodes: readonly number[]; readonly length: number }[],
): { map: ClusterMap; present: Set<string>; files: FileRecord[] } {
  const ids = Array.from({ length: nodes }, (_, index) => `n${index + 1}`);
  return {
    map: {
      epoch: 9,
      changes: 9,
      switches: [],
      nodes: ids.map((id) => ({ id, host: 'h', port: 1, controlPort: 0, state: 'up' })),
    },
    present: new Set(ids),
    files: files.map(
      (file, index): FileRecord => ({
        id: index + 1,
        name: `f${index + 1}`,
        code: 'xor(2+1)',
        unitBytes: 1024,
        nodes: file.nodes.map((number) => `n${number}`),
        writerEpoch: 1,
        length: file.length,
        commitEpoch: 1,
        commitCounter: 1,
        decidedEpoch: 0,
        decidedStripes: 0,
        state: 'closed',
        modified: '',
      }),
    ),
  };
}

t.test("plan() moves the least that evens out, and nothing when that can't be", (t) => {
  const same = { nodes: [1, 2, 3], length: 3000 };
  const twelve = world(
    4,
    Array.from({ length: 12 }, () => same),
  );
  const moves = plan(twelve.map, twelve.present, twelve.files);
  t.equal(moves.length, 9, 'of 36 shares a fourth');
  t.ok(moves.every(({ to }) => to === 'n4'));
  t.same(
    [0, 1, 2].map((index) => moves.filter((move) => move.index === index).length),
    [3, 3, 3],
    'from each as many',
  );
  t.equal(new Set(moves.map(({ file }) => file.id)).size, 9, 'each of another file');
  const one = world(4, [same]);
  t.same(plan(one.map, one.present, one.files), [], 'to move the only share of a node leaves that one empty');
  const uneven = world(4, [
    { nodes: [1, 2, 3], length: 9000 },
    { nodes: [1, 2, 4], length: 300 },
    { nodes: [1, 2, 4], length: 600 },
  ]);
  t.same(
    plan(uneven.map, uneven.present, uneven.files, 'n1').map(({ to }) => to),
    [],
    'it holds most',
  );
  const there = world(
    4,
    Array.from({ length: 4 }, () => same),
  );
  t.same(plan(there.map, new Set(['n1', 'n2', 'n3']), there.files), [], 'a node that is not there gets nothing');
  t.same(
    plan(
      {
        ...there.map,
        nodes: there.map.nodes.map((node) => (node.id === 'n4' ? { ...node, spare: true as const } : node)),
      },
      there.present,
      there.files,
    ),
    [],
    'nor does a spare',
  );
  const begun = world(4, [{ ...same, length: 1 }]);
  t.match(
    plan(
      begun.map,
      begun.present,
      begun.files.map((file) => ({ ...file, moves: [{ index: 2, to: 'n4' }] })),
    ),
    [{ index: 2, to: 'n4' }],
    'what was begun is finished',
  );
  t.end();
});

for (const [nodes, code, files] of [
  [3, 'xor(2+1)', 12],
  [14, 'rs(4,2)', 15],
] as const) {
  t.test(
    `${code} on ${nodes} nodes and one more: its share moves, from each about as much, and nothing else`,
    async (t) => {
      const cluster = new SimCluster({ seed: 41, nodes, diskBytes: 16 << 20 });
      await cluster.world.complete(
        (async () => {
          await cluster.start();
          const client: Client = await cluster.client('w1'),
            data: Buffer[] = [];
          for (let i = 0; i < files; i++) {
            data.push(randomBytes(cluster.world, `data ${i}`, 20_000));
            const writer = await client.create(`f${i}`, { code, unitBytes: 512 });
            writer.write(data[i]!);
            await end(writer);
          }
          const open = await client.create('open', { code, unitBytes: 512 });
          open.write(data[0]!);
          await open.flush();
          const id = `n${nodes + 1}`;
          cluster.nodes.push({
            id,
            host: id,
            disk: new MemoryDisk(16 << 20),
            node: undefined,
            store: cluster.memory.client(),
          });
          await cluster.startNode(cluster.nodes.at(-1)!);
          const written = cluster.nodes.map(({ node }) => node!.counters.unitsAcknowledged);
          const report = await client.rebalance({ ownerMs: 300 });
          const share = (files * nodes) / (nodes + 1);
          t.ok(
            Math.abs(report.filesMoved - share) <= 1,
            `${report.filesMoved} shares moved, the others have ${share.toFixed(1)} on average`,
          );
          t.same(report.failed, []);
          const total = report.nodes.reduce((sum, { after }) => sum + after, 0),
            mean = total / (nodes + 1),
            worst = Math.max(...report.nodes.map(({ after }) => Math.abs(after / mean - 1)));
          t.ok(
            worst < 0.25,
            `the worst is ${Math.round(worst * 100)} % off the mean; before, one held ` +
              `nothing: ${report.nodes.map(({ after }) => Math.round(after)).join(' ')}`,
          );
          t.equal(report.nodes.at(-1)!.before, 0);
          t.same(
            cluster.nodes
              .filter(({ node }, index) => node!.counters.unitsAcknowledged > written[index]!)
              .map((each) => each.id),
            [id],
            'only it was written to',
          );
          t.equal((await client.rebalance({ to: id, ownerMs: 300 })).filesMoved, 0, 'again: nothing is left to do');
          await end(open);
          for (let i = 0; i < files; i++) {
            const reader = await client.open(`f${i}`);
            t.ok((await reader.read(0, 30_000)).equals(data[i]!), `f${i}`);
            t.equal(reader.progress.degradedStripes, 0);
            await reader.close();
            t.equal((await client.rebuild(`f${i}`)).unitsMissing, 0);
          }
          await client.close();
        })(),
        3_600_000,
      );
    },
  );
}
