/**
 * The client by itself: names and checks of P4Info, its text form, connections and their ends. Against the mock where a
 * server is needed.
 */
import t, { type Test } from 'tap';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ServerCredentials } from '@grpc/grpc-js';
import {
  P4RuntimeError,
  Program,
  Status,
  allMulticastGroups,
  connect,
  counterEntry,
  cloneSession,
  directCounterEntry,
  fromByteString,
  isCanonical,
  lpm,
  multicastGroup,
  optional,
  packetOut,
  parseP4InfoText,
  range,
  tableEntry,
  ternary,
  toByteString,
  v1,
  type ConnectOptions,
  type EntryFields,
} from 'tartan-p4runtime';
import { MockServer } from './mock-server.js';

// By hand: every part that p4c's own output does not have, too.
const program = Program.fromText(`
  # a comment
  pkg_info { arch: "v1model" }
  tables {
    preamble { id: 33554433 name: "Ingress.route" alias: "route" }
    match_fields { id: 1 name: "dst" bitwidth: 32 match_type: LPM }
    match_fields { id: 2 name: "port" bitwidth: 9 match_type: EXACT }
    action_refs { id: 16777217 }
    action_refs { id: 16777218 scope: DEFAULT_ONLY annotations: "@defaultonly" }
    direct_resource_ids: 301989889
    size: 1024
  }
  tables {
    preamble { id: 33554434 name: "Ingress.acl" alias: "acl" }
    match_fields { id: 1 name: "src" bitwidth: 32 match_type: TERNARY }
    match_fields { id: 2 name: "kind" bitwidth: 8 match_type: RANGE }
    match_fields { id: 3 name: "vrf" match_type: OPTIONAL type_name { name: "vrf_t" } }
    action_refs { id: 16777217 }
    const_default_action_id: 16777218
    idle_timeout_behavior: NOTIFY_CONTROL
  }
  tables { preamble { id: 33554435 name: "Ingress.fixed" alias: "fixed" } is_const_table: true }
  actions {
    preamble { id: 16777217 name: "Ingress.send" alias: "send" doc { brief: "to a \\"port\\"" 'joined' } }
    params { id: 1 name: "port" bitwidth: 9 }
    params { id: 2 name: "mac" bitwidth: 48 }
  }
  actions { preamble { id: 16777218 name: "drop" alias: "drop" } }
  counters { preamble { id: 301989900 name: "Ingress.seen" alias: "seen" } spec { unit: PACKETS } size: 16 }
  direct_counters {
    preamble { id: 301989889 name: "Ingress.hits" alias: "hits" } spec { unit: BOTH } direct_table_id: 33554433
  }
  controller_packet_metadata {
    preamble { id: 67108865 name: "packet_out" alias: "packet_out" annotations: "@controller_header(\\"packet_out\\")" }
    metadata { id: 1 name: "port" bitwidth: 9 }
  }
  type_info {
    serializable_enums {
      key: "kind_t" value { underlying_type { bitwidth: 8 } members { name: "A" value: "\\000\\x7f" } }
    }
    new_types { key: "vrf_t" value { translated_type { uri: "tartan/vrf" sdn_string { } } } }
  }
`);

t.test('P4Info is read from text, escapes and maps included', async (t) => {
  t.equal(program.find('action', 'send').preamble?.doc?.brief, 'to a "port"joined');
  t.equal(program.find('table', 'route').size, 1024n);
  t.equal(program.find('table', 'Ingress.route'), program.find('table', 'route'), 'by name and by alias');
  t.equal(program.p4info.typeInfo?.serializableEnums.kind_t?.members[0]?.value.toString('hex'), '007f');
  for (const [text, at] of [
    ['tables { preamble { id: 1', /line 1.*'}' is missing/],
    ['tables {\n preamble = 3 }', /line 2, column 11/],
    ['pkg_info { arch: "x" arch: "y" }', /arch twice/],
    ['tables { preamble { name: "unended } }', /end of a string/],
  ] as const) {
    t.throws(() => parseP4InfoText(text), { code: 'ERR_P4_INFO', message: at });
  }
  t.throws(() => Program.fromText('tables { preamble { id: 3 name: "a" } } actions { preamble { id: 3 name: "b" } }'), {
    code: 'ERR_P4_INFO',
  });
});

/** A client of a mock, both gone after the test. */
async function connectedTo(t: Test, server: MockServer, options: Partial<ConnectOptions> = {}) {
  const isNew = server.port === 0,
    address = isNew ? await server.listen() : `127.0.0.1:${server.port}`;
  const client = await connect({ address, deviceId: 1, ...options });
  t.teardown(() => client.close());
  if (isNew) t.teardown(() => server.stop());
  return client;
}

t.test('byte strings are the shortest that hold the value', async (t) => {
  for (const [value, bits, hex] of [
    [0, 9, '00'],
    [255, 9, 'ff'],
    [256, 9, '0100'],
    [0x0a00_0001, 32, '0a000001'],
    [1n << 127n, 128, '80' + '00'.repeat(15)],
  ] as const) {
    const bytes = toByteString(value, bits, 'x');
    t.equal(bytes.toString('hex'), hex);
    t.equal(fromByteString(bytes), BigInt(value));
    t.ok(isCanonical(bytes));
  }
  t.equal(toByteString(Uint8Array.of(0, 0, 7), 9, 'x').toString('hex'), '07', 'bytes are shortened');
  t.equal(toByteString('red', 0, 'x').toString('latin1'), 'red', 'a translated string is what it is');
  for (const value of [512, -1, 1.5, 2 ** 53, 'text'])
    t.throws(() => toByteString(value, 9, 'port'), { code: 'ERR_P4_INVALID', message: /^port: / });
});

t.test('what a table cannot take is refused with a sentence that says what it takes', async (t) => {
  const send = { name: 'send', params: { port: 1, mac: 2n } };
  const route = { table: 'route', match: { dst: lpm(0x0a000000, 8), port: 5 }, action: send };
  const acl = {
    table: 'acl',
    match: { src: ternary(1, 1), kind: range(1, 2), vrf: optional('red') },
    action: send,
    priority: 4,
  };
  t.doesNotThrow(() => [tableEntry(program, route), tableEntry(program, acl)]);
  const wrong: [Partial<EntryFields> & { table: string }, RegExp][] = [
    [{ ...route, table: 'rout' }, /table 'rout': the program has 'route', 'acl', 'fixed'/],
    [{ ...route, match: { dst: lpm(0, 0) } }, /'port' is missing, and is exact/],
    [{ ...route, match: { port: 1, dest: 1 } }, /match field 'dest': expected 'dst', 'port'/],
    [{ ...route, match: { port: 512 } }, /field 'port': 512 does not fit in 9 bits/],
    [{ ...route, match: { port: 1, dst: 7 } }, /exact given, lpm expected/],
    [{ ...route, match: { port: 1, dst: lpm(0x0a000001, 8) } }, /has bits outside its mask/],
    [{ ...route, match: { port: 1, dst: lpm(0, 33) } }, /prefix length 33, expected 0 to 32/],
    [{ ...route, priority: 1 }, /priority 1, but no field/],
    [{ ...route, idleTimeoutNs: 5n }, /no idle timeout/],
    [{ ...route, action: { name: 'send', params: { port: 1 } } }, /parameter 'mac' is missing/],
    [
      { ...route, action: { name: 'send', params: { port: 1, mac: 2, ttl: 3 } } },
      /parameter 'ttl': expected 'port', 'mac'/,
    ],
    [{ ...route, action: { name: 'drop' } }, /can only be the default action/],
    [{ ...route, action: { member: 3 } }, /has no action profile/],
    [{ ...acl, priority: 0 }, /priority 0, expected 1/],
    [{ ...acl, match: { src: ternary(3, 1) } }, /outside its mask/],
    [{ ...acl, match: { kind: range(3, 1) } }, /is empty/],
    [{ ...acl, counter: { bytes: 0n, packets: 0n } }, /no direct counter/],
    [{ table: 'acl', isDefault: true, action: send }, /default action is constant/],
    [{ table: 'route', isDefault: true, priority: 3, action: send }, /neither match nor priority/],
    [{ table: 'fixed' }, /is constant/],
  ];
  for (const [fields, message] of wrong)
    t.throws(() => tableEntry(program, fields), { code: 'ERR_P4_INVALID', message }, String(message));
});

t.test('what does not care is left out of the message', async (t) => {
  const { entity } = tableEntry(program, {
    table: 'acl',
    match: { src: ternary(0, 0), kind: range(0, 255) },
    action: { name: 'send', params: { port: 1, mac: 1 } },
    priority: 1,
  });
  t.same(entity?.$case === 'tableEntry' && entity.value.match, []);
});

t.test('counters, groups, sessions and packets are checked too', async (t) => {
  t.throws(() => counterEntry(program, 'seen', 16), { code: 'ERR_P4_INVALID', message: /index 16, expected 0 to 15/ });
  t.throws(() => counterEntry(program, 'seen', 1, { bytes: 1n, packets: 1n }), { message: /counts packets only/ });
  t.throws(() => directCounterEntry(program, { table: 'acl' }), { message: /no direct counter/ });
  t.doesNotThrow(() => directCounterEntry(program, { table: 'route', match: { port: 1 } }));
  t.throws(() => multicastGroup(0), { message: /multicast group 0/ });
  t.throws(
    () =>
      multicastGroup(1, [
        { port: 1, instance: 1 },
        { port: 1n, instance: 1 },
      ]),
    { message: /port 1 with instance 1 twice/ },
  );
  t.throws(() => multicastGroup(1, [{ port: 1, instance: 70000 }]), { message: /instance 70000/ });
  t.throws(() => cloneSession(3, [], { packetLengthBytes: -1 }), { message: /packet length -1/ });
  t.throws(() => packetOut(program, Buffer.alloc(1)), { message: /'port' is missing/ });
  t.throws(() => packetOut(program, Buffer.alloc(1), { port: 1, queue: 2 }), { message: /'queue'/ });
});

t.test('a server that is not there is ERR_P4_CONNECT within the deadline', async (t) => {
  await t.rejects(connect({ address: '127.0.0.1:1', deviceId: 1, deadlineMs: 300 }), { code: 'ERR_P4_CONNECT' });
  await t.rejects(connect({ address: '127.0.0.1:1', deviceId: 0 }), { code: 'ERR_P4_INVALID' });
});

t.test('what is not a whole number is refused by the client itself', async (t) => {
  for (const deviceId of [1.5, NaN, -1, 2 ** 53, 2n ** 64n])
    await t.rejects(connect({ address: '127.0.0.1:1', deviceId }), { code: 'ERR_P4_INVALID', message: /^device id/ });
  for (const ms of [0, -1, 1.5, NaN, Infinity]) {
    await t.rejects(connect({ address: '127.0.0.1:1', deviceId: 1, deadlineMs: ms }), { code: 'ERR_P4_INVALID' });
    await t.rejects(connect({ address: '127.0.0.1:1', deviceId: 1, keepaliveMs: ms }), { code: 'ERR_P4_INVALID' });
  }
  const client = await connectedTo(t, new MockServer());
  for (const id of [0, -1, 0.5, NaN, 2 ** 53, 2n ** 128n])
    await t.rejects(client.arbitrate(id), { code: 'ERR_P4_INVALID', message: /^election id/ });
  for (const index of [0.5, NaN, Infinity, -1])
    t.throws(() => counterEntry(program, 'seen', index), { code: 'ERR_P4_INVALID', message: /index/ });
});

t.test('an idle connection is pinged every 5 minutes, or as often as was asked for', async (t) => {
  const delays = new Set<number | undefined>(),
    { setTimeout: real } = globalThis;
  t.teardown(() => {
    globalThis.setTimeout = real;
  });
  globalThis.setTimeout = Object.assign((...args: Parameters<typeof real>) => {
    delays.add(args[1]);
    return real(...args);
  }, real);
  await (await connectedTo(t, new MockServer())).arbitrate(1);
  t.ok(delays.has(300_000), 'by default');
  t.notOk(delays.has(10_000));
  await (await connectedTo(t, new MockServer(), { keepaliveMs: 123_456 })).arbitrate(1);
  t.ok(delays.has(123_456), 'as asked');
});

t.test("proxies of the environment are not for the device's connection", async (t) => {
  for (const name of ['grpc_proxy', 'http_proxy', 'https_proxy']) {
    const before = process.env[name];
    t.teardown(() => {
      if (before === undefined) delete process.env[name];
      else process.env[name] = before;
    });
    process.env[name] = 'http://127.0.0.1:1';
  }
  t.equal(await (await connectedTo(t, new MockServer())).capabilities(), '1.4.1');
});

t.test('a long batch of large updates goes in requests that a server takes, and comes back', async (t) => {
  const server = new MockServer(1n, 4 << 20),
    client = await connectedTo(t, server);
  await client.arbitrate(1);
  await client.setPipeline({ p4info: program.p4info, deviceConfig: Buffer.alloc(1) });
  const groups = Array.from({ length: 90 }, (_, i) => {
    const { entity } = multicastGroup(i + 1, [{ port: 1, instance: 1 }]);
    if (entity?.$case === 'packetReplicationEngineEntry' && entity.value.type?.$case === 'multicastGroupEntry')
      entity.value.type.value.metadata = Buffer.alloc(64 << 10);
    return { entity };
  });
  await client.insert(...groups);
  t.equal((await client.readAll(allMulticastGroups())).length, 90);
  await t.rejects(
    client.write(
      groups.map((entity) => ({ type: v1.Update_Type.MODIFY, entity })),
      { atomicity: v1.WriteRequest_Atomicity.DATAPLANE_ATOMIC },
    ),
    { code: 'ERR_P4_INVALID', message: /an atomic batch of 90 updates: expected at most 400, of 1048576 bytes/ },
  );

  t.test('who takes long over what was read is not late', async (t) => {
    const slow = await connectedTo(t, server, { deadlineMs: 1000 });
    let read = 0;
    for await (const _ of slow.read(allMulticastGroups())) if (read++ === 0) await delay(1500); // A slow reader.
    t.equal(read, 90);
  });

  t.test('a server that falls silent in the middle of a read is, and hears that nobody waits', async (t) => {
    server.isStuck = true;
    const waiting = await connectedTo(t, server, { deadlineMs: 300 });
    await t.rejects(waiting.readAll(allMulticastGroups()), {
      code: 'ERR_P4_RPC',
      status: Status.DEADLINE_EXCEEDED,
      message: 'Cannot read: no message within 300 ms',
    });
    while (server.cancelledReads === 0) await delay(5);
  });
});

t.test('when the server dies, the client is no longer primary and says so once', async (t) => {
  const server = new MockServer();
  const client = await connect({ address: await server.listen(), deviceId: 1 });
  t.teardown(() => client.close());
  t.ok((await client.arbitrate(5)).primary);
  const closed: P4RuntimeError[] = [];
  const gone = new Promise<void>((resolve) =>
    client.on('closed', (error) => {
      closed.push(error);
      resolve();
    }),
  );
  server.stop();
  await gone;
  t.equal(closed[0]?.code, 'ERR_P4_CLOSED');
  t.notOk(client.primary);
  await t.rejects(client.write([]), { code: 'ERR_P4_NOT_PRIMARY' });
  await t.rejects(client.arbitrate(6), P4RuntimeError, 'and a new attempt fails with a code');
});

t.test('close() rejects what waits and emits nothing', async (t) => {
  const server = new MockServer();
  t.teardown(() => server.stop());
  const client = await connect({ address: await server.listen(), deviceId: 1 });
  client.on('closed', () => t.fail('closed was emitted'));
  const waiting = t.rejects(client.arbitrate(5), { code: 'ERR_P4_CLOSED' });
  client.close();
  await waiting;
  await t.rejects(client.arbitrate(6), { code: 'ERR_P4_CLOSED' });
  client.close();
});

const openssl = spawnSync('openssl', ['version']).error === undefined;
t.test(
  'TLS: the server is authenticated, and so is the client where it is asked to be',
  { skip: openssl ? false : 'openssl is missing: no certificate to test with' },
  async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'p4runtime-'));
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const made = spawnSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'rsa:2048',
        '-nodes',
        '-keyout',
        'key.pem',
        '-out',
        'cert.pem',
        '-days',
        '1',
        '-subj',
        '/CN=switch',
        '-addext',
        'subjectAltName=DNS:switch',
      ],
      { cwd: folder },
    );
    t.equal(made.status, 0);
    const [key, cert] = [readFileSync(join(folder, 'key.pem')), readFileSync(join(folder, 'cert.pem'))];
    const server = new MockServer();
    t.teardown(() => server.stop());
    const address = await server.listen(
      ServerCredentials.createSsl(cert, [{ private_key: key, cert_chain: cert }], true),
    );
    const client = await connect({
      address,
      deviceId: 1,
      tls: { rootCertificates: cert, privateKey: key, certificateChain: cert, serverName: 'switch' },
    });
    t.teardown(() => client.close());
    t.equal(await client.capabilities(), '1.4.1');
    await t.rejects(
      connect({ address, deviceId: 1, deadlineMs: 500, tls: { serverName: 'switch' } }),
      { code: 'ERR_P4_CONNECT' },
      'a certificate that nobody vouches for',
    );
    await t.rejects(connect({ address, deviceId: 1, deadlineMs: 500 }), { code: 'ERR_P4_CONNECT' }, 'not in the clear');
  },
);
