/** What a controller enters into parity.p4, by the names of its P4Info, and what must then leave. */
import { multicastGroup, tableEntry, type Program, type v1 } from 'tartan-p4runtime';
import { TO_SWITCH, udpFrame, type Addresses } from './frames.js';
import { NAME, expectedUnitPacket, type Stripe } from './stripe-packets.js';

export const SERVICE = { ip: TO_SWITCH.dstIp, mac: TO_SWITCH.dstMac, cookie: 0xfeed_f00d_1234_5678n };
export const WRITER_PORT = 1;

/** Node u sits at port u + 2. */
export function node(unit: number): { port: number; mac: bigint; ip: number; udpPort: number } {
  return { port: unit + 2, mac: 0x0200_0000_0100n + BigInt(unit), ip: 0x0a000100 + unit, udpPort: 21000 + unit };
}

export function serviceEntry(program: Program): v1.Entity {
  return tableEntry(program, {
    table: 'service_address',
    match: { 'meta.service_key': SERVICE.ip },
    action: { name: 'serve', params: { mac: SERVICE.mac, cookie: SERVICE.cookie } },
  });
}

/**
 * One group whose unit u is node u's: a multicast group of the same number with instance u + 1 for unit u, and an entry
 * each.
 *
 * @param without  units whose nodes are down: no copy is made for them
 */
export function groupEntries(
  program: Program,
  group: number,
  k: number,
  m: number,
  without: readonly number[] = [],
  mapEpoch: number = NAME.mapEpoch,
): v1.Entity[] {
  const units = Array.from({ length: k + m }, (_, unit) => unit).filter((unit) => !without.includes(unit));
  return [
    multicastGroup(
      group,
      units.map((unit) => ({ port: node(unit).port, instance: unit + 1 })),
    ),
    ...units.map((unit) => replicaEntry(program, group, unit, k)),
    tableEntry(program, {
      table: 'group',
      match: { 'hdr.packet.group': group },
      action: { name: 'stripe_group', params: { multicast_group: group, map_epoch: mapEpoch, k, m } },
    }),
  ];
}

function replicaEntry(program: Program, group: number, unit: number, k: number): v1.Entity {
  const { mac, ip, udpPort } = node(unit);
  const address = { src_mac: SERVICE.mac, dst_mac: mac, dst_ip: ip, dst_port: udpPort };
  return tableEntry(program, {
    table: 'replica',
    match: { 'hdr.packet.group': group, 'sm.egress_rid': unit + 1 },
    action:
      unit < k
        ? { name: 'data_unit', params: { unit, ...address } }
        : { name: 'parity_row', params: { row: unit - k, ...address } },
  });
}

/** The frame that must leave for unit u when a stripe packet came in with `from`. */
export function expectedFrame(
  stripe: Stripe,
  unit: number,
  group: number,
  offset: number,
  chunkBytes: number,
  from: Addresses = TO_SWITCH,
): { port: number; bytes: Uint8Array } {
  const { port, mac, ip, udpPort } = node(unit);
  const addresses = { ...from, srcMac: SERVICE.mac, dstMac: mac, dstIp: ip, dstPort: udpPort, ttl: 64 };
  return { port, bytes: udpFrame(addresses, expectedUnitPacket(stripe, unit, group, offset, chunkBytes)) };
}
