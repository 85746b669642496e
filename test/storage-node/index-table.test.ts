import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { ChainMap } from '../../storage-node/chain-map.js';
import { E, ENTRY_WORDS, IndexTable, type EntryFields } from '../../storage-node/index-table.js';
import { MaskTable } from '../../storage-node/mask-table.js';
import { randomFrom } from './units.js';

function fields(unit = 0, counter = 1, missing = 0): EntryFields {
  return {
    unit,
    headerWords: 22,
    writerEpoch: 1,
    counter,
    unitLength: 65536,
    payloadCrc: 7,
    stripeLength: 131072,
    missingLow: missing,
    missingHigh: 0,
    mapEpoch: 1,
  };
}

function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
}

t.test(
  'A million units take at most 64 bytes of memory each, in one file, in many, and with every tenth stripe held',
  async (t) => {
    const UNITS = 1_000_000;
    // Kept, or the one before would be collected while the next is measured.
    const kept: IndexTable[] = [];
    for (const [name, files, step] of [
      ['one file', 1, 1],
      ['a thousand files', 1000, 1],
      ['a tenth of the stripes', 10, 10],
    ] as const) {
      collectGarbage();
      const before = process.memoryUsage();
      const index = new IndexTable();
      kept.push(index);
      for (let id = 1; id <= files; id++) {
        const file = index.file(id);
        for (let i = 0; i < UNITS / files; i++)
          index.setPlace(index.insert(file, i * step, fields(), 0), 1000 + i, 72, 1001 + i);
      }
      collectGarbage();
      const after = process.memoryUsage();
      const perUnit = (after.heapUsed - before.heapUsed + after.arrayBuffers - before.arrayBuffers) / UNITS;
      t.equal(index.count, UNITS);
      t.ok(
        perUnit >= 48 && perUnit <= 64,
        `${name}: ${perUnit.toFixed(1)} bytes a unit, ${(index.bytes / UNITS).toFixed(1)} of them in typed arrays`,
      );
      let seen = 0;
      for (const stripe of index.stripesFrom(index.file(1), 0)) if (stripe === seen * step) seen++;
      t.equal(seen, UNITS / files, 'and its stripes come in order');
    }
  },
);

t.test('Whatever is inserted and removed, the index finds what a Map of lists would', async (t) => {
  const random = randomFrom(5),
    draw = (n: number): number => Math.floor(random() * n);
  const index = new IndexTable(),
    dumb = new Map<string, number[]>();
  const stripes = Array.from({ length: 300 }, (_, i) =>
    i % 3 === 0 ? i : i % 3 === 1 ? draw(2 ** 31) * 2 ** 22 + i : 2 ** 40 + i,
  );
  for (let step = 0; step < 30_000; step++) {
    const id = 1 + draw(3),
      stripe = stripes[draw(stripes.length)]!,
      key = `${id}/${stripe}`,
      chain = dumb.get(key) ?? [];
    if (draw(2000) === 0) {
      Array.from(index.deleteFile(id, () => undefined));
      for (const other of [...dumb.keys()]) if (other.startsWith(`${id}/`)) dumb.delete(other);
    } else if (chain.length > 0 && draw(2) === 0) {
      const [counter] = chain.splice(draw(chain.length), 1);
      index.remove(index.file(id), stripe, index.find(index.file(id), stripe, 3, 1, counter!));
      if (chain.length === 0) dumb.delete(key);
    } else {
      const counter = step + 1,
        entry = index.insert(index.file(id), stripe, fields(3, counter, draw(2) * counter), 0);
      index.setPlace(entry, 5 * step, 8 * draw(512), 5 * step + draw(8192));
      dumb.set(key, [...chain, counter]);
    }
    if (step % 500 !== 0) continue;
    for (const each of [1, 2, 3]) {
      const expected = [...dumb.keys()]
        .filter((name) => name.startsWith(`${each}/`))
        .map((name) => Number(name.slice(2)))
        .sort((a, b) => a - b);
      t.same([...index.stripesFrom(index.file(each), 0)], expected);
    }
  }
  for (const [key, chain] of dumb) {
    const [id, stripe] = key.split('/').map(Number) as [number, number];
    for (const counter of chain) {
      const entry = index.find(index.file(id), stripe, 3, 1, counter);
      if (
        entry === 0 ||
        index.stripe(entry) !== stripe ||
        index.headerBlock(entry) !== 5 * (counter - 1) ||
        index.headerBytes(entry) !== 88 ||
        index.unit(entry) !== 3
      )
        t.fail(`${key}: version ${counter} is lost or changed`);
      if (![0n, BigInt(counter)].includes(index.missing(entry)))
        t.fail(`${key}: mask ${index.missing(entry)} of version ${counter}`);
      if (index.payloadBlock(entry) < index.headerBlock(entry) || index.get(entry, E.PAYLOAD_CRC) !== 7)
        t.fail(`${key}: place of version ${counter}`);
    }
  }
  t.equal(
    index.count,
    [...dumb.values()].reduce((sum, chain) => sum + chain.length, 0),
  );
});

t.test('The hashes keep their keys apart, in any order of coming and going', async (t) => {
  const keys = { fileOf: () => 0, stripeLowOf: (entry: number) => entry, stripeHighOf: () => 0 };
  const map = new ChainMap(keys),
    random = randomFrom(9),
    held = new Set<number>();
  for (let step = 0; step < 20_000; step++) {
    const entry = 1 + Math.floor(random() * 4000);
    if (held.has(entry)) {
      map.delete(entry);
      held.delete(entry);
    } else {
      map.set(entry);
      held.add(entry);
    }
  }
  t.ok([...Array(4001).keys()].slice(1).every((entry) => map.first(0, entry, 0) === (held.has(entry) ? entry : 0)));
  const masks = new MaskTable(),
    expected = new Map<number, bigint>();
  for (let step = 0; step < 20_000; step++) {
    const entry = 1 + Math.floor(random() * 3000);
    if (expected.delete(entry)) masks.delete(entry);
    else {
      masks.set(entry, step, 1);
      expected.set(entry, BigInt(step) | (1n << 32n));
    }
  }
  t.ok([...Array(3001).keys()].slice(1).every((entry) => masks.get(entry) === (expected.get(entry) ?? 0n)));
  t.equal(masks.size, expected.size);
});

t.test('What no checkpoint of ours says is refused: found by fuzzing', async (t) => {
  const made = (): { index: IndexTable; entry: Uint32Array } => {
    const index = new IndexTable();
    index.restoreFile(Uint32Array.of(3, 7, 0, 1, 1, 1), 0);
    const entry = new Uint32Array(ENTRY_WORDS);
    entry[E.FILE] = 3;
    entry[E.STRIPE_LOW] = 5;
    return { index, entry };
  };
  const bad = { code: 'ERR_CHECKSUM' };
  const good = made();
  good.index.restoreEntry(good.entry, 0);
  t.same([...good.index.stripesFrom(good.index.file(7), 0)], [5], 'an entry that can be');
  // The inventory of a stripe beyond 2^53 never ended: it plus one is itself.
  const far = made();
  far.entry[E.PLACE] = (1 << 31) >>> 0;
  t.throws(() => {
    far.index.restoreEntry(far.entry, 0);
  }, bad);
  const stranger = made();
  stranger.entry[E.FILE] = 4;
  t.throws(
    () => {
      stranger.index.restoreEntry(stranger.entry, 0);
    },
    bad,
    'a unit of a file that was not told of',
  );
  t.throws(
    () => {
      made().index.restoreMissing(Uint32Array.of(4, 0, 0, 1, 1, 1, 0), 0);
    },
    bad,
    'what it lacks',
  );
  t.throws(
    () => {
      made().index.restoreFile(Uint32Array.of(0xffff_fff0, 8, 0, 1, 1, 1), 0);
    },
    bad,
    'a file number that would take all memory',
  );
  t.throws(
    () => {
      made().index.restoreMask(Uint32Array.of(9, 1, 0), 0);
    },
    bad,
    'a mask of no entry',
  );
});

t.test('Stripes up to the last number that can be counted are listed, and the list ends', async (t) => {
  const index = new IndexTable(),
    file = index.file(1);
  for (const stripe of [0, Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER + 1])
    index.insert(file, stripe, fields(), 0);
  t.same([...index.stripesFrom(file, 1)], [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER + 1]);
});
