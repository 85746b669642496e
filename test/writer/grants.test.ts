/** Memory that a client lets nodes write into is reachable for those that it asked, and for nobody else. */
import t from 'tap';
import { Access, Flag, Status, type Device, type MemoryRegion, type QueuePair, type SimWorld } from 'tartan-rdma';
import { SimCluster } from '../simulation/cluster.js';

const SEED = 5;

t.test(`the memory that reads go into is a wrong key to all others: seed ${SEED}`, async (t) => {
  const cluster = new SimCluster({ seed: SEED });
  const regions = new Set<MemoryRegion>();
  let client!: Device;
  const open = cluster.world.openDevice.bind(cluster.world);
  cluster.world.openDevice = (...args: Parameters<SimWorld['openDevice']>) => {
    const device = open(...args);
    if (args[0] !== 'reader') return device;
    client = device;
    const allocate = device.allocate.bind(device);
    device.allocate = (byteLength, access) => {
      const region = allocate(byteLength, access);
      if (access !== undefined && (access & Access.REMOTE_WRITE) !== 0) regions.add(region);
      return region;
    };
    return device;
  };
  const run = async (): Promise<void> => {
    await cluster.start();
    const maker = await cluster.client('writer');
    const writer = await maker.create('a', { code: 'xor(2+1)', unitBytes: 1024 });
    const written = new Promise((resolve, reject) => {
      writer.once('finish', resolve);
      writer.once('error', reject);
    });
    writer.end(Buffer.alloc(20_000, 7));
    await written;
    const reading = await cluster.client('reader');
    const file = await reading.open('a');
    t.ok((await file.read(0, 20_000)).equals(Buffer.alloc(20_000, 7)));
    t.equal(regions.size, 1);
    // Somebody else to whom this client is connected, who has learned the key.
    const other = cluster.world.openDevice('other');
    const accepted = new Promise<QueuePair>((resolve) => {
      void other.listen('other', 9000, resolve);
    });
    await client.connect('other', 9000);
    const source = other.allocate(4096);
    const qp = await accepted;
    const [region] = regions;
    const status = await new Promise<number>((resolve) => {
      qp.handler = (_opcode, got) => {
        resolve(got);
      };
      qp.postWrite(1, source, 0, 64, region!.rkey, 0, Flag.SIGNALED);
      other.ring();
    });
    t.equal(status, Status.REMOTE_ACCESS_ERROR);
    t.equal(client.counters().refusedAccesses, 1);
    t.ok((await file.read(0, 20_000)).equals(Buffer.alloc(20_000, 7)), 'reading goes on');
    await file.close();
    await reading.close();
    await maker.close();
  };
  await cluster.world.complete(run(), 600_000);
});
