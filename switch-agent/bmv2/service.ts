/** What p4/service.p4 is given: the address at which the switch itself answers. */
import { tableEntry, type Program, type v1 } from 'tartan-p4runtime';
import type { PortMap } from './port-map.js';

/** @param cookie  the pipeline's, answered to probes */
export function serviceEntries(program: Program, { service }: PortMap, cookie: bigint): v1.Entity[] {
  return [
    tableEntry(program, {
      table: 'service_address',
      match: { 'meta.service_key': service.ip },
      action: { name: 'serve', params: { mac: service.mac, cookie } },
    }),
  ];
}
