/** The stories of a P4 switch's agent, told against any P4Runtime server: the mock in CI, BMv2 where it is. */
import type { Test } from 'tap';
import { setTimeout as delay } from 'node:timers/promises';
import { connect, readReplicas, readTableEntry, tableEntry, allMulticastGroups, tableWildcard } from 'tartan-p4runtime';
import { createCluster, readMap, registerNode, setNodeState } from '../../cluster/membership.js';
import { MemoryCluster } from '../../cluster/memory-store.js';
import { FORWARD, loadArtefact, type Artefact } from '../../switch-agent/bmv2/artefact.js';
import { PacketSwitch } from '../../switch-agent/bmv2/packet-switch.js';
import { parsePortMap } from '../../switch-agent/bmv2/port-map.js';
import { realClock } from '../../wire/clock.js';
import type { ProbeBody } from '../../wire/packet-header.js';
import { until } from '../until.js';

export const SERVICE = { host: '10.0.0.254', mac: '02:00:00:00:00:fe' };
export const HOSTS = [1, 2, 3, 4, 5].map((n) => ({ host: `10.0.0.${n}`, mac: `02:00:00:00:00:0${n}`, port: n }));
export const PORTS = parsePortMap(
  JSON.stringify({
    service: SERVICE,
    hosts: HOSTS,
    routes: [{ prefix: '10.6.0.0/16', mac: '02:00:00:00:00:05', port: 5 }],
  }),
  'the test',
);
const PARITY = loadArtefact('parity-k2-1500'),
  FORWARDING = loadArtefact(FORWARD);
const DEADLINE_MS = 400;

export interface Rig {
  readonly address: string;
  /** Asks the data plane. */
  ask(): Promise<ProbeBody | undefined>;
  /** Ends the switch as a crash does; restart() brings a blank one to the same address. */
  kill(): Promise<void>;
  restart(): Promise<void>;
}

export function stories(t: Test, makeRig: () => Promise<Rig>): void {
  t.test('a blank switch is programmed, and the map says so', async (t) => {
    const { rig, store, switchAgent } = await begin(t, makeRig);
    const { switches } = await readMap(store);
    t.match(switches, [
      { id: 's1', state: 'programmable', controlPort: 7000, packets: { host: SERVICE.host, port: 21586, mtu: 1500 } },
    ]);
    t.equal((await rig.ask())?.cookie, PARITY.cookie);
    t.same(await held(rig, PARITY), expectedForwarding(PARITY, true));
    t.match(await switchAgent.counters(), {
      tartan_switch_pipelines_pushed: 1,
      tartan_switch_groups: 0,
      tartan_switch_programmable: 1,
      tartan_switch_ingress_drops_no_route: 0,
    });
  });

  t.test('a group is entered when it is asked for, once', async (t) => {
    const { rig, switchAgent, epoch } = await begin(t, makeRig);
    const sets = [{ nodes: ['n1', 'n2', 'n3'] }, { nodes: ['n2', 'n3', 'n1'] }];
    const { groups, mapEpoch } = await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets });
    t.equal(mapEpoch, epoch);
    t.equal(new Set(groups).size, 2);
    const entries = await held(rig, PARITY);
    for (const group of groups) {
      t.equal(entries.filter((each) => each.startsWith(`replica ${group} `)).length, 3);
      t.ok(
        entries.some((each) => new RegExp(`^group ${group} stripe_group \\d+ ${epoch} 2 1$`).test(each)),
        `group ${group} is there`,
      );
    }
    t.ok(
      entries.includes(`replica ${groups[1]} 3 parity_row 0 2199023255806 2199023255553 167772161 21001`),
      'the last unit of the second set is parity for n1',
    );
    t.same(
      (
        await switchAgent.openGroups({
          mapEpoch: epoch,
          k: 2,
          m: 1,
          sets: [sets[1]!, { nodes: ['n3', 'n1', 'n2'] }, sets[0]!],
        })
      ).groups.filter((_, i) => i !== 1),
      [groups[1], groups[0]],
      'the same sets, the same numbers',
    );
  });

  t.test('groups that cannot be served are refused, with the reason', async (t) => {
    const { switchAgent, epoch, rig } = await begin(t, makeRig);
    const before = await held(rig, PARITY);
    const open = (change: object) =>
      switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }], ...change });
    await t.rejects(open({ mapEpoch: epoch - 1 }), { code: 'ERR_STALE_MAP' });
    await t.rejects(open({ mapEpoch: epoch + 1 }), { code: 'ERR_STALE_MAP' });
    await t.rejects(open({ k: 3, sets: [{ nodes: ['n1', 'n2', 'n3', 'n4'] }] }), {
      code: 'ERR_ARGUMENT',
      message: /takes k up to 2/,
    });
    await t.rejects(open({ m: 5 }), { code: 'ERR_ARGUMENT' });
    await t.rejects(open({ m: 0 }), { code: 'ERR_ARGUMENT' });
    await t.rejects(open({ sets: [{ nodes: ['n1', 'n2'] }] }), {
      code: 'ERR_ARGUMENT',
      message: /of 2 nodes .* expected 3/,
    });
    await t.rejects(open({ sets: [{ nodes: ['n1', 'n2', 'n3'] }, { nodes: ['n1', 'n2', 'n9'] }] }), {
      code: 'ERR_ARGUMENT',
      message: /n9: the map of epoch \d+ does not have it/,
    });
    await t.rejects(open({ sets: [{ nodes: ['n1', 'n2', 'stream'] }] }), {
      code: 'ERR_ARGUMENT',
      message: /it takes no packets/,
    });
    await t.rejects(open({ sets: [{ nodes: ['n1', 'n2', 'far'] }] }), {
      code: 'ERR_ARGUMENT',
      message: /no port of this switch leads to 10\.9\.9\.9/,
    });
    t.same(await held(rig, PARITY), before, 'nothing was entered');
  });

  t.test('a switch that is full says so, and serves the groups that it has', async (t) => {
    const { rig, switchAgent, epoch } = await begin(t, makeRig);
    // Repeating nodes, which no layout does: three nodes make enough sets so.
    const sets = Array.from({ length: 700 }, (_, i) => ({
      nodes: Array.from({ length: 6 }, (_, u) => `n${1 + (Math.floor(i / 3 ** u) % 3)}`),
    }));
    const open = async (from: number, to: number) =>
      (await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 4, sets: sets.slice(from, to) })).groups;
    const groups = [...(await open(0, 300)), ...(await open(300, 600))];
    await t.rejects(open(600, 700), {
      code: 'ERR_CAPACITY',
      message: /has 682 groups with 4092 copies, and takes 4096 with 4095/,
    });
    const entries = await held(rig, PARITY);
    t.equal(entries.filter((each) => each.startsWith('group ')).length, 600, 'none of a refused request');
    t.equal(entries.filter((each) => each.startsWith('multicast ')).length, 601);
    t.same(await open(0, 5), groups.slice(0, 5));
    t.equal((await open(600, 682)).length, 82, 'what there is room for');
    t.equal((await held(rig, PARITY)).filter((each) => each.startsWith('multicast ')).length, 683);
  });

  t.test(
    'a unit whose node is down gets no copy; under a new map the old group goes when its time has come',
    async (t) => {
      const { rig, store, switchAgent, epoch } = await begin(t, makeRig);
      const nodes = ['n1', 'n2', 'n3'];
      const [old] = (await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes }] })).groups;
      const { epoch: next } = await setNodeState(store, 'n2', 'down');
      const [fresh] = (await switchAgent.openGroups({ mapEpoch: next, k: 2, m: 1, sets: [{ nodes }] })).groups;
      t.not(fresh, old);
      const entries = await held(rig, PARITY);
      t.same(
        entries.filter((each) => each.startsWith(`replica ${fresh} `)).map((each) => each.split(' ')[2]),
        ['1', '3'],
      );
      await until(
        async () => !(await held(rig, PARITY)).some((each) => each.includes(` ${old} `)),
        'the old group is gone',
      );
      const left = await held(rig, PARITY);
      t.same(
        left.filter((each) => each.includes(` ${fresh} `)),
        entries.filter((each) => each.includes(` ${fresh} `)),
      );
      t.equal(left.filter((each) => each.startsWith('multicast ')).length, 2, 'its copies too');
    },
  );

  t.test('an agent that was restarted goes on with what the switch holds, and writes nothing', async (t) => {
    const { rig, store, switchAgent, epoch, restartAgent } = await begin(t, makeRig);
    const sets = [{ nodes: ['n1', 'n2', 'n3'] }];
    const { groups } = await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets });
    const before = await held(rig, PARITY);
    const next = await restartAgent();
    t.equal((await readMap(store)).switches[0]?.state, 'programmable');
    t.match(await next.counters(), {
      tartan_switch_pipelines_pushed: 0,
      tartan_switch_entries_written: 0,
      tartan_switch_groups: 1,
    });
    t.same(await held(rig, PARITY), before);
    t.same(
      (await next.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets })).groups,
      groups,
      'the same set has its number still',
    );
    const more = await next.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n3', 'n2', 'n1'] }] });
    t.notOk(groups.includes(more.groups[0]!), 'another set has another');
  });

  t.test('a switch that was restarted is down, then as before, groups included', async (t) => {
    const { rig, store, switchAgent, epoch } = await begin(t, makeRig);
    await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }] });
    const before = await held(rig, PARITY);
    await rig.kill();
    await until(async () => (await readMap(store)).switches[0]?.state === 'down', 'the map says down');
    await t.rejects(switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [] }), {
      code: 'ERR_NOT_PROGRAMMABLE',
      message: /it is down$/,
    });
    await t.rejects(switchAgent.unload(), { code: 'ERR_NOT_PROGRAMMABLE' });
    await rig.restart();
    await until(async () => (await readMap(store)).switches[0]?.state === 'programmable', 'programmable again');
    t.same(await held(rig, PARITY), before);
    t.equal((await rig.ask())?.cookie, PARITY.cookie);
  });

  t.test(
    'unloading leaves forwarding alone, loading brings everything back; a restarted agent keeps what was asked',
    async (t) => {
      const { rig, store, switchAgent, epoch, restartAgent } = await begin(t, makeRig);
      await switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }] });
      const before = await held(rig, PARITY);
      await switchAgent.unload();
      t.equal((await readMap(store)).switches[0]?.state, 'forwarding');
      t.equal(await rig.ask(), undefined, 'no probe is answered');
      t.same(await held(rig, FORWARDING), expectedForwarding(FORWARDING, false));
      await t.rejects(switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [] }), {
        code: 'ERR_NOT_PROGRAMMABLE',
        message: /it is forwarding$/,
      });
      await switchAgent.load('parity');
      t.equal((await readMap(store)).switches[0]?.state, 'programmable');
      t.same(await held(rig, PARITY), before);
      await t.rejects(switchAgent.load('nonsense'), { code: 'ERR_ARGUMENT' });
      await switchAgent.unload();
      const next = await restartAgent('forwarding');
      await looks(next);
      t.equal(next.state, 'forwarding', 'nobody asked for the program');
      await next.load('parity');
      t.equal(next.state, 'programmable');
    },
  );

  t.test('who is overtaken waits, and puts right what another controller left', async (t) => {
    const { rig, store, switchAgent, epoch } = await begin(t, makeRig);
    const { groups } = await switchAgent.openGroups({
      mapEpoch: epoch,
      k: 2,
      m: 1,
      sets: [{ nodes: ['n1', 'n2', 'n3'] }],
    });
    const before = await held(rig, PARITY);
    const other = await connect({ address: rig.address, deviceId: 1 });
    t.teardown(() => {
      other.close();
    });
    await other.arbitrate(2n ** 100n);
    await until(async () => (await switchAgent.counters())['tartan_switch_primary'] === 0, 'it knows');
    await t.rejects(switchAgent.openGroups({ mapEpoch: epoch, k: 2, m: 1, sets: [] }), {
      code: 'ERR_NOT_PROGRAMMABLE',
    });
    await other.delete(
      tableEntry(PARITY.program, { table: 'group', match: { 'hdr.packet.group': groups[0]! } }),
      tableEntry(PARITY.program, { table: 'replica', match: { 'hdr.packet.group': groups[0]!, 'sm.egress_rid': 2 } }),
    );
    await other.modify(
      tableEntry(PARITY.program, {
        table: 'bridge',
        match: { 'hdr.ethernet.dst': PORTS.hosts[0]!.mac },
        action: { name: 'to_port', params: { port: 99 } },
      }),
    );
    await other.insert(
      tableEntry(PARITY.program, { table: 'bridge', match: { 'hdr.ethernet.dst': 7 }, action: { name: 'no_port' } }),
    );
    t.equal((await readMap(store)).switches[0]?.state, 'programmable', 'what the switch is, its controller says');
    other.close();
    await until(async () => JSON.stringify(await held(rig, PARITY)) === JSON.stringify(before), 'all is right again');
    t.match(
      await switchAgent.counters(),
      { tartan_switch_primary: 1, tartan_switch_pipelines_pushed: 1 },
      'without pushing the program',
    );
  });

  t.test('a program that another controller pushed is noticed, told, and replaced', async (t) => {
    const { rig, store, states } = await begin(t, makeRig);
    const other = await connect({ address: rig.address, deviceId: 1 });
    await other.arbitrate(2n ** 100n);
    await other.setPipeline({ p4info: FORWARDING.program.p4info, deviceConfig: FORWARDING.deviceConfig, cookie: 99n });
    states.length = 0;
    other.close();
    await until(
      async () =>
        (await rig.ask())?.cookie === PARITY.cookie && (await readMap(store)).switches[0]?.state === 'programmable',
      'replaced',
    );
    t.same(states, ['forwarding', 'programmable']);
  });

  t.test(
    'of two agents the one started last is primary, also after the switch was restarted; the first takes over ' +
      'when it goes',
    async (t) => {
      const { rig, store, switchAgent, startAgent } = await begin(t, makeRig);
      const second = await startAgent(),
        who = async () =>
          [
            (await switchAgent.counters())['tartan_switch_primary'],
            (await second.counters())['tartan_switch_primary'],
          ].join();
      await until(async () => (await who()) === '0,1', 'the first is backup');
      await Promise.all([looks(switchAgent), looks(second)]);
      t.equal(await who(), '0,1', 'and does not fight');
      await rig.kill();
      await until(() => switchAgent.state === 'down' && second.state === 'down', 'both see that it is gone');
      await rig.restart();
      await until(
        async () => (await who()) === '0,1' && (await readMap(store)).switches[0]?.state === 'programmable',
        'as before',
      );
      await Promise.all([looks(switchAgent), looks(second)]);
      t.equal(await who(), '0,1', 'for good');
      await second.stop();
      await until(
        async () =>
          (await switchAgent.counters())['tartan_switch_primary'] === 1 &&
          (await readMap(store)).switches[0]?.state === 'programmable',
        'the first is back',
      );
    },
  );

  t.test('an agent that stops leaves the switch as it is; one whose switch is not there waits for it', async (t) => {
    const { rig, store, switchAgent, startAgent } = await begin(t, makeRig);
    const before = await held(rig, PARITY);
    await switchAgent.stop();
    t.equal((await readMap(store)).switches[0]?.state, 'forwarding', 'nobody watches its program');
    t.equal((await rig.ask())?.cookie, PARITY.cookie);
    t.same(await held(rig, PARITY), before);
    await rig.kill();
    const next = await startAgent('down');
    await until(async () => (await readMap(store)).switches[0]?.state === 'down', 'the map says down');
    await t.rejects(next.load('parity'), { code: 'ERR_NOT_PROGRAMMABLE', message: /it is down$/ });
    await rig.restart();
    await until(async () => (await readMap(store)).switches[0]?.state === 'programmable', 'programmed when it comes');
    t.same(await held(rig, PARITY), before);
  });

  t.test('a data plane that is silent is only forwarding, one that is slow is programmable', async (t) => {
    const plane = { isSilent: false, lateMs: 0 },
      { store, states, switchAgent } = await begin(t, () => impaired(makeRig, plane));
    states.length = 0;
    plane.isSilent = true;
    await until(async () => (await readMap(store)).switches[0]?.state === 'forwarding', 'forwarding');
    plane.isSilent = false;
    plane.lateMs = DEADLINE_MS / 2;
    await until(async () => (await readMap(store)).switches[0]?.state === 'programmable', 'programmable');
    await looks(switchAgent);
    t.same(states, ['forwarding', 'programmable']);
    t.match(await switchAgent.counters(), { tartan_switch_pipelines_pushed: 1 }, 'it had its program all the time');
  });

  t.test('a program that is said to be there and never answers is pushed anew, once', async (t) => {
    const plane = { isSilent: false, lateMs: 0 },
      { restartAgent } = await begin(t, () => impaired(makeRig, plane));
    plane.isSilent = true;
    const next = await restartAgent('forwarding');
    await until(async () => (await next.counters())['tartan_switch_pipelines_pushed'] === 1, 'pushed');
    await looks(next);
    t.match(
      await next.counters(),
      { tartan_switch_pipelines_pushed: 1, tartan_switch_programmable: 0 },
      'what does not help once does not help twice',
    );
    plane.isSilent = false;
    await until(() => next.state === 'programmable', 'programmable');
  });
}

/** Waits until an agent has looked after its switch so often again that it would have done whatever it was about to. */
async function looks(agent: PacketSwitch): Promise<void> {
  const count = async (): Promise<number> => (await agent.counters())['tartan_switch_looks']!;
  const goal = (await count()) + 16;
  await until(async () => (await count()) >= goal, 'the agent to look after its switch');
}

/** A switch whose data plane can fall silent, or answer late. */
async function impaired(
  makeRig: () => Promise<Rig>,
  plane: { readonly isSilent: boolean; readonly lateMs: number },
): Promise<Rig> {
  const rig = await makeRig();
  return {
    address: rig.address,
    kill: () => rig.kill(),
    restart: () => rig.restart(),
    ask: async () => {
      if (plane.isSilent) return undefined;
      await delay(plane.lateMs); // As late as the test says.
      return rig.ask();
    },
  };
}

/** A cluster of three nodes that take packets, and an agent whose switch is programmable. */
export async function begin(t: Test, makeRig: () => Promise<Rig>, leastCallMs?: number) {
  const rig = await makeRig(),
    cluster = new MemoryCluster(realClock),
    store = cluster.client();
  await createCluster(store);
  for (const n of [1, 2, 3])
    await registerNode(store, {
      id: `n${n}`,
      host: `10.0.0.${n}`,
      port: 7000,
      controlPort: 0,
      state: 'up',
      packets: { host: `10.0.0.${n}`, port: 21_000 + n },
    });
  await registerNode(store, { id: 'stream', host: '10.0.0.4', port: 7000, controlPort: 0, state: 'up' });
  const { epoch } = await registerNode(store, {
    id: 'far',
    host: '10.9.9.9',
    port: 7000,
    controlPort: 0,
    state: 'up',
    packets: { host: '10.9.9.9', port: 21_000 },
  });
  const agents: PacketSwitch[] = [],
    said: string[] = [];
  const startAgent = async (state = 'programmable', address = rig.address): Promise<PacketSwitch> => {
    const agent = new PacketSwitch({
      store,
      id: 's1',
      host: '127.0.0.1',
      controlPort: 7000,
      p4runtime: address,
      deviceId: 1,
      parity: PARITY,
      forward: FORWARDING,
      ports: PORTS,
      probe: rig,
      deadlineMs: DEADLINE_MS,
      leastCallMs,
      log: (message) => {
        said.push(message);
        t.comment(message);
      },
    });
    agents.push(agent);
    await agent.start();
    await until(() => agent.state === state, `${state}`);
    return agent;
  };
  /** As after kill -9: nothing is said to the map. */
  const restartAgent = (state?: string): Promise<PacketSwitch> => {
    agents.at(-1)!.abandon();
    return startAgent(state);
  };
  const switchAgent = await startAgent();
  const states: string[] = [];
  const watching = store.watch('map', (events) => {
    for (const each of events) {
      const state =
        each.value === undefined
          ? undefined
          : (JSON.parse(each.value) as { switches: { state: string }[] }).switches[0]?.state;
      if (state !== undefined && state !== states.at(-1)) states.push(state);
    }
  });
  t.teardown(async () => {
    watching.close();
    for (const agent of agents) agent.abandon();
    await rig.kill();
    await store.close();
    cluster.close();
  });
  return { rig, store, switchAgent, epoch, startAgent, restartAgent, states, said };
}

/** What a switch holds, one line each, sorted. */
async function held(rig: Rig, { program }: Artefact): Promise<string[]> {
  const client = await connect({ address: rig.address, deviceId: 1 });
  try {
    const entities = [
      ...(await client.readAll(tableWildcard(program))),
      ...(await client.readAll(allMulticastGroups())),
    ];
    return entities
      .flatMap(({ entity }) => {
        if (entity?.$case === 'packetReplicationEngineEntry' && entity.value.type?.$case === 'multicastGroupEntry') {
          return [
            `multicast ${entity.value.type.value.multicastGroupId} ${readReplicas(entity.value.type.value.replicas)
              .map((each) => `${each.port}/${each.instance}`)
              .sort()
              .join(' ')}`,
          ];
        }
        if (entity?.$case !== 'tableEntry' || entity.value.isDefaultAction) return [];
        const { table, match, action } = readTableEntry(program, entity.value);
        const keys = Object.values(match).map((each) =>
          typeof each === 'object'
            ? JSON.stringify(each, (_, value: unknown) => (typeof value === 'bigint' ? Number(value) : value))
            : String(each),
        );
        const what =
          action !== undefined && 'params' in action ? [action.name, ...Object.values(action.params).map(String)] : [];
        return [[table, ...keys, ...what].join(' ')];
      })
      .sort();
  } finally {
    client.close();
  }
}

function expectedForwarding({ cookie }: Artefact, hasService: boolean): string[] {
  const mac = (text: string): string => String(BigInt(`0x${text.replaceAll(':', '')}`));
  return [
    ...HOSTS.map((each) => `bridge ${mac(each.mac)} to_port ${each.port}`),
    `bridge ${2n ** 48n - 1n} flood 1`,
    `multicast 1 ${HOSTS.map((each) => `${each.port}/0`).join(' ')}`,
    `ipv4_route {"kind":"lpm","value":${0x0a06_0000},"prefixLength":16} route ` +
      `5 ${mac(SERVICE.mac)} ${mac(HOSTS[4]!.mac)}`,
    ...(hasService ? [`service_address ${0x0a00_00fe} serve ${mac(SERVICE.mac)} ${cookie}`] : []),
  ].sort();
}
