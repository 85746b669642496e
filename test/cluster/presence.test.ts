/** A switch's presence: one process has the id, and who lost it while it was stopped does not go on. */
import t from 'tap';
import { SWITCH_LEASES } from '../../cluster/keys.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { SwitchPresence, presentSince } from '../../cluster/presence.js';
import { VirtualClock } from './virtual-clock.js';

const LEASE_MS = 3000;

function rig() {
  const clock = new VirtualClock(),
    cluster = new MemoryCluster(clock),
    displaced: string[] = [];
  const take = (name: string) =>
    SwitchPresence.take(cluster.client(), 's1', {
      clock,
      leaseMs: LEASE_MS,
      onDisplaced: () => displaced.push(name),
    });
  return { clock, cluster, displaced, take, store: cluster.client() };
}

t.test('a second process with the id of a switch that runs is refused; the first goes on', async (t) => {
  const { clock, cluster, displaced, take, store } = rig();
  const first = await take('first'),
    second = take('second').catch((error: unknown) => error);
  await clock.advance(10 * LEASE_MS);
  t.match(await second, { code: 'ERR_IN_USE', message: "Cannot start switch 's1': a process with that id runs" });
  t.same([[...(await presentSince(store)).keys()], displaced], [['s1'], []], 'renewed all the time');
  await first.release();
  t.equal((await presentSince(store)).size, 0);
  const third = await take('third');
  t.match((await presentSince(store)).get('s1'), /^\d{4}-\d\d-\d\dT/, 'since when');
  await third.release();
  cluster.close();
});

t.test('a switch whose lease ran out takes it again; one that finds another in its place is told, once', async (t) => {
  const { clock, cluster, displaced, take, store } = rig(),
    key = `${SWITCH_LEASES}s1`;
  await take('first');
  const lost = (await store.get(key))!.lease!;
  cluster.engine.endLease(lost);
  await clock.advance(LEASE_MS);
  const again = (await store.get(key))?.lease;
  t.ok(again !== undefined && again !== lost, 'present, under another lease');
  cluster.engine.endLease(again!);
  const other = await store.grantLease(600_000);
  await store.transact([], [{ put: key, value: '{"id":"s1"}', lease: other.id }]);
  await clock.advance(10 * LEASE_MS);
  t.same([(await store.get(key))?.lease, displaced], [other.id, ['first']]);
  t.same([...(await presentSince(store))], [['s1', '']], 'who does not say since when is there all the same');
  cluster.close();
});
