/** What is discarded or deleted, and what comes meanwhile: rebuilt units, duplicates, inventories, deletions. */
import t from 'tap';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { TartanError } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { MIB, openStore, picture, readUnit } from './stores.js';
import { Client, makeUnit } from './units.js';

/** Holds the next sync back until the returned function is called. */
function holdSync(disk: MemoryDisk): { readonly held: Promise<void>; release: () => void } {
  let release = (): void => undefined;
  const held = new Promise<void>((reached) => {
    disk.faults.beforeSync = () =>
      new Promise<void>((resolve) => {
        release = () => {
          disk.faults = {};
          resolve();
        };
        reached();
      });
  });
  return {
    held,
    release: () => {
      release();
    },
  };
}

t.test('A rebuilt unit of an older owner that comes behind a discard is durable when it is acknowledged', async (t) => {
  const disk = new MemoryDisk(8 * MIB),
    store = await openStore(disk),
    client = new Client();
  t.equal(await client.append(store, makeUnit({ stripe: 0, epoch: 1 })), Refusal.NONE);
  const sync = holdSync(disk);
  const first = client.append(store, makeUnit({ fileId: 2, stripe: 0 }));
  await sync.held;
  // all of these are queued while that batch is being synced
  const discarding = store.discard(1, 0, 2),
    rebuilt = client.append(store, makeUnit({ stripe: 7, epoch: 1, seed: 7 }), true),
    others = [1, 2, 3].map((stripe) => client.append(store, makeUnit({ fileId: 3, stripe })));
  sync.release();
  await discarding;
  t.same(await Promise.all([first, ...others]), Array(4).fill(Refusal.NONE));
  t.equal(await rebuilt, Refusal.NONE);
  const check = async (of: typeof store, when: string): Promise<void> => {
    t.equal(await readUnit(of, { stripe: 0 }), undefined, `${when}: what was discarded is gone`);
    t.same(
      await readUnit(of, { stripe: 7 }),
      makeUnit({ stripe: 7, seed: 7 }).payload,
      `${when}: the rebuilt is there`,
    );
    for (const stripe of [1, 2, 3])
      t.same(await readUnit(of, { fileId: 3, stripe }), makeUnit({ fileId: 3, stripe }).payload, `${when}: and others`);
  };
  await check(store, 'at once');
  t.equal(store.stats().units, 5);
  const before = picture(store, [1, 2, 3]);
  const again = await openStore(disk.crash());
  await check(again, 'after a loss of power');
  t.equal(picture(again, [1, 2, 3]), before);
});

t.test('A unit that a pending discard removes is no duplicate: brought by a rebuilder it is stored anew', async (t) => {
  const disk = new MemoryDisk(8 * MIB),
    store = await openStore(disk),
    client = new Client(),
    unit = makeUnit({ stripe: 4, epoch: 1 });
  t.equal(await client.append(store, unit), Refusal.NONE);
  const discarding = store.discard(1, 0, 2);
  t.equal(await client.append(store, unit, true), Refusal.NONE);
  await discarding;
  t.same(await readUnit(store, { stripe: 4 }), unit.payload);
  t.same(await readUnit(await openStore(disk.crash()), { stripe: 4 }), unit.payload);
});

t.test('Of two discards in a row the second is waited for as well, and an inventory waits for both', async (t) => {
  const disk = new MemoryDisk(8 * MIB),
    store = await openStore(disk),
    client = new Client();
  t.equal(await client.append(store, makeUnit({ stripe: 4, epoch: 1 })), Refusal.NONE);
  const order: string[] = [];
  const done = [
    store.discard(1, 0, 2).then(() => order.push('first')),
    store.discard(1, 0, 3).then(() => order.push('second')),
    store.discardsSettled(1).then(() => order.push('inventory')),
    client.append(store, makeUnit({ stripe: 4, epoch: 2, seed: 9 }), true).then((refusal) => {
      t.equal(refusal, Refusal.NONE);
      order.push('rebuilt');
    }),
  ];
  await Promise.all(done);
  t.equal(order[0], 'first');
  t.ok(order.indexOf('inventory') >= 2 || order.indexOf('inventory') > order.indexOf('second'), order.join());
  t.equal(order.at(-1), 'rebuilt');
  t.same(await readUnit(store, { stripe: 4, epoch: 2 }), makeUnit({ stripe: 4, epoch: 2, seed: 9 }).payload);
  t.equal(store.inventory(1, 0, 10).units.length, 1);
});

t.test('When a discard fails, what waited for it is judged as if there had been none', async (t) => {
  const disk = new MemoryDisk(8 * MIB),
    store = await openStore(disk),
    client = new Client(),
    unit = makeUnit({ stripe: 4, epoch: 1 });
  t.equal(await client.append(store, unit), Refusal.NONE);
  disk.faults.beforeSync = () => {
    throw new TartanError('ERR_DISK', 'Cannot sync: a fault of this test');
  };
  const discarding = store.discard(1, 0, 2);
  const again = client.append(store, unit, true);
  await t.rejects(discarding, { code: 'ERR_DISK' });
  t.equal(await again, Refusal.DISK, 'the log has failed');
});

t.test('Two deletions at once share one fate: a unit taken after the first has failed is not removed', async (t) => {
  const disk = new MemoryDisk(8 * MIB),
    store = await openStore(disk),
    client = new Client();
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.NONE);
  const sync = holdSync(disk);
  const first = client.append(store, makeUnit({ fileId: 2 }));
  await sync.held;
  let failures = 0;
  disk.faults.beforeWrite = () => {
    if (failures++ === 0) throw new TartanError('ERR_DISK_FULL', 'Cannot write: a fault of this test');
  };
  const fails = t.rejects(store.deleteFile(1), { code: 'ERR_DISK_FULL' }),
    second = t.rejects(store.deleteFile(1), { code: 'ERR_DISK_FULL' });
  const faults = disk.faults;
  sync.release();
  disk.faults = { beforeWrite: faults.beforeWrite! };
  t.equal(await first, Refusal.NONE);
  await Promise.all([fails, second]);
  t.equal(await client.append(store, makeUnit({ stripe: 2 })), Refusal.NONE);
  t.equal(store.inventory(1, 0, 10).units.length, 2);
  await store.deleteFile(1);
  t.equal(store.inventory(1, 0, 10).units.length, 0);
  t.equal(await client.append(store, makeUnit({ stripe: 3 })), Refusal.NO_UNIT);
});
