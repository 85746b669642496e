/**
 * The record's part of a share's move, on both kinds of store: one transaction, and only while the file is as it was.
 */
import t, { type Test } from 'tap';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { openEtcdStore } from '../../cluster/etcd-store.js';
import {
  answerPresence,
  createFile,
  decide,
  listFiles,
  publishCommit,
  readFile,
  isSettled,
  takeOver,
} from '../../cluster/files.js';
import {
  createCluster,
  purposeOf,
  readMap,
  registerNode,
  setNodePurpose,
  setNodeState,
} from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { askOwners, beginMoves, enlistSpares, finishMoves, MOVES_AT_ONCE, storesOf } from '../../cluster/moves.js';
import type { FileRecord } from '../../cluster/records.js';
import { realClock } from '../../wire/clock.js';
import { etcdMissing, EtcdServer } from './etcd-server.js';

const missing = etcdMissing();
/** As the writer library's, for files that are not spread. */
const same = (): undefined => undefined;

async function withNodes(store: ClusterStore): Promise<ClusterStore> {
  await createCluster(store);
  for (const id of ['a', 'b', 'c', 'd', 'e'])
    await registerNode(store, { id, host: 'h', port: 1, controlPort: 0, state: 'up', store: `${id}-1` });
  return store;
}

async function memory(t: Test): Promise<ClusterStore> {
  const shared = new MemoryCluster(realClock);
  t.teardown(() => {
    shared.close();
  });
  return withNodes(shared.client());
}

async function made(store: ClusterStore, name: string): Promise<FileRecord> {
  const { id } = await createFile(store, {
    name,
    code: 'xor(2+1)',
    unitBytes: 1024,
    nodes: ['a', 'b', 'c'],
    mapEpoch: 1,
  });
  return publishCommit(store, id, { writerEpoch: 1, length: 5000, commitEpoch: 1, commitCounter: 3, state: 'closed' });
}

async function planned(store: ClusterStore, file: FileRecord, index = 1, to = 'd') {
  return { file, index, to, stores: storesOf(await readMap(store), { file, to }) };
}

t.test(
  "a share moves: the record says who is being filled, then whose it is; both raise the map's epoch",
  async (t) => {
    const store = await memory(t),
      file = await made(store, 'x'),
      before = await readMap(store);
    const [begun] = await beginMoves(store, [await planned(store, file)]);
    t.match(begun, { file: { nodes: ['a', 'b', 'c'], moves: [{ index: 1, to: 'd' }] } });
    t.match(await readMap(store), { epoch: before.epoch + 1, moved: before.epoch + 1 });
    t.match(await beginMoves(store, [begun!]), [{ file: begun!.file }], 'again');
    t.equal((await readMap(store)).epoch, before.epoch + 1, 'changes nothing');
    const [done] = await finishMoves(store, [begun!], same),
      epoch = before.epoch + 2;
    t.match(done, {
      file: { nodes: ['a', 'd', 'c'], nodesSince: [0, epoch, 0], decidedMapEpoch: epoch, length: 5000, writerEpoch: 1 },
    });
    t.equal(done!.file.moves, undefined);
    t.same(await readFile(store, file.id), done!.file);
    t.match(await readMap(store), { epoch, moved: epoch });
    t.same(await finishMoves(store, [begun!], same), [], 'once');
  },
);

t.test(
  'nothing begins for a file that is open, has moved, or uses the node; nothing ends when anything has changed since',
  async (t) => {
    const store = await memory(t),
      file = await made(store, 'x');
    const opened = await takeOver(store, file.id);
    t.notOk(isSettled(opened));
    t.same(await beginMoves(store, [await planned(store, file)]), [], 'it is open');
    const decided = await decide(store, file.id, {
      writerEpoch: 2,
      decidedStripes: 3,
      length: 5000,
      commitEpoch: 2,
      commitCounter: 1,
    });
    const closed = await publishCommit(store, file.id, {
      writerEpoch: 2,
      length: 5000,
      commitEpoch: 2,
      commitCounter: 1,
      state: 'closed',
    });
    t.same([isSettled(decided), isSettled(closed)], [false, true]);
    t.same(await beginMoves(store, [await planned(store, closed, 1, 'c')]), [], 'it uses that node');
    t.same(await beginMoves(store, [await planned(store, closed, 1, 'z')]), [], 'there is no such node');
    t.same(
      await beginMoves(store, [await planned(store, { ...closed, nodes: ['a', 'e', 'c'] })]),
      [],
      'another has that index',
    );
    const [begun] = await beginMoves(store, [await planned(store, closed)]);
    const ends = async (why: string): Promise<void> => {
      t.same(await finishMoves(store, [begun!], same), [], why);
    };
    await setNodeState(store, 'd', 'down');
    await ends('the new node is down');
    await setNodeState(store, 'd', 'up');
    await registerNode(store, { id: 'd', host: 'h', port: 1, controlPort: 0, store: 'd-2' });
    await ends('it has another store');
    const [again] = await beginMoves(store, [await planned(store, begun!.file)]);
    const [other] = await beginMoves(store, [await planned(store, closed, 1, 'e')]);
    t.same(await finishMoves(store, [again!], same), [], 'another move was begun instead');
    await takeOver(store, file.id);
    t.same(await finishMoves(store, [other!], same), [], 'it has a new owner');
    t.same((await readFile(store, file.id)).nodes, ['a', 'b', 'c']);
  },
);

t.test('owners are asked all at once, and answer for themselves alone', async (t) => {
  const store = await memory(t),
    [one, two] = [
      await takeOver(store, (await made(store, 'one')).id),
      await takeOver(store, (await made(store, 'two')).id),
    ];
  const before = await readMap(store);
  await askOwners(store, [one.id, two.id]);
  t.match(
    await readMap(store),
    { epoch: before.epoch, changes: before.changes + 1, questions: 1 },
    'nobody is disturbed',
  );
  await answerPresence(store, one.id, one.writerEpoch);
  await answerPresence(store, two.id, two.writerEpoch - 1);
  t.match(
    (await listFiles(store)).map(({ asked, answered }) => [asked, answered]),
    [
      [1, 1],
      [1, undefined],
    ],
    'who was fenced is not heard',
  );
  await askOwners(store, [one.id]);
  t.match(await readFile(store, one.id), { asked: 2, answered: 1 });
});

t.test('a spare that has shares is a member, and stays up to date with what it is for', async (t) => {
  const store = await memory(t),
    file = await made(store, 'x');
  for (const id of ['d', 'e']) await setNodePurpose(store, id, 'spare');
  const { epoch } = await readMap(store);
  await registerNode(store, { id: 'd', host: 'h', port: 2, controlPort: 0, store: 'd-1' });
  t.equal(purposeOf((await readMap(store)).nodes[3]!), 'spare', 'a restart does not change it');
  t.equal((await readMap(store)).epoch, epoch + 1);
  const [begun] = await beginMoves(store, [await planned(store, file)]);
  await enlistSpares(store);
  t.same(
    (await readMap(store)).nodes.map(purposeOf),
    ['member', 'member', 'member', 'spare', 'spare'],
    'not while it is being filled',
  );
  await finishMoves(store, [begun!], same);
  await enlistSpares(store);
  t.same((await readMap(store)).nodes.map(purposeOf), ['member', 'member', 'member', 'member', 'spare']);
});

t.test(
  'as many as move at once fit a transaction of etcd; of two that finish the same moves one does',
  { skip: missing },
  async (t) => {
    const server = await EtcdServer.start();
    const [store, other] = [await openEtcdStore(server.location()), await openEtcdStore(server.location())];
    t.teardown(async () => {
      await Promise.all([store.close(), other.close()]);
      await server.stop();
    });
    await withNodes(store);
    const files: FileRecord[] = [];
    for (let i = 0; i < MOVES_AT_ONCE; i++) files.push(await made(store, `f${i}`));
    await askOwners(
      store,
      files.map(({ id }) => id),
    );
    const begun = await beginMoves(store, await Promise.all(files.map((file) => planned(store, file))));
    t.equal(begun.length, MOVES_AT_ONCE);
    const done = await Promise.all([finishMoves(store, begun, same), finishMoves(other, begun, same)]);
    t.same(
      done.map(({ length }) => length).sort((a, b) => a - b),
      [0, MOVES_AT_ONCE],
    );
    t.ok((await listFiles(other)).every(({ nodes }) => nodes.join('') === 'adc'));
  },
);
