/**
 * The repairer as a process: `node dist/cli/repairer/main.js --cluster DIR --id r1 …`; one JSON line when ready. It
 * listens nowhere.
 *
 * Here, not with the nodes: it uses the writer library, which they don't know.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { codeOf } from '../../wire/errors.js';
import { endOnBugs } from '../../wire/front-door.js';
import { logOutput } from '../../wire/log-output.js';
import { connect } from '../../writer/index.js';

const USAGE =
  'usage: repairer --cluster DIR|etcd://HOST:PORT/PREFIX --id ID [--down-out SECONDS] [--settle SECONDS] ' +
  '[--scrub-interval SECONDS] [--rate BYTES] [--ring-memory BYTES] [--transport auto|tcp|shm] [--device ' +
  'soft|verbs|verbs:NAME|auto] [--secret-file FILE]';

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      cluster: { type: 'string' },
      id: { type: 'string' },
      host: { type: 'string' },
      'down-out': { type: 'string' },
      settle: { type: 'string' },
      'scrub-interval': { type: 'string' },
      rate: { type: 'string' },
      'ring-memory': { type: 'string', default: String(256 << 20) },
      transport: { type: 'string', default: 'auto' },
      device: { type: 'string', default: 'soft' },
      'secret-file': { type: 'string' },
    },
  });
  const { cluster, id, transport, device } = values;
  if (cluster === undefined || id === undefined) throw new TypeError('--cluster and --id are required');
  if (transport !== 'auto' && transport !== 'tcp' && transport !== 'shm')
    throw new TypeError(`--transport is '${transport}', expected auto, tcp or shm`);
  const number = (name: 'down-out' | 'settle' | 'scrub-interval' | 'rate' | 'ring-memory'): number | undefined => {
    if (values[name] === undefined) return undefined;
    const value = Number(values[name]);
    if (!Number.isFinite(value) || value < 0) throw new TypeError(`--${name} is '${values[name]}', expected a number`);
    return value;
  };
  const ms = (name: 'down-out' | 'settle' | 'scrub-interval'): number | undefined => {
    const seconds = number(name);
    return seconds === undefined ? undefined : seconds * 1000;
  };
  const secret =
    values['secret-file'] === undefined
      ? process.env['TARTAN_SECRET']
      : readFileSync(values['secret-file'], 'utf8').trim();
  const logger = pino({ name: id }, logOutput());
  endOnBugs((message) => {
    logger.fatal(message);
  });
  const stopper = new AbortController();
  const [downOutMs, settleMs, scrubMs, bytesPerSecond] = [
    ms('down-out'),
    ms('settle'),
    ms('scrub-interval'),
    number('rate'),
  ];
  const client = await connect({
    cluster,
    transport,
    device,
    name: id,
    ringMemoryBytes: number('ring-memory')!,
    ...(secret !== undefined && secret !== '' && { secret }),
  });
  const working = client.repairer({
    signal: stopper.signal,
    log: (message) => {
      logger.info(message);
    },
    ...(downOutMs !== undefined && { downOutMs }),
    ...(settleMs !== undefined && { settleMs }),
    ...(scrubMs !== undefined && { scrubMs }),
    ...(bytesPerSecond !== undefined && { bytesPerSecond }),
  });
  const stop = (): void => {
    stopper.abort();
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
  await working;
  await client.close();
  process.exit(0);
}

try {
  await main();
} catch (error) {
  const isUsage = error instanceof TypeError;
  const message = error instanceof Error ? error.message.split('\n')[0]! : String(error);
  process.stderr.write(
    isUsage ? `tartan: ${message}\n${USAGE}\n` : `tartan: ${codeOf(error) ?? 'ERR_INTERNAL'}: ${message}\n`,
  );
  process.exit(isUsage ? 2 : 1);
}
