/** Work that must grow with what is asked for, and not with its square: counted in steps, not in time. */
import t from 'tap';
import { IndexTable } from '../../storage-node/index-table.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { Refusal } from '../../wire/ring-messages.js';
import { VirtualClock } from '../cluster/virtual-clock.js';
import { MIB, openStore } from './stores.js';
import { Client, makeUnit } from './units.js';

/** Calls of the look-up that every step through the index begins with, while `run` runs. */
async function lookUps(run: () => Promise<void>): Promise<number> {
  const original = IndexTable.prototype.first;
  let calls = 0;
  IndexTable.prototype.first = function (file, stripe) {
    calls++;
    return original.call(this, file, stripe);
  };
  try {
    await run();
  } finally {
    IndexTable.prototype.first = original;
  }
  return calls;
}

/** Look-ups for a new owner's versions of so many stripes that nobody has committed, until all older ones are freed. */
async function rewriting(stripes: number): Promise<number> {
  const store = await openStore(new MemoryDisk(64 * MIB)),
    client = new Client();
  const write = async (epoch: number, mark: (stripe: number) => number): Promise<void> => {
    const answers: Promise<number>[] = [];
    for (let stripe = 0; stripe < stripes; stripe++) {
      const unit = makeUnit({ stripe, unitBytes: 512, epoch, counter: stripe + 1, mark: mark(stripe) });
      answers.push(client.append(store, unit));
    }
    const refused = (await Promise.all(answers)).filter((answer) => answer !== Refusal.NONE);
    t.same(refused, []);
  };
  await write(1, () => 0);
  const calls = await lookUps(() => write(2, () => 0));
  t.equal(store.stats().units, 2 * stripes, 'nothing is decided, nothing is freed');
  const freeing = await lookUps(async () => {
    t.equal(
      await client.append(
        store,
        makeUnit({ stripe: stripes, unitBytes: 512, epoch: 2, counter: stripes + 1, mark: stripes }),
      ),
      Refusal.NONE,
    );
  });
  t.equal(store.stats().units, stripes + 1, 'the older versions are freed when the mark has passed the newer');
  await store.close();
  return calls + freeing;
}

t.test('A new owner that rewrites undecided stripes costs a node a bounded number of steps for each', async (t) => {
  const [small, large] = [await rewriting(250), await rewriting(1000)];
  t.ok(large <= small * 5, `${small} look-ups for 250 stripes, ${large} for 1000`);
});

t.test('Scrubbing many small files reads the tail of the log once, and then what it has grown by', async (t) => {
  const disk = new MemoryDisk(64 * MIB),
    clock = new VirtualClock(),
    store = await openStore(disk, { clock }),
    client = new Client();
  const write = async (from: number, count: number): Promise<void> => {
    for (let stripe = from; stripe < from + count; stripe++)
      t.equal(await client.append(store, makeUnit({ stripe, unitBytes: 512 })), Refusal.NONE);
  };
  let reads = 0;
  disk.faults.beforeRead = () => {
    reads++;
  };
  const readsOf = async (checks: number): Promise<number> => {
    const before = reads;
    for (let i = 0; i < checks; i++) t.ok(await store.checkTail());
    return reads - before;
  };
  await write(0, 100);
  t.ok((await readsOf(1)) >= 100, 'a batch a unit');
  t.equal(await readsOf(50), 0);
  await write(100, 3);
  t.ok((await readsOf(50)) <= 6);
  await clock.advance(600_000);
  t.ok((await readsOf(1)) >= 103, 'after ten minutes all of it again');
});
