/**
 * The specification's must-haves, as checks that any server can be put through. A server that is known to deviate is
 * checked for exactly that deviation: neither another one nor a silent repair passes.
 *
 * Source: P4Runtime specification 1.4, the section with each check
 */
import type { Test } from 'tap';
import { Metadata, credentials, type ServiceError } from '@grpc/grpc-js';
import { readFileSync } from 'node:fs';
import {
  MAX_BATCH,
  P4RuntimeClient,
  P4RuntimeError,
  Program,
  Status,
  WriteError,
  allMulticastGroups,
  cloneSession,
  connect,
  counterEntry,
  digestEntry,
  lpm,
  multicastGroup,
  optional,
  packetOut,
  range,
  readCounterEntry,
  readDigestList,
  readPacketIn,
  readReplicas,
  readTableEntry,
  statusName,
  tableEntry,
  tableWildcard,
  ternary,
  v1,
  type Mastership,
  type ReadEntry,
} from 'tartan-p4runtime';

/** What a server may be known for; each is a sentence in p4runtime-js/README.md. */
export type Deviation =
  | 'promotes-connected'
  | 'writes-without-controller'
  | 'zero-id-is-primary'
  | 'any-device'
  | 'empty-pipeline'
  | 'saved-is-visible'
  | 'commit-without-save-unknown'
  | 'reconcile-fails'
  | 'clone-never-truncates'
  | 'counter-index-unknown';

export interface Target {
  readonly address: string;
  readonly deviceId: bigint;
  readonly deviations: ReadonlySet<Deviation>;
}

const beside = (name: string) => new URL(`../../p4/artefacts/${name}`, import.meta.url);
const program = Program.fromText(readFileSync(beside('conformance_program.p4info.txt'), 'utf8'));
const deviceConfig = readFileSync(beside('conformance_program.json'));
const Action = v1.SetForwardingPipelineConfigRequest_Action;
const COOKIE = 0xfedc_ba98_7654_3210n;

/** Every run of a server begins without a pipeline and without controllers. */
export function conformance(t: Test, target: Target): void {
  // Ids only grow: what one check has used counts for the next.
  let lastId = 100n;
  const nextId = () => (lastId += 10n);
  const open = async (t: Test): Promise<P4RuntimeClient> => {
    const client = await connect(target);
    t.teardown(() => client.close());
    return client;
  };
  const primary = async (t: Test): Promise<P4RuntimeClient> => {
    const client = await open(t);
    const { primary: won } = await client.arbitrate(nextId());
    if (!won) throw new Error('the highest id so far is not primary');
    return client;
  };
  const deviates = (name: Deviation) => target.deviations.has(name);
  const pipeline = { p4info: program.p4info, deviceConfig, cookie: COOKIE };

  t.test('before any pipeline, reads of it and writes fail with FAILED_PRECONDITION (7.2, 7.3)', async (t) => {
    const client = await primary(t);
    await rejects(t, client.getPipeline(), Status.FAILED_PRECONDITION);
    await rejects(t, client.insert(multicastGroup(1, [])), Status.FAILED_PRECONDITION);
    await rejects(
      t,
      client.setPipeline(undefined, Action.COMMIT),
      deviates('commit-without-save-unknown') ? Status.UNKNOWN : Status.FAILED_PRECONDITION,
      'nothing was saved',
    );
  });

  t.test('VERIFY changes nothing; VERIFY_AND_COMMIT takes effect, and the cookie comes back (7.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline, Action.VERIFY);
    if (deviates('empty-pipeline')) t.same(await client.getPipeline(), {}, 'nothing, but no error');
    else await rejects(t, client.getPipeline(), Status.FAILED_PRECONDITION);
    await client.setPipeline(pipeline);
    const all = await client.getPipeline();
    t.equal(all.cookie, COOKIE);
    t.same(
      all.p4info?.tables.map((table) => table.preamble?.name),
      program.p4info.tables.map((table) => table.preamble?.name),
    );
    t.ok(all.deviceConfig?.length);
    const Type = v1.GetForwardingPipelineConfigRequest_ResponseType;
    t.same(Object.keys(await client.getPipeline(Type.COOKIE_ONLY)), ['cookie']);
    t.same(Object.keys(await client.getPipeline(Type.P4INFO_AND_COOKIE)).sort(), ['cookie', 'p4info']);
    t.same(Object.keys(await client.getPipeline(Type.DEVICE_CONFIG_AND_COOKIE)).sort(), ['cookie', 'deviceConfig']);
  });

  t.test('VERIFY_AND_SAVE waits for COMMIT (7.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.setPipeline({ ...pipeline, cookie: 2n }, Action.VERIFY_AND_SAVE);
    const between = (await client.getPipeline()).cookie;
    t.equal(between, deviates('saved-is-visible') ? 2n : COOKIE, 'saved is not committed');
    await client.setPipeline(undefined, Action.COMMIT);
    t.equal((await client.getPipeline()).cookie, 2n);
  });

  t.test('VERIFY_AND_COMMIT clears the entries (7.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.insert(station(5));
    await client.setPipeline(pipeline);
    t.equal((await client.readAll(tableWildcard(program, 'station'))).length, 0);
  });

  t.test('a higher election id takes over, the one before is told, and a lower one is a backup (5.3)', async (t) => {
    const first = await primary(t),
      firstId = first.electionId!;
    const told = new Promise<Mastership>((resolve) => first.once('mastership', resolve));
    const second = await open(t);
    t.same(await second.arbitrate(firstId + 2n), { primary: true, electionId: firstId + 2n });
    t.same(await told, { primary: false, electionId: firstId + 2n });
    const third = await open(t);
    t.same(await third.arbitrate(firstId + 1n), { primary: false, electionId: firstId + 2n });
    await t.rejects(first.write([]), { code: 'ERR_P4_NOT_PRIMARY' }, 'refused before it is sent');
    lastId = firstId + 2n;
  });

  t.test('when the primary goes, a lower backup is not promoted; an id as high as the highest is (5.3)', async (t) => {
    const first = await primary(t),
      id = first.electionId!;
    const backup = await open(t);
    t.notOk((await backup.arbitrate(id - 1n)).primary);
    const told = new Promise<Mastership>((resolve) => backup.once('mastership', resolve));
    first.close();
    t.same(
      await told,
      deviates('promotes-connected')
        ? { primary: true, electionId: id - 1n }
        : { primary: false, electionId: undefined },
    );
    const again = await open(t);
    t.ok((await again.arbitrate(id)).primary, 'the same id, reconnected');
  });

  t.test('an election id that another live client has ends the stream with INVALID_ARGUMENT (5.3)', async (t) => {
    const first = await primary(t);
    const second = await open(t);
    const closed = new Promise<P4RuntimeError>((resolve) => second.once('closed', resolve));
    await t.rejects(second.arbitrate(first.electionId), {
      code: 'ERR_P4_ARBITRATION',
      status: Status.INVALID_ARGUMENT,
    });
    t.equal((await closed).status, Status.INVALID_ARGUMENT);
    t.ok(first.primary, 'the first one stays primary');
    await first.insert(multicastGroup(77, []));
    await first.delete(multicastGroup(77, []));
  });

  t.test('without an election id a client is never primary (5.3)', async (t) => {
    const client = await open(t);
    const answer = await client.arbitrate(undefined);
    t.equal(answer.primary, deviates('zero-id-is-primary'));
  });

  t.test('a device that is not there is NOT_FOUND (5.3)', async (t) => {
    const client = await connect({ ...target, deviceId: 999n });
    t.teardown(() => client.close());
    if (deviates('any-device')) t.ok((await client.arbitrate(nextId())).primary, 'it makes one up');
    else await t.rejects(client.arbitrate(nextId()), { code: 'ERR_P4_ARBITRATION', status: Status.NOT_FOUND });
  });

  t.test('device and role of a stream do not change: FAILED_PRECONDITION (5.3)', async (t) => {
    const raw = new v1.P4RuntimeClient(target.address, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
    });
    t.teardown(() => raw.close());
    const stream = raw.streamChannel();
    const ended = new Promise<ServiceError>((resolve) => stream.on('error', resolve));
    const answered = new Promise<void>((resolve) => stream.once('data', () => resolve()));
    const arbitration = (deviceId: bigint): v1.StreamMessageRequest => ({
      update: {
        $case: 'arbitration',
        value: { deviceId, role: undefined, electionId: { high: 0n, low: nextId() }, status: undefined },
      },
    });
    stream.write(arbitration(target.deviceId));
    await answered;
    stream.write(arbitration(target.deviceId + 1n));
    t.equal(statusName((await ended).code), 'FAILED_PRECONDITION');
  });

  t.test('writes of others than the primary are PERMISSION_DENIED, also when there is no primary (12)', async (t) => {
    const raw = new v1.P4RuntimeClient(target.address, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
    });
    t.teardown(() => raw.close());
    const write = (electionId: bigint | undefined) =>
      new Promise<number>((resolve) => {
        raw.write(
          {
            deviceId: target.deviceId,
            roleId: 0n,
            role: '',
            electionId: electionId === undefined ? undefined : { high: 0n, low: electionId },
            updates: [],
            atomicity: 0,
          },
          new Metadata(),
          { deadline: Date.now() + 5000 },
          (error) => resolve(error?.code ?? 0),
        );
      });
    t.equal(
      statusName(await write(undefined)),
      deviates('writes-without-controller') ? 'OK' : 'PERMISSION_DENIED',
      'nobody is there',
    );
    const client = await primary(t);
    t.equal(statusName(await write(client.electionId! - 1n)), 'PERMISSION_DENIED');
    t.equal(statusName(await write(undefined)), 'PERMISSION_DENIED');
    t.equal(statusName(await write(client.electionId)), 'OK');
  });

  t.test('a batch goes on after an error, and says of each update what became of it (12.3)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.insert(station(1));
    const failed = await client.insert(station(2), station(1), station(3), station(1)).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (!(failed instanceof WriteError)) return t.fail(`no WriteError but ${String(failed)}`);
    t.same(
      failed.failures.map(({ index, status }) => [index, statusName(status)]),
      [
        [1, 'ALREADY_EXISTS'],
        [3, 'ALREADY_EXISTS'],
      ],
    );
    t.equal((await client.readAll(tableWildcard(program, 'station'))).length, 3, '2 and 3 are there all the same');
    await rejectsUpdate(t, client.delete(station(9)), Status.NOT_FOUND);
    await rejectsUpdate(t, client.modify(station(9)), Status.NOT_FOUND);
  });

  t.test('the errors of a batch arrive whole, however many (12.3)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    const stations = Array.from({ length: 2 * MAX_BATCH + 1 }, (_, mac) => station(mac + 1));
    await client.insert(...stations);
    const failed = await client.insert(...stations).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (!(failed instanceof WriteError)) return t.fail(`no WriteError but ${String(failed)}`);
    t.same(
      failed.failures.map(({ index }) => index),
      stations.map((_, index) => index),
    );
    t.equal((await client.readAll(tableWildcard(program, 'station'))).length, stations.length);
  });

  t.test('entries of every match kind come back as they were written (9.1)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    const acl = {
      'hdr.address.src': ternary(0x0a000000, 0xff000000),
      'hdr.address.port': range(10, 20),
      'hdr.address.kind': optional(7),
    };
    await client.insert(
      tableEntry(program, {
        table: 'station',
        match: { 'hdr.ethernet.dst': 0x0000_0000_00ffn },
        action: { name: 'flood', params: { group: 300 } },
      }),
      tableEntry(program, {
        table: 'route',
        match: { 'hdr.address.dst': lpm(0xc0a80000, 16) },
        action: { name: 'forward', params: { port: 3 } },
      }),
      tableEntry(program, { table: 'acl', match: acl, priority: 12, action: { name: 'drop' } }),
      tableEntry(program, { table: 'acl', priority: 1, action: { name: 'learn' } }),
    );
    const read: ReadEntry[] = [];
    for await (const { entity } of client.read(tableWildcard(program)))
      if (
        entity?.$case === 'tableEntry' &&
        !entity.value.isConst &&
        program.nameOf(program.findById('table', entity.value.tableId)) !== 'fixed'
      )
        read.push(readTableEntry(program, entity.value));
    const byTable = (table: string) =>
      read.filter((entry) => entry.table === table).map(({ match, action, priority }) => ({ match, action, priority }));
    t.same(byTable('station'), [
      { match: { 'hdr.ethernet.dst': 255n }, action: { name: 'flood', params: { group: 300n } }, priority: 0 },
    ]);
    t.same(byTable('route'), [
      {
        match: { 'hdr.address.dst': { kind: 'lpm', value: 0xc0a80000n, prefixLength: 16 } },
        action: { name: 'forward', params: { port: 3n } },
        priority: 0,
      },
    ]);
    t.same(
      byTable('acl').sort((a, b) => b.priority - a.priority),
      [
        {
          match: {
            'hdr.address.src': { kind: 'ternary', value: 0x0a000000n, mask: 0xff000000n },
            'hdr.address.port': { kind: 'range', low: 10n, high: 20n },
            'hdr.address.kind': { kind: 'optional', value: 7n },
          },
          action: { name: 'drop', params: {} },
          priority: 12,
        },
        { match: {}, action: { name: 'learn', params: {} }, priority: 1 },
      ],
    );
    await client.modify(
      tableEntry(program, {
        table: 'route',
        match: { 'hdr.address.dst': lpm(0xc0a80000, 16) },
        action: { name: 'to_controller', params: { reason: 4 } },
      }),
    );
    const [route] = await client.readAll(tableWildcard(program, 'route', { counters: true }));
    if (route?.entity?.$case !== 'tableEntry') return t.fail('no route');
    t.same(readTableEntry(program, route.entity.value).action, { name: 'to_controller', params: { reason: 4n } });
    t.same(
      readTableEntry(program, route.entity.value).counter,
      { bytes: 0n, packets: 0n },
      'the direct counter was asked for',
    );
  });

  t.test('byte strings come back in their shortest form (8.4)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    const { entity } = station(0x42);
    if (entity?.$case !== 'tableEntry') return t.fail('no entry');
    const exact = entity.value.match[0]!.fieldMatchType!;
    if (exact.$case !== 'exact') return t.fail('not exact');
    exact.value.value = Buffer.from('000000000042', 'hex');
    await client.insert({ entity });
    const [read] = await client.readAll(tableWildcard(program, 'station'));
    const value =
      read?.entity?.$case === 'tableEntry' && read.entity.value.match[0]?.fieldMatchType?.$case === 'exact'
        ? read.entity.value.match[0].fieldMatchType.value.value
        : undefined;
    t.equal(value?.toString('hex'), '42');
    await rejectsUpdate(t, client.insert(station(0x42)), Status.ALREADY_EXISTS, 'it is the same value');
  });

  t.test(
    'malformed entries are INVALID_ARGUMENT, values too wide OUT_OF_RANGE or INVALID_ARGUMENT (9.1)',
    async (t) => {
      const client = await primary(t);
      await client.setPipeline(pipeline);
      const bad = (change: (entry: v1.TableEntry) => void, fields: Parameters<typeof tableEntry>[1]) => {
        const made = tableEntry(program, fields).entity;
        if (made?.$case !== 'tableEntry') throw new Error('no entry');
        change(made.value);
        return { entity: made };
      };
      const route = {
        table: 'route',
        match: { 'hdr.address.dst': lpm(0x0a000000, 8) },
        action: { name: 'forward', params: { port: 1 } },
      };
      const acl = {
        table: 'acl',
        priority: 5,
        match: { 'hdr.address.src': ternary(0x0a000000, 0xff000000) },
        action: { name: 'drop' },
      };
      await rejectsUpdate(
        t,
        client.insert(
          bad((entry) => {
            entry.priority = 0;
          }, acl),
        ),
        Status.INVALID_ARGUMENT,
        'no priority',
      );
      await rejectsUpdate(
        t,
        client.insert(
          bad((entry) => {
            entry.priority = 3;
          }, route),
        ),
        Status.INVALID_ARGUMENT,
        'a priority',
      );
      await rejectsUpdate(
        t,
        client.insert(
          bad(
            (entry) => {
              entry.match = [];
            },
            { table: 'station', match: { 'hdr.ethernet.dst': 1 }, action: { name: 'flood', params: { group: 1 } } },
          ),
        ),
        Status.INVALID_ARGUMENT,
        'an exact field is missing',
      );
      await rejectsUpdate(
        t,
        client.insert(
          bad((entry) => {
            entry.match[0]!.fieldMatchType = {
              $case: 'ternary',
              value: { value: Buffer.from([1]), mask: Buffer.from([0x80]) },
            };
          }, acl),
        ),
        Status.INVALID_ARGUMENT,
        'bits outside the mask',
      );
      await rejectsUpdate(
        t,
        client.insert(
          bad((entry) => {
            entry.match[0]!.fieldMatchType = { $case: 'exact', value: { value: Buffer.from([1]) } };
          }, acl),
        ),
        Status.INVALID_ARGUMENT,
        'another kind',
      );
      await rejectsUpdate(
        t,
        client.insert(
          bad((entry) => {
            if (entry.action?.type?.$case === 'action') entry.action.type.value.params = [];
          }, route),
        ),
        Status.INVALID_ARGUMENT,
        'a parameter is missing',
      );
      t.equal(
        (await client.readAll(tableWildcard(program, 'route'), tableWildcard(program, 'acl'))).length,
        0,
        'nothing of it was applied',
      );
    },
  );

  t.test('default actions are modified, and read on their own (9.1.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.modify(
      tableEntry(program, { table: 'station', isDefault: true, action: { name: 'flood', params: { group: 9 } } }),
    );
    const [entry] = await client.readAll(tableWildcard(program, 'station', { defaults: true }));
    if (entry?.entity?.$case !== 'tableEntry') return t.fail('no default entry');
    t.match(readTableEntry(program, entry.entity.value), {
      table: 'station',
      isDefault: true,
      action: { name: 'flood', params: { group: 9n } },
    });
  });

  t.test('multicast groups are inserted, read, modified and deleted (9.5)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    const read = async () =>
      (await client.readAll(allMulticastGroups())).flatMap(({ entity }) =>
        entity?.$case === 'packetReplicationEngineEntry' && entity.value.type?.$case === 'multicastGroupEntry'
          ? [
              {
                id: entity.value.type.value.multicastGroupId,
                replicas: readReplicas(entity.value.type.value.replicas).sort((a, b) => a.instance - b.instance),
              },
            ]
          : [],
      );
    await client.insert(
      multicastGroup(7, [
        { port: 1, instance: 1 },
        { port: 2, instance: 2 },
        { port: 1, instance: 3 },
      ]),
    );
    t.same(await read(), [
      {
        id: 7,
        replicas: [
          { port: 1n, instance: 1 },
          { port: 2n, instance: 2 },
          { port: 1n, instance: 3 },
        ],
      },
    ]);
    await client.modify(multicastGroup(7, [{ port: 4, instance: 9 }]));
    t.same(await read(), [{ id: 7, replicas: [{ port: 4n, instance: 9 }] }]);
    await rejectsUpdate(t, client.insert(multicastGroup(7, [])), Status.ALREADY_EXISTS);
    await client.delete(multicastGroup(7));
    t.same(await read(), []);
  });

  t.test('clone sessions are inserted, read, and deleted (9.5)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    const packetLengthBytes = deviates('clone-never-truncates') ? 0 : 100;
    if (deviates('clone-never-truncates'))
      await rejectsUpdate(
        t,
        client.insert(cloneSession(6, [{ port: 2, instance: 1 }], { packetLengthBytes: 100 })),
        Status.UNKNOWN,
      );
    const session = cloneSession(5, [{ port: 2, instance: 1 }], { packetLengthBytes });
    await client.insert(session);
    const wildcard: v1.Entity = {
      entity: {
        $case: 'packetReplicationEngineEntry',
        value: {
          type: {
            $case: 'cloneSessionEntry',
            value: { sessionId: 0, replicas: [], classOfService: 0, packetLengthBytes: 0 },
          },
        },
      },
    };
    const [read] = await client.readAll(wildcard);
    const type = read?.entity?.$case === 'packetReplicationEngineEntry' ? read.entity.value.type : undefined;
    t.match(type, { $case: 'cloneSessionEntry', value: { sessionId: 5, packetLengthBytes } });
    await client.delete(session);
    await rejectsUpdate(t, client.delete(cloneSession(5, [])), Status.NOT_FOUND);
  });

  t.test('counters are read one by one and all together, and are set (9.3)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.modify(counterEntry(program, 'seen', 3, { bytes: 1000n, packets: 10n }));
    const cells = (await client.readAll(counterEntry(program, 'seen'))).flatMap(({ entity }) =>
      entity?.$case === 'counterEntry' ? [readCounterEntry(program, entity.value)] : [],
    );
    t.equal(cells.length, 16);
    t.same(
      cells.find((cell) => cell.index === 3n),
      { counter: 'seen', index: 3n, bytes: 1000n, packets: 10n },
    );
    const { entity } = counterEntry(program, 'seen', 0);
    if (entity?.$case === 'counterEntry') entity.value.index = { index: 16n };
    const status = await client.readAll({ entity }).then(
      () => Status.OK,
      (error: P4RuntimeError) => error.status,
    );
    t.ok(
      deviates('counter-index-unknown')
        ? status === Status.UNKNOWN
        : status === Status.OUT_OF_RANGE || status === Status.INVALID_ARGUMENT,
      `index 16 of 16 is ${statusName(status)}`,
    );
  });

  t.test('packets go out with metadata, and come in with theirs (16.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.insert(
      tableEntry(program, {
        table: 'station',
        match: { 'hdr.ethernet.dst': 0x0200_0000_0001n },
        action: { name: 'to_controller', params: { reason: 42 } },
      }),
    );
    const arrived = new Promise<v1.PacketIn>((resolve) => client.once('packet', resolve));
    const payload = Buffer.from('0200000000010200000000021234' + '00'.repeat(46), 'hex');
    client.sendPacket(packetOut(program, payload, { as_from: 5 }));
    const packet = readPacketIn(program, await arrived);
    t.same(packet.metadata, { ingress_port: 5n, reason: 42n });
    t.equal(Buffer.from(packet.payload).toString('hex'), payload.toString('hex'));
    const [cell] = await client.readAll(counterEntry(program, 'seen', 5));
    t.equal(
      cell?.entity?.$case === 'counterEntry' ? cell.entity.value.data?.packetCount : undefined,
      1n,
      'and are counted',
    );
  });

  t.test('digests arrive as lists and are acknowledged (16.3)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.insert(
      digestEntry(program, 'learned_t', { maxListSize: 1, ackTimeoutNs: 1_000_000_000n }),
      tableEntry(program, { table: 'acl', priority: 1, action: { name: 'learn' } }),
    );
    const arrived = new Promise<v1.DigestList>((resolve) => client.once('digest', resolve));
    client.sendPacket(
      packetOut(program, Buffer.from('02000000000102000000abcd88b5' + '00'.repeat(46), 'hex'), { as_from: 6 }),
    );
    const list = await arrived;
    t.same(readDigestList(program, list).entries, [{ mac: 0x0200_0000_abcdn, port: 6n }]);
    client.acknowledgeDigest(list);
    t.equal(
      await client.capabilities().then((version) => /^1\.\d+\.\d+/.test(version)),
      true,
      'the stream still works',
    );
  });

  // Last: a server that fails here may be of no use afterwards.
  t.test('RECONCILE_AND_COMMIT keeps the entries (7.2)', async (t) => {
    const client = await primary(t);
    await client.setPipeline(pipeline);
    await client.insert(station(5));
    if (deviates('reconcile-fails')) {
      await rejects(t, client.setPipeline(pipeline, Action.RECONCILE_AND_COMMIT), Status.UNKNOWN);
      await rejects(t, client.setPipeline(pipeline), Status.UNKNOWN, 'and takes no pipeline any more');
    } else {
      await client.setPipeline(pipeline, Action.RECONCILE_AND_COMMIT);
      t.equal((await client.readAll(tableWildcard(program, 'station'))).length, 1);
    }
  });
}

function station(mac: number): v1.Entity {
  return tableEntry(program, {
    table: 'station',
    match: { 'hdr.ethernet.dst': mac },
    action: { name: 'forward', params: { port: 1 } },
  });
}

async function rejects(t: Test, promise: Promise<unknown>, status: number, message = 'the status'): Promise<void> {
  const error: unknown = await promise.then(
    () => undefined,
    (each: unknown) => each,
  );
  t.equal(error instanceof P4RuntimeError ? statusName(error.status) : String(error), statusName(status), message);
}

async function rejectsUpdate(
  t: Test,
  promise: Promise<unknown>,
  status: number,
  message = 'the status',
): Promise<void> {
  const error: unknown = await promise.then(
    () => undefined,
    (each: unknown) => each,
  );
  t.equal(
    error instanceof WriteError ? statusName(error.failures[0]?.status) : String(error),
    statusName(status),
    message,
  );
}
