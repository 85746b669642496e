/** What p4/forwarding.p4 is given, in parity.p4 and forward.p4 alike: the bridge and the routes. */
import { lpm, multicastGroup, tableEntry, type Program, type v1 } from 'tartan-p4runtime';
import type { PortMap } from './port-map.js';

/** Multicast group of the ports that a broadcast floods; stripe groups have higher ones. */
export const FLOOD_GROUP = 1;
const BROADCAST = 0xffff_ffff_ffffn;

export function forwardingEntries(program: Program, { service, hosts, routes }: PortMap): v1.Entity[] {
  const ports = [...new Set([...hosts, ...routes].map((each) => each.port))].sort((a, b) => a - b);
  return [
    multicastGroup(
      FLOOD_GROUP,
      ports.map((port) => ({ port, instance: 0 })),
    ),
    tableEntry(program, {
      table: 'bridge',
      match: { 'hdr.ethernet.dst': BROADCAST },
      action: { name: 'flood', params: { ports: FLOOD_GROUP } },
    }),
    ...hosts.map(({ mac, port }) =>
      tableEntry(program, {
        table: 'bridge',
        match: { 'hdr.ethernet.dst': mac },
        action: { name: 'to_port', params: { port } },
      }),
    ),
    ...routes.map(({ ip, prefixLength, mac, port }) =>
      tableEntry(program, {
        table: 'ipv4_route',
        match: { 'hdr.ipv4.dst': lpm(ip, prefixLength) },
        action: { name: 'route', params: { port, src_mac: service.mac, dst_mac: mac } },
      }),
    ),
  ];
}
