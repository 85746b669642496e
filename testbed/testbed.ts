/**
 * A cluster on a shaped network: Mininet builds the network, this starts nodes, switch agents and workers in it, waits
 * until all are ready, and takes everything down again, whatever happens.
 *
 * One testbed at a time on a machine: two would measure each other. What a killed one left (its folder; its processes
 * and namespaces end with it) is removed by the next.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startChild, stopProcess } from '../cli/child-process.js';
import { createStore } from '../cli/cluster-processes.js';
import type { ProcessRecord } from '../cli/state-directory.js';
import { StateDirectory } from '../cli/state-directory.js';
import { readMap } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { isRunning } from '../cluster/process-identity.js';
import { networkSpec, serviceAddress } from './addressing.js';
import { bmv2Plan, type Bmv2Plan } from './bmv2-plan.js';
import { Bmv2Process, P4RUNTIME, requireBmv2 } from './bmv2-process.js';
import { TestbedError } from './errors.js';
import { Interruption } from './interruption.js';
import { Network } from './network.js';
import { contentsOf, leaveFolder, takeFolder } from './own-folder.js';
import { RemoteWorker } from './remote-worker.js';
import { requireMachine } from './requirements.js';
import type { Topology } from './topology.js';
import { hostsOf, validateTopology } from './topology.js';

export type Durability = 'sync' | 'volatile' | 'discard';

export interface TestbedOptions {
  readonly topology: Topology;
  readonly durability: Durability;
  /** Default 'soft': the software switch. 'bmv2': one P4 switch, through which every frame goes. */
  readonly switchKind?: 'soft' | 'bmv2';
  /** Nodes take units as packets too; with BMv2 they do anyway. */
  readonly packets?: boolean;
  /** Refused when the network has too few nodes for it. */
  readonly code?: string;
  /** Of each agent and node. Default 64 MiB. */
  readonly ringMemoryBytes?: number;
  /** A peer silent for so long is taken for gone. Default 1000. */
  readonly deadlineMs?: number;
  /** Where it is kept while it runs: empty, or a testbed's before. Default: a fixed folder in the temporary one. */
  readonly folder?: string;
  /** Told of what was cleaned up. */
  readonly note?: (line: string) => void;
}

const PORT = 7000;
const STOP_MS = 5_000;
const PROGRAMMABLE_MS = 30_000;
/** Twelve that start together on two busy CPUs take so long that a node's lease ran out before it was used. */
const STARTS_AT_ONCE = 4;
/** Sparse: nodes that discard never fill it. */
const STORE_BYTES = 16 * 2 ** 30;
const FOLDER = join(tmpdir(), 'tartan-testbed');

export class Testbed {
  readonly topology: Topology;
  readonly network: Network;
  readonly durability: Durability;
  readonly deadlineMs: number;
  private readonly state: StateDirectory;
  private readonly options: TestbedOptions;
  private readonly secret = randomBytes(24).toString('hex');
  private readonly workers = new Map<string, RemoteWorker>();

  /** When the switch is BMv2. */
  private readonly plan: Bmv2Plan | undefined;
  private readonly bmv2: Bmv2Process | undefined;

  private constructor(options: TestbedOptions, state: StateDirectory, network: Network, plan: Bmv2Plan | undefined) {
    this.topology = options.topology;
    this.durability = options.durability;
    this.deadlineMs = options.deadlineMs ?? 1000;
    this.options = options;
    this.state = state;
    this.network = network;
    this.plan = plan;
    if (plan !== undefined)
      this.bmv2 = new Bmv2Process(
        network.enter(hostsOf(options.topology, 'switch')[0]!.name),
        plan.interfaces,
        state.logs,
      );
  }

  /**
   * Builds it, runs `action`, takes it down.
   *
   * @throws {TestbedError} ERR_NOT_ROOT, ERR_MISSING_PACKAGE, ERR_TOPOLOGY, ERR_TESTBED, ERR_INTERRUPTED
   * @throws {TartanError} ERR_NOT_ENOUGH_NODES; ERR_IN_USE when another testbed runs; what a process could not start
   *         with
   */
  static async use<T>(options: TestbedOptions, action: (testbed: Testbed) => Promise<T>): Promise<T> {
    validateTopology(options.topology, options.code);
    const plan = options.switchKind === 'bmv2' ? bmv2Plan(options.topology) : undefined;
    requireMachine();
    if (plan !== undefined) requireBmv2();
    const state = new StateDirectory(options.folder ?? FOLDER);
    takeFolder(state.path);
    return state.locked(async () => {
      await sweep(state, options.note ?? (() => {}));
      state.create();
      state.write([]);
      const interruption = new Interruption();
      const building = Network.build(
        plan?.network ?? networkSpec(options.topology),
        join(state.logs, 'network.err'),
        state.path,
      );
      let testbed: Testbed | undefined;
      try {
        testbed = new Testbed(options, state, await interruption.orDone(building), plan);
        await interruption.orDone(testbed.startProcesses());
        return await interruption.orDone(action(testbed));
      } finally {
        try {
          await testbed?.end();
          await building.then(
            (network) => network.close(),
            () => {},
          );
        } finally {
          interruption.over();
          wipe(state);
          leaveFolder(state.path);
        }
      }
    });
  }

  /** Directory of the cluster store: all hosts share one file system. */
  get cluster(): string {
    return this.state.cluster;
  }

  /** For files of whoever uses the testbed; removed with it. */
  get folder(): string {
    return this.state.path;
  }

  /** Holds the cluster's secret, for commands that are to reach it. */
  get secretFile(): string {
    return join(this.state.path, 'secret');
  }

  processes(): ProcessRecord[] {
    return this.state.running();
  }

  /** Where a node or an agent listens; with BMv2, a writer's too. */
  address(host: string): string {
    return this.plan?.addresses.get(host) ?? serviceAddress(this.topology, host);
  }

  /** The process on a host that does what it is told; started when it is first asked for. */
  worker(host: string): RemoteWorker {
    let worker = this.workers.get(host);
    if (worker === undefined)
      this.workers.set(
        host,
        (worker = new RemoteWorker(this.network, host, this.secret, join(this.state.logs, `worker-${host}.err`))),
      );
    return worker;
  }

  /** What a switch agent says of itself; loads or unloads its program. */
  switch(host: string, verb: 'load' | 'unload' | 'status') {
    // Asked from its own host: no packet of it is on a link that is measured.
    return this.worker(host).call('switch', { host: this.address(host), controlPort: PORT + 1, verb });
  }

  /** Sends a signal to the agent or node of a host. @throws {TestbedError} ERR_TESTBED when it does not run */
  signal(host: string, signal: NodeJS.Signals): void {
    process.kill(this.record(host).identity.pid, signal);
  }

  /** Ends an agent or node at once, as a crash does. */
  async kill(host: string): Promise<void> {
    await stopProcess(this.record(host).identity, 0);
  }

  /** Whether units travel as packets. */
  get takesPackets(): boolean {
    return this.plan !== undefined;
  }

  /**
   * Ends BMv2 at once, as a crash does; its agent goes on.
   * @throws {TestbedError} ERR_TESTBED when the switch is not BMv2
   */
  async killBmv2(): Promise<void> {
    await this.requireBmv2().kill();
  }

  /** A blank one, which the agent programs. @throws {TestbedError} ERR_TESTBED */
  async startBmv2(): Promise<void> {
    await this.requireBmv2().start();
  }

  /** Starts the agent or node of a host, again after it was killed. */
  async start(host: string): Promise<ProcessRecord> {
    const role = this.topology.hosts.find((each) => each.name === host)?.role;
    if (role !== 'switch' && role !== 'node') throw new RangeError(`${host} is neither switch nor node`);
    const { state, options } = this;
    const address = this.address(host);
    if (role === 'node') mkdirSync(state.node(host), { recursive: true, mode: 0o700 });
    const before = state.running().find((each) => each.id === host);
    const record = await startChild(
      {
        id: host,
        role,
        host: address,
        logs: state.logs,
        dependent: true,
        prefix: this.network.enter(host),
        env: { TARTAN_SECRET: this.secret },
        args: [
          '--cluster',
          state.cluster,
          '--id',
          host,
          '--host',
          address,
          '--port',
          String(PORT),
          '--control-port',
          String(PORT + 1),
          '--ring-memory',
          String(options.ringMemoryBytes ?? 64 << 20),
          '--transport',
          'tcp',
          ...(role === 'node'
            ? ['--store', state.node(host), '--durability', this.durability, '--size', String(STORE_BYTES)]
            : ['--deadline-ms', String(this.deadlineMs)]),
          ...this.packetArguments(role, address),
        ],
      },
      (spawned) => {
        state.record(spawned);
      },
    ).catch((error: unknown) => {
      // The one that holds the port still has to be ended.
      if (before !== undefined) state.record(before);
      throw error;
    });
    state.record(record);
    return record;
  }

  /** Takes the carrier of the link between two hosts away, or gives it back. */
  async setLink(a: string, b: string, up: boolean): Promise<void> {
    const link = this.topology.links.findIndex(({ ends }) => ends.includes(a) && ends.includes(b));
    if (link < 0) throw new RangeError(`no link between ${a} and ${b}`);
    await this.network.setLink(link, up);
  }

  private packetArguments(role: 'switch' | 'node', address: string): string[] {
    if (this.plan === undefined)
      return role === 'node' && this.options.packets === true ? ['--packet-port', String(PORT + 2)] : [];
    return role === 'node'
      ? ['--packet-port', String(PORT + 2)]
      : [
          '--target',
          'bmv2',
          '--p4runtime',
          P4RUNTIME,
          '--ports',
          join(this.state.path, 'ports.json'),
          '--artefact',
          this.plan.artefact,
          '--probe-from',
          address,
        ];
  }

  private requireBmv2(): Bmv2Process {
    if (this.bmv2 === undefined) throw new TestbedError('ERR_TESTBED', 'The switch of this testbed is not BMv2');
    return this.bmv2;
  }

  private async startProcesses(): Promise<void> {
    await createStore(this.state);
    writeFileSync(this.secretFile, this.secret, { mode: 0o600 });
    if (this.plan !== undefined) {
      writeFileSync(join(this.state.path, 'ports.json'), this.plan.ports);
      await this.startBmv2();
    }
    const nodes = hostsOf(this.topology, 'node');
    for (let i = 0; i < nodes.length; i += STARTS_AT_ONCE) {
      // Settled, not raced: none may still be starting when the others are stopped.
      const settled = await Promise.allSettled(nodes.slice(i, i + STARTS_AT_ONCE).map(({ name }) => this.start(name)));
      for (const each of settled) if (each.status === 'rejected') throw each.reason;
    }
    for (const { name } of hostsOf(this.topology, 'switch')) await this.start(name);
    if (this.plan !== undefined) await this.untilProgrammable();
  }

  /**
   * A P4 switch forwards nothing, and no writer uses it, before its agent has programmed it.
   * @throws {TestbedError} ERR_TESTBED
   */
  async untilProgrammable(): Promise<void> {
    const { name } = hostsOf(this.topology, 'switch')[0]!;
    const store = await openClusterStore(this.cluster);
    try {
      for (
        const end = performance.now() + PROGRAMMABLE_MS;
        (await readMap(store)).switches.find(({ id }) => id === name)?.state !== 'programmable';
        await delay(20)
      ) {
        if (performance.now() > end)
          throw new TestbedError(
            'ERR_TESTBED',
            `The switch ${name} is not programmable after ${PROGRAMMABLE_MS / 1000} s, ` +
              `see ${join(this.state.logs, `${name}.err`)}`,
          );
      }
    } finally {
      await store.close();
    }
  }

  private async end(): Promise<void> {
    await Promise.all([...this.workers.values()].map((worker) => worker.close()));
    for (const role of ['switch', 'node'] as const) {
      await Promise.all(
        this.state
          .processes()
          .filter((each) => each.role === role)
          .map(async (each) => {
            // A stopped process does not obey.
            if (isRunning(each.identity)) process.kill(each.identity.pid, 'SIGCONT');
            await stopProcess(each.identity, STOP_MS);
          }),
      );
    }
    await this.bmv2?.kill();
    await this.network.close();
  }

  private record(host: string): ProcessRecord {
    const found = this.state.running().find((each) => each.id === host);
    if (found === undefined) throw new TestbedError('ERR_TESTBED', `The process of ${host} does not run`);
    return found;
  }
}

/** Ends and removes what an earlier run left. Its holder is gone, or the lock would not be ours. */
async function sweep(state: StateDirectory, note: (line: string) => void): Promise<void> {
  const left = state.running();
  for (const each of left) await stopProcess(each.identity, 0);
  if (wipe(state) > 0)
    note(
      'removed what an earlier testbed ' +
        `left${left.length > 0 ? `, ended ${left.map((each) => each.id).join(', ')}` : ''}`,
    );
}

/** @returns how many entries were there */
function wipe(state: StateDirectory): number {
  const entries = contentsOf(state.path);
  for (const name of entries) rmSync(join(state.path, name), { recursive: true, force: true });
  return entries.length;
}
