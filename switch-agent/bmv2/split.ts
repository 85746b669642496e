/** What p4/split.p4 is given: groups, and the replica of each of their units. */
import { multicastGroup, readReplicas, readTableEntry, tableEntry, type Program, type v1 } from 'tartan-p4runtime';
import { ipNumber, type Neighbour, type PortMap } from './port-map.js';

/** Where a unit's packets go. */
export interface UnitPlace extends Neighbour {
  readonly ip: number;
  readonly udpPort: number;
}

/** One ordered set of nodes under one map epoch. Never changed. */
export interface Group {
  /** In packets: 1 … 2^32 − 1. */
  readonly id: number;
  /** The switch's own number for the copies, 16 bits. */
  readonly multicast: number;
  readonly mapEpoch: number;
  readonly k: number;
  readonly m: number;
  /** By unit index; undefined where its node was down in that map: no copy is made. */
  readonly units: readonly (UnitPlace | undefined)[];
}

export function groupEntries(
  program: Program,
  { service }: PortMap,
  { id, multicast, mapEpoch, k, m, units }: Group,
): v1.Entity[] {
  const present = units.flatMap((place, unit) => (place === undefined ? [] : [{ place, unit }]));
  return [
    multicastGroup(
      multicast,
      present.map(({ place, unit }) => ({ port: place.port, instance: unit + 1 })),
    ),
    ...present.map(({ place, unit }) => {
      const address = { src_mac: service.mac, dst_mac: place.mac, dst_ip: place.ip, dst_port: place.udpPort };
      return tableEntry(program, {
        table: 'replica',
        match: { 'hdr.packet.group': id, 'sm.egress_rid': unit + 1 },
        action:
          unit < k
            ? { name: 'data_unit', params: { unit, ...address } }
            : { name: 'parity_row', params: { row: unit - k, ...address } },
      });
    }),
    tableEntry(program, {
      table: 'group',
      match: { 'hdr.packet.group': id },
      action: { name: 'stripe_group', params: { multicast_group: multicast, map_epoch: mapEpoch, k, m } },
    }),
  ];
}

/**
 * The groups that a switch holds whole: what an agent that was restarted goes on with. What is there only in part is
 * left out, and reconciling removes it.
 */
export function readGroups(program: Program, entities: readonly v1.Entity[]): Group[] {
  const copies = new Map<number, { port: number; instance: number }[]>();
  const places = new Map<string, Pick<UnitPlace, 'mac' | 'ip' | 'udpPort'>>();
  const found: { id: number; multicast: number; mapEpoch: number; k: number; m: number }[] = [];
  for (const { entity } of entities) {
    if (entity?.$case === 'packetReplicationEngineEntry' && entity.value.type?.$case === 'multicastGroupEntry') {
      copies.set(
        entity.value.type.value.multicastGroupId,
        readReplicas(entity.value.type.value.replicas).map(({ port, instance }) => ({ port: Number(port), instance })),
      );
    }
    if (entity?.$case !== 'tableEntry') continue;
    const { table, match, action } = readTableEntry(program, entity.value);
    if (action === undefined || !('params' in action)) continue;
    const { params } = action,
      number = (name: string): number => Number(params[name] ?? 0);
    const exact = (field: string): number => Number(match[field] as bigint);
    if (table === 'group')
      found.push({
        id: exact('hdr.packet.group'),
        multicast: number('multicast_group'),
        mapEpoch: number('map_epoch'),
        k: number('k'),
        m: number('m'),
      });
    if (table === 'replica') {
      places.set(`${exact('hdr.packet.group')} ${exact('sm.egress_rid')}`, {
        mac: BigInt(params['dst_mac'] ?? 0),
        ip: number('dst_ip'),
        udpPort: number('dst_port'),
      });
    }
  }
  return found.flatMap((group) => {
    const made = copies.get(group.multicast);
    if (made === undefined) return [];
    const units = Array.from({ length: group.k + group.m }, (_, unit): UnitPlace | undefined => {
      const copy = made.find((each) => each.instance === unit + 1),
        place = places.get(`${group.id} ${unit + 1}`);
      return copy === undefined || place === undefined ? undefined : { ...place, port: copy.port };
    });
    return units.filter((each) => each !== undefined).length === made.length ? [{ ...group, units }] : [];
  });
}

/** @param packets  of the node in the map */
export function unitPlace(packets: { readonly host: string; readonly port: number }, neighbour: Neighbour): UnitPlace {
  return { mac: neighbour.mac, port: neighbour.port, ip: ipNumber(packets.host), udpPort: packets.port };
}
