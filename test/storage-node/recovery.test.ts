import fc from 'fast-check';
import t from 'tap';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { LOG_FIRST_BLOCK } from '../../storage-node/superblock.js';
import { emptyLocation, type UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { TartanError } from '../../wire/errors.js';
import { compareVersions } from '../../wire/unit-header.js';
import { MIB, openStore, readUnit } from './stores.js';
import { Client, makeUnit } from './units.js';

t.test('A torn batch is dropped and its place written anew; what was acknowledged before it stays', async (t) => {
  for (const [name, survives] of [
    ['header lost', (_: number, block: number) => block !== LOG_FIRST_BLOCK + 2],
    ['payload lost', (_: number, block: number) => block !== LOG_FIRST_BLOCK + 3],
    ['all lost', () => false],
  ] as const) {
    const disk = new MemoryDisk(4 * MIB);
    const store = await openStore(disk);
    await new Client().append(store, makeUnit({ stripe: 0 }));
    disk.faults.beforeSync = () => new Promise<void>(() => undefined);
    void new Client().append(store, makeUnit({ stripe: 1 }));
    await new Promise((resolve) => setImmediate(resolve));
    const crashed = disk.crash(survives);
    let again = await openStore(crashed);
    t.same(await readUnit(again, { stripe: 0 }), makeUnit({ stripe: 0 }).payload, name);
    t.equal(await readUnit(again, { stripe: 1 }), undefined, name);
    t.equal(await new Client().append(again, makeUnit({ stripe: 2 })), Refusal.NONE);
    again = await openStore(crashed.crash());
    t.same(
      again.inventory(1, 0, 10).units.map((unit) => unit.stripe),
      [0, 2],
      `${name}: and it does not come back`,
    );
    t.equal(await new Client().append(again, makeUnit({ stripe: 1, seed: 3 })), Refusal.NONE, 'the name is free');
  }
});

t.test('A crash while torn units are being voided changes nothing: the next opening finds them again', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  disk.faults.beforeSync = () => new Promise<void>(() => undefined);
  for (let stripe = 0; stripe < 3; stripe++) void new Client().append(store, makeUnit({ stripe }));
  await new Promise((resolve) => setImmediate(resolve));
  const crashed = disk.crash((_, block) => block !== LOG_FIRST_BLOCK + 2); // the second payload is lost
  crashed.faults.beforeWrite = () => {
    throw new TartanError('ERR_DISK', 'no write');
  };
  await t.rejects(openStore(crashed), { code: 'ERR_DISK' });
  const again = await openStore(crashed.crash());
  t.match(again.recovery, { batches: 1, units: 2, checked: 3, torn: 1 });
  t.same(
    again.inventory(1, 0, 10).units.map((unit) => unit.stripe),
    [0, 2],
  );
});

t.test('Whatever bytes of a disk change, opening tells or works, and no unit is held under a wrong name', async (t) => {
  const disk = new MemoryDisk(2 * MIB);
  const store = await openStore(disk);
  // Each batch is one block of headers and five of payload; the sixth begins the second segment.
  const starts: number[] = [];
  for (let batch = 0; batch < 6; batch++) {
    await Promise.all(
      Array.from({ length: 5 }, (_, i) => new Client().append(store, makeUnit({ stripe: batch * 5 + i }))),
    );
    starts.push((store['log'].position.block - 6) * BLOCK_BYTES);
  }
  const used = starts[5]! + 6 * BLOCK_BYTES;
  let opened = 0,
    refused = 0;
  // Anywhere, or (half of them) where the headers of the six batches lie.
  const header = fc
    .tuple(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 543 }))
    .map(([batch, byte]) => starts[batch]! + byte);
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.oneof(fc.integer({ min: 0, max: used - 1 }), header), fc.integer({ min: 1, max: 255 })), {
        minLength: 1,
        maxLength: 4,
      }),
      async (changes) => {
        const changed = disk.crash();
        for (const [position, bits] of changes)
          changed.corrupt(position, (bytes) => {
            bytes[0]! ^= bits;
          });
        let found: UnitStore;
        try {
          found = await openStore(changed);
        } catch (error) {
          if (!(error instanceof TartanError)) throw error;
          refused++;
          return;
        }
        opened++;
        // What can't be known: whether damaged batches at the very end had been acknowledged.
        const damaged = new Set(
          changes.map(([position]) => starts.findIndex((start) => position >= start && position < start + 544)),
        );
        let intact = 6;
        while (damaged.has(intact - 1)) intact--;
        if (found.stats().units < 5 * (intact - 1))
          throw new Error(`${found.stats().units} units are left of ${intact} whole batches, without a word`);
        for (const { stripe, unit, payloadCrc } of found.inventory(1, 0, 1000).units) {
          if (payloadCrc !== makeUnit({ stripe, unit }).header.payloadCrc)
            throw new Error(`stripe ${stripe} is held with another CRC`);
        }
        if ((await new Client().append(found, makeUnit({ stripe: 99 }))) !== Refusal.NONE)
          throw new Error('no unit can be stored any more');
      },
    ),
    { numRuns: 200 },
  );
  t.ok(opened > 20 && refused > 10, `${opened} opened, ${refused} refused`);
});

t.test(
  'Damaged headers of the log are found while the store is open, and the next opening does not need them',
  async (t) => {
    for (const [what, damage] of [
      ["a batch's own words", 20],
      ['the last byte of its entries', 540],
    ] as const) {
      for (const batch of [0, 3, 5]) {
        const disk = new MemoryDisk(2 * MIB),
          store = await openStore(disk),
          starts: number[] = [];
        for (let i = 0; i < 6; i++) {
          await Promise.all(
            Array.from({ length: 5 }, (_, unit) => new Client().append(store, makeUnit({ stripe: i * 5 + unit }))),
          );
          starts.push((store['log'].position.block - 6) * BLOCK_BYTES);
        }
        t.equal(await store.checkTail(), true, 'all holds');
        t.equal(store.stats().checkpoints, 0, 'and nothing is done about it');
        disk.corrupt(starts[batch]! + damage, (bytes) => {
          bytes[0]! ^= 0x10;
        });
        const unheeded = await openStore(disk.snapshot()).then(
          (opened) => opened.stats().units,
          () => -1,
        );
        t.ok(
          unheeded < 30,
          `${what}, batch ${batch}: opened as it ` +
            `is, ${unheeded < 0 ? 'the store is refused' : 'the end is taken for torn'}`,
        );
        t.equal(await store.checkTail(), false);
        await store.drained();
        const again = await openStore(disk.crash());
        t.equal(again.stats().units, 30);
        t.equal(await again.checkTail(), true);
      }
    }
  },
);

t.test('A tail that survived whole is kept, and synced before a duplicate is acknowledged', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  disk.faults.beforeSync = () => new Promise<void>(() => undefined);
  void new Client().append(store, makeUnit());
  await new Promise((resolve) => setImmediate(resolve));
  const restarted = disk.restart(); // the process died, the machine did not
  const again = await openStore(restarted);
  t.equal(await new Client().append(again, makeUnit()), Refusal.NONE);
  t.equal(again.stats().unitsStored, 0);
  const third = await openStore(restarted.crash());
  t.same(await readUnit(third, {}), makeUnit().payload);
});

t.test('A stale batch behind the new tail is not taken for its successor', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const first = await openStore(disk, { durability: 'volatile' });
  for (let stripe = 0; stripe < 3; stripe++) await new Client().append(first, makeUnit({ stripe }));
  // Batch 2 (blocks 18, 19) is lost, batch 3 (blocks 20, 21) is not.
  const crashed = disk.crash((_, block) => block !== 18 && block !== 19);
  const second = await openStore(crashed);
  t.same(
    second.inventory(1, 0, 10).units.map((unit) => unit.stripe),
    [0],
  );
  await new Client().append(second, makeUnit({ stripe: 10 }));
  const third = await openStore(crashed.crash());
  t.same(
    third.inventory(1, 0, 10).units.map((unit) => unit.stripe),
    [0, 10],
    'stripe 2 of the old batch 3 stays away',
  );
});

t.test('Damage on disk is told apart: a batch amid the log stops the opening, a payload shows when read', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  for (let stripe = 0; stripe < 3; stripe++) await new Client().append(store, makeUnit({ stripe }));
  disk.corrupt((LOG_FIRST_BLOCK + 1) * BLOCK_BYTES + 100, (bytes) => {
    bytes[0]! ^= 1;
  });
  t.notSame(await readUnit(store, { stripe: 0 }), makeUnit({ stripe: 0 }).payload, 'the reader checks the CRC');
  const location = emptyLocation();
  store.lookup(1, 0, 0, 1, 1, location);
  store.markDamaged(1, 0, 0, location);
  t.equal(
    await new Client().append(store, makeUnit({ stripe: 0 })),
    Refusal.NONE,
    'the same name again is stored anew',
  );
  t.same(await readUnit(store, { stripe: 0 }), makeUnit({ stripe: 0 }).payload);
  t.equal(store.stats().damaged, 1);
  const again = await openStore(disk.crash());
  t.same(
    await readUnit(again, { stripe: 0 }),
    makeUnit({ stripe: 0 }).payload,
    'and the later copy counts after a restart',
  );

  const cut = disk.crash();
  cut.corrupt((LOG_FIRST_BLOCK + 2) * BLOCK_BYTES + 20, (bytes) => {
    bytes[0]! ^= 1;
  });
  await t.rejects(
    openStore(cut),
    { code: 'ERR_CHECKSUM', message: /batch 2 at block 18 is damaged/ },
    'amid the log: what follows was acknowledged',
  );
});

t.test('A store that closed in good order is opened without checking payloads', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk, { durability: 'volatile' });
  for (let stripe = 0; stripe < 5; stripe++) await new Client().append(store, makeUnit({ stripe }));
  t.equal(disk.unsyncedBlocks, 10, 'a volatile store does not sync');
  await store.close();
  await store.close();
  t.equal(await new Client().append(store, makeUnit()), Refusal.CLOSED);
  const again = await openStore(disk.crash());
  t.match(again.recovery, { units: 5, checked: 0, torn: 0 });
  await again.close();
});

t.test('A foreign store, a newer format and a disk with something else are refused and left alone', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  await (await openStore(disk)).close();
  await t.rejects(openStore(disk.crash(), { clusterUuid: 'ff112233445566778899aabbccddeeff' }), {
    code: 'ERR_FOREIGN_STORE',
  });
  await t.rejects(openStore(disk.crash(), { nodeId: 'n2' }), { code: 'ERR_FOREIGN_STORE', message: /'n1'.*'n2'/ });
  const newer = disk.crash();
  for (const block of [0, 8])
    newer.corrupt(block * BLOCK_BYTES, (bytes) => {
      bytes[8] = 3;
      reseal(bytes);
    });
  await t.rejects(openStore(newer), { code: 'ERR_STORE_VERSION', message: /version 3.*version 2/ });
  for (const block of [0, 8])
    newer.corrupt(block * BLOCK_BYTES, (bytes) => {
      bytes[8] = 1;
      reseal(bytes);
    });
  await t.rejects(openStore(newer), { code: 'ERR_STORE_VERSION', message: /version 1, which nothing converts/ });
  const other = new MemoryDisk(MIB);
  for (const block of [0, 8])
    other.corrupt(block * BLOCK_BYTES, (bytes) => {
      bytes.fill(7);
    });
  await t.rejects(openStore(other), { code: 'ERR_FOREIGN_STORE' });
  for (const at of [1024, 512, 65536 + 64, 5 * BLOCK_BYTES]) {
    const fileSystem = new MemoryDisk(MIB);
    fileSystem.corrupt(at, (bytes) => {
      bytes[0] = 0x53;
    });
    await t.rejects(openStore(fileSystem), { code: 'ERR_FOREIGN_STORE' }, `something at byte ${at}`);
    t.equal(fileSystem.writes, 0, 'and nothing is written over it');
  }
  await t.rejects(openStore(new MemoryDisk(8 * BLOCK_BYTES)), { code: 'ERR_DISK' });
});

t.test('A store whose making was cut off is made anew', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  await openStore(disk);
  const cut = new MemoryDisk(4 * MIB),
    bytes = new Uint8Array(BLOCK_BYTES);
  await disk.read(bytes, 0);
  cut.corrupt(0, (block) => {
    block.set(bytes.subarray(0, 300));
  });
  const store = await openStore(cut);
  t.equal(await new Client().append(store, makeUnit()), Refusal.NONE);
  t.equal((await openStore(cut.crash())).stats().units, 1);
});

t.test('One bad superblock is mended from the other', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  await new Client().append(store, makeUnit());
  for (const block of [0, 8]) {
    const damaged = disk.crash();
    damaged.corrupt(block * BLOCK_BYTES, (bytes) => {
      bytes[20]! ^= 0xff;
    });
    t.equal((await openStore(damaged)).stats().units, 1);
    damaged.corrupt((8 - block) * BLOCK_BYTES, (bytes) => {
      bytes[20]! ^= 0xff;
    });
    t.equal((await openStore(damaged.crash())).stats().units, 1, 'the other copy had been rewritten');
  }
});

/** What the store must do, in the simplest way: every unit ever accepted, in a list. */
class DumbStore {
  units: { file: number; stripe: number; epoch: number; counter: number; seed: number }[] = [];
  fences = new Map<number, number>();
  marks = new Map<number, [number, number]>();
  deleted = new Set<number>();

  /** Whether a unit would be stored, and not be a duplicate or refused. */
  takes(file: number, stripe: number, epoch: number, counter: number): boolean {
    return (
      !this.deleted.has(file) &&
      epoch >= (this.fences.get(file) ?? 0) &&
      !this.units.some(
        (unit) =>
          unit.file === file &&
          unit.stripe === stripe &&
          compareVersions(unit.epoch, unit.counter, epoch, counter) >= 0,
      )
    );
  }

  append(file: number, stripe: number, epoch: number, counter: number, seed: number, mark: number): number {
    if (this.deleted.has(file)) return Refusal.NO_UNIT;
    if (epoch < (this.fences.get(file) ?? 0)) return Refusal.STALE_WRITER_EPOCH;
    this.fences.set(file, epoch);
    const [markEpoch, markCounter] = this.marks.get(file) ?? [0, 0];
    if (mark > 0 && compareVersions(epoch, mark, markEpoch, markCounter) > 0) this.marks.set(file, [epoch, mark]);
    this.free(file);
    const here = this.units.filter((unit) => unit.file === file && unit.stripe === stripe);
    const same = here.find((unit) => unit.epoch === epoch && unit.counter === counter);
    if (same !== undefined) return same.seed === seed ? Refusal.NONE : Refusal.NAME_CONFLICT;
    if (here.some((unit) => compareVersions(unit.epoch, unit.counter, epoch, counter) > 0))
      return Refusal.STALE_VERSION;
    this.units.push({ file, stripe, epoch, counter, seed });
    this.free(file);
    return Refusal.NONE;
  }

  free(file: number): void {
    const [epoch, counter] = this.marks.get(file) ?? [0, 0];
    this.units = this.units.filter(
      (unit) =>
        unit.file !== file ||
        !this.units.some(
          (other) =>
            other.file === file &&
            other.stripe === unit.stripe &&
            compareVersions(other.epoch, other.counter, epoch, counter) <= 0 &&
            compareVersions(unit.epoch, unit.counter, other.epoch, other.counter) < 0,
        ),
    );
  }

  held(file: number): string[] {
    return this.units
      .filter((unit) => unit.file === file)
      .map((unit) => `${unit.stripe}:${unit.epoch}.${unit.counter}`)
      .sort();
  }
}

t.test('Whatever is done to it, and wherever it crashes, the store does what the dumb one does', async (t) => {
  const file = fc.integer({ min: 1, max: 2 }),
    stripe = fc.integer({ min: 0, max: 3 }),
    epoch = fc.integer({ min: 1, max: 4 });
  const step = fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({
        op: fc.constant('append' as const),
        file,
        stripe,
        epoch,
        counter: fc.integer({ min: 1, max: 5 }),
        seed: fc.integer({ min: 0, max: 1 }),
        mark: fc.integer({ min: 0, max: 5 }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('fence' as const), file, epoch }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('discard' as const), file, stripe, epoch }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('delete' as const), file: fc.constant(2) }) },
    {
      weight: 2,
      arbitrary: fc.record({
        op: fc.constant('crash' as const),
        survivors: fc.array(fc.boolean(), { maxLength: 12 }),
        torn: fc.boolean(),
      }),
    },
  );
  let crashes = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      let disk = new MemoryDisk(4 * MIB);
      let store = await openStore(disk);
      const dumb = new DumbStore();
      for (const s of steps) {
        if (s.op === 'append') {
          // A mark is durable with the unit that carries it: one that is not stored raises it for this life only.
          const mark = dumb.takes(s.file, s.stripe, s.epoch, s.counter) ? s.mark : 0;
          const unit = makeUnit({
            fileId: s.file,
            stripe: s.stripe,
            epoch: s.epoch,
            counter: s.counter,
            seed: s.seed,
            mark,
          });
          const expected = dumb.append(s.file, s.stripe, s.epoch, s.counter, s.seed, mark);
          const answer = await new Client().append(store, unit);
          if (answer !== expected) throw new Error(`${JSON.stringify(s)}: ${answer}, expected ${expected}`);
        } else if (s.op === 'fence' || s.op === 'discard') {
          const lower = s.epoch < (dumb.fences.get(s.file) ?? 0);
          const stale = dumb.deleted.has(s.file) || (s.op === 'discard' && lower);
          const done = await (s.op === 'fence'
            ? store.fence(s.file, s.epoch)
            : store.discard(s.file, s.stripe, s.epoch)
          ).then(
            () => true,
            () => false,
          );
          if (done === stale) throw new Error(`${JSON.stringify(s)}: done ${done}, stale ${stale}`);
          if (stale || lower) continue;
          dumb.fences.set(s.file, s.epoch);
          if (s.op === 'discard')
            dumb.units = dumb.units.filter(
              (unit) => unit.file !== s.file || unit.stripe < s.stripe || unit.epoch >= s.epoch,
            );
        } else if (s.op === 'delete') {
          await store.deleteFile(s.file);
          dumb.deleted.add(s.file);
          dumb.units = dumb.units.filter((unit) => unit.file !== s.file);
        } else {
          crashes++;
          // A unit of a third file may be on its way when the power goes; it must be there wholly or not at all.
          if (s.torn) {
            disk.faults.beforeSync = () => new Promise<void>(() => undefined);
            void new Client().append(store, makeUnit({ fileId: 3, stripe: crashes, unitBytes: 16384 }));
            await new Promise((resolve) => setImmediate(resolve));
          }
          disk = disk.crash((index) => s.survivors[index] ?? false);
          store = await openStore(disk);
          for (const { stripe: at } of store.inventory(3, 0, 1000).units) {
            const bytes = await readUnit(store, { fileId: 3, stripe: at });
            if (
              bytes === undefined ||
              Buffer.compare(bytes, makeUnit({ fileId: 3, stripe: at, unitBytes: 16384 }).payload) !== 0
            )
              throw new Error('a torn unit is held');
          }
        }
        for (const id of [1, 2]) {
          const held = store
            .inventory(id, 0, 1000)
            .units.map((unit) => `${unit.stripe}:${unit.writerEpoch}.${unit.counter}`)
            .sort();
          if (JSON.stringify(held) !== JSON.stringify(dumb.held(id)))
            throw new Error(
              `after ${JSON.stringify(s)} file ${id}: ${held.join(' ')}; expected ${dumb.held(id).join(' ')}`,
            );
        }
      }
      for (const unit of dumb.units) {
        const bytes = await readUnit(store, {
          fileId: unit.file,
          stripe: unit.stripe,
          epoch: unit.epoch,
          counter: unit.counter,
        });
        const expected = makeUnit({
          fileId: unit.file,
          stripe: unit.stripe,
          epoch: unit.epoch,
          counter: unit.counter,
          seed: unit.seed,
        }).payload;
        if (bytes === undefined || Buffer.compare(bytes, expected) !== 0)
          throw new Error(`wrong bytes of ${JSON.stringify(unit)}`);
      }
    }),
    { numRuns: 150 },
  );
  t.ok(crashes > 50, `${crashes} crashes`);
});

/** Makes the CRC of a changed superblock right again. */
function reseal(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 512);
  let state = 0xffffffff;
  for (let i = 0; i < 508; i++) {
    state ^= bytes[i]!;
    for (let bit = 0; bit < 8; bit++) state = state & 1 ? (state >>> 1) ^ 0x82f63b78 : state >>> 1;
  }
  view.setUint32(508, ~state >>> 0, true);
}
