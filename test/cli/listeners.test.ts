/** What listens, and to whom: a cluster with a secret, peers without it, and bytes that are no protocol at all. */
import t, { type Test } from 'tap';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');
const SECRET = 'known to all of this cluster';

interface Result { readonly status: number; readonly stdout: string; readonly stderr: string }

/** Runs the built command with a secret, or without one. */
function tartan(args: readonly string[], secret?: string): Promise<Result> {
  const { NODE_OPTIONS: _, TARTAN_SECRET: __, ...rest } = process.env;
  const env = secret === undefined ? rest : { ...rest, TARTAN_SECRET: secret };
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, ...args], { env, maxBuffer: 1 << 26, encoding: 'latin1' }, (error, stdout, stderr) => { resolve({ status: error ? Number(error.code ?? 255) : 0, stdout, stderr }); });
  });
}

function isOneLine(t: Test, result: Result, code: string): void {
  t.equal(result.status, 1, `exit status for ${code}`);
  t.match(result.stderr, new RegExp(`^tartan: ${code}: [^\\n]+\\n$`));
}

/** Sends bytes, and waits for the connection's end, which must come. */
async function pester(port: number, bytes: Buffer): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  socket.on('data', () => {});
  await once(socket, 'connect').catch(() => {});
  const closed = new Promise<void>((resolve) => { socket.once('close', () => { resolve(); }); });
  socket.end(bytes);
  await closed;
}

t.test('beyond loopback nothing listens without a secret; with one, who does not know it is told so', async (t) => {
  const dir = join(t.testdir(), 'state');
  t.teardown(() => tartan(['down', '--wipe', '--dir', dir]));
  isOneLine(t, await tartan(['up', '--dir', dir, '--host', '0.0.0.0', '--size', '64MiB']), 'ERR_SECRET_REQUIRED');
  isOneLine(t, await tartan(['status', '--dir', dir]), 'ERR_NOT_RUNNING');

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
});

t.test('garbage on every port ends in a closed connection, and files are stored and read as before', async (t) => {
  const dir = join(t.testdir(), 'state');
  t.teardown(() => tartan(['down', '--wipe', '--dir', dir]));
  t.equal((await tartan(['up', '--dir', dir, '--size', '64MiB'])).status, 0);
  const { processes } = JSON.parse((await tartan(['status', '--dir', dir, '--json'])).stdout) as { processes: { id: string; port: number; controlPort: number; metricsPort: number }[] };
  const ports = processes.flatMap(({ id, port, controlPort, metricsPort }) => [[`${id} data`, port], [`${id} control`, controlPort], [`${id} metrics`, metricsPort]] as const).filter(([, port]) => port > 0);
  t.ok(ports.length >= 9, ports.map(([name]) => name).join(', '));
  const garbage: [string, Buffer][] = [
    ['random bytes', randomBytes(5000)], ['zeros', Buffer.alloc(5000)], ['a huge length', Buffer.alloc(64, 0xff)],
    ['a request of another protocol', Buffer.from('GET / HTTP/1.0\r\nHost: x\r\n\r\n')], ['nothing', Buffer.alloc(0)],
  ];
  for (const [name, port] of ports) {
    await Promise.all(garbage.map(([, bytes]) => pester(port, bytes)));
    t.pass(`${name}: ${garbage.length} connections are closed`);
  }
  t.equal((await tartan(['put', MAIN, 'main', '--dir', dir])).status, 0);
  t.equal((await tartan(['get', 'main', '-', '--dir', dir])).stdout, readFileSync(MAIN, 'latin1'));
  const { map } = JSON.parse((await tartan(['status', '--dir', dir, '--json'])).stdout) as { map: { nodes: { state: string }[]; switches: { state: string }[] } };
  t.same([...map.nodes, ...map.switches].map(({ state }) => state), ['up', 'up', 'up', 'programmable']);
});
