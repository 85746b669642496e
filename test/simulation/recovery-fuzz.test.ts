/**
 * Opening a store whose disk lies: images captured from nodes of a simulated cluster, then damaged. Opening refuses
 * with a code, or succeeds and hands out nothing whose checksum fails; it neither crashes, nor hangs, nor takes memory
 * without bound. Some damage is sealed again as if by a faulty program, so that it gets past the batch's own checksum.
 */
import t from 'tap';
import fc from 'fast-check';
import { sleep } from '../../wire/clock.js';
import { codeOf, isOperating } from '../../wire/errors.js';
import { Refusal } from '../../wire/ring-messages.js';
import { crc32c } from '../../erasure/code/index.js';
import { POINTER_BLOCKS } from '../../storage-node/checkpoint-pointer.js';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { B, headerBlocksOf, readPair, sealBatch } from '../../storage-node/log-format.js';
import type { MemoryDisk } from '../../storage-node/memory-disk.js';
import { LOG_FIRST_BLOCK } from '../../storage-node/superblock.js';
import { UnitStore, emptyLocation } from '../../storage-node/unit-store.js';
import { DATA_HEADER_BYTES, decodeHeader } from '../../wire/unit-header.js';
import { readIdentity } from '../../cluster/membership.js';
import { Client, makeUnit } from '../storage-node/units.js';
import { SimCluster, randomBytes } from './cluster.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const RUNS = LONG ? 5_000 : 100;

interface Capture {
  readonly disk: MemoryDisk;
  readonly nodeId: string;
  readonly clusterUuid: string;
  readonly clusterId: number;
}

/** Disks of nodes that have seen appends, short tails, a lost node, takeovers, a removed file. */
async function capture(): Promise<Capture[]> {
  const cluster = new SimCluster({ seed: 77, nodes: 4, diskBytes: 4 << 20 });
  const captured: Capture[] = [];
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      const client = await cluster.client('w1', { ringMemoryBytes: 256 << 10 });
      for (const [name, code] of [
        ['a', 'xor(2+1)'],
        ['b', 'rs(2,2)'],
      ] as const) {
        const writer = await client.create(name, { code, unitBytes: 512 });
        for (let i = 0; i < 12; i++) {
          writer.write(randomBytes(cluster.world, `${name} ${i}`, 100 + i * 500));
          await writer.flush();
          if (i === 6 && name === 'a') {
            cluster.world.killHost('n3');
            await sleep(cluster.clock('test'), 300);
          }
        }
        if (name === 'b') continue; // its writer is never closed
        await new Promise<void>((resolve, reject) => {
          writer.once('error', reject);
          writer.once('finish', resolve);
          writer.end();
        });
      }
      const second = await cluster.client('w2', { ringMemoryBytes: 256 << 10 });
      const writer = await second.append('b');
      writer.on('error', () => {});
      writer.write(randomBytes(cluster.world, 'more', 3000));
      await writer.flush();
      await second.remove('a');
      const { uuid } = await readIdentity(cluster.memory.client());
      for (const { id, disk } of cluster.nodes)
        captured.push({ disk: disk.snapshot(), nodeId: id, clusterUuid: uuid, clusterId: cluster.clusterId });
    })(),
    600_000,
  );
  const checkpointed = [];
  for (const each of captured) checkpointed.push(each, await withCheckpoints(each));
  return checkpointed;
}

/** The same store after more was written to it, and checkpoints were taken: opening it reads the newest and a tail. */
async function withCheckpoints(captured: Capture): Promise<Capture> {
  const disk = captured.disk.snapshot(),
    { nodeId, clusterUuid, clusterId } = captured,
    client = new Client();
  const store = await UnitStore.open({
    disk,
    nodeId,
    clusterUuid,
    clusterId,
    random: () => 0.25,
    checkpointBytes: 64 << 10,
  });
  for (let stripe = 0; store.stats().checkpoints < 2 && stripe < 1000; stripe++) {
    await client.append(
      store,
      makeUnit({ fileId: 3, stripe, unit: 0, clusterId, unitBytes: 512, counter: stripe + 1 }),
    );
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
  const { checkpoints } = store.stats(),
    image = disk.snapshot();
  await store.close();
  if (checkpoints < 2) throw new Error(`only ${checkpoints} checkpoints were taken`);
  return { ...captured, disk: image };
}

/** One thing done to a disk; numbers are taken modulo what there is. */
type Damage =
  | { readonly kind: 'flip'; readonly at: number; readonly bit: number }
  | { readonly kind: 'word'; readonly at: number; readonly value: number }
  | { readonly kind: 'zero' | 'garbage'; readonly block: number }
  | { readonly kind: 'copy'; readonly from: number; readonly to: number }
  | { readonly kind: 'pointer' | 'piece'; readonly which: number; readonly word: number; readonly value: number }
  | { readonly kind: 'reseal'; readonly batch: number; readonly word: number; readonly value: number };

const anyNumber = fc.nat(0xffff_ffff);
const anyValue = fc.oneof(anyNumber, fc.constantFrom(0, 1, 0xffff, 0x10000, 0x7fff_ffff, 0xffff_ffff), fc.nat(200));
const damage: fc.Arbitrary<Damage> = fc.oneof(
  fc.record({ kind: fc.constant('flip' as const), at: anyNumber, bit: fc.nat(7) }),
  fc.record({ kind: fc.constant('word' as const), at: anyNumber, value: anyValue }),
  fc.record({ kind: fc.constantFrom('zero' as const, 'garbage' as const), block: anyNumber }),
  fc.record({ kind: fc.constant('copy' as const), from: anyNumber, to: anyNumber }),
  fc.record({
    kind: fc.constantFrom('pointer' as const, 'piece' as const),
    which: fc.nat(7),
    word: fc.oneof(anyNumber, fc.nat(40)),
    value: anyValue,
  }),
  fc.record({ kind: fc.constant('reseal' as const), batch: anyNumber, word: anyNumber, value: anyValue }),
);

async function apply(disk: MemoryDisk, { ...what }: Damage): Promise<void> {
  const blocks = disk.syncedBlocks().sort((a, b) => a - b);
  const blockOf = (n: number): number => blocks[n % blocks.length]!;
  switch (what.kind) {
    case 'flip':
      disk.corrupt(blockOf(what.at) * BLOCK_BYTES + ((what.at >>> 8) % BLOCK_BYTES), (bytes) => {
        bytes[0]! ^= 1 << what.bit;
      });
      return;
    case 'word':
      disk.corrupt(blockOf(what.at) * BLOCK_BYTES + ((what.at >>> 6) % (BLOCK_BYTES / 4)) * 4, (bytes) => {
        new DataView(bytes.buffer, bytes.byteOffset).setUint32(0, what.value, true);
      });
      return;
    case 'zero':
      disk.corrupt(blockOf(what.block) * BLOCK_BYTES, (bytes) => {
        bytes.fill(0);
      });
      return;
    case 'garbage':
      disk.corrupt(blockOf(what.block) * BLOCK_BYTES, (bytes) => {
        for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i + what.block, 2654435761) >>> 24;
      });
      return;
    case 'copy': {
      const bytes = new Uint8Array(BLOCK_BYTES);
      await disk.read(bytes, blockOf(what.from) * BLOCK_BYTES);
      disk.corrupt(blockOf(what.to) * BLOCK_BYTES, (target) => {
        target.set(bytes);
      });
      return;
    }
    case 'pointer':
      await resealCheckpoint(disk, POINTER_BLOCKS.map(Number), what);
      return;
    case 'piece':
      await resealCheckpoint(disk, await piecesOf(disk, blocks), what);
      return;
    case 'reseal':
      await reseal(disk, what.batch, what.word, what.value);
  }
}

const PIECE_MAGIC = 0x504b4354;

async function piecesOf(disk: MemoryDisk, blocks: readonly number[]): Promise<number[]> {
  const pieces: number[] = [],
    words = new Uint32Array(BLOCK_BYTES / 4);
  for (const block of blocks) {
    await disk.read(new Uint8Array(words.buffer), block * BLOCK_BYTES);
    if (words[0] === PIECE_MAGIC) pieces.push(block);
  }
  return pieces;
}

/** Changes a word of a checkpoint's piece, or of a pointer to one, and seals it as a program gone wrong would. */
async function resealCheckpoint(
  disk: MemoryDisk,
  blocks: readonly number[],
  {
    kind,
    which,
    word,
    value,
  }: { readonly kind: 'pointer' | 'piece'; readonly which: number; readonly word: number; readonly value: number },
): Promise<void> {
  const block = blocks[which % Math.max(1, blocks.length)];
  if (block === undefined) return;
  const first = new Uint8Array(BLOCK_BYTES);
  await disk.read(first, block * BLOCK_BYTES);
  const count = kind === 'piece' ? new Uint32Array(first.buffer)[6]! : 0,
    crcWord = kind === 'piece' ? 7 : 127;
  if (count > 1 << 18 || block * BLOCK_BYTES + (8 + count) * 4 > disk.size) return; // an earlier damage changed it
  const area = new Uint8Array(Math.ceil(Math.max(1, (8 + count) * 4) / BLOCK_BYTES) * BLOCK_BYTES),
    words = new Uint32Array(area.buffer);
  await disk.read(area, block * BLOCK_BYTES);
  const changed = kind === 'piece' ? word % (8 + count) : word % 160;
  words[changed === crcWord ? 0 : changed] = value;
  words[crcWord] =
    kind === 'piece'
      ? crc32c(area.subarray(32, 32 + count * 4), crc32c(area.subarray(0, crcWord * 4)))
      : crc32c(area.subarray(crcWord * 4 + 4), crc32c(new Uint8Array(4), crc32c(area.subarray(0, crcWord * 4))));
  for (let at = 0; at < area.length; at += BLOCK_BYTES)
    disk.corrupt(block * BLOCK_BYTES + at, (target) => {
      target.set(area.subarray(at, at + BLOCK_BYTES));
    });
}

/** Changes a word of a batch's entries and seals the batch and, as its CRC is the next one's chain, all after it. */
async function reseal(disk: MemoryDisk, which: number, word: number, value: number): Promise<void> {
  const batches = await batchesOf(disk);
  if (batches.length === 0) return;
  const changed = which % batches.length;
  let chain = 0;
  for (let i = 0; i < batches.length; i++) {
    const { block, words } = batches[i]!;
    const headerBytes = words[B.HEADER_BYTES]!,
      entries = (headerBytes >> 2) - 16;
    if (i === changed && entries > 0) words[16 + (word % entries)] = value;
    if (i >= changed) {
      chain = sealBatch(words, {
        tagLow: words[B.TAG_LOW]!,
        tagHigh: words[B.TAG_HIGH]!,
        sequence: readPair(words, B.SEQUENCE_LOW),
        entries: words[B.ENTRIES]!,
        headerBytes,
        payloadBlocks: words[B.PAYLOAD_BLOCKS]!,
        synced: readPair(words, B.SYNCED_LOW),
        chain: i === changed ? words[B.CHAIN]! : chain,
        salt: words[B.SALT]!,
        next: words[B.NEXT]!,
        after: words[B.AFTER]!,
      });
      const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
      for (let at = 0; at < bytes.length; at += BLOCK_BYTES)
        disk.corrupt(block * BLOCK_BYTES + at, (target) => {
          target.set(bytes.subarray(at, at + BLOCK_BYTES));
        });
    }
  }
}

/** The batches of an undamaged log, as far as it is one. */
async function batchesOf(disk: MemoryDisk): Promise<{ block: number; words: Uint32Array }[]> {
  const batches: { block: number; words: Uint32Array }[] = [],
    last = disk.size / BLOCK_BYTES;
  for (let block = LOG_FIRST_BLOCK; block + 16 < last; ) {
    const area = new Uint8Array(16 * BLOCK_BYTES);
    await disk.read(area, block * BLOCK_BYTES);
    const words = new Uint32Array(area.buffer),
      headerBytes = words[B.HEADER_BYTES]!;
    if (
      words[B.MAGIC] !== 0x54414254 ||
      headerBytes < 64 ||
      headerBytes > area.length ||
      words[B.PAYLOAD_BLOCKS]! > 4096
    )
      break;
    batches.push({ block, words: words.slice(0, headerBlocksOf(headerBytes) * (BLOCK_BYTES / 4)) });
    block += headerBlocksOf(headerBytes) + words[B.PAYLOAD_BLOCKS]!;
  }
  return batches;
}

/** Samples that found something: a pointer to a place outside its segment had the log go on over the superblock. */
const FOUND: [number, Damage[]][] = [0, 1].flatMap((which) =>
  [9, 10, 11, 12].flatMap((word) =>
    [0, 3, 77].map((value): [number, Damage[]] => [which, [{ kind: 'pointer', which: 0, word, value }]]),
  ),
);

/** Opens, looks at everything, appends, closes, opens again. @returns what opening came to */
async function use({ disk, nodeId, clusterUuid, clusterId }: Capture): Promise<string> {
  const open = (on: MemoryDisk): Promise<UnitStore> =>
    UnitStore.open({ disk: on, nodeId, clusterUuid, clusterId, random: () => 0.25 });
  let store: UnitStore;
  try {
    store = await open(disk);
  } catch (error) {
    if (!isOperating(error)) throw error;
    const { code } = error;
    return code;
  }
  await lookAtAll(store);
  const refusal = await new Client().append(store, makeUnit({ fileId: 99, clusterId, unitBytes: 512 }));
  if (
    ![Refusal.NONE, Refusal.DISK_FULL, Refusal.NO_UNIT, Refusal.STALE_WRITER_EPOCH, Refusal.STALE_VERSION].includes(
      refusal as 0,
    )
  )
    throw new Error(`a new unit is refused with ${refusal}`);
  await store.close();
  const again = await open(disk.snapshot());
  if (refusal === Refusal.NONE && again.inventory(99, 0, 10).units.length !== 1)
    throw new Error('what was acknowledged after opening is lost');
  await again.close();
  return 'opened';
}

async function lookAtAll(store: UnitStore): Promise<void> {
  const location = emptyLocation(),
    header = new Uint8Array(2 * BLOCK_BYTES),
    payload = new Uint8Array(4 << 20);
  for (let fileId = 0; fileId < 4; fileId++) {
    for (let from = 0, more = true, rounds = 0; more; rounds++) {
      if (rounds > 10_000) throw new Error('an inventory that never ends');
      const listed = store.inventory(fileId, from, 100);
      more = listed.more;
      for (const held of listed.units) {
        from = held.stripe + 1;
        if (!store.lookupExact(fileId, held.stripe, held.unit, held.writerEpoch, held.counter, location)) continue;
        try {
          await store.read(location, header, payload);
        } catch (error) {
          if (codeOf(error) !== 'ERR_DISK') throw error; // a place beyond the disk's end
          continue;
        }
        // A place made up has a header of any length: who reads it looks at that first, as read-server.ts does.
        const isHeader =
          location.headerBytes >= DATA_HEADER_BYTES && location.headerByte + location.headerBytes <= header.length;
        if (!isHeader) {
          store.markDamaged(fileId, held.stripe, held.unit, location);
          continue;
        }
        const decoded = decodeHeader(new Uint32Array(header.buffer, location.headerByte, location.headerBytes >> 2), 0);
        if (decoded.payloadCrc !== crc32c(payload.subarray(0, location.unitLength)))
          store.markDamaged(fileId, held.stripe, held.unit, location);
      }
    }
  }
}

void t.test(`${RUNS} damaged stores open or are refused with a code, and neither crash nor hang`, async (t) => {
  const captures = await capture();
  t.ok(
    captures.some(({ disk }) => disk.syncedBlocks().length > 40),
    'there is something to damage',
  );
  for (const each of captures)
    t.equal(await use({ ...each, disk: each.disk.snapshot() }), 'opened', `${each.nodeId} undamaged`);
  const outcomes = new Map<string, number>();
  await fc.assert(
    fc.asyncProperty(
      fc.nat(captures.length - 1),
      fc.array(damage, { minLength: 1, maxLength: 6 }),
      async (which, damages) => {
        const source = captures[which]!,
          disk = source.disk.snapshot();
        for (const each of damages) await apply(disk, each);
        const outcome = await use({ ...source, disk });
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      },
    ),
    { numRuns: RUNS, examples: FOUND },
  );
  t.ok((outcomes.get('opened') ?? 0) > 0, `outcomes: ${JSON.stringify(Object.fromEntries(outcomes))}`);
  t.ok(outcomes.size > 1, 'and some are refused');
  t.ok(process.memoryUsage().rss < 1.5 * 2 ** 30, 'memory stays bounded');
});
