import t from 'tap';
import { POINTER_BLOCKS } from '../../storage-node/checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from '../../storage-node/disk.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { LOG_FIRST_BLOCK } from '../../storage-node/superblock.js';
import type { UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { TartanError } from '../../wire/errors.js';
import { MIB, openStore, picture, readUnit } from './stores.js';
import { Client, makeUnit, type UnitSpec } from './units.js';

const FILES = [1, 2, 3, 4];

/** Everything a checkpoint must hold: units of several files and versions, masks, records, fences, deletions, marks. */
async function fill(store: UnitStore, rounds: number): Promise<UnitSpec[]> {
  const client = new Client(),
    specs: UnitSpec[] = [];
  for (let round = 0; round < rounds; round++) {
    const here: UnitSpec[] = Array.from({ length: 6 }, (_, i) => ({
      fileId: 1 + (i % 3),
      stripe: round * 6 + i + (i === 5 ? 2 ** 40 : 0),
      unit: i % 3,
      missing: i === 4 ? 1n << 35n : 0n,
    }));
    const answers = await Promise.all(here.map((spec) => client.append(store, makeUnit(spec))));
    if (answers.some((answer) => answer !== Refusal.NONE)) throw new Error(`refused: ${answers.join()}`);
    specs.push(...here);
  }
  await store.recordMissing(1, 0, 1, 1, 0b100n);
  await client.append(store, makeUnit({ fileId: 2, stripe: 1, unit: 1, counter: 5, seed: 9 }));
  await store.fence(3, 7);
  await store.fence(4, 9);
  await client.append(store, makeUnit({ fileId: 77 }));
  await store.deleteFile(77);
  await store.drained();
  return specs;
}

async function isWhole(store: UnitStore, specs: readonly UnitSpec[]): Promise<boolean> {
  for (const spec of specs)
    if (Buffer.compare((await readUnit(store, spec)) ?? Buffer.alloc(0), makeUnit(spec).payload) !== 0) return false;
  return true;
}

t.test('A store is opened from its checkpoint and the tail of its log, and is the same', async (t) => {
  const disk = new MemoryDisk(64 * MIB);
  const store = await openStore(disk, { checkpointBytes: 256 << 10 });
  const specs = await fill(store, 30);
  t.ok(store.stats().checkpoints >= 3, `${store.stats().checkpoints} checkpoints`);
  const again = await openStore(disk.crash());
  t.ok(again.recovery.checkpoint >= 3 && again.recovery.checkpointUnits > 100);
  t.ok(again.recovery.batches < 15, `${again.recovery.batches} of ${store.stats().batches} batches were read`);
  t.equal(picture(again, FILES), picture(store, FILES));
  t.same(again.fileMark(3), store.fileMark(3));
  t.equal(again.fileMark(4).writerEpoch, 9);
  t.ok(again.isDeleted(77));
  t.equal(again.stats().liveBytes, store.stats().liveBytes);
  t.ok(await isWhole(again, specs));
  t.equal(await new Client().append(again, makeUnit({ fileId: 3, stripe: 999, epoch: 6 })), Refusal.STALE_WRITER_EPOCH);
});

t.test('Tail and checkpoint stay short, however much is stored', async (t) => {
  const disk = new MemoryDisk(256 * MIB),
    client = new Client();
  const store = await openStore(disk, { checkpointBytes: 512 << 10 });
  const read: number[] = [];
  for (let round = 1; round <= 4; round++) {
    for (let batch = 0; batch < 40; batch++)
      await Promise.all(
        Array.from({ length: 25 }, (_, i) =>
          client.append(store, makeUnit({ stripe: round * 1000 + batch * 25 + i, unitBytes: 512 })),
        ),
      );
    await store.drained();
    const again = await openStore(disk.snapshot());
    t.equal(again.stats().units, round * 1000);
    read.push(again.recovery.batches);
  }
  t.ok(Math.max(...read) < 15, `batches read: ${read.join(', ')}`);
});

t.test(
  'A damaged checkpoint costs the way back to the one before it; two damaged ones are told, never taken for nothing',
  async (t) => {
    const disk = new MemoryDisk(64 * MIB);
    const store = await openStore(disk, { checkpointBytes: 256 << 10 });
    const specs = await fill(store, 30),
      held = picture(store, FILES);
    const pointed = async (from: MemoryDisk): Promise<{ generation: number; block: number; slot: number }[]> => {
      const found = await Promise.all(
        POINTER_BLOCKS.map(async (at, slot) => {
          const bytes = new Uint8Array(BLOCK_BYTES);
          await from.read(bytes, at * BLOCK_BYTES);
          const words = new Uint32Array(bytes.buffer);
          return { generation: words[4]!, block: LOG_FIRST_BLOCK + words[128]! * 1023, slot };
        }),
      );
      return found.sort((a, b) => b.generation - a.generation);
    };
    const [newest, older] = await pointed(disk.snapshot());
    for (const [what, damage] of [
      [
        'the newest checkpoint',
        (image: MemoryDisk) => {
          image.corrupt(newest!.block * BLOCK_BYTES + 3000, (bytes) => {
            bytes[0]! ^= 4;
          });
        },
      ],
      [
        'the newest pointer',
        (image: MemoryDisk) => {
          image.corrupt(POINTER_BLOCKS[newest!.slot]! * BLOCK_BYTES + 30, (bytes) => {
            bytes[0]! ^= 4;
          });
        },
      ],
      [
        'the older pointer',
        (image: MemoryDisk) => {
          image.corrupt(POINTER_BLOCKS[older!.slot]! * BLOCK_BYTES + 2000, (bytes) => {
            bytes[0]! ^= 4;
          });
        },
      ],
    ] as const) {
      const image = disk.snapshot();
      damage(image);
      const again = await openStore(image, { checkpointBytes: 64 << 10 });
      t.equal(again.recovery.checkpoint, what === 'the older pointer' ? newest!.generation : older!.generation, what);
      t.equal(picture(again, FILES), held);
      t.ok(await isWhole(again, specs));
      // And it mends itself: more checkpoints, and the damage is of no more account.
      for (let stripe = 0; stripe < 40; stripe++)
        await new Client().append(again, makeUnit({ fileId: 4, stripe, epoch: 9 }));
      await again.drained();
      const third = await openStore(image.crash());
      t.equal(third.recovery.usedOlder, false);
      t.equal(picture(third, FILES), picture(again, FILES));
    }
    const both = disk.snapshot();
    for (const { block } of [newest!, older!])
      both.corrupt(block * BLOCK_BYTES + 3000, (bytes) => {
        bytes[0]! ^= 4;
      });
    await t.rejects(openStore(both), { code: 'ERR_CHECKSUM', message: /no checkpoint/ });
    const pointers = disk.snapshot();
    for (const at of POINTER_BLOCKS)
      pointers.corrupt(at * BLOCK_BYTES + 20, (bytes) => {
        bytes[0]! ^= 4;
      });
    await t.rejects(openStore(pointers), { code: 'ERR_CHECKSUM', message: /neither pointer/ });
  },
);

t.test('Damage in the tail is told, also when the damaged batch was the only one of its segment', async (t) => {
  // Segments of 63 blocks: 61 payloads and two blocks of headers fill one.
  const disk = new MemoryDisk(4 * MIB),
    client = new Client();
  const store = await openStore(disk);
  for (let batch = 0; batch < 5; batch++)
    await Promise.all(
      Array.from({ length: 61 }, (_, i) => client.append(store, makeUnit({ stripe: batch * 61 + i, unitBytes: 512 }))),
    );
  t.equal(store.stats().batches, 5);
  for (let batch = 0; batch < 4; batch++) {
    const image = disk.snapshot();
    image.corrupt((LOG_FIRST_BLOCK + batch * 63) * BLOCK_BYTES + 90, (bytes) => {
      bytes[0]! ^= 1;
    });
    await t.rejects(
      openStore(image),
      { code: 'ERR_CHECKSUM', message: new RegExp(`batch ${batch + 1} `) },
      `batch ${batch + 1} of 5`,
    );
  }
});

t.test('Segments in which nothing is live any more are used again, without a copy', async (t) => {
  const disk = new MemoryDisk(4 * MIB),
    client = new Client();
  const store = await openStore(disk);
  for (let file = 1; file <= 12; file++) {
    const answers = await Promise.all(
      Array.from({ length: 118 }, (_, stripe) =>
        client.append(store, makeUnit({ fileId: file, stripe, unitBytes: 512 })),
      ),
    );
    t.ok(
      answers.every((answer) => answer === Refusal.NONE),
      `file ${file} of two segments, in a log of 16`,
    );
    if (file > 1) await store.deleteFile(file - 1);
    await store.drained();
  }
  t.ok(store.stats().batches * 60 > 1008, 'more was written than fits');
  const again = await openStore(disk.crash());
  t.equal(again.stats().units, 118);
  t.same(
    await readUnit(again, { fileId: 12, stripe: 117, unitBytes: 512 }),
    makeUnit({ fileId: 12, stripe: 117, unitBytes: 512 }).payload,
  );
  t.ok(again.isDeleted(3));
});

t.test(
  'A batch whose write failed, yet reached the disk, is not found in the place of one that went on to the next segment',
  async (t) => {
    const inner = new MemoryDisk(4 * MIB),
      client = new Client();
    let isLying = false;
    const disk: Disk = {
      size: inner.size,
      read: (into, position) => inner.read(into, position),
      sync: () => inner.sync(),
      close: () => inner.close(),
      writev: async (views, position) => {
        await inner.writev(views, position);
        if (!isLying) return;
        isLying = false;
        throw new TartanError('ERR_DISK_FULL', 'the write failed, says the disk');
      },
    };
    const store = await openStore(disk);
    // 60 of the segment's 63 blocks; then a unit that would still fit, and one that does not.
    t.equal(
      await client.append(store, makeUnit({ stripe: 0, unitBytes: 1 << 18, stripeLength: 59 * BLOCK_BYTES })),
      Refusal.NONE,
    );
    isLying = true;
    t.equal(await client.append(store, makeUnit({ stripe: 1 })), Refusal.DISK_FULL);
    t.equal(await client.append(store, makeUnit({ stripe: 2, unitBytes: 16384 })), Refusal.NONE);
    const again = await openStore(inner.crash());
    t.same(
      again.inventory(1, 0, 10).units.map(({ stripe }) => stripe),
      [0, 2],
    );
    t.same(await readUnit(again, { stripe: 2, unitBytes: 16384 }), makeUnit({ stripe: 2, unitBytes: 16384 }).payload);
  },
);
