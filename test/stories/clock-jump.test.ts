/**
 * The wall clocks of nodes and writer jump by a day, ahead and back: leases stand, epochs stay, and who dies afterwards
 * is missed as ever.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { createCluster, presentNodes, readMap } from '../../cluster/membership.js';
import { openClusterStore } from '../../cluster/open-store.js';
import { connect } from '../../writer/index.js';
import { finish, pause, pour, readAll } from './running-cluster.js';
import { randomBytes } from '../random-bytes.js';

const NODE = fileURLToPath(new URL('../../dist/storage-node/main.js', import.meta.url));
const CLOCK = new URL('jumping-clock.mjs', import.meta.url).href;
/** Longer than a node's lease. */
const LEASE_MS = 5000;

t.test('clocks jump by a day', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'tartan-clock-')),
    location = join(dir, 'cluster'),
    nodes: ChildProcess[] = [];
  mkdirSync(location);
  const store = await openClusterStore(location, { create: true });
  await createCluster(store);
  const { NODE_OPTIONS: _, ...env } = process.env;
  t.teardown(async () => {
    await Promise.all(
      nodes
        .filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null)
        .map(
          (node) =>
            new Promise((resolve) => {
              node.once('exit', resolve);
              node.kill('SIGKILL');
            }),
        ),
    );
    await store.close();
    rmSync(dir, { recursive: true });
  });
  await Promise.all(
    ['n1', 'n2', 'n3'].map(
      (id) =>
        new Promise<void>((resolve, reject) => {
          const node = spawn(
            process.execPath,
            [
              '--import',
              CLOCK,
              NODE,
              '--cluster',
              location,
              '--id',
              id,
              '--store',
              join(dir, id),
              '--size',
              String(64 << 20),
              '--ring-memory',
              String(64 << 20),
            ],
            { env, stdio: ['ignore', 'pipe', 'ignore'] },
          );
          nodes.push(node);
          node.once('exit', (status) => {
            reject(new Error(`${id} ended with ${status}`));
          });
          node.stdout.once('data', () => {
            resolve();
          });
        }),
    ),
  );
  const { jump } = (await import(CLOCK)) as { jump(): void };
  const client = await connect({ cluster: location });
  const writer = await client.create('a'),
    data = randomBytes(1_500_000);
  await pour(writer, data.subarray(0, 500_000));
  await writer.flush();
  const { epoch } = await readMap(store);
  for (const [turn, to] of [1_000_000, data.length].entries()) {
    const before = Date.now();
    jump();
    for (const node of nodes) node.kill('SIGUSR2');
    t.ok(Math.abs(Date.now() - before) > 80_000_000, turn === 0 ? 'ahead' : 'and back');
    await pause(LEASE_MS + 1000);
    t.same([...(await presentNodes(store))].sort(), ['n1', 'n2', 'n3']);
    t.equal((await readMap(store)).epoch, epoch, 'nobody was taken for gone');
    await pour(writer, data.subarray(500_000 * (turn + 1), to));
    await writer.flush();
  }
  nodes[2]!.kill('SIGKILL');
  await finish(writer);
  t.ok((await readAll(client, 'a')).bytes.equals(data));
  let present = await presentNodes(store);
  for (let i = 0; i < 60 && present.has('n3'); i++) {
    await pause(250);
    present = await presentNodes(store);
  }
  t.same([...present].sort(), ['n1', 'n2'], 'its lease has run out by a clock that did not jump');
  await client.close();
});
