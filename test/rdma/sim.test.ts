import t from 'tap';
import assert from 'node:assert/strict';
import { Access, Flag, SimRandom, SimWorld, Status, type QueuePair, type SimDevice } from '../../rdma/dist/index.js';
import { conformance, failures } from './conformance.js';
import { bytesOf, connectPair, fill, Log, type World } from './conformance-world.js';

const { SIGNALED } = Flag;

/** A world of two hosts. @param spoil may break a device on purpose */
function open(seed: number | string, spoil: (device: SimDevice) => void = () => {}): World & { sim: SimWorld } {
  const sim = new SimWorld({ seed });
  const [a, b] = [sim.openDevice('10.0.0.1'), sim.openDevice('10.0.0.2')];
  spoil(a);
  spoil(b);
  return {
    sim,
    a,
    b,
    address: '10.0.0.2',
    drive: (promise) => sim.complete(promise),
    settle: (until) => sim.run(until),
    quiet: async () => {
      await sim.run();
    },
    close: async () => {
      await sim.complete(Promise.all([a.close(), b.close()]));
    },
  };
}

for (const seed of [1, 2, 3, 20_261]) {
  t.test(`the sim device conforms (seed ${seed})`, (t) => {
    conformance(t, async () => open(seed));
    t.end();
  });
}

t.test('the suite can fail: each device that is wrong on purpose is noticed by the case that should', async (t) => {
  for (const { what, spoil, noticedBy } of faults()) {
    t.same([...(await failures(async () => open(1), noticedBy))], [], `${what}: the right device passes`);
    const failed = await failures(async () => open(1, spoil), noticedBy);
    t.not(failed.size, 0, `${what}: noticed`);
    for (const [name, why] of failed) t.comment(`${what} → "${name}": ${why.split('\n')[0]}`);
  }
});

t.test('one seed gives one trace, byte for byte; another seed another', async (t) => {
  const [first, again, other] = [await traceOf(42), await traceOf(42), await traceOf(43)];
  t.ok(first.length > 200, `${first.length} lines`);
  t.equal(first.join('\n'), again.join('\n'));
  t.not(first.join('\n'), other.join('\n'));
});

t.test('promises of any depth run to their end between two events', async (t) => {
  const world = new SimWorld({ seed: 1 });
  const seen: string[] = [];
  const deep = async (levels: number): Promise<number> => (levels === 0 ? 0 : 1 + (await deep(levels - 1)));
  world.setTimer(1, () => {
    void (async () => {
      for (let i = 0; i < 100; i++) await deep(20);
      seen.push(`chain at ${world.now()}`);
    })();
  });
  world.setTimer(1, () => {
    seen.push('second timer of the same moment');
  });
  const cancelled = world.setTimer(2, () => {
    seen.push('cancelled');
  });
  world.setTimer(1.5, () => {
    world.clearTimer(cancelled);
  });
  t.equal(await world.run(), true);
  t.same(seen, ['chain at 1', 'second timer of the same moment']);
  t.equal(world.now(), 2);
});

t.test('run() says whether its condition came to hold, and stops at its limit of virtual time', async (t) => {
  const world = new SimWorld({ seed: 1 });
  let ticks = 0;
  const tick = (): void => {
    ticks++;
    world.setTimer(10, tick);
  };
  tick();
  t.equal(await world.run(() => ticks === 5), true);
  t.equal(world.now(), 40);
  t.equal(await world.run(() => false, 100), false);
  t.equal(world.now(), 140);
  await t.rejects(world.complete(new Promise(() => {}), 50), /seed 1.*50 virtual ms have passed/);
  world.setTimer(1, () => {
    throw new Error('a bug in a handler');
  });
  await t.rejects(world.run(), /a bug in a handler/);
});

t.test('forks depend on seed and label alone', (t) => {
  const draw = (random: SimRandom): number[] => Array.from({ length: 5 }, () => random.uint32());
  const busy = new SimRandom(7);
  for (let i = 0; i < 100; i++) busy.random();
  t.same(draw(busy.fork('disk')), draw(new SimRandom(7).fork('disk')));
  t.notSame(draw(new SimRandom(7).fork('disk')), draw(new SimRandom(7).fork('network')));
  t.notSame(draw(new SimRandom(7)), draw(new SimRandom(8)));
  const random = new SimRandom(9);
  const counts = new Array<number>(8).fill(0);
  for (let i = 0; i < 80_000; i++) counts[random.int(8)]!++;
  t.ok(
    counts.every((count) => count > 9_500 && count < 10_500),
    `even: ${counts.join(' ')}`,
  );
  t.end();
});

t.test('a source reused before its completion shows at the target; reused after it, never', async (t) => {
  let torn = 0;
  for (let seed = 0; seed < 20; seed++) {
    for (const waits of [false, true]) {
      const w = open(`reuse ${seed}`);
      const { qa, la } = await connectPair(w);
      const source = w.a.allocate(8192);
      const target = w.b.allocate(8192, Access.REMOTE_WRITE);
      bytesOf(source).fill(1);
      qa.postWrite(1, source, 0, 8192, target.rkey, 0, SIGNALED);
      w.a.ring();
      if (waits) await w.sim.run(() => la.entries.length === 1);
      else await w.sim.run(() => bytesOf(target)[0] === 1); // the bug: "it has begun to arrive, so it must have left"
      bytesOf(source).fill(2);
      await w.quiet();
      const reused = bytesOf(target).indexOf(2) >= 0;
      if (waits) assert.equal(reused, false);
      else if (reused) torn++;
      await w.close();
    }
  }
  t.ok(torn >= 3, `seen with ${torn} of 20 seeds`);
});

t.test('an input of ENCODE reused before its completion shows too', async (t) => {
  let torn = 0;
  for (let seed = 0; seed < 20; seed++) {
    const w = open(`encode ${seed}`);
    const region = w.a.allocate(3 * 4096);
    bytesOf(region, 0, 8192).fill(1);
    const digest = { payloadCrcOffset: 0, sealOffset: 4, summaryOffset: 8, crcListOffset: 24, dataHeaderBytes: 24 };
    const coder = w.a.createCoder({ k: 2, inputUnits: [0, 1], outputUnits: [2], matrix: Uint8Array.of(1, 1), digest });
    const log = new Log();
    w.a.createCodingQueue(log.handler).postEncode(
      1,
      coder,
      {
        region,
        unitsOffset: 0,
        stride: 4096,
        dataLength: 8192,
        dataHeadersOffset: 0,
        dataHeaderStride: 0,
        parityHeadersOffset: 0,
        parityHeaderStride: 0,
      },
      0,
    );
    w.a.ring();
    await w.sim.run(undefined, 0.02);
    bytesOf(region, 0, 4096).fill(2);
    await w.sim.run(() => log.entries.length === 1);
    const parity = new Set(bytesOf(region, 8192));
    if (parity.has(3) && parity.has(0)) torn++;
    await w.close();
  }
  t.ok(torn >= 3, `mixed parity with ${torn} of 20 seeds`);
});

t.test(
  'a killed host delivers nothing more, its peers see RETRY_EXCEEDED, and its memory stays as it was',
  async (t) => {
    const w = open(5);
    const target = w.b.allocate(1 << 20, Access.REMOTE_WRITE);
    const { qa, la, lb } = await connectPair(w, (qb) => {
      for (let i = 0; i < 64; i++) qb.postRecv(i, undefined, 0, 0);
    });
    const source = w.a.allocate(1 << 20);
    bytesOf(source).fill(1);
    for (let i = 0; i < 64; i++) qa.postWriteWithImm(i, source, 0, 1 << 14, target.rkey, i << 14, i, SIGNALED);
    w.a.ring();
    t.ok(await w.sim.run(() => la.entries.length >= 3));
    const died = w.sim.now();
    w.sim.killHost('10.0.0.2');
    const [atDeath, completedAtDeath] = [bytesOf(target).slice(), lb.entries.length];
    t.ok(await w.sim.run(() => la.entries.length === 64));
    t.ok(w.sim.now() >= died + 5, 'after the detection delay');
    await w.quiet();
    t.ok(Buffer.compare(bytesOf(target), atDeath) === 0, 'memory of the dead');
    t.equal(lb.entries.length, completedAtDeath);
    const failed = la.statuses.filter(([, status]) => status !== Status.SUCCESS).map(([, status]) => status);
    t.same(failed, [Status.RETRY_EXCEEDED, ...new Array<number>(failed.length - 1).fill(Status.FLUSHED)]);
    await t.rejects(w.drive(w.a.connect('10.0.0.2', 1, { timeoutMs: 100 })), { code: 'ERR_CONNECT' });
    const reborn = w.sim.openDevice('10.0.0.2');
    const listener = await reborn.listen('10.0.0.2', 0, () => {});
    t.equal((await w.drive(w.a.connect('10.0.0.2', listener.port))).state, 'connected', 'the host may come back');
    await w.drive(reborn.close());
    await w.close();
  },
);

t.test('timers of a killed host never fire, those of a paused one wait', async (t) => {
  const world = new SimWorld({ seed: 1 });
  const fired: string[] = [];
  world.setTimer(
    10,
    () => {
      fired.push(`dead ${world.now()}`);
    },
    'dead',
  );
  world.setTimer(
    10,
    () => {
      fired.push(`paused ${world.now()}`);
    },
    'paused',
  );
  const cancelled = world.setTimer(
    11,
    () => {
      fired.push('cancelled while due');
    },
    'paused',
  );
  world.setTimer(
    10,
    () => {
      fired.push(`other ${world.now()}`);
    },
    'other',
  );
  world.killHost('dead');
  world.pauseHost('paused');
  world.setTimer(15, () => {
    world.clearTimer(cancelled);
  });
  world.setTimer(20, () => {
    world.resumeHost('paused');
  });
  await world.run();
  t.same(fired, ['other 10', 'paused 20']);
});

t.test('a short partition only delays, in order; one longer than the retry time breaks both ends', async (t) => {
  for (const oneWay of [false, true]) {
    for (const lasts of [900, 1100]) {
      const w = open(`partition ${lasts}`);
      const target = w.b.allocate(4096, Access.REMOTE_WRITE);
      const { qa, qb, la, lb } = await connectPair(w, (qb) => {
        for (let i = 0; i < 10; i++) qb.postRecv(i, undefined, 0, 0);
      });
      const source = w.a.allocate(4096);
      w.sim.partition('10.0.0.2', '10.0.0.1', oneWay); // one way: only b's answers are lost
      const began = w.sim.now();
      w.sim.setTimer(lasts, () => {
        w.sim.heal('10.0.0.1', '10.0.0.2');
      });
      for (let i = 0; i < 10; i++) qa.postWriteWithImm(i, source, 0, 64, target.rkey, 0, i, SIGNALED);
      w.a.ring();
      t.ok(await w.sim.run(() => la.entries.length === 10 && lb.entries.length === 10));
      if (lasts < 1000) {
        t.ok(w.sim.now() > began + lasts);
        t.same(
          la.statuses,
          Array.from({ length: 10 }, (_, i) => [i, Status.SUCCESS]),
        );
        t.same(
          lb.entries.map(({ imm }) => imm),
          Array.from({ length: 10 }, (_, i) => i),
        );
        t.same([qa.state, qb.state], ['connected', 'connected']);
      } else {
        t.same(
          la.statuses,
          Array.from({ length: 10 }, (_, i) => [i, i === 0 ? Status.RETRY_EXCEEDED : Status.FLUSHED]),
        );
        t.ok(await w.sim.run(() => qa.state === 'error' && qb.state === 'error'), 'each end finds out in its own time');
        t.ok(w.sim.now() >= began + 1000);
      }
      await w.close();
    }
  }
});

t.test('breakConnections() breaks what is there at once; a new connection works', async (t) => {
  const w = open(6);
  const { qa, qb, la, listener } = await connectPair(w);
  const source = w.a.allocate(4096);
  qa.postSend(1, source, 0, 64, 0);
  w.a.ring();
  await w.sim.run(undefined, 1);
  w.sim.breakConnections('10.0.0.1', '10.0.0.2');
  t.ok(await w.sim.run(() => qa.state === 'error' && qb.state === 'error' && la.entries.length === 1, 100));
  t.same(la.statuses, [[1, Status.RETRY_EXCEEDED]]);
  t.equal((await w.drive(w.a.connect('10.0.0.2', listener.port))).state, 'connected');
  await w.close();
});

t.test('a paused host delivers and completes nothing until it is resumed, then everything, in order', async (t) => {
  const w = open(7);
  const target = w.b.allocate(4096, Access.REMOTE_WRITE);
  const { qa, la, lb } = await connectPair(w, (qb) => {
    for (let i = 0; i < 10; i++) qb.postRecv(i, undefined, 0, 0);
  });
  const source = w.a.allocate(4096);
  bytesOf(source).fill(1);
  w.sim.pauseHost('10.0.0.2');
  for (let i = 0; i < 10; i++) qa.postWriteWithImm(i, source, i * 64, 64, target.rkey, i * 64, i, SIGNALED);
  w.a.ring();
  await w.sim.run(undefined, 5000);
  t.same([la.entries.length, lb.entries.length, bytesOf(target).indexOf(1), qa.state], [0, 0, -1, 'connected']);
  w.sim.resumeHost('10.0.0.2');
  t.ok(await w.sim.run(() => la.entries.length === 10 && lb.entries.length === 10));
  t.same(
    la.statuses,
    Array.from({ length: 10 }, (_, i) => [i, Status.SUCCESS]),
  );
  t.same(
    lb.entries.map(({ imm }) => imm),
    Array.from({ length: 10 }, (_, i) => i),
  );
  await w.close();
});

t.test("a link's latency and rate are what setLink() says, and links are shared", async (t) => {
  const w = open(8);
  w.sim.setLink('10.0.0.1', '10.0.0.2', { latencyMs: 10, jitterMs: 0, bytesPerMs: 1000 });
  const target = w.b.allocate(1 << 16, Access.REMOTE_WRITE);
  const [first, second] = [await connectPair(w), await connectPair(w)];
  const source = w.a.allocate(1 << 16);
  const began = w.sim.now();
  first.qa.postWrite(1, source, 0, 50_000, target.rkey, 0, SIGNALED);
  second.qa.postWrite(2, source, 0, 50_000, target.rkey, 0, SIGNALED);
  w.a.ring();
  t.ok(await w.sim.run(() => first.la.entries.length + second.la.entries.length === 2));
  const took = w.sim.now() - began;
  t.ok(took >= 120 && took < 122, `2 × 50,000 bytes at 1,000 a ms and 2 × 10 ms: ${took}`);
  await w.close();
});

interface Fault {
  what: string;
  spoil: (device: SimDevice) => void;
  noticedBy: string;
}

/** Devices that are wrong in one point each, and (part of) the name of a case that must notice. */
function faults(): Fault[] {
  const onQueuePairs =
    (change: (qp: QueuePair) => void) =>
    (device: SimDevice): void => {
      const [connect, listen] = [device.connect.bind(device), device.listen.bind(device)];
      device.connect = async (...args) => {
        const qp = await connect(...args);
        change(qp);
        return qp;
      };
      device.listen = (host, port, onConnection) =>
        listen(host, port, (qp) => {
          change(qp);
          onConnection(qp);
        });
    };
  const onRegions =
    (change: (region: ReturnType<SimDevice['allocate']> & Record<string, unknown>) => void) =>
    (device: SimDevice): void => {
      const allocate = device.allocate.bind(device);
      device.allocate = (byteLength, access) => {
        const region = allocate(byteLength, access);
        change(region as ReturnType<SimDevice['allocate']> & Record<string, unknown>);
        return region;
      };
    };
  return [
    {
      what: 'ignores permissions',
      noticedBy: 'WRITE to local memory',
      spoil: (device) => {
        const allocate = device.allocate.bind(device);
        device.allocate = (byteLength) => allocate(byteLength, Access.REMOTE_READ | Access.REMOTE_WRITE);
      },
    },
    {
      what: 'does not check remote bounds but writes as far as the memory goes',
      noticedBy: 'WRITE one byte too far',
      spoil: onRegions((region) => {
        region['allows'] = () => true;
        region['bytes'] = (offset: number, length: number) => {
          const start = Math.min(offset, region.byteLength - length);
          return new Uint8Array(region.buffer, start, length);
        };
      }),
    },
    {
      what: 'detaches without waiting',
      noticedBy: 'deregister() waits',
      spoil: onRegions((region) => {
        region['hold'] = () => {};
        region['release'] = () => {};
      }),
    },
    {
      what: 'never detaches',
      noticedBy: 'deregister() detaches',
      spoil: onRegions((region) => {
        region.deregister = async () => {};
      }),
    },
    {
      what: 'swaps the order of two completions',
      noticedBy: 'send-side completions of one queue pair come in the order',
      spoil: onQueuePairs((qp) =>
        changeHandler(qp, (handler) => {
          let kept: Parameters<typeof handler> | undefined;
          return (...entry) => {
            if (kept === undefined) {
              kept = entry;
              return;
            }
            handler(...entry);
            handler(...kept);
            kept = undefined;
          };
        }),
      ),
    },
    {
      what: 'loses one flushed completion',
      noticedBy: 'toError() flushes',
      spoil: onQueuePairs((qp) =>
        changeHandler(qp, (handler) => {
          let lost = false;
          return (...entry) => {
            if (!lost && entry[1] === Status.FLUSHED) lost = true;
            else handler(...entry);
          };
        }),
      ),
    },
    {
      what: 'completes everything twice',
      noticedBy: 'WRITE completes with SUCCESS only after',
      spoil: onQueuePairs((qp) =>
        changeHandler(qp, (handler) => (...entry) => {
          handler(...entry);
          handler(...entry);
        }),
      ),
    },
    {
      what: 'completes what was not signalled',
      noticedBy: 'without SIGNALED',
      spoil: onQueuePairs((qp) => {
        const post = qp.postWrite.bind(qp);
        qp.postWrite = (wrId, region, offset, length, rkey, remoteOffset) =>
          post(wrId, region, offset, length, rkey, remoteOffset, SIGNALED);
      }),
    },
    {
      what: 'says SUCCESS inside the post',
      noticedBy: 'handlers never run inside a post',
      spoil: onQueuePairs((qp) => {
        const post = qp.postWrite.bind(qp);
        qp.postWrite = (wrId, region, offset, length, rkey, remoteOffset, flags = 0) => {
          post(wrId, region, offset, length, rkey, remoteOffset, 0);
          if (flags & SIGNALED) qp.handler(1, Status.SUCCESS, wrId, 0, 0, 0);
        };
      }),
    },
    {
      what: 'rings by itself',
      noticedBy: 'posts wait for ring()',
      spoil: (device) => {
        const stage = device.stage.bind(device);
        device.stage = (request) => {
          stage(request);
          device.ring();
        };
      },
    },
    {
      what: "forgets the immediate's upper half",
      noticedBy: 'WRITE_WITH_IMM consumes a receive',
      spoil: onQueuePairs((qp) =>
        changeHandler(qp, (handler) => (opcode, status, wrId, byteLength, imm, detail) => {
          handler(opcode, status, wrId, byteLength, imm & 0xffff, detail);
        }),
      ),
    },
    {
      what: 'destroys before the last completion',
      noticedBy: 'destroy() resolves after',
      spoil: onQueuePairs((qp) => {
        const destroy = qp.destroy.bind(qp);
        qp.destroy = async () => {
          void destroy();
        };
      }),
    },
    {
      what: 'never checks digests',
      noticedBy: 'DIGEST_INPUTS_CHECK',
      spoil: onFlags((flags) => flags & ~Flag.DIGEST_INPUTS_CHECK),
    },
    {
      what: 'never seals outputs',
      noticedBy: 'parity and headers are exact',
      spoil: onFlags((flags) =>
        flags & Flag.DIGEST_OUTPUTS_WRITE ? (flags & ~Flag.DIGEST_OUTPUTS_WRITE) | Flag.DIGEST_OUTPUTS_STORE : flags,
      ),
    },
    {
      what: 'codes with one coefficient wrong',
      noticedBy: 'random matrices',
      spoil: (device) => {
        const createCoder = device.createCoder.bind(device);
        device.createCoder = (spec) =>
          createCoder({ ...spec, matrix: spec.matrix.map((value, i) => (i === 0 && value === 0 ? 1 : value)) });
      },
    },
  ];
}

function onFlags(change: (flags: number) => number): (device: SimDevice) => void {
  return (device) => {
    const create = device.createCodingQueue.bind(device);
    device.createCodingQueue = (handler) => {
      const queue = create(handler);
      const post = queue.postEncode.bind(queue);
      queue.postEncode = (wrId, coder, place, flags) => post(wrId, coder, place, change(flags));
      return queue;
    };
  };
}

/** Puts something between a queue pair and whatever handler it is given. */
function changeHandler(qp: QueuePair, change: (handler: QueuePair['handler']) => QueuePair['handler']): void {
  let given = qp.handler;
  qp.handler = change((...entry) => given(...entry));
  const installed = qp.handler;
  Object.defineProperty(qp, 'handler', {
    get: () => installed,
    set: (handler: QueuePair['handler']) => {
      given = handler;
    },
  });
}

/** A busy little history: two connections, faults, coding. */
async function traceOf(seed: number): Promise<string[]> {
  const lines: string[] = [];
  const w = open(seed);
  w.sim.trace = (line) => {
    lines.push(line);
  };
  const source = w.a.allocate(65536);
  fill(bytesOf(source), 1);
  const target = w.b.allocate(65536, Access.REMOTE_WRITE | Access.REMOTE_READ);
  const inbox = w.b.allocate(4096);
  const pairs = [await connectPair(w, receive), await connectPair(w, receive)];
  function receive(qb: QueuePair): void {
    for (let i = 0; i < 20; i++) qb.postRecv(i, inbox, 0, 4096);
  }
  for (let i = 0; i < 20; i++) {
    for (const { qa } of pairs) {
      qa.postWrite(i, source, 0, 3000, target.rkey, 0, SIGNALED);
      qa.postRead(i, source, 8192, 3000, target.rkey, 8192, 0);
      qa.postSend(i, source, 0, 100, 0);
    }
    w.a.ring();
    await w.sim.run(undefined, 0.1);
    if (i === 10) w.sim.partition('10.0.0.1', '10.0.0.2');
    if (i === 12) w.sim.heal('10.0.0.1', '10.0.0.2');
  }
  await w.sim.run(() => pairs.every(({ la }) => la.entries.length >= 20));
  w.sim.breakConnections('10.0.0.1', '10.0.0.2');
  await w.close();
  return lines;
}
