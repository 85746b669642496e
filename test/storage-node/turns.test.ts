/** What is done in one turn of the event loop is bounded, in units: counted, not timed. */
import t from 'tap';
import { STEPS_A_TURN } from '../../storage-node/chores.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import type { UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { VirtualClock, settle } from '../cluster/virtual-clock.js';
import { MIB, openStore, picture } from './stores.js';
import { Client, makeUnit } from './units.js';

const UNITS = 5 * STEPS_A_TURN + 7;

/** Tells how many units the store held at the beginning of each turn that work was put off to. */
class TurnClock extends VirtualClock {
  readonly held: number[] = [];
  store: UnitStore | undefined;
  override setTimer(ms: number, fn: () => void): unknown {
    return super.setTimer(ms, () => {
      if (ms === 0) this.held.push(this.store!.stats().units);
      fn();
    });
  }
  /** Most units that went between two turns. */
  most(from: number, to: number): number {
    const points = [from, ...this.held, to];
    return Math.max(...points.slice(1).map((held, i) => points[i]! - held));
  }
}

async function filled(checkpointBytes?: number): Promise<{ store: UnitStore; clock: TurnClock; disk: MemoryDisk }> {
  const clock = new TurnClock(),
    disk = new MemoryDisk(128 * MIB),
    store = await openStore(disk, { clock, ...(checkpointBytes !== undefined && { checkpointBytes }) });
  clock.store = store;
  await write(store, 1, 1, () => 0);
  return { store, clock, disk };
}

async function write(store: UnitStore, fileId: number, epoch: number, mark: (i: number) => number): Promise<void> {
  const client = new Client(),
    answers: Promise<number>[] = [];
  for (let stripe = 0; stripe < UNITS; stripe++)
    answers.push(
      client.append(
        store,
        makeUnit({ fileId, stripe, unitBytes: 512, epoch, counter: stripe + 1, mark: mark(stripe) }),
      ),
    );
  const refused = (await Promise.all(answers)).filter((answer) => answer !== Refusal.NONE);
  if (refused.length > 0) throw new Error(`${refused.length} units were refused, the first with ${refused[0]}`);
}

t.test('A long file that is deleted is gone at once, and its units are freed some a turn', async (t) => {
  const { store, clock } = await filled(),
    client = new Client();
  await store.deleteFile(1);
  t.ok(store.isDeleted(1));
  t.same(store.inventory(1, 0, 10), { units: [], more: false });
  const left = store.stats().units;
  t.ok(left >= UNITS - 2 * STEPS_A_TURN, `${left} of ${UNITS} are still to be freed`);
  t.equal(await client.append(store, makeUnit({ fileId: 1, stripe: 9 })), Refusal.NO_UNIT);
  t.equal(await client.append(store, makeUnit({ fileId: 2, stripe: 0 })), Refusal.NONE, 'others are served meanwhile');
  await clock.advance(0);
  await store.drained();
  t.equal(store.stats().units, 1, 'all are freed');
  t.ok(clock.most(UNITS, 1) <= STEPS_A_TURN + 1, `${clock.most(UNITS, 1)} units in one turn`);
  await store.close();
});

t.test('A mark that lets thousands of older versions go frees them some a turn', async (t) => {
  const { store, clock } = await filled(),
    client = new Client();
  await write(store, 1, 2, () => 0);
  t.equal(store.stats().units, 2 * UNITS, 'nothing is decided, nothing is freed');
  const last = makeUnit({ stripe: UNITS, unitBytes: 512, epoch: 2, counter: UNITS + 1, mark: UNITS });
  t.equal(await client.append(store, last), Refusal.NONE);
  t.ok(store.stats().units >= 2 * UNITS - 2 * STEPS_A_TURN);
  await clock.advance(0);
  await store.drained();
  t.equal(store.stats().units, UNITS + 1);
  t.ok(clock.most(2 * UNITS, UNITS + 1) <= STEPS_A_TURN + 1, `${clock.most(2 * UNITS, UNITS + 1)} units in one turn`);
  await store.close();
});

t.test('A checkpoint taken while a deleted file is being freed knows nothing of it', async (t) => {
  const { store, clock, disk } = await filled(64 << 10),
    client = new Client();
  await store.deleteFile(1);
  const before = store.stats().checkpoints;
  // No turn comes, so most of it is not freed yet when the next checkpoint is taken.
  for (let stripe = 0; store.stats().checkpoints === before && stripe < 2000; stripe++) {
    t.equal(await client.append(store, makeUnit({ fileId: 2, stripe })), Refusal.NONE);
    await settle();
  }
  t.ok(store.stats().checkpoints > before, 'there is a checkpoint');
  t.ok(store.stats().units > 3 * STEPS_A_TURN);
  const again = await openStore(disk.crash());
  t.ok(
    again.recovery.checkpoint >= store.stats().checkpoints,
    `it is checkpoint ${again.recovery.checkpoint} that was read`,
  );
  t.ok(again.isDeleted(1));
  t.equal(picture(again, [1, 2]), picture(store, [1, 2]));
  t.ok(again.stats().units < 2001, `${again.stats().units} units`);
  await clock.advance(0);
  await store.drained();
  t.equal(again.stats().units, store.stats().units);
  t.equal(again.stats().liveBytes, store.stats().liveBytes);
  await store.close();
  await again.close();
});
