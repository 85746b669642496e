/** `tartan testbed`: a cluster on a shaped network that stands until it is interrupted. */
import type { Durability } from '../testbed/testbed.js';
import { Testbed } from '../testbed/testbed.js';
import { RDMA_DEVICE, VerbsTestbed } from '../testbed/verbs-testbed.js';
import { formatMbit, parseRate, starTopology } from '../testbed/topology.js';
import { codeOf } from '../wire/errors.js';
import { table } from './quantities.js';

export interface TestbedCommandOptions {
  readonly nodes: number;
  readonly writers: number;
  readonly switches: number;
  readonly rate: string;
  readonly code?: string | undefined;
  readonly durability: Durability;
  readonly switchKind: 'soft' | 'bmv2';
  readonly json: boolean;
}

/** Prints how to enter each host and returns when Ctrl-C or SIGTERM came and all is taken down. */
export async function testbed(options: TestbedCommandOptions): Promise<void> {
  const rateMbit = parseRate(options.rate);
  const topology = starTopology({
    nodes: options.nodes,
    writers: options.writers,
    switches: options.switches,
    rateMbit,
  });
  try {
    await Testbed.use(
      {
        topology,
        durability: options.durability,
        switchKind: options.switchKind,
        note: (line) => {
          process.stderr.write(`${line}\n`);
        },
        ...(options.code === undefined ? {} : { code: options.code }),
      },
      async (running) => {
        const hosts = topology.hosts.map(({ name, role }) => ({
          name,
          role,
          pid: running.network.pidOf(name),
          process: running.processes().find((each) => each.id === name)?.identity.pid ?? null,
          enter: running.network.enter(name).join(' '),
        }));
        if (options.json) process.stdout.write(`${JSON.stringify({ cluster: running.cluster, rateMbit, hosts })}\n`);
        else {
          process.stdout.write(
            table([
              ['HOST', 'ROLE', 'PROCESS', 'TO RUN SOMETHING THERE'],
              ...hosts.map((each) => [each.name, each.role, String(each.process ?? '-'), `${each.enter} COMMAND`]),
            ]) + '\n',
          );
          const writer = hosts.find((each) => each.role === 'writer');
          if (writer !== undefined)
            process.stdout.write(
              `to store a file: ${writer.enter} env TARTAN_SECRET=$(cat ${running.secretFile}) npx tartan ` +
                `--dir ${running.folder} put FILE --transport tcp\n`,
            );
          if (options.switchKind === 'bmv2')
            process.stdout.write('the switch is BMv2: it shows function, not the speed of a switch chip\n');
          process.stdout.write(
            `links of ${formatMbit(rateMbit)}; the cluster store is ${running.cluster}; Ctrl-C takes it down\n`,
          );
        }
        await interruption();
      },
    );
  } catch (error) {
    taken(error);
  }
}

/** The same over soft-RoCE. */
export async function verbsTestbed(options: {
  readonly nodes: number;
  readonly netdev: string | undefined;
  readonly durability: Durability;
  readonly json: boolean;
}): Promise<void> {
  try {
    await VerbsTestbed.use(
      {
        nodes: options.nodes,
        durability: options.durability,
        note: (line) => {
          process.stderr.write(`${line}\n`);
        },
        ...(options.netdev === undefined ? {} : { netdev: options.netdev }),
      },
      async (running) => {
        const processes = running
          .processes()
          .map(({ id, role, identity, host, port }) => ({ id, role, pid: identity.pid, host, port }));
        if (options.json)
          process.stdout.write(
            JSON.stringify({
              dir: running.state.path,
              device: `verbs:${RDMA_DEVICE}`,
              secretFile: running.secretFile,
              processes,
            }) + '\n',
          );
        else {
          process.stdout.write(
            table([
              ['ID', 'ROLE', 'PID', 'HOST', 'PORT'],
              ...processes.map((each) => [each.id, each.role, String(each.pid), each.host, String(each.port)]),
            ]) + '\n',
          );
          process.stdout.write(
            `to store a file: npx tartan --dir ${running.state.path} --secret-file ${running.secretFile} put ` +
              `FILE\nCtrl-C takes it down\n`,
          );
        }
        await interruption();
      },
    );
  } catch (error) {
    taken(error);
  }
}

/** Only an interruption ends it. */
async function interruption(): Promise<never> {
  const forever = setInterval(() => {}, 2 ** 30);
  return new Promise<never>(() => {}).finally(() => {
    clearInterval(forever);
  });
}

function taken(error: unknown): void {
  if (codeOf(error) !== 'ERR_INTERRUPTED') throw error;
  process.stdout.write('taken down\n');
}
