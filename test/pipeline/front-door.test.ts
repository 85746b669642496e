/**
 * The front doors of nodes and switch: whatever a Hello or a request says, and whatever can't be had to serve it, costs
 * that request alone, and what was taken for it is given back.
 */
import t, { type Test } from 'tap';
import { type Device, RdmaError, type SimWorld } from 'tartan-rdma';
import { createFile } from '../../cluster/files.js';
import type { FileRecord } from '../../cluster/records.js';
import { Hub } from '../../pipeline/hub.js';
import { connectSession, type HelloWishes, type Session, type SessionContext } from '../../pipeline/session.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import type { Reply, Request } from '../../wire/generated/ring.js';
import { SimCluster } from '../simulation/cluster.js';
import { storeAndRead } from '../fuzz/honest-client.js';

const SEED = 11;
const UNIT_BYTES = 1024;

/** Fails the n-th allocation of a device from now on, with a given error; 0: none. */
class Scarcity {
  private left = 0;
  private error: (what: string) => Error = () => new Error();
  /** The allocation was reached. */
  hasFailed = false;

  constructor(device: Device) {
    for (const name of ['allocate', 'createCoder', 'createCodingQueue'] as const) {
      const real = device[name].bind(device) as (...args: unknown[]) => unknown;
      (device as unknown as Record<string, unknown>)[name] = (...args: unknown[]) => {
        if (this.left > 0 && --this.left === 0) {
          this.hasFailed = true;
          throw this.error(name);
        }
        return real(...args);
      };
    }
  }

  failAt(n: number, error: (what: string) => Error): void {
    this.left = n;
    this.error = error;
    this.hasFailed = false;
  }
}

const ERRORS: Readonly<Record<string, (what: string) => Error>> = {
  'the device refuses memory': (what) => new RdmaError('ERR_REGISTRATION_REFUSED', `no memory left for ${what}`),
  'the heap is full': () => new RangeError('Array buffer allocation failed'),
  'the engine has no memory': () => Object.assign(new Error('no memory: bad_alloc'), { code: 'ERR_NO_MEMORY' }),
};

interface World {
  readonly cluster: SimCluster;
  readonly file: FileRecord;
  readonly context: SessionContext;
  readonly scarce: Map<string, Scarcity>;
  readonly devices: Map<string, Device>;
}

/** Three nodes, a switch, a file over them and somebody who connects by hand. */
async function start(cluster: SimCluster): Promise<World> {
  const scarce = new Map<string, Scarcity>();
  const devices = new Map<string, Device>();
  const open = cluster.world.openDevice.bind(cluster.world);
  cluster.world.openDevice = (...args: Parameters<SimWorld['openDevice']>) => {
    const device = open(...args);
    scarce.set(args[0], new Scarcity(device));
    devices.set(args[0], device);
    return device;
  };
  await cluster.start();
  const file = await createFile(cluster.memory.client(), {
    name: 'a',
    code: 'xor(2+1)',
    unitBytes: UNIT_BYTES,
    nodes: cluster.nodes.map(({ id }) => id),
    modified: new Date(0).toISOString(),
  });
  const device = cluster.world.openDevice('peer');
  const context = {
    device,
    hub: new Hub(device),
    clock: cluster.clock('peer'),
    secret: undefined,
    clusterId: cluster.clusterId,
  };
  return { cluster, file, context, scarce, devices };
}

function inVirtualTime(t: Test, run: (world: World) => Promise<void>): Promise<void> {
  const cluster = new SimCluster({ seed: SEED, deadlineMs: 1000 });
  t.comment(`seed ${SEED}`);
  return cluster.world.complete(
    start(cluster).then((world) => run(world)),
    3_600_000,
  );
}

const DOORS: readonly { name: string; host: string; port: number; role: string; wishes: Partial<HelloWishes> }[] = [
  { name: 'a node, by a writer', host: 'n1', port: 7000, role: 'writer', wishes: { unitBytes: UNIT_BYTES, slots: 4 } },
  { name: 'a node, by a reader', host: 'n1', port: 7000, role: 'reader', wishes: {} },
  {
    name: 'a switch, by a writer',
    host: 's1',
    port: 7100,
    role: 'writer',
    wishes: { unitBytes: UNIT_BYTES, slots: 4 },
  },
  { name: 'a switch, by a decoder', host: 's1', port: 7100, role: 'decoder', wishes: {} },
];

for (const [why, error] of Object.entries(ERRORS)) {
  t.test(`${why}: at each allocation of a session it is refused, and all is given back`, (t) =>
    inVirtualTime(t, async ({ cluster, file, context, scarce, devices }) => {
      for (const { name, host, port, role, wishes } of DOORS) {
        const hello: HelloWishes = {
          ...{
            k: 2,
            m: 1,
            code: file.code,
            nodes: [...file.nodes],
            tags: 8,
            mapEpoch: cluster.nodes[0]!.node!.mapEpoch,
          },
          ...{ role, name: 'scarce', fileId: file.id },
          ...wishes,
        };
        const held = (): unknown[] => {
          const { regions, queuePairs } = devices.get(host)!.counters();
          return [
            regions,
            queuePairs,
            cluster.nodes[0]!.node!.memory.used,
            cluster.switchCore!.counters().ringMemoryUsed,
          ];
        };
        await sleep(context.clock, 2000);
        const before = held();
        let failed = 0;
        for (let n = 1; ; n++) {
          scarce.get(host)!.failAt(n, error);
          const outcome = await connectSession(context, host, port, hello).catch((cause: unknown) => cause as Error);
          const { hasFailed } = scarce.get(host)!;
          scarce.get(host)!.failAt(0, error);
          // A decoder reads around nodes that it can't reach.
          const isGranted = 'channel' in outcome;
          if (isGranted) await (outcome as Session).channel.destroy('done');
          if (isGranted && !hasFailed) break;
          failed++;
          // Before it has proved itself a peer is told nothing: its connection ends.
          const codes = n === 1 ? ['ERR_CONNECT'] : ['ERR_RING_MEMORY', 'ERR_CAPACITY', 'ERR_CONNECT'];
          if (!isGranted && !codes.includes(codeOf(outcome) ?? ''))
            t.fail(`${name}, allocation ${n}: ${String(outcome)}`);
          await sleep(context.clock, 2000);
          t.same(held(), before, `${name}, allocation ${n}: regions, queue pairs, ring memory`);
        }
        t.ok(failed > 1, `${name}: ${failed} allocations`);
      }
      t.ok(await storeAndRead(await cluster.client('honest'), 'honest', SEED), 'a file is stored and reads back');
    }),
  );
}

const NUMBERS = [0, 1, 2 ** 31, 2 ** 32 - 1];
const LONG_NUMBERS = [...NUMBERS, 2 ** 40, 2 ** 53 - 1];

/** Requests of every kind, with numbers at the edges of what a message can say. */
function requests(): Request['op'][] {
  const ops: Request['op'][] = [undefined];
  const pick = (i: number): [number, number] => [NUMBERS[i % NUMBERS.length]!, LONG_NUMBERS[i % LONG_NUMBERS.length]!];
  // 4 and 6 numbers: their least common multiple shows each beside its neighbours only; 7 shifts them.
  for (let i = 0; i < 42; i++) {
    const [short, long] = pick(i),
      [short2, long2] = pick(i + Math.floor(i / 7)),
      [short3] = pick(Math.floor(i / 4));
    ops.push(
      { $case: 'fence', value: { fileId: long, writerEpoch: short2 } },
      { $case: 'inventory', value: { fileId: long, fromStripe: long2, limit: short3, verify: i % 2 === 0 } },
      {
        $case: 'recordMissing',
        value: {
          ...{ fileId: long, stripe: long2, writerEpoch: short, counter: short2, mask: long2, requestEpoch: short3 },
        },
      },
      { $case: 'adoptMap', value: { mapEpoch: short } },
      { $case: 'fileMark', value: { fileId: long } },
      { $case: 'discard', value: { fileId: long, fromStripe: long2, writerEpoch: short2 } },
      {
        $case: 'condemn',
        value: {
          ...{ fileId: long, stripe: long2, unit: short, writerEpoch: short2, counter: short3, payloadCrc: short },
        },
      },
      { $case: 'deleteFile', value: { fileId: long } },
    );
  }
  return ops;
}

t.test('a request with any numbers is answered, with a code or without, and the node goes on', (t) =>
  inVirtualTime(t, async ({ cluster, context }) => {
    const { mapEpoch } = cluster.nodes[0]!.node!;
    const { channel } = await connectSession(context, 'n1', 7000, { role: 'control', name: 'asks', mapEpoch });
    channel.mapEpoch = mapEpoch;
    const replies = new Map<number, (reply: Reply) => void>();
    channel.onControl = ({ kind }) => {
      if (kind?.$case === 'reply') replies.get(kind.value.id)?.(kind.value);
    };
    channel.onClosed = (reason) => {
      t.fail(`closed: ${reason}`);
    };
    const codes = new Set<string>();
    let id = 0;
    for (const op of requests()) {
      const reply = new Promise<Reply>((resolve) => {
        replies.set(++id, resolve);
      });
      channel.sendControl({ kind: { $case: 'request', value: { id, op } } });
      codes.add((await reply).code);
    }
    t.ok(codes.has('') && codes.has('ERR_MALFORMED') && codes.has('ERR_NO_UNIT'), [...codes].join());
    channel.onClosed = () => undefined;
    await channel.destroy('done');
    t.ok(await storeAndRead(await cluster.client('honest'), 'honest', SEED), 'a file is stored and reads back');
  }),
);
