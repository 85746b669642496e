/**
 * Another process on an LMDB store: `lmdb-child.ts COMMAND DIR …`. Prints one line per step; what is printed was true.
 *
 *   increment DIR KEY COUNT   adds 1 to KEY, COUNT times, by compare-and-swap
 *   storm DIR                 writes 'storm/a' and 'storm/b', equal, ascending, until killed; prints each acknowledged
 *   one
 *   lease DIR KEY TTL_MS      puts KEY under a lease, prints, and sleeps
 *   lock DIR                  takes LMDB's write lock, changes 'locked' inside, prints, and never lets go
 *   watch DIR PREFIX          prints every event as JSON
 *   put DIR KEY VALUE
 */
import { writeSync } from 'node:fs';
import { openEnvironment, lmdbTables } from '../../cluster/lmdb-environment.js';
import { openLmdbStore } from '../../cluster/lmdb-store.js';

const [command, dir, ...rest] = process.argv.slice(2) as [string, string, ...string[]];
const say = (line: string) => {
  writeSync(1, `${line}\n`);
};
const stayAlive = () => {
  setInterval(() => undefined, 1 << 30);
};

if (command === 'lock') {
  const { environment } = await openEnvironment(dir, false);
  environment.transactionSync(() => {
    lmdbTables(environment).keys.put('locked', { value: 'never', createRevision: 1, modRevision: 1 });
    say('locked');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  });
}

const store = await openLmdbStore(dir, { create: true });
switch (command) {
  case 'increment': {
    const [key, count] = rest as [string, string];
    say('ready');
    for (let i = 0; i < Number(count); i++) {
      for (;;) {
        const present = await store.get(key);
        const value = String(Number(present?.value ?? '0') + 1);
        if ((await store.transact([{ key, modRevision: present?.modRevision ?? 0 }], [{ put: key, value }])).succeeded)
          break;
      }
    }
    await store.close();
    break;
  }
  case 'storm': {
    for (let i = Number((await store.get('storm/a'))?.value ?? '0') + 1; ; i++) {
      await store.transact(
        [],
        [
          { put: 'storm/a', value: String(i) },
          { put: 'storm/b', value: String(i) },
        ],
      );
      say(String(i));
    }
  }
  case 'lease': {
    const [key, ttlMs] = rest as [string, string];
    const lease = await store.grantLease(Number(ttlMs));
    await store.transact([], [{ put: key, value: String(process.pid), lease: lease.id }]);
    say('leased');
    stayAlive();
    break;
  }
  case 'watch': {
    store.watch(rest[0]!, (events) => {
      for (const event of events) say(JSON.stringify(event));
    });
    say('watching');
    break;
  }
  case 'put': {
    await store.transact([], [{ put: rest[0]!, value: rest[1]! }]);
    await store.close();
    break;
  }
  default:
    throw new Error(`no command '${command}'`);
}
