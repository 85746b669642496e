import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import {
  Access,
  type DeviceCounters,
  Flag,
  type MemoryRegion,
  Opcode,
  openSoftDevice,
  type QueuePair,
  RdmaError,
  Status,
  statusName,
} from 'tartan-rdma';
import { TRANSPORTS, PEER, Completions, connectAgain, connectedPair, pattern, startPeer, until } from './soft-pair.js';

t.test('records.h holds the same numbers as records.ts', async (t) => {
  const text = readFileSync(new URL('../../rdma/native/records.h', import.meta.url), 'utf8');
  for (const [name, numbers] of Object.entries({ Opcode, Flag, Status })) {
    const body = new RegExp(`enum ${name} : uint8_t \\{([^}]*)\\}`).exec(text)?.[1] ?? '';
    const native = Object.fromEntries(
      [...body.matchAll(/^\s*(?!OPCODE_EVENT)([A-Z_]+) = (\d+),/gm)].map((match) => [match[1]!, Number(match[2])]),
    );
    t.same(native, numbers, `enum ${name}`);
  }
});

for (const transport of TRANSPORTS) {
  t.test(`over ${transport}, one gather of header and payload arrives as one run of bytes`, async (t) => {
    const { a, b, qa, qb, doneA, doneB, close } = await connectedPair(transport);
    const source = a.allocate(1 << 20);
    const target = b.allocate(1 << 20, Access.REMOTE_WRITE);
    const bytes = pattern(source, 7);
    qb.postRecv(1, undefined, 0, 0);
    b.ring();
    qa.postGatherWithImm(2, source, 4096, 192, 65536, 300_000, target.rkey, 512, 0xfedcba98, Flag.SIGNALED);
    a.ring();
    t.same(await doneA.first(1), [
      { opcode: Opcode.WRITE_WITH_IMM, status: Status.SUCCESS, wrId: 2, byteLength: 0, imm: 0, detail: 0 },
    ]);
    t.same(await doneB.first(1), [
      {
        opcode: Opcode.RECV_WRITE_WITH_IMM,
        status: Status.SUCCESS,
        wrId: 1,
        byteLength: 300_192,
        imm: 0xfedcba98,
        detail: 0,
      },
    ]);
    const expected = Buffer.concat([bytes.subarray(4096, 4096 + 192), bytes.subarray(65536, 365536)]);
    t.ok(expected.equals(Buffer.from(target.buffer, 512, 300_192)));
    t.equal(qa.transport, transport);
    t.equal(qb.transport, transport);
    await close();
  });

  t.test(`over ${transport}, requests wait for receives and complete in order when they come`, async (t) => {
    const { a, b, qa, qb, doneA, doneB, close } = await connectedPair(transport);
    const later = await connectAgain(a, b, transport);
    const source = a.allocate(65536);
    const target = b.allocate(65536, Access.REMOTE_WRITE);
    const bytes = pattern(source, 3);
    for (let i = 0; i < 100; i++) {
      if (i % 2 === 0) qa.postWriteWithImm(i, source, i, 500, target.rkey, i * 500, i, Flag.SIGNALED);
      else qa.postSend(i, source, i, 10, Flag.SIGNALED);
    }
    a.ring();
    await later.roundTrips(3);
    t.equal(doneA.seen.length, 0, 'nothing completes without a receive');
    for (let i = 0; i < 100; i++) {
      qb.postRecv(i, target, 60_000, 10);
      if (i % 7 === 0) b.ring();
    }
    b.ring();
    t.same(
      (await doneA.first(100)).map(({ wrId }) => wrId),
      Array.from({ length: 100 }, (_, i) => i),
    );
    t.same(
      (await doneB.first(100)).map(({ opcode, imm, byteLength }) => [opcode, imm, byteLength]),
      Array.from({ length: 100 }, (_, i) =>
        i % 2 === 0 ? [Opcode.RECV_WRITE_WITH_IMM, i, 500] : [Opcode.RECV, 0, 10],
      ),
    );
    t.ok(Buffer.from(target.buffer, 98 * 500, 500).equals(Buffer.from(bytes.subarray(98, 598))));
    await close();
  });

  t.test(`over ${transport}, READs of every size are answered, also many at once and beside writes`, async (t) => {
    const { a, b, qa, doneA, close } = await connectedPair(transport);
    const local = a.allocate(8 << 20);
    const remote = b.allocate(8 << 20, Access.REMOTE_READ | Access.REMOTE_WRITE);
    const bytes = pattern(remote, 9);
    const sizes = [0, 1, 4095, 1 << 20, (1 << 20) + 1, 3_000_000];
    let at = 0;
    for (const [i, size] of sizes.entries()) {
      qa.postRead(i, local, at, size, remote.rkey, i * 1000, Flag.SIGNALED);
      at += size;
    }
    for (let i = 0; i < 200; i++)
      qa.postRead(100 + i, local, 7_000_000 + i * 64, 64, remote.rkey, i * 64, i === 199 ? Flag.SIGNALED : 0);
    a.ring();
    await doneA.first(sizes.length + 1);
    t.same(
      doneA.statuses(),
      Array.from({ length: sizes.length + 1 }, () => 'SUCCESS'),
    );
    at = 0;
    for (const [i, size] of sizes.entries()) {
      t.ok(
        Buffer.from(local.buffer, at, size).equals(Buffer.from(bytes.subarray(i * 1000, i * 1000 + size))),
        `${size} bytes`,
      );
      at += size;
    }
    t.ok(Buffer.from(local.buffer, 7_000_000, 200 * 64).equals(Buffer.from(bytes.subarray(0, 200 * 64))));
    await close();
  });

  for (const [name, post] of Object.entries<(qa: QueuePair, source: MemoryRegion, target: MemoryRegion) => void>({
    'with a wrong key': (qa, source, target) => qa.postWrite(9, source, 0, 4096, target.rkey ^ 1, 0, Flag.SIGNALED),
    'one byte out of bounds': (qa, source, target) =>
      qa.postWrite(9, source, 0, 4096, target.rkey, 65536 - 4095, Flag.SIGNALED),
    'at an offset that overflows': (qa, source, target) =>
      qa.postWriteWithImm(9, source, 0, 4096, target.rkey, 0xffffffff, 1, Flag.SIGNALED),
    'that reads without permission': (qa, source, target) =>
      qa.postRead(9, source, 0, 4096, target.rkey, 0, Flag.SIGNALED),
  })) {
    t.test(`over ${transport}, an access ${name} moves no byte and puts both sides into error`, async (t) => {
      const { a, b, qa, qb, doneA, doneB, close } = await connectedPair(transport);
      const source = a.allocate(65536);
      const target = b.allocate(65536, Access.REMOTE_WRITE);
      pattern(source, 1);
      const reasons: string[] = [];
      qa.onError = (reason) => reasons.push(`a: ${reason}`);
      qb.onError = (reason) => reasons.push(`b: ${reason}`);
      qb.postRecv(5, undefined, 0, 0);
      b.ring();
      qa.postWrite(8, source, 0, 100, target.rkey, 60_000, Flag.SIGNALED);
      post(qa, source, target);
      qa.postWrite(10, source, 0, 100, target.rkey, 0, Flag.SIGNALED);
      qa.postRecv(11, undefined, 0, 0);
      a.ring();
      await doneA.first(4);
      await doneB.first(1);
      t.same(
        doneA.seen.map(({ wrId, status }) => [wrId, statusName(status)]),
        [
          [8, 'SUCCESS'],
          [9, 'REMOTE_ACCESS_ERROR'],
          [10, 'FLUSHED'],
          [11, 'FLUSHED'],
        ],
      );
      t.same(doneB.statuses(), ['FLUSHED']);
      t.same(reasons.map((reason) => reason[0]).sort(), ['a', 'b'], 'onError is called once on each side');
      t.ok(Buffer.alloc(60_000).equals(Buffer.from(target.buffer, 0, 60_000)), 'no byte moved');
      t.equal(qa.state, 'error');
      t.equal(qb.state, 'error');
      qa.postWrite(12, source, 0, 1, target.rkey, 0);
      a.ring();
      t.match((await doneA.first(5))[4], { wrId: 12, status: Status.FLUSHED });
      await close();
    });
  }

  t.test(`over ${transport}, a gather entry outside its region fails locally, in order`, async (t) => {
    const { a, b, qa, doneA, close } = await connectedPair(transport);
    const source = a.allocate(4096);
    const target = b.allocate(4096, Access.REMOTE_WRITE);
    qa.postWrite(1, source, 0, 4096, target.rkey, 0, Flag.SIGNALED);
    qa.postWrite(2, source, 1, 4096, target.rkey, 0, Flag.SIGNALED);
    qa.postWrite(3, source, 0, 4096, target.rkey, 0, Flag.SIGNALED);
    a.ring();
    await doneA.first(3);
    t.same(doneA.statuses(), ['SUCCESS', 'LOCAL_PROTECTION_ERROR', 'FLUSHED']);
    await close();
  });

  t.test(`over ${transport}, deregistering with requests outstanding waits for them, then detaches`, async (t) => {
    const { a, b, qa, qb, doneA, close } = await connectedPair(transport);
    const later = await connectAgain(a, b, transport);
    const source = a.allocate(1 << 20);
    const target = b.allocate(1 << 20, Access.REMOTE_WRITE);
    for (let i = 0; i < 8; i++) qa.postWriteWithImm(i, source, 0, 1 << 20, target.rkey, 0, i, Flag.SIGNALED);
    let isGone = false;
    const gone = source.deregister().then(() => {
      isGone = true;
    });
    await later.roundTrips(3);
    t.notOk(isGone, 'the requests wait for receives, the region for the requests');
    t.equal(source.buffer.byteLength, 1 << 20);
    for (let i = 0; i < 8; i++) qb.postRecv(i, undefined, 0, 0);
    b.ring();
    await gone;
    t.same(
      doneA.statuses(),
      Array.from({ length: 8 }, () => 'SUCCESS'),
      'all completed before',
    );
    t.equal(source.buffer.byteLength, 0, 'detached');
    await source.deregister();
    await close();
  });

  t.test(`over ${transport}, writes to a region after its deregistration are refused`, async (t) => {
    const { a, b, qa, qb, doneA, close } = await connectedPair(transport);
    const source = a.allocate(65536);
    const target = b.allocate(65536, Access.REMOTE_WRITE);
    qb.postRecv(0, undefined, 0, 0);
    b.ring();
    qa.postWrite(1, source, 0, 65536, target.rkey, 0, Flag.SIGNALED);
    a.ring();
    await doneA.first(1);
    await target.deregister();
    t.equal(target.buffer.byteLength, 0);
    qa.postWrite(2, source, 0, 65536, target.rkey, 0, Flag.SIGNALED);
    a.ring();
    await doneA.first(2);
    t.same(doneA.statuses(), ['SUCCESS', 'REMOTE_ACCESS_ERROR']);
    await close();
  });

  t.test(`over ${transport}, a peer killed in mid-transfer fails the first request and flushes the rest`, async (t) => {
    const { child, hello } = await startPeer('serve');
    const device = openSoftDevice();
    t.teardown(() => device.close());
    const region = device.allocate(4 << 20);
    const qp = await device.connect('127.0.0.1', hello.port, { transport });
    const done = new Completions();
    const reasons: string[] = [];
    qp.onError = (reason) => reasons.push(reason);
    let posted = 0;
    const post = (): void => qp.postWriteWithImm(posted++, region, 0, 1 << 20, hello.rkey, 0, 1, Flag.SIGNALED);
    qp.handler = (...completion) => {
      done.handler(...completion);
      if (completion[1] === Status.SUCCESS) post();
    };
    for (let i = 0; i < 8; i++) post();
    device.ring();
    await done.first(50);
    child.kill('SIGKILL');
    await until(() => reasons.length > 0);
    await until(() => done.seen.length === posted);
    const failed = done.statuses().filter((status) => status !== 'SUCCESS');
    t.same(failed, ['RETRY_EXCEEDED', ...Array.from({ length: failed.length - 1 }, () => 'FLUSHED')]);
    t.same(
      done.seen.map(({ wrId }) => wrId),
      Array.from({ length: posted }, (_, i) => i),
      'one completion each, in order',
    );
    t.equal(reasons.length, 1);
    await device.close();
  });

  t.test(`over ${transport}, 1 GiB moves without a byte copied or an allocation made`, async (t) => {
    const { a, b, qa, qb, doneA, close } = await connectedPair(transport);
    const source = a.allocate(1 << 20);
    const target = b.allocate(1 << 20, Access.REMOTE_WRITE);
    const count = 1024;
    qb.handler = (_opcode, status, wrId) => {
      if (status === Status.SUCCESS) qb.postRecv(wrId, undefined, 0, 0);
    };
    for (let i = 0; i < 64; i++) qb.postRecv(i, undefined, 0, 0);
    b.ring();
    let posted = 0;
    const post = (): void =>
      qa.postGatherWithImm(posted++, source, 0, 4096, 4096, (1 << 20) - 4096, target.rkey, 0, posted, Flag.SIGNALED);
    qa.handler = (...completion) => {
      doneA.handler(...completion);
      if (posted < count) post();
    };
    for (let i = 0; i < 32; i++) post();
    a.ring();
    await doneA.first(count);
    t.ok(doneA.seen.every(({ status }) => status === Status.SUCCESS));
    for (const counters of [a.counters(), b.counters()] as DeviceCounters[]) {
      t.match(counters, { bytesCopied: 0, allocations: 0, errors: 0 });
    }
    t.equal(a.counters().bytesSent, 2 ** 30);
    t.equal(b.counters().bytesReceived, 2 ** 30);
    await close();
  });

  t.test(
    `over ${transport}, toError() and destroy() flush what is outstanding, and the peer hears of it`,
    async (t) => {
      const { a, b, qa, qb, doneA, doneB, close } = await connectedPair(transport);
      const source = a.allocate(1 << 20);
      const target = b.allocate(1 << 20, Access.REMOTE_WRITE);
      const reasons: string[] = [];
      qa.onError = (reason) => reasons.push(`${reason} after ${doneA.seen.length}`);
      qb.onError = () => reasons.push('peer');
      for (let i = 0; i < 20; i++) qa.postWriteWithImm(i, source, 0, 1 << 20, target.rkey, 0, i, Flag.SIGNALED);
      qa.toError('deadline');
      t.equal(qa.state, 'error');
      await doneA.first(20);
      t.same(
        doneA.statuses(),
        Array.from({ length: 20 }, () => 'FLUSHED'),
      );
      qa.postRecv(20, undefined, 0, 0);
      await qa.destroy();
      t.equal(doneA.seen.length, 21, 'destroy() resolves after the last completion');
      t.equal(qa.state, 'closed');
      await until(() => reasons.length === 2);
      t.same(reasons.sort(), ['deadline after 0', 'peer']);
      t.equal(doneB.seen.length, 0);
      await close();
    },
  );

  t.test(`over ${transport}, small rings only slow things down: every request completes once, in order`, async (t) => {
    const { a, b, qa, qb, doneA, doneB, close } = await connectedPair(transport, {
      sendQueueEntries: 8,
      completionQueueEntries: 4,
    });
    const source = a.allocate(4096);
    const target = b.allocate(4096, Access.REMOTE_WRITE);
    for (let i = 0; i < 3000; i++) qb.postRecv(i, undefined, 0, 0);
    b.ring();
    for (let i = 0; i < 3000; i++) qa.postWriteWithImm(i, source, 0, 64, target.rkey, 0, i, Flag.SIGNALED);
    a.ring();
    const ids = Array.from({ length: 3000 }, (_, i) => i);
    t.same(
      (await doneA.first(3000)).map(({ wrId }) => wrId),
      ids,
    );
    t.same(
      (await doneB.first(3000)).map(({ imm }) => imm),
      ids,
    );
    await close();
  });

  t.test(`over ${transport}, work in flight survives neither a worker's end nor harms the process`, async (t) => {
    const { child, hello } = await startPeer('serve');
    for (let i = 0; i < 3; i++) {
      const worker = new Worker(PEER_IN_WORKER, {
        eval: true,
        workerData: { peer: PEER, args: ['write', hello.port, hello.rkey, transport, 65536, 16, 0] },
        execArgv: [],
        env: { NODE_OPTIONS: '' },
      });
      await once(worker, 'message');
      t.equal(await worker.terminate(), 1, 'the worker was stopped while it wrote');
    }
    t.equal(child.exitCode, null, 'the peer still serves');
    const device = openSoftDevice();
    t.teardown(() => device.close());
    const qp = await device.connect('127.0.0.1', hello.port, { transport });
    t.equal(qp.state, 'connected');
    await device.close();
    child.kill();
    await once(child, 'exit');
  });
}

/** Runs the peer's script inside a worker; once it writes it says so, and goes on until somebody terminates it. */
const PEER_IN_WORKER = `
  const { workerData } = require('node:worker_threads');
  process.argv.splice(2, Infinity, ...workerData.args.map(String));
  import(require('node:url').pathToFileURL(workerData.peer));
`;

t.test('connect() says what it tried when nobody answers', async (t) => {
  const device = openSoftDevice();
  t.teardown(() => device.close());
  const listener = await device.listen('127.0.0.1', 0, () => undefined);
  const { port } = listener;
  await listener.close();
  for (const transport of ['auto', ...TRANSPORTS] as const) {
    await t.rejects(
      device.connect('127.0.0.1', port, { transport }),
      { name: 'RdmaError', code: 'ERR_CONNECT', message: new RegExp(`Cannot connect to 127.0.0.1:${port}`) },
      transport,
    );
  }
  const busy = await device.listen('127.0.0.1', 0, () => undefined);
  await t.rejects(
    device.listen('127.0.0.1', busy.port, () => undefined),
    { code: 'ERR_LISTEN', message: /Address already in use/ },
  );
  t.throws(() => device.allocate(2 ** 31 + 1), { code: 'ERR_REGISTRATION_REFUSED' });
  t.throws(() => device.allocate(0), RdmaError);
  await device.close();
  await t.rejects(device.connect('127.0.0.1', 1), { code: 'ERR_DEVICE_CLOSED' });
});

t.test('a listener on the wildcard address offers shared memory to local callers', async (t) => {
  const device = openSoftDevice();
  t.teardown(() => device.close());
  const listener = await device.listen('0.0.0.0', 0, () => undefined);
  const qp = await device.connect('127.0.0.1', listener.port);
  t.equal(qp.transport, 'shm');
  const tcp = await device.connect('localhost', listener.port, { transport: 'tcp' });
  t.equal(tcp.transport, 'tcp');
  await device.close();
});

t.test('close() leaves no descriptor, thread or mapping behind', async (t) => {
  const mappings = (): number =>
    readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .filter((line) => line.includes('tartan-region')).length;
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const threads = (): number =>
    readdirSync('/proc/self/task').filter((id) =>
      readFileSync(`/proc/self/task/${id}/comm`, 'utf8').startsWith('tartan-rdma'),
    ).length;
  const once = async (transport: 'tcp' | 'shm'): Promise<void> => {
    const { a, b, qa, qb, doneA, close } = await connectedPair(transport);
    const source = a.allocate(65536);
    const target = b.allocate(65536, Access.REMOTE_WRITE);
    qb.postRecv(0, undefined, 0, 0);
    b.ring();
    qa.postWriteWithImm(0, source, 0, 65536, target.rkey, 0, 0, Flag.SIGNALED);
    for (let i = 0; i < 10; i++) qa.postWriteWithImm(i, source, 0, 65536, target.rkey, 0, 0, Flag.SIGNALED);
    a.ring();
    await doneA.first(1);
    await a.listen('127.0.0.1', 0, () => undefined);
    await close();
    await a.close();
    t.equal(source.buffer.byteLength, 0);
    t.equal(target.buffer.byteLength, 0);
    t.equal(doneA.seen.length, 11, 'what was outstanding has completed');
  };
  await once('tcp'); // the first opens what Node itself keeps
  const before = descriptors();
  for (const transport of TRANSPORTS) await once(transport);
  t.equal(descriptors(), before);
  t.equal(threads(), 0);
  t.equal(mappings(), 0);
});

t.test('an open device without queue pairs does not keep the process alive', async (t) => {
  const script =
    `import { openSoftDevice } from 'tartan-rdma'; const d = openSoftDevice(); d.allocate(4096); ` +
    'd.createCodingQueue(() => {});';
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    env: { ...process.env, NODE_OPTIONS: '' },
    stdio: 'inherit',
  });
  t.same(await once(child, 'exit'), [0, null]);
});
