/** The verbs device where there may be no RDMA device, or no rdma-core at all: it says what is missing. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { openDevice, openSoftDevice, openVerbsDevice, RdmaError, verbsDevices } from 'tartan-rdma';
import { closeDoor, knock, openDoor } from '../../rdma/dist/verbs/door.js';
import { EventType } from '../../rdma/dist/verbs/native.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

t.test('a device that is not there: ERR_NO_VERBS, with what is missing', async (t) => {
  t.throws(() => openVerbsDevice({ device: 'no-such-device' }), {
    code: 'ERR_NO_VERBS',
    message: /no RDMA device|apt-get install/,
  });
  t.throws(() => openDevice('verbs:no-such-device'), { code: 'ERR_NO_VERBS' });
});

t.test('wrong options are bugs, told before anything is opened', async (t) => {
  t.throws(() => openVerbsDevice({ sendDepth: 0 }), RangeError);
  t.throws(() => openVerbsDevice({ completionQueueEntries: 1000 }), RangeError);
  t.throws(() => openDevice('infiniband'), { code: 'ERR_UNKNOWN_DEVICE', message: /soft, verbs, verbs:NAME or auto/ });
});

t.test('auto is verbs where there is an RDMA device, else soft, and says why', async (t) => {
  const said: string[] = [];
  const device = openDevice('auto', {
    name: 'any',
    log: (message) => {
      said.push(message);
    },
  });
  t.teardown(() => device.close());
  const isSoft = device.kind === 'soft';
  t.ok(isSoft || device.kind === 'verbs');
  t.match(said, [isSoft ? /^device soft: Cannot open the verbs device: / : /^device verbs:/]);
  const loopback = openDevice('auto', { host: '127.0.0.1' });
  t.equal(loopback.kind, 'soft');
  await loopback.close();
});

t.test('`tartan rdma devices` lists what verbsDevices() does, or says what is missing', async (t) => {
  const command = spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'rdma', 'devices', '--json'], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  let devices: unknown;
  try {
    devices = verbsDevices();
  } catch (error) {
    t.ok(error instanceof RdmaError && error.code === 'ERR_NO_VERBS');
    t.match(command.stderr, /^tartan: ERR_NO_VERBS: .*apt-get install/);
    t.equal(command.status, 1);
    return;
  }
  t.same(JSON.parse(command.stdout), JSON.parse(JSON.stringify(devices)));
});

t.test("built without rdma-core's headers, the addon loads and says so", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'verbs-stub-'));
  t.teardown(() => {
    rmSync(folder, { recursive: true });
  });
  const include = join(dirname(createRequire(import.meta.url).resolve('node-api-headers/package.json')), 'include');
  const stub = join(folder, 'stub.node');
  const built = spawnSync(
    process.env['CXX'] ?? 'g++',
    [
      '-std=c++20',
      '-shared',
      '-fPIC',
      '-DNAPI_VERSION=8',
      '-isystem',
      include,
      join(root, 'rdma/native/verbs/stub.cc'),
      '-o',
      stub,
    ],
    { encoding: 'utf8' },
  );
  t.equal(built.status, 0, built.stderr);
  const addon = createRequire(import.meta.url)(stub) as { open(): unknown; devices(): unknown };
  for (const call of [() => addon.open(), () => addon.devices()])
    t.throws(call, { message: /without rdma-core's headers: apt-get install libibverbs-dev/ });
});

t.test('the events of events.h are those of native.ts', async (t) => {
  const header = readFileSync(join(root, 'rdma/native/verbs/events.h'), 'utf8');
  const numbers = Object.fromEntries(
    [...header.matchAll(/^ {2}(\w+) = (\d+),/gm)].map(([, name, value]) => [name!.toUpperCase(), Number(value)]),
  );
  t.same(numbers, EventType);
});

t.test('kinds of devices that meet tell each other apart', async (t) => {
  const door = await openDoor('127.0.0.1', 0);
  t.teardown(() => closeDoor(door));
  const { port } = door.address() as { port: number };
  const soft = openSoftDevice({ name: 'soft' });
  t.teardown(() => soft.close());
  await t.rejects(soft.connect('127.0.0.1', port, { transport: 'tcp' }), {
    code: 'ERR_DEVICE_KIND',
    message: /a verbs device listens there.*same kind of device/,
  });
  const listener = await soft.listen('127.0.0.1', 0, () => {});
  t.equal(await knock('127.0.0.1', port), 'verbs');
  t.equal(await knock('127.0.0.1', listener.port), 'other');
  await listener.close();
  t.equal(await knock('127.0.0.1', listener.port), 'nobody');
});
