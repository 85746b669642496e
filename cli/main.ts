#!/usr/bin/env node
/**
 * The command `tartan`. Exit status: 0 done · 1 an operating error, told in one line `tartan: CODE: message` · 2 wrong
 * usage.
 *
 * Commands load what they need when they run: `tartan --help` needs no addon.
 */
import { createRequire } from 'node:module';
import { Command, CommanderError, Option } from 'commander';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { endBy, Interruption } from './interruption.js';
import { systemReason } from './local-files.js';
import { parseBytes, parseCount, printable } from './quantities.js';
import { addTestbedCommands } from './testbed-program.js';
import { readSecret } from './secret.js';
import { StateDirectory } from './state-directory.js';

interface Options {
  dir?: string;
  clusterStore?: string;
  secretFile?: string;
  json?: boolean;
  nodes: string;
  host: string;
  basePort: string;
  durability: string;
  transport?: 'auto' | 'tcp' | 'shm';
  device?: string;
  ringMemory?: string;
  size: string;
  wipe?: boolean;
  sparse?: boolean;
  code: string;
  unit: string;
  force?: boolean;
  append?: boolean;
  parity?: 'auto' | 'host';
  rate?: string;
}

const DEFAULT_RING_MEMORY = '256MiB';
/** A value that could never work is wrong usage, wherever it was noticed. */
const USAGE_CODES = new Set(['ERR_ARGUMENT', 'ERR_UNKNOWN_CODE', 'ERR_CODE_OUT_OF_BOUNDS', 'ERR_UNIT_BYTES']);

const program = new Command('tartan')
  .description('Erasure-coded storage whose parity is computed in the network')
  .version(ownVersion(), '--version', 'prints the version')
  .option(
    '--dir <dir>',
    'where the cluster of this machine is kept (default: $XDG_STATE_HOME/tartan, or ~/.local/state/tartan)',
  )
  .option(
    '--cluster-store <location>',
    'the cluster store, when it is not in that folder: etcd://HOST:PORT[,HOST:PORT …][/PREFIX]',
  )
  .option('--secret-file <file>', "holds the cluster's secret (default: TARTAN_SECRET in the environment)")
  .configureHelp({ showGlobalOptions: true })
  .configureOutput({
    // One line, as any other failure.
    outputError: (text, write) => {
      const said = text
        .replace(/^error: /, '')
        .trim()
        .replaceAll(/\s*\n\s*/g, ' ');
      write(`tartan: ERR_USAGE: ${printable(said)}; \`--help\` after a command tells what it takes\n`);
    },
  })
  .exitOverride();

const transport = () =>
  new Option('--transport <kind>', 'how processes reach each other').choices(['auto', 'tcp', 'shm']);
const device = () =>
  new Option(
    '--device <device>',
    'what moves the bytes: soft, verbs, verbs:NAME, or auto (verbs where there is an RDMA device)',
  );
const json = () => new Option('--json', 'prints JSON, for scripts');

command('up', 'starts a switch and storage nodes in the background')
  .option(
    '--nodes <n>',
    'how many storage nodes a new cluster has; of one that exists all are started, and new ones until it has so many',
    '3',
  )
  .option('--host <address>', 'where they listen', '127.0.0.1')
  .option('--base-port <port>', 'the first of consecutive ports; 0: any free ones', '0')
  .addOption(
    new Option(
      '--durability <kind>',
      'sync: acknowledged means on disk; volatile (or async): in memory; discard: nowhere, for measurements',
    )
      .choices(['sync', 'volatile', 'async', 'discard'])
      .default('sync'),
  )
  .addOption(transport().default('auto'))
  .addOption(device().default('soft'))
  .option('--ring-memory <bytes>', 'the most registered memory of each process', DEFAULT_RING_MEMORY)
  .option('--size <bytes>', "of each node's store; a new one takes it at once", '4GiB')
  .option('--sparse', 'new stores take their bytes as they are written: a disk may then be full before they are')
  .option('--no-repairer', 'starts no process that repairs by itself')
  .option('--down-out <seconds>', 'the repairer does not wait longer for a node that is gone', '600')
  .option('--settle <seconds>', 'it looks at a node that has been back for so long', '30')
  .option('--scrub-interval <seconds>', 'from one of its scrubs to the next; 0: none', String(7 * 86_400))
  .option('--repair-rate <bytes>', 'it restores, or reads back, at most so many bytes a second', '16MiB')
  .addOption(json())
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const more = self.opts<{
      repairer: boolean;
      downOut: string;
      settle: string;
      scrubInterval: string;
      repairRate: string;
    }>();
    const seconds = (text: string, what: string): number => parseCount(text, what, 0, 1_000_000_000);
    const { up } = await import('./cluster-commands.js');
    await up(
      StateDirectory.choose(options.dir, options.clusterStore),
      {
        nodes: parseCount(options.nodes, '--nodes', 1, 255),
        grows: self.getOptionValueSource('nodes') !== 'default',
        host: options.host,
        basePort: parseCount(options.basePort, '--base-port', 0, 65_000),
        durability: options.durability,
        transport: options.transport ?? 'auto',
        device: options.device ?? 'soft',
        ringMemoryBytes: parseBytes(options.ringMemory ?? DEFAULT_RING_MEMORY, '--ring-memory'),
        sizeBytes: parseBytes(options.size, '--size'),
        reserves: reserves(options),
        dependent: false,
        secret: readSecret(options.secretFile),
        ...(more.repairer && {
          repairer: {
            downOutSeconds: seconds(more.downOut, '--down-out'),
            settleSeconds: seconds(more.settle, '--settle'),
            scrubSeconds: seconds(more.scrubInterval, '--scrub-interval'),
            bytesPerSecond: parseBytes(more.repairRate, '--repair-rate'),
          },
        }),
      },
      options.json === true,
    );
  });

command('down', 'ends what `up` started; the data stays')
  .option('--wipe', 'removes the data too')
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { down } = await import('./cluster-commands.js');
    await down(StateDirectory.choose(options.dir, options.clusterStore), options.wipe === true);
  });

command('status', 'nodes, switch, map epoch and files')
  .addOption(json())
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { status } = await import('./cluster-commands.js');
    await status(
      StateDirectory.choose(options.dir, options.clusterStore),
      readSecret(options.secretFile),
      options.json === true,
    );
  });

fileCommand('put', 'stores a file (- is standard input)')
  .argument('<file>')
  .argument('[name]', "default: the file's own")
  .option('--code <code>', 'xor(k+1), rs(k,m), copies(1,m) or cauchy(k,m)', 'xor(2+1)')
  .option('--unit <bytes>', 'the length of a stripe unit, a power of two', '64KiB')
  .option('--force', 'replaces a file of that name, when the new one is complete')
  .option('--append', 'adds to the file of that name; of one that is new others see how it grows')
  .addOption(new Option('--parity <where>', 'host: never use the switch').choices(['auto', 'host']).default('auto'))
  .action(async (file: string, name: string | undefined, _: unknown, self: Command) => {
    const { files, options, client } = await forFiles(self);
    const { code, unit, force = false, append = false } = options;
    await files.put(file, name, { ...client, code, unit, force, append });
  });

fileCommand('get', 'reads a stored file (to - is standard output)')
  .argument('<name>')
  .argument('[file]', 'default: the name')
  .option('--force', 'replaces a file that exists')
  .action(async (name: string, file: string | undefined, _: unknown, self: Command) => {
    const { files, options, client } = await forFiles(self);
    await files.get(name, file, options.force === true, client);
  });

fileCommand('ls', 'lists the stored files').action(async (_: unknown, self: Command) => {
  const { files, client } = await forFiles(self);
  await files.list(client);
});

fileCommand('stat', 'all about one file')
  .argument('<name>')
  .action(async (name: string, _: unknown, self: Command) => {
    const { files, client } = await forFiles(self);
    await files.stat(name, client);
  });

fileCommand('rm', 'removes a file')
  .argument('<name>')
  .action(async (name: string, _: unknown, self: Command) => {
    const { files, client } = await forFiles(self);
    await files.remove(name, client);
  });

for (const [verb, text] of [
  ['rebuild', 'restores what nodes lack: after one came back, or got a new disk'],
  ['scrub', 'reads every unit back, and restores what is damaged or lacks'],
] as const) {
  const repairing = fileCommand(verb, text)
    .argument('[names...]', 'default: all files')
    .option('--rate <bytes>', 'at most so many bytes a second');
  if (verb === 'scrub') repairing.option('--continuous', 'all files again and again, until it is interrupted');
  repairing.action(async (names: string[], own: { continuous?: boolean }, self: Command) => {
    const { options, client } = await forFiles(self);
    const { repair, scrubContinuously } = await import('./repair-commands.js');
    if (own.continuous === true) {
      await scrubContinuously({
        ...client,
        names,
        verify: true,
        bytesPerSecond: options.rate === undefined ? undefined : parseBytes(options.rate, '--rate'),
      });
      return;
    }
    await repair({
      ...client,
      names,
      verify: verb === 'scrub',
      bytesPerSecond: options.rate === undefined ? undefined : parseBytes(options.rate, '--rate'),
    });
  });
}

const nodeCommand = command('node', 'the storage nodes');
const startsNode = (name: string, description: string) =>
  nodeCommand
    .command(name)
    .description(description)
    .addOption(json())
    .addOption(transport())
    .addOption(device())
    .option('--ring-memory <bytes>', 'the most registered memory of the node', DEFAULT_RING_MEMORY)
    .option('--size <bytes>', "of the node's store; it takes them at once", '4GiB')
    .option('--sparse', 'it takes its bytes as they are written')
    .addOption(
      new Option('--durability <kind>', 'sync, volatile or discard, as of `up`')
        .choices(['sync', 'volatile', 'async', 'discard'])
        .default('sync'),
    );
const nodeOptions = (options: Options) => ({
  durability: options.durability,
  transport: options.transport ?? 'auto',
  ringMemoryBytes: parseBytes(options.ringMemory ?? DEFAULT_RING_MEMORY, '--ring-memory'),
  sizeBytes: parseBytes(options.size, '--size'),
  reserves: reserves(options),
  secret: readSecret(options.secretFile),
});
nodeCommand
  .command('list')
  .description('which there are, in which state, and how many files need them')
  .addOption(json())
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { listNodes } = await import('./node-commands.js');
    await listNodes(StateDirectory.choose(options.dir, options.clusterStore), options.json === true);
  });
startsNode('add', 'starts one node more on this machine; files made from then on use it')
  .option('--spare', "files don't use it, until it takes the shares of a node that is lost or leaves")
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { addNode } = await import('./node-commands.js');
    await addNode(
      StateDirectory.choose(options.dir, options.clusterStore),
      { ...nodeOptions(options), spare: self.opts<{ spare?: boolean }>().spare === true },
      options.json === true,
    );
  });
nodeCommand
  .command('start')
  .description('starts a node of this machine that has ended, as `up` did')
  .argument('<id>')
  .addOption(json())
  .action(async (id: string, _: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { startNodeAgain } = await import('./node-commands.js');
    const state = StateDirectory.choose(options.dir, options.clusterStore);
    await startNodeAgain(state, id, readSecret(options.secretFile), options.json === true);
  });
startsNode('replace', 'gives a node of this machine a new, blank store, and restores what the old one held')
  .argument('<id>')
  .option('--rate <bytes>', 'restores at most so many bytes a second')
  .option('--discard', 'removes the old store, instead of setting it aside')
  .option('--no-rebuild', 'leaves restoring to `tartan rebuild`')
  .action(async (id: string, _: unknown, self: Command) => {
    const { options, client } = await forFiles(self);
    const more = self.opts<{ discard?: boolean; rebuild: boolean }>();
    const { replaceNode } = await import('./node-commands.js');
    await replaceNode(
      id,
      {
        ...nodeOptions(options),
        discard: more.discard === true,
        rebuild: more.rebuild,
        bytesPerSecond: options.rate === undefined ? undefined : parseBytes(options.rate, '--rate'),
      },
      client,
    );
  });
const drain = nodeCommand
  .command('drain')
  .description('moves what a node holds to other nodes: then it can be removed')
  .argument('<id>')
  .option('--to <id>', 'the node that takes it all (default: spares, then those that hold least)')
  .option('--rate <bytes>', 'moves at most so many bytes a second')
  .option('--cancel', 'the node is used again; what has moved stays where it is');
for (const option of [json(), transport(), device()]) drain.addOption(option);
drain
  .option('--ring-memory <bytes>', 'the most registered memory')
  .action(async (id: string, own: { to?: string; cancel?: boolean }, self: Command) => {
    const { options, client } = await forFiles(self);
    const { cancelDrain, drainNodeFor } = await import('./move-commands.js');
    if (own.cancel === true) await cancelDrain(id, client);
    else
      await drainNodeFor(
        id,
        { to: own.to, bytesPerSecond: options.rate === undefined ? undefined : parseBytes(options.rate, '--rate') },
        client,
      );
  });
const rebalance = nodeCommand
  .command('rebalance')
  .description('evens out what nodes hold: one that was added gets its share of the files that are there')
  .argument('[id]', 'moves shares to this node only')
  .option('--rate <bytes>', 'moves at most so many bytes a second');
for (const option of [json(), transport(), device()]) rebalance.addOption(option);
rebalance
  .option('--ring-memory <bytes>', 'the most registered memory')
  .action(async (id: string | undefined, _: unknown, self: Command) => {
    const { options, client } = await forFiles(self);
    const { rebalanceNodes } = await import('./move-commands.js');
    await rebalanceNodes(
      { to: id, bytesPerSecond: options.rate === undefined ? undefined : parseBytes(options.rate, '--rate') },
      client,
    );
  });
nodeCommand
  .command('remove')
  .description('takes a node that no file needs out of the cluster')
  .argument('<id>')
  .addOption(json())
  .action(async (id: string, _: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { removeNodeFor } = await import('./node-commands.js');
    await removeNodeFor(StateDirectory.choose(options.dir, options.clusterStore), id, options.json === true);
  });

const switchCommand = command('switch', 'gives the switch its program, takes it away, or starts it again');
for (const [verb, text] of [
  ['load', 'makes the switch compute parity'],
  ['unload', 'makes the switch forward packets only'],
] as const) {
  switchCommand
    .command(verb)
    .description(text)
    .addOption(json())
    .action(async (_: unknown, self: Command) => {
      const options = self.optsWithGlobals<Options>();
      const { switchProgram } = await import('./cluster-commands.js');
      await switchProgram(
        StateDirectory.choose(options.dir, options.clusterStore),
        verb,
        readSecret(options.secretFile),
        options.json === true,
      );
    });
}

switchCommand
  .command('start')
  .description('starts the switch of this machine when it has ended, as `up` did')
  .addOption(json())
  .action(async (_: unknown, self: Command) => {
    const options = self.optsWithGlobals<Options>();
    const { startSwitchAgain } = await import('./cluster-commands.js');
    const state = StateDirectory.choose(options.dir, options.clusterStore);
    await startSwitchAgain(state, readSecret(options.secretFile), options.json === true);
  });

command('rdma', 'RDMA devices')
  .command('devices')
  .description('lists the RDMA devices of this machine')
  .addOption(json())
  .action(async (_: unknown, self: Command) => {
    const { rdmaDevices } = await import('./rdma-devices.js');
    rdmaDevices(self.optsWithGlobals<Options>().json === true);
  });

addTestbedCommands(command, json);

command('demo', 'tells the whole story with a real file, in a directory of its own')
  .argument('[file]', 'default: the node binary')
  .addOption(
    new Option(
      '--switch <kind>',
      'bmv2: a P4 switch on a network of namespaces (root, Mininet, simple_switch_grpc on PATH)',
    )
      .choices(['soft', 'bmv2'])
      .default('soft'),
  )
  .action(async (file: string | undefined, options: { switch: 'soft' | 'bmv2' }) => {
    if (options.switch === 'bmv2') {
      const { demoWithBmv2 } = await import('./demo-bmv2.js');
      process.exitCode = await demoWithBmv2(file);
      return;
    }
    const { demo } = await import('./demo.js');
    process.exitCode = await demo(file);
  });

await main();

async function main(): Promise<void> {
  let outputError: unknown;
  process.stdout.on('error', (error) => {
    outputError ??= error;
  });
  // A terminal that is gone hears nothing; what it would have been told is no failure of its own.
  process.stderr.on('error', () => {});
  process.on('uncaughtException', (error) => {
    process.exit(report(error));
  });
  let status = 0,
    signal: NodeJS.Signals | undefined;
  try {
    await program.parseAsync();
    status = Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof Interruption) ({ signal } = error);
    status = report(error);
  }
  await written(process.stdout);
  if (status === 0 && outputError !== undefined) status = report(unwritten(outputError));
  await written(process.stderr);
  if (signal !== undefined) await endBy(signal);
  // A timer that a library left behind must not hold the shell.
  process.exit(status);
}

/** Says what went wrong, in one line. @returns the exit status */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  // `tartan get x - | head`: a reader that has seen enough needs no word; the status is that of SIGPIPE.
  if (codeOf(error) === 'EPIPE') return 141;
  process.stderr.write(`${oneLine(error)}\n`);
  // Anything unforeseen is a bug and shows where.
  if (!isOperating(error) && error instanceof Error)
    process.stderr.write(`${(error.stack ?? '').replace(/^[^\n]*\n(?=\s*at )/, '')}\n`);
  return USAGE_CODES.has(codeOf(error) ?? '') ? 2 : 1;
}

function unwritten(error: unknown): unknown {
  if (codeOf(error) === 'EPIPE' || !isOperating(error)) return error;
  return new TartanError(
    'ERR_LOCAL_FILE',
    `Cannot write to standard output: ${systemReason(error)}; the command itself has done its work`,
    { cause: error },
  );
}

/** Resolves when everything that was written to it is out, or can't be. */
function written(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write('', () => {
      resolve();
    });
  });
}

/** What the package.json above the built command says. */
function ownVersion(): string {
  return (createRequire(import.meta.url)('../../package.json') as { version: string }).version;
}

/** Whether a new store takes its bytes at once. */
function reserves({ durability, sparse }: Options): boolean {
  return durability !== 'discard' && sparse !== true;
}

function command(name: string, description: string): Command {
  return program.command(name).description(description);
}

function fileCommand(name: string, description: string): Command {
  return command(name, description)
    .addOption(json())
    .addOption(transport())
    .addOption(device())
    .option('--ring-memory <bytes>', 'the most registered memory');
}

async function forFiles(self: Command) {
  const options = self.optsWithGlobals<Options>();
  const ringMemoryBytes =
    options.ringMemory === undefined ? undefined : parseBytes(options.ringMemory, '--ring-memory');
  const client = {
    state: StateDirectory.choose(options.dir, options.clusterStore),
    json: options.json === true,
    transport: options.transport,
    device: options.device,
    ringMemoryBytes,
    parity: options.parity,
    secret: readSecret(options.secretFile),
  };
  return { files: await import('./file-commands.js'), options, client };
}

function oneLine(error: unknown): string {
  const message = printable((error instanceof Error ? error.message : String(error)).replace(/\s*\n\s*/g, ' '));
  return `tartan: ${codeOf(error) ?? 'ERR_INTERNAL'}: ${message}`;
}
