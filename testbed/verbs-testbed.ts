/**
 * A cluster over soft-RoCE on this machine: an ordinary network card (or one made for it), a soft-RoCE device on it,
 * the cluster's processes on that device; everything is taken down again, and what was loaded for it is unloaded.
 *
 *     dummy card tartan0, 10.78.0.1 … 15   or   the card that is named, by its own address
 *           └── tartan_rxe0 (rdma_rxe) ── s1, n1 … n14: an address each on the dummy, a port each on a card
 *
 * Unshaped: soft-RoCE works in the first network namespace only, so there are no hosts with links of their own
 * (testbed/verbs/bridged-hosts.sh makes such in a machine of its own). It shows the cluster over verbs, not throughput.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startChild, stopProcess } from '../cli/child-process.js';
import { createStore } from '../cli/cluster-processes.js';
import { StateDirectory, type ProcessRecord } from '../cli/state-directory.js';
import { TestbedError } from './errors.js';
import { Interruption } from './interruption.js';
import { leaveFolder, takeFolder } from './own-folder.js';
import { run } from './network.js';
import { requireVerbsMachine } from './requirements.js';
import type { Durability } from './testbed.js';

export interface VerbsTestbedOptions {
  readonly nodes: number;
  readonly durability: Durability;
  /** The card to use. Default: a dummy made for it. */
  readonly netdev?: string;
  readonly note: (line: string) => void;
}

export const RDMA_DEVICE = 'tartan_rxe0';
const CARD = 'tartan0';
/** Of each process. Soft-RoCE is often had in an emulated machine, where a process takes a quarter of a minute. */
const READY_MS = 120_000;
const NETWORK = '10.78.0';
const MODULES = ['rdma_rxe', 'rdma_ucm', 'ib_uverbs'];
const PORT = 7000;
const STORE_BYTES = 2 ** 30;
const ACTIVE_TRIES = 100;
const STOP_MS = 5_000;
const MOST_NODES = 14;

export class VerbsTestbed {
  private constructor(
    readonly state: StateDirectory,
    private readonly options: VerbsTestbedOptions,
    private readonly secret: string,
  ) {}

  get secretFile(): string {
    return join(this.state.path, 'secret');
  }
  processes(): ProcessRecord[] {
    return this.state.running();
  }

  /**
   * Builds it, runs `action`, takes it down.
   *
   * @throws {TestbedError} ERR_NOT_ROOT, ERR_MISSING_PACKAGE, ERR_MISSING_MODULE, ERR_TOPOLOGY, ERR_TESTBED,
   *         ERR_INTERRUPTED
   * @throws {TartanError} ERR_IN_USE when another runs; what a process could not start with
   */
  static async use<T>(options: VerbsTestbedOptions, action: (testbed: VerbsTestbed) => Promise<T>): Promise<T> {
    if (options.nodes > MOST_NODES)
      throw new TestbedError(
        'ERR_TOPOLOGY',
        `Cannot build ${options.nodes} nodes over verbs: at most ${MOST_NODES} have an address`,
      );
    requireVerbsMachine();
    if (options.netdev !== undefined && !existsSync(`/sys/class/net/${options.netdev}`))
      throw new TestbedError(
        'ERR_TOPOLOGY',
        `Cannot use the network card '${options.netdev}': there is none of that name`,
      );
    const loaded = await loadModules(options.netdev === undefined ? [...MODULES, 'dummy'] : MODULES);
    const state = new StateDirectory(join(tmpdir(), 'tartan-testbed-verbs'));
    takeFolder(state.path);
    return state.locked(async () => {
      for (const left of state.running()) await stopProcess(left.identity, 0);
      await removeLinks();
      state.create();
      state.write([]);
      const interruption = new Interruption();
      const testbed = new VerbsTestbed(state, options, randomBytes(24).toString('hex'));
      try {
        await interruption.orDone(testbed.start());
        return await interruption.orDone(action(testbed));
      } finally {
        for (const each of state.processes()) await stopProcess(each.identity, STOP_MS);
        await removeLinks();
        // What others use by now stays.
        for (const module of loaded.reverse()) await run(['modprobe', '-r', module]).catch(() => {}); // in use
        interruption.over();
        for (const path of [
          state.cluster,
          state.logs,
          join(state.path, 'nodes'),
          join(state.path, 'processes.json'),
          testbed.secretFile,
        ])
          rmSync(path, { recursive: true, force: true });
        leaveFolder(state.path);
      }
    });
  }

  private async start(): Promise<void> {
    const { netdev, nodes } = this.options;
    const card = netdev ?? CARD;
    if (netdev === undefined) {
      await run(['ip', 'link', 'add', CARD, 'type', 'dummy']);
      for (let host = 1; host <= nodes + 1; host++)
        await run(['ip', 'address', 'add', `${NETWORK}.${host}/24`, 'dev', CARD]);
      await run(['ip', 'link', 'set', CARD, 'mtu', '9000', 'up']);
    }
    const own = netdev === undefined ? undefined : await addressOf(netdev);
    await run(['rdma', 'link', 'add', RDMA_DEVICE, 'type', 'rxe', 'netdev', card]).catch((error: unknown) => {
      throw new TestbedError('ERR_TESTBED', `Cannot make a soft-RoCE device on ${card}: ${(error as Error).message}`, {
        cause: error,
      });
    });
    await isActive(card);
    await createStore(this.state);
    writeFileSync(this.secretFile, this.secret, { mode: 0o600 });
    const ids = Array.from({ length: nodes }, (_, i) => `n${i + 1}`);
    for (const id of ids)
      await this.startProcess(
        id,
        'node',
        own ?? `${NETWORK}.${Number(id.slice(1)) + 1}`,
        PORT + 2 * Number(id.slice(1)),
      );
    await this.startProcess('s1', 'switch', own ?? `${NETWORK}.1`, PORT);
  }

  private async startProcess(id: string, role: 'node' | 'switch', host: string, port: number): Promise<void> {
    const { state, options } = this;
    if (role === 'node') mkdirSync(state.node(id), { recursive: true, mode: 0o700 });
    const record = await startChild(
      {
        id,
        role,
        host,
        logs: state.logs,
        dependent: true,
        env: { TARTAN_SECRET: this.secret },
        readyMs: READY_MS,
        args: [
          '--cluster',
          state.cluster,
          '--id',
          id,
          '--host',
          host,
          '--port',
          String(port),
          '--control-port',
          String(port + 1),
          '--ring-memory',
          String(64 << 20),
          '--device',
          `verbs:${RDMA_DEVICE}`,
          ...(role === 'node'
            ? ['--store', state.node(id), '--durability', options.durability, '--size', String(STORE_BYTES)]
            : []),
        ],
      },
      (spawned) => {
        state.record(spawned);
      },
    );
    state.record({ ...record, device: `verbs:${RDMA_DEVICE}` });
  }
}

/** @returns those that were not loaded before. @throws {TestbedError} ERR_MISSING_MODULE */
async function loadModules(modules: readonly string[]): Promise<string[]> {
  const loaded: string[] = [];
  for (const module of modules) {
    if (existsSync(`/sys/module/${module}`)) continue;
    await run(['modprobe', module]).catch((cause: unknown) => {
      throw new TestbedError(
        'ERR_MISSING_MODULE',
        `Cannot make RDMA devices: the kernel module ${module} can't be loaded ` +
          `(${(cause as Error).message.replace(/\s+/g, ' ').trim()}); Debian's linux-image-amd64 has it`,
        { cause },
      );
    });
    loaded.push(module);
  }
  return loaded;
}

/** Ours only, by name: of this run, or of one that was killed. */
async function removeLinks(): Promise<void> {
  if (existsSync(`/sys/class/infiniband/${RDMA_DEVICE}`)) await run(['rdma', 'link', 'delete', RDMA_DEVICE]);
  if (existsSync(`/sys/class/net/${CARD}`)) await run(['ip', 'link', 'delete', CARD]);
}

async function addressOf(card: string): Promise<string> {
  const [found] = JSON.parse(await run(['ip', '-j', '-4', 'address', 'show', 'dev', card])) as {
    addr_info: { local: string }[];
  }[];
  const address = found?.addr_info[0]?.local;
  if (address === undefined)
    throw new TestbedError('ERR_TOPOLOGY', `Cannot use the network card '${card}': it has no IPv4 address`);
  return address;
}

async function isActive(card: string): Promise<void> {
  for (let tries = 0; tries < ACTIVE_TRIES; tries++, await delay(100)) {
    if (readFileSync(`/sys/class/infiniband/${RDMA_DEVICE}/ports/1/state`, 'utf8').includes('ACTIVE')) return;
  }
  throw new TestbedError('ERR_TESTBED', `Cannot use soft-RoCE on ${card}: its port is not active; is the card up?`);
}
