/** The yardstick of every throughput: what iperf3 gets over the same link, in the same run. */
import { spawn } from 'node:child_process';
import { TestbedError } from './errors.js';
import type { Network } from './network.js';
import { run } from './network.js';

const PORT = 5201;
const LISTEN_MS = 10_000;
/** It prints its heading just before it listens. */
const SETTLE_MS = 100;

/**
 * TCP payload from one host to another, as the receiver counts it.
 *
 * @param to  address of the receiving host
 * @returns bytes a second
 * @throws {TestbedError} ERR_TESTBED
 */
export async function iperf(
  network: Network,
  from: string,
  receiver: string,
  to: string,
  seconds: number,
): Promise<number> {
  const server = spawn(
    'setpriv',
    [
      '--pdeathsig',
      'KILL',
      ...network.enter(receiver),
      'iperf3',
      '--server',
      '--one-off',
      '--forceflush',
      '--port',
      String(PORT),
      '--bind',
      to,
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  );
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.once('exit', () => {
        reject(
          new TestbedError(
            'ERR_TESTBED',
            `Cannot measure ${from} to ${receiver}: iperf3 did not listen at ${to} port ${PORT}`,
          ),
        );
      });
      server.stdout.once('data', () => {
        setTimeout(resolve, SETTLE_MS);
      });
      setTimeout(() => {
        reject(
          new TestbedError(
            'ERR_TESTBED',
            `Cannot measure ${from} to ${receiver}: iperf3 said nothing for ${LISTEN_MS / 1000} s`,
          ),
        );
      }, LISTEN_MS).unref();
    });
    const out = await run(
      [
        ...network.enter(from),
        'iperf3',
        '--client',
        to,
        '--port',
        String(PORT),
        '--time',
        String(seconds),
        '--omit',
        '1',
        '--json',
      ],
      (seconds + 20) * 1000,
    );
    const rate = (JSON.parse(out) as { end?: { sum_received?: { bits_per_second?: number } } }).end?.sum_received
      ?.bits_per_second;
    if (!(rate !== undefined && rate > 0))
      throw new TestbedError('ERR_TESTBED', `Cannot measure ${from} to ${receiver}: iperf3 gave no rate`);
    return rate / 8;
  } finally {
    server.kill('SIGKILL');
  }
}
