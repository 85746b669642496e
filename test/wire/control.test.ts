import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { Client, Metadata, credentials, status, type ServiceError } from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import {
  MAX_CONTROL_BYTES,
  NodeControl,
  SwitchControl,
  serveControl,
  type ControlClientOptions,
  type SwitchControlHandlers,
} from '../../wire/control.js';
import { TOKEN_KEY, TOKEN_WINDOW_MS, TokenChecker, isProof, makeProof, makeToken } from '../../wire/control-token.js';
import { OperatingError, TartanError } from '../../wire/errors.js';
import { LoadRequest, NodeStatus, SwitchControlService, type SwitchStatus } from '../../wire/generated/control.js';
import { isLoopback } from '../../wire/loopback.js';
import { randomBytes } from '../random-bytes.js';

const nodeStatus: NodeStatus = {
  id: 'n1',
  state: 'up',
  version: '0.1.0',
  mapEpoch: 7,
  ringMemoryUsed: 1 << 20,
  ringMemoryLimit: 2 ** 40,
  counters: { tartan_units_stored: 12, 'b.rate': 0.5 },
};
const switchStatus: SwitchStatus = {
  id: 's1',
  state: 'forwarding',
  program: '',
  version: '0.1.0',
  mapEpoch: 7,
  ringMemoryUsed: 0,
  ringMemoryLimit: 2 ** 53 - 1,
  counters: {},
};

const handlers: SwitchControlHandlers = {
  status: () => switchStatus,
  unload: () => Promise.resolve(switchStatus),
  load: (program) => {
    if (program === 'of another package') throw new OperatingError('ERR_ELSEWHERE', 'a first line\n    and more');
    if (program === 'huge') throw new RangeError('Array buffer allocation failed');
    if (program === 'never') return new Promise(() => undefined);
    if (program === 'too much') return { ...switchStatus, version: 'x'.repeat(MAX_CONTROL_BYTES) };
    if (program !== 'parity')
      throw new TartanError('ERR_NOT_PROGRAMMABLE', `Cannot load '${program}': there is no such program`);
    return { ...switchStatus, program, state: 'programmable' };
  },
};

t.test('a switch is loaded, unloaded and asked, a node is asked', async (t) => {
  const { switchAt, nodeAt } = await serve(t);
  t.same(await switchAt().status(), switchStatus);
  t.same(await switchAt().load('parity'), { ...switchStatus, program: 'parity', state: 'programmable' });
  t.same(await switchAt().unload(), switchStatus);
  t.same(await nodeAt().status(), nodeStatus);
});

t.test('groups are opened in a packet switch, and refused by another', async (t) => {
  const asked = { mapEpoch: 7, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }, { nodes: ['n2', 'n3', 'n1'] }] };
  const server = await serveControl({
    host: '127.0.0.1',
    port: 0,
    services: {
      switch: {
        ...handlers,
        openGroups: (request) => {
          t.same(request, asked);
          return { groups: [5, 6], mapEpoch: 7 };
        },
      },
    },
  });
  t.teardown(() => server.close());
  const client = new SwitchControl('127.0.0.1', server.port);
  t.teardown(() => {
    client.close();
  });
  t.same(await client.openGroups(asked), { groups: [5, 6], mapEpoch: 7 });
  const { switchAt } = await serve(t);
  await t.rejects(switchAt().openGroups(asked), { code: 'ERR_ARGUMENT', message: /over rings, not as packets$/ });
});

t.test("a handler's error reaches the caller with its code, in one line", async (t) => {
  const { switchAt } = await serve(t);
  await t.rejects(switchAt().load('nonsense'), {
    code: 'ERR_NOT_PROGRAMMABLE',
    message: "Cannot load 'nonsense': there is no such program",
  });
  await t.rejects(switchAt().load('of another package'), {
    code: 'ERR_UNKNOWN_REFUSAL',
    message: "a first line (refused as 'ERR_ELSEWHERE')",
  });
  await t.rejects(switchAt().load('huge'), { code: 'ERR_CAPACITY' });
  await t.rejects(switchAt().load('too much'), { code: 'ERR_MALFORMED' });
  await t.rejects(switchAt({ deadlineMs: 100 }).load('never'), {
    code: 'ERR_DEADLINE',
    message: /no answer within 100 ms$/,
  });
  await t.rejects(switchAt().load('x'.repeat(MAX_CONTROL_BYTES)), { code: 'ERR_MALFORMED' });
  t.same(await switchAt().status(), switchStatus, 'it goes on serving');
});

t.test('who is not there, or serves something else, is named', async (t) => {
  const port = await freePort();
  const ask = async () => {
    const client = new NodeControl('127.0.0.1', port);
    try {
      return await client.status();
    } finally {
      client.close();
    }
  };
  await t.rejects(ask(), {
    code: 'ERR_CONNECT',
    message: `Cannot ask the status of the node at 127.0.0.1:${port}: connect ECONNREFUSED 127.0.0.1:${port}`,
  });
  const server = await serveControl({ host: '127.0.0.1', port, services: { switch: handlers } });
  t.teardown(() => server.close());
  t.equal(server.port, port);
  await t.rejects(
    ask(),
    { code: 'ERR_CONNECT', message: /does not serve node control/ },
    'who came later is found at once',
  );
  await t.rejects(serveControl({ host: '127.0.0.1', port, services: {} }), { code: 'ERR_IN_USE', message: /^[^\n]+$/ });
  await t.rejects(serveControl({ host: '203.0.113.1', port: 0, secret: 's', services: {} }), { code: 'ERR_LISTEN' });
});

t.test('beyond loopback a secret is required', async (t) => {
  for (const host of ['0.0.0.0', '::', '192.168.0.1', 'example.org', '']) {
    await t.rejects(serveControl({ host, port: 0, services: {} }), { code: 'ERR_SECRET_REQUIRED' }, host);
    await t.rejects(
      serveControl({ host, port: 0, secret: '', services: {} }),
      { code: 'ERR_SECRET_REQUIRED' },
      'an empty secret is none',
    );
  }
  const server = await serveControl({ host: '0.0.0.0', port: 0, secret: 'sesame', services: { switch: handlers } });
  t.teardown(() => server.close());
  const client = new SwitchControl('127.0.0.1', server.port, { secret: 'sesame' });
  t.teardown(() => {
    client.close();
  });
  t.same(await client.status(), switchStatus);
});

t.test('loopback is 127.0.0.0/8, ::1 and localhost', (t) => {
  for (const host of ['127.0.0.1', '127.1.2.3', '::1', '0:0:0:0:0:0:0:1', '::ffff:127.0.0.1', 'localhost'])
    t.ok(isLoopback(host), host);
  for (const host of [
    '0.0.0.0',
    '::',
    '128.0.0.1',
    '127.0.0.1.example.org',
    '127.evil',
    '::2',
    'localhost.example.org',
    '',
  ])
    t.notOk(isLoopback(host), host);
  t.end();
});

t.test('with a secret only those who know it are served, and only those who know it are believed', async (t) => {
  const { switchAt, port } = await serve(t, 'sesame');
  t.same(await switchAt({ secret: 'sesame' }).status(), switchStatus);
  await t.rejects(switchAt().status(), { code: 'ERR_AUTHENTICATION' }, 'no token');
  await t.rejects(switchAt({ secret: 'Sesame' }).load('parity'), { code: 'ERR_AUTHENTICATION' }, 'another secret');

  const { path } = SwitchControlService.load;
  const request = Buffer.from(LoadRequest.encode({ program: 'parity' }).finish());
  const { text } = makeToken('sesame', path, request);
  t.equal((await raw(t, port, path, request, text)).code, status.OK);
  t.equal((await raw(t, port, path, request, text)).code, status.UNAUTHENTICATED, 'a token serves once');
  t.equal(
    (
      await raw(
        t,
        port,
        path,
        Buffer.from(LoadRequest.encode({ program: 'forward' }).finish()),
        makeToken('sesame', path, request).text,
      )
    ).code,
    status.UNAUTHENTICATED,
    'not another request',
  );
  t.equal(
    (await raw(t, port, SwitchControlService.unload.path, request, makeToken('sesame', path, request).text)).code,
    status.UNAUTHENTICATED,
    'not another method',
  );
  t.equal((await raw(t, port, path, request, 'nonsense')).code, status.UNAUTHENTICATED);
  const garbage = Buffer.from([0xff, 0xff, 0xff]);
  t.equal(
    (await raw(t, port, path, garbage, makeToken('sesame', path, garbage).text)).code,
    status.FAILED_PRECONDITION,
    'unreadable, though by a friend',
  );

  const impostor = await serve(t);
  await t.rejects(impostor.switchAt({ secret: 'sesame' }).status(), {
    code: 'ERR_AUTHENTICATION',
    message: /answer does not prove/,
  });
});

t.test('a token is fresh for 30 s either way, good once, and its nonce is forgotten when it is stale', (t) => {
  let now = 1_000_000;
  const checker = new TokenChecker('sesame', () => now),
    request = Buffer.from('request');
  const made = (at: number) => makeToken('sesame', '/m', request, at).text;
  const accepts = (text: string) => checker.accept(text, '/m', request) !== undefined;
  t.ok(accepts(made(now - TOKEN_WINDOW_MS)));
  t.notOk(accepts(made(now - TOKEN_WINDOW_MS - 1)));
  t.notOk(accepts(made(now + TOKEN_WINDOW_MS + 1)));
  const ahead = made(now + TOKEN_WINDOW_MS);
  t.ok(accepts(ahead));
  now += 2 * TOKEN_WINDOW_MS;
  t.notOk(accepts(ahead), 'still fresh, still remembered');
  now += 1;
  t.notOk(accepts(ahead), 'forgotten, and stale');
  const text = made(now);
  for (let i = 0; i < text.length; i++) {
    const other = text[i] === '0' ? '1' : '0';
    t.notOk(accepts(text.slice(0, i) + other + text.slice(i + 1)), `altered at ${i}`);
  }
  t.notOk(checker.accept(undefined, '/m', request));
  t.ok(accepts(text), 'refused ones use up nothing');
  t.end();
});

t.test('a proof is of one answer to one call', (t) => {
  const answer = Buffer.from('answer'),
    proof = makeProof('sesame', '/m', 'nonce', answer);
  t.ok(isProof(proof, 'sesame', '/m', 'nonce', answer));
  t.notOk(isProof(proof, 'other', '/m', 'nonce', answer));
  t.notOk(isProof(proof, 'sesame', '/n', 'nonce', answer));
  t.notOk(isProof(proof, 'sesame', '/m', 'other', answer));
  t.notOk(isProof(proof, 'sesame', '/m', 'nonce', Buffer.from('other')));
  t.notOk(isProof('', 'sesame', '/m', 'nonce', answer));
  t.end();
});

t.test('garbage on the port does no harm', async (t) => {
  const { switchAt, port } = await serve(t);
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const settings = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
  const pieces: Buffer[] = [
    Buffer.alloc(0),
    Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
    preface.subarray(0, 10),
    preface,
    Buffer.concat([preface, randomBytes(4096)]),
    Buffer.concat([preface, settings, Buffer.from([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]), randomBytes(1 << 16)]),
    Buffer.concat([preface, settings, Buffer.from([0, 0, 4, 1, 5, 0, 0, 0, 1]), randomBytes(4)]),
    ...Array.from({ length: 20 }, () => randomBytes(1 + (randomBytes(2).readUInt16LE() % 5000))),
    ...Array.from({ length: 20 }, () =>
      Buffer.concat([preface, settings, randomBytes(1 + (randomBytes(2).readUInt16LE() % 500))]),
    ),
  ];
  const sockets = await Promise.all(
    pieces.map(
      (piece) =>
        new Promise<Socket>((resolve) => {
          const socket = connect(port, '127.0.0.1', () => {
            socket.end(piece);
          });
          socket
            .on('error', () => {
              resolve(socket);
            })
            .on('finish', () => {
              resolve(socket);
            })
            .resume();
        }),
    ),
  );
  t.same(await switchAt().status(), switchStatus, 'while the connections are open');
  for (const socket of sockets) socket.destroy();
  const huge = Buffer.alloc(MAX_CONTROL_BYTES + 1);
  t.equal((await raw(t, port, SwitchControlService.load.path, huge)).code, status.RESOURCE_EXHAUSTED);
  t.equal((await raw(t, port, SwitchControlService.load.path, Buffer.from([0xff]))).code, status.FAILED_PRECONDITION);
  t.equal((await raw(t, port, '/tartan.control.v1.SwitchControl/Explode', Buffer.alloc(0))).code, status.UNIMPLEMENTED);
  t.same(await switchAt().status(), switchStatus);
});

t.test('a server that talks nonsense is an error, not a crash', async (t) => {
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end(randomBytes(1000));
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  t.teardown(() => server.close());
  const client = new NodeControl('127.0.0.1', (server.address() as AddressInfo).port, { deadlineMs: 2000 });
  t.teardown(() => {
    client.close();
  });
  await t.rejects(client.status(), { code: /^ERR_(CONNECT|DEADLINE)$/ });
});

t.test('a number that JavaScript cannot hold exactly is refused when decoded, never rounded', (t) => {
  t.equal(
    NodeStatus.decode(Buffer.from([0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f])).ringMemoryUsed,
    2 ** 53 - 1,
  );
  t.throws(
    () => NodeStatus.decode(Buffer.from([0x28, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10])),
    /MAX_SAFE_INTEGER/,
  );
  t.end();
});

t.test('closing ends calls that never finish', async (t) => {
  const { switchAt, close } = await serve(t);
  const hanging = t.rejects(switchAt().load('never'), { code: 'ERR_CONNECT' });
  await switchAt().status();
  await close();
  await hanging;
});

async function serve(t: Test, secret?: string) {
  const server = await serveControl({
    host: '127.0.0.1',
    port: 0,
    secret,
    services: { switch: handlers, node: { status: () => nodeStatus } },
  });
  let closing: Promise<void> | undefined;
  const close = () => (closing ??= server.close());
  t.teardown(close);
  const opened = <T extends { close(): void }>(client: T) => {
    t.teardown(() => {
      client.close();
    });
    return client;
  };
  return {
    port: server.port,
    close,
    switchAt: (options: ControlClientOptions = {}) => opened(new SwitchControl('127.0.0.1', server.port, options)),
    nodeAt: (options: ControlClientOptions = {}) => opened(new NodeControl('127.0.0.1', server.port, options)),
  };
}

/** A call as a stranger would make it. */
function raw(t: Test, port: number, path: string, request: Buffer, token?: string): Promise<{ code: status }> {
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  t.teardown(() => {
    client.close();
  });
  const metadata = new Metadata();
  if (token !== undefined) metadata.set(TOKEN_KEY, token);
  return new Promise((resolve) => {
    client.makeUnaryRequest(
      path,
      (bytes: Buffer) => bytes,
      (bytes: Buffer) => bytes,
      request,
      metadata,
      (error: ServiceError | null) => {
        resolve({ code: error?.code ?? status.OK });
      },
    );
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => {
    server.close(resolve);
  });
  return port;
}
