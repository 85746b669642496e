/**
 * A testbed whose switch is BMv2: its plan, and, for root with Mininet and simple_switch_grpc, the real one with the
 * demo on it.
 */
import t from 'tap';
import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parsePortMap } from '../../switch-agent/bmv2/port-map.js';
import { bmv2Plan } from '../../testbed/bmv2-plan.js';
import { requireBmv2 } from '../../testbed/bmv2-process.js';
import { requireMachine } from '../../testbed/requirements.js';
import { starTopology } from '../../testbed/topology.js';
import { randomBytes } from '../random-bytes.js';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');
const lacking = (() => {
  try {
    requireMachine();
    requireBmv2();
    return false;
  } catch (error) {
    return (error as Error).message;
  }
})();

t.test('every host has a port of the switch, and the agent knows all of them', (t) => {
  const plan = bmv2Plan(starTopology({ nodes: 3, writers: 2, rateMbit: 100 }));
  const ports = parsePortMap(plan.ports, 'the plan');
  t.equal(plan.network.links.length, 6);
  t.same(plan.interfaces, ['p1', 'p2', 'p3', 'p4', 'p5', 'p6']);
  for (const [
    index,
    {
      ends: [host, device],
    },
  ] of plan.network.links.entries()) {
    const known = ports.hosts.find((each) => `${each.host}/24` === host.address);
    t.match(
      { port: known?.port, mac: known?.mac, at: device.interface, on: device.host },
      { port: index + 1, mac: BigInt(`0x${host.mac!.replaceAll(':', '')}`), at: `p${index + 1}`, on: 's1' },
      host.host,
    );
    t.equal(plan.addresses.get(host.host), host.address!.replace('/24', ''));
  }
  t.same(
    plan.network.links.map((link) => link.rateMbit),
    [100, 100, 100, 100, 100, undefined],
    "the agent's own leg is not shaped",
  );
  t.same(
    [1, 3, 4, 5, 6, 12].map((nodes) => bmv2Plan(starTopology({ nodes, rateMbit: 1 })).artefact),
    ['parity-k2-9000', 'parity-k2-9000', 'parity-k4-9000', 'parity-k4-9000', 'parity-k8-9000', 'parity-k8-9000'],
  );
  t.throws(() => bmv2Plan(starTopology({ nodes: 3, switches: 2, rateMbit: 1 })), {
    code: 'ERR_TOPOLOGY',
    message: /expected one switch, and no bridge/,
  });
  t.throws(() => bmv2Plan(starTopology({ nodes: 3, bypass: true, rateMbit: 1 })), { code: 'ERR_TOPOLOGY' });
  t.end();
});

t.test(
  'the demo on BMv2: its program goes and comes, it dies, a node dies, and every byte comes back',
  { skip: lacking },
  async (t) => {
    const folder = t.testdir(),
      file = join(folder, 'bytes'),
      temporary = join(folder, 'tmp');
    mkdirSync(temporary);
    writeFileSync(file, randomBytes(12_000_001));
    const { NODE_OPTIONS: _, ...env } = process.env;
    const { status, stdout, stderr } = await new Promise<{ status: number; stdout: string; stderr: string }>(
      (resolve) => {
        execFile(
          process.execPath,
          [MAIN, 'demo', '--switch', 'bmv2', file],
          { env: { ...env, TMPDIR: temporary } },
          (error, out, err) => {
            resolve({ status: error ? Number(error.code ?? 255) : 0, stdout: out, stderr: err });
          },
        );
      },
    );
    t.equal(status, 0, `${stdout}\n${stderr}`);
    t.match(stdout, /parity in the writer \(switch s1 is forwarding\)/);
    t.match(stdout, /parity in the writer \(switch s1 is down\)/);
    t.match(stdout, /\nevery byte came back \(/);
    t.equal(stdout.match(/ equal$/gm)?.length, 12, 'six readings, told and in the table');
    t.same(readdirSync(temporary), []);
  },
);
