/** Counters, meters, multicast groups, clone sessions, digests, action profiles: entities by names, checked. */
import type {
  ActionProfileGroup,
  ActionProfileMember,
  CounterEntry,
  DigestList,
  Entity,
  MeterEntry,
  Replica as WireReplica,
} from './generated/p4/v1/p4runtime.js';
import type { P4Data } from './generated/p4/v1/p4data.js';
import { CounterSpec_Unit as Unit, type P4Info } from './generated/p4/config/v1/p4info.js';
import { fromByteString, toByteString, type Value } from './byte-string.js';
import { invalid } from './errors.js';
import type { Program } from './program.js';
import {
  readAction,
  readMeterConfig,
  readWatchPort,
  tableEntry,
  toAction,
  toMeterConfig,
  toWatchKind,
  type ActionCall,
  type EntryFields,
  type MeterRates,
} from './table-entry.js';

export interface CounterValue {
  readonly bytes: bigint;
  readonly packets: bigint;
}

/** Bits of a port number that is not translated. */
const PORT_BITS = 32;

/**
 * A cell of an indirect counter, or all of them.
 *
 * @param index  left out: all cells (only to read)
 * @param value  to be written; left out in reads
 */
export function counterEntry(program: Program, counter: string, index?: number | bigint, value?: CounterValue): Entity {
  const info = program.find('counter', counter);
  if (value !== undefined) requireUnit(info.spec?.unit, value, `counter '${counter}'`);
  return {
    entity: {
      $case: 'counterEntry',
      value: {
        counterId: info.preamble!.id,
        index: index === undefined ? undefined : { index: cell(index, info.size, `counter '${counter}'`) },
        data: value === undefined ? undefined : { byteCount: value.bytes, packetCount: value.packets },
      },
    },
  };
}

export function readCounterEntry(
  program: Program,
  entry: CounterEntry,
): CounterValue & { readonly counter: string; readonly index: bigint } {
  return {
    counter: program.nameOf(program.findById('counter', entry.counterId)),
    index: entry.index?.index ?? 0n,
    bytes: entry.data?.byteCount ?? 0n,
    packets: entry.data?.packetCount ?? 0n,
  };
}

/** The direct counter of one table entry (only table, match and priority count), or, without a match, of all. */
export function directCounterEntry(
  program: Program,
  entry: Pick<EntryFields, 'table' | 'match' | 'priority'>,
  value?: CounterValue,
): Entity {
  const table = program.find('table', entry.table);
  if (!program.p4info.directCounters.some((counter) => table.directResourceIds.includes(counter.preamble!.id)))
    throw invalid(`table '${entry.table}' has no direct counter`);
  const wire = entry.match === undefined ? undefined : tableEntry(program, entry).entity;
  const tableEntryValue =
    wire?.$case === 'tableEntry'
      ? wire.value
      : {
          tableId: table.preamble!.id,
          match: [],
          action: undefined,
          priority: 0,
          controllerMetadata: 0n,
          meterConfig: undefined,
          counterData: undefined,
          meterCounterData: undefined,
          isDefaultAction: false,
          idleTimeoutNs: 0n,
          timeSinceLastHit: undefined,
          metadata: Buffer.alloc(0),
          isConst: false,
        };
  return {
    entity: {
      $case: 'directCounterEntry',
      value: {
        tableEntry: tableEntryValue,
        data: value === undefined ? undefined : { byteCount: value.bytes, packetCount: value.packets },
      },
    },
  };
}

/** A cell of an indirect meter; without rates, back to its default (every packet green). */
export function meterEntry(program: Program, meter: string, index?: number | bigint, rates?: MeterRates): Entity {
  const info = program.find('meter', meter);
  return {
    entity: {
      $case: 'meterEntry',
      value: {
        meterId: info.preamble!.id,
        index: index === undefined ? undefined : { index: cell(index, info.size, `meter '${meter}'`) },
        config: toMeterConfig(rates),
        counterData: undefined,
      },
    },
  };
}

/** A meter's cell that was read; without rates it is at its default. */
export function readMeterEntry(
  program: Program,
  entry: MeterEntry,
): { readonly meter: string; readonly index: bigint; readonly rates: MeterRates | undefined } {
  return {
    meter: program.nameOf(program.findById('meter', entry.meterId)),
    index: entry.index?.index ?? 0n,
    rates: readMeterConfig(entry.config),
  };
}

/** A cell of a register, or all of them: to read, where the server can. */
export function registerEntry(program: Program, register: string, index?: number | bigint, data?: P4Data): Entity {
  const info = program.find('register', register);
  return {
    entity: {
      $case: 'registerEntry',
      value: {
        registerId: info.preamble!.id,
        index: index === undefined ? undefined : { index: cell(index, BigInt(info.size), `register '${register}'`) },
        data,
      },
    },
  };
}

/** One copy: where it leaves, and its egress_rid. */
export interface Replica {
  readonly port: Value;
  readonly instance: number;
}

/**
 * @param id       1 or more
 * @param replicas no two with the same port and instance
 * @param options.legacyPorts  number ports in the field that servers before 1.4 know
 */
export function multicastGroup(
  id: number,
  replicas: readonly Replica[] = [],
  options: { legacyPorts?: boolean; metadata?: Uint8Array } = {},
): Entity {
  requireId(id, 'multicast group');
  return replication({
    $case: 'multicastGroupEntry',
    value: {
      multicastGroupId: id,
      replicas: toReplicas(replicas, `multicast group ${id}`, options.legacyPorts),
      metadata: Buffer.from(options.metadata ?? []),
    },
  });
}

/** All multicast groups, to read. */
export function allMulticastGroups(): Entity {
  return replication({
    $case: 'multicastGroupEntry',
    value: { multicastGroupId: 0, replicas: [], metadata: Buffer.alloc(0) },
  });
}

/** @param packetLengthBytes  of each copy; 0: whole */
export function cloneSession(
  id: number,
  replicas: readonly Replica[] = [],
  options: { classOfService?: number; packetLengthBytes?: number; legacyPorts?: boolean } = {},
): Entity {
  requireId(id, 'clone session');
  const packetLengthBytes = options.packetLengthBytes ?? 0;
  if (!Number.isInteger(packetLengthBytes) || packetLengthBytes < 0)
    throw invalid(`clone session ${id}: packet length ${packetLengthBytes}, expected 0 or more`);
  return replication({
    $case: 'cloneSessionEntry',
    value: {
      sessionId: id,
      replicas: toReplicas(replicas, `clone session ${id}`, options.legacyPorts),
      classOfService: options.classOfService ?? 0,
      packetLengthBytes,
    },
  });
}

/**
 * The replicas of a group or session that was read: by port number, or, where the program translates ports to names
 * (sdn_string), by name. The wire does not tell the two apart.
 */
export function readReplicas(replicas: readonly WireReplica[]): { port: bigint; instance: number }[];
export function readReplicas(
  replicas: readonly WireReplica[],
  options: { readonly named: true },
): { port: string; instance: number }[];
export function readReplicas(
  replicas: readonly WireReplica[],
  options?: { readonly named: true },
): { port: bigint | string; instance: number }[] {
  return replicas.map(({ portKind, instance }) => {
    if (portKind?.$case !== 'port') return { port: BigInt(portKind?.value ?? 0), instance };
    return { port: options === undefined ? fromByteString(portKind.value) : portKind.value.toString(), instance };
  });
}

/** Digests may be lost: carry nothing in them that must arrive. */
export function digestEntry(
  program: Program,
  digest: string,
  config?: { maxTimeoutNs?: bigint; maxListSize?: number; ackTimeoutNs?: bigint },
): Entity {
  const info = program.find('digest', digest);
  return {
    entity: {
      $case: 'digestEntry',
      value: {
        digestId: info.preamble!.id,
        config:
          config === undefined
            ? undefined
            : {
                maxTimeoutNs: config.maxTimeoutNs ?? 0n,
                maxListSize: config.maxListSize ?? 0,
                ackTimeoutNs: config.ackTimeoutNs ?? 0n,
              },
      },
    },
  };
}

/** A digest list with its entries' members by name, where they are bit strings of a struct or tuple. */
export function readDigestList(
  program: Program,
  list: DigestList,
): { digest: string; listId: bigint; entries: Record<string, bigint>[] } {
  const info = program.findById('digest', list.digestId);
  const spec = info.typeSpec?.typeSpec;
  const names = spec?.$case === 'struct' ? structMembers(program.p4info, spec.value.name) : [];
  const entries = list.data.map(({ data }) => {
    const members =
      data?.$case === 'struct' || data?.$case === 'tuple' ? data.value.members : data === undefined ? [] : [{ data }];
    return Object.fromEntries(
      members.map((member, index) => [
        names[index] ?? String(index),
        member.data?.$case === 'bitstring' ? fromByteString(member.data.value) : 0n,
      ]),
    );
  });
  return { digest: program.nameOf(info), listId: list.listId, entries };
}

export function actionProfileMember(program: Program, profile: string, memberId: number, action?: ActionCall): Entity {
  const info = program.find('action profile', profile);
  requireId(memberId, `action profile '${profile}', member`);
  return {
    entity: {
      $case: 'actionProfileMember',
      value: {
        actionProfileId: info.preamble!.id,
        memberId,
        action: action === undefined ? undefined : toAction(program, action),
      },
    },
  };
}

export function readActionProfileMember(
  program: Program,
  entry: ActionProfileMember,
): { readonly profile: string; readonly member: number; readonly action: ReturnType<typeof readAction> | undefined } {
  return {
    profile: program.nameOf(program.findById('action profile', entry.actionProfileId)),
    member: entry.memberId,
    action: entry.action && readAction(program, entry.action),
  };
}

export interface GroupMember {
  readonly member: number;
  readonly weight: number;
  /** While this port is down, the member gets nothing. */
  readonly watchPort?: Uint8Array;
}

export function readActionProfileGroup(
  program: Program,
  entry: ActionProfileGroup,
): { readonly profile: string; readonly group: number; readonly members: GroupMember[]; readonly maxSize: number } {
  return {
    profile: program.nameOf(program.findById('action profile', entry.actionProfileId)),
    group: entry.groupId,
    members: entry.members.map(({ memberId, weight, watchKind }) => {
      const watchPort = readWatchPort(watchKind);
      return { member: memberId, weight, ...(watchPort !== undefined && { watchPort }) };
    }),
    maxSize: entry.maxSize,
  };
}

export function actionProfileGroup(
  program: Program,
  profile: string,
  groupId: number,
  members: readonly GroupMember[] = [],
  maxSize = 0,
): Entity {
  const info = program.find('action profile', profile);
  requireId(groupId, `action profile '${profile}', group`);
  if (!info.withSelector) throw invalid(`action profile '${profile}' has no selector: groups are not for it`);
  for (const { weight } of members)
    if (!Number.isInteger(weight) || weight < 1)
      throw invalid(`action profile '${profile}', group ${groupId}: weight ${weight}, expected 1 or more`);
  return {
    entity: {
      $case: 'actionProfileGroup',
      value: {
        actionProfileId: info.preamble!.id,
        groupId,
        maxSize,
        members: members.map(({ member, weight, watchPort }) => ({
          memberId: member,
          weight,
          watchKind: toWatchKind(watchPort),
        })),
      },
    },
  };
}

function structMembers(p4info: P4Info, name: string): string[] {
  return p4info.typeInfo?.structs[name]?.members.map((member) => member.name) ?? [];
}

function cell(index: number | bigint, size: bigint, what: string): bigint {
  if (typeof index !== 'bigint' && !Number.isSafeInteger(index))
    throw invalid(`${what}: index ${index}, expected a whole number`);
  const at = BigInt(index);
  if (at < 0n || (size > 0n && at >= size)) throw invalid(`${what}: index ${at}, expected 0 to ${size - 1n}`);
  return at;
}

function requireUnit(unit: Unit | undefined, value: CounterValue, what: string): void {
  if (unit === Unit.PACKETS && value.bytes !== 0n) throw invalid(`${what} counts packets only`);
  if (unit === Unit.BYTES && value.packets !== 0n) throw invalid(`${what} counts bytes only`);
}

function requireId(id: number, what: string): void {
  if (!Number.isInteger(id) || id < 1 || id > 0xffff_ffff) throw invalid(`${what} ${id}: expected 1 to 4294967295`);
}

function toReplicas(replicas: readonly Replica[], what: string, legacyPorts = false): WireReplica[] {
  const seen = new Set<string>();
  return replicas.map(({ port, instance }) => {
    if (!Number.isInteger(instance) || instance < 0 || instance > 0xffff)
      throw invalid(`${what}: instance ${instance}, expected 0 to 65535`);
    const bytes =
      typeof port === 'string'
        ? toByteString(port, 0, `${what}, port`)
        : toByteString(port, PORT_BITS, `${what}, port`);
    const name = `${bytes.toString('hex')} ${instance}`;
    if (seen.has(name)) throw invalid(`${what}: port ${String(port)} with instance ${instance} twice`);
    seen.add(name);
    return {
      portKind: legacyPorts
        ? { $case: 'egressPort' as const, value: Number(fromByteString(bytes)) }
        : { $case: 'port' as const, value: bytes },
      instance,
    };
  });
}

function replication(
  type: NonNullable<Extract<Entity['entity'], { $case: 'packetReplicationEngineEntry' }>['value']['type']>,
): Entity {
  return { entity: { $case: 'packetReplicationEngineEntry', value: { type } } };
}
