/** Conformance cases: connections, the error state, and the end of queue pairs, regions and devices. */
import assert from 'node:assert/strict';
import { Access, Flag, RdmaError, Status, type QueuePair } from '../../rdma/dist/index.js';
import { assertSame, bytesOf, connectPair, entriesArrive, fill, Log, until, type Case } from './conformance-world.js';

const { SIGNALED } = Flag;
const ALL = Access.REMOTE_READ | Access.REMOTE_WRITE;

export const connectionCases: readonly Case[] = [
  {
    name: 'connect() to a port that nobody listens on fails with ERR_CONNECT',
    run: async (w) => {
      const listener = await w.drive(w.b.listen(w.address, 0, () => {}));
      await w.drive(listener.close());
      await assert.rejects(w.drive(w.a.connect(w.address, listener.port, w.connectOptions)), hasCode('ERR_CONNECT'));
    },
  },
  {
    name: 'listen() twice on a port fails with ERR_LISTEN; once closed, the port is free again',
    run: async (w) => {
      const first = await w.drive(w.b.listen(w.address, 0, () => {}));
      assert.ok(first.port > 0 && first.port < 65536);
      await assert.rejects(w.drive(w.b.listen(w.address, first.port, () => {})), hasCode('ERR_LISTEN'));
      await w.drive(first.close());
      const second = await w.drive(w.b.listen(w.address, first.port, () => {}));
      assert.equal(second.port, first.port);
    },
  },
  {
    name: 'a queue pair knows its peer and its state, and the listening side may speak first',
    run: async (w) => {
      const greeting = w.b.allocate(64);
      fill(bytesOf(greeting), 1);
      const { qa, qb, la, listener } = await connectPair(w, (qb) => qb.postSend(1, greeting, 0, 64, SIGNALED));
      w.b.ring();
      assert.equal(qa.remote, `${w.address}:${listener.port}`);
      assert.deepEqual([qa.state, qb.state], ['connected', 'connected']);
      const inbox = w.a.allocate(64);
      qa.postRecv(1, inbox, 0, 64);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      assertSame(bytesOf(inbox), bytesOf(greeting), 'the greeting');
    },
  },
  {
    name: 'two queue pairs of one device do not mix, and one in error leaves the other alone',
    run: async (w) => {
      const first = await connectPair(w, (qb) => postReceives(qb, 50, 0));
      const second = await connectPair(w, (qb) => postReceives(qb, 50, 1000));
      const source = w.a.allocate(4096);
      const target = w.b.allocate(4096, ALL);
      for (let i = 0; i < 50; i++) {
        first.qa.postWriteWithImm(i, source, 0, 64, target.rkey, 0, i, SIGNALED);
        second.qa.postWriteWithImm(1000 + i, source, 0, 64, target.rkey, 64, 1000 + i, SIGNALED);
        if (i === 24) first.qa.postWrite(500, source, 0, 64, 0, 0, SIGNALED);
      }
      w.a.ring();
      await entriesArrive(w, first.la, 51, 'the first');
      await entriesArrive(w, second.la, 50, 'the second');
      await entriesArrive(w, second.lb, 50, 'the second at b');
      assert.equal(first.la.entries.filter(({ status }) => status === Status.SUCCESS).length, 25);
      assert.deepEqual(
        second.la.statuses,
        Array.from({ length: 50 }, (_, i) => [1000 + i, Status.SUCCESS]),
      );
      assert.deepEqual(
        second.lb.entries.map(({ wrId, imm }) => [wrId, imm]),
        Array.from({ length: 50 }, (_, i) => [1000 + i, 1000 + i]),
      );
      assert.deepEqual([first.qa.state, second.qa.state, second.qb.state], ['error', 'connected', 'connected']);
    },
  },
  {
    name: 'toError() flushes everything outstanding and everything posted later, each once, in order',
    run: async (w) => {
      const { qa, qb, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      for (let i = 0; i < 20; i++) qa.postSend(i, source, 0, 64, i % 2 === 0 ? SIGNALED : 0); // no receive: they stay
      for (let i = 100; i < 120; i++) qa.postRecv(i, source, 64, 64);
      w.a.ring();
      await w.quiet();
      assert.deepEqual(la.entries, []);
      qa.toError('a test');
      assert.equal(qa.state, 'error');
      await entriesArrive(w, la, 40, 'a');
      for (let i = 20; i < 25; i++) qa.postWrite(i, source, 0, 64, 1, 0, 0);
      qa.postRecv(120, source, 0, 64);
      w.a.ring();
      await entriesArrive(w, la, 46, 'a');
      await w.quiet();
      assert.equal(la.entries.length, 46);
      assert.ok(la.entries.every(({ status }) => status === Status.FLUSHED));
      assert.deepEqual(
        la.entries.filter(({ wrId }) => wrId < 100).map(({ wrId }) => wrId),
        Array.from({ length: 25 }, (_, i) => i),
      );
      assert.deepEqual(
        la.entries.filter(({ wrId }) => wrId >= 100).map(({ wrId }) => wrId),
        Array.from({ length: 21 }, (_, i) => 100 + i),
      );
      assert.equal(la.errors.length, 1);
      assert.equal(la.entriesAtError, 0);
      await until(w, () => qb.state === 'error', 'the peer notices');
    },
  },
  {
    name: 'source memory is free after the last flushed completion: what is written to it then never arrives',
    run: async (w) => {
      const target = w.b.allocate(1 << 18, Access.REMOTE_WRITE);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(1 << 18);
      bytesOf(source).fill(1);
      for (let i = 0; i < 16; i++) qa.postWrite(i, source, i << 14, 1 << 14, target.rkey, i << 14, SIGNALED);
      w.a.ring();
      qa.toError('a deadline');
      await entriesArrive(w, la, 16, 'a');
      bytesOf(source).fill(2);
      await w.quiet();
      assert.equal(bytesOf(target).indexOf(2), -1);
      assert.deepEqual(
        la.entries.map(({ wrId }) => wrId),
        Array.from({ length: 16 }, (_, i) => i),
      );
      const failed = la.entries.findIndex(({ status }) => status !== Status.SUCCESS);
      if (failed >= 0) assert.ok(la.entries.slice(failed).every(({ status }) => status === Status.FLUSHED));
    },
  },
  {
    name: 'receive buffers are free after their flushed completions: no later byte of the peer arrives in them',
    run: async (w) => {
      const inbox = w.b.allocate(1 << 16, Access.REMOTE_WRITE);
      const { qa, qb, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < 16; i++) qb.postRecv(i, inbox, i << 12, 1 << 12);
      });
      const source = w.a.allocate(1 << 16);
      bytesOf(source).fill(1);
      for (let i = 0; i < 16; i++) qa.postSend(i, source, i << 12, 1 << 12, 0);
      w.a.ring();
      qb.toError('a test');
      await entriesArrive(w, lb, 16, 'b');
      bytesOf(inbox).fill(3);
      await w.quiet();
      assert.ok(bytesOf(inbox).every((byte) => byte === 3));
      assert.deepEqual(
        lb.entries.map(({ wrId }) => wrId),
        Array.from({ length: 16 }, (_, i) => i),
      );
    },
  },
  {
    name: 'destroy() resolves after the last completion, and is idempotent',
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      for (let i = 0; i < 10; i++) qa.postSend(i, source, 0, 64, 0);
      for (let i = 10; i < 15; i++) qa.postRecv(i, source, 0, 64);
      w.a.ring();
      let atResolution = -1;
      const gone = qa.destroy().then(() => {
        atResolution = la.entries.length;
      });
      const again = qa.destroy();
      await w.drive(Promise.all([gone, again]));
      assert.equal(atResolution, 15);
      assert.equal(qa.state, 'closed');
      await w.quiet();
      assert.equal(la.entries.length, 15);
      assert.ok(la.entries.every(({ status }) => status === Status.FLUSHED));
    },
  },
  {
    name: 'when the peer goes, the oldest request gets RETRY_EXCEEDED (or FLUSHED) and the others FLUSHED',
    run: async (w) => {
      const { qa, qb, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      for (let i = 0; i < 5; i++) qa.postSend(i, source, 0, 64, 0); // no receive: outstanding
      qa.postRecv(100, source, 0, 64);
      w.a.ring();
      await w.quiet();
      await w.drive(qb.destroy());
      await entriesArrive(w, la, 6, 'a');
      await w.quiet();
      const sends = la.entries.filter(({ wrId }) => wrId < 100);
      assert.deepEqual(
        sends.map(({ wrId }) => wrId),
        [0, 1, 2, 3, 4],
      );
      assert.ok(
        sends[0]!.status === Status.RETRY_EXCEEDED || sends[0]!.status === Status.FLUSHED,
        `status ${sends[0]!.status}`,
      );
      assert.ok(sends.slice(1).every(({ status }) => status === Status.FLUSHED));
      assert.deepEqual(
        la.statuses.filter(([wrId]) => wrId === 100),
        [[100, Status.FLUSHED]],
      );
      assert.equal(qa.state, 'error');
      assert.equal(la.errors.length, 1);
    },
  },
  {
    name: 'an idle queue pair notices that its peer has gone',
    run: async (w) => {
      const { qa, qb, la } = await connectPair(w);
      await w.drive(qb.destroy());
      await until(w, () => la.errors.length === 1, 'onError');
      assert.equal(qa.state, 'error');
    },
  },
  {
    name: 'deregister() detaches the buffer; a later write to the region fails, and the key never returns',
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { rkey } = target;
      const gone = target.deregister();
      await w.drive(Promise.all([gone, target.deregister()]));
      assert.equal(target.buffer.byteLength, 0);
      const others = Array.from({ length: 50 }, () => w.b.allocate(4096, Access.REMOTE_WRITE));
      assert.ok(others.every((other) => other.rkey !== rkey));
      qa.postWrite(1, source, 0, 64, rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      assert.deepEqual(la.statuses, [[1, Status.REMOTE_ACCESS_ERROR]]);
      assert.ok(others.every((other) => bytesOf(other).every((byte) => byte === 0)));
    },
  },
  {
    name: "a request on a deregistered region of one's own is LOCAL_PROTECTION_ERROR",
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(4096);
      await w.drive(source.deregister());
      qa.postSend(1, source, 0, 64, 0);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      assert.deepEqual(la.statuses, [[1, Status.LOCAL_PROTECTION_ERROR]]);
    },
  },
  {
    name: 'deregister() waits for the requests and receives outstanding on the region',
    run: async (w) => {
      const inbox = w.b.allocate(4096);
      const { qa, qb, la, lb } = await connectPair(w, (qb) => qb.postRecv(1, inbox, 0, 64));
      const source = w.a.allocate(4096);
      fill(bytesOf(source), 2);
      const expected = bytesOf(source, 0, 128).slice();
      qa.postSend(1, source, 0, 64, SIGNALED);
      qa.postSend(2, source, 64, 64, SIGNALED); // waits for a receive
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      let completedBefore = -1;
      const gone = source.deregister().then(() => {
        completedBefore = la.entries.length;
      });
      await w.quiet();
      assert.equal(completedBefore, -1, 'deregister() is pending while a request is');
      assert.equal(source.buffer.byteLength, 4096);
      qb.postRecv(2, inbox, 64, 64);
      qb.postRecv(3, inbox, 128, 64);
      w.b.ring();
      await w.drive(gone);
      assert.equal(completedBefore, 2);
      assert.deepEqual(la.statuses, [
        [1, Status.SUCCESS],
        [2, Status.SUCCESS],
      ]);
      assert.equal(source.buffer.byteLength, 0);
      await entriesArrive(w, lb, 2, 'b');
      assertSame(bytesOf(inbox, 0, 128), expected, 'the messages');
      // A receive holds its region until it is flushed.
      let flushedBefore = -1;
      const inboxGone = inbox.deregister().then(() => {
        flushedBefore = lb.entries.length;
      });
      await w.quiet();
      assert.equal(flushedBefore, -1, 'deregister() is pending while a receive is');
      qb.toError('a test');
      await w.drive(inboxGone);
      assert.equal(flushedBefore, 3);
      assert.equal(inbox.buffer.byteLength, 0);
    },
  },
  {
    name: 'a region deregistered under the writes of a peer is detached whole, and the peer is refused',
    run: async (w) => {
      const target = w.b.allocate(1 << 20, Access.REMOTE_WRITE);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(1 << 20);
      bytesOf(source).fill(1);
      const { rkey } = target;
      for (let i = 0; i < 64; i++) qa.postWrite(i, source, 0, 1 << 20, rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      await w.drive(target.deregister());
      assert.equal(target.buffer.byteLength, 0);
      // may get the same pages
      const others = Array.from({ length: 8 }, () => w.b.allocate(1 << 20, Access.REMOTE_WRITE));
      await entriesArrive(w, la, 64, 'a');
      await w.quiet();
      assert.ok(others.every((other) => bytesOf(other).indexOf(1) === -1));
      const failed = la.entries.findIndex(({ status }) => status !== Status.SUCCESS);
      if (failed >= 0) assert.equal(la.entries[failed]!.status, Status.REMOTE_ACCESS_ERROR);
      assert.deepEqual(
        la.entries.map(({ wrId }) => wrId),
        Array.from({ length: 64 }, (_, i) => i),
      );
    },
  },
  {
    name: 'a region that was granted to a queue pair is out of reach of every other, whatever key its peer knows',
    run: async (w) => {
      if (w.a.kind === 'verbs') return; // one protection domain for all
      const target = w.b.allocate(4096, ALL);
      const source = w.a.allocate(4096);
      bytesOf(source).fill(1);
      const owner = await connectPair(w);
      const second = await connectPair(w);
      target.grant(owner.qb);
      target.grant(second.qb);
      const stranger = await connectPair(w);
      const reader = await connectPair(w);
      owner.qa.postWrite(1, source, 0, 64, target.rkey, 0, SIGNALED);
      second.qa.postRead(2, source, 64, 64, target.rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, owner.la, 1, 'the owner');
      await entriesArrive(w, second.la, 1, 'the second');
      assert.deepEqual(
        [...owner.la.statuses, ...second.la.statuses],
        [
          [1, Status.SUCCESS],
          [2, Status.SUCCESS],
        ],
      );
      const before = w.b.counters().refusedAccesses;
      stranger.qa.postWrite(3, source, 0, 4096, target.rkey, 0, SIGNALED);
      reader.qa.postRead(4, source, 0, 4096, target.rkey, 0, SIGNALED);
      w.a.ring();
      await entriesArrive(w, stranger.la, 1, 'the stranger');
      await entriesArrive(w, reader.la, 1, 'the reader');
      assert.deepEqual(
        [...stranger.la.statuses, ...reader.la.statuses],
        [
          [3, Status.REMOTE_ACCESS_ERROR],
          [4, Status.REMOTE_ACCESS_ERROR],
        ],
      );
      assert.equal(w.b.counters().refusedAccesses - before, 2);
      assert.equal(bytesOf(target).indexOf(1, 64), -1, 'no byte moved');
      assert.deepEqual([owner.qa.state, second.qa.state], ['connected', 'connected']);
    },
  },
  {
    name: 'close() ends queue pairs, listeners and regions; everything completes, the peer notices, twice is once',
    run: async (w) => {
      const { qa, qb, la, lb, listener } = await connectPair(w);
      const source = w.a.allocate(4096);
      const target = w.b.allocate(4096, ALL);
      for (let i = 0; i < 5; i++) qa.postSend(i, source, 0, 64, 0);
      qb.postRecv(1, target, 4096, 0);
      w.b.ring();
      w.a.ring();
      await w.drive(Promise.all([w.b.close(), w.b.close()]));
      assert.equal(target.buffer.byteLength, 0);
      assert.equal(lb.entries.length, 1);
      await entriesArrive(w, la, 5, 'a');
      await until(w, () => qa.state === 'error', 'the peer notices');
      await assert.rejects(w.drive(w.a.connect(w.address, listener.port, w.connectOptions)), hasCode('ERR_CONNECT'));
    },
  },
  {
    name: 'counters count requests, completions, rings and bytes',
    run: async (w) => {
      const { qa, la } = await connectPair(w);
      const before = [w.a.counters(), w.b.counters()] as const;
      const source = w.a.allocate(4096);
      const target = w.b.allocate(4096, ALL);
      for (let i = 0; i < 10; i++) qa.postWrite(i, source, 0, 100, target.rkey, 0, i === 9 ? SIGNALED : 0);
      w.a.ring();
      await entriesArrive(w, la, 1, 'a');
      const after = [w.a.counters(), w.b.counters()] as const;
      assert.equal(after[0].requests - before[0].requests, 10);
      assert.equal(after[0].completions - before[0].completions, 1);
      assert.ok(after[0].rings > before[0].rings);
      assert.ok(after[0].wakeups > before[0].wakeups);
      assert.ok(after[0].bytesSent - before[0].bytesSent >= 1000);
      assert.equal(after[0].queuePairs - before[0].queuePairs, 0);
      assert.equal(after[1].regions - before[1].regions, 1);
      assert.equal(after[0].errors, before[0].errors);
    },
  },
  {
    name: 'twenty connections come and go on one listener',
    run: async (w) => {
      const served: QueuePair[] = [];
      const target = w.b.allocate(4096, ALL);
      const listener = await w.drive(
        w.b.listen(w.address, 0, (qp) => {
          new Log().attach(qp);
          served.push(qp);
        }),
      );
      const source = w.a.allocate(4096);
      for (let round = 0; round < 20; round++) {
        const qp = await w.drive(w.a.connect(w.address, listener.port, w.connectOptions));
        const log = new Log();
        log.attach(qp);
        bytesOf(source, 0, 1)[0] = round + 1;
        qp.postWrite(round, source, 0, 1, target.rkey, round, SIGNALED);
        w.a.ring();
        await entriesArrive(w, log, 1, `connection ${round}`);
        await w.drive(qp.destroy());
        await until(w, () => served.length === round + 1 && served[round]!.state === 'error', 'b sees it go');
        await w.drive(served[round]!.destroy());
      }
      assertSame(
        bytesOf(target, 0, 20),
        Uint8Array.from({ length: 20 }, (_, i) => i + 1),
        'b',
      );
    },
  },
];

function postReceives(qp: QueuePair, count: number, firstWrId: number): void {
  for (let i = 0; i < count; i++) qp.postRecv(firstWrId + i, undefined, 0, 0);
}

function hasCode(code: string): (error: unknown) => boolean {
  return (error) => error instanceof RdmaError && error.code === code;
}
