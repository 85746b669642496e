/**
 * What a store has promised, and may hold: the notes of a recorded run, and the checks of a store that was opened on a
 * crash state.
 */
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import type { MemoryDisk } from '../../storage-node/memory-disk.js';
import { emptyLocation, type AlignedMemory, UnitStore, type UnitStoreOptions } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { compareVersions, decodeHeader } from '../../wire/unit-header.js';
import { Client, IDENTITY, makeUnit, randomFrom, type TestUnit, type UnitSpec } from './units.js';

/** One thing that was asked for, or (`acked`) promised. Undefined in `unit`s: the defaults of makeUnit(). */
export type Note =
  | {
      readonly what: 'unit';
      readonly acked: boolean;
      readonly spec: Required<
        Pick<UnitSpec, 'fileId' | 'stripe' | 'unit' | 'epoch' | 'counter' | 'seed' | 'mark' | 'unitBytes' | 'missing'>
      >;
    }
  | { readonly what: 'fence'; readonly acked: boolean; readonly fileId: number; readonly epoch: number }
  | {
      readonly what: 'discard';
      readonly acked: boolean;
      readonly fileId: number;
      readonly stripe: number;
      readonly epoch: number;
    }
  | { readonly what: 'delete'; readonly acked: boolean; readonly fileId: number }
  | {
      readonly what: 'missing';
      readonly acked: boolean;
      readonly fileId: number;
      readonly stripe: number;
      readonly epoch: number;
      readonly counter: number;
      readonly mask: bigint;
    };

type Unit = Extract<Note, { what: 'unit' }>['spec'];
const made = new Map<string, TestUnit>();

/** makeUnit(), once for each. */
export function unitOf(spec: Unit): TestUnit {
  const key = JSON.stringify(spec, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value));
  let unit = made.get(key);
  if (unit === undefined) made.set(key, (unit = makeUnit(spec)));
  return unit;
}

const pool = new Map<number, Uint8Array[]>();
/** Memory that is used again: opening takes megabytes. */
function pooled(bytes: number): AlignedMemory {
  const free = pool.get(bytes) ?? [];
  pool.set(bytes, free);
  const memory = free.pop() ?? new Uint8Array(bytes);
  return {
    bytes: memory,
    release: () => {
      free.push(memory);
    },
  };
}

let salt = 1;
const STORE_OPTIONS = { maxBatchUnits: 4, checkpointBytes: 96 << 10 } as const;
export function openPooled(disk: UnitStoreOptions['disk']): Promise<UnitStore> {
  return UnitStore.open({ ...IDENTITY, ...STORE_OPTIONS, disk, random: randomFrom(salt++), allocate: pooled });
}

const name = ({ fileId, stripe, unit, epoch, counter }: Unit): string =>
  `${fileId}/${stripe}/${unit}/${epoch}.${counter}`;

/** The notes of a run, digested: what must be there, what may be, what must not. */
class Promised {
  private readonly files = new Map<number, PromisedOfFile>();

  constructor(notes: readonly unknown[]) {
    for (const note of notes as readonly Note[]) {
      const fileId = note.what === 'unit' ? note.spec.fileId : note.fileId,
        file = this.files.get(fileId) ?? new PromisedOfFile(fileId);
      this.files.set(fileId, file);
      file.add(note);
    }
  }

  /** @throws {Error} naming the first promise that the store breaks */
  async check(store: UnitStore): Promise<void> {
    for (const file of this.files.values()) await file.check(store);
  }
}

class PromisedOfFile {
  private readonly submitted = new Map<string, Unit[]>();
  private readonly acked = new Map<string, Unit>();
  private readonly all: Note[] = [];
  private readonly discards: Extract<Note, { what: 'discard' }>[] = [];
  private readonly records: Extract<Note, { what: 'missing' }>[] = [];

  constructor(private readonly fileId: number) {}

  add(note: Note): void {
    this.all.push(note);
    if (note.what === 'discard') this.discards.push(note);
    if (note.what === 'missing') this.records.push(note);
    if (note.what !== 'unit') return;
    const key = name(note.spec),
      same = this.submitted.get(key);
    if (same === undefined) this.submitted.set(key, [note.spec]);
    else same.push(note.spec);
    if (note.acked) this.acked.set(key, note.spec);
  }

  async check(store: UnitStore): Promise<void> {
    const { fileId } = this,
      isDeleted = store.isDeleted(fileId);
    if (this.wasDeleted(true) && !isDeleted) throw new Error(`file ${fileId} was deleted, and is back`);
    if (isDeleted && !this.wasDeleted(false)) throw new Error(`file ${fileId} is deleted, which nobody asked for`);
    const held = store.inventory(fileId, 0, 1e6).units;
    if (isDeleted) {
      if (held.length > 0) throw new Error(`file ${fileId} is deleted and holds units`);
      return;
    }
    this.checkFence(store, fileId);
    const names = new Set<string>();
    for (const unit of held) {
      const key = `${fileId}/${unit.stripe}/${unit.unit}/${unit.writerEpoch}.${unit.counter}`,
        [spec] = this.submitted.get(key) ?? [];
      if (spec === undefined) throw new Error(`unit ${key} is held, and nobody stored it`);
      if (this.isDiscarded(spec, true)) throw new Error(`unit ${key} was discarded, and is back`);
      names.add(key);
      await this.checkBytes(store, key, spec);
      this.checkMissing(key, spec, unit.missing);
    }
    for (const [key, spec] of this.acked) {
      if (names.has(key) || this.isDiscarded(spec, false) || this.isSuperseded(spec, names)) continue;
      throw new Error(`unit ${key} was acknowledged, and is lost`);
    }
  }

  private wasDeleted(acked: boolean): boolean {
    return this.all.some((note) => note.what === 'delete' && (note.acked || !acked));
  }

  private checkFence(store: UnitStore, fileId: number): void {
    const epochs = (acked: boolean): number =>
      this.all.reduce((most, note) => {
        if (acked && !note.acked) return most;
        return Math.max(
          most,
          note.what === 'unit' ? note.spec.epoch : note.what === 'fence' || note.what === 'discard' ? note.epoch : 0,
        );
      }, 0);
    const fence = store.fileMark(fileId).writerEpoch;
    if (fence < epochs(true)) throw new Error(`file ${fileId} is fenced at ${fence}, ${epochs(true)} was promised`);
    if (fence > epochs(false))
      throw new Error(`file ${fileId} is fenced at ${fence}, nobody asked for more than ${epochs(false)}`);
  }

  private async checkBytes(store: UnitStore, key: string, spec: Unit): Promise<void> {
    if (!store.lookupExact(spec.fileId, spec.stripe, spec.unit, spec.epoch, spec.counter, location))
      throw new Error(`unit ${key} is listed, and can't be looked up`);
    await store.read(location, header, payload);
    const expected = unitOf(spec),
      found = decodeHeader(new Uint32Array(header.buffer, location.headerByte, location.headerBytes >> 2), 0);
    if (
      found.fileId !== spec.fileId ||
      found.stripe !== spec.stripe ||
      found.unit !== spec.unit ||
      found.counter !== spec.counter ||
      found.writerEpoch !== spec.epoch
    )
      throw new Error(`unit ${key}: another header lies in its place`);
    if (Buffer.compare(payload.subarray(0, location.unitLength), expected.payload) !== 0)
      throw new Error(`unit ${key}: other bytes lie in its place`);
  }

  private checkMissing(key: string, spec: Unit, mask: bigint): void {
    const recorded = (acked: boolean): bigint =>
      this.records.reduce(
        (sum, note) =>
          (note.acked || !acked) &&
          note.stripe === spec.stripe &&
          note.epoch === spec.epoch &&
          note.counter === spec.counter
            ? sum | note.mask
            : sum,
        0n,
      );
    const most = this.submitted.get(key)!.reduce((sum, each) => sum | each.missing, recorded(false));
    const least = (this.acked.has(key) ? spec.missing : 0n) | recorded(true);
    if ((mask & ~most) !== 0n || (least & ~mask) !== 0n)
      throw new Error(
        `unit ${key} lists missing ${mask.toString(2)}: at least ${least.toString(2)}, at most ${most.toString(2)}`,
      );
  }

  private isDiscarded(spec: Unit, acked: boolean): boolean {
    return this.discards.some(
      (note) => (note.acked || !acked) && spec.stripe >= note.stripe && spec.epoch < note.epoch,
    );
  }

  /** A newer version, at or below a commit mark that somebody has sent, is held (or was discarded). */
  private isSuperseded(spec: Unit, held: ReadonlySet<string>): boolean {
    const marks = this.all.filter((note) => note.what === 'unit' && note.spec.mark > 0) as Extract<
      Note,
      { what: 'unit' }
    >[];
    for (const [other] of this.submitted.values()) {
      if (
        other!.stripe !== spec.stripe ||
        other!.unit !== spec.unit ||
        compareVersions(other!.epoch, other!.counter, spec.epoch, spec.counter) <= 0
      )
        continue;
      if (!held.has(name(other!)) && !this.isDiscarded(other!, false)) continue;
      if (marks.some((note) => compareVersions(note.spec.epoch, note.spec.mark, other!.epoch, other!.counter) >= 0))
        return true;
    }
    return false;
  }
}

const location = emptyLocation(),
  header = new Uint8Array(2 * BLOCK_BYTES),
  payload = new Uint8Array(64 << 10);

/**
 * Opens a store on a crash state, checks it, goes on with it, closes it, opens it again and checks it again.
 *
 * @throws {Error} for a promise broken; {TartanError} when the store can't be opened
 */
export async function mount(disk: MemoryDisk, notes: readonly unknown[]): Promise<void> {
  const promised = new Promised(notes),
    store = await openPooled(disk);
  await promised.check(store);
  const spec = {
    fileId: 999,
    stripe: 0,
    unit: 0,
    epoch: 1,
    counter: 1,
    seed: 77,
    mark: 0,
    unitBytes: 512,
    missing: 0n,
  };
  const refusal = await new Client().append(store, unitOf(spec));
  if (refusal !== Refusal.NONE && refusal !== Refusal.DISK_FULL)
    throw new Error(`the store does not go on: ${refusal}`);
  await store.close();
  const after = new Promised([...notes, { what: 'unit', acked: refusal === Refusal.NONE, spec } satisfies Note]),
    again = await openPooled(disk.crash());
  await after.check(again);
  // Opening settles what was torn, however full the log: by VOID entries or by a checkpoint, for which there is always
  // room.
  if (again.recovery.torn > 0) throw new Error('a store that was closed finds torn units');
  await again.close();
}
