/** Waiting for what must come true, in tests of the machine's own time. */
import { setTimeout as delay } from 'node:timers/promises';

const POLL_MS = 20;
const SAY_EVERY = 500;

/**
 * Waits until something holds, for as long as that takes: a slow machine is no fault, and the whole suite's limit is
 * the only one. What is still waited for after many looks is said on standard error, so that a hang has a name.
 */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let looks = 1; !(await condition()); looks++) {
    if (looks % SAY_EVERY === 0) process.stderr.write(`still waiting for ${what}\n`);
    await delay(POLL_MS);
  }
}
