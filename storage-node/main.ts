/**
 * A storage node as a process: `node dist/storage-node/main.js --cluster DIR --id n1 --store PATH …`; one JSON line
 * when ready.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { codeOf } from '../wire/errors.js';
import { detach, endOnBugs } from '../wire/front-door.js';
import { logOutput } from '../wire/log-output.js';
import { runStorageNode, type StorageNodeSettings } from './run-node.js';

const USAGE =
  'usage: storage-node --cluster DIR|etcd://HOST:PORT/PREFIX --id ID --store PATH [--size BYTES] [--host ' +
  '127.0.0.1] [--port 0] [--packet-port PORT] [--control-port 0] [--durability sync|volatile|discard] ' +
  '[--ring-memory BYTES] [--transport auto|tcp|shm] [--device soft|verbs|verbs:NAME|auto] [--secret-file FILE]';

function settingsFrom(args: string[]): Omit<StorageNodeSettings, 'log' | 'onDisplaced'> {
  const { values } = parseArgs({
    args,
    options: {
      cluster: { type: 'string' },
      id: { type: 'string' },
      store: { type: 'string' },
      size: { type: 'string', default: String(4 * 2 ** 30) },
      host: { type: 'string', default: '127.0.0.1' },
      port: { type: 'string', default: '0' },
      'packet-port': { type: 'string' },
      'control-port': { type: 'string', default: '0' },
      durability: { type: 'string', default: 'sync' },
      'ring-memory': { type: 'string', default: String(256 << 20) },
      transport: { type: 'string', default: 'auto' },
      device: { type: 'string', default: 'soft' },
      'secret-file': { type: 'string' },
    },
  });
  const number = (name: 'size' | 'port' | 'packet-port' | 'control-port' | 'ring-memory'): number => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < 0)
      throw new TypeError(`--${name} is '${values[name]}', expected a whole number`);
    return value;
  };
  const { cluster, id, store, host, transport } = values;
  if (cluster === undefined || id === undefined || store === undefined)
    throw new TypeError('--cluster, --id and --store are required');
  // Who connects chooses the transport; the option is taken so that all processes of a cluster can be given the same
  // ones.
  if (transport !== 'auto' && transport !== 'tcp' && transport !== 'shm')
    throw new TypeError(`--transport is '${transport}', expected auto, tcp or shm`);
  const durability = values.durability === 'async' ? 'volatile' : values.durability;
  if (durability !== 'sync' && durability !== 'volatile' && durability !== 'discard')
    throw new TypeError(`--durability is '${durability}', expected sync, volatile or discard`);
  const secret =
    values['secret-file'] === undefined
      ? process.env['TARTAN_SECRET']
      : readFileSync(values['secret-file'], 'utf8').trim();
  return {
    cluster,
    id,
    path: store,
    host,
    durability,
    device: values.device,
    secret: secret === '' ? undefined : secret,
    sizeBytes: number('size'),
    port: number('port'),
    ...(values['packet-port'] !== undefined && { packetPort: number('packet-port') }),
    controlPort: number('control-port'),
    ringMemoryBytes: number('ring-memory'),
  };
}

async function main(): Promise<void> {
  const settings = settingsFrom(process.argv.slice(2));
  const logger = pino({ name: `node-${settings.id}` }, logOutput());
  endOnBugs((message) => {
    logger.fatal(message);
  });
  const running = await runStorageNode({
    ...settings,
    log: (message) => {
      logger.info(message);
    },
    onDisplaced: () => {
      process.exit(1);
    },
  });
  let stopping = false;
  const stop = (): void => {
    if (stopping) return;
    stopping = true;
    detach(
      running.stop().then(() => {
        process.exit(0);
      }),
    );
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  process.stdout.write(`${JSON.stringify({ ready: true, port: running.port, controlPort: running.controlPort })}\n`);
}

try {
  await main();
} catch (error) {
  const isUsage = error instanceof TypeError;
  const message = error instanceof Error ? error.message.split('\n')[0]! : String(error);
  process.stderr.write(
    isUsage ? `tartan: ${message}\n${USAGE}\n` : `tartan: ${codeOf(error) ?? 'ERR_STORE'}: ${message}\n`,
  );
  process.exit(isUsage ? 2 : 1);
}
