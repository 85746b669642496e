/** The index of files by state says at every moment what the records say, and is made where it is missing. */
import t from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { listDeleted, listOpen } from '../../cluster/file-states.js';
import {
  createFile,
  decide,
  deleteFile,
  forgetFile,
  giveUp,
  publishCommit,
  publishFile,
  renewOwner,
  takeOver,
} from '../../cluster/files.js';
import { CLUSTER_KEY, DELETED_FILES, FILES_BY_ID, OPEN_FILES } from '../../cluster/keys.js';
import { createCluster, readIdentity } from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import type { FileRecord } from '../../cluster/records.js';
import { TartanError, isOperating } from '../../wire/errors.js';
import { VirtualClock } from './virtual-clock.js';

const shape = { code: 'rs(2,1)', unitBytes: 65_536, nodes: ['n1', 'n2', 'n3'], modified: '2026-01-01T00:00:00.000Z' };

async function cluster(): Promise<ClusterStore> {
  const store = new MemoryCluster(new VirtualClock()).client();
  await createCluster(store);
  return store;
}

async function records(store: ClusterStore): Promise<FileRecord[]> {
  return (await store.range(FILES_BY_ID)).map(({ value }) => JSON.parse(value) as FileRecord);
}

/** What the records say, in the form of the index. */
async function expected(store: ClusterStore): Promise<object> {
  const of = (state: string, all: FileRecord[]): object[] =>
    all.filter((file) => file.state === state).map(({ id, writerEpoch }) => ({ id, writerEpoch }));
  const all = await records(store);
  return { open: of('open', all), deleted: of('deleted', all) };
}

async function index(store: ClusterStore): Promise<object> {
  return { open: await listOpen(store), deleted: await listDeleted(store) };
}

type Operation = (store: ClusterStore, file: FileRecord) => Promise<unknown>;

const commitOf = ({ writerEpoch, length, commitCounter }: FileRecord) => ({
  writerEpoch,
  length,
  commitEpoch: writerEpoch,
  commitCounter: commitCounter + 1,
});
const OPERATIONS: Operation[] = [
  (store, { id }) => takeOver(store, id),
  (store, file) => decide(store, file.id, { ...commitOf(file), decidedStripes: 0 }),
  (store, file) => giveUp(store, file.id, file.writerEpoch),
  (store, file) => publishCommit(store, file.id, commitOf(file)),
  (store, file) => publishCommit(store, file.id, { ...commitOf(file), state: 'closed' }),
  (store, file) => publishFile(store, file.id, { ...commitOf(file), replace: true }),
  (store, { id, writerEpoch, length }) => renewOwner(store, id, { writerEpoch, length, stripes: 0, mapEpoch: 1 }),
  (store, { id }) => deleteFile(store, id),
  (store, { id }) => forgetFile(store, id),
];

t.test('after any operations on files the index says what the records say', async (t) => {
  const store = await cluster(),
    wrong: object[] = [],
    met = new Set<number>();
  // A fixed walk: each file meets every operation after every other one, in some order.
  for (let first = 0; first < OPERATIONS.length; first++) {
    for (let second = 0; second < OPERATIONS.length; second++) {
      const name = `f${first}${second % 3}`;
      const { id } = await createFile(store, { name, ...shape, unnamed: true, replace: true });
      for (const number of [first, second, (first + second) % OPERATIONS.length]) {
        const file = (await records(store)).find((record) => record.id === id);
        if (file === undefined) break;
        try {
          await OPERATIONS[number]!(store, file);
          met.add(number);
        } catch (error) {
          if (!isOperating(error)) throw error;
        }
        const [is, ought] = [await index(store), await expected(store)];
        if (JSON.stringify(is) !== JSON.stringify(ought)) wrong.push({ first, second, number, is, ought });
      }
    }
  }
  t.same(wrong, []);
  t.equal(met.size, OPERATIONS.length, 'every operation has succeeded somewhere');
});

/** A store as format 1 left it: no index, and its version says so. */
async function ofFormat1(): Promise<ClusterStore> {
  const store = await cluster();
  for (let i = 0; i < 200; i++) {
    const { id } = await createFile(store, { name: `f${i}`, ...shape });
    if (i % 3 > 0)
      await publishCommit(store, id, { writerEpoch: 1, length: 1, commitEpoch: 1, commitCounter: 1, state: 'closed' });
    if (i % 7 === 0) await deleteFile(store, id);
  }
  for (const prefix of [OPEN_FILES, DELETED_FILES])
    for (const { key } of await store.range(prefix)) await store.transact([], [{ delete: key }]);
  const identity = JSON.parse((await store.get(CLUSTER_KEY))!.value) as object;
  await store.transact([], [{ put: CLUSTER_KEY, value: JSON.stringify({ ...identity, formatVersion: 1 }) }]);
  return store;
}

t.test(
  'a store of format 1 gets its index once, from whoever opens it first, and of several one finishes',
  async (t) => {
    const store = await ofFormat1(),
      before = await records(store);
    const made = await Promise.all([readIdentity(store), readIdentity(store), readIdentity(store)]);
    t.same(new Set(made.map(({ formatVersion }) => formatVersion)), new Set([2]));
    t.same(await index(store), await expected(store));
    t.same(await records(store), before, 'no record has changed');
    const { modRevision } = (await store.get(CLUSTER_KEY))!;
    await readIdentity(store);
    t.equal((await store.get(CLUSTER_KEY))!.modRevision, modRevision);
  },
);

t.test('an index that somebody began and did not finish is made by the next', async (t) => {
  const store = await ofFormat1();
  let left = 2;
  const dying: ClusterStore = Object.assign(Object.create(store) as ClusterStore, {
    transact: (...args: Parameters<ClusterStore['transact']>) => {
      if (left-- <= 0) throw new TartanError('ERR_MAP_UNAVAILABLE', 'the store went away');
      return store.transact(...args);
    },
    get: (key: string) => store.get(key),
    range: (prefix: string) => store.range(prefix),
  });
  await t.rejects(readIdentity(dying), { code: 'ERR_MAP_UNAVAILABLE' });
  t.ok((await listOpen(store)).length > 0, 'something of it is there');
  t.notSame(await index(store), await expected(store));
  await readIdentity(store);
  t.same(await index(store), await expected(store));
});

t.test('who builds late, while others work already, changes nothing', async (t) => {
  const store = await ofFormat1();
  let isFirst = true;
  const slow: ClusterStore = Object.assign(Object.create(store) as ClusterStore, {
    range: async (prefix: string) => {
      const rows = await store.range(prefix);
      if (isFirst) {
        isFirst = false;
        await readIdentity(store); // another is faster, and somebody deletes a file
        await deleteFile(
          store,
          rows.map(({ value }) => JSON.parse(value) as FileRecord).find((r) => r.state === 'open')!.id,
        );
      }
      return rows;
    },
    get: (key: string) => store.get(key),
    transact: (...args: Parameters<ClusterStore['transact']>) => store.transact(...args),
  });
  await readIdentity(slow);
  t.same(await index(store), await expected(store));
});
