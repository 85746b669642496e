/** The agent of a P4 switch against a server in memory that follows the P4Runtime specification. */
import t, { type Test } from 'tap';
import { connect as connectSocket, createServer, type AddressInfo, type Socket } from 'node:net';
import { ServerCredentials } from '@grpc/grpc-js';
import { allMulticastGroups, connect, readTableEntry, tableWildcard, v1 } from 'tartan-p4runtime';
import { readMap } from '../../cluster/membership.js';
import { loadArtefact } from '../../switch-agent/bmv2/artefact.js';
import { FLOOD_GROUP } from '../../switch-agent/bmv2/forwarding.js';
import { MockServer } from '../p4runtime-js/mock-server.js';
import { until } from '../until.js';
import { HOSTS, begin, stories, type Rig } from './packet-switch-stories.js';

const { COMMIT, VERIFY_AND_SAVE } = v1.SetForwardingPipelineConfigRequest_Action;
const { program } = loadArtefact('parity-k2-1500');

interface MockRig extends Rig {
  readonly server: () => MockServer;
}

async function makeRig(): Promise<MockRig> {
  let server = new MockServer();
  const address = await server.listen(),
    { port } = server;
  return {
    address,
    server: () => server,
    // As parity.p4 does: only with a service address, and with the cookie that stands there.
    ask() {
      const info = server.device.p4info;
      if (!info?.tables.some((table) => table.preamble?.alias === 'service_address')) return Promise.resolve(undefined);
      const [found] = [...server.device.read([tableWildcard(program, 'service_address')])];
      if (found?.entity?.$case !== 'tableEntry') return Promise.resolve(undefined);
      const { action } = readTableEntry(program, found.entity.value);
      const cookie = action !== undefined && 'params' in action ? BigInt(action.params['cookie'] ?? 0) : 0n;
      return Promise.resolve({ nonce: 0n, cookie, program: 1, k: 2, m: 4, chunkBytes: 640 });
    },
    kill() {
      server.stop();
      return Promise.resolve();
    },
    async restart() {
      server = new MockServer();
      await server.listen(ServerCredentials.createInsecure(), port);
    },
  };
}

t.test('an agent controls a switch that follows the specification', async (t) => {
  stories(t, makeRig);
});

t.test('who came and went between two looks of the agent has left nothing behind', async (t) => {
  const mock = await makeRig(),
    { rig, switchAgent } = await begin(t, () => Promise.resolve(mock)),
    server = mock.server();
  const before = server.device.multicast(FLOOD_GROUP).sort();
  let release!: () => void;
  server.holding = new Promise((resolve) => {
    release = resolve;
  });
  const { asked } = server;
  await until(() => server.asked > asked, 'the agent in the middle of a look');
  const other = await connect({ address: rig.address, deviceId: 1 });
  await other.arbitrate(2n ** 100n);
  await other.delete(...(await other.readAll(allMulticastGroups())));
  t.not(server.device.multicast(FLOOD_GROUP).length, before.length);
  other.close();
  await until(() => !server.hasPrimary, 'the server to notice that it went');
  server.holding = undefined;
  release();
  await until(() => server.device.multicast(FLOOD_GROUP).length === before.length, 'all is right again');
  t.same(server.device.multicast(FLOOD_GROUP).sort(), before);
  t.match(await switchAgent.counters(), { tartan_switch_pipelines_pushed: 1 }, 'without pushing the program');
});

t.test('a packet leaves once by each port, after however many pushes', async (t) => {
  const mock = await makeRig(),
    { switchAgent, epoch } = await begin(t, () => Promise.resolve(mock)),
    { device } = mock.server();
  await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }] });
  const packets = (): string[] =>
    [FLOOD_GROUP, FLOOD_GROUP + 1].map((group) => device.multicast(group).sort().join(' '));
  const ports = HOSTS.map(({ port }) => port).join(' ');
  t.same(packets(), [ports, '1 2 3']);
  for (let push = 1; push <= 3; push++) {
    await switchAgent.unload();
    t.same(packets(), [ports, ''], `without the program, ${push} times`);
    await switchAgent.load('parity');
    t.same(packets(), [ports, '1 2 3'], `with it again, ${push} times`);
  }
});

t.test('a switch that hangs on COMMIT is given up, said so, and has its program again when it answers', async (t) => {
  const mock = await makeRig(),
    // As long as the agent's own deadline: a push then has four times that.
    { switchAgent, states, said } = await begin(t, () => Promise.resolve(mock), 1),
    server = mock.server();
  await switchAgent.unload();
  states.length = said.length = server.pushes.length = 0;
  server.hangsOn = COMMIT;
  await t.rejects(switchAgent.load('parity'), { code: 'ERR_DEADLINE', message: /not answered COMMIT .* restart its/ });
  t.same(server.pushes, [VERIFY_AND_SAVE, COMMIT], 'nothing more is asked of what does not answer');
  await until(
    () => Promise.resolve(said.some((each) => each.includes('not answered COMMIT'))),
    'it tries, and says so',
  );
  t.notOk(states.includes('programmable'), 'writers make their parity themselves meanwhile');
  server.hangsOn = undefined;
  await until(() => Promise.resolve(switchAgent.state === 'programmable'), 'it has its program again');
});

t.test('a standby agent that loses the switch never says that it is down', async (t) => {
  const mock = await makeRig(),
    { store, startAgent, switchAgent: standby, states, relay } = await beginBehindRelay(t, mock);
  const primary = await startAgent();
  await until(async () => (await standby.counters())['tartan_switch_primary'] === 0, 'it is standby');
  states.length = 0;
  relay.cut();
  await until(() => Promise.resolve(standby.state === 'down'), 'it sees the switch no more');
  await standby.stop();
  t.equal((await primary.counters())['tartan_switch_primary'], 1);
  t.equal((await readMap(store)).switches[0]?.state, 'programmable');
  t.notOk(states.includes('down'), 'and it has not told anybody, stopping neither');
});

/** As begin(), with a first agent whose way to the switch can be cut; later ones go straight. */
async function beginBehindRelay(t: Test, mock: MockRig) {
  const sockets = new Set<Socket>();
  const server = createServer((inner) => {
    const outer = connectSocket(mock.server().port, '127.0.0.1');
    for (const [from, to] of [
      [inner, outer],
      [outer, inner],
    ] as const) {
      sockets.add(from);
      from.pipe(to);
      from.on('error', () => to.destroy());
      from.on('close', () => to.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const cut = (): void => {
    server.close();
    for (const each of sockets) each.destroy();
  };
  t.teardown(cut);
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const begun = await begin(t, () => Promise.resolve({ ...mock, address }));
  return { ...begun, relay: { cut }, startAgent: () => begun.startAgent('programmable', mock.address) };
}
