/**
 * A process that may open few files: `open-files-child.ts CLUSTER TRANSPORT`. Again and again it opens all it may but
 * for a few, stores a file, and closes them; prints what became of each as JSON.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { openDevice } from 'tartan-rdma';
import { Hub } from '../../pipeline/hub.js';
import { connectSession } from '../../pipeline/session.js';
import { realClock } from '../../wire/clock.js';
import { NodeControl } from '../../wire/control.js';
import { codeOf } from '../../wire/errors.js';
import { connect } from '../../writer/index.js';

const [cluster, transport] = process.argv.slice(2) as [string, 'tcp' | 'shm'];
/** More than a writer of three nodes needs. */
const ENOUGH = 16;

const client = await connect({ cluster, transport });
const device = openDevice('soft', { name: 'asks' });

/** What is said of peers that can't be asked, where nobody listens. */
async function asked(): Promise<string[]> {
  const context = { device, hub: new Hub(device, setImmediate), clock: realClock, secret: undefined, clusterId: 0 };
  const control = new NodeControl('127.0.0.1', 1);
  const attempts = [
    connectSession(context, '127.0.0.1', 1, { role: 'writer', name: 'asks' }, { transport }),
    control.status().finally(() => {
      control.close();
    }),
  ];
  const settled = await Promise.allSettled<unknown>(attempts);
  return settled.map((each) => (each.status === 'rejected' ? (codeOf(each.reason) ?? String(each.reason)) : 'done'));
}

async function store(name: string): Promise<string> {
  try {
    const writer = await client.create(name, { unitBytes: 4096 });
    writer.on('error', () => {});
    await writer.write(Buffer.alloc(10_000));
    await writer.end();
    return 'stored';
  } catch (error) {
    return codeOf(error) ?? String(error);
  }
}

const outcomes = [await store('before')];
const words = { without: [] as string[], with: [] as string[] };
for (let left = 0; left <= ENOUGH; left += 2) {
  const open: number[] = [];
  try {
    for (;;) open.push(openSync('/dev/null', 'r'));
  } catch (error) {
    if (codeOf(error) !== 'EMFILE') throw error;
  }
  if (left === 0) words.without = await asked();
  for (const file of open.splice(0, left)) closeSync(file);
  outcomes.push(await store(`with-${left}`));
  for (const file of open) closeSync(file);
}
outcomes.push(await store('after'));
words.with = await asked();
writeSync(1, JSON.stringify({ outcomes, words }));
await device.close();
await client.close();
