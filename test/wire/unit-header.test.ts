/** Unit headers by hand: each bound from both sides, and the order of versions. fuzz.test.ts tries what is random. */
import t from 'tap';
import {
  checkHeader,
  compareVersions,
  encodeHeader,
  headerBytesOf,
  MAX_HEADER_BYTES,
  W,
  type HeaderFault,
  type UnitHeader,
} from '../../wire/unit-header.js';

const KIB = 1024;

/** Unit 0 of a full stripe of 2+1 with units of 4 KiB. */
const HEADER: UnitHeader = {
  codeId: 1,
  k: 2,
  m: 1,
  unit: 0,
  unitBytes: 4 * KIB,
  flags: 0,
  clusterId: 7,
  fileId: 1,
  stripe: 0,
  unitLength: 4 * KIB,
  stripeLength: 8 * KIB,
  mapEpoch: 1,
  writerEpoch: 1,
  counter: 1,
  commitMark: 0,
  payloadCrc: 0,
  seal: 0,
  missing: 0n,
  summary: new Uint8Array(16),
  dataCrcs: [],
};

/** What checkHeader() says of this header, with words changed after it was encoded. */
function fault(changes: Partial<UnitHeader>, edit: (words: Uint32Array) => void = () => {}): HeaderFault | undefined {
  const header = { ...HEADER, ...changes };
  const words = new Uint32Array(MAX_HEADER_BYTES / 4);
  const bytes = encodeHeader(header, words, 0);
  edit(words);
  return checkHeader(words, 0, bytes, header.unitLength);
}

const isParity = { unit: 2, dataCrcs: [0, 0] };

t.test('a header is taken at every bound of its shape, and refused beyond', (t) => {
  const wide = { k: 32, m: 4, stripeLength: 32 * 4 * KIB };
  const cases: [string, HeaderFault | undefined, HeaderFault | undefined][] = [
    ['as it is', fault({}), undefined],
    ['a parity unit', fault(isParity), undefined],
    ['k = 1', fault({ k: 1, stripeLength: 4 * KIB }), undefined],
    ['k = 0', fault({ k: 0 }), 'shape'],
    ['k = 32, m = 4', fault(wide), undefined],
    ['k = 33', fault({ ...wide, k: 33 }), 'shape'],
    ['m = 0', fault({ m: 0 }), 'shape'],
    ['m = 5', fault({ ...wide, m: 5 }), 'shape'],
    ['m = 255', fault({ m: 255 }), 'shape'],
    ['the last unit', fault({ m: 4, unit: 5, dataCrcs: [0, 0] }), undefined],
    ['one unit beyond', fault({ m: 4, unit: 6, dataCrcs: [0, 0] }), 'shape'],
    ['units of 512 bytes', fault({ unitBytes: 512, unitLength: 512, stripeLength: KIB }), undefined],
    ['units of 256 bytes', fault({ unitBytes: 256, unitLength: 256, stripeLength: 512 }), 'shape'],
    ['units of 4 MiB', fault({ unitBytes: 4 << 20, unitLength: 4 << 20, stripeLength: 8 << 20 }), undefined],
    ['units of 8 MiB', fault({ unitBytes: 8 << 20, unitLength: 8 << 20, stripeLength: 16 << 20 }), 'shape'],
  ];
  t.same(
    cases.filter(([, seen, expected]) => seen !== expected),
    [],
  );
  t.end();
});

t.test('a header is refused whose lengths, magic, version or size disagree', (t) => {
  const cases: [string, HeaderFault | undefined, HeaderFault | undefined][] = [
    ['a stripe of nothing', fault({ stripeLength: 0, unitLength: 0 }), 'length'],
    ['a stripe of one byte', fault({ stripeLength: 1, unitLength: 1 }), undefined],
    ['a stripe longer than its units', fault({ stripeLength: 8 * KIB + 1 }), 'length'],
    ['a unit shorter than its share', fault({ unitLength: 4 * KIB - 1 }), 'length'],
    ['an empty unit of a short stripe', fault({ unit: 1, stripeLength: 4 * KIB, unitLength: 0 }), undefined],
    ['a unit where the stripe has ended', fault({ unit: 1, stripeLength: 4 * KIB, unitLength: 1 }), 'length'],
    ['parity of a short stripe', fault({ ...isParity, stripeLength: 3, unitLength: 3 }), undefined],
    ['parity longer than the longest unit', fault({ ...isParity, stripeLength: 3, unitLength: 4 }), 'length'],
    ['another magic', fault({}, (words) => void (words[W.MAGIC]! ^= 1)), 'magic'],
    ['another version', fault({}, (words) => void (words[W.SHAPE]! += 1)), 'version'],
    ['another extension', fault({}, (words) => void (words[W.UNIT]! += 1 << 24)), 'extension'],
  ];
  t.same(
    cases.filter(([, seen, expected]) => seen !== expected),
    [],
  );
  const words = new Uint32Array(MAX_HEADER_BYTES / 4);
  encodeHeader(HEADER, words, 0);
  t.equal(checkHeader(words, 0, headerBytesOf(0, 2) - 4, HEADER.unitLength), 'short');
  t.equal(checkHeader(words, words.length - 4, headerBytesOf(0, 2), HEADER.unitLength), 'short', 'beyond the memory');
  t.equal(checkHeader(words, 0, headerBytesOf(2, 2), HEADER.unitLength), 'extension');
  t.equal(checkHeader(words, 0, headerBytesOf(0, 2), HEADER.unitLength - 1), 'length', 'not what was received');
  t.end();
});

t.test('versions are ordered by writer epoch first, then by counter', (t) => {
  const ascending = [
    [1, 1],
    [1, 2],
    [1, 2 ** 32 - 1],
    [2, 1],
    [2, 7],
    [3, 2],
    [2 ** 32 - 1, 1],
  ] as const;
  const wrong: string[] = [];
  ascending.forEach((a, i) => {
    ascending.forEach((b, j) => {
      if (Math.sign(compareVersions(a[0], a[1], b[0], b[1])) !== Math.sign(i - j))
        wrong.push(`${a.join('.')} ? ${b.join('.')}`);
    });
  });
  t.same(wrong, []);
  t.end();
});
