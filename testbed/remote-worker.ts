/**
 * A process inside a host's network that does as it is told (worker.ts), and what it is told: one line of JSON a call.
 */
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { TestbedError } from './errors.js';
import type { Network } from './network.js';
import type { Tasks } from './worker-tasks.js';

const SCRIPT = fileURLToPath(new URL('./worker.js', import.meta.url));
const STOP_MS = 3_000;

interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

export class RemoteWorker {
  readonly host: string;
  private readonly child: ChildProcessWithoutNullStreams;
  private readonly waiting = new Map<number, Waiting>();
  private next = 1;
  private readonly exit: Promise<void>;

  /** @param log  file for what it says on standard error */
  constructor(network: Network, host: string, secret: string, log: string) {
    this.host = host;
    const { NODE_OPTIONS: _, ...env } = process.env;
    this.child = spawn(
      'setpriv',
      ['--pdeathsig', 'KILL', ...network.enter(host), process.execPath, '--enable-source-maps', SCRIPT],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
        detached: true,
        env: { ...env, TARTAN_SECRET: secret },
      },
    );
    this.child.stderr.pipe(createWriteStream(log));
    this.child.stdin.on('error', () => {});
    createInterface({ input: this.child.stdout }).on('line', (line) => {
      const { id, result, error, code } = JSON.parse(line) as {
        id: number;
        result?: unknown;
        error?: string;
        code?: string;
      };
      const call = this.waiting.get(id);
      this.waiting.delete(id);
      if (error === undefined) call?.resolve(result);
      else call?.reject(Object.assign(new Error(error), { code: code ?? 'ERR_TESTBED' }));
    });
    this.exit = new Promise((resolve) => {
      const ended = (why: string): void => {
        for (const call of this.waiting.values())
          call.reject(new TestbedError('ERR_TESTBED', `The worker on ${host} ended (${why}), see ${log}`));
        this.waiting.clear();
        resolve();
      };
      this.child.once('error', (error) => {
        ended(error.message);
      });
      this.child.once('close', (status, signal) => {
        ended(String(status ?? signal));
      });
    });
  }

  /** @throws what the task threw, with its code; {TestbedError} ERR_TESTBED when the worker is gone */
  call<K extends keyof Tasks>(task: K, args: Parameters<Tasks[K]>[0]): Promise<Awaited<ReturnType<Tasks[K]>>> {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        this.waiting.delete(id);
        reject(new TestbedError('ERR_TESTBED', `The worker on ${this.host} has ended`));
        return;
      }
      this.child.stdin.write(`${JSON.stringify({ id, task, args })}\n`);
    });
  }

  async close(): Promise<void> {
    this.child.stdin.end();
    const timer = setTimeout(() => {
      this.child.kill('SIGKILL');
    }, STOP_MS);
    await this.exit;
    clearTimeout(timer);
  }
}
