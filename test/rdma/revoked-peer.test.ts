/**
 * A peer that goes on writing into shared memory after its grant was revoked: it keeps the segment open, whatever the
 * protocol says. The owner has abandoned that segment; what it grants next is another one.
 */
import { spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, readdirSync, readFileSync, readSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { Access, Flag, Status, openSoftDevice, type Device, type MemoryRegion, type QueuePair } from 'tartan-rdma';
import { randomBytes } from '../random-bytes.js';

const BYTES = 1 << 20;
const SCRIBBLE = 0x5c;
/** Writes over the whole segment, again and again, until it is killed; says so once a round. */
const SCRIBBLER =
  `const { writeSync } = require('fs'); const junk = Buffer.alloc(65536, ${SCRIBBLE}` +
  `);
for (;;) { for (let at = 0; at < ${BYTES}; at += junk.length) writeSync(3, junk, ` +
  `0, junk.length, at); writeSync(1, '.'); }`;

/**
 * A descriptor of its own for a region's segment, as a peer would keep one: found by a mark that is taken away again.
 */
function segmentOf(region: MemoryRegion): number {
  const head = new Uint8Array(region.buffer, 0, 16),
    before = head.slice(),
    mark = randomBytes(16);
  head.set(mark);
  try {
    for (const name of readdirSync('/proc/self/fd')) {
      if (!linkOf(name).startsWith('/memfd:tartan-region')) continue;
      const fd = openSync(`/proc/self/fd/${name}`, 'r+');
      const found = Buffer.alloc(mark.length);
      readSync(fd, found, 0, found.length, 0);
      if (found.equals(mark)) return fd;
      closeSync(fd);
    }
    throw new Error('no segment carries the mark');
  } finally {
    head.set(before);
  }
}

/** Where a descriptor leads; '' when it was closed meanwhile. */
function linkOf(name: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${name}`);
  } catch {
    return '';
  }
}

/** Connects, and lets completions be awaited one by one. */
async function connected(a: Device, b: Device): Promise<{ qa: QueuePair; qb: QueuePair; done: () => Promise<number> }> {
  const statuses: number[] = [];
  let wake: () => void = () => {};
  let accepted!: (qp: QueuePair) => void;
  const qbs = new Promise<QueuePair>((resolve) => {
    accepted = resolve;
  });
  const listener = await b.listen('127.0.0.1', 0, (qp) => {
    qp.handler = () => {};
    accepted(qp);
  });
  const qa = await a.connect('127.0.0.1', listener.port, { transport: 'shm' });
  qa.handler = (_opcode, status) => {
    statuses.push(status);
    wake();
  };
  const qb = await qbs;
  await listener.close();
  return {
    qa,
    qb,
    done: async () => {
      while (statuses.length === 0)
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      return statuses.shift()!;
    },
  };
}

void t.test('what a revoked peer scribbles reaches nothing that is granted later', async (t) => {
  const a = openSoftDevice({ name: 'peer' }),
    b = openSoftDevice({ name: 'owner' });
  t.teardown(async () => {
    await a.close();
    await b.close();
  });
  const source = a.allocate(BYTES);
  const bytes = new Uint8Array(source.buffer);
  for (let i = 0; i < BYTES; i++) bytes[i] = (i * 131 + (i >> 8)) & 0x3f; // never the scribble's byte
  const old = b.allocate(BYTES, Access.REMOTE_WRITE);
  const first = await connected(a, b);
  first.qa.postWrite(1, source, 0, BYTES, old.rkey, 0, Flag.SIGNALED);
  a.ring();
  t.equal(await first.done(), Status.SUCCESS);
  const kept = segmentOf(old);
  t.teardown(() => {
    closeSync(kept);
  });
  const scribbler = spawn(process.execPath, ['-e', SCRIBBLER], { stdio: ['ignore', 'pipe', 'inherit', kept] });
  t.teardown(() => {
    scribbler.kill('SIGKILL');
  });
  let rounds = 0;
  scribbler.stdout!.on('data', (chunk: Buffer) => {
    rounds += chunk.length;
  });
  while (rounds === 0) await sleep(1);
  t.equal(new Uint8Array(old.buffer)[BYTES >> 1], SCRIBBLE, "while the grant lasts it is the peer's to spoil");

  await old.deregister();
  t.equal(old.buffer.byteLength, 0, 'the owner sees the segment no more');
  const inode = fstatSync(kept).ino;
  for (let i = 0; i < 100 && readFileSync('/proc/self/maps', 'latin1').includes(` ${inode} `); i++) await sleep(10);
  t.notOk(readFileSync('/proc/self/maps', 'latin1').includes(` ${inode} `), 'no mapping of it is left, on either side');

  // The old key opens nothing, on an old connection or on a new one.
  first.qa.postWrite(2, source, 0, 64, old.rkey, 0, Flag.SIGNALED);
  a.ring();
  t.equal(await first.done(), Status.REMOTE_ACCESS_ERROR);
  const before = rounds;
  for (let grant = 0; grant < 8; grant++) {
    const fresh = b.allocate(BYTES, Access.REMOTE_WRITE);
    t.not(fresh.rkey, old.rkey);
    const next = await connected(a, b);
    next.qa.postWrite(3, source, 0, BYTES, fresh.rkey, 0, Flag.SIGNALED);
    a.ring();
    t.equal(await next.done(), Status.SUCCESS);
    const own = segmentOf(fresh);
    t.not(fstatSync(own).ino, inode, 'it is a segment of its own');
    closeSync(own);
    const seen = rounds;
    while (rounds < seen + 2) await sleep(1);
    t.equal(
      Buffer.compare(new Uint8Array(fresh.buffer), bytes),
      0,
      'as written, after the scribbler went over its own twice more',
    );
    await next.qa.destroy();
    await fresh.deregister();
  }
  t.ok(rounds > before, `${rounds} rounds of scribbling`);
  const spoiled = Buffer.alloc(4096);
  readSync(kept, spoiled, 0, spoiled.length, 0);
  t.ok(
    spoiled.every((byte) => byte === SCRIBBLE),
    'the abandoned segment is all scribble',
  );
});
