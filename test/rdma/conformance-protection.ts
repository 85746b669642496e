/** Conformance cases: accesses outside of what a region is, at the peer and here. */
import assert from 'node:assert/strict';
import { Access, Status, type MemoryRegion, type QueuePair, Flag } from '../../rdma/dist/index.js';
import { assertSame, bytesOf, connectPair, entriesArrive, fill, type Case, type Log } from './conformance-world.js';

const { SIGNALED } = Flag;
const ALL = Access.REMOTE_READ | Access.REMOTE_WRITE;

export const protectionCases: readonly Case[] = [...remoteAccessCases(), ...localProtectionCases()];

/** One case per way to misuse a remote region. */
function remoteAccessCases(): Case[] {
  type Post = (qa: QueuePair, own: MemoryRegion, rkey: number) => void;
  const write =
    (offset: number, length: number): Post =>
    (qa, own, rkey) =>
      qa.postWrite(2, own, 0, length, rkey, offset, 0);
  const ways: { what: string; access: number; post: Post }[] = [
    {
      what: 'WRITE with a wrong key',
      access: ALL,
      post: (qa, own, rkey) => qa.postWrite(2, own, 0, 64, (rkey ^ 1) >>> 0, 0, 0),
    },
    { what: 'WRITE with key 0', access: ALL, post: (qa, own) => qa.postWrite(2, own, 0, 64, 0, 0, 0) },
    { what: 'WRITE one byte too far', access: ALL, post: write(4096 - 63, 64) },
    { what: 'WRITE longer than the region', access: ALL, post: write(0, 4097) },
    { what: 'WRITE beyond the region', access: ALL, post: write(1 << 20, 64) },
    { what: 'WRITE that wraps around 2^32', access: ALL, post: write(0xffffffe0, 64) },
    { what: 'WRITE without permission', access: Access.REMOTE_READ, post: write(0, 64) },
    { what: 'WRITE to local memory', access: Access.LOCAL, post: write(0, 64) },
    {
      what: 'WRITE_WITH_IMM one byte too far',
      access: ALL,
      post: (qa, own, rkey) => qa.postWriteWithImm(2, own, 0, 64, rkey, 4096 - 63, 1, 0),
    },
    {
      what: 'gather whose second entry ends too far',
      access: ALL,
      post: (qa, own, rkey) => qa.postGatherWithImm(2, own, 0, 32, 64, 32, rkey, 4096 - 63, 1, 0),
    },
    {
      what: 'READ with a wrong key',
      access: ALL,
      post: (qa, own, rkey) => qa.postRead(2, own, 0, 64, (rkey ^ 0x80000000) >>> 0, 0, 0),
    },
    {
      what: 'READ one byte too far',
      access: ALL,
      post: (qa, own, rkey) => qa.postRead(2, own, 0, 64, rkey, 4096 - 63, 0),
    },
    {
      what: 'READ without permission',
      access: Access.REMOTE_WRITE,
      post: (qa, own, rkey) => qa.postRead(2, own, 0, 64, rkey, 0, 0),
    },
  ];
  return ways.map(({ what, access, post }) => ({
    name: `${what}: no byte moves, REMOTE_ACCESS_ERROR, both queue pairs in error`,
    run: async (w) => {
      const target = w.b.allocate(4096, access);
      const allowed = w.b.allocate(4096, ALL);
      const { qa, qb, la, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < 3; i++) qb.postRecv(i, undefined, 0, 0);
      });
      const own = w.a.allocate(8192);
      fill(bytesOf(own), 12);
      fill(bytesOf(target), 13);
      const [ownBefore, targetBefore] = [bytesOf(own).slice(), bytesOf(target).slice()];
      qa.postWrite(1, own, 0, 64, allowed.rkey, 0, SIGNALED);
      post(qa, own, target.rkey);
      qa.postWrite(3, own, 0, 64, allowed.rkey, 64, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 3, 'a');
      await entriesArrive(w, lb, 3, 'b');
      await w.quiet();
      assert.deepEqual(la.statuses, [
        [1, Status.SUCCESS],
        [2, Status.REMOTE_ACCESS_ERROR],
        [3, Status.FLUSHED],
      ]);
      assert.deepEqual(lb.statuses, [
        [0, Status.FLUSHED],
        [1, Status.FLUSHED],
        [2, Status.FLUSHED],
      ]);
      assertErrorOnce(qa, la, 1);
      assertErrorOnce(qb, lb, 0);
      assertSame(bytesOf(target), targetBefore, 'the target');
      assertSame(bytesOf(own), ownBefore, 'own memory');
      assertSame(bytesOf(allowed, 64), new Uint8Array(4096 - 64), 'what came after the refused request');
    },
  }));
}

/** The error state, told once, before the first flushed completion. */
function assertErrorOnce(qp: QueuePair, log: Log, entriesBefore: number): void {
  assert.equal(qp.state, 'error');
  assert.equal(log.errors.length, 1, 'onError is called once');
  assert.ok(log.entriesAtError <= entriesBefore, `onError came after ${log.entriesAtError} completions`);
}

/** One case per way to name memory that is not the requester's. */
function localProtectionCases(): Case[] {
  const ways: {
    what: string;
    post: (qa: QueuePair, own: MemoryRegion, foreign: MemoryRegion, rkey: number) => void;
  }[] = [
    {
      what: 'WRITE from one byte too far',
      post: (qa, own, _, rkey) => qa.postWrite(2, own, 4096 - 63, 64, rkey, 0, 0),
    },
    {
      what: "WRITE from another device's memory",
      post: (qa, _, foreign, rkey) => qa.postWrite(2, foreign, 0, 64, rkey, 0, 0),
    },
    { what: 'SEND from beyond the region', post: (qa, own) => qa.postSend(2, own, 8192, 1, 0) },
    { what: 'READ into one byte too far', post: (qa, own, _, rkey) => qa.postRead(2, own, 4000, 97, rkey, 0, 0) },
    {
      what: 'gather with a second entry outside',
      post: (qa, own, _, rkey) => qa.postGatherWithImm(2, own, 0, 64, 4096, 1, rkey, 0, 1, 0),
    },
  ];
  const cases: Case[] = ways.map(({ what, post }) => ({
    name: `${what}: LOCAL_PROTECTION_ERROR after what came before, no byte moves`,
    run: async (w) => {
      const target = w.b.allocate(4096, ALL);
      const { qa, la } = await connectPair(w);
      const own = w.a.allocate(4096);
      // Another device's region whose local key means nothing here: keys count up, so make this one a late one.
      for (let i = 0; i < 20; i++) w.b.allocate(64);
      const foreign = w.b.allocate(4096);
      fill(bytesOf(own), 14);
      qa.postWrite(1, own, 0, 64, target.rkey, 1024, SIGNALED);
      post(qa, own, foreign, target.rkey);
      qa.postWrite(3, own, 0, 64, target.rkey, 2048, SIGNALED);
      w.a.ring();
      await entriesArrive(w, la, 3, 'a');
      await w.quiet();
      assert.deepEqual(la.statuses, [
        [1, Status.SUCCESS],
        [2, Status.LOCAL_PROTECTION_ERROR],
        [3, Status.FLUSHED],
      ]);
      assert.equal(qa.state, 'error');
      assertSame(bytesOf(target, 0, 64), new Uint8Array(64), 'the target');
      assertSame(bytesOf(target, 2048, 64), new Uint8Array(64), 'what came after');
    },
  }));
  return [
    ...cases,
    {
      name: 'a receive outside its region: LOCAL_PROTECTION_ERROR, and no byte is placed',
      run: async (w) => {
        const inbox = w.b.allocate(4096);
        const { qa, qb, la, lb } = await connectPair(w, (qb) => qb.postRecv(1, inbox, 4000, 97));
        const source = w.a.allocate(4096);
        fill(bytesOf(source), 15);
        qa.postSend(1, source, 0, 97, SIGNALED);
        w.a.ring();
        await entriesArrive(w, lb, 1, 'b');
        await entriesArrive(w, la, 1, 'a');
        assert.deepEqual(lb.statuses, [[1, Status.LOCAL_PROTECTION_ERROR]]);
        assert.notEqual(la.entries[0]!.status, Status.SUCCESS);
        assert.equal(qb.state, 'error');
        assertSame(bytesOf(inbox), new Uint8Array(4096), 'the receive buffer');
      },
    },
  ];
}
