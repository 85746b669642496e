import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import t from 'tap';
import { Access, Flag, openSoftDevice, type Device } from 'tartan-rdma';
import { createFile } from '../../cluster/files.js';
import { openSqliteStore } from '../../cluster/sqlite-store.js';
import { createCluster, readMap, registerNode } from '../../cluster/membership.js';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import type { ClusterIdentity, FileRecord } from '../../cluster/records.js';
import { makeLayout, unitOfNode } from '../../erasure/layout/index.js';
import { Hub } from '../../pipeline/hub.js';
import { connectSession, type Session } from '../../pipeline/session.js';
import { realClock } from '../../wire/clock.js';
import { NodeControl } from '../../wire/control.js';
import { ACK_WORDS, MessageType, Refusal, unitImm } from '../../wire/ring-messages.js';
import { PAGE_BYTES } from '../../wire/slot-layout.js';
import { makeUnit, type TestUnit } from './units.js';

const ROOT = resolve(import.meta.dirname, '../..');
const UNIT_BYTES = 65536;
const layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: UNIT_BYTES });

interface Running {
  child: ChildProcess;
  port: number;
  controlPort: number;
}

/** A cluster's store in a folder of its own, and what the test started in it. */
class Bench {
  readonly children = new Set<ChildProcess>();
  device!: Device;
  cluster!: ClusterStore;
  identity!: ClusterIdentity;
  file!: FileRecord;
  constructor(readonly folder: string) {}

  static async make(t: { teardown(fn: () => Promise<void>): void }): Promise<Bench> {
    const bench = new Bench(await mkdtemp(join(tmpdir(), 'tartan-node-')));
    t.teardown(() => bench.close());
    bench.device = openSoftDevice({ name: 'test' });
    bench.cluster = await openSqliteStore(bench.path('cluster'), { create: true });
    bench.identity = await createCluster(bench.cluster);
    for (const id of ['n2', 'n3'])
      await registerNode(bench.cluster, { id, host: '127.0.0.1', port: 1, controlPort: 0 });
    bench.file = await createFile(bench.cluster, {
      name: 'a',
      code: 'xor(2+1)',
      unitBytes: UNIT_BYTES,
      nodes: ['n1', 'n2', 'n3'],
    });
    return bench;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  spawn(...args: string[]): ChildProcess {
    const { NODE_OPTIONS: _, TARTAN_SECRET: __, ...env } = process.env;
    const child = spawn(process.execPath, ['--import', 'tsx', 'storage-node/main.ts', ...args], {
      cwd: ROOT,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.children.add(child);
    child.once('exit', () => {
      this.children.delete(child);
    });
    return child;
  }

  async start(...args: string[]): Promise<Running> {
    const child = this.spawn(
      '--cluster',
      this.path('cluster'),
      '--id',
      'n1',
      '--store',
      this.path('n1.store'),
      '--size',
      String(64 << 20),
      ...args,
    );
    let errors = '';
    child.stderr!.on('data', (chunk: Buffer) => {
      errors += chunk.toString();
    });
    const lines = createInterface({ input: child.stdout! });
    const [line] = (await Promise.race([
      once(lines, 'line'),
      once(child, 'exit').then(() => {
        throw new Error(`the node ended: ${errors}`);
      }),
    ])) as [string];
    return { child, ...(JSON.parse(line) as { port: number; controlPort: number }) };
  }

  /** A command that is meant to fail. @returns exit code and standard error */
  async fails(...args: string[]): Promise<{ code: number | null; errors: string; output: string }> {
    const child = this.spawn(...args);
    let errors = '',
      output = '';
    child.stderr!.on('data', (chunk: Buffer) => {
      errors += chunk.toString();
    });
    child.stdout!.on('data', (chunk: Buffer) => {
      output += chunk.toString();
    });
    const [code] = (await once(child, 'close')) as [number | null];
    return { code, errors, output };
  }

  async connect(port: number, transport: 'tcp' | 'shm'): Promise<Link> {
    const context = {
      device: this.device,
      hub: new Hub(this.device),
      clock: realClock,
      secret: undefined,
      clusterId: this.identity.clusterId,
    };
    return new Link(
      this.device,
      await connectSession(
        context,
        '127.0.0.1',
        port,
        { role: 'writer', name: 'test', unitBytes: UNIT_BYTES, slots: 16 },
        { transport, receiveSlots: 64 },
      ),
    );
  }

  async unit(stripe: number, counter = stripe + 1): Promise<TestUnit> {
    return makeUnit({
      fileId: this.file.id,
      stripe,
      counter,
      unit: unitOfNode(layout, stripe, 0),
      unitBytes: UNIT_BYTES,
      mapEpoch: (await readMap(this.cluster)).epoch,
      clusterId: this.identity.clusterId,
    });
  }

  async close(): Promise<void> {
    for (const child of [...this.children]) {
      const gone = once(child, 'exit');
      child.kill('SIGKILL');
      await gone;
    }
    await this.device.close();
    await this.cluster.close();
    await rm(this.folder, { recursive: true });
  }
}

/** A session spoken by hand: slot i is used for the unit given as the i-th. */
class Link {
  readonly refusals = new Map<number, number>();
  readonly reads = new Map<number, number>();
  closed = false;
  private wake: () => void = () => undefined;
  private readonly source;
  readonly target;

  constructor(
    device: Device,
    private readonly session: Session,
  ) {
    const { slots, slotBytes } = session.grant,
      { channel } = session;
    this.source = device.allocate(slots * slotBytes);
    this.target = device.allocate(slots * slotBytes, Access.REMOTE_WRITE);
    channel.onRecords = (type, words, w, count) => {
      for (let i = 0; i < count; i++) {
        if (type === MessageType.ACK)
          this.refusals.set(words[w + i * ACK_WORDS]! & 0xffff, words[w + i * ACK_WORDS]! >>> 16);
        else if (type === MessageType.READ_FAILED) this.reads.set(words[w + i * 4]!, words[w + i * 4 + 1]!);
      }
      this.wake();
    };
    channel.onWrite = (imm) => {
      this.reads.set(imm, 0);
      this.wake();
    };
    channel.onClosed = () => {
      this.closed = true;
      this.wake();
    };
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.closed) throw new Error('the connection closed');
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Sends up to a ring of units at once. @returns their refusals */
  async send(units: readonly TestUnit[]): Promise<number[]> {
    const { slotBytes, rkey } = this.session.grant,
      { channel } = this.session;
    this.refusals.clear();
    units.forEach((unit, slot) => {
      const at = slot * slotBytes + PAGE_BYTES - unit.headerBytes,
        bytes = new Uint8Array(this.source.buffer);
      bytes.set(new Uint8Array(unit.words.buffer, 0, unit.headerBytes), at);
      bytes.set(unit.payload, at + unit.headerBytes);
      channel.qp.postWriteWithImm(
        slot,
        this.source,
        at,
        unit.headerBytes + unit.payload.length,
        rkey,
        at,
        unitImm(slot, unit.headerBytes),
        Flag.SIGNALED,
      );
    });
    channel.hub.wake();
    await this.until(() => this.refusals.size === units.length);
    return units.map((_, slot) => this.refusals.get(slot)!);
  }

  /** @returns refusals, and the payloads in the target's slots */
  async read(fileId: number, stripes: readonly number[]): Promise<{ refusals: number[]; payloads: Uint8Array[] }> {
    const { slotBytes } = this.session.grant,
      { channel } = this.session;
    this.reads.clear();
    stripes.forEach((stripe, slot) => {
      const queue = channel.records(MessageType.READ),
        w = queue.push();
      const at = slot * slotBytes;
      queue.words.set(
        [
          slot,
          fileId,
          0,
          stripe,
          0,
          unitOfNode(layout, stripe, 0),
          0xffffffff,
          0xffffffff,
          this.target.rkey,
          at + PAGE_BYTES,
          UNIT_BYTES,
          at,
          0,
          0,
        ],
        w,
      );
    });
    channel.touch();
    await this.until(() => this.reads.size === stripes.length);
    return {
      refusals: stripes.map((_, slot) => this.reads.get(slot)!),
      payloads: stripes.map((_, slot) =>
        new Uint8Array(this.target.buffer, slot * slotBytes + PAGE_BYTES, UNIT_BYTES).slice(),
      ),
    };
  }

  async close(): Promise<void> {
    await this.session.channel.destroy('done');
    await this.source.deregister();
    await this.target.deregister();
  }
}

t.test(
  'A node process stores and returns units over both transports, survives SIGKILL, and stops cleanly',
  async (t) => {
    const bench = await Bench.make(t);
    let running = await bench.start();
    const stripes = Array.from({ length: 16 }, (_, i) => i);
    for (const [turn, transport] of (['tcp', 'shm'] as const).entries()) {
      const link = await bench.connect(running.port, transport);
      const units = await Promise.all(stripes.map((i) => bench.unit(turn * 16 + i)));
      t.same(
        await link.send(units),
        stripes.map(() => Refusal.NONE),
        transport,
      );
      const { refusals, payloads } = await link.read(
        bench.file.id,
        stripes.map((i) => turn * 16 + i),
      );
      t.same(
        refusals,
        stripes.map(() => 0),
      );
      t.ok(
        units.every((unit, i) => Buffer.compare(unit.payload, payloads[i]!) === 0),
        `${transport}: byte for byte`,
      );
      await link.close();
    }
    const control = new NodeControl('127.0.0.1', running.controlPort);
    const status = await control.status();
    control.close();
    t.match(status, { id: 'n1', state: 'up' });
    t.equal(status.counters['tartan_store_units'], 32);

    const killed = once(running.child, 'exit');
    running.child.kill('SIGKILL');
    await killed;
    running = await bench.start();
    const link = await bench.connect(running.port, 'shm');
    const { refusals, payloads } = await link.read(bench.file.id, stripes);
    t.same(
      refusals,
      stripes.map(() => 0),
    );
    for (const i of stripes) t.ok(Buffer.compare(payloads[i]!, (await bench.unit(i)).payload) === 0);

    const second = await bench.fails(
      '--cluster',
      bench.path('cluster'),
      '--id',
      'n1',
      '--store',
      bench.path('n1.store'),
    );
    t.match(second, { code: 1, output: '', errors: /^tartan: ERR_IN_USE: .*n1\.store.*\n$/ });

    await link.close();
    const stopped = once(running.child, 'exit');
    running.child.kill('SIGTERM');
    t.same(await stopped, [0, null]);
    t.equal((await readMap(bench.cluster)).nodes.find((node) => node.id === 'n1')!.state, 'down');
  },
);

t.test('A directory is given a store file; a volatile and a discarding node say what they are', async (t) => {
  const bench = await Bench.make(t);
  const { mkdir } = await import('node:fs/promises');
  await mkdir(bench.path('n1'));
  const running = await bench.start('--store', bench.path('n1'), '--durability', 'async');
  t.ok((await readdir(bench.path('n1'))).includes('units'));
  const link = await bench.connect(running.port, 'tcp');
  t.same(await link.send([await bench.unit(0)]), [Refusal.NONE]);
  const stopped = once(running.child, 'exit');
  running.child.kill('SIGINT');
  t.same(await stopped, [0, null]);
  await link.close();
  const refused = await bench.fails(
    '--cluster',
    bench.path('cluster'),
    '--id',
    'n1',
    '--store',
    bench.path('n1'),
    '--durability',
    'discard',
  );
  t.match(refused, { code: 1, errors: /^tartan: ERR_ARGUMENT: .*units held: 1,/m });
});

t.test('Bad input ends with one clear line: 2 for usage, 1 for what is not there or not allowed', async (t) => {
  const bench = await Bench.make(t);
  const cluster = ['--cluster', bench.path('cluster'), '--id', 'n1'];
  const cases: [string[], number, RegExp][] = [
    [[], 2, /^tartan: --cluster, --id and --store are required\nusage: /],
    [[...cluster, '--store', bench.path('s'), '--port', 'x'], 2, /^tartan: --port is 'x', expected a whole number\n/],
    [[...cluster, '--store', bench.path('s'), '--durability', 'maybe'], 2, /--durability is 'maybe'/],
    [[...cluster, '--store', bench.path('s'), '--host', '0.0.0.0'], 1, /^tartan: ERR_SECRET_REQUIRED: .*\n$/],
    [['--cluster', bench.path('none'), '--id', 'n1', '--store', bench.path('s')], 1, /^tartan: ERR_NOT_FOUND: .*\n$/],
    [[...cluster, '--store', join(bench.path('no'), 'such', 'folder')], 1, /^tartan: ERR_DISK: .*\n$/],
  ];
  await Promise.all(
    cases.map(async ([args, code, errors]) => {
      const result = await bench.fails(...args);
      t.equal(result.code, code, args.slice(-2).join(' '));
      t.match(result.errors.replace(/^\{.*\n/gm, ''), errors);
      t.equal(result.output, '');
    }),
  );
});
