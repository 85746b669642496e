/** Opening stores on memory disks, and reading from them as a reader would. */
import { BLOCK_BYTES, type Disk } from '../../storage-node/disk.js';
import { emptyLocation, UnitStore, type UnitStoreOptions } from '../../storage-node/unit-store.js';
import { decodeHeader } from '../../wire/unit-header.js';
import { IDENTITY, randomFrom, type UnitSpec } from './units.js';

export const MIB = 1 << 20;
let salt = 1;
/** Each opening gets another salt, as in real life. */
export function openStore(disk: Disk, options: Partial<UnitStoreOptions> = {}): Promise<UnitStore> {
  return UnitStore.open({ ...IDENTITY, disk, random: randomFrom(salt++), ...options });
}

/** A unit's payload as the store reads it, after its header was compared with the name; undefined: not held. */
export async function readUnit(store: UnitStore, spec: UnitSpec): Promise<Uint8Array | undefined> {
  const { fileId = 1, stripe = 0, unit = 0, epoch = 1, counter = 1 } = spec;
  const location = emptyLocation();
  if (!store.lookupExact(fileId, stripe, unit, epoch, counter, location)) return undefined;
  const header = new Uint8Array(2 * BLOCK_BYTES),
    payload = new Uint8Array(4 * MIB);
  await store.read(location, header, payload);
  const found = decodeHeader(new Uint32Array(header.buffer, location.headerByte, location.headerBytes >> 2), 0);
  if (
    found.fileId !== fileId ||
    found.stripe !== stripe ||
    found.unit !== unit ||
    found.writerEpoch !== epoch ||
    found.counter !== counter ||
    found.payloadCrc !== location.payloadCrc
  ) {
    throw new Error('the header is not where the index says');
  }
  return payload.slice(0, location.unitLength);
}

/** The store's state as text, to compare two of them. */
export function picture(store: UnitStore, files: number[]): string {
  return JSON.stringify(
    files.map((id) => [id, store.fileMark(id).writerEpoch, store.inventory(id, 0, 1e6).units]),
    (_, value: unknown) => (typeof value === 'bigint' ? value.toString() : value),
  );
}
