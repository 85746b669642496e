/**
 * Whatever a peer sends, parsers answer with a value or a refusal: headers and frames made up, bent, and captured from
 * a real cluster and damaged; and a node that is sent them goes on serving. TARTAN_SEED replays a run.
 */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import type { MemoryRegion, QueuePair } from 'tartan-rdma';
import { parseCode } from '../../erasure/code/index.js';
import { MessageChannel } from '../../pipeline/channel.js';
import { Hub } from '../../pipeline/hub.js';
import { connectSession } from '../../pipeline/session.js';
import { sleep } from '../../wire/clock.js';
import { codeOf, isOperating } from '../../wire/errors.js';
import { Control } from '../../wire/generated/ring.js';
import { FRAME_WORDS, MESSAGE_BYTES, MessageType, checkFrame, recordWords } from '../../wire/ring-messages.js';
import {
  DESCRIPTOR_BYTES,
  IP_UDP_BYTES,
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  chunkStart,
  decodeDescriptor,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  internetChecksum,
  stripePacketBytes,
} from '../../wire/packet-header.js';
import type { UnitHeader } from '../../wire/unit-header.js';
import {
  MAX_HEADER_BYTES,
  MAX_K,
  MAX_M,
  checkHeader,
  decodeHeader,
  encodeHeader,
  headerBytesOf,
} from '../../wire/unit-header.js';
import type { FileWriter } from '../../writer/index.js';
import { SimCluster, randomBytes } from '../simulation/cluster.js';

const SEED = Number(process.env['TARTAN_SEED'] ?? Date.now() % 1_000_000_000);
const RUNS = process.env['TARTAN_LONG'] === '1' ? 100_000 : 3_000;
t.comment(`TARTAN_SEED=${SEED}`);

const uint32 = fc.nat(0xffffffff);
const header: fc.Arbitrary<{ header: UnitHeader; payloadBytes: number }> = fc
  .record({
    k: fc.integer({ min: 1, max: MAX_K }),
    m: fc.integer({ min: 1, max: MAX_M }),
    shift: fc.integer({ min: 9, max: 22 }),
    unitPart: fc.nat(35),
    lengthPart: fc.double({ min: 0, max: 1, noNaN: true }),
    codeId: fc.nat(255),
    clusterId: uint32,
    fileId: fc.nat(Number.MAX_SAFE_INTEGER),
    stripe: fc.nat(Number.MAX_SAFE_INTEGER),
    mapEpoch: uint32,
    writerEpoch: uint32,
    counter: uint32,
    commitMark: uint32,
    payloadCrc: uint32,
    seal: uint32,
    missing: fc.bigInt(0n, (1n << 36n) - 1n),
    summary: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    crcs: fc.array(uint32, { minLength: MAX_K, maxLength: MAX_K }),
  })
  .map(({ k, m, shift, unitPart, lengthPart, crcs, ...rest }) => {
    const unit = unitPart % (k + m),
      unitBytes = 2 ** shift,
      stripeLength = 1 + Math.floor(lengthPart * (k * unitBytes - 1));
    const unitLength =
      unit < k ? Math.min(unitBytes, Math.max(0, stripeLength - unit * unitBytes)) : Math.min(unitBytes, stripeLength);
    return {
      header: {
        ...rest,
        k,
        m,
        unit,
        unitBytes,
        flags: 0,
        stripeLength,
        unitLength,
        dataCrcs: unit < k ? [] : crcs.slice(0, k),
      },
      payloadBytes: unitLength,
    };
  });

void t.test('a unit header is read back as it was written', (t) => {
  holds(
    t,
    fc.property(header, ({ header, payloadBytes }) => {
      const words = new Uint32Array(MAX_HEADER_BYTES / 4 + 2);
      const bytes = encodeHeader(header, words, 1);
      const read = decodeHeader(words, 1);
      return (
        checkHeader(words, 1, bytes, payloadBytes) === undefined &&
        bytes === headerBytesOf(header.unit, header.k) &&
        JSON.stringify({ ...read, missing: String(read.missing), summary: [...read.summary] }) ===
          JSON.stringify({ ...reorder(read, header), missing: String(header.missing), summary: [...header.summary] })
      );
    }),
  );
  t.end();
});

/** Tries a property on many samples; the report names the smallest that fails. */
function holds<T>(t: Test, property: fc.IProperty<T>, numRuns = RUNS): void {
  const result = fc.check(property, { seed: SEED, numRuns });
  t.notOk(result.failed, result.failed ? (fc.defaultReportMessage(result) ?? 'failed') : `${result.numRuns} samples`);
}

/** The fields of `like`, in the order of `read`. */
function reorder(read: UnitHeader, like: UnitHeader): UnitHeader {
  return Object.fromEntries(
    Object.keys(read).map((key) => [key, like[key as keyof UnitHeader]]),
  ) as unknown as UnitHeader;
}

void t.test('a bent unit header is refused, or speaks of a stripe that can be', (t) => {
  let refused = 0;
  holds(
    t,
    fc.property(
      header,
      fc.array(fc.tuple(fc.nat(MAX_HEADER_BYTES / 4 - 1), uint32), { minLength: 1, maxLength: 4 }),
      fc.nat(MAX_HEADER_BYTES),
      fc.nat(8 << 20),
      fc.boolean(),
      ({ header, payloadBytes }, bends, length, payload, keepsLengths) => {
        const words = new Uint32Array(MAX_HEADER_BYTES / 4);
        let bytes = encodeHeader(header, words, 0);
        for (const [at, value] of bends) words[at]! ^= value;
        if (!keepsLengths) {
          bytes = length;
          payloadBytes = payload;
        }
        const fault = checkHeader(words, 0, bytes, payloadBytes);
        if (fault !== undefined) {
          refused++;
          return true;
        }
        const read = decodeHeader(words, 0);
        return (
          read.k >= 1 &&
          read.k <= MAX_K &&
          read.m >= 1 &&
          read.m <= MAX_M &&
          read.unit < read.k + read.m &&
          bytes === headerBytesOf(read.unit, read.k) &&
          read.unitLength === payloadBytes &&
          read.unitLength <= read.unitBytes &&
          read.stripeLength >= 1 &&
          read.stripeLength <= read.k * read.unitBytes
        );
      },
    ),
  );
  t.ok(refused > RUNS / 10, `${refused} of ${RUNS} were refused`);
  t.end();
});

void t.test('a frame is taken only if its records fill it', (t) => {
  let taken = 0;
  const head = fc.oneof(
    uint32,
    fc
      .record({ type: fc.nat(8), protocol: fc.nat(2), count: fc.nat(300) })
      .map(({ type, protocol, count }) => (type | (protocol << 8) | (count << 16)) >>> 0),
  );
  const bytes = fc.oneof(
    fc.nat(2 * MESSAGE_BYTES),
    fc
      .record({ count: fc.nat(300), each: fc.constantFrom(1, 4, 5, 7, 14) })
      .map(({ count, each }) => (FRAME_WORDS + count * each) * 4),
  );
  holds(
    t,
    fc.property(head, bytes, fc.boolean(), (word, length, fits) => {
      const words = new Uint32Array(MESSAGE_BYTES / 4);
      const each = recordWords(word & 0xff);
      words[0] = word;
      const byteLength = fits && each > 0 ? (FRAME_WORDS + (word >>> 16) * each) * 4 : length;
      const type = checkFrame(words, 0, byteLength);
      if (type === 0) return true;
      taken++;
      const count = word >>> 16;
      return (
        byteLength <= MESSAGE_BYTES &&
        (type === MessageType.CONTROL
          ? FRAME_WORDS * 4 + count === byteLength
          : count > 0 && (FRAME_WORDS + count * recordWords(type)) * 4 === byteLength)
      );
    }),
  );
  t.ok(taken > 20, `${taken} of ${RUNS} were taken`);
  t.end();
});

void t.test('a packet, captured and damaged or made up, is refused or lies wholly within itself', (t) => {
  const frames = (
    JSON.parse(readFileSync(new URL('../golden/packets.json', import.meta.url), 'utf8')) as { frame: string }[]
  ).map(({ frame }) => Buffer.from(frame, 'hex').subarray(14 + IP_UDP_BYTES));
  const probe = new Uint8Array(PACKET_HEADER_BYTES + PROBE_BODY_BYTES);
  encodePacketHeader({ type: PacketType.PROBE, k: 0, m: 0, group: 1, mapEpoch: 1, offset: 0, chunkBytes: 0 }, probe, 0);
  const sources = [...frames, Buffer.from(probe)];
  t.same(
    sources.filter((packet) => typeof decodePacketHeader(packet) === 'string'),
    [],
    `${sources.length} packets are taken as they are`,
  );
  const outcomes = new Map<string, number>();
  const edit = fc.record({ at: fc.oneof(fc.nat(PACKET_HEADER_BYTES + 87), fc.nat(2000)), value: fc.nat(255) });
  const cut = fc.oneof(fc.constant(0), fc.constant(0), fc.integer({ min: -1600, max: 600 }));
  holds(
    t,
    fc.property(
      fc.nat(sources.length),
      fc.array(edit, { maxLength: 6 }),
      cut,
      fc.boolean(),
      fc.uint8Array({ maxLength: 300 }),
      (which, edits, grow, isSealed, madeUp) => {
        const source = sources[which] ?? madeUp,
          packet = new Uint8Array(Math.max(0, source.length + grow));
        packet.set(source.subarray(0, packet.length));
        for (const { at, value } of edits) if (packet.length > 0) packet[at % packet.length] = value;
        // Sealed as by a sender gone wrong: then what lies behind the checksum is looked at.
        if (isSealed && packet.length >= PACKET_HEADER_BYTES) {
          packet[22] = packet[23] = 0;
          const sum = internetChecksum(
            packet.subarray(
              0,
              PACKET_HEADER_BYTES + (packet[5] === PacketType.PROBE || packet[5] === PacketType.PROBE_ANSWER ? 0 : 88),
            ),
          );
          packet[22] = sum >>> 8;
          packet[23] = sum & 0xff;
        }
        const decoded = decodePacketHeader(packet);
        outcomes.set(
          typeof decoded === 'string' ? decoded : 'taken',
          (outcomes.get(typeof decoded === 'string' ? decoded : 'taken') ?? 0) + 1,
        );
        if (typeof decoded === 'string') return true;
        const { type, k, chunkBytes } = decoded;
        if (type === PacketType.PROBE || type === PacketType.PROBE_ANSWER)
          return typeof decodeProbeBody(packet).nonce === 'bigint';
        if (type === PacketType.STRIPE) {
          for (let unit = 0; unit < k; unit++)
            if (decodeDescriptor(packet, PACKET_HEADER_BYTES + 88 + unit * DESCRIPTOR_BYTES).summary.length !== 16)
              return false;
          return packet.length === stripePacketBytes(k, chunkBytes);
        }
        const start = chunkStart(decoded, packet);
        return start >= PACKET_HEADER_BYTES + 88 && start + chunkBytes === packet.length;
      },
    ),
    3 * RUNS,
  );
  t.ok(
    ['taken', 'short', 'magic', 'version', 'type', 'checksum', 'length'].every(
      (outcome) => (outcomes.get(outcome) ?? 0) > 0,
    ),
    JSON.stringify(Object.fromEntries(outcomes)),
  );
  t.end();
});

void t.test("a code's name is refused with a code of its own, or names itself", (t) => {
  const text = fc.oneof(
    fc.string({ maxLength: 40 }),
    fc
      .record({
        kind: fc.constantFrom('xor', 'rs', 'cauchy', 'copies', 'RS', ''),
        a: fc.integer({ min: -3, max: 300 }),
        b: fc.integer({ min: -3, max: 300 }),
        mark: fc.constantFrom('+', ',', ' , ', ''),
      })
      .map(({ kind, a, b, mark }) => `${kind}(${a}${mark}${b})`),
  );
  holds(
    t,
    fc.property(text, (name) => {
      try {
        const code = parseCode(name);
        return (
          parseCode(code.name).name === code.name && code.k >= 1 && code.k <= MAX_K && code.m >= 1 && code.m <= MAX_M
        );
      } catch (error) {
        return codeOf(error) !== undefined && !(error as Error).message.includes('\n');
      }
    }),
    Math.min(RUNS, 20_000),
  );
  t.end();
});

const end = (writer: FileWriter): Promise<void> =>
  new Promise((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });

/** Every frame that crossed a small cluster in one life of a file, on either side. */
async function capture(cluster: SimCluster): Promise<Buffer[]> {
  const frames: Buffer[] = [];
  const prototype = MessageChannel.prototype as unknown as { receive(buffer: number, byteLength: number): void };
  const original = prototype.receive;
  type Buffers = { buffersOf(buffer: number): { readonly bytes: Uint8Array; readonly from: number } };
  prototype.receive = function receive(this: Buffers, buffer, byteLength) {
    const { bytes, from } = this.buffersOf(buffer),
      at = (buffer - from) * MESSAGE_BYTES;
    frames.push(Buffer.from(bytes.subarray(at, at + byteLength)));
    original.call(this as never, buffer, byteLength);
  };
  try {
    await store(cluster, 'captured');
  } finally {
    prototype.receive = original;
  }
  return frames;
}

async function store(cluster: SimCluster, name: string): Promise<boolean> {
  const client = await cluster.client(`${name}-writer`);
  const data = randomBytes(cluster.world, name, 60_000);
  const writer = await client.create(name, { unitBytes: 1024 });
  writer.write(data);
  await end(writer);
  const reader = await client.open(name);
  const isEqual = (await reader.read(0, data.length)).equals(data);
  await (await client.append(name)).destroy();
  await client.remove(name);
  await client.close();
  return isEqual;
}

/** A captured frame, damaged: bits flipped, cut, lengthened, its head or its body another's. */
function damage(frame: Buffer, other: Buffer, random: () => number): Buffer {
  let bent = Buffer.from(frame);
  const int = (below: number): number => Math.floor(random() * below);
  switch (int(5)) {
    case 0:
      for (let i = int(8); i >= 0; i--) bent[int(bent.length)]! ^= 1 << int(8);
      break;
    case 1:
      bent = bent.subarray(0, int(bent.length + 1));
      break;
    case 2:
      bent = Buffer.concat([bent, Buffer.alloc(int(200), int(256))]);
      break;
    case 3:
      bent = Buffer.concat([bent.subarray(0, 8), other.subarray(8)]);
      break;
    default:
      for (let at = 8 + int(bent.length), i = 0; i < 4; i++) if (at + i < bent.length) bent[at + i] = 0xff;
      break;
  }
  return bent.subarray(0, MESSAGE_BYTES);
}

void t.test('captured messages, damaged, are decoded or refused, and never become large', async (t) => {
  const cluster = new SimCluster({ seed: SEED });
  let frames: Buffer[] = [];
  await cluster.world.complete(
    (async () => {
      await cluster.start();
      frames = await capture(cluster);
    })(),
    3_600_000,
  );
  t.ok(
    frames.length > 100 && new Set(frames.map((frame) => frame[0])).size >= 5,
    `${frames.length} frames of ${new Set(frames.map((frame) => frame[0])).size} types`,
  );
  const random = cluster.world.fork('damage');
  const words = new Uint32Array(MESSAGE_BYTES / 4),
    bytes = new Uint8Array(words.buffer);
  let decoded = 0,
    refused = 0,
    largest = 0;
  for (let i = 0; i < RUNS; i++) {
    const bent = damage(frames[random.int(frames.length)]!, frames[random.int(frames.length)]!, () => random.random());
    bytes.fill(0);
    bytes.set(bent);
    if (checkFrame(words, 0, bent.length) !== MessageType.CONTROL) continue;
    try {
      const message = Control.decode(bytes.subarray(FRAME_WORDS * 4, bent.length));
      largest = Math.max(largest, Control.encode(message).finish().length);
      decoded++;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      refused++;
    }
  }
  t.ok(decoded > 0 && refused > 0, `${decoded} decoded, ${refused} refused`);
  t.ok(largest <= 4 * MESSAGE_BYTES, `the largest has ${largest} bytes`);
});

void t.test(
  'nodes and switch that are sent damaged messages, before and after the handshake, close and go on serving',
  async (t) => {
    const cluster = new SimCluster({ seed: SEED });
    await cluster.world.complete(
      (async () => {
        await cluster.start();
        const frames = await capture(cluster);
        await sleep(cluster.clock('test'), 1000);
        const random = cluster.world.fork('evil');
        const device = cluster.world.openDevice('evil');
        const memory: MemoryRegion = device.allocate(MESSAGE_BYTES);
        const context = {
          device,
          hub: new Hub(device),
          clock: cluster.clock('evil'),
          secret: undefined,
          clusterId: cluster.clusterId,
        };
        const before = cluster.nodes.map(({ node }) => node!.memory.used);
        const send = async (qp: QueuePair): Promise<void> => {
          for (let i = random.int(4); i >= 0 && qp.state === 'connected'; i--) {
            const bent = damage(frames[random.int(frames.length)]!, frames[random.int(frames.length)]!, () =>
              random.random(),
            );
            new Uint8Array(memory.buffer).set(bent);
            qp.postSend(0xffff, memory, 0, bent.length, 0);
            device.ring();
            await sleep(context.clock, 2);
          }
        };
        for (let round = 0; round < RUNS / 20; round++) {
          const [host, port] = random.int(4) === 0 ? ['s1', 7100] : [`n${1 + random.int(3)}`, 7000];
          if (random.int(2) === 0) {
            const qp = await device.connect(host, port);
            qp.handler = () => {};
            await send(qp);
            await qp.destroy();
          } else {
            const session = await connectSession(
              context,
              host,
              port,
              { role: 'reader', name: 'evil', fileId: 1, unitBytes: 0, slots: 0, mapEpoch: 1 },
              { transport: 'auto', timeoutMs: 1000, receiveSlots: 0 },
            ).catch((error: unknown) => {
              if (!isOperating(error)) throw error;
              return undefined;
            });
            if (session === undefined) continue;
            session.channel.onControl = () => {};
            session.channel.onRecords = () => {};
            session.channel.onClosed = () => {};
            await send(session.channel.qp);
            await session.channel.destroy('done');
          }
        }
        await sleep(cluster.clock('test'), 10_000);
        t.same(
          cluster.nodes.map(({ node }) => node!.connectionCount),
          [0, 0, 0],
          'no connection is left',
        );
        t.same(
          cluster.nodes.map(({ node }) => node!.memory.used),
          before,
          'no ring memory is held',
        );
        t.ok(
          cluster.nodes.some(({ node }) => node!.counters.protocolErrors > 0),
          'some of it was noticed as against the protocol',
        );
        t.ok(await store(cluster, 'afterwards'), 'a file is stored and read as before');
      })(),
      3_600_000,
    );
  },
);
