/**
 * What every device must do, whatever stands behind it: the numbered invariants of rdma/src/device.ts and each opcode.
 *
 * A device passes by `conformance(t, open)` in a test file of its own. Cases throw on the first difference, so that
 * `failures(open)` can also run them against devices that are wrong on purpose (the canaries in sim.test.ts).
 *
 * Time is the world's: `drive` and `settle` let it pass, virtual or real. No case depends on how long anything takes.
 */
import type { Test } from 'tap';
import { codingCases } from './conformance-coding.js';
import { connectionCases } from './conformance-connection.js';
import { protectionCases } from './conformance-protection.js';
import { transferCases } from './conformance-transfer.js';
import type { Case, World } from './conformance-world.js';

export { realTimeWorld, type World } from './conformance-world.js';

const cases: readonly Case[] = [...transferCases, ...protectionCases, ...connectionCases, ...codingCases];

/** Runs every case as a subtest of `t`, each in a world of its own. */
export function conformance(t: Test, open: () => Promise<World>): void {
  for (const { name, run } of cases) {
    t.test(name, async (t) => {
      await t.resolves(inWorld(open, run));
    });
  }
}

/**
 * Runs the cases whose name contains `part`.
 * @returns the names of those that fail, with what they said
 */
export async function failures(open: () => Promise<World>, part = ''): Promise<Map<string, string>> {
  const failed = new Map<string, string>();
  for (const { name, run } of cases.filter((one) => one.name.includes(part))) {
    try {
      await inWorld(open, run);
    } catch (error) {
      failed.set(name, String(error));
    }
  }
  return failed;
}

async function inWorld(open: () => Promise<World>, run: (world: World) => Promise<void>): Promise<void> {
  const world = await open();
  let isFailing = true;
  try {
    await run(world);
    isFailing = false;
  } finally {
    // After a failure the device may be unable to close: the failure is what counts.
    await world.close().catch((error: unknown) => {
      if (!isFailing) throw error;
    });
  }
}
