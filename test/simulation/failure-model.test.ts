/** docs/failure-model.md and the simulation's faults are one list. */
import t from 'tap';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { faultKinds, standingFaults } from './fault-kinds.js';

const root = resolve(import.meta.dirname, '../..');
const rows = readFileSync(join(root, 'docs/failure-model.md'), 'utf8').split('\n')
  .filter((line) => line.startsWith('| ') && line.split('|').length === 7 && !line.startsWith('| fault |'))
  .map((line) => { const cells = line.split('|').map((cell) => cell.trim()); return { fault: cells[1]!, shown: cells[5]! }; });

void t.test('every row of the failure model names a simulated fault, or the tests that show it', async (t) => {
  t.ok(rows.length >= 20, `${rows.length} rows`);
  const known = new Set<string>([...Object.keys(faultKinds), ...standingFaults]);
  for (const { fault, shown } of rows) {
    const kinds = [...shown.matchAll(/`([^`]+)`/g)].map(([, kind]) => kind!), folders = shown.replaceAll(/`[^`]+`/g, '').split(',').map((part) => part.trim()).filter((part) => part !== '');
    t.ok(kinds.length + folders.length > 0, fault);
    t.same(kinds.filter((kind) => !known.has(kind)), [], fault);
    t.same(folders.filter((folder) => !existsSync(join(root, folder))), [], fault);
  }
});

void t.test('every simulated fault stands in the failure model', async (t) => {
  const named = new Set(rows.flatMap(({ shown }) => [...shown.matchAll(/`([^`]+)`/g)].map(([, kind]) => kind!)));
  t.same([...Object.keys(faultKinds), ...standingFaults].filter((kind) => !named.has(kind)), []);
});
