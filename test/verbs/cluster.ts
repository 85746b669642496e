/**
 * The whole cluster over verbs: three nodes, the switch and a writer, each with an address of its own on one soft-RoCE
 * device. The fallback stories are those of test/stories, once each: the clock here is slow, the processes are real.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { openSoftDevice, openVerbsDevice } from 'tartan-rdma';
import { startChild, stopProcess } from '../../cli/child-process.js';
import { createStore } from '../../cli/cluster-processes.js';
import { type ProcessRecord, StateDirectory } from '../../cli/state-directory.js';
import { NodeControl, SwitchControl } from '../../wire/control.js';
import { codeOf } from '../../wire/errors.js';
import { type Client, connect, type ConnectOptions } from '../../writer/index.js';
import { finish, fresh, pause, pour, readAll } from '../stories/running-cluster.js';
import { ADDRESSES, DEVICE } from './machine.js';

const SECRET = 'soft-roce';
/** Silence that means death. The emulated machine may stand still for a second. */
const DEADLINE_MS = 8000;
const BYTES = 3 << 20;

class VerbsCluster {
  readonly state = new StateDirectory(mkdtempSync(join(tmpdir(), 'tartan-verbs-')));
  readonly processes = new Map<string, ProcessRecord>();

  async start(id: string, device = `verbs:${DEVICE}`): Promise<void> {
    const isSwitch = id === 's1';
    const host = isSwitch ? ADDRESSES[0]! : ADDRESSES[Number(id.slice(1))]!;
    if (!isSwitch) mkdirSync(this.state.node(id), { recursive: true });
    const own = isSwitch
      ? ['--deadline-ms', String(DEADLINE_MS)]
      : ['--store', this.state.node(id), '--size', String(64 << 20), '--durability', 'volatile'];
    const record = await startChild(
      {
        id,
        role: isSwitch ? 'switch' : 'node',
        host,
        logs: this.state.logs,
        dependent: true,
        readyMs: 120_000,
        env: { TARTAN_SECRET: SECRET },
        args: [
          '--cluster',
          this.state.cluster,
          '--id',
          id,
          '--host',
          host,
          '--ring-memory',
          String(48 << 20),
          '--device',
          device,
          ...own,
        ],
      },
      (spawned) => {
        this.processes.set(id, spawned);
      },
    );
    this.processes.set(id, record);
  }

  client(options: Partial<ConnectOptions> = {}): Promise<Client> {
    return connect({
      cluster: this.state.cluster,
      device: `verbs:${DEVICE}`,
      secret: SECRET,
      deadlineMs: DEADLINE_MS,
      holdMs: 200,
      ringMemoryBytes: 64 << 20,
      ...options,
    });
  }

  async switchControl<T>(call: (control: SwitchControl) => Promise<T>): Promise<T> {
    const { host, controlPort } = this.processes.get('s1')!;
    const control = new SwitchControl(host, controlPort, { secret: SECRET });
    try {
      return await call(control);
    } finally {
      control.close();
    }
  }

  async nodeCounters(id: string): Promise<Record<string, number>> {
    const { host, controlPort } = this.processes.get(id)!;
    const control = new NodeControl(host, controlPort, { secret: SECRET });
    try {
      return (await control.status()).counters;
    } finally {
      control.close();
    }
  }

  async kill(id: string): Promise<void> {
    await stopProcess(this.processes.get(id)!.identity, 0);
    this.processes.delete(id);
  }

  async end(): Promise<void> {
    for (const id of [...this.processes.keys()]) await this.kill(id);
    rmSync(this.state.path, { recursive: true, force: true });
  }
}

async function store(client: Client, name: string, data: Buffer, middle?: () => Promise<void>): Promise<string[]> {
  const writer = await client.create(name, { code: 'xor(2+1)', unitBytes: 65536 });
  const modes = [writer.parityMode as string];
  writer.on('mode', ({ mode }) => {
    modes.push(mode);
  });
  await pour(writer, data.subarray(0, data.length / 2));
  await middle?.();
  await pour(writer, data.subarray(data.length / 2));
  await finish(writer);
  return modes;
}

export function run(t: Test): void {
  t.test('the whole cluster over verbs', async (t) => {
    const cluster = new VerbsCluster();
    t.teardown(() => cluster.end());
    await createStore(cluster.state);
    await Promise.all(['n1', 'n2', 'n3'].map((id) => cluster.start(id)));
    await cluster.start('s1');
    const client = await cluster.client();
    t.teardown(() => client.close());
    const stored = new Map<string, Buffer>();
    const write = async (name: string, middle?: () => Promise<void>): Promise<string[]> => {
      const data = fresh(BYTES);
      const modes = await store(client, name, data, middle);
      stored.set(name, data);
      return modes;
    };
    const compare = async (t: Test): Promise<number> => {
      let degraded = 0;
      for (const [name, data] of stored) {
        const read = await readAll(client, name);
        t.ok(read.bytes.equals(data), `'${name}' reads back`);
        degraded += read.degraded;
      }
      return degraded;
    };

    await t.test('a write through the switch; no device copied a byte', async (t) => {
      const modes = await write('through the switch');
      t.equal(modes[modes.length - 1], 'switch', 'the switch computes the parity');
      const counters = (await cluster.switchControl((control) => control.status())).counters;
      t.equal(counters['tartan_device_bytes_copied'], 0, 'the switch copied nothing');
      t.ok(
        counters['tartan_device_bytes_sent']! >= BYTES * 1.5,
        `the switch sent data and parity: ${counters['tartan_device_bytes_sent']}`,
      );
      t.ok(
        counters['tartan_device_bytes_encoded']! >= BYTES,
        `the switch read each byte once to encode: ${counters['tartan_device_bytes_encoded']}`,
      );
      for (const id of ['n1', 'n2', 'n3'])
        t.equal((await cluster.nodeCounters(id))['tartan_device_bytes_copied'], 0, `${id} copied nothing`);
      await compare(t);
    });

    await t.test('the switch loses its program in the middle of a write, and gets it back', async (t) => {
      const modes = await write('without a program', async () => {
        await cluster.switchControl((control) => control.unload());
      });
      t.same(modes.slice(-2), ['switch', 'host'], 'the writer goes on by itself');
      await cluster.switchControl((control) => control.load('parity'));
      await compare(t);
    });

    await t.test('the switch is killed in the middle of a write', async (t) => {
      for (let tries = 0; tries < 100; tries++) {
        const modes = await store(client, `probe ${tries}`, fresh(1 << 17));
        if (modes[modes.length - 1] === 'switch') break;
        await pause(200);
      }
      const modes = await write('the switch killed', () => cluster.kill('s1'));
      t.equal(modes[modes.length - 1], 'host', 'the writer computes the parity');
      await compare(t);
    });

    await t.test(
      'a client on a soft device is told why it can reach no node, and nothing of the cluster changes',
      async (t) => {
        const device = openSoftDevice({ name: 'stranger' });
        t.teardown(() => device.close());
        const node = cluster.processes.get('n1')!;
        await t.rejects(device.connect(node.host, node.port), { code: 'ERR_DEVICE_KIND', message: /verbs device/ });
      },
    );

    await t.test('a soft client is refused, reading and writing, and no node is called down for it', async (t) => {
      const stranger = await cluster.client({ device: 'soft' });
      t.teardown(() => stranger.close());
      const before = await stranger.map();
      await t.rejects(readAll(stranger, 'through the switch'), {
        code: 'ERR_DEVICE_KIND',
        message: /same kind of device/,
      });
      await t.rejects(stranger.create('never'), { code: 'ERR_DEVICE_KIND' });
      t.equal((await stranger.map()).epoch, before.epoch);
    });

    await t.test('a verbs device is told that only a soft device answers', async (t) => {
      const soft = openSoftDevice({ name: 'soft' });
      const verbs = openVerbsDevice({ device: DEVICE });
      t.teardown(() => Promise.all([soft.close(), verbs.close()]));
      const listener = await soft.listen(ADDRESSES[5]!, 0, () => {});
      await t.rejects(verbs.connect(ADDRESSES[5]!, listener.port), {
        code: 'ERR_DEVICE_KIND',
        message: /same kind of device/,
      });
    });

    await t.test('a node is killed: everything reads back, degraded', async (t) => {
      await cluster.kill('n2');
      const degraded = await compare(t);
      t.ok(degraded > 0, `${degraded} stripes were decoded`);
    });

    await t.test('a client without the secret is refused', async (t) => {
      const stranger = await cluster.client({ secret: 'wrong' });
      t.teardown(() => stranger.close());
      const failure = await readAll(stranger, 'through the switch').then(
        () => undefined,
        (error: unknown) => error,
      );
      t.ok(codeOf(failure), `${codeOf(failure)}: ${String(failure)}`);
    });
  });
}
