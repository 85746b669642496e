/**
 * Shares move at random while files are appended to, closed, taken over and read, and nodes, writers and drainers die:
 * in virtual time, from seeds. Whatever was acknowledged reads back, nothing else ever does, and in the end with any m
 * nodes gone.
 */
import t from 'tap';
import { setNodePurpose } from '../../cluster/membership.js';
import { parseCode } from '../../erasure/code/index.js';
import { MemoryDisk } from '../../storage-node/memory-disk.js';
import { sleep } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import type { Client, FileWriter } from '../../writer/index.js';
import { SimCluster } from '../simulation/cluster.js';

const LONG = process.env['TARTAN_LONG'] === '1';
const SEEDS =
  process.env['SEED'] === undefined
    ? Array.from({ length: Number(process.env['SEEDS'] ?? (LONG ? 1000 : 3)) }, (_, i) => 700 + i)
    : [Number(process.env['SEED'])];
const DISK_BYTES = 24 << 20;
/** Virtual ms of trouble; then all is healed and checked. */
const TROUBLE_MS = 3000;
/** What may go wrong while nodes and clients die. */
const EXPECTED = new Set([
  'ERR_UNDECIDED',
  'ERR_TOO_MANY_LOST',
  'ERR_FENCED',
  'ERR_CONNECT',
  'ERR_CLOSED',
  'ERR_DEADLINE',
  'ERR_STALE_MAP',
  'ERR_STALE_EPOCH',
  'ERR_NOT_ENOUGH_NODES',
  'ERR_WOULD_LOSE',
  'ERR_ARGUMENT',
  'ERR_MAP_UNAVAILABLE',
  'ERR_NOT_FOUND',
]);

/** A file as its owners made it: each continues where it took over, with bytes that nobody else writes. */
class Content {
  private owners: { readonly from: number; readonly salt: number }[] = [];

  /** A new owner has taken over with so many bytes: what others wrote beyond is rolled back, and never to be seen. */
  takenOver(at: number, salt: number): void {
    this.owners = [...this.owners.filter(({ from }) => from < at), { from: at, salt }];
  }

  bytes(from: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    let owner = this.owners.findLastIndex((each) => each.from <= from);
    for (let i = 0; i < length; i++) {
      while (owner + 1 < this.owners.length && this.owners[owner + 1]!.from <= from + i) owner++;
      bytes[i] = Math.imul((from + i + 1) ^ (this.owners[owner]!.salt << 12), 0x9e3779b1) >>> 24;
    }
    return bytes;
  }
}

class Story {
  readonly cluster: SimCluster;
  readonly counts = { appends: 0, reads: 0, moved: 0, scattered: 0, drainsKilled: 0, writersKilled: 0, faults: 0 };
  /** Bytes of each file that were acknowledged. */
  private readonly acknowledged = new Map<string, number>();
  private readonly contents = new Map(['a', 'b', 'c'].map((name) => [name, new Content()]));
  private readonly away = new Set<string>();
  private readonly random: () => number;
  private readonly code: string;
  private over = false;
  private hosts = 0;
  private owners = 0;

  constructor(private readonly seed: number) {
    this.cluster = new SimCluster({ seed, nodes: 4, diskBytes: DISK_BYTES, ringMemoryBytes: 16 << 20 });
    const random = this.cluster.world.fork('story');
    this.random = () => random.random();
    this.code = this.pick(['xor(2+1)', 'rs(2,2)', 'copies(1,2)']);
  }

  async run(): Promise<void> {
    const { cluster } = this;
    await cluster.start();
    const client = await this.client();
    // Every other time all nodes are in use from the beginning: then shares are spread over the others.
    const isFull = this.seed % 2 === 1;
    if (isFull) await this.addNodes();
    for (const name of ['a', 'b', 'c']) {
      const writer = await client.create(name, {
        code: this.code,
        unitBytes: 1024,
        layout: this.pick(['rotated', 'spread']),
      });
      this.acknowledged.set(name, 0);
      await ended(writer);
    }
    if (!isFull) await this.addNodes();
    const actors = [
      this.write('a'),
      this.write('b'),
      this.write('c'),
      this.read(),
      this.read(),
      this.drain(),
      ...Array.from({ length: parseCode(this.code).m }, () => this.strike()),
    ];
    await this.pause(TROUBLE_MS);
    this.over = true;
    await Promise.all(actors);
    await this.check(client);
  }

  private async addNodes(): Promise<void> {
    for (const id of ['n5', 'n6']) {
      this.cluster.nodes.push({
        id,
        host: id,
        disk: new MemoryDisk(DISK_BYTES),
        node: undefined,
        store: this.cluster.memory.client(),
      });
      await this.cluster.startNode(this.cluster.nodes.at(-1)!);
    }
  }

  private int(below: number): number {
    return Math.floor(this.random() * below);
  }
  private pick<T>(of: readonly T[]): T {
    return of[this.int(of.length)]!;
  }
  private pause(ms: number): Promise<void> {
    return sleep(this.cluster.clock('story'), ms);
  }

  private async client(): Promise<Client> {
    return (await this.mortal()).client;
  }

  /** A client on a host of its own, that can be killed as a process is. */
  private async mortal(): Promise<{ client: Client; kill(): Promise<void> }> {
    const host = `h${++this.hosts}`,
      store = this.cluster.memory.client();
    const client = await this.cluster.client(host, { cluster: store });
    return {
      client,
      kill: async () => {
        this.cluster.world.killHost(host);
        await store.close();
      },
    };
  }

  private async trying<T>(run: () => Promise<T>): Promise<T | undefined> {
    try {
      return await run();
    } catch (error) {
      if (!EXPECTED.has(codeOf(error) ?? '')) throw error;
      return undefined;
    }
  }

  private async write(name: string): Promise<void> {
    while (!this.over) {
      const { client, kill } = await this.mortal();
      const writer = await this.trying(() => client.append(name));
      if (writer === undefined) {
        await client.close();
        await this.pause(100);
        continue;
      }
      writer.on('error', () => {});
      let at = writer.progress.acknowledgedBytes;
      if (at < this.acknowledged.get(name)!)
        throw new Error(`'${name}' is taken over with ${at} bytes, ${this.acknowledged.get(name)} were acknowledged`);
      this.contents.get(name)!.takenOver(at, ++this.owners);
      for (let round = 1 + this.int(5); round > 0 && writer.errored === null; round--) {
        const length = 1 + this.int(6_000);
        writer.write(this.contents.get(name)!.bytes(at, length));
        at += length;
        await this.trying(async () => {
          await Promise.race([writer.flush(), this.pause(1500)]);
          this.acknowledged.set(name, Math.max(this.acknowledged.get(name)!, writer.progress.acknowledgedBytes));
        });
        this.counts.appends++;
        await this.pause(this.int(150));
      }
      if (this.int(4) === 0) {
        this.counts.writersKilled++;
        await kill();
      } else {
        await this.trying(() => Promise.race([ended(writer), this.pause(2000)]));
        await client.close();
      }
      await this.pause(this.int(300));
    }
  }

  private async read(): Promise<void> {
    const client = await this.client();
    while (!this.over) {
      const name = this.pick(['a', 'b', 'c']),
        floor = this.acknowledged.get(name)!;
      await this.trying(async () => {
        const reader = await client.open(name);
        try {
          for (let round = this.int(4); round >= 0; round--) {
            const from = this.int(reader.length + 1),
              bytes = await reader.read(from, this.pick([100, reader.length]));
            if (!bytes.equals(this.contents.get(name)!.bytes(from, bytes.length)))
              throw new Error(`'${name}' reads wrong from byte ${from}, for ${bytes.length}`);
            this.counts.reads++;
            await this.pause(this.int(400));
            await reader.refresh();
          }
        } finally {
          await reader.close();
        }
      });
      if ((await client.stat(name)).length > 1 << 22) throw new Error(`'${name}' grows without end, from ${floor}`);
    }
    await client.close();
  }

  private async drain(): Promise<void> {
    while (!this.over) {
      const { client, kill } = await this.mortal(),
        id = this.pick(this.cluster.nodes).id,
        stopper = new AbortController();
      const draining = this.trying(() =>
        client.drain(id, {
          ownerMs: 200,
          signal: stopper.signal,
          ...(this.int(2) === 0 && { bytesPerSecond: 50_000 + this.int(500_000) }),
        }),
      ).then((report) => {
        this.counts.moved += report?.filesMoved ?? 0;
      });
      if (this.int(3) === 0) {
        await this.pause(this.int(500));
        this.counts.drainsKilled++;
        draining.catch(() => {});
        await kill();
      } else {
        await Promise.race([draining, this.pause(1500)]);
        stopper.abort();
        await draining;
        await client.close();
      }
      await setNodePurpose(this.cluster.memory.client(), id, 'member');
    }
  }

  /** A node is away for a while, and another; as many at a time as the code bears. */
  private async strike(): Promise<void> {
    while (!this.over) {
      await this.pause(this.int(800));
      const entry = this.pick(this.cluster.nodes.filter((each) => !this.away.has(each.id)));
      this.counts.faults++;
      this.away.add(entry.id);
      await entry.node!.stop();
      await this.pause(this.int(700));
      entry.disk = entry.disk.crash(() => true);
      await this.cluster.startNode(entry);
      this.away.delete(entry.id);
      await this.pause(this.int(500));
    }
  }

  private async check(client: Client): Promise<void> {
    const { cluster } = this,
      { k, m } = parseCode(this.code);
    await this.pause(2000);
    for (const name of this.acknowledged.keys()) {
      await ended(await client.append(name));
      for (let tries = 0; ; tries++) {
        const report = await client.rebuild(name);
        if (report.unitsMissing === 0 && report.stripesLost === 0 && report.nodesDown.length === 0) break;
        if (tries === 10) throw new Error(`'${name}' can't be rebuilt: ${JSON.stringify(report)}`);
        await this.pause(500);
      }
    }
    const files = await client.list();
    for (const file of files) {
      this.counts.scattered += file.nodes.filter((id) => id === '-').length;
      const nodes = file.nodes.filter((id) => id !== '-');
      if (new Set(nodes).size !== nodes.length)
        throw new Error(`'${file.name}' has a node twice: ${file.nodes.join(' ')}`);
      let units = 0;
      for (const id of nodes)
        units += new Set((await cluster.inventory(id, file.id)).map(({ stripe, unit }) => `${stripe} ${unit}`)).size;
      if (units < Math.ceil(file.length / (k * 1024)) * (k + m))
        throw new Error(`'${file.name}' lacks units: ${units}`);
    }
    for (let gone = this.int(2); gone < cluster.nodes.length; gone += 2) {
      const down = Array.from(
        { length: m },
        (_, i) => cluster.nodes[(gone + i * (1 + this.int(2))) % cluster.nodes.length]!,
      );
      for (const entry of new Set(down)) await entry.node!.stop();
      for (const file of files) {
        const reader = await client.open(file.name),
          bytes = await reader.read(0, file.length),
          floor = this.acknowledged.get(file.name)!;
        if (file.length < floor || !bytes.equals(this.contents.get(file.name)!.bytes(0, file.length)))
          throw new Error(
            `'${file.name}' reads wrong without ${down.map(({ id }) => id).join(' and ')}; ${floor} bytes were ` +
              `acknowledged, it has ${file.length}`,
          );
        await reader.close();
      }
      for (const entry of new Set(down)) {
        entry.disk = entry.disk.crash(() => true);
        await cluster.startNode(entry);
      }
      await this.pause(600);
    }
    await client.close();
  }
}

function ended(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('close', resolve);
    writer.end();
  });
}

void t.test(`shares move at random, ${SEEDS.length} seeds`, async (t) => {
  const sum = { appends: 0, reads: 0, moved: 0, scattered: 0, drainsKilled: 0, writersKilled: 0, faults: 0 };
  for (const seed of SEEDS) {
    const story = new Story(seed);
    try {
      await story.cluster.world.complete(story.run(), 600_000);
    } catch (error) {
      t.fail(
        `seed ${seed}: ${(error as Error).stack}; again: SEED=${seed} npx tap --disable-coverage ` +
          'test/writer/moves-random.test.ts',
      );
    }
    for (const key of Object.keys(sum) as (keyof typeof sum)[]) sum[key] += story.counts[key];
  }
  t.comment(JSON.stringify(sum));
  for (const [what, count] of Object.entries(sum))
    t.ok(
      SEEDS.length < 8 || count >= (what === 'scattered' || what === 'moved' ? 1 : SEEDS.length),
      `${count} ${what}`,
    );
});
