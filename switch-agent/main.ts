/** The switch agent as a process: `node dist/switch-agent/main.js --cluster DIR --id s1 …`; one JSON line when ready. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { openDevice } from 'tartan-rdma';
import { pino } from 'pino';
import { readIdentity } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { Hub } from '../pipeline/hub.js';
import { realClock } from '../wire/clock.js';
import { serveControl } from '../wire/control.js';
import { TartanError, codeOf } from '../wire/errors.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import { isLoopback } from '../wire/loopback.js';
import { serveMetrics, switchCounters } from './metrics.js';
import { PROGRAM, SwitchCore } from './switch-core.js';

const USAGE = 'usage: switch-agent --cluster DIR|etcd://HOST:PORT/PREFIX --id ID [--host 127.0.0.1] [--port 0] [--control-port 0] [--metrics-port 0] [--ring-memory BYTES] [--transport auto|tcp|shm] [--device soft|verbs|verbs:NAME|auto] [--deadline-ms 1000] [--secret-file FILE]';

interface Settings {
  cluster: string; id: string; host: string; port: number; controlPort: number; metricsPort: number; ringMemoryBytes: number;
  transport: 'auto' | 'tcp' | 'shm'; device: string; deadlineMs: number; secret: string | undefined;
}

function settingsFrom(args: string[]): Settings {
  const { values } = parseArgs({ args, options: {
    cluster: { type: 'string' }, id: { type: 'string' }, host: { type: 'string', default: '127.0.0.1' }, port: { type: 'string', default: '0' },
    'control-port': { type: 'string', default: '0' }, 'metrics-port': { type: 'string', default: '0' }, 'ring-memory': { type: 'string', default: String(256 << 20) },
    transport: { type: 'string', default: 'auto' }, device: { type: 'string', default: 'soft' }, 'deadline-ms': { type: 'string', default: '1000' }, 'secret-file': { type: 'string' },
  } });
  const number = (name: 'port' | 'control-port' | 'metrics-port' | 'ring-memory' | 'deadline-ms'): number => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < 0) throw new TypeError(`--${name} is '${values[name]}', expected a whole number`);
    return value;
  };
  const { cluster, id, host, transport } = values;
  if (cluster === undefined || id === undefined) throw new TypeError('--cluster and --id are required');
  if (transport !== 'auto' && transport !== 'tcp' && transport !== 'shm') throw new TypeError(`--transport is '${transport}', expected auto, tcp or shm`);
  const secret = values['secret-file'] === undefined ? process.env['TARTAN_SECRET'] : readFileSync(values['secret-file'], 'utf8').trim();
  return {
    cluster, id, host, transport, device: values.device, secret: secret === '' ? undefined : secret, port: number('port'), controlPort: number('control-port'),
    metricsPort: number('metrics-port'), ringMemoryBytes: number('ring-memory'), deadlineMs: number('deadline-ms'),
  };
}

async function run(settings: Settings): Promise<void> {
  const { cluster, id, host, secret, deadlineMs } = settings;
  const log = pino({ name: `switch-${id}` }, process.stderr);
  if (secret === undefined && !isLoopback(host)) throw new TartanError('ERR_SECRET_REQUIRED', `Cannot listen on ${host}: beyond loopback a cluster secret is required (TARTAN_SECRET or --secret-file)`);
  const store = await openClusterStore(cluster);
  const device = openDevice(settings.device, { name: id, host, log: (message) => { log.info(message); } });
  const identity = await readIdentity(store);
  // The control port must be known before the switch registers itself; until then it answers that it is down.
  let core: SwitchCore | undefined;
  const status = (): SwitchStatus => ({
    id, state: core?.state ?? 'down', program: core?.state === 'programmable' ? PROGRAM.name : '', version: PROGRAM.version, mapEpoch: core?.map?.epoch ?? 0,
    ringMemoryUsed: core?.counters().ringMemoryUsed ?? 0, ringMemoryLimit: settings.ringMemoryBytes, counters: core === undefined ? {} : switchCounters(core, device),
  });
  const control = await serveControl({ host, port: settings.controlPort, secret, services: { switch: {
    load: async (program) => { if (program === 'forward') await core?.unload(); else await core?.load(program); return status(); },
    unload: async () => { await core?.unload(); return status(); },
    status,
  } } });
  core = new SwitchCore({
    context: { device, hub: new Hub(device), clock: realClock, secret, clusterId: identity.clusterId }, store, id, host, port: settings.port,
    controlPort: control.port, ringMemoryBytes: settings.ringMemoryBytes, transport: settings.transport, heartbeatMs: deadlineMs / 10, deadlineMs,
    log: (message) => { log.info(message); },
  });
  await core.start();
  const metrics = await serveMetrics(core, device, isLoopback(host) ? host : '127.0.0.1', settings.metricsPort);
  let stopping = false;
  const stop = (): void => {
    if (stopping) return;
    stopping = true;
    void (async () => {
      await core.stop();
      await metrics.close();
      await control.close();
      await device.close();
      await store.close();
      process.exit(0);
    })();
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  process.stdout.write(`${JSON.stringify({ ready: true, port: core.port, controlPort: control.port, metricsPort: metrics.port })}\n`);
}

try {
  await run(settingsFrom(process.argv.slice(2)));
} catch (error) {
  const isUsage = error instanceof TypeError;
  const message = error instanceof Error ? error.message.split('\n')[0]! : String(error);
  process.stderr.write(isUsage ? `tartan: ${message}\n${USAGE}\n` : `tartan: ${codeOf(error) ?? 'ERR_STORE'}: ${message}\n`);
  process.exit(isUsage ? 2 : 1);
}
