/** JS-thread CPU per full stripe of 2+1 in the switch, headers included, on a device that moves nothing. */
import { createHmac } from 'node:crypto';
import { MessageChannel } from '../../pipeline/channel.js';
import { Hub } from '../../pipeline/hub.js';
import { RingMemory } from '../../pipeline/ring-memory.js';
import { MESSAGE_RECEIVES } from '../../pipeline/session.js';
import { writeDataHeaders } from '../../pipeline/stripe-headers.js';
import { WriterSession } from '../../switch-agent/writer-session.js';
import type { Clock } from '../../wire/clock.js';
import { stripeImm } from '../../wire/ring-messages.js';
import { DATA_HEADER_BYTES } from '../../wire/unit-header.js';
import { NullDevice, NullQueuePair } from './null-device.js';
import type { Figure } from './report.js';
import { spread } from './report.js';

const UNIT_BYTES = 65536,
  BATCH = 32,
  FILE_ID = 7;
// No timers: the null peers answer no probes.
const clock: Clock = { now: () => performance.now(), setTimer: () => 0, clearTimer: () => {}, random: () => 0.5 };

/** @param repetitions measurements  @param stripes stripes in each */
export async function jsCost(repetitions: number, stripes: number): Promise<Figure[]> {
  const device = new NullDevice();
  const hub = new Hub(device);
  const writer = new NullQueuePair(device, 'writer');
  const channel = new MessageChannel(hub, device, writer, 64 + MESSAGE_RECEIVES);
  const nodes = ['n1', 'n2', 'n3'];
  const connect = device.connect.bind(device);
  device.connect = async (host) => {
    const pair = (await connect(host)) as NullQueuePair;
    pair.proofFor = (nonce) =>
      createHmac('sha256', '').update('server').update(nonce).update(Buffer.alloc(16)).digest();
    return pair;
  };
  const session = new WriterSession(channel, {
    context: { device, hub, clock, secret: undefined, clusterId: 1 },
    id: 's1',
    transport: 'auto',
    heartbeatMs: 100,
    deadlineMs: 1000,
    memory: new RingMemory(256 << 20),
    hello: {
      protocol: 1,
      clusterId: 1,
      role: 'writer',
      name: 'bench',
      nonce: Buffer.alloc(16),
      mapEpoch: 1,
      k: 2,
      m: 1,
      unitBytes: UNIT_BYTES,
      slots: 64,
      fileId: FILE_ID,
      nodes,
      tags: 128,
      code: 'xor(2+1)',
    },
    map: {
      epoch: 1,
      changes: 1,
      nodes: nodes.map((id) => ({ id, host: id, port: 1, state: 'up' as const, controlPort: 0 })),
      switches: [],
    },
    onProtocolError: (reason) => {
      throw new Error(reason);
    },
  });
  const connected = session.connect();
  for (let i = 0; i < 50; i++) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    device.deliver();
  }
  await connected;
  session.serve();
  const words = new Uint32Array(session.region.buffer);
  const identity = { codeId: 1, clusterId: 1, fileId: FILE_ID, mapEpoch: 1, writerEpoch: 1, commitMark: 0 };
  let stripe = 0;
  const run = (count: number): number => {
    const before = process.cpuUsage();
    for (let done = 0; done < count; done += BATCH) {
      for (let slot = 0; slot < BATCH; slot++) {
        // The writer's own header writing is part of this figure: the switch derives parity headers, the writer writes
        // data headers.
        writeDataHeaders(
          words,
          slot * session.layout.slotBytes,
          session.layout,
          identity,
          stripe,
          2 * UNIT_BYTES,
          ++stripe,
          0,
          0,
        );
        writer.arrive(stripeImm(slot, slot, 2), 2 * DATA_HEADER_BYTES + 2 * UNIT_BYTES);
      }
      while (device.deliver() > 0) {
        /* until all is acknowledged and told to the writer */
      }
    }
    const used = process.cpuUsage(before);
    return (used.user + used.system) / count;
  };
  run(stripes);
  const costs = Array.from({ length: repetitions }, () => run(stripes));
  const settled = session.pipeline.counters.settled;
  if (settled !== stripe) throw new Error(`${settled} of ${stripe} stripes were acknowledged`);
  return [
    {
      section: 'js',
      name: 'JS-thread CPU per stripe of 2+1 in the switch, batches of 32',
      unit: 'µs',
      ...spread(costs),
      goal: 1.5,
      better: 'lower',
    },
  ];
}
