/** Peers that ask and do not take their answers: what they may hold is bounded, and others are served meanwhile. */
import t from 'tap';
import type { MemoryRegion } from 'tartan-rdma';
import { MAX_QUEUED_BYTES } from '../../pipeline/channel.js';
import { MESSAGE_RECEIVES } from '../../pipeline/session.js';
import { READ_FAILED_WORDS, Refusal, recordsPerMessage, MessageType } from '../../wire/ring-messages.js';
import type { MessageChannel } from '../../pipeline/channel.js';
import { UnitRing, type RingHost } from '../../storage-node/unit-ring.js';
import { Rig } from './rig.js';

type Peer = Awaited<ReturnType<Rig['peer']>>;

/** From now on the peer posts no receive again: what it has posted fills up, then nothing reaches it any more. */
function stopTaking(peer: Peer): { resume: () => void } {
  const { qp } = peer.channel;
  const real = qp.postRecv.bind(qp);
  const kept: Parameters<typeof real>[] = [];
  qp.postRecv = (...args) => kept.push(args);
  return {
    resume: () => {
      qp.postRecv = real;
      for (const args of kept) real(...args);
      peer.channel.hub.wake();
    },
  };
}

t.test('nothing more is taken from a peer that does not take its refusals; it loses none of them', async (t) => {
  const rig = await Rig.start(3);
  const peer = await rig.peer({ role: 'reader', unitBytes: 0 });
  const { resume } = stopTaking(peer);
  const ids: number[] = [];
  const each = recordsPerMessage(MessageType.READ);
  // More than it has receives for, messages under way and queue for: were there no bound, all would be taken.
  const bound = MAX_QUEUED_BYTES / (READ_FAILED_WORDS * 4) + (256 + 2 * MESSAGE_RECEIVES + 64) * each;
  while (ids.length < 4 * bound) {
    for (let i = 0; i < 64; i++) ids.push(peer.ask({ fileId: rig.file.id, stripe: 7, unit: 0 }));
    await rig.pass(1);
  }
  await rig.pass(5000);
  const taken = rig.node.counters.readsFailed;
  t.ok(taken > 0 && taken <= bound, `${taken} of ${ids.length} requests were taken, at most ${bound} may be`);
  await rig.pass(5000);
  t.equal(rig.node.counters.readsFailed, taken, 'and no more');
  const other = await rig.peer();
  t.match(await other.send(rig.unit()), { refusal: Refusal.NONE }, 'others are served');
  resume();
  await peer.until(() => peer.reads.size === ids.length, 600_000);
  t.ok([...peer.reads.values()].every((refusal) => refusal === Refusal.NO_UNIT));
  t.equal(rig.node.counters.protocolErrors, 0);
});

t.test('a reader that lets its units lie keeps no other from reading, and loses its connection', async (t) => {
  const rig = await Rig.start(4, { silentMs: 10_000 });
  const writer = await rig.peer();
  const unit = rig.unit();
  t.match(await writer.send(unit), { refusal: Refusal.NONE });
  const wish = { fileId: rig.file.id, stripe: 0, unit: unit.words[2]! & 0xff };
  const hog = await rig.peer({ role: 'reader', unitBytes: 0 });
  stopTaking(hog);
  for (let i = 0; i < 400; i++) hog.ask(wish);
  await rig.pass(2000);
  const read = rig.node.counters.unitsRead;
  t.ok(read < 200, `${read} of 400 were read: it holds slots`);
  const other = await rig.peer({ role: 'reader', unitBytes: 0 });
  for (let i = 0; i < 20; i++) t.match(await other.read(wish), { refusal: Refusal.NONE });
  // It is heard of all the while.
  for (let i = 0; i < 16 && hog.closed === undefined; i++) {
    hog.channel.sendControl({ kind: { $case: 'probe', value: { id: i } } });
    await rig.pass(1000);
  }
  t.type(hog.closed, 'string');
  t.match(rig.log.join('\n'), /broke the protocol, its connection is closed: it took no answer for 5000 ms or more/);
  t.equal(other.closed, undefined);
  const ids = Array.from({ length: 30 }, () => other.ask(wish));
  await other.until(() => ids.every((id) => other.reads.get(id) === 0));
});

t.test('a writer of packets that does not take its acknowledgements loses its connection', async (t) => {
  const violations: string[] = [];
  let isFull = false,
    records = 0;
  const channel = {
    get isFull() {
      return isFull;
    },
    records: () => ({ push: () => records++ && 0, words: new Uint32Array(8) }),
    touch: () => undefined,
  } as unknown as MessageChannel;
  const host = {
    maps: { epoch: 1 },
    violation: (_channel: MessageChannel, reason: string) => violations.push(reason),
  } as unknown as RingHost;
  const memory = { buffer: new ArrayBuffer(1 << 16) } as unknown as MemoryRegion;
  const ring = new UnitRing(host, 0, channel, memory, 2, 4096);
  ring.repeat(0, 7, 1, 1, 1);
  t.equal(records, 1);
  isFull = true;
  ring.repeat(0, 7, 1, 1, 1);
  t.equal(records, 1);
  t.strictSame(violations, ['it does not take its acknowledgements']);
});
