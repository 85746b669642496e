/**
 * Another process that wants a lock: `lock-child.ts COMMAND DIR`.
 *
 *   race DIR   tries once when DIR/go.1 appears, again at DIR/go.2 …; prints "held", and keeps it, or who has it
 *   full DIR   DIR is a small file system of its own: takes the lock while that is full, prints "held"
 */
import { existsSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { lockPath } from '../../cluster/process-lock.js';
import { fillUp } from '../small-file-system.js';

const [command, dir] = process.argv.slice(2) as [string, string];
const say = (line: string) => {
  writeSync(1, `${line}\n`);
};
const tryOnce = (): string => {
  const taken = lockPath(join(dir, 'in-use'));
  return 'heldBy' in taken ? taken.heldBy : 'held';
};

if (command === 'full') {
  fillUp(join(dir, 'ballast'));
  say(tryOnce());
} else {
  say('ready');
  for (let round = 1; ; round++) {
    while (!existsSync(join(dir, `go.${round}`))); // nothing but spinning is quick enough for a race
    const came = tryOnce();
    say(came);
    if (came === 'held') break;
  }
  setInterval(() => undefined, 1 << 30);
}
