/** Conformance cases: ENCODE and VERIFY, against an independent scalar computation written to be obvious. */
import assert from 'node:assert/strict';
import { Flag, Opcode, Status, type CoderSpec, type StripePlace } from '../../rdma/dist/index.js';
import { assertSame, bytesOf, connectPair, entriesArrive, fill, Log, type Case } from './conformance-world.js';
import { decodeMatrix, encode, LAYOUT, Stripe, verify } from './conformance-stripe.js';

const ENCODE_FLAGS = Flag.DIGEST_INPUTS_WRITE | Flag.DIGEST_OUTPUTS_WRITE;

/** Codes, with strides and data lengths: full, short, one byte, with empty units, and nothing at all. */
const SHAPES: { k: number; m: number; stride: number; dataLength: number }[] = [
  { k: 1, m: 1, stride: 64, dataLength: 64 },
  { k: 2, m: 1, stride: 4096, dataLength: 8192 },
  { k: 2, m: 1, stride: 4096, dataLength: 4097 },
  { k: 2, m: 2, stride: 64, dataLength: 1 },
  { k: 3, m: 3, stride: 192, dataLength: 400 },
  { k: 4, m: 2, stride: 65536, dataLength: 4 * 65536 },
  { k: 4, m: 2, stride: 65536, dataLength: 70_001 },
  { k: 4, m: 2, stride: 1024, dataLength: 1000 },
  { k: 4, m: 2, stride: 1024, dataLength: 0 },
  { k: 8, m: 3, stride: 8192, dataLength: 8 * 8192 - 17 },
  { k: 8, m: 4, stride: 4160, dataLength: 5 * 4160 },
  { k: 20, m: 4, stride: 320, dataLength: 20 * 320 - 100 },
];

export const codingCases: readonly Case[] = [
  ...SHAPES.map(
    ({ k, m, stride, dataLength }): Case => ({
      name:
        `ENCODE rs(${k},${m}) of ${dataLength} bytes in units of ${stride}: parity and headers are exact, no ` +
        'other byte changes',
      run: async (w) => {
        const stripe = new Stripe(w.a, k, m, stride, dataLength);
        const coder = w.a.createCoder(stripe.encodeSpec());
        const expected = stripe.encoded();
        assert.deepEqual(await encode(w, stripe, coder.spec, ENCODE_FLAGS), { status: Status.SUCCESS, detail: 0 });
        assertSame(bytesOf(stripe.place.region), expected, 'the region');
      },
    }),
  ),
  {
    name: 'ENCODE without flags writes the outputs alone',
    run: async (w) => {
      const stripe = new Stripe(w.a, 4, 2, 4096, 4 * 4096 - 5);
      const expected = bytesOf(stripe.place.region).slice();
      for (let r = 0; r < 2; r++) expected.set(stripe.parity(r), stripe.unitAt(4 + r));
      assert.deepEqual(await encode(w, stripe, stripe.encodeSpec(), 0), { status: Status.SUCCESS, detail: 0 });
      assertSame(bytesOf(stripe.place.region), expected, 'the region');
    },
  },
  {
    name: 'ENCODE takes units from wherever the place says, and leaves other stripes alone',
    run: async (w) => {
      const first = new Stripe(w.a, 2, 1, 128, 256);
      const second = new Stripe(w.a, 2, 1, 128, 256);
      const untouched = bytesOf(second.place.region).slice();
      const expected = first.encoded();
      assert.deepEqual(await encode(w, first, first.encodeSpec(), ENCODE_FLAGS), { status: Status.SUCCESS, detail: 0 });
      assertSame(bytesOf(first.place.region), expected, 'the stripe');
      assertSame(bytesOf(second.place.region), untouched, 'the other region');
    },
  },
  {
    name: 'DIGEST_INPUTS_CHECK passes over true headers and names the unit whose payload, summary or seal differs',
    run: async (w) => {
      const stripe = new Stripe(w.a, 4, 2, 1024, 4 * 1024 - 100);
      const bytes = bytesOf(stripe.place.region);
      const good = stripe.encoded();
      const check = Flag.DIGEST_INPUTS_CHECK | Flag.DIGEST_OUTPUTS_WRITE;
      for (let unit = 0; unit < 4; unit++) {
        const header = stripe.headerAt(unit);
        const faults: [string, () => void][] = [
          [
            'payload',
            () => {
              bytes[stripe.unitAt(unit) + 900]! ^= 1;
            },
          ],
          [
            'seal',
            () => {
              bytes[header + LAYOUT.sealOffset]! ^= 1;
            },
          ],
          [
            'a sealed header byte',
            () => {
              bytes[header + LAYOUT.dataHeaderBytes - 1]! ^= 1;
            },
          ],
          [
            'CRC, sealed anew',
            () => {
              bytes[header + LAYOUT.payloadCrcOffset + 3]! ^= 1;
              stripe.seal(bytes, unit);
            },
          ],
          [
            'summary, sealed anew',
            () => {
              bytes[header + LAYOUT.summaryOffset + 15]! ^= 1;
              stripe.seal(bytes, unit);
            },
          ],
        ];
        for (const [what, spoil] of faults) {
          bytes.set(good);
          spoil();
          const outcome = await encode(w, stripe, stripe.encodeSpec(), check);
          assert.deepEqual(outcome, { status: Status.CHECKSUM_ERROR, detail: unit }, `${what} of unit ${unit}`);
        }
      }
      bytes.set(good);
      for (let r = 0; r < 2; r++) {
        bytes.fill(0xee, stripe.unitAt(4 + r), stripe.unitAt(4 + r) + stripe.length(4 + r));
        bytes.fill(
          0xee,
          stripe.headerAt(4 + r) + LAYOUT.payloadCrcOffset,
          stripe.headerAt(4 + r) + LAYOUT.payloadCrcOffset + 4,
        );
      }
      assert.deepEqual(await encode(w, stripe, stripe.encodeSpec(), check), { status: Status.SUCCESS, detail: 0 });
      assertSame(bytes, good, 'the region after a check that passes');
    },
  },
  {
    name: 'ENCODE with no outputs only writes or checks digests, of parity units too',
    run: async (w) => {
      const stripe = new Stripe(w.a, 3, 2, 512, 1300);
      const bytes = bytesOf(stripe.place.region);
      const good = stripe.encoded();
      const everyUnit: CoderSpec = {
        k: 3,
        inputUnits: [4, 0, 3, 2, 1],
        outputUnits: [],
        matrix: new Uint8Array(0),
        digest: LAYOUT,
      };
      bytes.set(good);
      assert.deepEqual(await encode(w, stripe, everyUnit, Flag.DIGEST_INPUTS_CHECK), {
        status: Status.SUCCESS,
        detail: 0,
      });
      bytes[stripe.unitAt(4)]! ^= 0x80;
      assert.deepEqual(await encode(w, stripe, everyUnit, Flag.DIGEST_INPUTS_CHECK), {
        status: Status.CHECKSUM_ERROR,
        detail: 4,
      });
      bytes.set(good);
      bytes[stripe.headerAt(3) + LAYOUT.crcListOffset + 11]! ^= 1; // the list is under the seal of a parity header
      assert.deepEqual(await encode(w, stripe, everyUnit, Flag.DIGEST_INPUTS_CHECK), {
        status: Status.CHECKSUM_ERROR,
        detail: 3,
      });
      bytes.set(good);
      const expected = good.slice();
      bytes[stripe.unitAt(1) + 7]! ^= 0x10;
      expected[stripe.unitAt(1) + 7]! ^= 0x10;
      stripe.digest(expected, 1);
      stripe.seal(expected, 1);
      const second: CoderSpec = { ...everyUnit, inputUnits: [1] };
      assert.deepEqual(await encode(w, stripe, second, Flag.DIGEST_INPUTS_WRITE), {
        status: Status.SUCCESS,
        detail: 0,
      });
      assertSame(bytes, expected, 'the region after writing one digest');
    },
  },
  {
    name:
      'decoding restores any m units from k others, in any order of inputs and outputs, and stores their digests ' +
      'unsealed',
    run: async (w) => {
      for (const { k, m, stride, dataLength } of [
        { k: 3, m: 2, stride: 192, dataLength: 500 },
        { k: 4, m: 2, stride: 256, dataLength: 600 },
      ]) {
        const stripe = new Stripe(w.a, k, m, stride, dataLength);
        const bytes = bytesOf(stripe.place.region);
        const good = stripe.encoded();
        for (let one = 0; one < k + m; one++) {
          for (let two = one + 1; two < k + m; two++) {
            const lost = [two, one];
            const survivors = Array.from({ length: k + m }, (_, unit) => unit)
              .filter((unit) => !lost.includes(unit))
              .slice(0, k)
              .reverse();
            bytes.set(good);
            const expected = good.slice();
            for (const unit of lost) {
              bytes.fill(0xee, stripe.unitAt(unit), stripe.unitAt(unit) + stripe.length(unit));
              for (const [from, length] of [
                [LAYOUT.payloadCrcOffset, 4],
                [LAYOUT.summaryOffset, 16],
              ] as const) {
                bytes.fill(0xee, stripe.headerAt(unit) + from, stripe.headerAt(unit) + from + length);
              }
              // STORE touches neither seal nor list: whatever stands there stays.
              for (const at of [LAYOUT.sealOffset, LAYOUT.sealOffset + 3, 0]) {
                bytes[stripe.headerAt(unit) + at] = 0xdd;
                expected[stripe.headerAt(unit) + at] = 0xdd;
              }
            }
            const spec: CoderSpec = {
              k,
              inputUnits: survivors,
              outputUnits: lost,
              matrix: decodeMatrix(k, survivors, lost),
              digest: LAYOUT,
            };
            const outcome = await encode(w, stripe, spec, Flag.DIGEST_INPUTS_CHECK | Flag.DIGEST_OUTPUTS_STORE);
            assert.deepEqual(outcome, { status: Status.SUCCESS, detail: 0 });
            stripe.assertSameButPadding(bytes, expected, `rs(${k},${m}) without units ${lost.join(' and ')}`);
          }
        }
      }
    },
  },
  {
    name: "DIGEST_OUTPUTS_WRITE seals decoded data units, and takes a parity's list from the data headers",
    run: async (w) => {
      const stripe = new Stripe(w.a, 3, 2, 192, 3 * 192);
      const bytes = bytesOf(stripe.place.region);
      const good = stripe.encoded();
      bytes.set(good);
      bytes.fill(0xee, stripe.unitAt(1), stripe.unitAt(1) + stripe.length(1));
      bytes.fill(0xee, stripe.headerAt(1) + LAYOUT.summaryOffset, stripe.headerAt(1) + LAYOUT.summaryOffset + 16);
      bytes[stripe.headerAt(1) + LAYOUT.sealOffset]! ^= 0xff;
      const spec: CoderSpec = {
        k: 3,
        inputUnits: [0, 3, 2],
        outputUnits: [1],
        matrix: decodeMatrix(3, [0, 3, 2], [1]),
        digest: LAYOUT,
      };
      const flags = Flag.DIGEST_INPUTS_CHECK | Flag.DIGEST_OUTPUTS_WRITE;
      assert.deepEqual(await encode(w, stripe, spec, flags), { status: Status.SUCCESS, detail: 0 });
      assertSame(bytes, good, 'the region');
    },
  },
  {
    name: 'random matrices of every size up to 32 × 4 agree with the scalar computation',
    run: async (w) => {
      const coefficients = fill(new Uint8Array(32 * 4), 77);
      for (let inputs = 1; inputs <= 32; inputs += inputs < 12 ? 1 : 5) {
        for (let outputs = 1; outputs <= 4; outputs++) {
          const stripe = new Stripe(w.a, inputs, outputs, 192, inputs * 192 - 1);
          const matrix = coefficients.slice(0, inputs * outputs);
          matrix[0] = 0;
          matrix[matrix.length - 1] = 1;
          const spec: CoderSpec = { ...stripe.encodeSpec(), matrix };
          const expected = bytesOf(stripe.place.region).slice();
          for (let r = 0; r < outputs; r++)
            expected.set(stripe.combination(matrix.subarray(r * inputs, (r + 1) * inputs)), stripe.unitAt(inputs + r));
          assert.deepEqual(await encode(w, stripe, spec, 0), { status: Status.SUCCESS, detail: 0 });
          assertSame(bytesOf(stripe.place.region), expected, `${inputs} inputs, ${outputs} outputs`);
          await w.drive(stripe.place.region.deregister());
        }
      }
    },
  },
  {
    name: 'VERIFY passes a true unit, and tells a wrong seal (1), payload CRC (2) and summary (3) apart',
    run: async (w) => {
      const stripe = new Stripe(w.a, 3, 1, 4096, 10_001);
      const bytes = bytesOf(stripe.place.region);
      const good = stripe.encoded();
      for (const unit of [0, 2, 3]) {
        const header = stripe.headerAt(unit);
        const reseal = (): void => stripe.seal(bytes, unit);
        const faults: [string, () => void, number][] = [
          ['nothing', () => {}, 0],
          [
            'the seal',
            () => {
              bytes[header + LAYOUT.sealOffset + 1]! ^= 4;
            },
            1,
          ],
          [
            'the first header byte',
            () => {
              bytes[header]! ^= 4;
            },
            1,
          ],
          [
            'the last header byte',
            () => {
              bytes[header + stripe.headerBytes(unit) - 1]! ^= 4;
            },
            1,
          ],
          [
            'the first payload byte',
            () => {
              bytes[stripe.unitAt(unit)]! ^= 4;
            },
            2,
          ],
          [
            'the last payload byte',
            () => {
              bytes[stripe.unitAt(unit) + stripe.length(unit) - 1]! ^= 4;
            },
            2,
          ],
          [
            'the CRC, sealed anew',
            () => {
              bytes[header + LAYOUT.payloadCrcOffset]! ^= 4;
              reseal();
            },
            2,
          ],
          [
            'the summary, sealed anew',
            () => {
              bytes[header + LAYOUT.summaryOffset]! ^= 4;
              reseal();
            },
            3,
          ],
        ];
        for (const [what, spoil, detail] of faults) {
          bytes.set(good);
          spoil();
          const before = bytes.slice();
          const status = detail === 0 ? Status.SUCCESS : Status.CHECKSUM_ERROR;
          assert.deepEqual(await verify(w, stripe, unit), { status, detail }, `${what} of unit ${unit}`);
          assertSame(bytes, before, 'VERIFY writes nothing');
        }
      }
    },
  },
  {
    name: 'VERIFY of an empty unit checks its header alone',
    run: async (w) => {
      const stripe = new Stripe(w.a, 3, 1, 4096, 100);
      const bytes = bytesOf(stripe.place.region);
      bytes.set(stripe.encoded());
      assert.deepEqual(await verify(w, stripe, 2), { status: Status.SUCCESS, detail: 0 });
      bytes[stripe.headerAt(2) + LAYOUT.summaryOffset]! ^= 4;
      stripe.seal(bytes, 2);
      assert.deepEqual(await verify(w, stripe, 2), { status: Status.CHECKSUM_ERROR, detail: 3 });
    },
  },
  {
    name: 'coding requests that are malformed or leave their region fail without writing, and the queue goes on',
    run: async (w) => {
      const stripe = new Stripe(w.a, 2, 1, 128, 256);
      const { place } = stripe;
      const size = place.region.byteLength;
      const before = bytesOf(place.region).slice();
      const coder = w.a.createCoder(stripe.encodeSpec());
      const log = new Log();
      const queue = w.a.createCodingQueue(log.handler);
      const places: [string, StripePlace][] = [
        ['stride 0', { ...place, stride: 0 }],
        ['a stride that is no multiple of 64', { ...place, stride: 100 }],
        ['more data than the stripe holds', { ...place, dataLength: 257 }],
        ['units outside', { ...place, unitsOffset: size - 300 }],
        ['units that wrap', { ...place, unitsOffset: 0xffffff80 }],
        ['data headers outside', { ...place, dataHeadersOffset: size - LAYOUT.dataHeaderBytes }],
        ['parity headers outside', { ...place, parityHeadersOffset: size - LAYOUT.crcListOffset }],
      ];
      places.forEach(([, wrong], i) => queue.postEncode(i, coder, wrong, ENCODE_FLAGS));
      queue.postVerify(100, coder, place.region, size - LAYOUT.dataHeaderBytes + 1, LAYOUT.dataHeaderBytes, 0, 64);
      queue.postVerify(101, coder, place.region, 0, LAYOUT.dataHeaderBytes, size - 63, 64);
      w.a.ring();
      await entriesArrive(w, log, places.length + 2, 'the coding queue');
      for (const { status, wrId } of log.entries) {
        // Which of the two is a matter of what a device looks at first.
        const isRefused = status === Status.INVALID_REQUEST || status === Status.LOCAL_PROTECTION_ERROR;
        assert.ok(isRefused, `${places[wrId]?.[0] ?? 'VERIFY outside'}: status ${status}`);
      }
      assertSame(bytesOf(place.region), before, 'the region');
      queue.postEncode(200, coder, place, ENCODE_FLAGS);
      w.a.ring();
      await entriesArrive(w, log, places.length + 3, 'the coding queue');
      assert.deepEqual(log.statuses.at(-1), [200, Status.SUCCESS]);
      assertSame(bytesOf(place.region), stripe.encoded(), 'the region after a good request');
      await w.drive(queue.destroy());
    },
  },
  {
    name: '2,000 coding requests complete once each, in the order of posting, and the region waits for them',
    run: async (w) => {
      const COUNT = 2000;
      const stripe = new Stripe(w.a, 2, 1, 64, 128);
      const coder = w.a.createCoder(stripe.encodeSpec());
      const log = new Log();
      const queue = w.a.createCodingQueue(log.handler);
      let isInside = false;
      let calledInside = 0;
      log.on = () => {
        if (isInside) calledInside++;
      };
      isInside = true;
      for (let i = 0; i < COUNT; i++) {
        if (i % 5 === 4)
          queue.postVerify(
            i,
            coder,
            stripe.place.region,
            stripe.headerAt(0),
            LAYOUT.dataHeaderBytes,
            stripe.unitAt(0),
            64,
          );
        else queue.postEncode(i, coder, stripe.place, ENCODE_FLAGS);
        if (i % 100 === 99) w.a.ring();
      }
      isInside = false;
      let doneAtDetach = -1;
      const gone = stripe.place.region.deregister().then(() => {
        doneAtDetach = log.entries.length;
      });
      await entriesArrive(w, log, COUNT, 'the coding queue');
      await w.drive(gone);
      assert.equal(doneAtDetach, COUNT);
      assert.deepEqual(
        log.entries.map(({ wrId }) => wrId),
        Array.from({ length: COUNT }, (_, i) => i),
      );
      assert.equal(calledInside, 0);
      assert.equal(stripe.place.region.buffer.byteLength, 0);
    },
  },
  {
    name:
      'destroy() of a coding queue resolves after its last completion; queues do not mix with each other or ' +
      'queue pairs',
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const stripe = new Stripe(w.a, 4, 2, 4096, 4 * 4096);
      const coder = w.a.createCoder(stripe.encodeSpec());
      const logs = [new Log(), new Log()] as const;
      const queues = logs.map((log) => w.a.createCodingQueue(log.handler));
      for (let i = 0; i < 30; i++) {
        queues[0]!.postEncode(i, coder, stripe.place, 0);
        queues[1]!.postVerify(100 + i, coder, stripe.place.region, stripe.headerAt(0), LAYOUT.dataHeaderBytes, 0, 0);
      }
      qa.toError('a test');
      w.a.ring();
      let atResolution = -1;
      await w.drive(
        queues[0]!.destroy().then(() => {
          atResolution = logs[0].entries.length;
        }),
      );
      assert.equal(atResolution, 30);
      await entriesArrive(w, logs[1], 30, 'the second queue');
      assert.ok(
        logs[0].entries.every(
          ({ wrId, opcode, byteLength, imm }) => wrId < 30 && opcode === Opcode.ENCODE && byteLength + imm === 0,
        ),
      );
      assert.ok(logs[1].entries.every(({ wrId, opcode }) => wrId >= 100 && opcode === Opcode.VERIFY));
      assert.deepEqual(la.entries, []);
      coder.destroy();
    },
  },
  {
    name: 'counters count coded and verified bytes',
    run: async (w) => {
      const stripe = new Stripe(w.a, 4, 2, 4096, 4 * 4096);
      const before = w.a.counters();
      // In one batch: each request counts its own bytes.
      const log = new Log();
      const coder = w.a.createCoder(stripe.encodeSpec());
      const queue = w.a.createCodingQueue(log.handler);
      for (let i = 0; i < 3; i++) queue.postEncode(i, coder, stripe.place, ENCODE_FLAGS);
      w.a.ring();
      await entriesArrive(w, log, 3, 'the coding queue');
      await verify(w, stripe, 1);
      const after = w.a.counters();
      assert.equal(after.bytesEncoded - before.bytesEncoded, 3 * 4 * 4096);
      assert.equal(after.bytesVerified - before.bytesVerified, 4096);
      assert.equal(after.requests - before.requests, 4);
      await w.drive(queue.destroy());
      coder.destroy();
    },
  },
];
