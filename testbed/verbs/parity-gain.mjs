/**
 * What parity in the switch gains over verbs where the writer's link is the limit: writer, switch and three nodes on
 * five bridged hosts, the writer's port shaped by tbf. Run inside User-Mode Linux: `node parity-gain.mjs [MBIT…]`.
 *
 * In turns of one run: the parity computed by the switch (each byte leaves once), and by the writer (1.5 times). The
 * ceiling for 2+1 is 1.5.
 */
import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDevice } from 'tartan-rdma';
import { startChild, stopProcess } from '../../dist/cli/child-process.js';
import { createStore } from '../../dist/cli/cluster-processes.js';
import { StateDirectory } from '../../dist/cli/state-directory.js';
import { connect } from '../../dist/writer/index.js';

const SECRET = 'soft-roce';
const ROUNDS = 3;
const rates = process.argv.length > 2 ? process.argv.slice(2).map(Number) : [50, 100, 200];
const hosts = { s1: 2, n1: 3, n2: 4, n3: 5 };
const say = (line) => {
  process.stdout.write(`${line}\n`);
};
const tc = (...args) => spawnSync('tc', args, { stdio: 'inherit' });

const state = new StateDirectory(mkdtempSync(join(tmpdir(), 'parity-gain-')));
await createStore(state);
const processes = [];
async function start(id) {
  const host = `10.79.0.${hosts[id]}`;
  if (id !== 's1') mkdirSync(state.node(id), { recursive: true });
  const own =
    id === 's1'
      ? ['--deadline-ms', '5000']
      : ['--store', state.node(id), '--size', String(512 << 20), '--durability', 'discard'];
  processes.push(
    await startChild(
      {
        id,
        role: id === 's1' ? 'switch' : 'node',
        host,
        logs: state.logs,
        dependent: true,
        readyMs: 120_000,
        env: { TARTAN_SECRET: SECRET },
        args: [
          '--cluster',
          state.cluster,
          '--id',
          id,
          '--host',
          host,
          '--ring-memory',
          String(64 << 20),
          '--device',
          `verbs:rxe${hosts[id]}`,
          ...own,
        ],
      },
      () => {},
    ),
  );
}
for (const id of ['n1', 'n2', 'n3', 's1']) await start(id);

let number = 0;
/** @returns MB/s of user data, from the first byte to the last acknowledgement */
async function write(parity, bytes) {
  const device = openDevice('verbs:rxe1', { name: 'writer' });
  const client = await connect({
    cluster: state.cluster,
    device,
    secret: SECRET,
    parity,
    deadlineMs: 5000,
    holdMs: 0,
    ringMemoryBytes: 32 << 20,
  });
  const data = randomFillSync(Buffer.alloc(bytes));
  const writer = await client.create(`file ${number++}`, { code: 'xor(2+1)', unitBytes: 65536 });
  const begin = performance.now();
  await new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end(data);
  });
  const seconds = (performance.now() - begin) / 1000;
  const mode = writer.parityMode;
  await client.close();
  await device.close();
  if (mode !== (parity === 'host' ? 'host' : 'switch')) throw new Error(`parity was '${mode}', expected '${parity}'`);
  return bytes / seconds / 1e6;
}

const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
say(
  'parity in the switch beside parity at the writer, xor(2+1), 64 KiB units, verbs on soft-RoCE, median ' +
    `of ${ROUNDS} rounds`,
);
say('   link Mbit/s   switch MB/s   writer MB/s   gain (range)');
for (const rate of rates) {
  tc('qdisc', 'replace', 'dev', 'h1', 'root', 'tbf', 'rate', `${rate}mbit`, 'burst', '64k', 'latency', '400ms');
  const bytes = ((rate * 1e6) / 8) * 1.5;
  const rounds = [];
  for (let round = 0; round < ROUNDS; round++)
    rounds.push({ inSwitch: await write('auto', bytes), atWriter: await write('host', bytes) });
  const gains = rounds.map(({ inSwitch, atWriter }) => inSwitch / atWriter);
  say(
    `${String(rate).padStart(14)} ${median(rounds.map(({ inSwitch }) => inSwitch))
      .toFixed(1)
      .padStart(13)} ${median(rounds.map(({ atWriter }) => atWriter))
      .toFixed(1)
      .padStart(13)}   ${median(gains).toFixed(2)} (${Math.min(...gains).toFixed(2)}-${Math.max(...gains).toFixed(2)})`,
  );
}
for (const { identity } of processes.reverse()) await stopProcess(identity, 0);
process.exit(0);
