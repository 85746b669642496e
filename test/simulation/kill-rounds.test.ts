/**
 * Real processes: rounds of SIGKILL at random moments of a random process (a node, the switch, the writer) under load,
 * each verified by reading everything back. 4 rounds; TARTAN_LONG=1: 200. The seed is printed.
 */
import t from 'tap';
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { setTimeout as pause } from 'node:timers/promises';
import { createCluster } from '../../cluster/membership.js';
import { openSqliteStore } from '../../cluster/sqlite-store.js';
import { connect } from '../../writer/index.js';
import { bytesAt } from './place-bytes.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const ROUNDS = LONG ? 200 : 4;
/** A new file now and then, so that reading everything back stays short. */
const ROUNDS_PER_FILE = LONG ? 5 : 2;
const CODES = ['xor(2+1)', 'rs(2,2)', 'copies(1,2)'];
const NODES = ['n1', 'n2', 'n3', 'n4'];
const seed = Number(process.env['TARTAN_SEED'] ?? Date.now() % 1_000_000);
const root = fileURLToPath(new URL('../../', import.meta.url));

let state = seed >>> 0;
function random(below: number): number {
  state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
  return Math.floor((((state ^ (state >>> 13)) >>> 0) / 0x1_0000_0000) * below);
}

const dir = mkdtempSync(join(tmpdir(), 'tartan-kill-rounds-'));
const cluster = join(dir, 'cluster');
const processes = new Map<string, ChildProcess>();

/** Starts a process; resolves with its output, line by line, when the first line has come. */
async function start(id: string, args: readonly string[], onLine: (line: string) => void): Promise<void> {
  const { NODE_OPTIONS: _, ...env } = process.env;
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'], env, cwd: root });
  processes.set(id, child);
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-2000);
  });
  const lines = createInterface(child.stdout);
  await new Promise<void>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => {
      reject(new Error(`${id} ended with ${code ?? signal}: ${errors}`));
    });
    lines.on('line', (line) => {
      resolve();
      onLine(line);
    });
  });
}

async function kill(id: string): Promise<void> {
  const child = processes.get(id);
  if (child === undefined) return;
  processes.delete(id);
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  child.kill('SIGKILL');
  await gone;
}

function startNode(id: string): Promise<void> {
  mkdirSync(join(dir, id), { recursive: true });
  return start(
    id,
    [
      'dist/storage-node/main.js',
      '--cluster',
      cluster,
      '--id',
      id,
      '--store',
      join(dir, id),
      '--size',
      String(2 ** 31),
    ],
    () => {},
  );
}

function startSwitch(): Promise<void> {
  return start('s1', ['dist/switch-agent/main.js', '--cluster', cluster, '--id', 's1'], () => {});
}

void t.test(
  `${ROUNDS} rounds of SIGKILL at random moments, everything acknowledged reads back after each (TARTAN_SEED=${seed})`,
  async (t) => {
    t.teardown(async () => {
      for (const id of [...processes.keys()]) await kill(id);
      rmSync(dir, { recursive: true, force: true });
    });
    const store = await openSqliteStore(cluster, { create: true });
    await createCluster(store);
    await store.close();
    for (const id of NODES) await startNode(id);
    await startSwitch();
    const client = await connect({ cluster, name: 'reader', ringMemoryBytes: 32 << 20 });
    t.teardown(() => client.close());

    let acknowledged = 0,
      kept = 0,
      killed = { node: 0, switch: 0, writer: 0 };
    const hear = (line: string): void => {
      const [what, count] = line.split(' ');
      if (what === 'kept') kept = Number(count);
      else if (what === 'acknowledged') acknowledged = Number(count);
    };
    for (let round = 0; round < ROUNDS; round++) {
      const name = `file ${Math.floor(round / ROUNDS_PER_FILE)}`,
        code = CODES[Math.floor(round / ROUNDS_PER_FILE) % CODES.length]!;
      if (round % ROUNDS_PER_FILE === 0) acknowledged = 0;
      const promised = acknowledged;
      await start('writer', ['--import', 'tsx', 'test/simulation/kill-writer.ts', cluster, name, code], hear);
      t.ok(kept >= promised, `round ${round}: ${kept} bytes kept of ${promised} acknowledged in '${name}' (${code})`);
      acknowledged = kept;
      await pause(random(400));
      const victim = [...NODES, 's1', 'writer', 'writer'][random(NODES.length + 3)]!;
      await kill(victim);
      killed = {
        ...killed,
        [victim === 'writer' ? 'writer' : victim === 's1' ? 'switch' : 'node']:
          killed[victim === 'writer' ? 'writer' : victim === 's1' ? 'switch' : 'node'] + 1,
      };
      if (victim !== 'writer') await pause(random(600));
      await kill('writer');
      await pause(20); // the last lines it said
      if (victim === 's1') await startSwitch();
      if (NODES.includes(victim)) await startNode(victim);
      const reader = await client.open(name);
      const bytes = await reader.read(0, reader.length);
      await reader.close();
      t.ok(
        bytes.equals(bytesAt(0, bytes.length)),
        `round ${round}: ${victim} was killed, ${bytes.length} bytes read back`,
      );
    }
    // A last owner settles the last file, and everything promised is there.
    const writer = await client.append(`file ${Math.floor((ROUNDS - 1) / ROUNDS_PER_FILE)}`);
    t.ok(writer.progress.acknowledgedBytes >= acknowledged);
    await new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('finish', resolve);
      writer.end();
    });
    for (let file = 0; file * ROUNDS_PER_FILE < ROUNDS; file++) {
      const reader = await client.open(`file ${file}`);
      const bytes = await reader.read(0, reader.length);
      t.ok(bytes.equals(bytesAt(0, bytes.length)), `'file ${file}' at the end: ${bytes.length} bytes`);
      await reader.close();
    }
    t.comment(`killed ${killed.node} nodes, ${killed.switch} switches, ${killed.writer} writers`);
  },
);
