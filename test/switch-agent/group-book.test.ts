/** What the agent of a P4 switch computes without a switch: the port map, the groups, the order of updates. */
import t from 'tap';
import { readTableEntry, v1 } from 'tartan-p4runtime';
import type { ClusterMap } from '../../cluster/records.js';
import { FORWARD, loadArtefact } from '../../switch-agent/bmv2/artefact.js';
import { difference } from '../../switch-agent/bmv2/difference.js';
import { forwardingEntries } from '../../switch-agent/bmv2/forwarding.js';
import { GroupBook } from '../../switch-agent/bmv2/group-book.js';
import { neighbourOf, parsePortMap } from '../../switch-agent/bmv2/port-map.js';
import { groupEntries, readGroups } from '../../switch-agent/bmv2/split.js';
import { HOSTS, PORTS, SERVICE } from './packet-switch-stories.js';

const { program } = loadArtefact('parity-k8-1500');
const map: ClusterMap = {
  epoch: 7,
  changes: 9,
  switches: [],
  nodes: HOSTS.map(({ host, port }) => ({
    id: `n${port}`,
    host,
    port: 7000,
    controlPort: 0,
    state: port === 5 ? 'down' : 'up',
    packets: { host, port: 21_000 },
  })),
};

t.test('every class has its artefact, and each its own cookie', (t) => {
  const names = [2, 4, 8].flatMap((k) => [1500, 9000].map((mtu) => `parity-k${k}-${mtu}`));
  const loaded = [...names, FORWARD].map((name) => loadArtefact(name));
  t.equal(new Set(loaded.map((each) => each.cookie)).size, names.length + 1);
  t.match(loaded[2], { k: 4, chunkBytes: 304, mtu: 1500 });
  t.match(loaded.at(-1), { k: 0, chunkBytes: 0, mtu: 0 });
  t.throws(() => loadArtefact('parity-k3-1500'), { code: 'ERR_ARGUMENT', message: /expected one of parity-k2-1500/ });
  t.end();
});

t.test('a port map that cannot be meant is refused, with what is wrong', (t) => {
  const right = { service: SERVICE, hosts: HOSTS };
  t.equal(parsePortMap(JSON.stringify(right), 'x').hosts.length, HOSTS.length);
  for (const [change, why] of [
    [{ service: undefined }, /"service" is missing/],
    [{ service: { ...SERVICE, mac: '02:00' } }, /MAC of the service/],
    [{ service: { ...SERVICE, host: '::1' } }, /expected IPv4/],
    [{ hosts: {} }, /"hosts" is not a list/],
    [{ hosts: [{ ...HOSTS[0], port: 0 }] }, /port of 10\.0\.0\.1 is 0, expected 1 to 510/],
    [{ hosts: [{ ...HOSTS[0], port: 511 }] }, /511/],
    [{ hosts: [HOSTS[0], { ...HOSTS[1], mac: HOSTS[0]!.mac }] }, /same MAC/],
    [{ hosts: [{ ...HOSTS[0], host: SERVICE.host }] }, /same MAC or address/],
    [{ routes: [{ prefix: '10.6.0.1/16', mac: SERVICE.mac, port: 1 }] }, /not a prefix/],
    [{ routes: [{ prefix: '10.6.0.0/33', mac: SERVICE.mac, port: 1 }] }, /not a prefix/],
    [{ mtu: 100 }, /MTU is 100/],
  ] as const)
    t.throws(
      () => parsePortMap(JSON.stringify({ ...right, ...change }), 'x'),
      { code: 'ERR_ARGUMENT', message: why },
      String(why),
    );
  t.throws(() => parsePortMap('{', 'ports.json'), {
    code: 'ERR_ARGUMENT',
    message: /^Cannot read the ports of ports\.json: it is not JSON/,
  });
  t.end();
});

t.test('the longest route leads to an address, a host before any', (t) => {
  const mac = (n: number): string => `02:00:00:00:01:0${n}`;
  const ports = parsePortMap(
    JSON.stringify({
      service: SERVICE,
      hosts: HOSTS,
      routes: [
        { prefix: '10.0.0.0/8', mac: mac(1), port: 11 },
        { prefix: '10.6.0.0/16', mac: mac(2), port: 12 },
        { prefix: '192.0.0.0/4', mac: mac(3), port: 13 },
      ],
    }),
    'x',
  );
  const portTo = (host: string): number | undefined => neighbourOf(ports, host)?.port;
  t.same(
    [
      portTo('10.0.0.3'),
      portTo('10.6.0.3'),
      portTo('10.7.0.3'),
      portTo('200.1.1.1'),
      portTo('11.0.0.1'),
      portTo('a-name'),
    ],
    [3, 12, 11, 13, undefined, undefined],
  );
  t.end();
});

t.test('a switch has room for 4096 groups and 32768 copies; what expires makes room again', (t) => {
  const book = new GroupBook(100),
    nodes = (count: number, from: number): string[] =>
      Array.from({ length: count }, (_, i) => `n${1 + (Math.floor(from / 4 ** i) % 4)}`);
  const wide: number[] = [];
  for (let i = 0; i < 2730; i++) wide.push(book.open(map, PORTS, 8, 4, nodes(12, i)).group.id);
  t.equal(new Set(wide).size, 2730);
  t.throws(() => book.open(map, PORTS, 8, 4, nodes(12, 2730)), {
    code: 'ERR_CAPACITY',
    message: /2730 groups with 32760 copies/,
  });
  t.same(book.open(map, PORTS, 8, 4, nodes(12, 0)).isNew, false, 'what is there is given');
  t.equal(new Set(book.groups().map((each) => each.multicast)).size, 2730);
  book.adopt(8, 1000, 500);
  t.same(book.expire(1499), []);
  book.adopt(9, 1400, 500);
  t.equal(book.expire(1500).length, 2730, 'a still newer map is no reprieve');
  const next = { ...map, epoch: 9 },
    narrow = new Set<number>();
  for (let i = 0; i < 4096; i++) narrow.add(book.open(next, PORTS, 7, 1, nodes(8, i)).group.id);
  t.throws(() => book.open(next, PORTS, 7, 1, nodes(8, 4096)), { code: 'ERR_CAPACITY', message: /4096 groups/ });
  t.notOk(
    wide.some((id) => narrow.has(id)),
    'a number is not given again',
  );
  t.end();
});

t.test('groups read back from a switch are those that were entered; half a group is none', (t) => {
  const book = new GroupBook(0xffff_fffd);
  const groups = [
    ['n1', 'n2', 'n3'],
    ['n3', 'n1', 'n2'],
    ['n1', 'n5', 'n2'],
  ].map((nodes) => book.open(map, PORTS, 2, 1, nodes).group);
  t.same(
    groups.map((each) => each.id),
    [0xffff_fffe, 0xffff_ffff, 1],
    'numbers go round',
  );
  t.equal(groups[2]?.units[1], undefined, 'n5 is down');
  const entities = [
    ...forwardingEntries(program, PORTS),
    ...groups.flatMap((group) => groupEntries(program, PORTS, group)),
  ];
  t.same(readGroups(program, entities), groups);

  const again = new GroupBook(5000);
  again.restore(readGroups(program, entities), map);
  t.same(again.groups(), groups);
  t.equal(again.open(map, PORTS, 2, 1, ['n3', 'n1', 'n2']).group.id, 0xffff_ffff);
  t.equal(again.open(map, PORTS, 2, 1, ['n1', 'n5', 'n2']).isNew, true, 'whose it was cannot be told: n5 was down');

  const without = entities.filter(
    ({ entity }) =>
      !(
        entity?.$case === 'tableEntry' &&
        readTableEntry(program, entity.value).match['sm.egress_rid'] === 2n &&
        readTableEntry(program, entity.value).match['hdr.packet.group'] === 0xffff_ffffn
      ),
  );
  t.same(
    readGroups(program, without).map((each) => each.id),
    [0xffff_fffe, 1],
  );
  t.end();
});

t.test('updates come in an order in which no group ever leads to copies that are not there', (t) => {
  const open = (lists: readonly string[][]): v1.Entity[] => {
    const book = new GroupBook(10);
    return [
      ...forwardingEntries(program, PORTS),
      ...lists.flatMap((nodes) => groupEntries(program, PORTS, book.open(map, PORTS, 2, 1, nodes).group)),
    ];
  };
  const before = open([
      ['n1', 'n2', 'n3'],
      ['n3', 'n2', 'n1'],
    ]),
    after = open([['n1', 'n2', 'n3']]).filter((_, index) => index !== 2);
  for (const [from, to] of [
    [before, after],
    [after, before],
    [[], before],
    [before, []],
    [before, before],
  ] as const) {
    const held = new Map(from.map((entity) => [name(entity), entity]));
    let steps = 0;
    for (const step of difference(program, from, to)) {
      steps++;
      for (const { type, entity } of step)
        if (type === v1.Update_Type.DELETE) held.delete(name(entity!));
        else held.set(name(entity!), entity!);
      const entities = [...held.values()];
      const complete = readGroups(program, entities).length,
        present = entities.filter(
          ({ entity }) => entity?.$case === 'tableEntry' && readTableEntry(program, entity.value).table === 'group',
        ).length;
      t.equal(complete, present, `whole after step ${steps}`);
    }
    t.same([...held.keys()].sort(), to.map(name).sort());
    t.equal(steps === 0, from === to);
  }
  t.end();
});

/** An entity without what it does. */
function name({ entity }: v1.Entity): string {
  if (entity?.$case === 'tableEntry') {
    const { table, match } = readTableEntry(program, entity.value);
    return (
      `${table} ` + JSON.stringify(match, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))
    );
  }
  const engine = entity?.$case === 'packetReplicationEngineEntry' ? entity.value.type : undefined;
  return engine?.$case === 'multicastGroupEntry' ? `multicast ${engine.value.multicastGroupId}` : '?';
}

t.test('values that a server did not shorten are no difference', (t) => {
  const longer = (value: unknown): unknown =>
    value instanceof Uint8Array
      ? Buffer.concat([Buffer.alloc(1), value])
      : Array.isArray(value)
        ? value.map(longer)
        : typeof value === 'object' && value !== null
          ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, longer(each)]))
          : value;
  const entities = forwardingEntries(program, PORTS),
    padded = entities.map((each) => longer(each) as v1.Entity);
  t.strictNotSame(padded, entities);
  t.same(difference(program, padded, entities), []);
  t.end();
});
