/**
 * Writer, nodes and the agent around a real BMv2, each in a network namespace of its own: links are veth pairs into the
 * switch's namespace, packets are lost by nftables on arrival at a host. For root, where simple_switch_grpc, ip, nft
 * and ethtool are.
 *
 *     w1 ──1┐                       ┌── n1 …       all on 10.5.0.0/24, MTU 9500, every frame through BMv2:
 *           ├─ simple_switch_grpc ──┤              stripes, units, acknowledgements, and the TCP of sessions and
 *           control
 *    ctl ──N┘   (the agent)         └── nN
 */
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startChild, stopProcess } from '../../cli/child-process.js';
import { createStore } from '../../cli/cluster-processes.js';
import { StateDirectory, type ProcessRecord } from '../../cli/state-directory.js';
import { openClusterStore } from '../../cluster/open-store.js';
import { readMap } from '../../cluster/membership.js';
import type { ClusterMap } from '../../cluster/records.js';
import type { Network } from '../../testbed/network.js';
import { RemoteWorker } from '../../testbed/remote-worker.js';

const SECRET = 'bmv2-stories';
const SERVICE = '10.5.0.254',
  AGENT = '10.5.0.250',
  P4RUNTIME = '127.0.0.1:9559';
const has = (program: string): boolean => spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined;

/** Why these tests are skipped, or false. */
export const noStories: string | false = !has('simple_switch_grpc')
  ? 'simple_switch_grpc is not on PATH: nothing was run on BMv2'
  : process.getuid!() !== 0
    ? 'network namespaces need root'
    : ['ip', 'nft', 'ethtool']
        .filter((each) => !has(each))
        .map((each) => `${each} is not on PATH`)
        .join(', ') || false;

export interface StoryOptions {
  readonly nodes: number;
  readonly artefact: string;
  readonly durability?: 'sync' | 'volatile' | 'discard';
  readonly deadlineMs?: number /** Of all links. Default 9500. */;
  readonly mtu?: number /** TARTAN_PACKET_IMPAIRMENT of nodes and writer. */;
  readonly impairment?: string;
}

let count = 0;

export class Bmv2Network {
  readonly state = new StateDirectory(mkdtempSync(join(tmpdir(), 'tartan-bmv2-')));
  private readonly prefix = `tt${process.pid}-${count++}-`;
  private readonly processes = new Map<string, ProcessRecord>();
  private readonly workers = new Map<string, RemoteWorker>();
  private readonly hosts: { name: string; namespace: string; host: string; mac: string; port: number }[] = [];
  private readonly children: ChildProcess[] = [];
  private bmv2: ChildProcess | undefined;

  private constructor(readonly options: StoryOptions) {}

  static async use(options: StoryOptions, body: (network: Bmv2Network) => Promise<void>): Promise<void> {
    const network = new Bmv2Network(options);
    try {
      await network.build();
      await body(network);
    } finally {
      await network.end();
    }
  }

  get cluster(): string {
    return this.state.cluster;
  }
  get nodeNames(): string[] {
    return Array.from({ length: this.options.nodes }, (_, i) => `n${i + 1}`);
  }

  worker(host = 'w1'): RemoteWorker {
    let worker = this.workers.get(host);
    if (worker === undefined) {
      const network = { enter: (name: string) => this.enter(name) } as unknown as Network;
      this.workers.set(
        host,
        (worker = new RemoteWorker(network, host, SECRET, join(this.state.logs, `worker-${host}.err`))),
      );
    }
    return worker;
  }

  /** Every packet that arrives at a host is lost with this chance; sessions and control too. @param percent 0: none */
  lose(percent: number): void {
    for (const { name } of this.hosts) {
      if (name === 'ctl') continue;
      this.run(name, 'nft', 'flush', 'ruleset');
      if (percent === 0) continue;
      this.run(
        name,
        'nft',
        'add table inet loss; add chain inet loss arriving { type filter hook input priority 0; }; add rule ' +
          `inet loss arriving iifname "eth0" numgen random mod 1000 < ${percent * 10} drop`,
      );
    }
  }

  /** Runs a script on a host, until it ends or this network does. */
  spawn(host: string, script: string): ChildProcess {
    const [program, ...args] = [...this.enter(host), process.execPath, '-e', script];
    const { NODE_OPTIONS: _, ...env } = process.env;
    const child = spawn(program!, args, { stdio: ['pipe', 'pipe', 'inherit'], env });
    this.children.push(child);
    return child;
  }

  run(host: string, ...command: string[]): string {
    const [program, ...args] = [...this.enter(host), ...command];
    return execFileSync(program!, args, { encoding: 'utf8' });
  }

  async startBmv2(): Promise<void> {
    const log = openSync(join(this.state.logs, 'bmv2.log'), 'a');
    const ports = this.hosts.flatMap(({ port }) => ['-i', `${port}@p${port}`]);
    const [program, ...args] = [
      'setpriv',
      '--pdeathsig',
      'KILL',
      ...this.enter('sw'),
      'simple_switch_grpc',
      '--no-p4',
      '--device-id',
      '1',
      ...ports,
      '--thrift-port',
      '9090',
      '--log-level',
      'error',
      '--',
      '--grpc-server-addr',
      P4RUNTIME,
    ];
    this.bmv2 = spawn(program!, args, { stdio: ['ignore', log, log] });
    closeSync(log);
  }

  async killBmv2(): Promise<void> {
    const child = this.bmv2;
    if (child === undefined || child.exitCode !== null) return;
    const gone = new Promise<void>((resolve) => {
      child.once('exit', () => {
        resolve();
      });
    });
    child.kill('SIGKILL');
    await gone;
    this.bmv2 = undefined;
  }

  async start(id: string): Promise<void> {
    const isAgent = id === 's1',
      host = isAgent ? AGENT : this.hosts.find(({ name }) => name === id)!.host;
    if (!isAgent) mkdirSync(this.state.node(id), { recursive: true });
    const args = ['--cluster', this.cluster, '--id', id, '--host', host, '--control-port', '7001'];
    if (isAgent)
      args.push(
        '--target',
        'bmv2',
        '--p4runtime',
        P4RUNTIME,
        '--ports',
        join(this.state.path, 'ports.json'),
        '--artefact',
        this.options.artefact,
        '--probe-from',
        AGENT,
        '--deadline-ms',
        '1000',
      );
    else
      args.push(
        '--store',
        this.state.node(id),
        '--size',
        String(512 << 20),
        '--packet-port',
        '7002',
        '--durability',
        this.options.durability ?? 'volatile',
        '--ring-memory',
        String(64 << 20),
      );
    const record = await startChild(
      {
        id,
        role: isAgent ? 'switch' : 'node',
        host,
        logs: this.state.logs,
        dependent: true,
        args,
        prefix: this.enter(isAgent ? 'ctl' : id),
        env: { TARTAN_SECRET: SECRET, ...this.impairment },
      },
      (spawned) => {
        this.processes.set(id, spawned);
      },
    );
    this.processes.set(id, record);
  }

  async kill(id: string): Promise<void> {
    await stopProcess(this.processes.get(id)!.identity, 0);
    this.processes.delete(id);
  }

  /** Loads or unloads the program, through the agent. */
  async program(verb: 'load' | 'unload' | 'status') {
    return this.worker('ctl').call('switch', { host: AGENT, controlPort: 7001, verb });
  }

  async map(): Promise<ClusterMap> {
    const store = await openClusterStore(this.cluster);
    try {
      return await readMap(store);
    } finally {
      await store.close();
    }
  }

  async until(what: string, holds: (map: ClusterMap) => boolean): Promise<void> {
    const store = await openClusterStore(this.cluster);
    try {
      for (let tries = 0; tries < 600; tries++) {
        if (holds(await readMap(store))) return;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    } finally {
      await store.close();
    }
    throw new Error(`${what}: not within 30 s`);
  }

  private get impairment(): Record<string, string> {
    return this.options.impairment === undefined ? {} : { TARTAN_PACKET_IMPAIRMENT: this.options.impairment };
  }

  /** With the impairment for workers, which get no environment of their own. */
  private enter(host: string): string[] {
    return [
      'ip',
      'netns',
      'exec',
      this.prefix + (host === 'ctl' ? 'sw' : host),
      'env',
      ...Object.entries(this.impairment).map(([name, value]) => `${name}=${value}`),
    ];
  }

  private async build(): Promise<void> {
    const ip = (...args: string[]): void => {
      execFileSync('ip', args);
    };
    const quiet = (host: string, device: string): void => {
      // BMv2 takes frames as they are: their checksums have to be there.
      this.run(host, 'ethtool', '-K', device, 'tx', 'off', 'rx', 'off', 'gso', 'off', 'tso', 'off', 'gro', 'off');
      this.run(host, 'sysctl', '-qw', `net.ipv6.conf.${device}.disable_ipv6=1`);
    };
    const mtu = String(this.options.mtu ?? 9500);
    const members = [
      ['w1', '10.5.0.1'],
      ...this.nodeNames.map((name, i) => [name, `10.5.0.${11 + i}`]),
      ['ctl', AGENT],
    ] as [string, string][];
    ip('netns', 'add', `${this.prefix}sw`);
    ip('-n', `${this.prefix}sw`, 'link', 'set', 'lo', 'up');
    for (const [index, [name, host]] of members.entries()) {
      const port = index + 1,
        namespace = this.prefix + (name === 'ctl' ? 'sw' : name),
        device = name === 'ctl' ? 'ctl' : 'eth0';
      const mac = `02:00:00:00:05:${port.toString(16).padStart(2, '0')}`;
      if (name !== 'ctl') {
        ip('netns', 'add', namespace);
        ip('-n', namespace, 'link', 'set', 'lo', 'up');
      }
      this.hosts.push({ name, namespace, host, mac, port });
      ip(
        'link',
        'add',
        `p${port}`,
        'netns',
        `${this.prefix}sw`,
        'type',
        'veth',
        'peer',
        'name',
        device,
        'netns',
        namespace,
      );
      ip('-n', `${this.prefix}sw`, 'link', 'set', `p${port}`, 'mtu', mtu, 'up');
      ip('-n', namespace, 'link', 'set', device, 'address', mac, 'mtu', mtu, 'up');
      ip('-n', namespace, 'addr', 'add', `${host}/24`, 'dev', device);
      quiet('sw', `p${port}`);
      quiet(name, device);
    }
    writeFileSync(
      join(this.state.path, 'ports.json'),
      JSON.stringify({
        service: { host: SERVICE, mac: '02:00:00:00:05:fe' },
        hosts: this.hosts.map(({ host, mac, port }) => ({ host, mac, port })),
        mtu: Math.min(9000, Number(mtu)),
      }),
    );
    await createStore(this.state);
    await this.startBmv2();
    for (let i = 0; i < this.options.nodes; i += 4)
      await Promise.all(this.nodeNames.slice(i, i + 4).map((name) => this.start(name)));
    await this.start('s1');
    await this.until(
      'the switch is programmable',
      ({ switches, nodes }) => switches[0]?.state === 'programmable' && nodes.every(({ state }) => state === 'up'),
    );
  }

  private async end(): Promise<void> {
    for (const child of this.children) child.kill('SIGKILL');
    for (const worker of this.workers.values()) await worker.close();
    for (const id of [...this.processes.keys()]) await this.kill(id);
    await this.killBmv2();
    for (const namespace of new Set([`${this.prefix}sw`, ...this.hosts.map((each) => each.namespace)]))
      spawnSync('ip', ['netns', 'del', namespace], { stdio: 'ignore' });
    if (process.env['TARTAN_KEEP'] === undefined) rmSync(this.state.path, { recursive: true, force: true });
  }
}
