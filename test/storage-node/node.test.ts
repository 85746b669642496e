import t from 'tap';
import { createFile, takeOver } from '../../cluster/files.js';
import { readMap, registerNode, setNodeState } from '../../cluster/membership.js';
import { makeLayout, unitOfNode } from '../../erasure/layout/index.js';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { TartanError } from '../../wire/errors.js';
import { Refusal, unitImm } from '../../wire/ring-messages.js';
import { PAGE_BYTES, unitSlotBytes } from '../../wire/slot-layout.js';
import { decodeHeader, W } from '../../wire/unit-header.js';
import { MIB, Rig } from './rig.js';
import { makeUnit } from './units.js';

const layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: 4096 });
/** The unit of a stripe that is n1's. */
const unitOf = (stripe: number): number => unitOfNode(layout, stripe, 0);

t.test(
  "A unit is acknowledged only after its sync, with name, slot and the node's map epoch; then it reads back",
  async (t) => {
    const rig = await Rig.start(1);
    const peer = await rig.peer();
    let release = (): void => undefined;
    rig.disk.faults.beforeSync = () =>
      new Promise<void>((resolve) => {
        release = resolve;
      });
    const unit = rig.unit({ stripe: 5, counter: 7, missing: 4n });
    peer.post(3, unit);
    await rig.pass(50);
    t.equal(peer.acks.length, 0);
    release();
    await peer.until(() => peer.acks.length > 0);
    t.same(peer.acks, [{ slot: 3, refusal: 0, writerEpoch: 1, counter: 7, mapEpoch: rig.node.mapEpoch, stripe: 5 }]);
    t.equal(rig.disk.unsyncedBlocks, 0);
    const read = await peer.read({ fileId: rig.file.id, stripe: 5, unit: unitOf(5) });
    t.equal(read.refusal, 0);
    t.same(read.payload, unit.payload);
    t.same(
      decodeHeader(read.header, 0),
      unit.header.seal === 0 ? { ...unit.header, seal: unit.words[W.SEAL] } : unit.header,
    );
  },
);

t.test('Many units over all slots, several times, with data and parity units and short stripes', async (t) => {
  const rig = await Rig.start(2);
  const peer = await rig.peer({ slots: 8 });
  t.equal(peer.grant.slots, 8);
  t.equal(peer.grant.slotBytes, unitSlotBytes(4096));
  let counter = 1;
  for (let round = 0; round < 5; round++) {
    const before = peer.acks.length;
    for (let slot = 0; slot < 8; slot++)
      peer.post(
        slot,
        rig.unit({ stripe: round * 8 + slot, counter: counter++, stripeLength: slot === 7 ? 5000 : 8192 }),
      );
    await peer.until(() => peer.acks.length === before + 8);
    t.ok(peer.acks.slice(before).every((ack) => ack.refusal === 0));
  }
  for (const stripe of [0, 7, 15, 23, 39]) {
    const unit = rig.unit({ stripe, counter: stripe + 1, stripeLength: stripe % 8 === 7 ? 5000 : 8192 });
    const read = await peer.read({ fileId: rig.file.id, stripe, unit: unitOf(stripe), length: unit.payload.length });
    t.equal(read.refusal, 0, `stripe ${stripe}, unit ${unitOf(stripe)}`);
    t.ok(Buffer.compare(read.payload, unit.payload) === 0);
  }
  t.equal(rig.node.counters.unitsAcknowledged, 40);
  t.equal(rig.node.counters.protocolErrors, 0);
});

t.test('Units are refused, each with its reason, and the connection goes on', async (t) => {
  const rig = await Rig.start(3);
  const peer = await rig.peer();
  const refusal = async (unit: Parameters<typeof peer.send>[0]): Promise<number> => (await peer.send(unit)).refusal;
  t.equal(await refusal(rig.unit({ clusterId: 7 })), Refusal.CLUSTER);
  t.equal(await refusal(rig.unit({ unit: (unitOf(0) + 1) % 3 })), Refusal.NOT_MINE);
  t.equal(await refusal(rig.unit({ fileId: 99 })), Refusal.NO_UNIT);
  t.equal(await refusal(rig.unit({ mapEpoch: rig.node.mapEpoch - 1 })), Refusal.STALE_MAP);
  t.equal(
    await refusal(rig.unit({ mapEpoch: rig.node.mapEpoch + 1 })),
    Refusal.MAP_UNAVAILABLE,
    'no such map in the store',
  );
  t.equal(await refusal(rig.unit({ k: 3, m: 1 })), Refusal.MALFORMED, "not the file's shape");
  t.equal(await refusal(rig.unit({ stripe: 2 ** 60 })), Refusal.MALFORMED, 'a stripe that no number names exactly');
  const damaged = rig.unit({ seed: 3 });
  damaged.payload[10]! ^= 1;
  t.equal(await refusal(damaged), Refusal.CHECKSUM);
  const unsealed = rig.unit();
  unsealed.words[W.COMMIT_MARK] = 55;
  t.equal(await refusal(unsealed), Refusal.CHECKSUM);
  const future = rig.unit();
  future.words[W.SHAPE] = (future.words[W.SHAPE]! & ~0xff) | 2;
  t.equal(await refusal(future), Refusal.MALFORMED);
  t.equal(rig.node.storeStats().unitsStored, 0);
  t.equal(await refusal(rig.unit({ epoch: 2, counter: 2 })), Refusal.NONE);
  t.equal(await refusal(rig.unit({ epoch: 2, counter: 2 })), Refusal.NONE, 'the same again');
  t.equal(await refusal(rig.unit({ epoch: 2, counter: 2, seed: 9 })), Refusal.NAME_CONFLICT);
  t.equal(await refusal(rig.unit({ epoch: 2, counter: 1 })), Refusal.STALE_VERSION);
  t.equal(await refusal(rig.unit({ stripe: 1, epoch: 1 })), Refusal.STALE_WRITER_EPOCH);
  t.equal(rig.node.storeStats().unitsStored, 1);
  t.equal(peer.closed, undefined);
});

t.test(
  'A newer map epoch in a header makes the node read the map before it judges; with the store away it says so',
  async (t) => {
    const rig = await Rig.start(4);
    const peer = await rig.peer();
    const map = await rig.run(setNodeState(rig.metadata, 'n3', 'up'));
    const ack = await peer.send(rig.unit({ mapEpoch: map.epoch }));
    t.equal(ack.refusal, Refusal.NONE);
    t.equal(ack.mapEpoch, map.epoch);
    t.equal((await peer.send(rig.unit({ stripe: 1, mapEpoch: map.epoch - 1 }))).refusal, Refusal.STALE_MAP);
    rig.nodeStore.cutOff();
    t.equal(
      (await peer.send(rig.unit({ stripe: 2, mapEpoch: map.epoch }))).refusal,
      Refusal.NONE,
      'open files go on without the store',
    );
    t.equal((await peer.send(rig.unit({ stripe: 3, mapEpoch: map.epoch + 1 }))).refusal, Refusal.MAP_UNAVAILABLE);
    t.equal(
      (await peer.send(rig.unit({ fileId: 50 }))).refusal,
      Refusal.MAP_UNAVAILABLE,
      'nor can an unknown file be looked up',
    );
    const reply = await peer.request({ $case: 'adoptMap', value: { mapEpoch: map.epoch + 1 } });
    t.equal(reply.code, 'ERR_MAP_UNAVAILABLE');
  },
);

t.test('AdoptMap is answered when the node holds that map; from then on older units are refused', async (t) => {
  const rig = await Rig.start(5);
  const peer = await rig.peer();
  const old = rig.unit({ stripe: 1 });
  const map = await rig.run(setNodeState(rig.metadata, 'n3', 'up'));
  const reply = await peer.request({ $case: 'adoptMap', value: { mapEpoch: map.epoch } });
  t.match(reply, { code: '', mapEpoch: map.epoch });
  t.equal((await peer.send(old)).refusal, Refusal.STALE_MAP);
});

t.test('A fence is durable before its reply, and refuses what is in flight inside the node', async (t) => {
  const rig = await Rig.start(6);
  const peer = await rig.peer();
  const other = await rig.peer();
  t.equal((await peer.send(rig.unit({ stripe: 0 }))).refusal, Refusal.NONE);
  let release = (): void => undefined;
  rig.disk.faults.beforeSync = () =>
    new Promise<void>((resolve) => {
      release = resolve;
    });
  let replied = false;
  const fencing = other
    .requestSoon({ $case: 'fence', value: { fileId: rig.file.id, writerEpoch: 3 } })
    .then((reply) => {
      replied = true;
      return reply;
    });
  await peer.until(() => rig.disk.unsyncedBlocks > 0);
  peer.post(1, rig.unit({ stripe: 1 }));
  await rig.pass(20);
  t.notOk(replied, 'written, not synced');
  t.equal(peer.acks.length, 2, 'refused already');
  release();
  rig.disk.faults = {};
  t.match(await rig.run(fencing), { code: '', writerEpoch: 3 });
  t.equal(peer.acks[1]!.refusal, Refusal.STALE_WRITER_EPOCH);
  t.match(await other.request({ $case: 'fence', value: { fileId: rig.file.id, writerEpoch: 2 } }), {
    code: '',
    writerEpoch: 3,
  });
  await rig.run(rig.node.stop());
  rig.disk = rig.disk.crash();
  await rig.startNode();
  const again = await rig.peer();
  t.equal((await again.send(rig.unit({ stripe: 1 }))).refusal, Refusal.STALE_WRITER_EPOCH);
});

t.test('Requests: inventory in pages that fit a message, marks, missing units, discard, delete', async (t) => {
  const rig = await Rig.start(7);
  const peer = await rig.peer();
  const fileId = rig.file.id;
  for (let stripe = 0; stripe < 200; stripe++)
    peer.acks.length = (await peer.send(rig.unit({ stripe, counter: stripe + 1, mark: stripe })), 0);
  const seen: number[] = [];
  for (let fromStripe = 0, more = true; more; ) {
    const reply = await peer.request({ $case: 'inventory', value: { fileId, fromStripe, limit: 1000 } });
    t.equal(reply.code, '');
    seen.push(...reply.units.map((unit) => unit.stripe));
    more = reply.more;
    fromStripe = seen[seen.length - 1]! + 1;
  }
  t.same(
    seen,
    Array.from({ length: 200 }, (_, i) => i),
  );
  t.match(await peer.request({ $case: 'fileMark', value: { fileId } }), {
    code: '',
    writerEpoch: 1,
    commitEpoch: 1,
    commitCounter: 199,
  });
  t.match(
    await peer.request({
      $case: 'recordMissing',
      value: { fileId, stripe: 4, writerEpoch: 1, counter: 5, mask: 2 ** 35 + 2, requestEpoch: 0 },
    }),
    { code: '' },
  );
  const listed = await peer.request({ $case: 'inventory', value: { fileId, fromStripe: 4, limit: 1 } });
  t.match(listed.units[0], {
    stripe: 4,
    unit: unitOf(4),
    writerEpoch: 1,
    counter: 5,
    stripeLength: 8192,
    missing: 2 ** 35 + 2,
    mapEpoch: rig.node.mapEpoch,
  });
  t.match(await peer.request({ $case: 'discard', value: { fileId, fromStripe: 2, writerEpoch: 2 } }), {
    code: '',
    writerEpoch: 2,
  });
  t.same(
    (await peer.request({ $case: 'inventory', value: { fileId, fromStripe: 0, limit: 9 } })).units.map(
      (unit) => unit.stripe,
    ),
    [0, 1],
  );
  t.match(await peer.request({ $case: 'discard', value: { fileId, fromStripe: 0, writerEpoch: 1 } }), {
    code: 'ERR_STALE_EPOCH',
  });
  t.match(await peer.request({ $case: 'deleteFile', value: { fileId } }), { code: '' });
  t.equal((await peer.send(rig.unit({ stripe: 9, epoch: 2 }))).refusal, Refusal.NO_UNIT);
  t.equal((await peer.read({ fileId, stripe: 0, unit: unitOf(0) })).refusal, Refusal.NO_UNIT);
});

t.test(
  'Reads answer what was asked: absent, too little room, a version bound, an exact version, a damaged payload',
  async (t) => {
    const rig = await Rig.start(8);
    const peer = await rig.peer();
    const fileId = rig.file.id,
      unit = unitOf(0);
    await peer.send(rig.unit({ counter: 3, seed: 3 }));
    await peer.send(rig.unit({ counter: 5, seed: 5 }));
    t.equal((await peer.read({ fileId, stripe: 1, unit })).refusal, Refusal.NO_UNIT);
    t.equal((await peer.read({ fileId, stripe: 0, unit, epoch: 1, counter: 2 })).refusal, Refusal.NO_UNIT);
    t.equal((await peer.read({ fileId, stripe: 0, unit, capacity: 4095 })).refusal, Refusal.CAPACITY);
    t.same((await peer.read({ fileId, stripe: 0, unit, epoch: 1, counter: 4 })).payload, rig.unit({ seed: 3 }).payload);
    t.same((await peer.read({ fileId, stripe: 0, unit })).payload, rig.unit({ seed: 5 }).payload);
    t.same(
      (await peer.read({ fileId, stripe: 0, unit, epoch: 1, counter: 3, exact: true })).payload,
      rig.unit({ seed: 3 }).payload,
    );
    t.equal((await peer.read({ fileId, stripe: 0, unit, epoch: 1, counter: 4, exact: true })).refusal, Refusal.NO_UNIT);
    rig.disk.corrupt(17 * BLOCK_BYTES + 7, (bytes) => {
      bytes[0]! ^= 0x10;
    });
    t.equal(
      (await peer.read({ fileId, stripe: 0, unit, epoch: 1, counter: 3, exact: true })).refusal,
      Refusal.CHECKSUM,
    );
    t.equal(rig.node.counters.checksumFailures, 1);
    t.match(rig.log.join('\n'), /unit 0 of stripe 0 of file 1 fails its checksum/);
    rig.disk.corrupt(18 * BLOCK_BYTES + 80, (bytes) => {
      bytes[0]! ^= 0x10;
    });
    t.equal((await peer.read({ fileId, stripe: 0, unit })).refusal, Refusal.CHECKSUM, 'a damaged header too');
    rig.disk.faults.beforeRead = () => {
      throw new TartanError('ERR_DISK', 'no read');
    };
    t.equal((await peer.read({ fileId, stripe: 0, unit })).refusal, Refusal.DISK);
  },
);

t.test('More reads than slots wait their turn; a reader that goes away takes nothing with it', async (t) => {
  const rig = await Rig.start(9);
  const writer = await rig.peer();
  const fileId = rig.file.id;
  for (let stripe = 0; stripe < 20; stripe++) await writer.send(rig.unit({ stripe }));
  rig.disk.faults.beforeRead = () =>
    new Promise<void>((resolve) => {
      rig.world.setTimer(2, resolve);
    });
  const readers = [await rig.peer({ role: 'reader', unitBytes: 0 }), await rig.peer({ role: 'reader', unitBytes: 0 })];
  t.equal(readers[0]!.grant.slots, 0, 'no ring for who wants none');
  for (const reader of readers)
    for (let i = 0; i < 60; i++) reader.ask({ fileId, stripe: i % 20, unit: unitOf(i % 20) });
  await rig.pass(1);
  readers[1]!.channel.qp.toError('the reader leaves');
  await readers[0]!.until(() => readers[0]!.reads.size === 60);
  t.ok([...readers[0]!.reads.values()].every((refusal) => refusal === 0));
  await rig.run(rig.node.stop());
  t.equal(rig.node.memory.used, 0);
});

t.test('Whoever lies in an immediate loses the connection; nobody else notices', async (t) => {
  const rig = await Rig.start(10);
  const honest = await rig.peer();
  const lies: [string, (peer: Awaited<ReturnType<Rig['peer']>>) => void][] = [
    [
      'a slot beyond the ring',
      (peer) => {
        peer.post(0, rig.unit(), { imm: unitImm(8, 88) });
      },
    ],
    [
      'no header',
      (peer) => {
        peer.post(0, rig.unit(), { imm: unitImm(0, 0) });
      },
    ],
    [
      'a header longer than a header can be',
      (peer) => {
        peer.post(0, rig.unit(), { imm: unitImm(0, 400) });
      },
    ],
    [
      'a parity header on a data unit',
      (peer) => {
        peer.post(0, rig.unit(), { imm: unitImm(0, 96) });
      },
    ],
    [
      'a header length that is not the written one',
      (peer) => {
        const unit = rig.unit();
        unit.words[W.UNIT_LENGTH] = 100;
        peer.post(0, unit);
      },
    ],
    [
      'a slot that is not free',
      (peer) => {
        rig.disk.faults.beforeSync = () =>
          new Promise<void>((resolve) => {
            rig.world.setTimer(20, resolve);
          });
        peer.post(1, rig.unit({ stripe: 3 }));
        peer.post(1, rig.unit({ stripe: 3 }));
      },
    ],
    [
      'a write outside its ring',
      (peer) => {
        peer.post(0, rig.unit(), { offset: peer.grant.slots * peer.grant.slotBytes - 100 });
      },
    ],
    [
      'a write with another key',
      (peer) => {
        peer.post(0, rig.unit(), { rkey: honest.grant.rkey ^ 1 });
      },
    ],
    [
      "a write with another's key, and no ring of its own",
      (peer) => {
        peer.channel.qp.postWriteWithImm(0, peer.source, 0, 0, honest.grant.rkey, 0, 0);
        peer.channel.hub.wake();
      },
    ],
  ];
  for (const [name, lie] of lies) {
    const before = rig.node.counters.protocolErrors;
    const peer = await rig.peer(name.endsWith('no ring of its own') ? { unitBytes: 0 } : {});
    lie(peer);
    await peer.until(() => peer.closed !== undefined);
    const byDevice = name.startsWith('a write'); // refused before the node hears of it
    t.equal(rig.node.counters.protocolErrors - before, byDevice ? 0 : 1, name);
  }
  rig.disk.faults = {};
  t.equal(honest.closed, undefined);
  t.equal((await honest.send(rig.unit({ stripe: 1 }))).refusal, Refusal.NONE);
  await rig.pass(1000);
  t.equal(rig.node.connectionCount, 1);
});

t.test(
  'Rings fit the budget: fewer slots when little is left, at least two, else a refusal with its code; given ' +
    'back at the end',
  async (t) => {
    const slot = unitSlotBytes(4096);
    const rig = await Rig.start(11, { ringMemoryBytes: 5 * MIB + 5 * slot, readMemoryBytes: 0 });
    const read = rig.node.memory.used;
    let rest = Math.floor((5 * MIB + 5 * slot - read) / slot),
      last = 64;
    const big = await rig.peer({ slots: 64 });
    t.equal(big.grant.slots, Math.min(64, Math.max(2, Math.floor(rest / 8))), 'an eighth of what is left');
    for (rest -= big.grant.slots; rest >= 2; rest -= last) {
      const { grant } = await rig.peer({ slots: 64 });
      t.ok(grant.slots >= 2 && grant.slots <= last, 'those who come later get less, never less than two');
      last = grant.slots;
    }
    await t.rejects(rig.peer({ slots: 2 }), { code: 'ERR_RING_MEMORY', message: /at least 16384 are required/ });
    await t.rejects(rig.peer({ unitBytes: 5000 }), { code: 'ERR_UNIT_BYTES' });
    big.channel.qp.toError('enough');
    await rig.pass(500);
    t.equal((await rig.peer({ slots: 2 })).grant.slots, 2);
    await rig.run(rig.node.stop());
    t.equal(rig.node.memory.used, 0);
  },
);

t.test('A ring is kept until the disk has written what lies in it, though its connection broke', async (t) => {
  const rig = await Rig.start(12);
  const peer = await rig.peer();
  let release = (): void => undefined;
  rig.disk.faults.beforeWrite = () =>
    new Promise<void>((resolve) => {
      release = resolve;
    });
  const unit = rig.unit({ stripe: 2 });
  peer.post(0, unit);
  peer.post(1, rig.unit({ stripe: 3 }));
  await rig.pass(20);
  const used = rig.node.memory.used;
  rig.world.breakConnections(peer.name, 'n1');
  await rig.pass(2000);
  t.equal(rig.node.memory.used, used, 'the disk still reads the ring');
  rig.disk.faults = {};
  release();
  await rig.pass(100);
  t.ok(rig.node.memory.used < used);
  const other = await rig.peer();
  t.same(
    (await other.read({ fileId: rig.file.id, stripe: 2, unit: unitOf(2) })).payload,
    unit.payload,
    'and wrote the right bytes',
  );
});

t.test('A peer of another cluster, or without the secret, gets nothing', async (t) => {
  const rig = await Rig.start(13, { secret: 'warp and weft' });
  await t.rejects(rig.peer({}, { secret: 'weft and warp' }), { code: 'ERR_AUTHENTICATION' });
  await t.rejects(rig.peer({}, { secret: 'warp and weft', clusterId: 1 }), { code: 'ERR_CLUSTER' });
  t.equal((await rig.peer({}, { secret: 'warp and weft' })).grant.name, 'n1');
  t.equal(rig.node.counters.connections, 1);
});

t.test(
  'A node is up when it holds the map and the writer epochs; a takeover while it was away is known when it serves',
  async (t) => {
    const rig = await Rig.start(14);
    t.equal(rig.node.state, 'up');
    const entry = (await rig.run(readMap(rig.metadata))).nodes.find((node) => node.id === 'n1');
    t.match(entry, { state: 'up', host: 'n1', port: rig.node.port });
    await rig.run(rig.node.stop());
    t.equal(
      (await rig.run(readMap(rig.metadata))).nodes.find((node) => node.id === 'n1')!.state,
      'down',
      'it says when it leaves',
    );
    await rig.run(takeOver(rig.metadata, rig.file.id, { modified: '2030-01-01T00:00:01.000Z' }));
    rig.disk = rig.disk.restart();
    await rig.startNode();
    const peer = await rig.peer();
    t.equal((await peer.send(rig.unit({ epoch: 1 }))).refusal, Refusal.STALE_WRITER_EPOCH);
    t.equal((await peer.send(rig.unit({ epoch: 2 }))).refusal, Refusal.NONE);
  },
);

t.test('A node that others marked down comes up again by itself', async (t) => {
  const rig = await Rig.start(15);
  const map = await rig.run(setNodeState(rig.metadata, 'n1', 'down'));
  await rig.pass(5000);
  t.equal(rig.node.state, 'up');
  t.ok(rig.node.mapEpoch > map.epoch);
});

t.test('A node whose disk takes no more writes goes down, stays down, and serves what it holds', async (t) => {
  const rig = await Rig.start(17);
  const peer = await rig.peer();
  t.equal((await peer.send(rig.unit({ stripe: 0 }))).refusal, Refusal.NONE);
  rig.disk.faults.beforeSync = () => {
    throw new TartanError('ERR_DISK', 'no sync');
  };
  t.equal((await peer.send(rig.unit({ stripe: 1 }))).refusal, Refusal.DISK);
  await rig.pass(10_000);
  t.equal((await rig.run(readMap(rig.metadata))).nodes.find((node) => node.id === 'n1')!.state, 'down');
  t.equal(
    (await peer.read({ fileId: rig.file.id, stripe: 0, unit: unitOf(0) })).refusal,
    Refusal.STALE_MAP,
    'a reader that missed the change is told',
  );
  peer.channel.mapEpoch = rig.node.mapEpoch;
  t.equal((await peer.read({ fileId: rig.file.id, stripe: 0, unit: unitOf(0) })).refusal, 0);
  t.equal(rig.log.filter((line) => /no more writes/.test(line)).length, 1);
});

t.test('Two processes never run as one node', async (t) => {
  const rig = await Rig.start(16);
  const second = new StorageNode({
    id: 'n1',
    device: rig.world.openDevice('elsewhere'),
    clock: rig.clock('elsewhere'),
    clusterStore: rig.cluster.client(),
    disk: new MemoryDisk(MIB),
    host: 'elsewhere',
  });
  await t.rejects(rig.run(second.start()), { code: 'ERR_IN_USE' });
  t.equal(
    (await rig.run(readMap(rig.metadata))).nodes.find((node) => node.id === 'n1')!.state,
    'up',
    'and the first is left alone',
  );
});

t.test('After a crash everything that was acknowledged reads back', async (t) => {
  for (let seed = 20; seed < 26; seed++) {
    const rig = await Rig.start(seed);
    const peer = await rig.peer();
    let stripe = 0;
    const pump = (): void => {
      for (let slot = 0; slot < 8 && stripe < 8; slot++) peer.post(slot, rig.unit({ stripe: stripe++ }));
    };
    rig.disk.faults.beforeSync = () =>
      new Promise<void>((resolve) => {
        rig.world.setTimer(rig.world.random() * 3, resolve);
      });
    rig.disk.faults.beforeWrite = () =>
      new Promise<void>((resolve) => {
        rig.world.setTimer(rig.world.random() * 3, resolve);
      });
    pump();
    await rig.pass(rig.world.random() * 12);
    const acknowledged = peer.acks.filter((ack) => ack.refusal === 0).map((ack) => ack.stripe);
    rig.world.killHost('n1');
    rig.disk = rig.disk.crash(() => rig.world.random() < 0.5);
    await rig.startNode();
    const reader = await rig.peer();
    for (const at of acknowledged) {
      const read = await reader.read({ fileId: rig.file.id, stripe: at, unit: unitOf(at) });
      t.ok(
        read.refusal === 0 && Buffer.compare(read.payload, rig.unit({ stripe: at }).payload) === 0,
        `seed ${seed}: stripe ${at}`,
      );
    }
    for (let at = 0; at < 8; at++)
      t.equal(
        (await reader.send(rig.unit({ stripe: at }))).refusal,
        Refusal.NONE,
        `seed ${seed}: stripe ${at} sent again`,
      );
  }
});

t.test('A full disk refuses units and serves reads', async (t) => {
  const rig = await Rig.start(30, {}, new MemoryDisk(100 * BLOCK_BYTES));
  const peer = await rig.peer();
  let stripe = 0;
  for (; (await peer.send(rig.unit({ stripe }))).refusal === Refusal.NONE; stripe++);
  t.equal(peer.acks[peer.acks.length - 1]!.refusal, Refusal.DISK_FULL);
  t.ok(stripe > 10);
  t.equal((await peer.read({ fileId: rig.file.id, stripe: stripe - 1, unit: unitOf(stripe - 1) })).refusal, 0);
  t.match(await peer.request({ $case: 'fence', value: { fileId: rig.file.id, writerEpoch: 9 } }), { code: '' });
});

t.test("Another file over other nodes: units of a node that is not in its list are not this node's", async (t) => {
  const rig = await Rig.start(31);
  await rig.run(registerNode(rig.metadata, { id: 'n4', host: 'n4', port: 1, controlPort: 0 }));
  const other = await rig.run(
    createFile(rig.metadata, {
      name: 'b',
      code: 'xor(2+1)',
      unitBytes: 4096,
      nodes: ['n2', 'n3', 'n4'],
      modified: '2030-01-01T00:00:00.000Z',
    }),
  );
  const peer = await rig.peer();
  await rig.pass(100);
  t.equal(
    (
      await peer.send(
        makeUnit({ fileId: other.id, unit: 0, mapEpoch: rig.node.mapEpoch, clusterId: rig.identity.clusterId }),
      )
    ).refusal,
    Refusal.NOT_MINE,
  );
});

t.test('A silent peer is dropped, and its ring memory comes back', async (t) => {
  const rig = await Rig.start(32, { silentMs: 1000 });
  const before = rig.node.memory.used;
  const peer = await rig.peer();
  t.ok(rig.node.memory.used > before);
  await rig.pass(5000);
  t.equal(rig.node.memory.used, before);
  t.type(peer.closed, 'string');
  t.equal(PAGE_BYTES, BLOCK_BYTES);
});
