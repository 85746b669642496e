/** docs/failure-model.md and the simulation's faults are one list. */
import t from 'tap';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { coverage, failureRows, root } from './failure-rows.js';
import { events, faultKinds } from './fault-kinds.js';

const rows = failureRows();

void t.test('every row of the failure model names a simulated fault, or the tests that show it', async (t) => {
  t.ok(rows.length >= 20, `${rows.length} rows`);
  const known = new Set<string>([...Object.keys(faultKinds), ...events]);
  for (const { fault, kinds, tests } of rows) {
    t.ok(kinds.length + tests.length > 0, fault);
    t.same(
      kinds.filter((kind) => !known.has(kind)),
      [],
      fault,
    );
    t.same(
      tests.filter((path) => !existsSync(join(root, path))),
      [],
      fault,
    );
  }
});

void t.test('every simulated fault stands in the failure model', async (t) => {
  const named = new Set(rows.flatMap(({ kinds }) => kinds));
  t.same(
    [...Object.keys(faultKinds), ...events].filter((kind) => !named.has(kind)),
    [],
  );
});

void t.test('coverage counts rows, and names those never met', async (t) => {
  const all = new Map([...Object.keys(faultKinds), ...events].map((kind) => [kind, 1]));
  t.same(coverage(all).never, []);
  t.equal(coverage(all).met, coverage(all).of);
  all.delete('clock-drift');
  t.same(coverage(all).never, ['clocks drift']);
  t.equal(coverage(new Map()).met, 0);
});
