/**
 * Another process on an embedded store: `sqlite-child.ts COMMAND DIR …`. Prints one line per step; what is printed was
 * true.
 *
 *   increment DIR KEY COUNT   adds 1 to KEY, COUNT times, by compare-and-swap
 *   storm DIR                 writes 'storm/a' and 'storm/b', equal, ascending, until killed; prints each acknowledged
 *   one
 *   lease DIR KEY TTL_MS      puts KEY under a lease, prints, and sleeps
 *   lock DIR                  takes the write lock, changes 'locked' inside, prints, and never lets go
 *   watch DIR PREFIX          prints every event as JSON
 *   put DIR KEY VALUE
 *   full DIR                  DIR is a small file system of its own: uses the store while that is full, prints what
 *                             came of it as JSON
 */
import { spawnSync } from 'node:child_process';
import { rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { openDatabase, reserve, tablesOf } from '../../cluster/sqlite-database.js';
import { openSqliteStore } from '../../cluster/sqlite-store.js';
import { codeOf } from '../../wire/errors.js';
import { fillUp } from '../small-file-system.js';

const [command, dir, ...rest] = process.argv.slice(2) as [string, string, ...string[]];
const say = (line: string) => {
  writeSync(1, `${line}\n`);
};
const stayAlive = () => {
  setInterval(() => undefined, 1 << 30);
};

if (command === 'lock') {
  const database = openDatabase(dir, false);
  const hold = database.transaction(() => {
    tablesOf(database).keys.put('locked', { value: 'never', createRevision: 1, modRevision: 1 });
    say('locked');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  });
  hold.immediate();
}

const store = await openSqliteStore(dir, { create: true });
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
  case 'full': {
    reserve(dir, 2 << 20);
    const value = 'x'.repeat(200_000);
    const put = (key: string) =>
      store.transact([], [{ put: key, value }]).then(
        () => 'done',
        (error: unknown) => codeOf(error),
      );
    await put('before');
    const ballast = join(dir, '..', 'ballast');
    fillUp(ballast);
    const early = [await put('a'), await put('b')];
    const other = spawnSync(process.execPath, [...process.execArgv, process.argv[1]!, 'put', dir, 'other', 'y']);
    const late: (string | undefined)[] = [];
    for (let i = 0; i < 40 && late.at(-1) !== 'ERR_MAP_UNAVAILABLE'; i++) late.push(await put(`late${i}`));
    const kept = (await store.range('late')).length;
    rmSync(ballast);
    say(
      JSON.stringify({
        early,
        other: [other.status, (await store.get('other'))?.value],
        acknowledged: late.filter((each) => each === 'done').length,
        kept,
        refusal: late.at(-1),
        afterwards: await put('after'),
      }),
    );
    await store.close();
    break;
  }
  default:
    throw new Error(`no command '${command}'`);
}
