/** What was taken for a ring is given back when the device has no memory for it after all. */
import t from 'tap';
import { Access, RdmaError, type Device } from 'tartan-rdma';
import type { MessageChannel } from '../../pipeline/channel.js';
import { RingMemory } from '../../pipeline/ring-memory.js';
import { WriterSession, type WriterSessionOptions } from '../../switch-agent/writer-session.js';
import { sleep } from '../../wire/clock.js';
import { Rig } from './rig.js';

function refuse(): never {
  throw new RdmaError('ERR_REGISTRATION_REFUSED', 'no memory, in a test');
}

/** From now on the device allocates nothing that a peer may write to. @returns the way back */
function starve(device: Device): () => void {
  const allocate = device.allocate.bind(device);
  device.allocate = (bytes, access = Access.LOCAL) => (access === Access.LOCAL ? allocate(bytes, access) : refuse());
  return () => {
    device.allocate = allocate;
  };
}

t.test('a node whose device has no memory for a ring refuses, and has lost none', async (t) => {
  const rig = await Rig.start(21);
  const { used } = rig.node.memory;
  const relent = starve((rig.node as unknown as { options: { device: Device } }).options.device);
  for (let attempt = 0; attempt < 3; attempt++) await t.rejects(rig.peer(), { code: 'ERR_RING_MEMORY' });
  t.equal(rig.node.memory.used, used);
  relent();
  t.equal((await rig.peer()).grant.slots, 8);
  await rig.run(rig.node.stop());
});

t.test('a peer that is gone while a node waits for the cluster store leaves nothing behind', async (t) => {
  const rig = await Rig.start(22);
  const { used } = rig.node.memory,
    get = rig.nodeStore.get.bind(rig.nodeStore);
  let waited = 0;
  rig.nodeStore.get = async (key) => {
    waited++;
    await sleep(rig.clock('n1'), 15_000); // longer than a peer waits for its grant
    return get(key);
  };
  await t.rejects(rig.peer({ role: 'rebuilder', fileId: rig.file.id }), { code: 'ERR_CONNECT' });
  t.ok(waited > 0, 'the node asked for the record');
  await rig.pass(40_000);
  t.equal(rig.node.memory.used, used);
  t.equal(rig.node.connectionCount, 0);
  rig.nodeStore.get = get;
  t.equal((await rig.peer({ role: 'rebuilder', fileId: rig.file.id })).grant.slots, 8);
  await rig.run(rig.node.stop());
});

t.test('a switch whose device has no memory for a ring has lost none', async (t) => {
  const memory = new RingMemory(1 << 24);
  const hello = { name: 'w', code: 'rs(2,1)', k: 2, m: 1, unitBytes: 4096, slots: 4, tags: 4, fileId: 1 };
  const options = {
    id: 's',
    memory,
    hello: { ...hello, nodes: ['n1', 'n2', 'n3'] },
    context: { device: { allocate: refuse } },
  } as unknown as WriterSessionOptions;
  t.throws(() => new WriterSession({} as MessageChannel, options), { code: 'ERR_REGISTRATION_REFUSED' });
  t.equal(memory.used, 0);
});
