/**
 * A network that runs: Mininet in a process and a network namespace of its own (build_network.py), told what to do over
 * pipes. When this process ends, however it ends, the pipe closes, and namespaces, links and bridges vanish with it.
 */
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { NetworkSpec } from './addressing.js';
import { TestbedError } from './errors.js';
import { PYTHON } from './requirements.js';

/** From dist/testbed: Python is not compiled. */
const SCRIPT = fileURLToPath(new URL('../../testbed/build_network.py', import.meta.url));
const STOP_MS = 15_000;

interface Reply {
  readonly ready?: true;
  readonly done?: true;
  readonly pids?: Readonly<Record<string, number>>;
  readonly error?: string;
}

export class Network {
  readonly spec: NetworkSpec;
  private readonly child: ChildProcessWithoutNullStreams;
  private readonly replies: AsyncIterator<string>;
  private pids: ReadonlyMap<string, number> = new Map();
  private turn: Promise<unknown> = Promise.resolve();
  private ended = false;
  private readonly exit: Promise<void>;

  private constructor(spec: NetworkSpec, log: string, mark: string) {
    this.spec = spec;
    // The kernel ends Python with this process, and the shells that hold the namespaces end with Python's terminals.
    this.child = spawn('setpriv', ['--pdeathsig', 'KILL', 'unshare', '--net', PYTHON, SCRIPT], {
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
      env: { ...process.env, NODE_OPTIONS: '', TARTAN_TESTBED: mark },
    });
    this.child.stderr.pipe(createWriteStream(log));
    this.child.stdin.on('error', () => {}); // it has ended: the reply says so
    this.exit = new Promise((resolve) => {
      this.child.once('error', () => {
        this.ended = true;
        resolve();
      });
      this.child.once('close', () => {
        this.ended = true;
        resolve();
      });
    });
    this.replies = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  /**
   * @param log   file for what Mininet says
   * @param mark  goes into the environment of all its processes, by which they can be told from another network's
   * @throws {TestbedError} ERR_TESTBED; then nothing is left of it
   */
  static async build(spec: NetworkSpec, log: string, mark: string): Promise<Network> {
    const network = new Network(spec, log, mark);
    try {
      const reply = await network.ask(network.spec);
      network.pids = new Map(Object.entries(reply.pids ?? {}));
      return network;
    } catch (error) {
      await network.close();
      throw error;
    }
  }

  /** The process that holds a host's namespace. */
  pidOf(host: string): number {
    const pid = this.pids.get(host);
    if (pid === undefined) throw new RangeError(`no host ${host}`);
    return pid;
  }

  /**
   * What a command line begins with to run in a host's network. Mininet mounts /sys anew for each host: without its
   * mount namespace a process would see the interfaces of this one there, and their MTU.
   */
  enter(host: string): string[] {
    const namespaces = `/proc/${this.pidOf(host)}/ns`;
    return ['nsenter', `--net=${namespaces}/net`, `--mount=${namespaces}/mnt`, `--wd=${process.cwd()}`];
  }

  /** Takes a link's carrier away, or gives it back. @param link  index in the topology */
  async setLink(link: number, up: boolean): Promise<void> {
    await this.ask({ link, up });
    if (!up) return;
    // An interface that went down lost its routes.
    for (const { host } of this.spec.links[link]!.ends) {
      const routes = this.spec.hosts.find((each) => each.name === host)?.routes ?? [];
      for (const route of routes) await run([...this.enter(host), 'ip', 'route', 'replace', ...route.split(' ')]);
    }
  }

  /** Takes everything down. Idempotent. */
  async close(): Promise<void> {
    if (!this.ended) {
      this.child.stdin.end();
      const timer = setTimeout(() => {
        this.child.kill('SIGKILL');
      }, STOP_MS);
      await this.exit;
      clearTimeout(timer);
    }
  }

  private ask(message: unknown): Promise<Reply> {
    const asked = this.turn.then(async () => {
      this.child.stdin.write(`${JSON.stringify(message)}\n`);
      const line = await this.replies.next();
      if (line.done === true)
        throw new TestbedError('ERR_TESTBED', 'Cannot build the network: Mininet ended without an answer');
      const reply = JSON.parse(line.value) as Reply;
      if (reply.error !== undefined) throw new TestbedError('ERR_TESTBED', `Cannot build the network: ${reply.error}`);
      return reply;
    });
    this.turn = asked.catch(() => {}); // whoever asked is told
    return asked;
  }
}

/** Runs a short command to its end. @returns what it printed @throws {TestbedError} ERR_TESTBED when it fails */
export function run(command: readonly string[], timeoutMs = 60_000): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...command], {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      killSignal: 'SIGKILL',
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    let out = '',
      err = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      err += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) resolve(out);
      else
        reject(
          new TestbedError(
            'ERR_TESTBED',
            `\`${command.join(' ').slice(0, 120)}\` ended ` +
              `with ${code ?? signal}: ${(err || out).trim().split('\n').at(-1) ?? ''}`,
          ),
        );
    });
  });
}
