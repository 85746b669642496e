/**
 * Crash consistency: random runs on a recording disk so small that checkpoints, cleaning and a full log happen all the
 * time; then every state in which a loss of power could leave that disk is mounted and checked (crash-model.ts).
 *
 * Short form: a few thousand states. TARTAN_LONG=1: more than a hundred thousand. Each failure names seed and state.
 */
import t from 'tap';
import { Checkpointer } from '../../storage-node/checkpointer.js';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { IndexTable } from '../../storage-node/index-table.js';
import { LogWriter } from '../../storage-node/log-writer.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { Replay } from '../../storage-node/replay.js';
import { UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { mount, openPooled, unitOf, type Note } from './crash-model.js';
import { RecordingDisk, type CrashState } from './recording-disk.js';
import { Client, randomFrom } from './units.js';

const LONG = process.env['TARTAN_LONG'] === '1';

/**
 * Random appends, versions, fences, discards, deletions and records against a store; notes everything it asks and is
 * promised.
 */
async function play(
  store: UnitStore,
  disk: RecordingDisk,
  random: () => number,
  steps: number,
  life: number,
): Promise<void> {
  const draw = (n: number): number => Math.floor(random() * n),
    client = new Client(),
    waiting: Promise<unknown>[] = [];
  const note = (each: Note): void => {
    disk.note(each);
  };
  let counter = life * 10_000,
    oldest = 1 + life * 50;
  const epochs = new Map<number, number>();
  const epochOf = (fileId: number): number => epochs.get(fileId) ?? 1 + life;
  for (let step = 0; step < steps; step++) {
    const fileId = oldest + draw(3),
      stripe = draw(10),
      kind = draw(40);
    if (kind < 32) {
      for (let i = 0; i <= draw(3); i++) {
        counter++;
        const spec = {
          fileId,
          stripe: (stripe + i) % 10,
          unit: 0,
          epoch: epochOf(fileId),
          counter,
          seed: counter,
          mark: draw(3) === 0 ? 0 : Math.max(0, counter - draw(12)),
          unitBytes: [512, 4096, 8192][draw(3)]!,
          missing: draw(6) === 0 ? 2n : 0n,
        };
        note({ what: 'unit', acked: false, spec });
        waiting.push(
          client.append(store, unitOf(spec)).then((refusal) => {
            if (refusal === Refusal.NONE) note({ what: 'unit', acked: true, spec });
          }),
        );
      }
    } else if (kind === 32) {
      const epoch = epochOf(fileId) + 1;
      epochs.set(fileId, epoch);
      note({ what: 'fence', acked: false, fileId, epoch });
      waiting.push(
        store.fence(fileId, epoch).then(
          () => {
            note({ what: 'fence', acked: true, fileId, epoch });
          },
          () => undefined,
        ),
      );
    } else if (kind === 33) {
      const epoch = epochOf(fileId) + 1,
        from = stripe + 3;
      epochs.set(fileId, epoch);
      note({ what: 'discard', acked: false, fileId, stripe: from, epoch });
      waiting.push(
        store.discard(fileId, from, epoch).then(
          () => {
            note({ what: 'discard', acked: true, fileId, stripe: from, epoch });
          },
          () => undefined,
        ),
      );
    } else if (kind < 37) {
      const [held] = store.inventory(fileId, stripe, 5).units;
      if (held === undefined) continue;
      const record = {
        fileId,
        stripe: held.stripe,
        epoch: held.writerEpoch,
        counter: held.counter,
        mask: 4n << BigInt(draw(3)),
      };
      note({ what: 'missing', acked: false, ...record });
      waiting.push(
        store.recordMissing(fileId, held.stripe, held.writerEpoch, held.counter, record.mask, 1000).then(
          () => {
            note({ what: 'missing', acked: true, ...record });
          },
          () => undefined,
        ),
      );
    } else {
      const id = oldest++;
      note({ what: 'delete', acked: false, fileId: id });
      waiting.push(
        store.deleteFile(id).then(
          () => {
            note({ what: 'delete', acked: true, fileId: id });
          },
          () => undefined,
        ),
      );
    }
    if (draw(3) > 0) await Promise.all(waiting.splice(0));
  }
  await Promise.all(waiting);
}

interface Recorded {
  readonly disk: RecordingDisk;
  readonly what: string;
  readonly checkpoints: number;
  readonly moved: number;
  readonly refused: number;
}

/** One run from a blank disk, closed at its end; every other in several lives. */
async function record(seed: number, steps: number): Promise<Recorded> {
  const random = randomFrom(seed * 7919),
    blocks = 80 + 16 * (seed % 4);
  const disk = new RecordingDisk(new MemoryDisk(blocks * BLOCK_BYTES));
  let checkpoints = 0,
    moved = 0,
    refused = 0;
  for (let life = 0; life <= seed % 2; life++) {
    const store = await openPooled(disk);
    await play(store, disk, random, steps, life);
    await store.drained();
    const stats = store.stats();
    checkpoints += stats.checkpoints;
    moved += stats.movedUnits;
    refused += stats.refused;
    await store.close();
  }
  return { disk, what: `seed ${seed}, ${blocks} blocks`, checkpoints, moved, refused };
}

/** Mounts a state, told by name when it breaks a promise. */
async function tryState(what: string, state: CrashState, earlier: readonly unknown[] = []): Promise<void> {
  try {
    await mount(state.disk, [...earlier, ...state.notes]);
  } catch (error) {
    throw new Error(`${what}, ${state.name}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

/** Of the states that a crash of a crash leaves, so many are tried: they are many more, and much alike. */
const SHARE_OF_SECOND = 0.2;

/**
 * Lets a crash state be opened and used on a recording disk, and mounts what a crash of that leaves.
 * @returns states tried
 */
async function crashAgain(
  what: string,
  { disk, notes, name }: CrashState,
  random: () => number,
  samples: number,
): Promise<number> {
  const second = new RecordingDisk(disk);
  const store = await openPooled(second);
  await play(store, second, random, 3, 5);
  await store.close();
  let tried = 0;
  for (const state of second.states(random, 3, samples)) {
    if (random() >= SHARE_OF_SECOND) continue;
    await tryState(`${what}, ${name}, and again`, state, notes);
    tried++;
  }
  return tried;
}

/** `states`: it ends with the run in which so many are reached; `keep`: the share of a run's states that is tried. */
interface Effort {
  readonly states: number;
  readonly keep: number;
  readonly steps: number;
  readonly most: number;
  readonly samples: number /** One state in so many crashes again. */;
  readonly again: number;
}

async function explore({
  states,
  keep,
  steps,
  most,
  samples,
  again,
}: Effort): Promise<{ states: number; twice: number; checkpoints: number; moved: number; refused: number }> {
  const sum = { states: 0, twice: 0, checkpoints: 0, moved: 0, refused: 0 };
  for (let seed = 1; sum.states + sum.twice < states; seed++) {
    const recorded = await record(seed, steps),
      random = randomFrom(seed),
      drawn = randomFrom(seed + 1);
    sum.checkpoints += recorded.checkpoints;
    sum.moved += recorded.moved;
    sum.refused += recorded.refused;
    for (const state of recorded.disk.states(random, most, samples)) {
      if (drawn() >= keep) continue;
      const copy = { ...state, disk: state.disk.snapshot() };
      await tryState(recorded.what, state);
      sum.states++;
      if (again > 0 && sum.states % again === 0) sum.twice += await crashAgain(recorded.what, copy, random, samples);
    }
  }
  return sum;
}

t.test('Whatever the power leaves of the unsynced writes, every promise is kept, and the store goes on', async (t) => {
  const effort = LONG
    ? { states: 100_000, keep: 0.25, steps: 60, most: 5, samples: 4, again: 150 }
    : { states: 800, keep: 0.04, steps: 45, most: 3, samples: 2, again: 50 };
  const { states, twice, checkpoints, moved, refused } = await explore(effort);
  t.ok(
    states + twice >= effort.states,
    `${states} crash states and ${twice} of a crash during what followed ` +
      `one; ${checkpoints} checkpoints, ${moved} units moved, ${refused} refused`,
  );
  t.ok(checkpoints > 20 && moved > 20 && refused > 5);
});

// Any method of any class: that is what a mutant needs.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Loose = any;
type Method = (this: Loose, ...args: Loose[]) => unknown;
interface Mutant {
  readonly what: string;
  readonly owner: { readonly prototype: object };
  readonly method: string;
  readonly wrap: (original: Method) => Method;
}

const mutants: readonly Mutant[] = [
  {
    what: 'a segment is free as soon as nothing in it is live',
    owner: Checkpointer,
    method: 'snapshot',
    wrap: (original) =>
      async function () {
        const shot = (await original.call(this)) as { segments: { empty: number[] } };
        for (const segment of shot.segments.empty.splice(0)) this.options.segments.release(segment);
        return shot;
      },
  },
  {
    what: 'checkpoints and pointers are not synced',
    owner: Checkpointer,
    method: 'sync',
    wrap: () =>
      function () {
        return Promise.resolve();
      },
  },
  {
    what: 'the newest pointer is the one written over',
    owner: Checkpointer,
    method: 'take',
    wrap: (original) =>
      async function () {
        this.slot = 1 - this.slot;
        return original.call(this);
      },
  },
  {
    what: 'a torn copy is dropped, its original forgotten',
    owner: Replay,
    method: 'voided',
    wrap: (original) =>
      function (fileId: number, stripe: number, place: object) {
        return original.call(this, fileId, stripe, place, undefined);
      },
  },
  {
    what: 'payloads of the tail are not checked',
    owner: Replay,
    method: 'holdsAt',
    wrap: () =>
      function () {
        return false;
      },
  },
  {
    what: 'what was torn is not recorded',
    owner: UnitStore,
    method: 'writeVoids',
    wrap: () =>
      function () {
        return Promise.resolve();
      },
  },
  {
    what: 'checkpoints forget fences',
    owner: IndexTable,
    method: 'restoreFile',
    wrap: (original) =>
      function (words: Uint32Array, w: number) {
        const copy = words.slice(w, w + 6);
        copy[3] = 0;
        original.call(this, copy, 0);
      },
  },
  {
    what: 'checkpoints forget deletions',
    owner: IndexTable,
    method: 'restoreDeleted',
    wrap: () =>
      function () {
        /* forgotten */
      },
  },
  {
    what: 'checkpoints forget recorded missing units',
    owner: IndexTable,
    method: 'restoreMissing',
    wrap: () =>
      function () {
        /* forgotten */
      },
  },
  {
    what: 'checkpoints forget the missing units of headers',
    owner: IndexTable,
    method: 'restoreMask',
    wrap: () =>
      function () {
        /* forgotten */
      },
  },
  {
    what: 'units are acknowledged before the sync',
    owner: LogWriter,
    method: 'commit',
    wrap: () =>
      async function (batch: object) {
        this.batches++;
        try {
          await this.write(batch);
        } catch {
          return Refusal.DISK_FULL;
        }
        this.synced = this.sequence - 1;
        return Refusal.NONE;
      },
  },
];

for (const { what, owner, method, wrap } of mutants) {
  t.test(`It notices when ${what}`, async (t) => {
    const prototype = owner.prototype as Record<string, Method>,
      original = prototype[method]!;
    t.type(original, 'function', 'the mutant still has a target');
    prototype[method] = wrap(original);
    try {
      await t.rejects(explore({ states: 8000, keep: 1, steps: 50, most: 3, samples: 2, again: 0 }), /seed \d+/);
    } finally {
      prototype[method] = original;
    }
  });
}
