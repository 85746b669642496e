/** What is read can be written again: every part of an entry survives write, wire, read, and makes the same entry. */
import t, { type Test } from 'tap';
import {
  Program,
  actionProfileGroup,
  actionProfileMember,
  lpm,
  meterEntry,
  multicastGroup,
  readActionProfileGroup,
  readActionProfileMember,
  readMeterEntry,
  readReplicas,
  readTableEntry,
  tableEntry,
  tableWildcard,
  v1,
  type EntryFields,
} from 'tartan-p4runtime';

const program = Program.fromText(`
  pkg_info { arch: "v1model" }
  tables {
    preamble { id: 33554433 name: "Ingress.route" alias: "route" }
    match_fields { id: 1 name: "dst" bitwidth: 32 match_type: LPM }
    match_fields { id: 2 name: "in" match_type: EXACT type_name { name: "port_t" } }
    action_refs { id: 16777217 }
    direct_resource_ids: 301989889
    direct_resource_ids: 352321537
    idle_timeout_behavior: NOTIFY_CONTROL
  }
  tables {
    preamble { id: 33554434 name: "Ingress.spread" alias: "spread" }
    match_fields { id: 1 name: "dst" bitwidth: 32 match_type: EXACT }
    action_refs { id: 16777217 }
    implementation_id: 285212673
  }
  actions {
    preamble { id: 16777217 name: "Ingress.send" alias: "send" }
    params { id: 1 name: "port" type_name { name: "port_t" } }
    params { id: 2 name: "mac" bitwidth: 48 }
  }
  action_profiles {
    preamble { id: 285212673 name: "Ingress.paths" alias: "paths" }
    table_ids: 33554434 with_selector: true size: 64 max_group_size: 8
  }
  direct_counters {
    preamble { id: 301989889 name: "Ingress.hits" alias: "hits" } spec { unit: BOTH } direct_table_id: 33554433
  }
  direct_meters {
    preamble { id: 352321537 name: "Ingress.limit" alias: "limit" } spec { unit: BYTES } direct_table_id: 33554433
  }
  meters { preamble { id: 335544321 name: "Ingress.total" alias: "total" } spec { unit: BYTES } size: 4 }
  type_info { new_types { key: "port_t" value { translated_type { uri: "tartan/port" sdn_string { } } } } }
`);

const RATES = { cir: 1000n, cburst: 2000n, pir: 3000n, pburst: 4000n };
const SEND = { name: 'send', params: { port: 'Ethernet4/1', mac: 0x0200_0000_0001n } };

/** As another process gets it. */
function overTheWire(entity: v1.Entity): v1.Entity {
  return v1.Entity.decode(v1.Entity.encode(entity).finish());
}

function tripped(t: Test, fields: EntryFields): ReturnType<typeof readTableEntry> {
  const first = overTheWire(tableEntry(program, fields));
  if (first.entity?.$case !== 'tableEntry') throw new TypeError('no table entry');
  const read = readTableEntry(program, first.entity.value);
  t.same(overTheWire(tableEntry(program, read)), first, 'what was read makes the same entry');
  return read;
}

t.test('an entry with named ports, a meter, a counter and an idle timeout is read as it was written', (t) => {
  const fields = {
    table: 'route',
    match: { dst: lpm(0x0a000000n, 8), in: 'Ethernet0' },
    action: SEND,
    idleTimeoutNs: 5_000_000_000n,
    meter: { ...RATES, eburst: 7n },
    counter: { bytes: 10n, packets: 2n },
    metadata: Buffer.from('mine'),
  };
  const read = tripped(t, fields);
  t.match(read, { ...fields, match: { in: 'Ethernet0' }, sinceLastHitNs: undefined, isDefault: false });
  t.match(tripped(t, { table: 'route', isDefault: true, action: SEND }), {
    isDefault: true,
    meter: undefined,
    idleTimeoutNs: 0n,
  });
  t.end();
});

t.test('weighted actions, members and groups keep their weights and the ports that are watched', (t) => {
  const oneShot = [
    { action: SEND, weight: 3, watchPort: Buffer.from('Ethernet4/1') },
    { action: { name: 'send', params: { port: 'Ethernet8', mac: 2n } }, weight: 1 },
  ];
  t.same(tripped(t, { table: 'spread', match: { dst: 1 }, action: { oneShot } }).action, { oneShot });
  t.same(tripped(t, { table: 'spread', match: { dst: 2 }, action: { group: 9 } }).action, { group: 9 });
  const member = overTheWire(actionProfileMember(program, 'paths', 4, SEND)).entity,
    members = [
      { member: 4, weight: 2, watchPort: Buffer.from('Ethernet4/1') },
      { member: 5, weight: 1 },
    ],
    group = overTheWire(actionProfileGroup(program, 'paths', 9, members, 8)).entity;
  if (member?.$case !== 'actionProfileMember' || group?.$case !== 'actionProfileGroup') throw new TypeError('lost');
  t.same(readActionProfileMember(program, member.value), {
    profile: 'paths',
    member: 4,
    action: SEND,
  });
  t.same(readActionProfileGroup(program, group.value), { profile: 'paths', group: 9, members, maxSize: 8 });
  // Of a server before 1.4.
  group.value.members[0]!.watchKind = { $case: 'watch', value: 300 };
  t.same(readActionProfileGroup(program, group.value).members[0]!.watchPort, Buffer.from([1, 44]));
  t.end();
});

t.test('meters and replicas are read back, ports by number or by name', (t) => {
  const meter = overTheWire(meterEntry(program, 'total', 3, RATES)).entity,
    blank = overTheWire(meterEntry(program, 'total', 0)).entity;
  if (meter?.$case !== 'meterEntry' || blank?.$case !== 'meterEntry') throw new TypeError('lost');
  t.same(readMeterEntry(program, meter.value), { meter: 'total', index: 3n, rates: RATES });
  t.same(readMeterEntry(program, blank.value), { meter: 'total', index: 0n, rates: undefined });
  for (const [ports, options] of [
    [['Ethernet0', 'Ethernet4/1'], { named: true }],
    [[1n, 300n], undefined],
  ] as const) {
    const replicas = ports.map((port, instance) => ({ port, instance })),
      first = overTheWire(multicastGroup(7, replicas)).entity;
    if (first?.$case !== 'packetReplicationEngineEntry' || first.value.type?.$case !== 'multicastGroupEntry')
      throw new TypeError('lost');
    const wire = first.value.type.value.replicas,
      read = options === undefined ? readReplicas(wire) : readReplicas(wire, options);
    t.same(read, replicas);
    t.same(overTheWire(multicastGroup(7, read)).entity, first);
  }
  t.end();
});

t.test('what a table does not have is refused, and what is wanted of a read is asked for', (t) => {
  t.throws(() => tableEntry(program, { table: 'spread', match: { dst: 1 }, action: { group: 1 }, meter: RATES }), {
    code: 'ERR_P4_INVALID',
    message: /has no direct meter/,
  });
  const wanted = overTheWire(tableWildcard(program, 'route', { meters: true, idleTimes: true })).entity;
  if (wanted?.$case !== 'tableEntry') throw new TypeError('lost');
  t.ok(wanted.value.meterConfig);
  t.same(wanted.value.timeSinceLastHit, { elapsedNs: 0n });
  t.equal(wanted.value.counterData, undefined);
  t.end();
});
