import t, { type Test } from 'tap';
import fc from 'fast-check';
import { randomInt } from 'node:crypto';
import {
  makeLayout,
  nodeOfUnit,
  offsetOfPlace,
  placeOfOffset,
  stripeBytes,
  stripeCount,
  stripeDataLength,
  unitLength,
  unitOfNode,
  type Layout,
} from '../../erasure/layout/index.js';

const seed = Number(process.env.TARTAN_TEST_SEED ?? randomInt(2 ** 31));
t.comment(`TARTAN_TEST_SEED=${seed}`);

const layouts = fc
  .record({
    k: fc.integer({ min: 1, max: 32 }),
    m: fc.integer({ min: 1, max: 4 }),
    spare: fc.nat(30),
    power: fc.integer({ min: 9, max: 22 }),
  })
  .map(({ k, m, spare, power }) => makeLayout({ nodes: k + m + spare, k, m, unitBytes: 2 ** power }));

/** Also those that 32-bit arithmetic would break. */
const stripes = fc.oneof(
  fc.nat(1000),
  fc.integer({ min: 2 ** 32 - 100, max: 2 ** 32 + 100 }),
  fc.maxSafeInteger().map(Math.abs),
);

function holds<T>(t: Test, property: fc.IProperty<T>): void {
  t.doesNotThrow(() => {
    fc.assert(property, { seed });
  });
}

t.test('a stripe lies on k + m different nodes, and unitOfNode() is the inverse', async (t) => {
  holds(
    t,
    fc.property(layouts, stripes, (layout, stripe) => {
      const { nodes, k, m } = layout;
      const byUnit = Array.from({ length: k + m }, (_, unit) => nodeOfUnit(layout, stripe, unit));
      const byNode = Array.from({ length: nodes }, (_, node) => unitOfNode(layout, stripe, node));
      return (
        new Set(byUnit).size === k + m &&
        byUnit.every((node, unit) => node >= 0 && node < nodes && byNode[node] === unit) &&
        byNode.filter((unit) => unit === -1).length === nodes - k - m
      );
    }),
  );
});

t.test('over any n consecutive stripes every node holds every unit index exactly once', async (t) => {
  holds(
    t,
    fc.property(
      layouts,
      stripes.filter((stripe) => stripe < Number.MAX_SAFE_INTEGER - 100),
      (layout, first) => {
        const { nodes, k, m } = layout;
        for (let unit = 0; unit < k + m; unit++) {
          const seen = new Set(Array.from({ length: nodes }, (_, i) => nodeOfUnit(layout, first + i, unit)));
          if (seen.size !== nodes) return false;
        }
        return true;
      },
    ),
  );
});

t.test('a sequential read meets all n nodes within any 2n data units', async (t) => {
  holds(
    t,
    fc.property(layouts, fc.nat(5000), (layout, first) => {
      const seen = new Set(
        Array.from({ length: 2 * layout.nodes }, (_, i) => {
          const { stripe, unit } = placeOfOffset(layout, (first + i) * layout.unitBytes);
          return nodeOfUnit(layout, stripe, unit);
        }),
      );
      return seen.size === layout.nodes;
    }),
  );
});

t.test('the drawn examples are as drawn', async (t) => {
  const draw = (layout: Layout, count: number): string[] =>
    Array.from({ length: count }, (_, stripe) =>
      Array.from({ length: layout.nodes }, (_, node) => {
        const unit = unitOfNode(layout, stripe, node);
        return unit < 0 ? '.' : unit < layout.k ? String(unit) : 'PQRS'[unit - layout.k];
      }).join(' '),
    );
  t.same(draw(makeLayout({ nodes: 4, k: 2, m: 1, unitBytes: 512 }), 5), [
    '0 1 P .',
    'P . 0 1',
    '. 0 1 P',
    '1 P . 0',
    '0 1 P .',
  ]);
  t.same(
    draw(makeLayout({ nodes: 4, k: 3, m: 1, unitBytes: 512 }), 4),
    ['0 1 2 P', '1 2 P 0', '2 P 0 1', 'P 0 1 2'],
    "RAID 5's left-symmetric",
  );
  t.same(draw(makeLayout({ nodes: 6, k: 4, m: 2, unitBytes: 512 }), 3), ['0 1 2 3 P Q', '2 3 P Q 0 1', 'P Q 0 1 2 3']);
});

t.test("offsets and places are each other's inverse, and offsets in order visit units in order", async (t) => {
  holds(
    t,
    fc.property(layouts, fc.maxSafeInteger().map(Math.abs), (layout, offset) => {
      const place = placeOfOffset(layout, offset);
      return (
        offsetOfPlace(layout, place) === offset &&
        place.unit < layout.k &&
        place.offset < layout.unitBytes &&
        place.stripe === Math.floor(offset / stripeBytes(layout))
      );
    }),
  );
  t.same(placeOfOffset({ nodes: 3, k: 2, m: 1, unitBytes: 512 }, 3 * 512 + 7), { stripe: 1, unit: 1, offset: 7 });
});

t.test('the lengths of all stripes and of their data units add up to the file', async (t) => {
  holds(
    t,
    fc.property(layouts, fc.integer({ min: 0, max: 40 }), fc.nat(2 ** 24), (layout, full, rest) => {
      const { k, m, unitBytes } = layout;
      const fileLength = full * stripeBytes(layout) + (rest % stripeBytes(layout));
      let sum = 0;
      for (let stripe = 0; stripe < stripeCount(layout, fileLength); stripe++) {
        const dataLength = stripeDataLength(layout, fileLength, stripe);
        const lengths = Array.from({ length: k + m }, (_, unit) => unitLength(dataLength, unitBytes, unit, k));
        if (dataLength === 0 || lengths.slice(k).some((length) => length !== lengths[0])) return false;
        if (lengths.slice(0, k).reduce((a, b) => a + b, 0) !== dataLength) return false;
        sum += dataLength;
      }
      return sum === fileLength && stripeDataLength(layout, fileLength, stripeCount(layout, fileLength)) === 0;
    }),
  );
  t.equal(stripeCount({ nodes: 3, k: 2, m: 1, unitBytes: 512 }, 0), 0);
  t.same(
    [0, 1, 2, 3].map((unit) => unitLength(700, 512, unit, 3)),
    [512, 188, 0, 512],
  );
});

t.test('numbers that make no layout are refused with a code', async (t) => {
  t.throws(() => makeLayout({ nodes: 5, k: 4, m: 2, unitBytes: 4096 }), {
    code: 'ERR_NOT_ENOUGH_NODES',
    message: 'Cannot lay out k = 4, m = 2 over 5 nodes: at least 6 are required',
  });
  t.throws(() => makeLayout({ nodes: NaN, k: 4, m: 2, unitBytes: 4096 }), { code: 'ERR_NOT_ENOUGH_NODES' });
  for (const unitBytes of [0, 256, 511, 513, 1000, 3 * 4096, 8 * 1024 * 1024, -4096, 512.5, NaN]) {
    t.throws(
      () => makeLayout({ nodes: 6, k: 4, m: 2, unitBytes }),
      { code: 'ERR_UNIT_BYTES', message: /expected a power of two from 512 to 4194304/ },
      String(unitBytes),
    );
  }
  t.same(makeLayout({ nodes: 6, k: 4, m: 2, unitBytes: 512 }).unitBytes, 512);
  t.same(makeLayout({ nodes: 6, k: 4, m: 2, unitBytes: 4194304 }).unitBytes, 4194304);
});
