/**
 * Peers that know the secret and abuse what they are granted, against nodes and a switch in virtual time. TARTAN_SEED
 * replays a run; `npm run fuzz` does the same on soft devices, under sanitizers, for longer.
 */
import t from 'tap';
import { createFile } from '../../cluster/files.js';
import { Hub } from '../../pipeline/hub.js';
import { sleep } from '../../wire/clock.js';
import { SimCluster } from '../simulation/cluster.js';
import { storeAndRead } from './honest-client.js';
import { HostilePeer, NONSENSE, UNIT_BYTES } from './hostile-peer.js';

const SEED = Number(process.env['TARTAN_SEED'] ?? Date.now() % 1_000_000_000);
const ROUNDS = 60;

t.test(`nodes and a switch refuse what is forged into their rings, and go on serving: seed ${SEED}`, async (t) => {
  const cluster = new SimCluster({ seed: SEED, deadlineMs: 1000 });
  const fight = async (): Promise<HostilePeer> => {
    await cluster.start();
    const file = await createFile(cluster.memory.client(), {
      name: 'hostile',
      code: 'xor(2+1)',
      unitBytes: UNIT_BYTES,
      nodes: cluster.nodes.map(({ id }) => id),
      modified: new Date(0).toISOString(),
    });
    const device = cluster.world.openDevice('hostile'),
      clock = cluster.clock('hostile');
    const random = cluster.world.fork('hostile peer');
    const peer = new HostilePeer({
      context: { device, hub: new Hub(device), clock, secret: undefined, clusterId: cluster.clusterId },
      int: (below) => Math.floor(random.random() * below),
      targets: [
        ...cluster.nodes.map(({ host }) => ({ kind: 'node' as const, host, port: 7000 })),
        { kind: 'switch', host: 's1', port: 7100 },
      ],
      file,
      mapEpoch: () => cluster.nodes[0]!.node!.mapEpoch,
      transport: 'auto',
    });
    const codes = await peer.askNonsense();
    t.same(
      NONSENSE.filter((_, i) => !/^ERR_[A-Z_]+$/.test(codes[i]!) || ['ERR_CONNECT', 'ERR_CLOSED'].includes(codes[i]!)),
      [],
      `each Hello that makes no sense is refused with a code: ${codes.join()}`,
    );
    const used = cluster.nodes.map(({ node }) => node!.memory.used);
    for (let round = 0; round < ROUNDS; round++) await peer.round();
    await sleep(clock, 20_000);
    t.same(
      cluster.nodes.map(({ node }) => node!.connectionCount),
      [0, 0, 0],
      'no connection is left',
    );
    t.same(
      cluster.nodes.map(({ node }) => node!.memory.used),
      used,
      'no ring memory is held',
    );
    t.equal(cluster.switchCore!.counters().ringMemoryUsed, 0, 'nor by the switch');
    t.ok(await storeAndRead(await cluster.client('honest'), 'honest', SEED), 'a file is stored and reads back');
    return peer;
  };
  const { tally } = await cluster.world.complete(fight(), 3_600_000);
  const said = JSON.stringify(Object.fromEntries(tally));
  for (const what of ['node granted a ring', 'switch granted a ring', 'node acknowledged with 0'])
    t.ok((tally.get(what) ?? 0) > 0, `${what}: of ${said}`);
});
