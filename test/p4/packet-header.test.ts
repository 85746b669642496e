/** wire/packet-header.ts: what host, node and switch read from the same bytes. */
import t from 'tap';
import { crc32c } from '../../erasure/code/index.js';
import {
  DropReason,
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  chunkStart,
  decodeDescriptor,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  encodeProbeBody,
  internetChecksum,
  isStripeHeader,
  stripePacketBytes,
  stripeSeal,
} from '../../wire/packet-header.js';
import { DATA_HEADER_BYTES, W } from '../../wire/unit-header.js';
import { readFileSync } from 'node:fs';
import { NAME, expectedUnitPacket, makeStripe, sealOf, stripePacket } from './stripe-packets.js';

const data = Uint8Array.from({ length: 2000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
const stripe = makeStripe(4, 2, 512, data);

t.test('a packet header comes back as it was written', async (t) => {
  const packet = stripePacket(stripe, 0xfeed0001, 304, 304);
  t.equal(packet.length, stripePacketBytes(4, 304));
  t.same(decodePacketHeader(packet), {
    type: PacketType.STRIPE,
    k: 4,
    m: 2,
    group: 0xfeed0001,
    mapEpoch: NAME.mapEpoch,
    offset: 304,
    chunkBytes: 304,
  });
  t.equal(Buffer.from(packet.subarray(0, 8)).toString('latin1'), 'TRTP\x01\x01\x04\x02', 'network byte order');
});

t.test('packets that lie about themselves are refused with what is wrong', async (t) => {
  const good = stripePacket(stripe, 1, 0, 304);
  const changed = (at: number, value: number) => {
    const packet = good.slice();
    packet[at] = value;
    return packet;
  };
  t.equal(decodePacketHeader(good.subarray(0, 20)), 'short');
  t.equal(decodePacketHeader(good.subarray(0, good.length - 1)), 'short');
  t.equal(decodePacketHeader(Uint8Array.from([...good, 0])), 'length');
  t.equal(decodePacketHeader(changed(0, 0)), 'magic');
  t.equal(decodePacketHeader(changed(4, 2)), 'version');
  t.equal(decodePacketHeader(changed(5, 9)), 'type');
  t.equal(decodePacketHeader(changed(12, 1)), 'checksum', 'the map epoch is covered');
  t.equal(decodePacketHeader(changed(PACKET_HEADER_BYTES + 50, 0xaa)), 'checksum', 'the stripe header is covered');
  const unit = expectedUnitPacket(stripe, 5, 1, 0, 304);
  t.equal(decodePacketHeader(unit.subarray(0, 40)), 'short');
});

t.test(
  "a data unit's header can be made from stripe header and descriptor, byte for byte as a host makes it",
  async (t) => {
    const packet = stripePacket(stripe, 1, 0, 304);
    const words = new Uint32Array(packet.slice(PACKET_HEADER_BYTES, PACKET_HEADER_BYTES + DATA_HEADER_BYTES).buffer);
    t.ok(isStripeHeader(words, 4, 2));
    t.notOk(isStripeHeader(words, 4, 1));
    const descriptor = decodeDescriptor(packet, PACKET_HEADER_BYTES + DATA_HEADER_BYTES + 3 * 28);
    words[W.UNIT] = words[W.UNIT]! | 3 | (6 << 24);
    words[W.UNIT_LENGTH] = descriptor.unitLength;
    words[W.PAYLOAD_CRC] = descriptor.payloadCrc;
    words[W.SEAL] = descriptor.seal;
    new Uint8Array(words.buffer).set(descriptor.summary, W.SUMMARY * 4);
    t.equal(Buffer.from(words.buffer).toString('hex'), Buffer.from(stripe.headers[3]!).toString('hex'));
    t.equal(words[W.SEAL], sealOf(words));
  },
);

t.test("a parity packet's stripe seal covers its names and the data CRCs", async (t) => {
  const packet = expectedUnitPacket(stripe, 4, 1, 304, 304);
  const header = decodePacketHeader(packet);
  if (typeof header === 'string') return t.fail(header);
  t.equal(header.type, PacketType.PARITY);
  t.equal(chunkStart(header, packet), PACKET_HEADER_BYTES + DATA_HEADER_BYTES + 16);
  const words = new Uint32Array(packet.slice(PACKET_HEADER_BYTES, PACKET_HEADER_BYTES + DATA_HEADER_BYTES + 16).buffer);
  const crcs = [...words.subarray(W.CRC_LIST)];
  t.same(
    crcs,
    stripe.units.slice(0, 4).map((unit) => crc32c(unit)),
  );
  t.equal(stripeSeal(words, crcs, crc32c), words[W.SEAL]);
  t.not(stripeSeal(words, [crcs[0]!, crcs[1]!, crcs[2]!, crcs[3]! ^ 1], crc32c), words[W.SEAL]);
  words[W.COUNTER]!++;
  t.not(stripeSeal(words, crcs, crc32c), words[W.SEAL]);
});

t.test('probes carry nonce, cookie and class', async (t) => {
  const packet = new Uint8Array(PACKET_HEADER_BYTES + PROBE_BODY_BYTES);
  const body = { nonce: 0x0123456789abcdefn, cookie: 0xfedcba9876543210n, program: 7, k: 8, m: 4, chunkBytes: 1024 };
  encodeProbeBody(body, packet);
  encodePacketHeader(
    { type: PacketType.PROBE_ANSWER, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
    packet,
    0,
  );
  t.same(decodeProbeBody(packet), body);
  t.not(typeof decodePacketHeader(packet), 'string');
  t.equal(decodePacketHeader(packet.subarray(0, 47)), 'short');
});

t.test("the internet checksum is RFC 1071's", async (t) => {
  t.equal(
    internetChecksum(Uint8Array.from([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
    ~0xddf2 & 0xffff,
    'the example of section 3',
  );
});

t.test('every drop reason is in docs/wire-format.md under its number', async (t) => {
  const page = readFileSync(new URL('../../docs/wire-format.md', import.meta.url), 'utf8');
  for (const [name, number] of Object.entries(DropReason)) t.match(page, new RegExp(`\\| ${number} \\| \`${name}\``));
});
