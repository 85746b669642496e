/**
 * Which groups a packet switch has, and why: a pure book; entering them in the switch is the controller's.
 *
 * A number is never given twice while it could matter: numbers ascend from where the agent began, by chance or above
 * what it found in the switch. So an agent whose memory is lost does not give another set the number that a writer
 * still uses.
 */
import type { ClusterMap } from '../../cluster/records.js';
import { TartanError } from '../../wire/errors.js';
import { FLOOD_GROUP } from './forwarding.js';
import { neighbourOf, type PortMap } from './port-map.js';
import { unitPlace, type Group, type UnitPlace } from './split.js';

/** How much a switch holds. */
export interface Room {
  readonly groups: number;
  readonly copies: number;
}

/** Sizes of p4/split.p4's tables. */
const TABLE_ROOM: Room = { groups: 4096, copies: 32_768 };
/** BMv2 has room for 4096 pairs of a multicast group and an instance; one is the flood's. */
export const BMV2_ROOM: Room = { groups: TABLE_ROOM.groups, copies: 4095 };
const LAST_ID = 0xffff_ffff;

interface Entered {
  readonly group: Group;
  readonly name: string | undefined;
  removeAtMs: number | undefined;
}

export class GroupBook {
  private readonly records = new Map<number, Entered>();
  private readonly byName = new Map<string, number>();
  private readonly multicasts = new Set<number>();
  private replicas = 0;

  /** @param lastId  the number before the first that is given */
  constructor(
    private lastId: number,
    private readonly room: Room = TABLE_ROOM,
  ) {}

  get size(): number {
    return this.records.size;
  }

  groups(): Group[] {
    return [...this.records.values()].map((each) => each.group);
  }

  /**
   * The group of a set of nodes under the map's epoch: the one it has, or a new one.
   *
   * @param nodes  node id by unit index, k + m of them
   * @returns isNew: it has to be entered in the switch
   * @throws {TartanError} ERR_ARGUMENT: a node that the map does not have, that takes no packets, or that no port leads
   *         to · ERR_CAPACITY
   */
  open(
    map: ClusterMap,
    ports: PortMap,
    k: number,
    m: number,
    nodes: readonly string[],
  ): { group: Group; isNew: boolean } {
    const name = nameOf(map.epoch, k, m, nodes),
      known = this.byName.get(name);
    if (known !== undefined) return { group: this.records.get(known)!.group, isNew: false };
    const units = nodes.map((id) => placeOf(map, ports, id));
    const copies = units.filter((each) => each !== undefined).length;
    if (this.records.size >= this.room.groups || this.replicas + copies > this.room.copies) {
      throw new TartanError(
        'ERR_CAPACITY',
        `Cannot open a group of ${nodes.join(', ')}: the switch has ${this.records.size} groups ` +
          `with ${this.replicas} copies, and takes ${this.room.groups} with ${this.room.copies}`,
      );
    }
    const group: Group = { id: this.nextId(), multicast: this.freeMulticast(), mapEpoch: map.epoch, k, m, units };
    this.add({ group, name, removeAtMs: undefined });
    return { group, isNew: true };
  }

  /**
   * Groups found in the switch. One whose nodes cannot be told from it is kept for whoever uses it, and not given
   * again.
   */
  restore(groups: readonly Group[], map: ClusterMap): void {
    for (const group of groups) {
      if (this.records.has(group.id) || group.multicast === FLOOD_GROUP) continue;
      const nodes = group.units.map(
        (place) =>
          place && map.nodes.find((node) => node.packets !== undefined && sameAddress(place, node.packets))?.id,
      );
      const named = group.mapEpoch === map.epoch && nodes.every((id) => id !== undefined);
      this.add({
        group,
        name: named ? nameOf(group.mapEpoch, group.k, group.m, nodes) : undefined,
        removeAtMs: undefined,
      });
      this.lastId = Math.max(this.lastId, group.id);
    }
  }

  /** Forgets a group, entered or not. */
  remove(id: number): void {
    const found = this.records.get(id);
    if (found === undefined) return;
    this.records.delete(id);
    if (found.name !== undefined && this.byName.get(found.name) === id) this.byName.delete(found.name);
    this.multicasts.delete(found.group.multicast);
    this.replicas -= copiesOf(found.group);
  }

  /** Under a new map, the groups of older ones still serve what is on its way for `graceMs`, then they expire. */
  adopt(mapEpoch: number, nowMs: number, graceMs: number): void {
    for (const each of this.records.values()) if (each.group.mapEpoch !== mapEpoch) each.removeAtMs ??= nowMs + graceMs;
  }

  /** Forgets the groups whose time has come, and returns them: to be removed from the switch. */
  expire(nowMs: number): Group[] {
    const due = [...this.records.values()]
      .filter((each) => each.removeAtMs !== undefined && each.removeAtMs <= nowMs)
      .map((each) => each.group);
    for (const { id } of due) this.remove(id);
    return due;
  }

  private add(record: Entered): void {
    this.records.set(record.group.id, record);
    if (record.name !== undefined && !this.byName.has(record.name)) this.byName.set(record.name, record.group.id);
    this.multicasts.add(record.group.multicast);
    this.replicas += copiesOf(record.group);
  }

  private nextId(): number {
    do this.lastId = this.lastId >= LAST_ID ? 1 : this.lastId + 1;
    while (this.records.has(this.lastId));
    return this.lastId;
  }

  private freeMulticast(): number {
    let number = FLOOD_GROUP + 1;
    while (this.multicasts.has(number)) number++;
    return number;
  }
}

/** undefined: its node is down, so no copy is made. */
function placeOf(map: ClusterMap, ports: PortMap, id: string): UnitPlace | undefined {
  const node = map.nodes.find((each) => each.id === id);
  const fail = (why: string): never => {
    throw new TartanError('ERR_ARGUMENT', `Cannot open a group with node ${id}: ${why}`);
  };
  if (node === undefined) return fail(`the map of epoch ${map.epoch} does not have it`);
  if (node.state === 'down') return undefined;
  const { packets } = node;
  if (packets === undefined) return fail('it takes no packets');
  const neighbour = neighbourOf(ports, packets.host) ?? fail(`no port of this switch leads to ${packets.host}`);
  return unitPlace(packets, neighbour);
}

function sameAddress(place: UnitPlace, packets: { readonly host: string; readonly port: number }): boolean {
  const { ip, udpPort } = unitPlace(packets, place);
  return place.ip === ip && place.udpPort === udpPort;
}

function nameOf(mapEpoch: number, k: number, m: number, nodes: readonly (string | undefined)[]): string {
  return `${mapEpoch} ${k} ${m} ${nodes.join(' ')}`;
}
function copiesOf(group: Group): number {
  return group.units.filter((each) => each !== undefined).length;
}
