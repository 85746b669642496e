/** Debian's etcd for tests: members on loopback, each with a data folder of its own that vanishes at the end. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { openEtcdStore } from '../../cluster/etcd-store.js';
import { codeOf } from '../../wire/errors.js';

const PATIENCE_MS = 60_000;

/** Why tests that want etcd are skipped: false when they are not. Where CI runs, it must be there. */
export function etcdMissing(): string | false {
  const present = spawnSync('etcd', ['--version'], { stdio: 'ignore' }).status === 0;
  return present || process.env['CI'] === 'true' ? false : 'etcd (Debian package etcd-server) is not on PATH';
}

export class EtcdServer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'tartan-etcd.'));
  readonly #clientPorts: readonly number[];
  readonly #peerPorts: readonly number[];
  readonly #children: (ChildProcess | undefined)[] = [];

  private constructor(ports: readonly number[]) {
    this.#clientPorts = ports.slice(0, ports.length / 2);
    this.#peerPorts = ports.slice(ports.length / 2);
  }

  /** Starts this many members, and returns when they answer. */
  static async start(members = 1): Promise<EtcdServer> {
    const server = new EtcdServer(await freePorts(2 * members));
    for (let member = 0; member < members; member++) server.run(member);
    await server.answers();
    return server;
  }

  /** `etcd://…` of all members. */
  location(prefix = 'test'): string {
    return `etcd://${this.#clientPorts.map((port) => `127.0.0.1:${port}`).join(',')}/${prefix}`;
  }

  port(member: number): number {
    return this.#clientPorts[member]!;
  }

  /** Starts a member that was killed, on the data it had. */
  run(member: number): void {
    const peer = (at: number): string => `http://127.0.0.1:${this.#peerPorts[at]}`,
      client = `http://127.0.0.1:${this.#clientPorts[member]}`;
    const child = spawn(
      'etcd',
      [
        '--name',
        `m${member}`,
        '--data-dir',
        join(this.#folder, `m${member}`),
        '--listen-client-urls',
        client,
        '--advertise-client-urls',
        client,
        '--listen-peer-urls',
        peer(member),
        '--initial-advertise-peer-urls',
        peer(member),
        '--initial-cluster',
        this.#peerPorts.map((_, at) => `m${at}=${peer(at)}`).join(','),
        '--log-level',
        'error',
      ],
      { stdio: 'ignore', env: { PATH: process.env['PATH'] } },
    );
    child.on('error', () => {}); // Not installed: answers() says that nobody answers.
    this.#children[member] = child;
  }

  /** SIGKILL: nothing is said goodbye to. */
  async kill(member: number): Promise<void> {
    const child = this.#children[member];
    if (child?.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => {
      child.once('exit', resolve);
    });
    child.kill('SIGKILL');
    await gone;
  }

  async answers(): Promise<void> {
    for (const until = Date.now() + PATIENCE_MS; ; ) {
      try {
        await (await openEtcdStore(this.location(), { deadlineMs: 2000 })).close();
        return;
      } catch (error) {
        if (codeOf(error) !== 'ERR_MAP_UNAVAILABLE' || Date.now() > until) throw error;
        await delay(50);
      }
    }
  }

  /** What etcdctl (of the package etcd-client) would do, without it: the gateway takes JSON. */
  async compact(revision: number): Promise<void> {
    const response = await fetch(`http://127.0.0.1:${this.#clientPorts[0]}/v3/kv/compaction`, {
      method: 'POST',
      body: JSON.stringify({ revision: String(revision), physical: true }),
    });
    if (!response.ok) throw new Error(`compaction: ${response.status} ${await response.text()}`);
  }

  async stop(): Promise<void> {
    await Promise.all(this.#children.map((_, member) => this.kill(member)));
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer());
  // All at once: none is given twice.
  await Promise.all(
    servers.map(
      (server) =>
        new Promise<void>((resolve, reject) => {
          server.once('error', reject);
          server.listen(0, '127.0.0.1', resolve);
        }),
    ),
  );
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(
    servers.map(
      (server) =>
        new Promise((resolve) => {
          server.close(resolve);
        }),
    ),
  );
  return ports;
}
