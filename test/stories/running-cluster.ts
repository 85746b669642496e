/** A cluster of real processes, as `tartan up` starts it, for stories: faults by pid, everything ended by pid. */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SwitchControl } from '../../wire/control.js';
import { connect } from '../../writer/index.js';
import type { Client, ConnectOptions, FileWriter } from '../../writer/index.js';
import { randomBytes } from '../random-bytes.js';

const SWITCH = fileURLToPath(new URL('../../dist/switch-agent/main.js', import.meta.url));
const REPAIRER = fileURLToPath(new URL('../../dist/cli/repairer/main.js', import.meta.url));
const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

interface ProcessRecord {
  readonly id: string;
  readonly role: 'switch' | 'node' | 'repairer';
  readonly identity: { readonly pid: number };
  readonly host: string;
  readonly port: number;
  readonly controlPort: number;
}

export class RunningCluster {
  readonly dir = mkdtempSync(join(tmpdir(), 'tartan-stories-'));
  private readonly options: readonly string[];
  private ownSwitch: ChildProcess | undefined;
  private ownRepairer: ChildProcess | undefined;

  constructor(options: readonly string[]) {
    this.options = options;
  }

  /** Runs `tartan` with this cluster's --dir. @returns its standard output. @throws when it fails */
  tartan(...args: string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      const { NODE_OPTIONS: _, ...env } = process.env;
      const child = spawn(process.execPath, [MAIN, ...args, '--dir', this.dir], {
        stdio: ['ignore', 'pipe', 'pipe'],
        env,
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
      child.on('close', (status) => {
        if (status === 0) resolve(out);
        else reject(new Error(`tartan ${args.join(' ')}: ${status} ${err}${out}`));
      });
    });
  }

  /** Without a repairer, unless the options are about it: it would do what the story is about to do. */
  async up(): Promise<void> {
    // Stores far larger than what is written to them.
    await this.tartan(
      'up',
      '--sparse',
      ...this.options,
      ...(this.options.includes('--scrub-interval') ? [] : ['--no-repairer']),
    );
  }

  /** As `down` then `up`: every process is another one afterwards. */
  async restart(): Promise<void> {
    await this.tartan('down');
    await this.up();
  }

  async end(): Promise<void> {
    this.ownSwitch?.kill('SIGKILL');
    this.ownRepairer?.kill('SIGKILL');
    await this.tartan('down');
    rmSync(this.dir, { recursive: true, force: true });
  }

  processes(): ProcessRecord[] {
    return (JSON.parse(readFileSync(join(this.dir, 'processes.json'), 'utf8')) as { processes: ProcessRecord[] })
      .processes;
  }

  record(id: string): ProcessRecord {
    const found = this.processes().find((each) => each.id === id);
    if (found === undefined) throw new Error(`no process ${id}`);
    return found;
  }

  signal(id: string, signal: NodeJS.Signals): void {
    process.kill(
      id === 's1' && this.ownSwitch !== undefined ? this.ownSwitch.pid! : this.record(id).identity.pid,
      signal,
    );
  }

  /** Starts a new switch agent in place of one that died; returns when it is ready. It ends with end(). */
  async newSwitch(): Promise<void> {
    this.ownSwitch = await this.begin(SWITCH, 's1');
  }

  /** As newSwitch(), for the repairer. */
  async newRepairer(args: readonly string[]): Promise<void> {
    this.ownRepairer = await this.begin(REPAIRER, 'r1', ...args);
  }

  private async begin(script: string, id: string, ...args: string[]): Promise<ChildProcess> {
    const { NODE_OPTIONS: _, ...env } = process.env;
    const child = spawn(process.execPath, [script, '--cluster', join(this.dir, 'cluster'), '--id', id, ...args], {
      stdio: ['ignore', 'pipe', 'ignore'],
      env,
    });
    await new Promise<void>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (status) => {
        reject(new Error(`the new ${id} ended with ${status}`));
      });
      child.stdout.once('data', () => {
        resolve();
      });
    });
    return child;
  }

  /** Calls the switch agent over its control protocol. */
  async switchControl<T>(call: (control: SwitchControl) => Promise<T>): Promise<T> {
    const { host, controlPort } = this.record('s1');
    const control = new SwitchControl(host, controlPort);
    try {
      return await call(control);
    } finally {
      control.close();
    }
  }

  /** Takes a node's store away, as if its disk were gone. */
  loseStore(id: string): void {
    renameSync(join(this.dir, 'nodes', id), join(this.dir, 'nodes', `${id}.lost`));
  }

  client(options: Partial<ConnectOptions> = {}): Promise<Client> {
    return connect({ cluster: join(this.dir, 'cluster'), holdMs: 200, ...options });
  }
}

/** `length` bytes that no other call gives. */
export function fresh(length: number): Buffer {
  return randomBytes(length);
}

/** Ends a writer; resolves when everything is acknowledged and published. */
export function finish(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });
}

/** Writes with backpressure, in pieces. */
export async function pour(writer: FileWriter, data: Buffer, piece = 1 << 18): Promise<void> {
  for (let at = 0; at < data.length; at += piece) {
    if (writer.write(data.subarray(at, at + piece))) continue;
    await new Promise<void>((resolve, reject) => {
      const drained = (): void => {
        writer.off('error', failed);
        resolve();
      };
      const failed = (error: Error): void => {
        writer.off('drain', drained);
        reject(error);
      };
      writer.once('drain', drained);
      writer.once('error', failed);
    });
  }
}

export async function readAll(client: Client, name: string): Promise<{ bytes: Buffer; degraded: number }> {
  const reader = await client.open(name);
  try {
    const bytes = await reader.read(0, reader.length);
    return { bytes, degraded: reader.progress.degradedStripes };
  } finally {
    await reader.close();
  }
}

export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
