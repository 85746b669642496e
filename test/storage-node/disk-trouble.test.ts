/** Disks with bad blocks, that can't be written, whose syncs fail, and that neither fail nor answer. */
import t from 'tap';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { TartanError } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { settle, VirtualClock } from '../cluster/virtual-clock.js';
import { MIB, openStore, picture, readUnit } from './stores.js';
import { Client, makeUnit } from './units.js';

function broken(what: string): never {
  throw new TartanError('ERR_DISK', `Cannot ${what}: a fault of this test`);
}

/** Writes that touch one of these blocks fail, and so do reads. */
function breakBlocks(disk: MemoryDisk, blocks: readonly number[]): void {
  const check = (what: string) => (position: number, length: number) => {
    const isTouched = blocks.some(
      (block) => block * BLOCK_BYTES >= position && block * BLOCK_BYTES < position + length,
    );
    if (isTouched) broken(what);
  };
  disk.faults = { beforeRead: check('read'), beforeWrite: check('write') };
}

/** Numbers of the log's first blocks: 16, then segments of 63 blocks on a disk of 4 MiB. */
const FIRST = 16,
  SEGMENT = 63;

for (const [what, bad] of [
  ['amid a segment', [FIRST + 20]],
  ['where a segment begins', [FIRST + SEGMENT]],
  ['in three segments in a row', [FIRST + 20, FIRST + SEGMENT, FIRST + 2 * SEGMENT + 9]],
  ['in two places of a segment, one of them the last', [FIRST + 7, FIRST + SEGMENT - 1]],
] as const) {
  t.test(`A bad block ${what} is stepped over: no unit is refused, and all are found again`, async (t) => {
    const disk = new MemoryDisk(4 * MIB),
      store = await openStore(disk),
      client = new Client();
    breakBlocks(disk, bad);
    const write = async (to: typeof store, from: number): Promise<void> => {
      const refused: number[] = [];
      for (let stripe = from; stripe < from + 100; stripe++) {
        const refusal = await client.append(to, makeUnit({ stripe }));
        if (refusal !== Refusal.NONE) refused.push(stripe);
      }
      t.same(refused, []);
    };
    const check = async (of: typeof store, upTo: number): Promise<void> => {
      const wrong: number[] = [];
      for (let stripe = 0; stripe < upTo; stripe++) {
        const found = await readUnit(of, { stripe });
        if (found === undefined || Buffer.compare(found, makeUnit({ stripe }).payload) !== 0) wrong.push(stripe);
      }
      t.same(wrong, []);
    };
    await write(store, 0);
    await check(store, 100);
    t.notOk(store.ailing);
    const next = disk.crash();
    breakBlocks(next, bad);
    const again = await openStore(next);
    await check(again, 100);
    await write(again, 100);
    await check(again, 200);
    t.equal(picture(await openStore(next.restart()), [1]), picture(again, [1]));
  });
}

t.test('A whole batch that a failed write left is not found in the place of the one written elsewhere', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    store = await openStore(disk),
    client = new Client();
  t.equal(await client.append(store, makeUnit({ stripe: 0 })), Refusal.NONE);
  // twice the write reaches the disk, and fails all the same
  let failures = 2;
  const writev = disk.writev.bind(disk);
  disk.writev = async (views, position) => {
    await writev(views, position);
    if (failures-- > 0) broken('write');
  };
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.NONE);
  t.equal(await client.append(store, makeUnit({ stripe: 2 })), Refusal.NONE);
  const again = await openStore(disk.crash());
  t.same(
    again.inventory(1, 0, 10).units.map(({ stripe }) => stripe),
    [0, 1, 2],
  );
});

t.test('A disk that can be written nowhere is left alone after the first batch, until a probe succeeds', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    store = await openStore(disk),
    client = new Client(),
    told: string[] = [];
  store.onTrouble = (why) => told.push(why);
  t.equal(await client.append(store, makeUnit({ stripe: 0 })), Refusal.NONE);
  let writes = 0;
  disk.faults.beforeWrite = () => {
    writes++;
    broken('write');
  };
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK);
  const tried = writes;
  t.equal(await client.append(store, makeUnit({ stripe: 2 })), Refusal.DISK);
  await t.rejects(store.fence(2, 3), { code: 'ERR_DISK' });
  t.equal(writes, tried, 'nothing more is tried');
  t.equal(told.length, 1);
  t.ok(store.ailing && !store.failed);
  t.notOk(await store.probe());
  t.ok(store.ailing);
  t.same(await readUnit(store, { stripe: 0 }), makeUnit({ stripe: 0 }).payload, 'it reads');
  disk.faults = {};
  t.ok(await store.probe());
  for (const stripe of [1, 2, 3]) t.equal(await client.append(store, makeUnit({ stripe })), Refusal.NONE);
  const again = await openStore(disk.crash());
  for (const stripe of [0, 1, 2, 3]) t.same(await readUnit(again, { stripe }), makeUnit({ stripe }).payload);
});

t.test('What a failed sync dropped is written again before it is trusted', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    store = await openStore(disk),
    client = new Client();
  t.equal(await client.append(store, makeUnit({ stripe: 0 })), Refusal.NONE);
  disk.faults.beforeSync = () => broken('sync');
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK);
  t.ok(store.failed);
  // the process starts anew: the cache shows what never reached the disk
  const cached = disk.restart();
  const second = await openStore(cached);
  t.equal(await client.append(second, makeUnit({ stripe: 1 })), Refusal.NONE);
  t.equal(await client.append(second, makeUnit({ stripe: 2 })), Refusal.NONE);
  const third = await openStore(cached.crash());
  for (const stripe of [0, 1, 2]) t.same(await readUnit(third, { stripe }), makeUnit({ stripe }).payload);
});

t.test('The store of a new disk whose first sync failed is no phantom either', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    client = new Client();
  let syncs = 0;
  disk.faults.beforeSync = () => {
    if (++syncs > 1) broken('sync');
  };
  await t.rejects(openStore(disk), { code: 'ERR_DISK' });
  const cached = disk.restart();
  t.equal(await client.append(await openStore(cached), makeUnit()), Refusal.NONE);
  t.same(await readUnit(await openStore(cached.crash()), {}), makeUnit().payload);
});

t.test('A failed sync of a checkpoint is told as one of the log', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    store = await openStore(disk, { checkpointBytes: 64 << 10 }),
    client = new Client(),
    told: string[] = [];
  store.onTrouble = (why) => told.push(why);
  const checkpointer = (store as unknown as { checkpointer: { take(): Promise<boolean> } }).checkpointer;
  t.equal(await client.append(store, makeUnit()), Refusal.NONE);
  await store.drained();
  disk.faults.beforeSync = () => broken('sync');
  await t.rejects(checkpointer.take(), { code: 'ERR_DISK' });
  t.ok(store.failed);
  t.equal(told.length, 1);
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK);
});

for (const operation of ['beforeSync', 'beforeWrite'] as const) {
  t.test(`A disk that neither fails nor answers (${operation}) has failed after its deadline`, async (t) => {
    const clock = new VirtualClock(),
      disk = new MemoryDisk(4 * MIB),
      store = await openStore(disk, { clock, diskDeadlineMs: 5000 }),
      client = new Client(),
      told: string[] = [];
    store.onTrouble = (why) => told.push(why);
    t.equal(await client.append(store, makeUnit({ stripe: 0 })), Refusal.NONE);
    disk.faults[operation] = () => new Promise<void>(() => undefined);
    const waiting = [client.append(store, makeUnit({ stripe: 1 })), client.append(store, makeUnit({ stripe: 2 }))],
      fence = t.rejects(store.fence(2, 9), { code: 'ERR_DISK' });
    await settle();
    const late = client.append(store, makeUnit({ stripe: 3 }));
    await clock.advance(4999);
    t.equal(client.answers.size, 1, 'not before');
    await clock.advance(1);
    await settle();
    t.same(await Promise.all([...waiting, late]), [Refusal.DISK, Refusal.DISK, Refusal.DISK]);
    await fence;
    t.ok(store.failed);
    t.equal(told.length, 1);
    t.equal(await client.append(store, makeUnit({ stripe: 4 })), Refusal.DISK);
    await store.close();
  });
}

t.test('A read that is never answered is told as a disk that has failed', async (t) => {
  const clock = new VirtualClock(),
    disk = new MemoryDisk(4 * MIB),
    store = await openStore(disk, { clock, diskDeadlineMs: 5000 }),
    client = new Client(),
    told: string[] = [];
  store.onTrouble = (why) => told.push(why);
  t.equal(await client.append(store, makeUnit()), Refusal.NONE);
  disk.faults.beforeRead = () => new Promise<void>(() => undefined);
  void readUnit(store, {});
  await clock.advance(5000);
  t.equal(told.length, 1);
  t.ok(store.failed);
  await store.close();
});
