/**
 * Stripe packets and what must become of them, by the reference coder: the other side of every comparison in this
 * folder.
 */
import { crc32c, encode, makeCode, summary, type Code } from '../../erasure/code/index.js';
import {
  DESCRIPTOR_BYTES,
  PACKET_HEADER_BYTES,
  PacketType,
  encodeDescriptor,
  encodePacketHeader,
  makeStripeHeader,
  stripePacketBytes,
  type PacketHeader,
} from '../../wire/packet-header.js';
import { DATA_HEADER_BYTES, W, encodeHeader, headerBytesOf, type UnitHeader } from '../../wire/unit-header.js';

/** One stripe with everything that can be said of it. */
export interface Stripe {
  readonly code: Code;
  readonly unitBytes: number;
  readonly stripeLength: number;
  /** k data units, then m parity units. */
  readonly units: readonly Uint8Array[];
  /** Finished headers of all units, seals included, as a host in host mode would send them. */
  readonly headers: readonly Uint8Array[];
}

/** The name and epochs in headers; any will do. */
export const NAME = {
  clusterId: 0xc0ffee01,
  fileId: 0x1234_5678_9abc,
  stripe: 0x1_0000_0007,
  mapEpoch: 9,
  writerEpoch: 4,
  counter: 77,
  commitMark: 70,
};

/** @param data  stripeLength bytes, cut into units of unitBytes */
export function makeStripe(k: number, m: number, unitBytes: number, data: Uint8Array): Stripe {
  const code = m === 1 ? makeCode('xor', k, 1) : makeCode('rs', k, m);
  const dataUnits = Array.from({ length: k }, (_, unit) => data.slice(unit * unitBytes, (unit + 1) * unitBytes));
  const units = [...dataUnits, ...encode(code, dataUnits)];
  const crcs = dataUnits.map((unit) => crc32c(unit));
  const headers = units.map((unit, index) =>
    finishedHeader({
      ...NAME,
      codeId: code.id,
      k,
      m,
      unit: index,
      unitBytes,
      flags: 0,
      unitLength: unit.length,
      stripeLength: data.length,
      payloadCrc: unit.length === 0 ? 0 : crc32c(unit),
      seal: 0,
      missing: 0n,
      summary: summary(unit),
      dataCrcs: index < k ? [] : crcs,
    }),
  );
  return { code, unitBytes, stripeLength: data.length, units, headers };
}

/** A header with its seal: CRC32C of everything but the seal. */
function finishedHeader(header: UnitHeader): Uint8Array {
  const words = new Uint32Array(headerBytesOf(header.unit, header.k) / 4);
  encodeHeader(header, words, 0);
  words[W.SEAL] = sealOf(words);
  return new Uint8Array(words.buffer);
}

export function sealOf(words: Uint32Array): number {
  const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
  return crc32c(bytes.subarray((W.SEAL + 1) * 4), crc32c(bytes.subarray(0, W.SEAL * 4)));
}

/** The UDP payload of one stripe packet: bytes [offset, offset + chunkBytes) of every data unit. */
export function stripePacket(stripe: Stripe, group: number, offset: number, chunkBytes: number): Uint8Array {
  const { k, m } = stripe.code;
  const packet = new Uint8Array(stripePacketBytes(k, chunkBytes));
  packet.set(stripeHeader(stripe), PACKET_HEADER_BYTES);
  let at = PACKET_HEADER_BYTES + DATA_HEADER_BYTES;
  for (let c = 0; c < k; c++, at += DESCRIPTOR_BYTES) {
    const words = new Uint32Array(stripe.headers[c]!.slice().buffer);
    encodeDescriptor(
      {
        unitLength: words[W.UNIT_LENGTH]!,
        payloadCrc: words[W.PAYLOAD_CRC]!,
        seal: words[W.SEAL]!,
        summary: summary(stripe.units[c]!),
      },
      packet,
      at,
    );
  }
  for (let c = 0; c < k; c++, at += chunkBytes) packet.set(chunkOf(stripe.units[c]!, offset, chunkBytes), at);
  encodePacketHeader(
    { type: PacketType.STRIPE, k, m, group, mapEpoch: NAME.mapEpoch, offset, chunkBytes },
    packet,
    DATA_HEADER_BYTES,
  );
  return packet;
}

/** The UDP payload that must leave for unit `unit`. */
export function expectedUnitPacket(
  stripe: Stripe,
  unit: number,
  group: number,
  offset: number,
  chunkBytes: number,
): Uint8Array {
  const { k, m } = stripe.code;
  const parity = unit >= k;
  const header = parity ? unfinishedParityHeader(stripe, unit) : stripe.headers[unit]!;
  const packet = new Uint8Array(PACKET_HEADER_BYTES + header.length + chunkBytes);
  packet.set(header, PACKET_HEADER_BYTES);
  packet.set(chunkOf(stripe.units[unit]!, offset, chunkBytes), PACKET_HEADER_BYTES + header.length);
  const fields: PacketHeader = {
    type: parity ? PacketType.PARITY : PacketType.UNIT,
    k,
    m,
    group,
    mapEpoch: NAME.mapEpoch,
    offset,
    chunkBytes,
  };
  encodePacketHeader(fields, packet, header.length);
  return packet;
}

function stripeHeader(stripe: Stripe): Uint8Array {
  const words = new Uint32Array(stripe.headers[0]!.slice(0, DATA_HEADER_BYTES).buffer);
  makeStripeHeader(
    words,
    stripe.units.slice(0, stripe.code.k).map((unit) => crc32c(unit)),
    crc32c,
  );
  return new Uint8Array(words.buffer);
}

/** Of a parity header the switch leaves the payload CRC at 0 and the seal at the stripe's. */
function unfinishedParityHeader(stripe: Stripe, unit: number): Uint8Array {
  const words = new Uint32Array(stripe.headers[unit]!.slice().buffer);
  words[W.PAYLOAD_CRC] = 0;
  words[W.SEAL] = new Uint32Array(stripeHeader(stripe).buffer)[W.SEAL]!;
  return new Uint8Array(words.buffer);
}

function chunkOf(unit: Uint8Array, offset: number, chunkBytes: number): Uint8Array {
  const chunk = new Uint8Array(chunkBytes);
  chunk.set(unit.subarray(offset, offset + chunkBytes));
  return chunk;
}
