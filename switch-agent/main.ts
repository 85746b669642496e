/**
 * The switch agent as a process: `node dist/switch-agent/main.js --cluster DIR --id s1 …`; one JSON line when ready.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { openClusterStore } from '../cluster/open-store.js';
import { serveControl } from '../wire/control.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { detach, endOnBugs } from '../wire/front-door.js';
import { isLoopback } from '../wire/loopback.js';
import { logOutput } from '../wire/log-output.js';
import { packetTarget } from './bmv2/target.js';
import { serveMetrics } from './metrics.js';
import { softTarget } from './soft-target.js';

const USAGE = [
  'usage: switch-agent --cluster DIR|etcd://HOST:PORT/PREFIX --id ID [--host 127.0.0.1] [--port 0] ' +
    '[--control-port 0] [--metrics-port 0] [--ring-memory BYTES] [--transport auto|tcp|shm] [--device ' +
    'soft|verbs|verbs:NAME|auto] [--deadline-ms 1000] [--secret-file FILE]',
  '       switch-agent --target bmv2 --p4runtime HOST:PORT --ports FILE [--device-id 1] [--artefact ' +
    'parity-k4-9000] [--probe-from IPV4] --cluster … --id ID [--host] [--control-port] [--metrics-port] ' +
    '[--deadline-ms] [--secret-file]',
].join('\n');

interface Settings {
  target: 'soft' | 'bmv2';
  cluster: string;
  id: string;
  host: string;
  port: number;
  controlPort: number;
  metricsPort: number;
  ringMemoryBytes: number;
  transport: 'auto' | 'tcp' | 'shm';
  device: string;
  deadlineMs: number;
  secret: string | undefined;
  p4runtime: string;
  deviceId: number;
  artefact: string;
  ports: string;
  probeFrom: string | undefined;
}

function settingsFrom(args: string[]): Settings {
  const { values } = parseArgs({
    args,
    options: {
      target: { type: 'string', default: 'soft' },
      cluster: { type: 'string' },
      id: { type: 'string' },
      host: { type: 'string', default: '127.0.0.1' },
      port: { type: 'string', default: '0' },
      'control-port': { type: 'string', default: '0' },
      'metrics-port': { type: 'string', default: '0' },
      'ring-memory': { type: 'string', default: String(256 << 20) },
      transport: { type: 'string', default: 'auto' },
      device: { type: 'string', default: 'soft' },
      'deadline-ms': { type: 'string', default: '1000' },
      'secret-file': { type: 'string' },
      p4runtime: { type: 'string', default: '' },
      'device-id': { type: 'string', default: '1' },
      artefact: { type: 'string', default: 'parity-k4-9000' },
      ports: { type: 'string', default: '' },
      'probe-from': { type: 'string' },
    },
  });
  const number = (
    name: 'port' | 'control-port' | 'metrics-port' | 'ring-memory' | 'deadline-ms' | 'device-id',
  ): number => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < 0)
      throw new TypeError(`--${name} is '${values[name]}', expected a whole number`);
    return value;
  };
  const { cluster, id, host, transport, target } = values;
  if (cluster === undefined || id === undefined) throw new TypeError('--cluster and --id are required');
  if (target !== 'soft' && target !== 'bmv2') throw new TypeError(`--target is '${target}', expected soft or bmv2`);
  if (target === 'bmv2' && (values.p4runtime === '' || values.ports === ''))
    throw new TypeError('--target bmv2 needs --p4runtime and --ports');
  // P4Runtime reserves 0.
  if (number('device-id') === 0) throw new TypeError("--device-id is '0', expected 1 or more");
  if (transport !== 'auto' && transport !== 'tcp' && transport !== 'shm')
    throw new TypeError(`--transport is '${transport}', expected auto, tcp or shm`);
  const secret =
    values['secret-file'] === undefined
      ? process.env['TARTAN_SECRET']
      : readFileSync(values['secret-file'], 'utf8').trim();
  return {
    target,
    cluster,
    id,
    host,
    transport,
    device: values.device,
    secret: secret === '' ? undefined : secret,
    port: number('port'),
    controlPort: number('control-port'),
    metricsPort: number('metrics-port'),
    ringMemoryBytes: number('ring-memory'),
    deadlineMs: number('deadline-ms'),
    p4runtime: values.p4runtime,
    deviceId: number('device-id'),
    artefact: values.artefact,
    ports: values.ports,
    probeFrom: values['probe-from'],
  };
}

async function run(settings: Settings): Promise<void> {
  const { id, host, secret } = settings;
  const logger = pino({ name: `switch-${id}` }, logOutput());
  endOnBugs((message) => {
    logger.fatal(message);
  });
  if (secret === undefined && !isLoopback(host))
    throw new TartanError(
      'ERR_SECRET_REQUIRED',
      `Cannot listen on ${host}: beyond loopback a cluster secret is required (TARTAN_SECRET or --secret-file)`,
    );
  const store = await openClusterStore(settings.cluster);
  const options = {
    ...settings,
    store,
    onDisplaced: () => {
      // The entry in the map is the other's: nothing is said there.
      process.stderr.write(`tartan: ERR_IN_USE: Switch '${id}' ends: another process has taken its id\n`, () => {
        process.exit(1);
      });
    },
    log: (message: string) => {
      logger.info(message);
    },
  };
  const target = settings.target === 'soft' ? await softTarget(options) : await packetTarget(options);
  const { openGroups } = target;
  const control = await serveControl({
    host,
    port: settings.controlPort,
    secret,
    services: {
      switch: {
        load: async (program) => {
          await target.load(program);
          return target.status();
        },
        unload: async () => {
          await target.unload();
          return target.status();
        },
        status: () => target.status(),
        ...(openGroups !== undefined && { openGroups }),
      },
    },
  });
  const port = await target.start(control.port);
  const metrics = await serveMetrics(
    () => target.counters(),
    isLoopback(host) ? host : '127.0.0.1',
    settings.metricsPort,
    () => target.samples(),
  );
  let stopping = false;
  const stop = (): void => {
    if (stopping) return;
    stopping = true;
    detach(
      (async () => {
        await target.stop();
        await metrics.close();
        await control.close();
        await store.close();
        process.exit(0);
      })(),
    );
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  process.stdout.write(
    `${JSON.stringify({ ready: true, port, controlPort: control.port, metricsPort: metrics.port })}\n`,
  );
}

try {
  await run(settingsFrom(process.argv.slice(2)));
} catch (error) {
  const isUsage = error instanceof TypeError;
  const message = error instanceof Error ? error.message.split('\n')[0]! : String(error);
  process.stderr.write(
    isUsage ? `tartan: ${message}\n${USAGE}\n` : `tartan: ${codeOf(error) ?? 'ERR_STORE'}: ${message}\n`,
  );
  process.exit(isUsage ? 2 : 1);
}
