/** What a node knows of files' placements is never older than the map it holds. */
import t from 'tap';
import type { ClusterStore, KeyValue } from '../../cluster/cluster-store.js';
import { fileIdKey } from '../../cluster/keys.js';
import type { FileRecord } from '../../cluster/records.js';
import { Placement, Placements } from '../../storage-node/placements.js';
import { Refusal } from '../../wire/ring-messages.js';
import { makeUnit } from './units.js';

const record: FileRecord = {
  id: 1,
  name: 'a',
  code: 'xor(2+1)',
  unitBytes: 4096,
  nodes: ['a', 'b', 'c'],
  writerEpoch: 1,
  length: 0,
  commitEpoch: 0,
  commitCounter: 0,
  decidedEpoch: 0,
  decidedStripes: 0,
  state: 'closed',
  modified: '',
};

t.test('a record that was read across a newer map is read again', async (t) => {
  const reads: ((row: KeyValue) => void)[] = [];
  const row = (value: FileRecord): KeyValue => ({
    key: fileIdKey(1),
    value: JSON.stringify(value),
    createRevision: 1,
    modRevision: 1,
    lease: undefined,
  });
  const store = {
    get: () =>
      new Promise<KeyValue>((resolve) => {
        reads.push(resolve);
      }),
  } as unknown as ClusterStore;
  const placements = new Placements(store, 'd', () => undefined),
    fetched = placements.fetch(1);
  placements.forgetAll();
  reads[0]!(row(record));
  await new Promise(setImmediate);
  t.equal(reads.length, 2, 'once more');
  reads[1]!(row({ ...record, nodes: ['a', 'd', 'c'] }));
  const placement = await fetched;
  t.equal(placements.get(1), placement, 'kept');
  t.equal((placement as Placement).judge(makeUnit({ unit: 1 }).words, 0), Refusal.NONE);
});

t.test('a node stores units of the index that it has, or is about to take, and of no other', (t) => {
  const answers = (id: string, more: Partial<FileRecord> = {}): number[] =>
    [0, 1, 2].map((unit) => new Placement({ ...record, ...more }, id).judge(makeUnit({ unit }).words, 0));
  const { NONE, NOT_MINE } = Refusal;
  t.same(answers('b'), [NOT_MINE, NONE, NOT_MINE]);
  t.same(answers('d'), [NOT_MINE, NOT_MINE, NOT_MINE]);
  t.same(answers('d', { moves: [{ index: 2, to: 'd' }] }), [NOT_MINE, NOT_MINE, NONE], 'it is being filled');
  t.same(answers('c', { moves: [{ index: 2, to: 'd' }] }), [NOT_MINE, NOT_MINE, NONE], 'the present one goes on');
  t.same(answers('c', { nodes: ['a', 'b', 'd'] }), [NOT_MINE, NOT_MINE, NOT_MINE], 'and then does not');
  t.end();
});
