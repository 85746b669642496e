import t from 'tap';
import { listDeleted } from '../../cluster/file-states.js';
import {
  createFile,
  decide,
  deleteFile,
  epochFloor,
  forgetFile,
  isCommitted,
  listFiles,
  lookupFile,
  listUnnamed,
  publishCommit,
  publishFile,
  readFile,
  renewOwner,
  takeOver,
} from '../../cluster/files.js';
import { FILE_ID_KEY, MAP_KEY, fileIdKey } from '../../cluster/keys.js';
import { createCluster, readMap, registerNode } from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import type { FileRecord } from '../../cluster/records.js';
import { VirtualClock } from './virtual-clock.js';

const shape = { code: 'rs(2,1)', unitBytes: 65_536, nodes: ['n1', 'n2', 'n3'], modified: '2026-01-01T00:00:00.000Z' };

t.test('a created file is found by name and by id, owned by its creator', async (t) => {
  const { store } = await cluster();
  const record = await createFile(store, { name: 'dir/a.bin', ...shape });
  t.same(record, {
    ...shape,
    id: 1,
    name: 'dir/a.bin',
    writerEpoch: 1,
    length: 0,
    commitEpoch: 0,
    commitCounter: 0,
    decidedEpoch: 0,
    decidedStripes: 0,
    state: 'open',
  });
  t.same(await lookupFile(store, 'dir/a.bin'), record);
  t.same(await readFile(store, 1), record);
  await t.rejects(lookupFile(store, 'dir'), { code: 'ERR_NOT_FOUND' });
  await t.rejects(readFile(store, 2), { code: 'ERR_NOT_FOUND' });
  await t.rejects(createFile(store, { name: 'dir/a.bin', ...shape }), { code: 'ERR_EXISTS' });
});

t.test('of two creators of one name exactly one wins', async (t) => {
  const { shared, store } = await cluster();
  for (let round = 0; round < 10; round++) {
    const results = await Promise.allSettled(
      [0, 1].map(() => createFile(shared.client(), { name: `r${round}`, ...shape })),
    );
    t.same(results.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
    t.match(
      results.find(({ status }) => status === 'rejected'),
      { reason: { code: 'ERR_EXISTS' } },
    );
  }
  t.equal((await listFiles(store)).length, 10);
});

t.test(
  'an unnamed file gets its name once, from its owner alone, and one of the same name goes in the same moment',
  async (t) => {
    const { shared, store } = await cluster();
    const commit = { writerEpoch: 1, length: 9, commitEpoch: 1, commitCounter: 2, replace: false };
    const [a, b, c] = [
      await createFile(store, { name: 'x', ...shape, unnamed: true }),
      await createFile(store, { name: 'x', ...shape, unnamed: true }),
      await createFile(store, { name: 'x', ...shape, unnamed: true }),
    ];
    await t.rejects(lookupFile(store, 'x'), { code: 'ERR_NOT_FOUND' });
    t.same(await listUnnamed(store), [a.id, b.id, c.id]);
    await takeOver(store, c.id);
    await t.rejects(publishFile(store, c.id, commit), { code: 'ERR_FENCED' });
    const raced = await Promise.allSettled([a, b].map(({ id }) => publishFile(shared.client(), id, commit)));
    t.same(raced.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
    const [won, lost] = raced[0]!.status === 'fulfilled' ? [a, b] : [b, a];
    t.match(await lookupFile(store, 'x'), {
      id: won.id,
      state: 'closed',
      length: 9,
      commitCounter: 2,
      unnamed: undefined,
    });
    t.match(await publishFile(store, won.id, commit), { file: { id: won.id }, replaced: undefined }, 'again');
    await t.rejects(publishFile(store, lost.id, commit), { code: 'ERR_EXISTS' });
    await t.rejects(deleteFile(store, won.id, { onlyUnnamed: true }), { code: 'ERR_EXISTS' });
    const { replaced } = await publishFile(store, lost.id, { ...commit, replace: true });
    t.match(replaced, { id: won.id, state: 'deleted', writerEpoch: 2 });
    t.equal((await lookupFile(store, 'x')).id, lost.id);
    await t.rejects(publishCommit(store, won.id, commit), { code: 'ERR_FENCED' });
    await deleteFile(store, c.id, { onlyUnnamed: true });
    t.same(await listUnnamed(store), []);
    t.equal((await lookupFile(store, 'x')).id, lost.id, 'the name is not that of the one that never had it');
  },
);

t.test('creators of many names get ids of their own', async (t) => {
  const { shared, store } = await cluster();
  const records = await Promise.all(
    Array.from({ length: 20 }, (_, i) => createFile(shared.client(), { name: `f${i}`, ...shape })),
  );
  t.same(
    records.map(({ id }) => id).sort((a, b) => a - b),
    Array.from({ length: 20 }, (_, i) => i + 1),
  );
  t.same(
    (await listFiles(store)).map(({ id }) => id),
    Array.from({ length: 20 }, (_, i) => i + 1),
    'listed by id',
  );
});

t.test('names are 1 to 255 bytes without control characters or a leading slash', async (t) => {
  const { store } = await cluster();
  for (const name of ['', '/a', 'a\0b', 'a\nb', '\u007f', '\u0085', 'x'.repeat(256), 'é'.repeat(128), '\ud800']) {
    await t.rejects(createFile(store, { name, ...shape }), { code: 'ERR_ARGUMENT' }, JSON.stringify(name));
    await t.rejects(lookupFile(store, name), { code: 'ERR_ARGUMENT' });
  }
  for (const name of ['a', 'a/b/c', ' ', '..', 'a//b', 'x'.repeat(255), `${'é'.repeat(127)}x`, '\u{1f600}']) {
    t.equal((await createFile(store, { name, ...shape })).name, name);
    t.equal((await lookupFile(store, name)).name, name);
  }
});

t.test('shapes that cannot be meant are refused', async (t) => {
  const { store } = await cluster();
  const create = (change: object) => createFile(store, { name: 'a', ...shape, ...change });
  for (const unitBytes of [0, 256, 1000, 8 << 20, NaN])
    await t.rejects(create({ unitBytes }), { code: 'ERR_UNIT_BYTES' });
  await t.rejects(create({ code: '' }), { code: 'ERR_ARGUMENT' });
  await t.rejects(create({ nodes: [] }), { code: 'ERR_ARGUMENT' });
  await t.rejects(create({ nodes: ['n1', 'n1'] }), { code: 'ERR_ARGUMENT' });
  await t.rejects(
    createFile(new MemoryCluster(new VirtualClock()).client(), { name: 'a', ...shape }),
    { code: 'ERR_NOT_FOUND' },
    'no cluster',
  );
  t.same(await listFiles(store), []);
});

t.test('a takeover fences the old owner, and only one of two concurrent ones gets an epoch', async (t) => {
  const { shared, store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  const epochs = (await Promise.all(Array.from({ length: 8 }, () => takeOver(shared.client(), id)))).map(
    (record) => record.writerEpoch,
  );
  t.same(epochs.sort(), [2, 3, 4, 5, 6, 7, 8, 9]);
  for (const writerEpoch of [1, 8]) {
    await t.rejects(publishCommit(store, id, { writerEpoch, length: 1, commitEpoch: writerEpoch, commitCounter: 1 }), {
      code: 'ERR_FENCED',
    });
    await t.rejects(
      decide(store, id, { writerEpoch, decidedStripes: 0, length: 0, commitEpoch: writerEpoch, commitCounter: 0 }),
      { code: 'ERR_FENCED' },
    );
  }
  t.match(await readFile(store, id), { length: 0, commitCounter: 0, writerEpoch: 9 });
  await t.rejects(takeOver(store, 99), { code: 'ERR_NOT_FOUND' });
});

t.test('a takeover that races publications loses none that was accepted', async (t) => {
  const { shared, store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  let accepted = 0;
  const publish = async () => {
    for (let counter = 1; ; counter++) {
      await publishCommit(shared.client(), id, {
        writerEpoch: 1,
        length: counter * 10,
        commitEpoch: 1,
        commitCounter: counter,
      });
      accepted = counter;
    }
  };
  const publishing = t.rejects(publish(), { code: 'ERR_FENCED' });
  for (let i = 0; i < 200; i++) await Promise.resolve();
  const taken = await takeOver(shared.client(), id);
  await publishing;
  t.ok(accepted > 0);
  t.match(taken, { commitCounter: accepted, length: accepted * 10, writerEpoch: 2 });
});

t.test('length and commit mark never go back, and publishing nothing new writes nothing', async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  const publish = (length: number, commitCounter: number, state?: 'open' | 'closed') =>
    publishCommit(store, id, { writerEpoch: 1, length, commitEpoch: 1, commitCounter, ...(state && { state }) });
  t.match(await publish(100, 3), { length: 100, commitEpoch: 1, commitCounter: 3, state: 'open' });
  t.match(await publish(50, 2), { length: 100, commitCounter: 3 }, 'late');
  t.match(await publish(90, 4), { length: 100, commitCounter: 4 });
  const revision = await store.revision();
  await publish(100, 4);
  t.equal(await store.revision(), revision);
  t.match(await publish(120, 5, 'closed'), { length: 120, state: 'closed' });
  t.match(await takeOver(store, id), { state: 'open', writerEpoch: 2, length: 120 });
});

t.test('publications that nobody may make are refused', async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  const commit = { writerEpoch: 1, length: 1, commitEpoch: 1, commitCounter: 1 };
  for (const change of [
    { writerEpoch: 2 },
    { commitEpoch: 2 },
    { length: -1 },
    { length: 1.5 },
    { length: NaN },
    { commitCounter: -1 },
  ]) {
    await t.rejects(
      publishCommit(store, id, { ...commit, ...change }),
      { code: 'ERR_ARGUMENT' },
      JSON.stringify(change),
    );
  }
  await t.rejects(publishCommit(store, 9, commit), { code: 'ERR_NOT_FOUND' });
});

t.test("a new owner's publications count once it has decided, and it decides once", async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  await publishCommit(store, id, { writerEpoch: 1, length: 100, commitEpoch: 1, commitCounter: 7 });
  await takeOver(store, id);
  const early = await publishCommit(store, id, { writerEpoch: 2, length: 400, commitEpoch: 2, commitCounter: 1 });
  t.match(
    early,
    { length: 100, commitEpoch: 1, commitCounter: 7 },
    'a mark of epoch 2 would commit what epoch 1 left undecided',
  );
  const decision = { writerEpoch: 2, decidedStripes: 3, length: 150, commitEpoch: 2, commitCounter: 0 };
  t.match(await decide(store, id, decision), {
    decidedEpoch: 2,
    decidedStripes: 3,
    length: 150,
    commitEpoch: 2,
    commitCounter: 0,
  });
  t.match(await decide(store, id, decision), { decidedStripes: 3 }, 'again the same');
  await t.rejects(decide(store, id, { ...decision, decidedStripes: 2 }), { code: 'ERR_EXISTS' });
  t.match(await publishCommit(store, id, { writerEpoch: 2, length: 400, commitEpoch: 2, commitCounter: 1 }), {
    length: 400,
    commitEpoch: 2,
    commitCounter: 1,
  });
  await takeOver(store, id);
  await t.rejects(decide(store, id, decision), { code: 'ERR_FENCED' });
  await t.rejects(decide(store, id, { ...decision, writerEpoch: 3, decidedStripes: -1 }), { code: 'ERR_ARGUMENT' });
});

t.test('epochFloor() is what the last takeover that looked at a stripe settled', async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  const decideFrom = async (fromStripe: number): Promise<FileRecord> => {
    const { writerEpoch } = await takeOver(store, id);
    return decide(store, id, {
      writerEpoch,
      decidedStripes: fromStripe + 1,
      fromStripe,
      length: 0,
      commitEpoch: writerEpoch,
      commitCounter: 1,
    });
  };
  const floorsOf = (record: FileRecord): number[] => [0, 1, 2, 5, 6, 99].map((stripe) => epochFloor(record, stripe));
  t.same(floorsOf(await readFile(store, id)), [0, 0, 0, 0, 0, 0], 'nobody has taken it over');
  t.same(floorsOf(await decideFrom(2)), [0, 0, 2, 2, 2, 2]);
  t.same(floorsOf(await decideFrom(2)), [0, 0, 3, 3, 3, 3], 'looked at again');
  t.same(floorsOf(await decideFrom(6)), [0, 0, 3, 3, 4, 4]);
  for (let stripe = 7; stripe < 107; stripe++) await decideFrom(stripe);
  const record = await readFile(store, id);
  t.equal(record.floors!.length, 64, 'the list is bounded');
  t.equal(epochFloor(record, 6), 0);
  t.equal(epochFloor(record, 106), 104);
});

t.test('a deleted file frees its name at once, fences its owner, and its id is never given again', async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  await t.rejects(forgetFile(store, id), { code: 'ERR_IN_USE' });
  t.match(await deleteFile(store, id), { state: 'deleted', writerEpoch: 2 });
  await t.rejects(deleteFile(store, id), { code: 'ERR_NOT_FOUND' });
  await t.rejects(lookupFile(store, 'a'), { code: 'ERR_NOT_FOUND' });
  await t.rejects(takeOver(store, id), { code: 'ERR_NOT_FOUND' });
  await t.rejects(publishCommit(store, id, { writerEpoch: 1, length: 1, commitEpoch: 1, commitCounter: 1 }), {
    code: 'ERR_FENCED',
  });
  const next = await createFile(store, { name: 'a', ...shape });
  t.equal(next.id, 2);
  t.same(
    (await listFiles(store)).map((record) => record.id),
    [2],
  );
  t.same(
    (await listDeleted(store)).map((file) => file.id),
    [1],
  );
  await forgetFile(store, id);
  await forgetFile(store, id);
  t.same(await listDeleted(store), []);
  t.equal((await createFile(store, { name: 'b', ...shape })).id, 3);
  t.equal((await lookupFile(store, 'a')).id, 2, 'the new file of the name is untouched');
});

async function cluster() {
  const shared = new MemoryCluster(new VirtualClock()),
    store = shared.client();
  await createCluster(store);
  return { shared, store };
}

t.test('isCommitted() is below the mark, at the floor or above, and not what a takeover cut off', (t) => {
  const record: FileRecord = {
    ...shape,
    id: 1,
    name: 'a',
    state: 'open',
    length: 0,
    writerEpoch: 5,
    commitEpoch: 5,
    commitCounter: 10,
    decidedEpoch: 4,
    decidedStripes: 6,
    floors: [
      { stripe: 2, epoch: 3 },
      { stripe: 4, epoch: 4 },
    ],
  };
  const expected: [stripe: number, epoch: number, counter: number, is: boolean][] = [
    [7, 5, 10, true],
    [7, 5, 11, false],
    [7, 6, 1, false],
    [0, 1, 99, true],
    [1, 1, 99, true],
    // From stripe 2 on the owner of epoch 3 decided anew, from 4 on that of epoch 4.
    [2, 2, 99, false],
    [2, 3, 1, true],
    [3, 3, 1, true],
    [4, 3, 99, false],
    [4, 4, 1, true],
    [5, 4, 1, true],
  ];
  t.same(
    expected.filter(([stripe, epoch, counter, is]) => isCommitted(record, stripe, epoch, counter) !== is),
    [],
  );
  // Without floors only the last decision counts: beyond its stripes there is nothing from before.
  const { floors: _, ...flat } = record;
  t.same([isCommitted(flat, 5, 3, 1), isCommitted(flat, 6, 3, 1), isCommitted(flat, 6, 4, 1)], [true, false, true]);
  t.end();
});

t.test(
  'epochs and ids end at what their fields can hold; a file whose epochs are used up can be deleted',
  async (t) => {
    const { store } = await cluster();
    const { id } = await createFile(store, { name: 'a', ...shape });
    const put = async (key: string, value: string) => {
      t.ok((await store.transact([], [{ put: key, value }])).succeeded);
    };
    const last = { ...(await readFile(store, id)), writerEpoch: 2 ** 32 - 3, decidedEpoch: 2 ** 32 - 3 };
    await put(fileIdKey(id), JSON.stringify(last));
    t.equal((await takeOver(store, id)).writerEpoch, 2 ** 32 - 2);
    await t.rejects(takeOver(store, id), { code: 'ERR_CAPACITY' });
    await t.rejects(renewOwner(store, id, { writerEpoch: 2 ** 32 - 2, length: 0, stripes: 0, mapEpoch: 1 }), {
      code: 'ERR_CAPACITY',
    });
    t.equal((await deleteFile(store, id)).writerEpoch, 2 ** 32 - 1, 'what its nodes are fenced with');

    await put(FILE_ID_KEY, String(Number.MAX_SAFE_INTEGER - 1));
    t.equal((await createFile(store, { name: 'b', ...shape })).id, Number.MAX_SAFE_INTEGER);
    await t.rejects(createFile(store, { name: 'c', ...shape }), { code: 'ERR_CAPACITY' });

    const map = await readMap(store);
    await put(MAP_KEY, JSON.stringify({ ...map, epoch: 2 ** 32 - 2 }));
    const node = { host: '127.0.0.1', port: 1, controlPort: 0 };
    t.equal((await registerNode(store, { id: 'n1', ...node })).epoch, 2 ** 32 - 1);
    await t.rejects(registerNode(store, { id: 'n2', ...node }), { code: 'ERR_CAPACITY' });
  },
);

t.test('an owner goes on under its next epoch once, however often it asks; nobody else does', async (t) => {
  const { store } = await cluster();
  const { id } = await createFile(store, { name: 'a', ...shape });
  const renewal = { writerEpoch: 1, length: 262_144, stripes: 2, mapEpoch: 5 };
  const renewed = await renewOwner(store, id, renewal);
  t.match(renewed, { writerEpoch: 2, decidedEpoch: 2, decidedStripes: 2, decidedMapEpoch: 5, length: 262_144 });
  t.same(
    [isCommitted(renewed, 0, 1, 2 ** 31), isCommitted(renewed, 1, 1, 1), isCommitted(renewed, 2, 1, 1)],
    [true, true, false],
    'all that was written is committed, and nothing beyond',
  );
  t.same(await renewOwner(store, id, renewal), renewed, 'asked again, as after an answer that was lost');
  await t.rejects(publishCommit(store, id, { writerEpoch: 1, length: 0, commitEpoch: 1, commitCounter: 1 }), {
    code: 'ERR_FENCED',
  });
  await takeOver(store, id);
  await t.rejects(renewOwner(store, id, renewal), { code: 'ERR_FENCED' });
  await t.rejects(renewOwner(store, id, { ...renewal, writerEpoch: 2 }), { code: 'ERR_FENCED' });
  // An epoch that somebody else has taken over is not mistaken for a renewed one.
  const other = await createFile(store, { name: 'b', ...shape });
  await takeOver(store, other.id);
  await t.rejects(renewOwner(store, other.id, renewal), { code: 'ERR_FENCED' });
});
