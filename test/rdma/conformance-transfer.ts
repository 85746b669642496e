/** Conformance cases: moving bytes, completions and errors of requests. */
import assert from 'node:assert/strict';
import { Access, Flag, Opcode, Status } from '../../rdma/dist/index.js';
import { assertSame, bytesOf, connectPair, entriesArrive, fill, until, type Case } from './conformance-world.js';

const { SIGNALED } = Flag;
const ALL = Access.REMOTE_READ | Access.REMOTE_WRITE;

export const transferCases: readonly Case[] = [
  {
    name: 'WRITE completes with SUCCESS only after its bytes are in place, and moves no other byte',
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(8192);
      const target = w.b.allocate(8192, Access.REMOTE_WRITE);
      fill(bytesOf(source), 1);
      const expected = new Uint8Array(8192);
      expected.set(bytesOf(source, 100, 5000), 333);
      let atCompletion: Uint8Array | undefined;
      la.on = () => {
        atCompletion = bytesOf(target).slice();
      };
      qa.postWrite(0xffffffff, source, 100, 5000, target.rkey, 333, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      assert.deepEqual(la.entries, [
        { opcode: Opcode.WRITE, status: Status.SUCCESS, wrId: 0xffffffff, byteLength: 0, imm: 0, detail: 0 },
      ]);
      assertSame(atCompletion!, expected, 'b at the completion');
    },
  },
  {
    name: 'fresh memory is zeroed and its keys differ',
    run: async (w) => {
      const regions = Array.from({ length: 8 }, () => w.a.allocate(4096, ALL));
      for (const region of regions) {
        assert.equal(region.byteLength, 4096);
        assertSame(bytesOf(region), new Uint8Array(4096), 'fresh memory');
      }
      assert.equal(new Set(regions.map(({ lkey }) => lkey)).size, 8);
      assert.equal(new Set(regions.map(({ rkey }) => rkey)).size, 8);
    },
  },
  {
    name: 'WRITE_WITH_IMM consumes a receive, whose completion comes after its bytes and those of all earlier writes',
    run: async (w) => {
      const target = w.b.allocate(65536, Access.REMOTE_WRITE);
      const { qa, lb, la } = await connectPair(w, (qb) => {
        for (let i = 0; i < 10; i++) qb.postRecv(100 + i, undefined, 0, 0);
      });
      const source = w.a.allocate(65536);
      fill(bytesOf(source), 2);
      let checked = 0;
      lb.on = ({ imm }) => {
        const round = imm - 0xfedcba00;
        assertSame(
          bytesOf(target, round * 6000, 6000),
          bytesOf(source, round * 6000, 6000),
          `round ${round} at its receive`,
        );
        checked++;
      };
      for (let round = 0; round < 10; round++) {
        qa.postWrite(1, source, round * 6000, 5000, target.rkey, round * 6000, 0);
        qa.postWriteWithImm(
          round,
          source,
          round * 6000 + 5000,
          1000,
          target.rkey,
          round * 6000 + 5000,
          0xfedcba00 + round,
          SIGNALED,
        );
      }
      w.a.ring();
      await entriesArrive(w, lb, 10, 'b');
      await entriesArrive(w, la, 10, 'a');
      assert.equal(checked, 10);
      assert.deepEqual(
        lb.entries,
        Array.from({ length: 10 }, (_, i) => ({
          opcode: Opcode.RECV_WRITE_WITH_IMM,
          status: Status.SUCCESS,
          wrId: 100 + i,
          byteLength: 1000,
          imm: 0xfedcba00 + i,
          detail: 0,
        })),
      );
      assert.deepEqual(
        la.statuses,
        Array.from({ length: 10 }, (_, i) => [i, Status.SUCCESS]),
      );
      assert.ok(la.entries.every(({ opcode }) => opcode === Opcode.WRITE_WITH_IMM));
    },
  },
  {
    name: 'a gather of header and payload lands in one piece, in this order',
    run: async (w) => {
      const target = w.b.allocate(16384, Access.REMOTE_WRITE);
      const { qa, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < 3; i++) qb.postRecv(i, undefined, 0, 0);
      });
      const source = w.a.allocate(16384);
      fill(bytesOf(source), 3);
      const expected = new Uint8Array(16384);
      expected.set(bytesOf(source, 9000, 64), 128);
      expected.set(bytesOf(source, 4096, 4096), 192);
      expected.set(bytesOf(source, 8, 100), 6000); // an empty second entry: a header alone
      expected.set(bytesOf(source, 1, 70), 8000); // an empty first entry
      qa.postGatherWithImm(1, source, 9000, 64, 4096, 4096, target.rkey, 128, 77, SIGNALED);
      qa.postGatherWithImm(2, source, 8, 100, 0, 0, target.rkey, 6000, 78, 0);
      qa.postGatherWithImm(3, source, 0, 0, 1, 70, target.rkey, 8000, 79, 0);
      w.a.ring();
      await entriesArrive(w, lb, 3, 'b');
      assert.deepEqual(
        lb.entries.map(({ byteLength, imm }) => [byteLength, imm]),
        [
          [4160, 77],
          [100, 78],
          [70, 79],
        ],
      );
      assertSame(bytesOf(target), expected, 'b');
    },
  },
  {
    name: "READ brings the peer's bytes and tells the peer nothing",
    run: async (w) => {
      const source = w.b.allocate(8192, Access.REMOTE_READ);
      const { qa, la, lb } = await connectPair(w, (qb) => qb.postRecv(9, undefined, 0, 0));
      const target = w.a.allocate(8192);
      fill(bytesOf(source), 4);
      const expected = new Uint8Array(8192);
      expected.set(bytesOf(source, 17, 7001), 1000);
      let atCompletion: Uint8Array | undefined;
      la.on = () => {
        atCompletion = bytesOf(target).slice();
      };
      qa.postRead(5, target, 1000, 7001, source.rkey, 17, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      assert.deepEqual(la.entries, [
        { opcode: Opcode.READ, status: Status.SUCCESS, wrId: 5, byteLength: 0, imm: 0, detail: 0 },
      ]);
      assertSame(atCompletion!, expected, 'a at the completion');
      await w.quiet();
      assert.deepEqual(lb.entries, []);
    },
  },
  {
    name: 'send-side completions of one queue pair come in the order of posting, whatever the opcodes',
    run: async (w) => {
      const peer = w.b.allocate(1 << 18, ALL);
      const { qa, la } = await connectPair(w, (qb) => {
        for (let i = 0; i < 60; i++) qb.postRecv(i, peer, 0, 64);
      });
      const own = w.a.allocate(1 << 18);
      for (let i = 0; i < 60; i++) {
        const length = (i * 7919) % 4000;
        if (i % 3 === 0) qa.postRead(i, own, 4096, length, peer.rkey, 8192, SIGNALED);
        else if (i % 3 === 1) qa.postWrite(i, own, 65536, length, peer.rkey, 65536, SIGNALED);
        else qa.postSend(i, own, 0, 64, SIGNALED);
      }
      w.a.ring();
      await entriesArrive(w, la, 60, 'a');
      assert.deepEqual(
        la.statuses,
        Array.from({ length: 60 }, (_, i) => [i, Status.SUCCESS]),
      );
    },
  },
  {
    name: 'SEND and WRITE_WITH_IMM take receives from one queue, first in first out',
    run: async (w) => {
      const inbox = w.b.allocate(4096);
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < 4; i++) qb.postRecv(40 + i, inbox, i * 1000, 1000);
      });
      const source = w.a.allocate(4096);
      fill(bytesOf(source), 5);
      qa.postSend(1, source, 0, 300, SIGNALED);
      qa.postWriteWithImm(2, source, 300, 200, target.rkey, 7, 0xabcd, SIGNALED);
      qa.postSend(3, source, 500, 1000, SIGNALED);
      qa.postSend(4, source, 0, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, lb, 4, 'b');
      assert.deepEqual(
        lb.entries.map(({ opcode, wrId, byteLength, imm }) => [opcode, wrId, byteLength, imm]),
        [
          [Opcode.RECV, 40, 300, 0],
          [Opcode.RECV_WRITE_WITH_IMM, 41, 200, 0xabcd],
          [Opcode.RECV, 42, 1000, 0],
          [Opcode.RECV, 43, 0, 0],
        ],
      );
      const expected = new Uint8Array(4096);
      expected.set(bytesOf(source, 0, 300), 0);
      expected.set(bytesOf(source, 500, 1000), 2000);
      assertSame(bytesOf(inbox), expected, 'the receive buffers');
      assertSame(bytesOf(target, 7, 200), bytesOf(source, 300, 200), 'the write');
    },
  },
  {
    name: 'a SEND and a WRITE_WITH_IMM wait for a receive, then succeed; no later byte or completion overtakes theirs',
    run: async (w) => {
      const inbox = w.b.allocate(4096);
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, qb, la, lb } = await connectPair(w);
      const source = w.a.allocate(4096);
      fill(bytesOf(source), 6);
      qa.postSend(1, source, 0, 100, SIGNALED);
      qa.postWriteWithImm(2, source, 100, 100, target.rkey, 0, 5, SIGNALED);
      qa.postWrite(3, source, 200, 100, target.rkey, 1000, SIGNALED);
      w.a.ring();
      await w.quiet();
      assert.deepEqual(la.entries, []);
      assertSame(bytesOf(target), new Uint8Array(4096), 'the target before the first receive');
      qb.postRecv(7, inbox, 50, 100);
      w.b.ring();
      await entriesArrive(w, la, 1, 'a');
      await w.quiet();
      assert.deepEqual(la.statuses, [[1, Status.SUCCESS]]);
      // The third request's bytes may be in place by now, since the second's are; its completion has to wait.
      qb.postRecv(8, undefined, 0, 0);
      w.b.ring();
      await entriesArrive(w, la, 3, 'a');
      // The two sides' completions are not ordered with each other.
      await entriesArrive(w, lb, 2, 'b');
      assert.deepEqual(la.statuses, [
        [1, Status.SUCCESS],
        [2, Status.SUCCESS],
        [3, Status.SUCCESS],
      ]);
      assert.deepEqual(lb.statuses, [
        [7, Status.SUCCESS],
        [8, Status.SUCCESS],
      ]);
      assertSame(bytesOf(inbox, 50, 100), bytesOf(source, 0, 100), 'the message');
      assertSame(bytesOf(target, 1000, 100), bytesOf(source, 200, 100), 'the last write');
    },
  },
  {
    name: 'a request without SIGNALED completes only when it fails',
    run: async (w) => {
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      for (let i = 0; i < 5; i++) qa.postWrite(i, source, 0, 64, target.rkey, 0, 0);
      qa.postWrite(5, source, 0, 64, target.rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      await w.quiet();
      assert.deepEqual(la.statuses, [[5, Status.SUCCESS]]);
      qa.postWrite(6, source, 0, 64, target.rkey, 0, 0);
      qa.postWrite(7, source, 0, 64, target.rkey, 4090, 0);
      qa.postWrite(8, source, 0, 64, target.rkey, 0, 0);
      w.a.ring();
      await entriesArrive(w, la, 3, 'a');
      await w.quiet();
      assert.deepEqual(la.statuses, [
        [5, Status.SUCCESS],
        [7, Status.REMOTE_ACCESS_ERROR],
        [8, Status.FLUSHED],
      ]);
    },
  },
  {
    name: 'zero bytes are legal for every opcode, also at the very end of a region',
    run: async (w) => {
      const peer = w.b.allocate(4096, ALL);
      const { qa, la, lb } = await connectPair(w, (qb) => {
        qb.postRecv(1, undefined, 0, 0);
        qb.postRecv(2, undefined, 0, 0);
        qb.postRecv(3, peer, 4096, 0);
      });
      const own = w.a.allocate(4096);
      qa.postWrite(1, own, 4096, 0, peer.rkey, 4096, SIGNALED);
      qa.postRead(2, own, 4096, 0, peer.rkey, 4096, SIGNALED);
      qa.postWriteWithImm(3, own, 0, 0, peer.rkey, 0, 11, SIGNALED);
      qa.postGatherWithImm(4, own, 0, 0, 0, 0, peer.rkey, 0, 12, SIGNALED);
      qa.postSend(5, own, 0, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 5, 'a');
      await entriesArrive(w, lb, 3, 'b');
      assert.deepEqual(
        la.statuses,
        [1, 2, 3, 4, 5].map((wrId) => [wrId, Status.SUCCESS]),
      );
      assert.deepEqual(
        lb.entries.map(({ byteLength, imm }) => [byteLength, imm]),
        [
          [0, 11],
          [0, 12],
          [0, 0],
        ],
      );
    },
  },
  {
    name: 'a SEND longer than the receive is a length error at the receiver and fails at the sender',
    run: async (w) => {
      for (const hasBuffer of [true, false]) {
        const inbox = w.b.allocate(4096);
        const { qa, qb, la, lb } = await connectPair(w, (qb) => {
          qb.postRecv(1, hasBuffer ? inbox : undefined, 0, hasBuffer ? 99 : 0);
          qb.postRecv(2, inbox, 0, 4096);
        });
        const source = w.a.allocate(4096);
        fill(bytesOf(source), 7);
        qa.postSend(1, source, 0, 100, SIGNALED);
        qa.postSend(2, source, 0, 10, SIGNALED);
        w.a.ring();
        await entriesArrive(w, la, 2, 'a');
        await entriesArrive(w, lb, 2, 'b');
        assert.deepEqual(lb.statuses, [
          [1, Status.LENGTH_ERROR],
          [2, Status.FLUSHED],
        ]);
        assert.ok(
          [Status.REMOTE_INVALID_REQUEST, Status.LENGTH_ERROR].some((status) => status === la.entries[0]!.status),
          `a's status: ${la.entries[0]!.status}`,
        );
        assert.deepEqual(la.statuses[1], [2, Status.FLUSHED]);
        assert.deepEqual([qa.state, qb.state], ['error', 'error']);
        assertSame(bytesOf(inbox, 99), new Uint8Array(4096 - 99), 'behind the receive buffer');
      }
    },
  },
  {
    name: 'posts wait for ring(), and handlers never run inside a post or ring()',
    run: async (w) => {
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      fill(bytesOf(source), 8);
      let isInside = false;
      let calledInside = 0;
      la.on = () => {
        if (isInside) calledInside++;
      };
      isInside = true;
      qa.postWrite(1, source, 0, 64, target.rkey, 0, SIGNALED);
      isInside = false;
      await w.quiet();
      assert.deepEqual(la.entries, []);
      assertSame(bytesOf(target, 0, 64), new Uint8Array(64), 'b before ring()');
      for (let i = 2; i < 200; i++) {
        isInside = true;
        qa.postWrite(i, source, 0, 64, target.rkey, 0, SIGNALED);
        w.a.ring();
        isInside = false;
      }
      qa.toError('enough');
      isInside = true;
      qa.postWrite(200, source, 0, 64, target.rkey, 0, SIGNALED);
      w.a.ring();
      isInside = false;
      await entriesArrive(w, la, 200, 'a');
      assert.equal(calledInside, 0);
    },
  },
  {
    name: 'onBatchEnd follows every batch of handlers, and what handlers and it posted is rung by the device',
    run: async (w) => {
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      let sinceBatchEnd = 0;
      let emptyEnds = 0;
      let fromBatchEnd = 0;
      la.on = ({ wrId }) => {
        sinceBatchEnd++;
        if (wrId < 20) qa.postWrite(wrId + 1, source, 0, 64, target.rkey, 0, SIGNALED);
      };
      w.a.onBatchEnd = () => {
        if (sinceBatchEnd === 0) emptyEnds++;
        sinceBatchEnd = 0;
        if (la.entries.length === 20 && fromBatchEnd++ === 0)
          qa.postWrite(100, source, 0, 64, target.rkey, 0, SIGNALED);
      };
      qa.postWrite(1, source, 0, 64, target.rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 21, 'a');
      await until(w, () => sinceBatchEnd === 0, 'the last batch ends');
      assert.deepEqual(
        la.statuses.map(([wrId]) => wrId),
        [...Array.from({ length: 20 }, (_, i) => i + 1), 100],
      );
      assert.equal(fromBatchEnd >= 1, true);
      assert.ok(emptyEnds <= 2, `batches without a handler: ${emptyEnds}`);
    },
  },
  {
    name: '12,000 requests in a window wrap every ring, lose nothing and keep their order',
    run: async (w) => {
      const TOTAL = 12_000;
      const WINDOW = 128;
      const target = w.b.allocate(WINDOW * 16, Access.REMOTE_WRITE);
      const received: number[] = [];
      let wrong = 0;
      const { qa, qb, la, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < WINDOW; i++) qb.postRecv(i, undefined, 0, 0);
      });
      const targetWords = new Uint32Array(target.buffer);
      lb.on = ({ status, imm, wrId }) => {
        if (status !== Status.SUCCESS) return;
        if (targetWords[(imm % WINDOW) * 4] !== imm) wrong++;
        received.push(imm);
        qb.postRecv(wrId, undefined, 0, 0);
        post();
        w.a.ring();
      };
      const source = w.a.allocate(WINDOW * 16);
      const sourceWords = new Uint32Array(source.buffer);
      let posted = 0;
      let completed = 0;
      // Every fourth is signalled: its completion frees the slots of four. The target's slot is written again only when
      // the receiver's handler has looked at it.
      const post = (): void => {
        while (posted < TOTAL && posted - completed < WINDOW && posted - received.length < WINDOW) {
          const slot = posted % WINDOW;
          sourceWords[slot * 4] = posted;
          qa.postWriteWithImm(
            posted,
            source,
            slot * 16,
            16,
            target.rkey,
            slot * 16,
            posted,
            posted % 4 === 3 ? SIGNALED : 0,
          );
          posted++;
        }
      };
      la.on = ({ wrId, status }) => {
        if (status !== Status.SUCCESS) return;
        assert.equal(wrId, completed + 3);
        completed = wrId + 1;
        post();
      };
      post();
      w.a.ring();
      await until(w, () => received.length === TOTAL && completed === TOTAL, `all ${TOTAL} arrive`);
      assert.ok(
        received.every((imm, i) => imm === i),
        'in order',
      );
      assert.equal(la.entries.length, TOTAL / 4);
      assert.equal(wrong, 0);
    },
  },
  {
    name: '3,000 requests and receives posted at once, with one ring(), all complete',
    run: async (w) => {
      const COUNT = 3000;
      const inbox = w.b.allocate(COUNT * 4);
      const { qa, la, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < COUNT; i++) qb.postRecv(i, inbox, i * 4, 4);
      });
      const source = w.a.allocate(COUNT * 4);
      fill(bytesOf(source), 9);
      for (let i = 0; i < COUNT; i++) qa.postSend(i, source, i * 4, 4, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, COUNT, 'a');
      await entriesArrive(w, lb, COUNT, 'b');
      const expected = Array.from({ length: COUNT }, (_, i) => [i, Status.SUCCESS]);
      assert.deepEqual(la.statuses, expected);
      assert.deepEqual(lb.statuses, expected);
      assertSame(bytesOf(inbox), bytesOf(source), 'the messages');
    },
  },
  {
    name: 'both directions carry at the same time',
    run: async (w) => {
      const regionB = w.b.allocate(1 << 16, ALL);
      const { qa, qb, la, lb } = await connectPair(w);
      const regionA = w.a.allocate(1 << 16, ALL);
      fill(bytesOf(regionA, 0, 32768), 10);
      fill(bytesOf(regionB, 0, 32768), 11);
      for (let i = 0; i < 32; i++) {
        qa.postWrite(i, regionA, i * 1024, 1024, regionB.rkey, 32768 + i * 1024, SIGNALED);
        qb.postWrite(i, regionB, i * 1024, 1024, regionA.rkey, 32768 + i * 1024, SIGNALED);
      }
      w.a.ring();
      w.b.ring();
      await entriesArrive(w, la, 32, 'a');
      await entriesArrive(w, lb, 32, 'b');
      assertSame(bytesOf(regionB, 32768), bytesOf(regionA, 0, 32768), 'a to b');
      assertSame(bytesOf(regionA, 32768), bytesOf(regionB, 0, 32768), 'b to a');
    },
  },
];
