/** Whose fault it is that a node can't be used, and when it is proposed down for it. */
import t from 'tap';
import { TartanError, type ErrorCode } from '../../wire/errors.js';
import { faultOf, ProposalHistory, Proposals, type Silence } from '../../writer/proposals.js';

const DEADLINE_MS = 1000;

/** Six nodes of which a stripe may miss two; all are present. */
const QUIET: Silence = {
  silent: [],
  certain: [],
  present: new Set(['a', 'b', 'c', 'd', 'e', 'f']),
  nodes: 6,
  m: 2,
  now: 0,
};

function fresh(): Proposals {
  return new Proposals(new ProposalHistory(DEADLINE_MS));
}

t.test('only a connection that fails or closes, and a deadline, speak of death', async (t) => {
  const blame = (code: ErrorCode) => faultOf(new TartanError(code, ''));
  t.same((['ERR_CONNECT', 'ERR_CLOSED', 'ERR_DEADLINE'] as const).map(blame), ['gone', 'gone', 'gone']);
  t.same((['ERR_RING_MEMORY', 'ERR_CAPACITY', 'ERR_MAP_UNAVAILABLE'] as const).map(blame), ['busy', 'busy', 'busy']);
  t.same((['ERR_VERSION', 'ERR_AUTHENTICATION', 'ERR_MALFORMED'] as const).map(blame), ['ours', 'ours', 'ours']);
});

t.test(
  'a silent node whose lease has expired is proposed at once, one whose lease stands at the second look',
  async (t) => {
    const proposals = fresh();
    const silence = { ...QUIET, silent: ['a', 'b'], present: new Set(['b', 'c', 'd', 'e', 'f']) };
    t.same(proposals.judge(silence), ['a']);
    t.same(proposals.judge(silence), ['a', 'b']);
  },
);

t.test('a node that answered in between was not found silent twice', async (t) => {
  const proposals = fresh();
  t.same(proposals.judge({ ...QUIET, silent: ['a'] }), []);
  t.same(proposals.judge(QUIET), []);
  t.same(proposals.judge({ ...QUIET, silent: ['a'] }), []);
});

t.test('when more are silent than the code can bear, though they are present, none is proposed', async (t) => {
  const proposals = fresh();
  const silence = { ...QUIET, silent: ['a', 'b', 'c'] };
  for (let look = 0; look < 5; look++) t.same(proposals.judge(silence), []);
  t.same(proposals.judge({ ...silence, present: new Set(['d', 'e', 'f']) }), ['a', 'b', 'c'], 'their leases are over');
  const many = Array.from({ length: 30 }, (_, i) => `n${i}`);
  const wide = { ...QUIET, nodes: 30, present: new Set(many), silent: many.slice(0, 3) };
  proposals.judge(wide);
  t.same(proposals.judge(wide), many.slice(0, 3), 'of thirty, three silent ones are not everybody');
});

t.test('a node that says itself that it is no use needs no second look', async (t) => {
  t.same(fresh().judge({ ...QUIET, silent: ['a'], certain: ['a'] }), ['a']);
});

t.test('a node that came back and is proposed again waits longer each time, and is forgiven in the end', async (t) => {
  const history = new ProposalHistory(DEADLINE_MS);
  const waits: number[] = [];
  let now = 0;
  for (let round = 0; round < 6; round++) {
    const proposals = new Proposals(history),
      from = now;
    while (proposals.judge({ ...QUIET, silent: ['a'], certain: ['a'], now }).length === 0) now += 100;
    waits.push((now - from) / DEADLINE_MS);
    history.proposed('a', now);
  }
  t.same(waits, [0, 2, 4, 8, 8, 8]);
  t.same(new Proposals(history).judge({ ...QUIET, silent: ['b'], certain: ['b'], now }), ['b'], 'another is not meant');
  t.same(new Proposals(history).judge({ ...QUIET, silent: ['a'], certain: ['a'], now: now + 61 * DEADLINE_MS }), ['a']);
});
