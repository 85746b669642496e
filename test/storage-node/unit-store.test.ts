import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { BLOCK_BYTES, openFileDisk } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { emptyLocation, UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { TartanError } from '../../wire/errors.js';
import { MIB, openStore, picture, readUnit } from './stores.js';
import { Client, IDENTITY, makeUnit, type UnitSpec } from './units.js';

t.test(
  'A unit is readable after it was acknowledged, byte for byte, also after a crash that lost all unsynced writes',
  async (t) => {
    const disk = new MemoryDisk(4 * MIB);
    const store = await openStore(disk);
    const client = new Client();
    const specs: UnitSpec[] = [
      { stripe: 0 },
      { stripe: 1, unit: 2 },
      { stripe: 2, stripeLength: 700 },
      { stripe: 2, unit: 1, stripeLength: 700 },
      { stripe: 2 ** 40, unitBytes: 65536 },
    ];
    const answers = await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))));
    t.same(
      answers,
      specs.map(() => Refusal.NONE),
    );
    t.equal(
      disk.syncs,
      5,
      'one for the first pointer, two for the superblocks, one for opening, one for all five units',
    );
    const again = await openStore(disk.crash());
    for (const spec of specs) t.same(await readUnit(again, spec), makeUnit(spec).payload, `stripe ${spec.stripe}`);
    t.equal(again.stats().units, specs.length);
  },
);

t.test('No unit is acknowledged before its sync has succeeded', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  let release = (): void => undefined;
  disk.faults.beforeSync = () =>
    new Promise<void>((resolve) => {
      release = resolve;
    });
  const client = new Client();
  const answer = client.append(store, makeUnit());
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  t.equal(client.answers.size, 0, 'written, not yet synced');
  t.equal(await readUnit(store, {}), undefined, 'and not readable');
  t.equal(store.inventory(1, 0, 10).units.length, 0);
  release();
  t.equal(await answer, Refusal.NONE);
});

t.test('What is queued while a batch is written goes together into the next, within its bounds', async (t) => {
  const disk = new MemoryDisk(8 * MIB);
  const store = await openStore(disk, { maxBatchUnits: 8, maxBatchBytes: 5 * 4096 });
  const client = new Client(),
    before = disk.writes;
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, stripe) => client.append(store, makeUnit({ stripe }))),
  );
  t.ok(answers.every((answer) => answer === Refusal.NONE));
  t.equal(disk.writes - before, 4, '20 units, 5 blocks of payload a batch');
});

t.test(
  'Headers that lie across two blocks, in batches with several header blocks, read back, also after a restart',
  async (t) => {
    const disk = new MemoryDisk(64 * MIB);
    let store = await openStore(disk);
    const client = new Client();
    const specs = Array.from({ length: 256 }, (_, stripe) => ({
      stripe,
      k: 8,
      m: 2,
      unit: stripe % 10,
      unitBytes: 512,
    }));
    t.ok(
      (await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))))).every(
        (answer) => answer === Refusal.NONE,
      ),
    );
    t.equal(store.stats().batches, 1);
    for (let round = 0; round < 2; round++) {
      const right = await Promise.all(
        specs.map(async (spec) => Buffer.compare((await readUnit(store, spec))!, makeUnit(spec).payload) === 0),
      );
      t.ok(right.every(Boolean));
      store = await openStore(disk.crash());
    }
  },
);

t.test('The same name again is acknowledged once the first copy is durable, and stored once', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  const both = await Promise.all([client.append(store, makeUnit()), client.append(store, makeUnit({ mark: 1 }))]);
  t.same(both, [Refusal.NONE, Refusal.NONE]);
  t.equal(await client.append(store, makeUnit()), Refusal.NONE);
  t.equal(store.stats().unitsStored, 1);
  t.equal(await client.append(store, makeUnit({ seed: 99 })), Refusal.NAME_CONFLICT);
  t.same(await readUnit(store, {}), makeUnit().payload, 'the first one stays');
});

t.test('A duplicate of a unit whose write fails is refused with it', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  disk.faults.beforeWrite = () => {
    throw new TartanError('ERR_DISK', 'no write');
  };
  t.same(await Promise.all([client.append(store, makeUnit()), client.append(store, makeUnit())]), [
    Refusal.DISK,
    Refusal.DISK,
  ]);
  disk.faults = {};
  t.equal(await readUnit(store, {}), undefined);
  t.ok(await store.probe(), 'the disk can be written again');
  t.equal(
    await client.append(store, makeUnit({ seed: 5 })),
    Refusal.NONE,
    'nothing of the failed one is left to conflict with',
  );
  const again = await openStore(disk.crash());
  t.same(await readUnit(again, {}), makeUnit({ seed: 5 }).payload);
});

t.test(
  'What a duplicate calls missing beyond what is held is durable before the duplicate is acknowledged',
  async (t) => {
    for (const pending of [false, true]) {
      const disk = new MemoryDisk(4 * MIB);
      const store = await openStore(disk);
      const client = new Client();
      const first = client.append(store, makeUnit({}));
      if (!pending) await first;
      let synced = false;
      disk.faults.beforeSync = () => {
        synced = true;
      };
      t.equal(await client.append(store, makeUnit({ missing: 0b100n, mapEpoch: 2 })), Refusal.NONE);
      t.ok(synced, 'a sync came before the acknowledgement');
      t.equal(store.inventory(1, 0, 10).units[0]!.missing, 0b100n);
      t.equal((await openStore(disk.crash())).inventory(1, 0, 10).units[0]!.missing, 0b100n, 'known after a crash');
      disk.faults.beforeSync = () => {
        t.fail('the same again needs no sync');
      };
      t.equal(await client.append(store, makeUnit({ missing: 0b100n, mapEpoch: 3 })), Refusal.NONE);
    }
  },
);

t.test(
  "A duplicate that calls more missing is refused when the first copy's write fails, though its own succeeds",
  async (t) => {
    const disk = new MemoryDisk(4 * MIB);
    const store = await openStore(disk, { maxBatchUnits: 1 });
    const client = new Client();
    let writes = 0;
    disk.faults.beforeWrite = () => {
      if (++writes === 1) throw new TartanError('ERR_DISK_FULL', 'no write');
    };
    t.same(await Promise.all([client.append(store, makeUnit()), client.append(store, makeUnit({ missing: 0b100n }))]), [
      Refusal.DISK_FULL,
      Refusal.DISK,
    ]);
    t.equal(writes, 2);
    t.equal(store.inventory(1, 0, 10).units.length, 0);
  },
);

t.test('A commit mark of 0, of a new owner that has not decided, frees nothing', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  await client.append(store, makeUnit({ counter: 1, seed: 1 }));
  await client.append(store, makeUnit({ counter: 2, seed: 2 }));
  await client.append(store, makeUnit({ stripe: 1, epoch: 2, counter: 1, mark: 0 }));
  t.same(
    store.inventory(1, 0, 10).units.map((unit) => [unit.stripe, unit.counter]),
    [
      [0, 2],
      [0, 1],
      [1, 1],
    ],
  );
  t.equal((await openStore(disk.crash())).inventory(1, 0, 10).units.length, 3);
  await client.append(store, makeUnit({ stripe: 2, epoch: 2, counter: 2, mark: 1 }));
  t.same(
    store.inventory(1, 0, 1).units.map((unit) => unit.counter),
    [2],
    'once it has decided, what survives is committed',
  );
});

t.test('A lower version is refused, a higher one goes beside the old, which goes when the mark passes', async (t) => {
  const store = await openStore(new MemoryDisk(4 * MIB));
  const client = new Client();
  t.equal(await client.append(store, makeUnit({ counter: 5, seed: 5 })), Refusal.NONE);
  t.equal(await client.append(store, makeUnit({ counter: 4, seed: 4 })), Refusal.STALE_VERSION);
  t.equal(await client.append(store, makeUnit({ counter: 7, seed: 7 })), Refusal.NONE);
  const out = emptyLocation();
  t.ok(store.lookup(1, 0, 0, 1, 6, out));
  t.equal(out.counter, 5, 'the highest at or below what was asked');
  t.equal(store.inventory(1, 0, 10).units.length, 2);
  t.equal(await client.append(store, makeUnit({ stripe: 1, counter: 8, mark: 6 })), Refusal.NONE);
  t.equal(store.inventory(1, 0, 10).units.length, 3, 'mark 6 is below 7: version 5 stays');
  t.equal(await client.append(store, makeUnit({ stripe: 2, counter: 9, mark: 7 })), Refusal.NONE);
  t.same(
    store.inventory(1, 0, 1).units.map((unit) => unit.counter),
    [7],
    'mark 7 frees version 5',
  );
  t.same(store.fileMark(1), { writerEpoch: 1, commitEpoch: 1, commitCounter: 7 });
  t.equal(store.stats().liveBytes, 3 * 4096);
});

t.test('A version is not freed while the newer one is not durable here', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  await client.append(store, makeUnit({ counter: 1 }));
  disk.faults.beforeWrite = () => {
    throw new TartanError('ERR_DISK', 'no write');
  };
  t.equal(await client.append(store, makeUnit({ counter: 2, mark: 2 })), Refusal.DISK);
  t.same(await readUnit(store, { counter: 1 }), makeUnit({ counter: 1 }).payload);
});

t.test('A fence refuses older writer epochs from the call on, and after a crash', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  const before = client.append(store, makeUnit({ stripe: 0, epoch: 3 }));
  const fenced = store.fence(1, 5);
  t.equal(
    await client.append(store, makeUnit({ stripe: 1, epoch: 4 })),
    Refusal.STALE_WRITER_EPOCH,
    'refused though the fence is not durable yet',
  );
  await fenced;
  t.equal(client.answers.size, 1, 'what was accepted before the fence has been settled when the fence is durable');
  t.equal(await before, Refusal.NONE);
  t.equal(await store.fence(1, 4), 5, 'a lower fence changes nothing, and learns so');
  await t.rejects(store.discard(1, 0, 4), { code: 'ERR_STALE_EPOCH' });
  t.equal(await store.fence(1, 5), 5);
  const again = await openStore(disk.crash());
  t.equal(again.fileMark(1).writerEpoch, 5);
  t.equal(await new Client().append(again, makeUnit({ stripe: 1, epoch: 4 })), Refusal.STALE_WRITER_EPOCH);
});

t.test('A header with a higher writer epoch raises the fence, also after a crash', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  await new Client().append(store, makeUnit({ stripe: 4, epoch: 9 }));
  t.equal(await new Client().append(store, makeUnit({ epoch: 8 })), Refusal.STALE_WRITER_EPOCH);
  const again = await openStore(disk.crash());
  t.equal(await new Client().append(again, makeUnit({ epoch: 8 })), Refusal.STALE_WRITER_EPOCH);
});

t.test('Discard drops lower epochs from a stripe on, deletion drops the file for ever, both durably', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  for (let stripe = 0; stripe < 6; stripe++) await client.append(store, makeUnit({ stripe, epoch: 1 }));
  await client.append(store, makeUnit({ stripe: 0, fileId: 2 }));
  await store.discard(1, 3, 2);
  t.same(
    store.inventory(1, 0, 10).units.map((unit) => unit.stripe),
    [0, 1, 2],
  );
  t.equal(await client.append(store, makeUnit({ stripe: 4, epoch: 1 })), Refusal.STALE_WRITER_EPOCH);
  t.equal(await client.append(store, makeUnit({ stripe: 4, epoch: 2 })), Refusal.NONE);
  const deleted = store.deleteFile(2);
  t.equal(
    await client.append(store, makeUnit({ stripe: 1, fileId: 2 })),
    Refusal.NO_UNIT,
    'refused while the deletion is on its way',
  );
  await deleted;
  await store.deleteFile(2);
  await t.rejects(store.fence(2, 7), { code: 'ERR_NO_UNIT' });
  const picturedBefore = picture(store, [1, 2]),
    live = store.stats().liveBytes;
  const again = await openStore(disk.crash());
  t.equal(picture(again, [1, 2]), picturedBefore);
  t.equal(again.stats().liveBytes, live);
  t.ok(again.isDeleted(2));
});

t.test('Missing units are in the inventory, from headers and from records, and survive a crash', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  await new Client().append(store, makeUnit({ missing: 0b010n, stripe: 7 }));
  await store.recordMissing(1, 7, 1, 1, 0b100n | (1n << 35n));
  t.equal(store.inventory(1, 0, 1).units[0]!.missing, 0b110n | (1n << 35n));
  await store.fence(1, 3);
  await t.rejects(store.recordMissing(1, 7, 1, 1, 1n), { code: 'ERR_STALE_EPOCH' }, 'an older owner records nothing');
  await store.recordMissing(1, 7, 1, 1, 1n, 3);
  const again = await openStore(disk.crash());
  t.equal(again.inventory(1, 7, 1).units[0]!.missing, 0b111n | (1n << 35n));
});

t.test('An inventory comes in whole stripes, ascending, whatever the order of arrival', async (t) => {
  const store = await openStore(new MemoryDisk(8 * MIB));
  const client = new Client();
  const order = [5, 1, 9, 3, 0, 2 ** 33, 7];
  await Promise.all(order.map((stripe) => client.append(store, makeUnit({ stripe }))));
  await client.append(store, makeUnit({ stripe: 3, counter: 2 }));
  const seen: number[] = [];
  for (let from = 0, more = true; more; ) {
    const page = store.inventory(1, from, 3);
    t.ok(page.units.length <= 3);
    seen.push(...page.units.map((unit) => unit.stripe));
    more = page.more;
    from = seen[seen.length - 1]! + 1;
  }
  t.same(seen, [0, 1, 3, 3, 5, 7, 9, 2 ** 33]);
});

t.test('A full log refuses units with DISK_FULL; reads, fences and a restart go on', async (t) => {
  const disk = new MemoryDisk(80 * BLOCK_BYTES);
  const store = await openStore(disk);
  const client = new Client();
  let stored = 0;
  for (let stripe = 0; ; stripe++) {
    const answer = await client.append(store, makeUnit({ stripe }));
    if (answer !== Refusal.NONE) {
      t.equal(answer, Refusal.DISK_FULL);
      break;
    }
    stored++;
  }
  t.ok(stored >= 18, `${stored} units of two blocks in 64: seven of the 16 segments are set aside`);
  const many = await Promise.all(
    Array.from({ length: 50 }, (_, i) => client.append(store, makeUnit({ stripe: 100 + i }))),
  );
  t.ok(many.every((answer) => answer === Refusal.DISK_FULL));
  t.same(await readUnit(store, { stripe: stored - 1 }), makeUnit({ stripe: stored - 1 }).payload);
  await store.fence(1, 8);
  const again = await openStore(disk.crash());
  t.equal(again.stats().units, stored);
  t.equal(again.fileMark(1).writerEpoch, 8);
  for (let i = 9; ; i++) {
    try {
      await again.fence(1, i);
    } catch (error) {
      t.match(error, { code: 'ERR_DISK_FULL' });
      break;
    }
  }
  await again.close();
  t.equal((await openStore(disk.crash())).stats().units, stored);
});

t.test('Many units queued at once never run past the end of the disk', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES);
  const store = await openStore(disk, { maxBatchUnits: 4, maxBatchBytes: 3 * BLOCK_BYTES });
  const client = new Client();
  const answers = await Promise.all(
    Array.from({ length: 300 }, (_, stripe) => client.append(store, makeUnit({ stripe }))),
  );
  const stored = answers.filter((answer) => answer === Refusal.NONE).length;
  t.same(new Set(answers), new Set([Refusal.NONE, Refusal.DISK_FULL]));
  t.equal((await openStore(disk.crash())).stats().units, stored);
});

t.test('A failed write refuses its batch only; a failed sync ends writing, never reading', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  await client.append(store, makeUnit({ stripe: 0 }));
  disk.faults.beforeWrite = () => {
    throw new TartanError('ERR_DISK_FULL', 'no space');
  };
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK_FULL);
  disk.faults = {};
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.NONE);
  disk.faults.beforeSync = () => {
    throw new TartanError('ERR_DISK', 'no sync');
  };
  t.equal(await client.append(store, makeUnit({ stripe: 2 })), Refusal.DISK);
  disk.faults = {};
  t.equal(await client.append(store, makeUnit({ stripe: 3 })), Refusal.DISK, 'a sync is never tried again');
  await t.rejects(store.fence(1, 4), { code: 'ERR_DISK' });
  t.ok(store.stats().failed);
  t.same(await readUnit(store, { stripe: 1 }), makeUnit({ stripe: 1 }).payload);
  await store.close();
});

t.test('A store that discards says so: units are known by name and never read', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk, { durability: 'discard' });
  const client = new Client(),
    writes = disk.writes;
  t.equal(await client.append(store, makeUnit()), Refusal.NONE);
  t.equal(await client.append(store, makeUnit()), Refusal.NONE);
  t.equal(await client.append(store, makeUnit({ seed: 4 })), Refusal.NAME_CONFLICT);
  t.equal(disk.writes, writes);
  t.equal(await readUnit(store, {}), undefined);
  t.equal(store.stats().durability, 'discard');
  const real = await openStore(new MemoryDisk(4 * MIB));
  await client.append(real, makeUnit());
  const held = new MemoryDisk(4 * MIB);
  const holder = await openStore(held);
  await client.append(holder, makeUnit());
  await t.rejects(openStore(held.crash(), { durability: 'discard' }), { code: 'ERR_ARGUMENT' });
});

t.test(
  'A file is a disk: create, store, reopen, read; a directory, a missing and an empty file are told apart',
  async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'tartan-store-'));
    t.teardown(() => rm(folder, { recursive: true }));
    const path = join(folder, 'store');
    let store = await UnitStore.open({
      ...IDENTITY,
      disk: await openFileDisk(path, { create: true, sizeBytes: 16 * MIB + 5 }),
      random: Math.random,
    });
    const client = new Client();
    const specs = Array.from({ length: 40 }, (_, stripe) => ({ stripe, unitBytes: 65536 }));
    t.ok(
      (await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))))).every(
        (answer) => answer === Refusal.NONE,
      ),
    );
    await store.close();
    store = await UnitStore.open({ ...IDENTITY, disk: await openFileDisk(path), random: Math.random });
    for (const spec of specs) t.ok(Buffer.compare((await readUnit(store, spec))!, makeUnit(spec).payload) === 0);
    await store.close();
    t.equal((await readFile(path)).subarray(0, 8).toString(), 'TARTANST');
    await t.rejects(openFileDisk(folder), { code: 'ERR_IS_DIRECTORY' });
    await t.rejects(openFileDisk(join(folder, 'none')), { code: 'ERR_NOT_FOUND' });
    await writeFile(join(folder, 'empty'), '');
    await t.rejects(openFileDisk(join(folder, 'empty')), { code: 'ERR_ARGUMENT' });
    const short = await openFileDisk(path);
    const handle = await open(path, 'r+');
    await handle.truncate(BLOCK_BYTES);
    await handle.close();
    await t.rejects(short.read(new Uint8Array(2 * BLOCK_BYTES), 0), { code: 'ERR_DISK' });
    await short.close();
  },
);
