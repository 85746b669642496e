/**
 * The superblock: whose store this is. Two copies, written once when the store is made (docs/store-format.md draws it).
 */
import { crc32c } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import { mayBePointer, POINTER_BLOCKS, writePointer } from './checkpoint-pointer.js';
import { BLOCK_BYTES, type Disk } from './disk.js';
import { STORE_FORMAT_VERSION } from './log-format.js';
import { FEWEST_BLOCKS, FEWEST_SEGMENTS, type Geometry, segmentBlocksFor } from './segments.js';

export const LOG_FIRST_BLOCK = 16;
export const COPY_BLOCKS = [0, 8] as const;
/** A disk is taken for blank when its superblock copies and so many blocks at its beginning are zero. */
const BLANK_BLOCKS = 32;
const SUPERBLOCK_BYTES = 512;
const CRC_OFFSET = 508;
const MAX_NODE_ID_BYTES = 128;
const MAGIC = 'TARTANST';

/** Who a store must belong to. */
export interface StoreIdentity {
  /** As in the cluster store: 32 hex digits, hyphens allowed. */
  readonly clusterUuid: string;
  readonly clusterId: number;
  readonly nodeId: string;
}

export interface Superblock extends StoreIdentity {
  /** 32 hex digits. */
  readonly storeUuid: string;
  /** First 8 bytes of the store uuid, as two words: every batch carries it. */
  readonly tagLow: number;
  readonly tagHigh: number;
  readonly createdMs: number;
  readonly geometry: Geometry;
}

/**
 * Reads the superblock, making the store first when the disk is blank.
 *
 * @param random  uniform in [0, 1), for the new store's uuid
 * @param nowMs   ms since 1970, for a new store
 * @param memory  at least one block, aligned as the disk needs it; used as scratch
 * @throws {TartanError} ERR_FOREIGN_STORE, ERR_STORE_VERSION, ERR_DISK, ERR_ARGUMENT
 */
export async function openSuperblock(
  disk: Disk,
  identity: StoreIdentity,
  random: () => number,
  nowMs: number,
  memory: Uint8Array,
): Promise<Superblock> {
  const block = memory.subarray(0, BLOCK_BYTES);
  const copies: (Superblock | 'blank' | 'torn' | 'foreign')[] = [];
  for (const at of COPY_BLOCKS) {
    await disk.read(block, at * BLOCK_BYTES);
    copies.push(decode(block));
  }
  const good = copies.find((copy): copy is Superblock => typeof copy === 'object');
  if (good === undefined) {
    // One torn copy beside a blank one: the power went while the store was being made, and nothing can be in it yet.
    const unfinished = copies.includes('blank') && !copies.includes('foreign') && (await restIsBlank(disk, block));
    if (unfinished) return format(disk, identity, random, nowMs, block);
    throw new TartanError(
      'ERR_FOREIGN_STORE',
      'Cannot open the store: the disk holds something else than a Tartan store, expected a blank one or a ' +
        'valid superblock',
    );
  }
  checkIdentity(good, identity);
  const blocks = good.geometry.firstBlock + good.geometry.segmentBlocks * good.geometry.segmentCount;
  if (blocks * BLOCK_BYTES > disk.size)
    throw new TartanError(
      'ERR_DISK',
      `Cannot open the store: the disk has ${disk.size} bytes, and ${blocks * BLOCK_BYTES} when the store was made`,
    );
  if (copies.some((copy) => typeof copy === 'string')) await writeCopies(disk, good, block);
  return good;
}

/** Whether the beginning of the disk is zero where nothing of ours lies: file systems keep theirs within it. */
async function restIsBlank(disk: Disk, block: Uint8Array): Promise<boolean> {
  const blocks = Math.min(BLANK_BLOCKS, disk.size / BLOCK_BYTES);
  for (let at = 0; at < blocks; at++) {
    if (COPY_BLOCKS.some((copy) => copy === at)) continue;
    await disk.read(block, at * BLOCK_BYTES);
    if (!isBlank(block) && !(POINTER_BLOCKS.some((pointer) => pointer === at) && mayBePointer(block))) return false;
  }
  return true;
}

function isBlank(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

async function format(
  disk: Disk,
  identity: StoreIdentity,
  random: () => number,
  nowMs: number,
  block: Uint8Array,
): Promise<Superblock> {
  const fewest = LOG_FIRST_BLOCK + FEWEST_SEGMENTS * FEWEST_BLOCKS;
  if (disk.size < fewest * BLOCK_BYTES)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot make a store of ${disk.size} bytes: at least ${fewest * BLOCK_BYTES} are required`,
    );
  // Blocks are named by 32 bits: what lies beyond 16 TiB is left unused.
  const logBlocks = Math.min(disk.size / BLOCK_BYTES, 2 ** 32) - LOG_FIRST_BLOCK,
    segmentBlocks = segmentBlocksFor(logBlocks);
  const geometry = { firstBlock: LOG_FIRST_BLOCK, segmentBlocks, segmentCount: Math.floor(logBlocks / segmentBlocks) };
  const uuid = Uint8Array.from({ length: 16 }, () => Math.floor(random() * 256));
  const superblock: Superblock = { ...identity, ...uuidFields(uuid), createdMs: nowMs, geometry };
  // First the pointer to nothing, then the superblocks: where there is a superblock, there has been a pointer.
  await writePointer(
    disk,
    0,
    {
      generation: 0,
      words: 0,
      segments: [],
      segment: 0,
      block: LOG_FIRST_BLOCK,
      sequence: 1,
      chain: 0,
      next: 1,
      after: 2,
    },
    superblock,
    block,
  );
  await disk.sync();
  await writeCopies(disk, superblock, block);
  return superblock;
}

/** One after the other, each synced: a torn write leaves one good copy. */
async function writeCopies(disk: Disk, superblock: Superblock, block: Uint8Array): Promise<void> {
  for (const at of COPY_BLOCKS) {
    encode(superblock, block);
    await disk.writev([block], at * BLOCK_BYTES);
    await disk.sync();
  }
}

function checkIdentity(found: Superblock, expected: StoreIdentity): void {
  const same = normal(found.clusterUuid) === normal(expected.clusterUuid) && found.clusterId === expected.clusterId;
  if (!same)
    throw new TartanError(
      'ERR_FOREIGN_STORE',
      `Cannot open the store: it belongs to cluster ${found.clusterUuid}, expected ${normal(expected.clusterUuid)}`,
    );
  if (found.nodeId !== expected.nodeId)
    throw new TartanError(
      'ERR_FOREIGN_STORE',
      `Cannot open the store: it belongs to node '${found.nodeId}', expected '${expected.nodeId}'`,
    );
}

function decode(block: Uint8Array): Superblock | 'blank' | 'torn' | 'foreign' {
  const view = new DataView(block.buffer, block.byteOffset, SUPERBLOCK_BYTES);
  if (isBlank(block)) return 'blank';
  if (Buffer.from(block.subarray(0, 8)).toString('latin1') !== MAGIC) return 'foreign';
  if (view.getUint32(CRC_OFFSET, true) !== crc32c(block.subarray(0, CRC_OFFSET))) return 'torn';
  const version = view.getUint32(8, true),
    blockBytes = view.getUint32(12, true);
  // A newer version keeps magic, version and CRC where they are, so that an older program can say so.
  if (version === 1)
    throw new TartanError(
      'ERR_STORE_VERSION',
      'Cannot open the store: its format is version 1, which nothing converts; expected ' +
        `version ${STORE_FORMAT_VERSION}. Copy what it holds with the program that made it`,
    );
  if (version !== STORE_FORMAT_VERSION || blockBytes !== BLOCK_BYTES || view.getUint32(52, true) !== LOG_FIRST_BLOCK) {
    throw new TartanError(
      'ERR_STORE_VERSION',
      `Cannot open the store: its format is version ${version} with blocks of ${blockBytes} bytes, expected ` +
        `version ${STORE_FORMAT_VERSION} with ${BLOCK_BYTES}`,
    );
  }
  const length = Math.min(view.getUint32(64, true), MAX_NODE_ID_BYTES);
  return {
    clusterUuid: hex(block.subarray(16, 32)),
    clusterId: view.getUint32(48, true),
    nodeId: Buffer.from(block.subarray(68, 68 + length)).toString('utf8'),
    createdMs: Number(view.getBigUint64(56, true)),
    geometry: {
      firstBlock: LOG_FIRST_BLOCK,
      segmentBlocks: view.getUint32(200, true),
      segmentCount: view.getUint32(204, true),
    },
    ...uuidFields(block.slice(32, 48)),
  };
}

function encode(superblock: Superblock, block: Uint8Array): void {
  const nodeId = Buffer.from(superblock.nodeId, 'utf8'),
    cluster = Buffer.from(normal(superblock.clusterUuid), 'hex');
  if (nodeId.length === 0 || nodeId.length > MAX_NODE_ID_BYTES)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot make a store for node '${superblock.nodeId}': an id has 1 to ${MAX_NODE_ID_BYTES} bytes`,
    );
  if (cluster.length !== 16)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot make a store for cluster '${superblock.clusterUuid}': expected 32 hex digits`,
    );
  block.fill(0, 0, BLOCK_BYTES);
  block.set(Buffer.from(MAGIC, 'latin1'), 0);
  const view = new DataView(block.buffer, block.byteOffset, SUPERBLOCK_BYTES);
  view.setUint32(8, STORE_FORMAT_VERSION, true);
  view.setUint32(12, BLOCK_BYTES, true);
  block.set(cluster, 16);
  block.set(Buffer.from(superblock.storeUuid, 'hex'), 32);
  view.setUint32(48, superblock.clusterId, true);
  view.setUint32(52, LOG_FIRST_BLOCK, true);
  view.setBigUint64(56, BigInt(Math.floor(superblock.createdMs)), true);
  view.setUint32(64, nodeId.length, true);
  block.set(nodeId, 68);
  view.setUint32(200, superblock.geometry.segmentBlocks, true);
  view.setUint32(204, superblock.geometry.segmentCount, true);
  view.setUint32(CRC_OFFSET, crc32c(block.subarray(0, CRC_OFFSET)), true);
}

function uuidFields(uuid: Uint8Array): { storeUuid: string; tagLow: number; tagHigh: number } {
  const view = new DataView(uuid.buffer, uuid.byteOffset, 16);
  return { storeUuid: hex(uuid), tagLow: view.getUint32(0, true), tagHigh: view.getUint32(4, true) };
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
function normal(uuid: string): string {
  return uuid.replaceAll('-', '').toLowerCase();
}
