/**
 * `node dist/test/fuzz/forged-rings.js SECONDS SEED`: hostile peers of nodes and a switch on soft devices, over TCP and
 * over shared memory in turn. After each bout nothing of theirs may be left, and a file is stored and read back.
 * Status 0: nothing was found.
 */
import { createFile } from '../../cluster/files.js';
import { sleep, realClock } from '../../wire/clock.js';
import { HostilePeer, UNIT_BYTES } from './hostile-peer.js';
import { numbersFrom, storeAndRead } from './honest-client.js';
import { SoftCluster } from './soft-cluster.js';

const ROUNDS = 40;
const [seconds = 10, seed = 1] = process.argv.slice(2).map(Number);
const tally = new Map<string, number>();
let bout = 0;

for (const event of ['uncaughtException', 'unhandledRejection'])
  process.on(event, (error: unknown) => {
    give(`something was thrown that nobody caught: ${error instanceof Error ? error.stack : String(error)}`);
  });

const until = realClock.now() + seconds * 1000;
while (bout === 0 || realClock.now() < until) await fight(seed + bout++);
const lines = [...tally].sort(([a], [b]) => (a < b ? -1 : 1)).map(([what, count]) => `${what}: ${count}`);
process.stdout.write(`forged rings: seeds ${seed} to ${seed + bout - 1}: ${lines.join(', ')}; nothing found\n`);

function give(what: string): never {
  process.stdout.write(`forged rings: seed ${seed + Math.max(0, bout - 1)}: ${what}\n`);
  process.exit(2);
}

async function fight(boutSeed: number): Promise<void> {
  const transport = boutSeed % 2 === 0 ? 'tcp' : 'shm';
  const cluster = new SoftCluster(transport);
  await cluster.start();
  const file = await createFile(cluster.store.client(), {
    name: 'hostile',
    code: 'xor(2+1)',
    unitBytes: UNIT_BYTES,
    nodes: cluster.nodes.map(({ id }) => id),
    modified: new Date(0).toISOString(),
  });
  const used = cluster.nodes.map(({ memory }) => memory.used);
  const peer = new HostilePeer({
    context: cluster.context('hostile'),
    int: numbersFrom(boutSeed),
    targets: cluster.targets,
    file,
    mapEpoch: () => cluster.nodes[0]!.mapEpoch,
    transport,
  });
  for (let round = 0; round < ROUNDS; round++) await peer.round();
  // What is still on its way ends by itself: counted in looks, not in time.
  for (let looks = 0; looks < 5000 && isLeft(cluster, used); looks++) await sleep(realClock, 10);
  if (isLeft(cluster, used))
    give(
      `left behind: connections ${cluster.nodes.map(({ connectionCount }) => connectionCount).join()}, ring memory ` +
        `${cluster.nodes.map(({ memory }) => memory.used).join()} and ${cluster.switchCore.counters().ringMemoryUsed}`,
    );
  if (!(await storeAndRead(await cluster.client(), 'honest', boutSeed))) give('a file reads back as something else');
  for (const [what, count] of peer.tally) tally.set(what, (tally.get(what) ?? 0) + count);
  await peer.end();
  await cluster.end();
}

function isLeft(cluster: SoftCluster, used: readonly number[]): boolean {
  return (
    cluster.nodes.some(({ connectionCount, memory }, i) => connectionCount > 0 || memory.used !== used[i]) ||
    cluster.switchCore.counters().ringMemoryUsed > 0
  );
}
