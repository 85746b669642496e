/**
 * A real Ceph from Debian's packages on the testbed's network, without systemd: a monitor on the switch host, one OSD
 * per storage host, the client on the writer's. Objects are kept in memory (memstore): as volatile as our nodes then
 * are.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, openSync, closeSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { TestbedError } from './errors.js';
import { run } from './network.js';
import type { Testbed } from './testbed.js';
import { hostsOf } from './topology.js';

export const CEPH_PLUGINS = ['jerasure', 'isa', 'shec', 'clay'] as const;
export type CephPlugin = (typeof CEPH_PLUGINS)[number];

const MON_PORT = 6789;
const READY_MS = 120_000;
/** An OSD that is not up by then is started again: now and then one waits for ever for an answer that was lost. */
const BOOT_MS = 25_000;
const ATTEMPTS = 4;
const COMMAND_MS = 30_000;
const STOP_MS = 5_000;
const PLACEMENT_GROUPS = 16;

/** What a reader must know of how it was set up. */
export const CEPH_SETTINGS =
  'Ceph from Debian, memstore (objects in memory: volatile), no authentication, messenger v1, 16 placement ' +
  'groups, rados bench';

export function cephMissing(): string | undefined {
  const missing = ['ceph-mon', 'ceph-osd', 'ceph', 'rados'].filter((tool) => !existsSync(`/usr/bin/${tool}`));
  return missing.length === 0
    ? undefined
    : `Ceph is not installed (${missing.join(', ')} missing): \`apt-get install --no-install-recommends ceph-mon ` +
        `ceph-osd ceph-common\``;
}

export class CephCluster {
  private readonly children: ChildProcess[] = [];
  private readonly folder: string;
  private readonly config: string;
  private readonly osds = new Map<number, { readonly child: ChildProcess; readonly at: number }>();
  private pools = 0;

  private constructor(private readonly testbed: Testbed) {
    this.folder = join(testbed.folder, 'ceph');
    this.config = join(this.folder, 'ceph.conf');
  }

  /** @throws {TestbedError} ERR_TESTBED when it does not come up; then nothing of it runs */
  static async start(testbed: Testbed): Promise<CephCluster> {
    const cluster = new CephCluster(testbed);
    try {
      await cluster.boot();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  /** Makes an erasure-coded pool. @returns its name */
  async createPool(plugin: CephPlugin, k: number, m: number): Promise<string> {
    const pool = `p${++this.pools}`;
    const technique = {
      jerasure: ['technique=reed_sol_van'],
      isa: ['technique=reed_sol_van'],
      shec: [`c=${Math.min(2, m)}`],
      clay: [`d=${k + m - 1}`],
    }[plugin];
    await this.ceph(
      'osd',
      'erasure-code-profile',
      'set',
      pool,
      `plugin=${plugin}`,
      `k=${k}`,
      `m=${m}`,
      'crush-failure-domain=osd',
      ...technique,
    );
    await this.ceph('osd', 'pool', 'create', pool, String(PLACEMENT_GROUPS), String(PLACEMENT_GROUPS), 'erasure', pool);
    await this.settled(pool);
    return pool;
  }

  /** Writes objects of one size for a time. @returns objects a second */
  async bench(pool: string, bytes: number, parallel: number, seconds: number): Promise<number> {
    const out = await run(
      [
        ...this.testbed.network.enter('w1'),
        'rados',
        '-c',
        this.config,
        'bench',
        String(seconds),
        'write',
        '-b',
        String(bytes),
        '-t',
        String(parallel),
        '-p',
        pool,
        '--no-cleanup',
      ],
      (seconds + 60) * 1000,
    );
    const figure = (name: string): number => Number(new RegExp(`${name}:\\s*([0-9.]+)`).exec(out)?.[1]);
    const rate = figure('Total writes made') / figure('Total time run');
    if (!(rate > 0))
      throw new TestbedError(
        'ERR_TESTBED',
        `Cannot measure Ceph: rados bench printed no rate for ${bytes}-byte objects`,
      );
    return rate;
  }

  async removePool(pool: string): Promise<void> {
    await this.ceph('osd', 'pool', 'delete', pool, pool, '--yes-i-really-really-mean-it');
  }

  async stop(): Promise<void> {
    await Promise.all(
      this.children.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const gone = new Promise((resolve) => {
          child.once('exit', resolve);
        });
        child.kill('SIGTERM');
        const timer = setTimeout(() => {
          child.kill('SIGKILL');
        }, STOP_MS);
        await gone;
        clearTimeout(timer);
      }),
    );
  }

  private async boot(): Promise<void> {
    const { testbed, folder, config } = this;
    const nodes = hostsOf(testbed.topology, 'node').map((host) => host.name);
    const mon = testbed.address('s1'),
      fsid = randomUUID();
    mkdirSync(join(folder, 'mon'), { recursive: true });
    mkdirSync(join(folder, 'run'));
    const settings: Record<string, string> = {
      fsid,
      'mon host': `v1:${mon}:${MON_PORT}`,
      'auth cluster required': 'none',
      'auth service required': 'none',
      'auth client required': 'none',
      'ms bind msgr2': 'false',
      'run dir': join(folder, 'run'),
      'admin socket': join(folder, 'run', '$name.$pid.asok'),
      'pid file': join(folder, 'run', '$name.pid'),
      'log file': join(folder, '$name.log'),
      keyring: join(folder, 'keyring'),
      'mon data': join(folder, 'mon'),
      'osd data': join(folder, 'osd.$id'),
      'osd objectstore': 'memstore',
      'memstore device bytes': String(4 * 2 ** 30),
      'osd crush chooseleaf type': '0',
      'osd pool default pg autoscale mode': 'off',
      'mon allow pool delete': 'true',
      'mon max pg per osd': '2000',
      'osd crush update on start': 'true',
      'osd max write size': '256',
      'mon data avail crit': '1',
      // Nothing here is about failures: OSDs on a crowded machine must not be taken for dead.
      'osd heartbeat grace': '120',
      'osd class update on start': 'false',
    };
    writeFileSync(
      config,
      '[global]\n' +
        Object.entries(settings)
          .map(([name, value]) => `${name} = ${value}`)
          .join('\n') +
        '\n' +
        nodes
          .map(
            (name, i) =>
              `[osd.${i}]\npublic addr = ${testbed.address(name)}\ncluster addr = ` + `${testbed.address(name)}\n`,
          )
          .join(''),
    );
    await run([
      'monmaptool',
      '--create',
      '--fsid',
      fsid,
      '--addv',
      'a',
      `v1:${mon}:${MON_PORT}`,
      join(folder, 'monmap'),
    ]);
    await run(['ceph-mon', '--mkfs', '-i', 'a', '--monmap', join(folder, 'monmap'), '-c', config]);
    this.daemon('s1', 'mon', ['ceph-mon', '-i', 'a', '-c', config, '-f']);
    for (const i of nodes.keys()) {
      const uuid = randomUUID();
      mkdirSync(join(folder, `osd.${i}`));
      await this.ceph('osd', 'new', uuid);
      // It asks the monitor for its configuration, so it too has to be on the network.
      await run(
        [...testbed.network.enter(nodes[i]!), 'ceph-osd', '-i', String(i), '-c', config, '--mkfs', '--osd-uuid', uuid],
        COMMAND_MS,
      );
      this.startOsd(nodes, i);
    }
    for (const deadline = performance.now() + READY_MS; ; await delay(500)) {
      const { osds } = JSON.parse(await this.ceph('osd', 'dump', '--format', 'json')) as {
        osds: { osd: number; up: number }[];
      };
      const isUp = (i: number): boolean => osds.find(({ osd }) => osd === i)?.up === 1;
      const up = nodes.filter((_, i) => isUp(i)).length;
      if (up === nodes.length) return;
      for (const i of nodes.keys()) {
        const started = this.osds.get(i)!;
        if (isUp(i) || performance.now() - started.at < BOOT_MS) continue;
        started.child.kill('SIGKILL');
        this.startOsd(nodes, i);
      }
      if (performance.now() > deadline)
        throw new TestbedError(
          'ERR_TESTBED',
          `Cannot start Ceph: ${up} of ${nodes.length} OSDs are up after ${READY_MS / 1000} s`,
        );
    }
  }

  private startOsd(nodes: readonly string[], i: number): void {
    this.osds.set(i, {
      child: this.daemon(nodes[i]!, `osd.${i}`, ['ceph-osd', '-i', String(i), '-c', this.config, '-f']),
      at: performance.now(),
    });
  }

  private daemon(host: string, name: string, command: readonly string[]): ChildProcess {
    const out = openSync(join(this.folder, `${name}.out`), 'w');
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...this.testbed.network.enter(host), ...command], {
      stdio: ['ignore', out, out],
      detached: true,
    });
    this.children.push(child);
    closeSync(out);
    return child;
  }

  /**
   * One administrative command, from the monitor's own host. A monitor that has just started, on CPUs that many OSDs
   * start on too, now and then refuses one ("problem getting command descriptions"): it is asked again.
   */
  private async ceph(...args: string[]): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await run(
          [
            ...this.testbed.network.enter('s1'),
            'timeout',
            String(COMMAND_MS / 1000),
            'ceph',
            '-c',
            this.config,
            ...args,
          ],
          COMMAND_MS + 5_000,
        );
      } catch (error) {
        if (attempt === ATTEMPTS) throw error;
        await delay(1000);
      }
    }
  }

  /**
   * The first write waits until the pool's placement groups are active (what says so by itself needs a manager, which
   * is not run).
   */
  private async settled(pool: string): Promise<void> {
    await run(
      [
        ...this.testbed.network.enter('w1'),
        'timeout',
        String(READY_MS / 1000),
        'rados',
        '-c',
        this.config,
        '-p',
        pool,
        'put',
        'first',
        this.config,
      ],
      READY_MS + 5_000,
    );
  }
}
