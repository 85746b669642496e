/** What replay makes of a MOVED entry: a new place for a unit that is held, and nothing for one that is not. */
import t from 'tap';
import { IndexTable } from '../../storage-node/index-table.js';
import { Replay } from '../../storage-node/replay.js';
import { makeUnit } from './units.js';

const FROM = { headerBlock: 100, headerByte: 64, payloadBlock: 101 },
  TO = { headerBlock: 900, headerByte: 128, payloadBlock: 905 };

/**
 * An index that holds unit 0 of stripe 7 of file 1, version 1.1, at FROM; `between` is what the log says before the
 * move.
 */
function moved(between: (replay: Replay) => void): { index: IndexTable; replay: Replay; fallback: unknown } {
  const index = new IndexTable(),
    replay = new Replay(index);
  const { words, headerBytes } = makeUnit({ fileId: 1, stripe: 7, counter: 1 });
  replay.unit(words, 0, headerBytes, FROM.headerBlock, FROM.headerByte, FROM.payloadBlock);
  between(replay);
  return { index, replay, fallback: replay.moved(words, 0, FROM, TO) };
}

void t.test('a unit that is held lies at its new place; when that turns out torn, at the old one', (t) => {
  const { replay, fallback } = moved(() => undefined);
  t.ok(replay.holdsAt(1, 7, TO));
  t.notOk(replay.holdsAt(1, 7, FROM));
  t.same(fallback, FROM);
  replay.voided(1, 7, TO, FROM);
  t.ok(replay.holdsAt(1, 7, FROM));
  t.end();
});

for (const [what, between] of [
  [
    'deleted',
    (replay: Replay) => {
      replay.deleted(1);
    },
  ],
  [
    'discarded',
    (replay: Replay) => {
      replay.discard(1, 5, 2);
    },
  ],
  [
    'found torn',
    (replay: Replay) => {
      replay.voided(1, 7, FROM, undefined);
    },
  ],
  [
    'replaced by a good copy',
    (replay: Replay) => {
      const { words, headerBytes } = makeUnit({ fileId: 1, stripe: 7, counter: 1 });
      replay.unit(words, 0, headerBytes, 500, 64, 501);
    },
  ],
] as const) {
  void t.test(`a unit that was ${what} while it was being moved does not come back`, (t) => {
    const { index, replay, fallback } = moved(between);
    t.equal(fallback, undefined);
    t.notOk(replay.holdsAt(1, 7, TO));
    t.notOk(replay.holdsAt(1, 7, FROM));
    t.equal(index.count, what === 'replaced by a good copy' ? 1 : 0);
    t.end();
  });
}
