import fc from 'fast-check';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { BLOCK_BYTES, openFileDisk } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { LOG_FIRST_BLOCK } from '../../storage-node/superblock.js';
import { emptyLocation, UnitStore, type UnitStoreOptions } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { TartanError } from '../../wire/errors.js';
import { compareVersions, decodeHeader } from '../../wire/unit-header.js';
import { Client, IDENTITY, makeUnit, randomFrom, type UnitSpec } from './units.js';

const MIB = 1 << 20;
let salt = 1;
/** Each opening gets another salt, as in real life. */
function openStore(disk: MemoryDisk, options: Partial<UnitStoreOptions> = {}): Promise<UnitStore> {
  return UnitStore.open({ ...IDENTITY, disk, random: randomFrom(salt++), ...options });
}

async function readUnit(store: UnitStore, spec: UnitSpec): Promise<Uint8Array | undefined> {
  const { fileId = 1, stripe = 0, unit = 0, epoch = 1, counter = 1 } = spec;
  const location = emptyLocation();
  if (!store.lookupExact(fileId, stripe, unit, epoch, counter, location)) return undefined;
  const header = new Uint8Array(2 * BLOCK_BYTES), payload = new Uint8Array(4 * MIB);
  await store.read(location, header, payload);
  const found = decodeHeader(new Uint32Array(header.buffer, location.headerByte, location.headerBytes >> 2), 0);
  if (found.fileId !== fileId || found.stripe !== stripe || found.unit !== unit || found.writerEpoch !== epoch || found.counter !== counter || found.payloadCrc !== location.payloadCrc) {
    throw new Error('the header is not where the index says');
  }
  return payload.slice(0, location.unitLength);
}

/** The store's state as text, to compare two of them. */
function picture(store: UnitStore, files: number[]): string {
  return JSON.stringify(files.map((id) => [id, store.fileMark(id).writerEpoch, store.inventory(id, 0, 1e6).units]), (_, value: unknown) => typeof value === 'bigint' ? value.toString() : value);
}

t.test('A unit is readable after it was acknowledged, byte for byte, also after a crash that lost all unsynced writes', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  const specs: UnitSpec[] = [{ stripe: 0 }, { stripe: 1, unit: 2 }, { stripe: 2, stripeLength: 700 }, { stripe: 2, unit: 1, stripeLength: 700 }, { stripe: 2 ** 40, unitBytes: 65536 }];
  const answers = await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))));
  t.same(answers, specs.map(() => Refusal.NONE));
  t.equal(disk.syncs, 4, 'two for the superblocks, one for opening, one for all five units');
  const again = await openStore(disk.crash());
  for (const spec of specs) t.same(await readUnit(again, spec), makeUnit(spec).payload, `stripe ${spec.stripe}`);
  t.equal(again.stats().units, specs.length);
});

t.test('No unit is acknowledged before its sync has succeeded', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  let release = (): void => undefined;
  disk.faults.beforeSync = () => new Promise<void>((resolve) => { release = resolve; });
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
  const client = new Client(), before = disk.writes;
  const answers = await Promise.all(Array.from({ length: 20 }, (_, stripe) => client.append(store, makeUnit({ stripe }))));
  t.ok(answers.every((answer) => answer === Refusal.NONE));
  t.equal(disk.writes - before, 4, '20 units, 5 blocks of payload a batch');
});

t.test('Headers that lie across two blocks, in batches with several header blocks, read back, also after a restart', async (t) => {
  const disk = new MemoryDisk(8 * MIB);
  let store = await openStore(disk);
  const client = new Client();
  const specs = Array.from({ length: 256 }, (_, stripe) => ({ stripe, k: 8, m: 2, unit: stripe % 10, unitBytes: 512 }));
  t.ok((await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))))).every((answer) => answer === Refusal.NONE));
  t.equal(store.stats().batches, 1);
  for (let round = 0; round < 2; round++) {
    const right = await Promise.all(specs.map(async (spec) => Buffer.compare((await readUnit(store, spec))!, makeUnit(spec).payload) === 0));
    t.ok(right.every(Boolean));
    store = await openStore(disk.crash());
  }
});

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
  disk.faults.beforeWrite = () => { throw new TartanError('ERR_DISK', 'no write'); };
  t.same(await Promise.all([client.append(store, makeUnit()), client.append(store, makeUnit())]), [Refusal.DISK, Refusal.DISK]);
  disk.faults = {};
  t.equal(await readUnit(store, {}), undefined);
  t.equal(await client.append(store, makeUnit({ seed: 5 })), Refusal.NONE, 'nothing of the failed one is left to conflict with');
  const again = await openStore(disk.crash());
  t.same(await readUnit(again, {}), makeUnit({ seed: 5 }).payload);
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
  t.same(store.inventory(1, 0, 1).units.map((unit) => unit.counter), [7], 'mark 7 frees version 5');
  t.same(store.fileMark(1), { writerEpoch: 1, commitEpoch: 1, commitCounter: 7 });
  t.equal(store.stats().liveBytes, 3 * 4096);
});

t.test('A version is not freed while the newer one is not durable here', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  await client.append(store, makeUnit({ counter: 1 }));
  disk.faults.beforeWrite = () => { throw new TartanError('ERR_DISK', 'no write'); };
  t.equal(await client.append(store, makeUnit({ counter: 2, mark: 2 })), Refusal.DISK);
  t.same(await readUnit(store, { counter: 1 }), makeUnit({ counter: 1 }).payload);
});

t.test('A fence refuses older writer epochs from the call on, and after a crash', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  const before = client.append(store, makeUnit({ stripe: 0, epoch: 3 }));
  const fenced = store.fence(1, 5);
  t.equal(await client.append(store, makeUnit({ stripe: 1, epoch: 4 })), Refusal.STALE_WRITER_EPOCH, 'refused though the fence is not durable yet');
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
  t.same(store.inventory(1, 0, 10).units.map((unit) => unit.stripe), [0, 1, 2]);
  t.equal(await client.append(store, makeUnit({ stripe: 4, epoch: 1 })), Refusal.STALE_WRITER_EPOCH);
  t.equal(await client.append(store, makeUnit({ stripe: 4, epoch: 2 })), Refusal.NONE);
  const deleted = store.deleteFile(2);
  t.equal(await client.append(store, makeUnit({ stripe: 1, fileId: 2 })), Refusal.NO_UNIT, 'refused while the deletion is on its way');
  await deleted;
  await store.deleteFile(2);
  await t.rejects(store.fence(2, 7), { code: 'ERR_NO_UNIT' });
  const picturedBefore = picture(store, [1, 2]), live = store.stats().liveBytes;
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
  for (let from = 0, more = true; more;) {
    const page = store.inventory(1, from, 3);
    t.ok(page.units.length <= 3);
    seen.push(...page.units.map((unit) => unit.stripe));
    more = page.more;
    from = seen[seen.length - 1]! + 1;
  }
  t.same(seen, [0, 1, 3, 3, 5, 7, 9, 2 ** 33]);
});

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
    t.same(again.inventory(1, 0, 10).units.map((unit) => unit.stripe), [0, 2], `${name}: and it does not come back`);
    t.equal(await new Client().append(again, makeUnit({ stripe: 1, seed: 3 })), Refusal.NONE, 'the name is free');
  }
});

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
  t.same(second.inventory(1, 0, 10).units.map((unit) => unit.stripe), [0]);
  await new Client().append(second, makeUnit({ stripe: 10 }));
  const third = await openStore(crashed.crash());
  t.same(third.inventory(1, 0, 10).units.map((unit) => unit.stripe), [0, 10], 'stripe 2 of the old batch 3 stays away');
});

t.test('Damage on disk is told apart: a batch header ends the log, a unit header costs that unit, a payload shows when read', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  for (let stripe = 0; stripe < 3; stripe++) await new Client().append(store, makeUnit({ stripe }));
  disk.corrupt((LOG_FIRST_BLOCK + 1) * BLOCK_BYTES + 100, (bytes) => { bytes[0]! ^= 1; });
  t.notSame(await readUnit(store, { stripe: 0 }), makeUnit({ stripe: 0 }).payload, 'the reader checks the CRC');
  const location = emptyLocation();
  store.lookup(1, 0, 0, 1, 1, location);
  store.markDamaged(1, 0, 0, location);
  t.equal(await new Client().append(store, makeUnit({ stripe: 0 })), Refusal.NONE, 'the same name again is stored anew');
  t.same(await readUnit(store, { stripe: 0 }), makeUnit({ stripe: 0 }).payload);
  t.equal(store.stats().damaged, 1);
  const again = await openStore(disk.crash());
  t.same(await readUnit(again, { stripe: 0 }), makeUnit({ stripe: 0 }).payload, 'and the later copy counts after a restart');

  const cut = disk.crash();
  cut.corrupt((LOG_FIRST_BLOCK + 2) * BLOCK_BYTES + 20, (bytes) => { bytes[0]! ^= 1; });
  t.equal((await openStore(cut)).recovery.batches, 1);
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
  await t.rejects(openStore(disk.crash(), { clusterUuid: 'ff112233445566778899aabbccddeeff' }), { code: 'ERR_FOREIGN_STORE' });
  await t.rejects(openStore(disk.crash(), { nodeId: 'n2' }), { code: 'ERR_FOREIGN_STORE', message: /'n1'.*'n2'/ });
  const newer = disk.crash();
  for (const block of [0, 8]) newer.corrupt(block * BLOCK_BYTES, (bytes) => { bytes[8] = 2; reseal(bytes); });
  await t.rejects(openStore(newer), { code: 'ERR_STORE_VERSION', message: /version 2.*version 1/ });
  const other = new MemoryDisk(MIB);
  for (const block of [0, 8]) other.corrupt(block * BLOCK_BYTES, (bytes) => { bytes.fill(7); });
  await t.rejects(openStore(other), { code: 'ERR_FOREIGN_STORE' });
  for (const at of [1024, 512, 65536 + 64, 5 * BLOCK_BYTES]) {
    const fileSystem = new MemoryDisk(MIB);
    fileSystem.corrupt(at, (bytes) => { bytes[0] = 0x53; });
    await t.rejects(openStore(fileSystem), { code: 'ERR_FOREIGN_STORE' }, `something at byte ${at}`);
    t.equal(fileSystem.writes, 0, 'and nothing is written over it');
  }
  await t.rejects(openStore(new MemoryDisk(8 * BLOCK_BYTES)), { code: 'ERR_DISK' });
});

t.test('A store whose making was cut off is made anew', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  await openStore(disk);
  const cut = new MemoryDisk(4 * MIB), bytes = new Uint8Array(BLOCK_BYTES);
  await disk.read(bytes, 0);
  cut.corrupt(0, (block) => { block.set(bytes.subarray(0, 300)); });
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
    damaged.corrupt(block * BLOCK_BYTES, (bytes) => { bytes[20]! ^= 0xff; });
    t.equal((await openStore(damaged)).stats().units, 1);
    damaged.corrupt((8 - block) * BLOCK_BYTES, (bytes) => { bytes[20]! ^= 0xff; });
    t.equal((await openStore(damaged.crash())).stats().units, 1, 'the other copy had been rewritten');
  }
});

t.test('A full log refuses units with DISK_FULL; reads, fences and a restart go on', async (t) => {
  const disk = new MemoryDisk(80 * BLOCK_BYTES);
  const store = await openStore(disk);
  const client = new Client();
  let stored = 0;
  for (let stripe = 0; ; stripe++) {
    const answer = await client.append(store, makeUnit({ stripe }));
    if (answer !== Refusal.NONE) { t.equal(answer, Refusal.DISK_FULL); break; }
    stored++;
  }
  t.ok(stored >= 28, `${stored} units of two blocks in 64`);
  const many = await Promise.all(Array.from({ length: 50 }, (_, i) => client.append(store, makeUnit({ stripe: 100 + i }))));
  t.ok(many.every((answer) => answer === Refusal.DISK_FULL));
  t.same(await readUnit(store, { stripe: stored - 1 }), makeUnit({ stripe: stored - 1 }).payload);
  await store.fence(1, 8);
  const again = await openStore(disk.crash());
  t.equal(again.stats().units, stored);
  t.equal(again.fileMark(1).writerEpoch, 8);
  for (let i = 9; ; i++) {
    try { await again.fence(1, i); } catch (error) { t.match(error, { code: 'ERR_DISK_FULL' }); break; }
  }
  await again.close();
  t.equal((await openStore(disk.crash())).stats().units, stored);
});

t.test('Many units queued at once never run past the end of the disk', async (t) => {
  const disk = new MemoryDisk(200 * BLOCK_BYTES);
  const store = await openStore(disk, { maxBatchUnits: 4, maxBatchBytes: 3 * BLOCK_BYTES });
  const client = new Client();
  const answers = await Promise.all(Array.from({ length: 300 }, (_, stripe) => client.append(store, makeUnit({ stripe }))));
  const stored = answers.filter((answer) => answer === Refusal.NONE).length;
  t.same(new Set(answers), new Set([Refusal.NONE, Refusal.DISK_FULL]));
  t.equal((await openStore(disk.crash())).stats().units, stored);
});

t.test('A failed write refuses its batch only; a failed sync ends writing, never reading', async (t) => {
  const disk = new MemoryDisk(4 * MIB);
  const store = await openStore(disk);
  const client = new Client();
  await client.append(store, makeUnit({ stripe: 0 }));
  disk.faults.beforeWrite = () => { throw new TartanError('ERR_DISK_FULL', 'no space'); };
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK_FULL);
  disk.faults = {};
  t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.NONE);
  disk.faults.beforeSync = () => { throw new TartanError('ERR_DISK', 'no sync'); };
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
  const client = new Client(), writes = disk.writes;
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

t.test('A file is a disk: create, store, reopen, read; a directory, a missing and an empty file are told apart', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'tartan-store-'));
  t.teardown(() => rm(folder, { recursive: true }));
  const path = join(folder, 'store');
  let store = await UnitStore.open({ ...IDENTITY, disk: await openFileDisk(path, { create: true, sizeBytes: 16 * MIB + 5 }), random: Math.random });
  const client = new Client();
  const specs = Array.from({ length: 40 }, (_, stripe) => ({ stripe, unitBytes: 65536 }));
  t.ok((await Promise.all(specs.map((spec) => client.append(store, makeUnit(spec))))).every((answer) => answer === Refusal.NONE));
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
});

/** What the store must do, in the simplest way: every unit ever accepted, in a list. */
class DumbStore {
  units: { file: number; stripe: number; epoch: number; counter: number; seed: number }[] = [];
  fences = new Map<number, number>();
  marks = new Map<number, [number, number]>();
  deleted = new Set<number>();

  append(file: number, stripe: number, epoch: number, counter: number, seed: number, mark: number): number {
    if (this.deleted.has(file)) return Refusal.NO_UNIT;
    if (epoch < (this.fences.get(file) ?? 0)) return Refusal.STALE_WRITER_EPOCH;
    this.fences.set(file, epoch);
    const [markEpoch, markCounter] = this.marks.get(file) ?? [0, 0];
    if (compareVersions(epoch, mark, markEpoch, markCounter) > 0) this.marks.set(file, [epoch, mark]);
    this.free(file);
    const here = this.units.filter((unit) => unit.file === file && unit.stripe === stripe);
    const same = here.find((unit) => unit.epoch === epoch && unit.counter === counter);
    if (same !== undefined) return same.seed === seed ? Refusal.NONE : Refusal.NAME_CONFLICT;
    if (here.some((unit) => compareVersions(unit.epoch, unit.counter, epoch, counter) > 0)) return Refusal.STALE_VERSION;
    this.units.push({ file, stripe, epoch, counter, seed });
    this.free(file);
    return Refusal.NONE;
  }

  free(file: number): void {
    const [epoch, counter] = this.marks.get(file) ?? [0, 0];
    this.units = this.units.filter((unit) => unit.file !== file || !this.units.some((other) => other.file === file && other.stripe === unit.stripe
      && compareVersions(other.epoch, other.counter, epoch, counter) <= 0 && compareVersions(unit.epoch, unit.counter, other.epoch, other.counter) < 0));
  }

  held(file: number): string[] {
    return this.units.filter((unit) => unit.file === file).map((unit) => `${unit.stripe}:${unit.epoch}.${unit.counter}`).sort();
  }
}

t.test('Whatever is done to it, and wherever it crashes, the store does what the dumb one does', async (t) => {
  const file = fc.integer({ min: 1, max: 2 }), stripe = fc.integer({ min: 0, max: 3 }), epoch = fc.integer({ min: 1, max: 4 });
  const step = fc.oneof(
    { weight: 8, arbitrary: fc.record({ op: fc.constant('append' as const), file, stripe, epoch, counter: fc.integer({ min: 1, max: 5 }), seed: fc.integer({ min: 0, max: 1 }), mark: fc.integer({ min: 0, max: 5 }) }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('fence' as const), file, epoch }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('discard' as const), file, stripe, epoch }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant('delete' as const), file: fc.constant(2) }) },
    { weight: 2, arbitrary: fc.record({ op: fc.constant('crash' as const), survivors: fc.array(fc.boolean(), { maxLength: 12 }), torn: fc.boolean() }) },
  );
  let crashes = 0;
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
    let disk = new MemoryDisk(4 * MIB);
    let store = await openStore(disk);
    const dumb = new DumbStore();
    for (const s of steps) {
      if (s.op === 'append') {
        const unit = makeUnit({ fileId: s.file, stripe: s.stripe, epoch: s.epoch, counter: s.counter, seed: s.seed, mark: s.mark });
        const expected = dumb.append(s.file, s.stripe, s.epoch, s.counter, s.seed, s.mark);
        const answer = await new Client().append(store, unit);
        if (answer !== expected) throw new Error(`${JSON.stringify(s)}: ${answer}, expected ${expected}`);
      } else if (s.op === 'fence' || s.op === 'discard') {
        const lower = s.epoch < (dumb.fences.get(s.file) ?? 0);
        const stale = dumb.deleted.has(s.file) || (s.op === 'discard' && lower);
        const done = await (s.op === 'fence' ? store.fence(s.file, s.epoch) : store.discard(s.file, s.stripe, s.epoch)).then(() => true, () => false);
        if (done === stale) throw new Error(`${JSON.stringify(s)}: done ${done}, stale ${stale}`);
        if (stale || lower) continue;
        dumb.fences.set(s.file, s.epoch);
        if (s.op === 'discard') dumb.units = dumb.units.filter((unit) => unit.file !== s.file || unit.stripe < s.stripe || unit.epoch >= s.epoch);
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
          if (bytes === undefined || Buffer.compare(bytes, makeUnit({ fileId: 3, stripe: at, unitBytes: 16384 }).payload) !== 0) throw new Error('a torn unit is held');
        }
      }
      for (const id of [1, 2]) {
        const held = store.inventory(id, 0, 1000).units.map((unit) => `${unit.stripe}:${unit.writerEpoch}.${unit.counter}`).sort();
        if (JSON.stringify(held) !== JSON.stringify(dumb.held(id))) throw new Error(`after ${JSON.stringify(s)} file ${id}: ${held.join(' ')}; expected ${dumb.held(id).join(' ')}`);
      }
    }
    for (const unit of dumb.units) {
      const bytes = await readUnit(store, { fileId: unit.file, stripe: unit.stripe, epoch: unit.epoch, counter: unit.counter });
      const expected = makeUnit({ fileId: unit.file, stripe: unit.stripe, epoch: unit.epoch, counter: unit.counter, seed: unit.seed }).payload;
      if (bytes === undefined || Buffer.compare(bytes, expected) !== 0) throw new Error(`wrong bytes of ${JSON.stringify(unit)}`);
    }
  }), { numRuns: 150 });
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
