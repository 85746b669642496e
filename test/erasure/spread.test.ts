/**
 * The layout 'spread': balance between nodes and between pairs of nodes, who helps to rebuild, what moves when a node
 * comes.
 */
import t from 'tap';
import { layoutFor, layoutOf, makeLayout, nodeOfUnit, unitOfNode, type Layout } from '../../erasure/layout/index.js';

const names = (n: number): string[] => Array.from({ length: n }, (_, i) => `n${i + 1}`);
const spread = (n: number, k: number, m: number, id = 7): Layout =>
  layoutOf({ id, nodes: names(n), unitBytes: 4096, layout: 'spread' }, { k, m });
const nodesOf = (layout: Layout, stripe: number): number[] =>
  Array.from({ length: layout.k + layout.m }, (_, unit) => nodeOfUnit(layout, stripe, unit));

/** Units of each survivor that are read when `lost` is rebuilt: k of each stripe that it was in, in turn. */
function readsOfRebuild(layout: Layout, stripes: number, lost: number): number[] {
  const reads = new Array<number>(layout.nodes).fill(0);
  for (let stripe = 0; stripe < stripes; stripe++) {
    if (unitOfNode(layout, stripe, lost) < 0) continue;
    const others = nodesOf(layout, stripe).filter((node) => node !== lost);
    for (let i = 0; i < layout.k; i++) reads[others[(stripe + i) % others.length]!]!++;
  }
  return reads;
}

t.test('a stripe lies on k + m different nodes, in any order of asking, and unitOfNode() is the inverse', (t) => {
  const layout = spread(20, 4, 2),
    again = spread(20, 4, 2);
  for (const stripe of [0, 1, 511, 512, 513, 2 ** 32, 2 ** 32 + 1, 2 ** 52]) {
    const nodes = nodesOf(layout, stripe);
    t.equal(new Set(nodes).size, 6);
    t.same(
      nodes.map((node) => unitOfNode(layout, stripe, node)),
      [0, 1, 2, 3, 4, 5],
    );
    t.equal(
      Array.from({ length: 20 }, (_, node) => unitOfNode(layout, stripe, node)).filter((unit) => unit >= 0).length,
      6,
    );
  }
  for (const stripe of [513, 1, 2 ** 32 + 1, 0]) t.same(nodesOf(again, stripe), nodesOf(layout, stripe));
  t.end();
});

t.test('places are a part of the format: they never change', (t) => {
  const layout = spread(12, 4, 2, 1);
  t.same(
    [0, 1, 2, 2 ** 40].map((stripe) => nodesOf(layout, stripe).join(' ')),
    ['0 3 7 10 8 1', '8 3 2 9 0 11', '9 3 2 7 8 0', '10 3 1 0 9 2'],
  );
  const reversed = layoutOf({ id: 1, nodes: names(12).reverse(), unitBytes: 4096, layout: 'spread' }, { k: 4, m: 2 });
  t.same(
    nodesOf(reversed, 5).map((node) => 11 - node),
    nodesOf(layout, 5),
    'they go by name, not by order',
  );
  t.notSame(nodesOf(spread(12, 4, 2, 2), 0), nodesOf(layout, 0), 'files begin on different nodes');
  t.end();
});

t.test(
  'every node holds about as many units of every kind, and every pair of nodes shares about as many stripes',
  (t) => {
    for (const [n, k, m] of [
      [14, 4, 2],
      [24, 4, 2],
      [40, 8, 3],
    ] as const) {
      const layout = spread(n, k, m),
        stripes = 20_000,
        held = new Array<number>(n).fill(0),
        data = new Array<number>(n).fill(0),
        pairs = new Map<number, number>();
      for (let stripe = 0; stripe < stripes; stripe++) {
        const nodes = nodesOf(layout, stripe);
        nodes.forEach((node, unit) => {
          held[node]!++;
          if (unit < k) data[node]!++;
        });
        for (const a of nodes) for (const b of nodes) if (a < b) pairs.set(a * n + b, (pairs.get(a * n + b) ?? 0) + 1);
      }
      const around = (counts: readonly number[], mean: number): number =>
        Math.max(...counts.map((count) => Math.abs(count - mean) / Math.sqrt(mean)));
      // Counts of a fair lot lie within 5 standard deviations of the mean.
      t.ok(
        around(held, (stripes * (k + m)) / n) < 5,
        `units of ${n} nodes: ${Math.min(...held)} to ${Math.max(...held)}`,
      );
      t.ok(around(data, (stripes * k) / n) < 5, `data units: ${Math.min(...data)} to ${Math.max(...data)}`);
      t.equal(pairs.size, (n * (n - 1)) / 2, 'no pair shares nothing');
      const shared = [...pairs.values()];
      t.ok(
        around(shared, (stripes * (k + m) * (k + m - 1)) / (n * (n - 1))) < 5,
        `stripes that pairs share: ${Math.min(...shared)} to ${Math.max(...shared)}`,
      );
    }
    t.end();
  },
);

t.test(
  'all survivors help to rebuild a lost node, the less each the more there are; rotated, only its neighbours do',
  (t) => {
    const stripesPerNode = 3000,
      lines: string[] = [];
    let before = Infinity;
    for (const n of [12, 24, 48, 96]) {
      const stripes = Math.round((stripesPerNode * n) / 6),
        reads = readsOfRebuild(spread(n, 4, 2), stripes, 3),
        rotated = readsOfRebuild(makeLayout({ nodes: n, k: 4, m: 2, unitBytes: 4096 }), stripes, 3);
      const most = Math.max(...reads),
        mean = (stripesPerNode * 4) / (n - 1);
      t.ok(
        most < mean + 5 * Math.sqrt(mean),
        `${n} nodes: the busiest survivor reads ${most} units, the mean is ${mean.toFixed(0)}`,
      );
      t.equal(reads.filter((count) => count > 0).length, n - 1);
      t.ok(most < before * 0.65, 'twice the nodes, about half the time');
      before = most;
      lines.push(
        `${n} nodes: spread ${most}, rotated ${Math.max(...rotated)} over ` +
          `${rotated.filter((count) => count > 0).length} nodes`,
      );
    }
    t.comment(`units that the busiest survivor reads for a lost node of ${stripesPerNode} units: ${lines.join('; ')}`);
    t.end();
  },
);

t.test('a node that is added takes its share from everybody, and little else moves', (t) => {
  for (const n of [14, 30, 60]) {
    const before = spread(n, 4, 2),
      after = spread(n + 1, 4, 2),
      stripes = 10_000;
    let toNew = 0,
      moved = 0;
    const from = new Array<number>(n).fill(0);
    for (let stripe = 0; stripe < stripes; stripe++) {
      const [old, now] = [nodesOf(before, stripe), nodesOf(after, stripe)];
      now.forEach((node, unit) => {
        if (node === old[unit]) return;
        moved++;
        if (node === n) {
          toNew++;
          from[old[unit]!]!++;
        }
      });
    }
    const share = (stripes * 6) / (n + 1);
    t.ok(
      Math.abs(toNew - share) < 5 * Math.sqrt(share),
      `${n} + 1 nodes: it gets ${toNew} units, its share is ${share.toFixed(0)}`,
    );
    t.ok(moved < share * (1 + 6 / n) + 5 * Math.sqrt(share), `${moved} units move in all`);
    t.ok(
      from.every((count) => count > 0),
      'everybody gives',
    );
  }
  t.end();
});

t.test(
  'a new file is spread on more nodes than two stripes take; records of old files are rotated, of newer ' +
    'versions refused',
  (t) => {
    t.same([layoutFor(3, 3), layoutFor(12, 6), layoutFor(13, 6)], ['rotated', 'rotated', 'spread']);
    const file = { id: 1, nodes: names(6), unitBytes: 4096 };
    t.same(
      nodesOf(layoutOf(file, { k: 4, m: 2 }), 1),
      nodesOf(makeLayout({ nodes: 6, k: 4, m: 2, unitBytes: 4096 }), 1),
    );
    t.throws(() => layoutOf({ ...file, layout: 'woven' }, { k: 4, m: 2 }), { code: 'ERR_UNKNOWN_LAYOUT' });
    t.throws(() => layoutOf({ ...file, layout: 'spread' }, { k: 5, m: 2 }), { code: 'ERR_NOT_ENOUGH_NODES' });
    t.end();
  },
);
