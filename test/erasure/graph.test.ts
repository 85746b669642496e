/**
 * The graph executor against a dumb model: every node of every graph made to fail once, in every order of answers that
 * a seed draws; roll-back must leave exactly what the model says.
 */
import t from 'tap';
import {
  GraphExecutor,
  NodeKind,
  NodeState,
  fullStripeWrite,
  graphTemplate,
  stripeRead,
  unitNodes,
} from '../../erasure/graph/index.js';
import type { GraphTemplate } from '../../erasure/graph/index.js';

/** A small generator (xorshift32), so that a printed seed replays a failure. */
function generator(seed: number): () => number {
  let x = seed | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}

interface Run {
  issued: number[];
  done: number[];
  undone: number[];
  end: string;
}

/** Answers issued nodes one at a time in random order; `failing` answers with a failure. -1: none fails. */
function run(template: GraphTemplate, failing: number, random: () => number, synchronous = false): Run {
  const result: Run = { issued: [], done: [], undone: [], end: '' };
  const open: number[] = [];
  const answer = (node: number): void => {
    if (node === failing) executor.fail(3, node, 77);
    else {
      result.done.push(node);
      executor.done(3, node);
    }
  };
  const executor = new GraphExecutor(8, {
    issue: (_instance, node) => {
      result.issued.push(node);
      if (synchronous) answer(node);
      else open.push(node);
    },
    undo: (_instance, node) => {
      result.undone.push(node);
    },
    finished: () => {
      result.end += 'finished';
    },
    rolledBack: (_instance, node, reason) => {
      result.end += `rolled back at ${node} for ${reason}`;
    },
  });
  executor.start(3, template);
  while (open.length > 0) answer(open.splice(Math.floor(random() * open.length), 1)[0]!);
  if (executor.running(3)) result.end += 'stuck';
  return result;
}

/** Predecessors, transitively. */
function before(template: GraphTemplate, node: number): Set<number> {
  const seen = new Set<number>();
  const visit = (target: number): void => {
    for (let i = 0; i < template.nodeCount; i++) {
      for (let s = template.successorStart[i]!; s < template.successorStart[i + 1]!; s++) {
        if (template.successors[s] === target && !seen.has(i)) {
          seen.add(i);
          visit(i);
        }
      }
    }
  };
  visit(node);
  return seen;
}

/** Whether each node comes after all that it needs. */
function isInOrder(template: GraphTemplate, issued: readonly number[]): boolean {
  return issued.every((node, at) => [...before(template, node)].every((early) => issued.indexOf(early) < at));
}

const graphs: GraphTemplate[] = [];
for (const [k, m] of [
  [1, 2],
  [2, 1],
  [4, 2],
  [8, 3],
  [32, 4],
] as const) {
  for (const sealed of [true, false]) {
    graphs.push(
      fullStripeWrite(k, m, sealed),
      fullStripeWrite(k, m, sealed, new Set([0])),
      fullStripeWrite(k, m, sealed, new Set([k])),
    );
  }
  graphs.push(
    stripeRead(
      Array.from({ length: k }, (_, i) => i),
      false,
    ),
    stripeRead(
      Array.from({ length: k }, (_, i) => i + 1),
      true,
    ),
  );
}

void t.test('a graph runs every node once, each after its predecessors, and finishes', (t) => {
  const wrong: string[] = [];
  for (const template of graphs) {
    for (let seed = 1; seed <= 20; seed++) {
      const { issued, done, undone, end } = run(template, -1, generator(seed * 7919));
      const is = (what: string, holds: boolean): void => {
        if (!holds) wrong.push(`${template.name}, seed ${seed}: ${what}`);
      };
      const once = [...issued].sort((a, b) => a - b);
      is(`ends as ${end}`, end === 'finished');
      is(`issues ${once.join()}`, once.length === template.nodeCount && once.every((node, i) => node === i));
      is(`undoes ${undone.join()}`, undone.length === 0);
      is(`issues in the order ${issued.join()}`, isInOrder(template, issued));
      is(`${done.at(-1)} is done last`, done.at(-1) === issued.at(-1));
    }
  }
  t.same(wrong, []);
  t.end();
});

void t.test(
  'when any one node fails, what was done is undone in reverse order and nothing depends on the failed node',
  (t) => {
    const wrong: string[] = [];
    for (const template of graphs) {
      for (let failing = 0; failing < template.nodeCount; failing++) {
        for (const synchronous of [false, true]) {
          const seed = failing * 31 + template.nodeCount + (synchronous ? 1 : 0);
          const { issued, done, undone, end } = run(template, failing, generator(seed), synchronous);
          const is = (what: string, holds: boolean): void => {
            if (!holds) wrong.push(`${template.name}, node ${failing}, seed ${seed}: ${what}`);
          };
          is(`ends as ${end}`, end === `rolled back at ${failing} for 77`);
          is(`does ${done.join()}, undoes ${undone.join()}`, undone.join() === [...done].reverse().join());
          is(`issues ${issued.length}, does ${done.length}`, issued.length === done.length + 1);
          is('what needs the failed node is issued', !issued.some((node) => before(template, node).has(failing)));
        }
      }
    }
    t.same(wrong, []);
    t.end();
  },
);

void t.test('with several failures the first one is reported, after the last answer', (t) => {
  const template = fullStripeWrite(4, 2, true);
  const ends: string[] = [];
  const executor = new GraphExecutor(1, {
    issue: () => {},
    undo: () => {},
    finished: () => ends.push('finished'),
    rolledBack: (_i, node, reason) => ends.push(`${node}:${reason}`),
  });
  executor.start(0, template);
  executor.fail(0, 2, 11);
  executor.fail(0, 1, 22);
  executor.done(0, 0);
  executor.done(0, 3);
  t.same(ends, []);
  t.equal(executor.stateOf(0, 0), NodeState.DONE);
  executor.done(0, 4);
  t.same(ends, ['2:11']);
  t.equal(executor.stateOf(0, 0), NodeState.UNDONE);
  t.end();
});

void t.test('an instance can be started again from its own end, and refuses answers that nobody waits for', (t) => {
  const template = fullStripeWrite(1, 1, true);
  let left = 1000,
    finished = 0;
  const open: number[] = [];
  const executor: GraphExecutor = new GraphExecutor(1, {
    issue: (_i, node) => {
      open.push(node);
    },
    undo: () => {},
    finished: () => {
      finished++;
      if (--left > 0) executor.start(0, template);
    },
    rolledBack: () => t.fail('nothing fails here'),
  });
  executor.start(0, template);
  while (open.length > 0) executor.done(0, open.shift()!);
  t.equal(finished, 1000);
  t.throws(() => {
    executor.done(0, 0);
  }, /not under way/);
  executor.start(0, template);
  t.throws(() => {
    executor.start(0, template);
  }, /started twice/);
  t.end();
});

void t.test('templates refuse cycles, unknown predecessors and too many nodes', (t) => {
  const node = (...after: number[]) => ({ kind: NodeKind.COMMIT, argument: 0, after });
  t.throws(() => graphTemplate('cycle', [node(1), node(0)]), /cycle/);
  t.throws(() => graphTemplate('self', [node(0)]), /no other node/);
  t.throws(() => graphTemplate('unknown', [node(5)]), /no other node/);
  t.throws(() => graphTemplate('empty', []), /nodes/);
  t.throws(
    () =>
      graphTemplate(
        'many',
        Array.from({ length: 65 }, () => node()),
      ),
    /65 nodes/,
  );
  t.same([...unitNodes(fullStripeWrite(2, 1, true, new Set([1])), 3)], [1, -1, 2]);
  t.end();
});
