import t from 'tap';
import type { Checkpointer } from '../../storage-node/checkpointer.js';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import type { SegmentsKeeper } from '../../storage-node/segments-keeper.js';
import type { Segments } from '../../storage-node/segments.js';
import { emptyLocation, type UnitStore } from '../../storage-node/unit-store.js';
import { TartanError } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { MIB, openStore, readUnit } from './stores.js';
import { Client, makeUnit, randomFrom, type UnitSpec } from './units.js';

/** Whether every unit reads back as it was made. */
async function isWhole(store: UnitStore, specs: Iterable<UnitSpec>): Promise<boolean> {
  for (const spec of specs)
    if (Buffer.compare((await readUnit(store, spec)) ?? Buffer.alloc(0), makeUnit(spec).payload) !== 0) return false;
  return true;
}

t.test('A store half full of live units takes new versions for ever, and loses none', async (t) => {
  for (const [unitBytes, stripes] of [
    [4096, 240],
    [65536, 22],
    [512, 200],
  ] as const) {
    const client = new Client(),
      random = randomFrom(stripes);
    let disk = new MemoryDisk(4 * MIB),
      store = await openStore(disk);
    const newest = new Map<number, UnitSpec>();
    let counter = 0,
      written = 0;
    for (let round = 0; round < 60; round++) {
      const specs = Array.from({ length: Math.ceil(stripes / 10) }, () => Math.floor(random() * stripes))
        .filter((stripe, i, all) => all.indexOf(stripe) === i)
        .map((stripe) => ({ stripe, counter: ++counter, mark: counter - 40, unitBytes, seed: counter }));
      const answers = await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))));
      if (answers.some((answer) => answer !== Refusal.NONE))
        throw new Error(`round ${round}, units of ${unitBytes}: ${answers.join()}, ${JSON.stringify(store.stats())}`);
      // The next mark says that all of these are committed.
      await client.append(
        store,
        makeUnit({ fileId: 1, stripe: 1_000_000, counter: ++counter, mark: counter, unitBytes: 512, seed: 0 }),
      );
      for (const spec of specs) newest.set(spec.stripe, spec);
      written += specs.length * (1 + Math.ceil(unitBytes / BLOCK_BYTES));
      if (round % 20 === 19) store = await openStore((disk = disk.crash()));
    }
    t.ok(written > 1000, `${written} blocks written into 1008`);
    t.ok(await isWhole(store, newest.values()), `units of ${unitBytes}`);
  }
});

t.test('A full store refuses, reads and is told of deletions; then it has room again', async (t) => {
  for (const blocks of [80, 200, 1040]) {
    const disk = new MemoryDisk(blocks * BLOCK_BYTES),
      client = new Client();
    const store = await openStore(disk);
    for (let round = 0; round < 3; round++) {
      const held: UnitSpec[] = [];
      // Two files take turns: deleting one leaves every segment half full.
      for (let i = 0; ; i++) {
        const spec = { fileId: 10 * round + 1 + (i % 2), stripe: i };
        const answer = await client.append(store, makeUnit(spec));
        if (answer === Refusal.NONE) {
          held.push(spec);
          continue;
        }
        t.equal(answer, Refusal.DISK_FULL);
        break;
      }
      t.ok(held.length * 2 > blocks * 0.3, `${held.length} units of two blocks on ${blocks}`);
      t.ok(await isWhole(store, held));
      await store.fence(10 * round + 2, 1);
      await store.deleteFile(10 * round + 1);
      const after = await client.append(store, makeUnit({ fileId: 10 * round + 2, stripe: 5000 }));
      t.equal(after, Refusal.NONE, 'half of every segment is dead: room is made');
      await store.drained();
      t.ok(store.stats().movedUnits > 0);
      t.ok(
        await isWhole(
          store,
          held.filter(({ fileId }) => fileId === 10 * round + 2),
        ),
      );
      const opened = await openStore(disk.snapshot());
      t.ok(
        await isWhole(
          opened,
          held.filter(({ fileId }) => fileId === 10 * round + 2),
        ),
        'also after a crash',
      );
      await store.deleteFile(10 * round + 2);
      await store.drained();
    }
  }
});

t.test('Fences and deletions never use up the last room: each checkpoint frees what they took', async (t) => {
  const disk = new MemoryDisk(80 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  for (let i = 0; (await client.append(store, makeUnit({ stripe: i }))) === Refusal.NONE; i++);
  for (let i = 1; i <= 300; i++) {
    await store.fence(1, i);
    await store.drained();
  }
  t.equal((await openStore(disk.crash())).fileMark(1).writerEpoch, 300);
});

t.test(
  "What a checkpoint under way has yet to get is not the log's: in a full store there is always room for one",
  async (t) => {
    const disk = new MemoryDisk(80 * BLOCK_BYTES),
      client = new Client(),
      store = await openStore(disk);
    disk.faults.beforeWrite = () =>
      new Promise((resolve) => {
        setImmediate(resolve);
      });
    for (let i = 0; (await client.append(store, makeUnit({ stripe: i }))) === Refusal.NONE; i++);
    const { checkpointer, keeper, segments, log } = store as unknown as {
      checkpointer: Checkpointer;
      keeper: SegmentsKeeper;
      segments: Segments;
      log: { segment: number };
    };
    const before = store.stats().checkpoints;
    let entered = 0,
      at = log.segment;
    for (let i = 1; i <= 600; i++) {
      // Entries that are no units, while a checkpoint is being written.
      keeper.wantCheckpoint();
      const done = await Promise.all(
        Array.from({ length: 4 }, (_, j) =>
          store.fence(1, 4 * i + j).then(
            () => true,
            () => false,
          ),
        ),
      );
      // They come faster than checkpoints free what they take: then they are refused, until one has.
      if (done.includes(false)) await store.drained();
      if (log.segment !== at) {
        entered++;
        at = log.segment;
      }
      if (segments.freeCount < checkpointer.reserve)
        t.fail(`${segments.freeCount} segments are free, ${checkpointer.reserve} are set aside for a checkpoint`);
    }
    const taken = store.stats().checkpoints - before;
    await store.drained();
    t.equal(await store.fence(1, 9999), 9999, 'there is room again');
    t.ok(taken > 100 && entered > 20, `${taken} checkpoints, ${entered} segments`);
  },
);

t.test('A unit whose payload is damaged is told of and never copied; its segment stays', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  let units = 0;
  while ((await client.append(store, makeUnit({ fileId: 1 + (units % 2), stripe: units }))) === Refusal.NONE) units++;
  // The second unit's payload: it is of file 2, which stays.
  const location = emptyLocation();
  t.ok(store.lookupExact(2, 1, 0, 1, 1, location));
  disk.corrupt(location.payloadBlock * BLOCK_BYTES + 7, (bytes) => {
    bytes[0]! ^= 1;
  });
  await store.deleteFile(1);
  for (let i = 0; (await client.append(store, makeUnit({ fileId: 3, stripe: i }))) === Refusal.NONE; i++);
  await store.drained();
  t.ok(store.stats().movedUnits > 0);
  t.equal(store.stats().damaged, 1);
  const after = emptyLocation();
  t.ok(store.lookupExact(2, 1, 0, 1, 1, after), 'it is still listed');
  t.equal(after.payloadBlock, location.payloadBlock, 'and where it was');
  await store.deleteFile(3);
  t.equal(await client.append(store, makeUnit({ fileId: 2, stripe: 1 })), Refusal.NONE, 'a new copy is taken');
  t.same(await readUnit(store, { fileId: 2, stripe: 1 }), makeUnit({ fileId: 2, stripe: 1 }).payload);
});

t.test('What is deleted or discarded while it is being copied stays so, also after a crash', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  let units = 0;
  while ((await client.append(store, makeUnit({ fileId: 1 + (units % 4), stripe: units }))) === Refusal.NONE) units++;
  // From now on every write waits for the next turn, so that deletions come between a copy's reading and its writing.
  let step = 0;
  const later: Promise<unknown>[] = [];
  disk.faults.beforeWrite = () => {
    if (++step === 2) later.push(store.deleteFile(2));
    if (step === 3) later.push(store.discard(3, 0, 5));
    return new Promise((resolve) => {
      setImmediate(resolve);
    });
  };
  await store.deleteFile(1);
  await store.drained();
  await Promise.all(later);
  t.equal(later.length, 2);
  t.ok(store.stats().movedUnits > 0);
  for (const each of [store, await openStore(disk.snapshot())]) {
    t.ok(each.isDeleted(2));
    t.same(each.inventory(2, 0, 100).units, []);
    t.same(each.inventory(3, 0, 100).units, []);
    t.equal(each.inventory(4, 0, 100).units.length, Math.floor(units / 4));
    t.ok(
      await isWhole(
        each,
        each.inventory(4, 0, 100).units.map(({ stripe }) => ({ fileId: 4, stripe })),
      ),
    );
  }
});

t.test('A unit that is condemned while it is being copied stays condemned', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  let units = 0;
  while ((await client.append(store, makeUnit({ fileId: 1 + (units % 4), stripe: units }))) === Refusal.NONE) units++;
  await store.drained();
  const before = store.stats().movedUnits;
  let condemned = 0;
  disk.faults.beforeWrite = () => {
    if (store.stats().movedUnits === before || condemned > 0) return;
    for (const fileId of [2, 3, 4])
      for (const { stripe, unit, writerEpoch, counter, payloadCrc } of store.inventory(fileId, 0, 1000).units) {
        store.condemn(fileId, stripe, unit, writerEpoch, counter, payloadCrc);
        condemned++;
      }
  };
  await store.deleteFile(1);
  await store.drained();
  t.ok(condemned > 0, 'while copies were being written');
  t.same(
    [2, 3, 4].flatMap((fileId) => store.inventory(fileId, 0, 1000).units.filter(({ damaged }) => !damaged)),
    [],
  );
});

t.test('A unit that cannot be read counts as damaged; the others of its segment are copied', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  let units = 0;
  while ((await client.append(store, makeUnit({ fileId: 1 + (units % 4), stripe: units }))) === Refusal.NONE) units++;
  const location = emptyLocation();
  t.ok(store.lookupExact(2, 1, 0, 1, 1, location));
  disk.faults.beforeRead = (position) => {
    if (position === location.payloadBlock * BLOCK_BYTES)
      throw new TartanError('ERR_DISK', 'Cannot read: a fault of this test');
  };
  await store.deleteFile(1);
  await store.drained();
  const held = store.inventory(2, 0, 1000).units;
  t.same(
    held.filter(({ damaged }) => damaged).map(({ stripe }) => stripe),
    [1],
  );
  const moved = held.filter(({ stripe }) => {
    const place = emptyLocation();
    return (
      store.lookupExact(2, stripe, 0, 1, 1, place) &&
      place.payloadBlock > location.payloadBlock - 4 &&
      place.payloadBlock < location.payloadBlock
    );
  });
  t.same(moved, [], 'nothing is left just before it');
  // stored again by a repair, it holds up the segment no longer
  t.equal(await client.append(store, makeUnit({ fileId: 2, stripe: 1 }), true), Refusal.NONE);
  t.notOk(store.inventory(2, 0, 1000).units.some(({ damaged }) => damaged));
});

t.test('A copy that a crash tore falls back to the original, now and at every later opening', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES),
    client = new Client(),
    store = await openStore(disk);
  let units = 0;
  while ((await client.append(store, makeUnit({ fileId: 1 + (units % 2), stripe: units }))) === Refusal.NONE) units++;
  // The write that first holds a MOVED entry is never synced.
  await store.drained();
  const before = store.stats().movedUnits;
  let isMoving = false;
  disk.faults.beforeSync = () =>
    isMoving || store.stats().movedUnits > before
      ? new Promise<void>(() => {
          isMoving = true;
        })
      : undefined;
  await store.deleteFile(1);
  for (let i = 0; i < 200 && !isMoving; i++) await new Promise((resolve) => setImmediate(resolve));
  t.ok(isMoving);
  const left = Array.from({ length: units >> 1 }, (_, i) => ({ fileId: 2, stripe: 2 * i + 1 }));
  let torn = 0;
  for (let lost = 0; lost < disk.unsyncedBlocks; lost++) {
    let image = disk.restart().crash((index) => index !== lost);
    for (let opening = 0; opening < 3; opening++) {
      const again = await openStore(image);
      torn += again.recovery.torn;
      t.ok(await isWhole(again, left), `block ${lost} of ${disk.unsyncedBlocks} lost, opening ${opening + 1}`);
      image = image.crash();
    }
  }
  t.ok(torn > 0, `${torn} torn copies`);
});
