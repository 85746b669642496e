/**
 * `tartan testbed --device verbs` as a person runs it: up, a file stored and read back, Ctrl-C, and nothing is left.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { fresh } from '../stories/running-cluster.js';

const MAIN = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
const CARD = '/sys/class/net/tartan0',
  DEVICE = '/sys/class/infiniband/tartan_rxe0';

function tartan(...args: string[]): string {
  const done = spawnSync(process.execPath, [MAIN, ...args], { encoding: 'utf8', timeout: 120_000 });
  if (done.status !== 0) throw new Error(`tartan ${args.join(' ')}: ${done.status} ${done.stderr}`);
  return done.stdout;
}

export function run(t: Test): void {
  t.test('a cluster over soft-RoCE by one command: a file goes in and comes back, Ctrl-C leaves nothing', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'tartan-verbs-testbed-'));
    t.teardown(() => {
      rmSync(folder, { recursive: true });
    });
    const testbed = spawn(
      process.execPath,
      [MAIN, 'testbed', '--device', 'verbs', '--durability', 'volatile', '--json'],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    t.teardown(() => {
      testbed.kill('SIGKILL');
    });
    let said = '';
    testbed.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const ended = once(testbed, 'exit');
    await Promise.race([
      ended,
      new Promise<void>((resolve) => {
        testbed.stdout.on('data', () => {
          if (said.includes('\n')) resolve();
        });
      }),
    ]);
    const { dir, device, secretFile, processes } = JSON.parse(said) as {
      dir: string;
      device: string;
      secretFile: string;
      processes: { id: string; host: string }[];
    };
    t.equal(device, 'verbs:tartan_rxe0');
    t.same(processes.map(({ id }) => id).sort(), ['n1', 'n2', 'n3', 's1']);
    t.equal(new Set(processes.map(({ host }) => host)).size, 4, 'each has an address');
    const file = join(folder, 'file'),
      copy = join(folder, 'copy');
    writeFileSync(file, fresh(1_000_003));
    const options = ['--dir', dir, '--secret-file', secretFile];
    t.match(JSON.parse(tartan(...options, 'put', '--json', file, 'f')), {
      name: 'f',
      bytes: 1_000_003,
      code: 'xor(2+1)',
    });
    tartan(...options, 'get', 'f', copy);
    t.ok(readFileSync(copy).equals(readFileSync(file)), 'the file reads back');
    testbed.kill('SIGINT');
    t.same(await ended, [0, null]);
    t.notOk(existsSync(CARD) || existsSync(DEVICE), 'card and device are gone');
    t.notOk(existsSync(secretFile), 'the secret too');
  });

  t.test('a card that is not there is refused before anything is made', async (t) => {
    const done = spawnSync(process.execPath, [MAIN, 'testbed', '--device', 'verbs', '--netdev', 'nic9'], {
      encoding: 'utf8',
    });
    t.match(done.stderr, /^tartan: ERR_TOPOLOGY: Cannot use the network card 'nic9': there is none of that name$/m);
    t.equal(done.status, 1);
    t.notOk(existsSync(DEVICE));
  });
}
