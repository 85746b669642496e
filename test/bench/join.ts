/**
 * What a join reads of the cluster store: `node --import tsx test/bench/join.ts`. CPU of one reading of all records, as
 * joins were made once, beside one of the index of open files, at two numbers of files of which 100 are open.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { listOpen } from '../../cluster/file-states.js';
import { createFile, listFiles } from '../../cluster/files.js';
import { FILES_BY_ID, fileIdKey } from '../../cluster/keys.js';
import { createCluster } from '../../cluster/membership.js';
import { openClusterStore } from '../../cluster/open-store.js';
import type { FileRecord } from '../../cluster/records.js';
import { spread } from './report.js';

const OPEN = 100,
  REPETITIONS = 7,
  AT_ONCE = 128;

const shape = { code: 'rs(4,2)', unitBytes: 65_536, nodes: ['n1', 'n2', 'n3', 'n4', 'n5', 'n6'] };
for (const files of [10_000, 100_000]) {
  const folder = await mkdtemp(join(tmpdir(), 'tartan-join-'));
  try {
    const store = await openClusterStore(folder, { create: true });
    await createCluster(store);
    let last: FileRecord | undefined;
    for (let i = 0; i < OPEN; i++) last = await createFile(store, { name: `open-${i}`, ...shape });
    // Closed files, put as they lie there when they have been closed.
    for (let at = OPEN + 1; at <= files; at += AT_ONCE) {
      const rows = Array.from({ length: Math.min(AT_ONCE, files - at + 1) }, (_, i) => ({
        put: fileIdKey(at + i),
        value: JSON.stringify({ ...last!, id: at + i, name: `closed-${at + i}`, state: 'closed' } satisfies FileRecord),
      }));
      await store.transact([], rows);
    }
    const cost = async (read: () => Promise<unknown>): Promise<string> => {
      const figures: number[] = [];
      for (let i = 0; i < REPETITIONS; i++) {
        const before = process.cpuUsage();
        await read();
        const { user, system } = process.cpuUsage(before);
        figures.push((user + system) / 1000);
      }
      const { median, min, max } = spread(figures);
      return `${median.toFixed(1)} ms of CPU (${min.toFixed(1)}–${max.toFixed(1)})`;
    };
    const rows = (await store.range(FILES_BY_ID)).length;
    console.log(`${rows} files, ${OPEN} of them open; median of ${REPETITIONS} (lowest–highest), one reading`);
    console.log(`  all records:  ${await cost(() => listFiles(store))}`);
    console.log(`  open files:   ${await cost(() => listOpen(store))}`);
    await store.close();
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
