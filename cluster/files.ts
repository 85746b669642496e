/**
 * The files: who owns one, how far it reaches. Typed operations on any ClusterStore.
 *
 *   absent ──createFile──► open (writer epoch 1) ──publishCommit(state: 'closed')──► closed
 *                           ▲ │                                                        │
 *                           └─┴──── takeOver, renewOwner (epoch + 1) ◄─────────────────┘
 *   open, closed ──deleteFile (epoch + 1, name freed)──► deleted ──forgetFile──► absent; the id is never given again
 *
 * Invariants: writerEpoch only grows, and whoever holds an older one changes nothing here; length and commit mark never
 * go back, except by the decision of a new owner.
 */
import { compareVersions, MAX_UNIT_BYTES, MIN_UNIT_BYTES } from '../wire/unit-header.js';
import { TartanError } from '../wire/errors.js';
import type { ClusterStore } from './cluster-store.js';
import { editJson, parseJson, untilApplied } from './compare-and-swap.js';
import { checkFileName } from './file-name.js';
import { indexed } from './file-states.js';
import { FILES_BY_ID, FILE_ID_KEY, MAP_KEY, UNNAMED_FILES, fileIdKey, fileNameKey, unnamedKey } from './keys.js';
import type { ClusterMap, EpochFloor, FileRecord } from './records.js';

/** As headers carry it: 32 bits. The last one is for whoever deletes the file. */
const MAX_WRITER_EPOCH = 0xffff_ffff;
/**
 * The oldest floors are forgotten first: they lie where units have long been superseded everywhere, or their nodes
 * rebuilt.
 */
const MAX_FLOORS = 64;

/** ISO time to record as `modified`; simulations give their own, else it is now. */
export interface Timestamped {
  readonly modified?: string;
}

export interface NewFile extends Timestamped {
  readonly name: string;
  /** e.g. 'rs(4,2)'; erasure/ knows what it means. */
  readonly code: string;
  /** A power of two. */
  readonly unitBytes: number;
  /** Node ids in placement order. */
  readonly nodes: readonly string[];
  /** Default 'rotated'. */
  readonly layout?: string;
  /** The map's epoch when the nodes were chosen. */
  readonly mapEpoch?: number;
  /** The map's `changes` then: a node that is to be drained since gets no file any more. */
  readonly mapChanges?: number;
  /** It gets its name from publishFile(), when it is complete; until then only its id leads to it. */
  readonly unnamed?: boolean;
  /** An unnamed file is to replace one of that name: it may be there already. */
  readonly replace?: boolean;
}

export interface Commit extends Timestamped {
  /** The publisher's. */
  readonly writerEpoch: number;
  /** Acknowledged bytes. */
  readonly length: number;
  readonly commitEpoch: number;
  readonly commitCounter: number;
}

/**
 * Creates a file owned by the caller: its writer epoch is 1.
 *
 * @throws {TartanError} ERR_EXISTS: the name is taken · ERR_ARGUMENT: a bad name, no nodes or one twice ·
 * ERR_UNIT_BYTES · ERR_NOT_FOUND: no cluster in this store · ERR_STALE_MAP: the map is not that of `mapChanges`
 */
export async function createFile(store: ClusterStore, file: NewFile): Promise<FileRecord> {
  checkNewFile(file);
  const { name, code, unitBytes } = file;
  const nameKey = fileNameKey(name);
  return untilApplied(`create '${name}'`, async () => {
    const map = file.mapChanges === undefined ? undefined : await store.get(MAP_KEY);
    if (map !== undefined && parseJson<ClusterMap>(map).changes !== file.mapChanges)
      throw new TartanError(
        'ERR_STALE_MAP',
        `Cannot create '${name}': the cluster map has changed since its nodes were chosen`,
      );
    const [lastId, taken] = [await store.get(FILE_ID_KEY), await store.get(nameKey)];
    const unnamed = file.unnamed === true;
    if (taken && !(unnamed && file.replace === true)) throw isTaken('create', name, taken.value);
    if (!lastId) throw new TartanError('ERR_NOT_FOUND', `Cannot create '${name}': this store holds no cluster`);
    const id = Number(lastId.value) + 1;
    if (!Number.isSafeInteger(id))
      throw new TartanError('ERR_CAPACITY', `Cannot create '${name}': all file ids up to ${id - 1} have been given`);
    const record: FileRecord = {
      id,
      name,
      code,
      unitBytes,
      nodes: [...file.nodes],
      ...(file.layout !== undefined && { layout: file.layout }),
      ...(unnamed && { unnamed: true as const }),
      writerEpoch: 1,
      length: 0,
      commitEpoch: 0,
      commitCounter: 0,
      decidedEpoch: 0,
      decidedStripes: 0,
      ...(file.mapEpoch !== undefined && { decidedMapEpoch: file.mapEpoch }),
      state: 'open',
      modified: stamp(file),
    };
    const { succeeded } = await store.transact(
      [
        { key: FILE_ID_KEY, modRevision: lastId.modRevision },
        ...(unnamed ? [] : [{ key: nameKey, modRevision: 0 }]),
        ...(map === undefined ? [] : [{ key: MAP_KEY, modRevision: map.modRevision }]),
      ],
      [
        { put: FILE_ID_KEY, value: String(id) },
        { put: unnamed ? unnamedKey(id) : nameKey, value: String(id) },
        { put: fileIdKey(id), value: JSON.stringify(record) },
        ...indexed(undefined, record),
      ],
    );
    return succeeded ? record : undefined;
  });
}

/** @throws {TartanError} ERR_NOT_FOUND: no file of that name · ERR_ARGUMENT: not a name */
export async function lookupFile(store: ClusterStore, name: string): Promise<FileRecord> {
  checkFileName(name);
  const row = await store.get(fileNameKey(name));
  const record = row && (await findFile(store, Number(row.value)));
  // A file deleted between the two reads is not there either.
  if (!record || record.state === 'deleted')
    throw new TartanError('ERR_NOT_FOUND', `Cannot find '${name}': there is no such file`);
  return record;
}

/** The record of a file, deleted ones included. @throws {TartanError} ERR_NOT_FOUND */
export async function readFile(store: ClusterStore, id: number): Promise<FileRecord> {
  const record = await findFile(store, id);
  if (!record) throw noFile('read', id);
  return record;
}

/** Ids of the files without a name: being written, or abandoned. */
export async function listUnnamed(store: ClusterStore): Promise<number[]> {
  return (await store.range(UNNAMED_FILES)).map(({ value }) => Number(value));
}

/** All files that are not deleted, ascending by id, those without a name too. Only the open ones: listOpen(). */
export async function listFiles(store: ClusterStore): Promise<FileRecord[]> {
  const records = (await store.range(FILES_BY_ID)).map((row) => parseJson<FileRecord>(row));
  return records.filter(({ state }) => state !== 'deleted');
}

/**
 * Makes the caller the file's owner: from now on every older writer epoch is fenced here; the nodes are for the caller
 * to fence, and the unfinished stripes to decide.
 *
 * @returns the record, with the caller's writer epoch
 * @throws {TartanError} ERR_NOT_FOUND: no such file, or deleted · ERR_CAPACITY: no writer epoch is left
 */
export function takeOver(store: ClusterStore, id: number, options: Timestamped = {}): Promise<FileRecord> {
  return editFile(store, 'take over', id, (record) => {
    if (record.state === 'deleted') throw noFile('take over', id, 'it is deleted');
    return {
      ...record,
      ...(isSettled(record) && { closedEpoch: record.closedEpoch ?? record.writerEpoch }),
      writerEpoch: nextEpoch('take over', record),
      state: 'open',
      modified: stamp(options),
    };
  });
}

/**
 * The owner itself goes on under a new writer epoch, because the versions of the present one are used up. It has
 * nothing under way, and the file ends with a full stripe: so everything is decided with the same step, and no unit
 * has to be written again. Doing it again is harmless: it tells whether an earlier attempt had succeeded.
 *
 * @param renewal.writerEpoch  the owner's  @param renewal.length  all of it acknowledged
 * @param renewal.stripes  full stripes that `length` makes
 * @param renewal.mapEpoch  the owner will write nothing under an older map
 * @returns the record, with the owner's new epoch
 * @throws {TartanError} ERR_FENCED: somebody else owns the file by now · ERR_NOT_FOUND · ERR_CAPACITY: no epoch is left
 */
export function renewOwner(
  store: ClusterStore,
  id: number,
  renewal: Timestamped & {
    readonly writerEpoch: number;
    readonly length: number;
    readonly stripes: number;
    readonly mapEpoch: number;
  },
): Promise<FileRecord> {
  return editFile(store, 'renew the epoch of', id, (record) => {
    const { writerEpoch, length, stripes, mapEpoch } = renewal;
    if (record.writerEpoch === writerEpoch + 1 && record.renewedFrom === writerEpoch && record.state !== 'deleted')
      return record;
    checkOwner(record, { writerEpoch, length, commitEpoch: writerEpoch, commitCounter: 0 }, 'renew the epoch of');
    const next = nextEpoch('renew the epoch of', record);
    return {
      ...record,
      writerEpoch: next,
      renewedFrom: writerEpoch,
      length,
      commitEpoch: next,
      commitCounter: 0,
      decidedEpoch: next,
      decidedStripes: stripes,
      decidedMapEpoch: mapEpoch,
      modified: stamp(renewal),
    };
  });
}

/**
 * A takeover that failed before it decided gives up: a file that was closed is closed again, as it was. What its owner
 * has written meanwhile is above the commit mark, and no part of the file.
 */
export async function giveUp(store: ClusterStore, id: number, writerEpoch: number): Promise<void> {
  await editFile(store, 'give up', id, (record) =>
    record.writerEpoch === writerEpoch && record.state === 'open' && record.closedEpoch !== undefined
      ? { ...record, state: 'closed' }
      : record,
  );
}

/** Nothing of it is undecided: its last owner had decided, and closed it. */
export function isSettled(record: FileRecord): boolean {
  return (
    record.state === 'closed' &&
    (record.writerEpoch === 1 || record.decidedEpoch === record.writerEpoch || record.closedEpoch !== undefined)
  );
}

/**
 * Publishes how far the owner has come. Length and mark never go back: a late publication changes neither. Nor does one
 * of a new owner that has not decided yet: its mark would cover versions of earlier epochs that nobody has decided.
 *
 * @param commit.state  'closed' when the owner is done
 * @returns the record now in the store
 * @throws {TartanError} ERR_FENCED: the file has a newer owner, or is deleted · ERR_NOT_FOUND ·
 * ERR_ARGUMENT: an epoch that nobody was given, or a commit mark of an epoch above the publisher's
 */
export function publishCommit(
  store: ClusterStore,
  id: number,
  commit: Commit & { readonly state?: 'open' | 'closed' },
): Promise<FileRecord> {
  return editFile(store, 'publish a commit of', id, (record) => {
    checkOwner(record, commit, 'publish a commit of');
    const isDecided = record.writerEpoch === 1 || record.decidedEpoch === record.writerEpoch;
    const isNewer =
      isDecided &&
      compareVersions(commit.commitEpoch, commit.commitCounter, record.commitEpoch, record.commitCounter) > 0;
    const next: FileRecord = {
      ...record,
      ...(isNewer && { commitEpoch: commit.commitEpoch, commitCounter: commit.commitCounter }),
      length: isDecided ? Math.max(record.length, commit.length) : record.length,
      state: commit.state ?? record.state,
    };
    return isSame(record, next) ? record : { ...next, modified: stamp(commit) };
  });
}

/**
 * Closes an unnamed file that is complete, and gives it its name, in one transaction: who looks the name up finds what
 * was there before, or all of the new file. Doing the same again is harmless.
 *
 * @param commit.replace  a file of that name is deleted, in the same transaction
 * @returns the record, and that of the file it replaced: its nodes are to free its units
 * @throws {TartanError} ERR_EXISTS: the name is taken · ERR_FENCED: the file has a newer owner, or is deleted ·
 * ERR_NOT_FOUND
 */
export async function publishFile(
  store: ClusterStore,
  id: number,
  commit: Commit & { readonly replace: boolean },
): Promise<{ file: FileRecord; replaced: FileRecord | undefined }> {
  return untilApplied(`name file ${id}`, async () => {
    const row = await store.get(fileIdKey(id));
    if (!row) throw noFile('name', id);
    const record = parseJson<FileRecord>(row);
    checkOwner(record, commit, 'name');
    if (record.unnamed === undefined) return { file: record, replaced: undefined };
    const { unnamed: _, ...rest } = record,
      { name } = record;
    const taken = await store.get(fileNameKey(name));
    if (taken && !commit.replace) throw isTaken('name', name, taken.value);
    const old = taken && (await store.get(fileIdKey(Number(taken.value))));
    const known = old && parseJson<FileRecord>(old),
      replaced = known && deleted(known, commit);
    const file: FileRecord = {
      ...rest,
      length: Math.max(record.length, commit.length),
      commitEpoch: commit.commitEpoch,
      commitCounter: commit.commitCounter,
      state: 'closed',
      modified: stamp(commit),
    };
    const { succeeded } = await store.transact(
      [
        { key: row.key, modRevision: row.modRevision },
        { key: fileNameKey(name), modRevision: taken?.modRevision ?? 0 },
        ...(old ? [{ key: old.key, modRevision: old.modRevision }] : []),
      ],
      [
        { put: row.key, value: JSON.stringify(file) },
        ...indexed(record, file),
        { delete: unnamedKey(id) },
        { put: fileNameKey(name), value: String(id) },
        ...(old ? [{ put: old.key, value: JSON.stringify(replaced) }, ...indexed(known, replaced)] : []),
      ],
    );
    return succeeded ? { file, replaced } : undefined;
  });
}

/**
 * Records the owner's decision about what earlier owners left unfinished; durable when it resolves. Deciding the same
 * again is harmless.
 *
 * @param decision.decidedStripes  versions of epochs below the owner's exist only in stripes below this
 * @param decision.mapEpoch  the owner has written nothing under an older map
 * @param decision.fromStripe  the owner has looked at all stripes from here on, and written again what it kept of them
 * @throws {TartanError} ERR_FENCED · ERR_NOT_FOUND · ERR_ARGUMENT · ERR_EXISTS: this epoch decided otherwise before
 */
export function decide(
  store: ClusterStore,
  id: number,
  decision: Commit & { readonly decidedStripes: number; readonly mapEpoch?: number; readonly fromStripe?: number },
): Promise<FileRecord> {
  return editFile(store, 'decide', id, (record) => {
    checkOwner(record, decision, 'decide');
    checkCount('decide', id, 'decidedStripes', decision.decidedStripes);
    const { writerEpoch, decidedStripes, length, commitEpoch, commitCounter, fromStripe } = decision;
    if (record.decidedEpoch === writerEpoch) {
      if (record.decidedStripes === decidedStripes) return record;
      throw new TartanError(
        'ERR_EXISTS',
        `Cannot decide file ${id}: epoch ${writerEpoch} decided for ${record.decidedStripes} stripes, not ` +
          `for ${decidedStripes}`,
      );
    }
    const { decidedMapEpoch: _, closedEpoch: __, ...rest } = record;
    return {
      ...rest,
      decidedEpoch: writerEpoch,
      decidedStripes,
      ...(decision.mapEpoch !== undefined && { decidedMapEpoch: decision.mapEpoch }),
      length,
      commitEpoch,
      commitCounter,
      ...(fromStripe !== undefined && { floors: raised(record.floors ?? [], fromStripe, writerEpoch) }),
      modified: stamp(decision),
    };
  });
}

/** The owner of that epoch says that it is there, if anybody has asked since it last said so. */
export async function answerPresence(store: ClusterStore, id: number, writerEpoch: number): Promise<void> {
  await editFile(store, 'answer for', id, (record) =>
    record.asked === undefined ||
    record.answered === record.asked ||
    record.writerEpoch !== writerEpoch ||
    record.state !== 'open'
      ? record
      : { ...record, answered: record.asked },
  );
}

/** The lowest writer epoch that a committed version of this stripe can have; 0: any. */
export function epochFloor({ floors }: FileRecord, stripe: number): number {
  if (floors === undefined) return 0;
  for (let i = floors.length - 1; i >= 0; i--) if (floors[i]!.stripe <= stripe) return floors[i]!.epoch;
  return 0;
}

/**
 * Whether the record calls this version of a stripe committed. What it calls so stays so; what it doesn't may be all
 * the same.
 */
export function isCommitted(record: FileRecord, stripe: number, writerEpoch: number, counter: number): boolean {
  return (
    compareVersions(writerEpoch, counter, record.commitEpoch, record.commitCounter) <= 0 &&
    writerEpoch >= epochFloor(record, stripe) &&
    (writerEpoch >= record.decidedEpoch || stripe < record.decidedStripes)
  );
}

/**
 * Each takeover begins where the file's length was, so the list ascends; a decision at the same stripe replaces the one
 * before.
 */
function raised(floors: readonly EpochFloor[], stripe: number, epoch: number): EpochFloor[] {
  return [...floors.filter((floor) => floor.stripe < stripe), { stripe, epoch }].slice(-MAX_FLOORS);
}

/**
 * Deletes a file: its name is free at once, its owner fenced; the record stays as 'deleted' until forgetFile().
 *
 * @param options.onlyUnnamed  not when it has got its name meanwhile
 * @returns the deleted record: its nodes are to free the units, fenced at its writer epoch
 * @throws {TartanError} ERR_NOT_FOUND: no such file, or deleted already · ERR_EXISTS: it has a name
 */
export async function deleteFile(
  store: ClusterStore,
  id: number,
  options: Timestamped & { readonly onlyUnnamed?: boolean } = {},
): Promise<FileRecord> {
  return untilApplied(`delete file ${id}`, async () => {
    const row = await store.get(fileIdKey(id));
    if (!row) throw noFile('delete', id);
    const record = parseJson<FileRecord>(row);
    if (record.state === 'deleted') throw noFile('delete', id, 'it is deleted');
    if (options.onlyUnnamed === true && record.unnamed === undefined)
      throw new TartanError('ERR_EXISTS', `Cannot delete file ${id} as one without a name: it is '${record.name}'`);
    const next = deleted(record, options);
    // The name is this file's as long as the file is not deleted, so the record's revision guards both keys.
    const { succeeded } = await store.transact(
      [{ key: row.key, modRevision: row.modRevision }],
      [
        { put: row.key, value: JSON.stringify(next) },
        ...indexed(record, next),
        { delete: record.unnamed ? unnamedKey(id) : fileNameKey(record.name) },
      ],
    );
    return succeeded ? next : undefined;
  });
}

/**
 * Removes a deleted file's record, when all its nodes have freed its units.
 * @throws {TartanError} ERR_IN_USE when it is not deleted
 */
export async function forgetFile(store: ClusterStore, id: number): Promise<void> {
  await untilApplied(`forget file ${id}`, async () => {
    const row = await store.get(fileIdKey(id));
    if (!row) return true;
    const record = parseJson<FileRecord>(row);
    if (record.state !== 'deleted') throw new TartanError('ERR_IN_USE', `Cannot forget file ${id}: it is not deleted`);
    const { succeeded } = await store.transact(
      [{ key: row.key, modRevision: row.modRevision }],
      [{ delete: row.key }, ...indexed(record, undefined)],
    );
    return succeeded || undefined;
  });
}

async function findFile(store: ClusterStore, id: number): Promise<FileRecord | undefined> {
  const row = await store.get(fileIdKey(id));
  return row && parseJson<FileRecord>(row);
}

function editFile(
  store: ClusterStore,
  verb: string,
  id: number,
  edit: (record: FileRecord) => FileRecord,
): Promise<FileRecord> {
  return editJson<FileRecord>(
    store,
    fileIdKey(id),
    `${verb} file ${id}`,
    (record) => {
      if (!record) throw noFile(verb, id);
      return edit(record);
    },
    indexed,
  );
}

/** @throws {TartanError} ERR_CAPACITY: the next epoch is the last, and kept for whoever deletes the file */
function nextEpoch(verb: string, { name, writerEpoch }: FileRecord): number {
  if (writerEpoch < MAX_WRITER_EPOCH - 1) return writerEpoch + 1;
  throw new TartanError(
    'ERR_CAPACITY',
    `Cannot ${verb} '${name}': its writer epoch is ${writerEpoch}, at most ${MAX_WRITER_EPOCH - 1} can be given`,
  );
}

function deleted(record: FileRecord, at: Timestamped): FileRecord {
  return { ...record, state: 'deleted', writerEpoch: record.writerEpoch + 1, modified: stamp(at) };
}

function isTaken(verb: string, name: string, id: string): TartanError {
  return new TartanError('ERR_EXISTS', `Cannot ${verb} '${name}': the name is taken by file ${id}`);
}

function checkOwner(
  record: FileRecord,
  { writerEpoch, length, commitEpoch, commitCounter }: Commit,
  verb: string,
): void {
  if (record.writerEpoch > writerEpoch) {
    const why = record.state === 'deleted' ? 'it is deleted' : `its owner has epoch ${record.writerEpoch}`;
    throw new TartanError('ERR_FENCED', `Cannot ${verb} '${record.name}' as epoch ${writerEpoch}: ${why}`);
  }
  if (record.writerEpoch < writerEpoch || commitEpoch > writerEpoch) {
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot ${verb} '${record.name}' as epoch ${writerEpoch} with a commit of epoch ${commitEpoch}: the ` +
        `newest epoch given is ${record.writerEpoch}`,
    );
  }
  for (const [what, value] of [
    ['length', length],
    ['commitEpoch', commitEpoch],
    ['commitCounter', commitCounter],
  ] as const)
    checkCount(verb, record.id, what, value);
}

function checkCount(verb: string, id: number, what: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new TartanError('ERR_ARGUMENT', `Cannot ${verb} file ${id}: ${what} is ${value}, expected a whole number`);
}

function checkNewFile({ name, code, unitBytes, nodes }: NewFile): void {
  checkFileName(name);
  const refuse = (why: string) => new TartanError('ERR_ARGUMENT', `Cannot create '${name}': ${why}`);
  if (code === '') throw refuse('it has no code');
  if (nodes.length === 0) throw refuse('it has no nodes');
  if (new Set(nodes).size !== nodes.length) throw refuse(`a node is named twice in ${nodes.join(', ')}`);
  if (!Number.isInteger(Math.log2(unitBytes)) || unitBytes < MIN_UNIT_BYTES || unitBytes > MAX_UNIT_BYTES) {
    throw new TartanError(
      'ERR_UNIT_BYTES',
      `Cannot create '${name}': a unit of ${unitBytes} bytes, expected a power of two ` +
        `from ${MIN_UNIT_BYTES} to ${MAX_UNIT_BYTES}`,
    );
  }
}

function isSame(a: FileRecord, b: FileRecord): boolean {
  return (
    a.commitEpoch === b.commitEpoch &&
    a.commitCounter === b.commitCounter &&
    a.length === b.length &&
    a.state === b.state
  );
}

function noFile(verb: string, id: number, why = 'there is no such file'): TartanError {
  return new TartanError('ERR_NOT_FOUND', `Cannot ${verb} file ${id}: ${why}`);
}

function stamp({ modified }: Timestamped): string {
  return modified ?? new Date().toISOString();
}
