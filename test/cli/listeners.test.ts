/** What listens, and to whom: a cluster with a secret, peers without it, and bytes that are no protocol at all. */
import t, { type Test } from 'tap';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';
import type { ProcessIdentity } from '../../cluster/process-identity.js';
import { isRunning } from '../../cluster/process-identity.js';
import { randomBytes } from '../random-bytes.js';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');
const SECRET = 'known to all of this cluster';

interface Result {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the built command with a secret in its environment, or without one. */
function tartan(args: readonly string[], secret?: string): Promise<Result> {
  return run(MAIN, args, secret);
}

function run(script: string, args: readonly string[], secret?: string): Promise<Result> {
  const { NODE_OPTIONS: _, TARTAN_SECRET: __, ...rest } = process.env;
  const env = secret === undefined ? rest : { ...rest, TARTAN_SECRET: secret };
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [script, ...args],
      { env, maxBuffer: 1 << 26, encoding: 'latin1' },
      (error, stdout, stderr) => {
        resolve({ status: error ? Number(error.code ?? 255) : 0, stdout, stderr });
      },
    );
  });
}

function isOneLine(t: Test, result: Result, code: string): void {
  t.equal(result.status, 1, `exit status for ${code}`);
  t.match(result.stderr, new RegExp(`^tartan: ${code}: [^\\n]+\\n$`));
}

/**
 * A folder for a cluster, which is taken down before the folder goes (a teardown of tap runs after that, and then finds
 * nothing to end). Nothing that `up` started may be left.
 */
async function withState(t: Test, body: (dir: string) => Promise<void>): Promise<void> {
  const dir = join(t.testdir(), 'state');
  try {
    await body(dir);
  } finally {
    const started = processesOf(dir);
    await tartan(['down', '--wipe', '--dir', dir]);
    t.same(
      started.filter(({ identity }) => isRunning(identity)),
      [],
      `${started.length} processes are gone`,
    );
  }
}

interface Listed {
  id: string;
  identity: ProcessIdentity;
  port: number;
  controlPort: number;
  metricsPort: number;
}

function processesOf(dir: string): Listed[] {
  try {
    return (JSON.parse(readFileSync(join(dir, 'processes.json'), 'utf8')) as { processes: Listed[] }).processes;
  } catch {
    return []; // nothing was started
  }
}

/** Sends bytes and leaves its side open: the other side must end the connection. With no bytes, this side does. */
async function pester(port: number, bytes: Buffer): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  socket.on('data', () => {});
  await once(socket, 'connect').catch(() => {});
  const closed = new Promise<void>((resolve) => {
    socket.once('close', () => {
      resolve();
    });
  });
  if (bytes.length === 0) socket.end();
  else socket.write(bytes);
  await closed;
}

t.test('beyond loopback nothing listens without a secret; with one, who does not know it is told so', async (t) =>
  withState(t, async (dir) => {
    isOneLine(t, await tartan(['up', '--dir', dir, '--host', '0.0.0.0', '--size', '64MiB']), 'ERR_SECRET_REQUIRED');
    isOneLine(t, await tartan(['status', '--dir', dir]), 'ERR_NOT_RUNNING');
    t.same(processesOf(dir), []);
    for (const [role, args] of [
      ['storage-node', ['--store', dir]],
      ['switch-agent', []],
    ] as const) {
      const alone = await run(resolve(import.meta.dirname, `../../dist/${role}/main.js`), [
        '--cluster',
        join(dir, 'cluster'),
        '--id',
        'x1',
        '--host',
        '0.0.0.0',
        ...args,
      ]);
      t.equal(alone.status, 1, role);
      t.match(alone.stderr, /ERR_SECRET_REQUIRED/, `${role} refuses by itself`);
    }

    const up = await tartan(['up', '--dir', dir, '--size', '64MiB', '--json'], SECRET);
    t.equal(up.status, 0, up.stderr);
    t.equal((await tartan(['put', MAIN, 'main', '--dir', dir], SECRET)).status, 0);
    for (const secret of [undefined, 'guessed']) {
      isOneLine(t, await tartan(['put', MAIN, 'other', '--dir', dir], secret), 'ERR_AUTHENTICATION');
      isOneLine(t, await tartan(['get', 'main', '-', '--dir', dir], secret), 'ERR_AUTHENTICATION');
      isOneLine(t, await tartan(['switch', 'unload', '--dir', dir], secret), 'ERR_AUTHENTICATION');
    }
    const unloaded = await tartan(['switch', 'unload', '--dir', dir], SECRET);
    t.equal(unloaded.status, 0, unloaded.stderr);
    t.equal((await tartan(['switch', 'load', '--dir', dir], SECRET)).status, 0);
    const got = await tartan(['get', 'main', '-', '--dir', dir], SECRET);
    t.equal(got.stdout, readFileSync(MAIN, 'latin1'));
  }),
);

t.test('--secret-file serves every command, and outweighs TARTAN_SECRET', async (t) =>
  withState(t, async (dir) => {
    const fileOf = (name: string) => join(dir, '..', name);
    writeFileSync(fileOf('secret'), `${SECRET}\n`);
    writeFileSync(fileOf('blank'), ' \n');
    const known = ['--dir', dir, '--secret-file', fileOf('secret')];
    for (const file of ['blank', 'missing']) {
      const refused = await tartan(['up', '--dir', dir, '--secret-file', fileOf(file)], SECRET);
      t.equal(refused.status, 2, file);
      t.match(refused.stderr, /^tartan: ERR_ARGUMENT: [^\n]+\n$/, file);
    }
    for (const args of [
      ['up', '--size', '64MiB'],
      ['put', MAIN, 'main'],
      ['ls'],
      ['stat', 'main'],
      ['switch', 'unload'],
      ['switch', 'load'],
      ['rebuild'],
      ['scrub'],
      ['rm', 'main'],
      ['put', MAIN, 'main'],
    ]) {
      const done = await tartan([...args, ...known], 'another one');
      t.equal(done.status, 0, `${args[0]!}: ${done.stderr}`);
    }
    t.equal((await tartan(['get', 'main', '-', ...known], 'another one')).stdout, readFileSync(MAIN, 'latin1'));
    const status = async (...args: Parameters<typeof tartan>) =>
      (JSON.parse((await tartan(...args)).stdout) as { switch?: { state: string } }).switch?.state;
    t.equal(await status(['status', '--json', ...known]), 'programmable', 'the switch answers who knows the secret');
    t.equal(await status(['status', '--json', '--dir', dir], SECRET), 'programmable', 'it is the one in the file');
    t.equal(await status(['status', '--json', '--dir', dir], 'another one'), undefined, 'and nobody else');
  }),
);

t.test('garbage on every port ends in a closed connection, and files are stored and read as before', async (t) =>
  withState(t, async (dir) => {
    t.equal((await tartan(['up', '--dir', dir, '--size', '64MiB'])).status, 0);
    const ports = processesOf(dir)
      .flatMap(
        ({ id, port, controlPort, metricsPort }) =>
          [
            [`${id} data`, port],
            [`${id} control`, controlPort],
            [`${id} metrics`, metricsPort],
          ] as const,
      )
      .filter(([, port]) => port > 0);
    t.ok(ports.length >= 9, ports.map(([name]) => name).join(', '));
    const garbage: [string, Buffer][] = [
      ['random bytes', randomBytes(5000)],
      ['zeros', Buffer.alloc(5000)],
      ['a huge length', Buffer.alloc(64, 0xff)],
      ['a request of another protocol', Buffer.from('GET / HTTP/1.0\r\nHost: x\r\n\r\n')],
      ['nothing', Buffer.alloc(0)],
    ];
    for (const [name, port] of ports)
      await t.resolves(
        Promise.all(garbage.map(([, bytes]) => pester(port, bytes))),
        `${name}: ${garbage.length} connections are closed`,
      );
    t.equal((await tartan(['put', MAIN, 'main', '--dir', dir])).status, 0);
    t.equal((await tartan(['get', 'main', '-', '--dir', dir])).stdout, readFileSync(MAIN, 'latin1'));
    const { map } = JSON.parse((await tartan(['status', '--dir', dir, '--json'])).stdout) as {
      map: { nodes: { state: string }[]; switches: { state: string }[] };
    };
    t.same(
      [...map.nodes, ...map.switches].map(({ state }) => state),
      ['up', 'up', 'up', 'programmable'],
    );
  }),
);
