/** Table entries by names: built and checked against P4Info, and read back. */
import {
  ActionRef_Scope as Scope,
  Table_IdleTimeoutBehavior as IdleTimeout,
  type Action as ActionInfo,
  type Table,
} from './generated/p4/config/v1/p4info.js';
import { Entity, TableEntry, type Action, type MeterConfig, type TableAction } from './generated/p4/v1/p4runtime.js';
import { toByteString, type Value } from './byte-string.js';
import { invalid } from './errors.js';
import {
  fromFieldMatch,
  matchKind,
  needsPriority,
  readValue,
  toFieldMatch,
  type Match,
  type ReadMatch,
} from './match.js';
import type { Program } from './program.js';

export interface ActionCall {
  readonly name: string;
  readonly params?: Readonly<Record<string, Value>>;
}

/** Of a meter's cell: committed and peak rates, in the meter's unit a second, and bursts. */
export interface MeterRates {
  readonly cir: bigint;
  readonly cburst: bigint;
  readonly pir: bigint;
  readonly pburst: bigint;
  readonly eburst?: bigint;
}

/**
 * What a table entry does: an action, or, in a table with an action profile, a member, a group, or weighted actions.
 */
export type EntryAction =
  | ActionCall
  | { readonly member: number }
  | { readonly group: number }
  | {
      readonly oneShot: readonly {
        readonly action: ActionCall;
        readonly weight: number;
        readonly watchPort?: Uint8Array;
      }[];
    };

export interface EntryFields {
  readonly table: string;
  /** By field name. Exact fields must all be there; fields that do not care may be left out. */
  readonly match?: Readonly<Record<string, Match>>;
  readonly action?: EntryAction | undefined;
  /** 1 or more where a field is ternary, range or optional; else left out. Higher wins. */
  readonly priority?: number;
  /**
   * The table's default action is meant: no match, no priority. Only MODIFY; without an action, back to the program's.
   */
  readonly isDefault?: boolean;
  readonly idleTimeoutNs?: bigint;
  /** The controller's own bytes. */
  readonly metadata?: Uint8Array;
  /** To be written, or, in a read, wanted. */
  readonly counter?: { readonly bytes: bigint; readonly packets: bigint } | undefined;
  /** Of the table's direct meter. */
  readonly meter?: MeterRates | undefined;
}

/** What was read. Given to tableEntry() again it makes the same entry. */
export interface ReadEntry {
  readonly table: string;
  readonly match: Readonly<Record<string, ReadMatch>>;
  readonly action:
    | { readonly name: string; readonly params: Readonly<Record<string, bigint | string>> }
    | { readonly member: number }
    | { readonly group: number }
    | {
        readonly oneShot: readonly {
          readonly action: { readonly name: string; readonly params: Readonly<Record<string, bigint | string>> };
          readonly weight: number;
          readonly watchPort?: Uint8Array;
        }[];
      }
    | undefined;
  readonly priority: number;
  readonly isDefault: boolean;
  readonly isConst: boolean;
  /** 0: none. */
  readonly idleTimeoutNs: bigint;
  /** Since a packet matched it, where that was asked for. */
  readonly sinceLastHitNs: bigint | undefined;
  readonly meter: MeterRates | undefined;
  readonly metadata: Uint8Array;
  readonly counter: { readonly bytes: bigint; readonly packets: bigint } | undefined;
}

/** An entry to insert, modify or delete. For DELETE, the action may be left out. */
export function tableEntry(program: Program, fields: EntryFields): Entity {
  const table = program.find('table', fields.table),
    what = `table '${fields.table}'`;
  const isDefault = fields.isDefault === true;
  if (table.isConstTable) throw invalid(`${what} is constant: its entries are the program's`);
  if (isDefault && ((fields.priority ?? 0) !== 0 || Object.keys(fields.match ?? {}).length > 0))
    throw invalid(`${what}: the default action has neither match nor priority`);
  if (isDefault && table.constDefaultActionId !== 0) throw invalid(`${what}: the default action is constant`);
  if (
    fields.idleTimeoutNs !== undefined &&
    fields.idleTimeoutNs !== 0n &&
    table.idleTimeoutBehavior === IdleTimeout.NO_TIMEOUT
  )
    throw invalid(`${what} has no idle timeout`);
  if (fields.counter !== undefined && !hasDirectCounter(program, table)) throw invalid(`${what} has no direct counter`);
  if (fields.meter !== undefined && !hasDirectMeter(program, table)) throw invalid(`${what} has no direct meter`);
  return entity({
    tableId: table.preamble!.id,
    match: isDefault ? [] : matchesOf(table, fields.match ?? {}, what),
    action: fields.action === undefined ? undefined : toTableAction(program, table, fields.action, isDefault, what),
    priority: isDefault ? 0 : priorityOf(table, fields.priority, what),
    isDefaultAction: isDefault,
    idleTimeoutNs: fields.idleTimeoutNs ?? 0n,
    metadata: Buffer.from(fields.metadata ?? []),
    meterConfig: toMeterConfig(fields.meter),
    counterData:
      fields.counter === undefined
        ? undefined
        : { byteCount: fields.counter.bytes, packetCount: fields.counter.packets },
  });
}

/**
 * What to read: all entries of a table, or of all tables.
 *
 * @param options.defaults  the default action instead of the entries
 * @param options.counters  with their direct counters, where the table has them
 * @param options.meters  with their direct meters' rates, where it has them
 * @param options.idleTimes  with the time since their last packet
 */
export function tableWildcard(
  program: Program,
  table?: string,
  options: { defaults?: boolean; counters?: boolean; meters?: boolean; idleTimes?: boolean } = {},
): Entity {
  return entity({
    tableId: table === undefined ? 0 : program.find('table', table).preamble!.id,
    isDefaultAction: options.defaults === true,
    counterData: options.counters === true ? { byteCount: 0n, packetCount: 0n } : undefined,
    meterConfig: options.meters === true ? toMeterConfig({ cir: 0n, cburst: 0n, pir: 0n, pburst: 0n }) : undefined,
    timeSinceLastHit: options.idleTimes === true ? { elapsedNs: 0n } : undefined,
  });
}

/** @throws {P4RuntimeError} ERR_P4_INVALID when ids are not this program's */
export function readTableEntry(program: Program, entry: TableEntry): ReadEntry {
  const table = program.findById('table', entry.tableId);
  const match: Record<string, ReadMatch> = {};
  for (const each of entry.match) {
    const field = table.matchFields.find((candidate) => candidate.id === each.fieldId);
    const value = field === undefined ? undefined : fromFieldMatch(field, each);
    if (field === undefined || value === undefined)
      throw invalid(
        `table '${program.nameOf(table)}': match field id ${each.fieldId} cannot be read with this program's P4Info`,
      );
    match[field.name] = value;
  }
  return {
    table: program.nameOf(table),
    match,
    action: readTableAction(program, entry.action),
    priority: entry.priority,
    isDefault: entry.isDefaultAction,
    isConst: entry.isConst,
    metadata: entry.metadata,
    idleTimeoutNs: entry.idleTimeoutNs,
    sinceLastHitNs: entry.timeSinceLastHit?.elapsedNs,
    meter: readMeterConfig(entry.meterConfig),
    counter:
      entry.counterData === undefined
        ? undefined
        : { bytes: entry.counterData.byteCount, packets: entry.counterData.packetCount },
  };
}

/** An action and its parameters, complete and each in its width. */
export function toAction(program: Program, call: ActionCall, what = `action '${call.name}'`): Action {
  const action = program.find('action', call.name),
    given = call.params ?? {};
  requireNames(
    Object.keys(given),
    action.params.map((param) => param.name),
    `${what}: parameter`,
  );
  return {
    actionId: action.preamble!.id,
    params: action.params.map((param) => {
      const value = given[param.name];
      if (value === undefined) throw invalid(`${what}: parameter '${param.name}' is missing`);
      return { paramId: param.id, value: toByteString(value, param.bitwidth, `${what}, parameter '${param.name}'`) };
    }),
  };
}

export function readAction(
  program: Program,
  action: Action,
): { name: string; params: Record<string, bigint | string> } {
  const info = program.findById('action', action.actionId);
  return {
    name: program.nameOf(info),
    params: Object.fromEntries(action.params.map((param) => readParam(program, info, param))),
  };
}

function readParam(
  program: Program,
  info: ActionInfo,
  { paramId, value }: { paramId: number; value: Uint8Array },
): [string, bigint | string] {
  const param = info.params.find((candidate) => candidate.id === paramId);
  if (param === undefined)
    throw invalid(`action '${program.nameOf(info)}': parameter id ${paramId} is not in this program's P4Info`);
  return [param.name, readValue(value, param.bitwidth)];
}

function readTableAction(program: Program, action: TableAction | undefined): ReadEntry['action'] {
  switch (action?.type?.$case) {
    case 'action':
      return readAction(program, action.type.value);
    case 'actionProfileMemberId':
      return { member: action.type.value };
    case 'actionProfileGroupId':
      return { group: action.type.value };
    case 'actionProfileActionSet':
      return {
        oneShot: action.type.value.actionProfileActions.map((each) => {
          if (each.action === undefined) throw invalid('a weighted action without an action cannot be read');
          const watchPort = readWatchPort(each.watchKind);
          return {
            action: readAction(program, each.action),
            weight: each.weight,
            ...(watchPort !== undefined && { watchPort }),
          };
        }),
      };
    case undefined:
      return undefined;
  }
}

function matchesOf(table: Table, given: Readonly<Record<string, Match>>, what: string): TableEntry['match'] {
  requireNames(
    Object.keys(given),
    table.matchFields.map((field) => field.name),
    `${what}: match field`,
  );
  return table.matchFields.flatMap((field) => {
    const match = given[field.name];
    if (match === undefined && matchKind(field) === 'exact')
      throw invalid(`${what}: match field '${field.name}' is missing, and is exact`);
    const made = match === undefined ? undefined : toFieldMatch(field, match, `${what}, field '${field.name}'`);
    return made === undefined ? [] : [made];
  });
}

function priorityOf(table: Table, priority: number | undefined, what: string): number {
  if (!table.matchFields.some(needsPriority)) {
    if (priority !== undefined && priority !== 0)
      throw invalid(`${what}: priority ${priority}, but no field is ternary, range or optional`);
    return 0;
  }
  if (priority === undefined || !Number.isInteger(priority) || priority < 1 || priority > 0x7fff_ffff)
    throw invalid(`${what}: priority ${priority ?? 'missing'}, expected 1 to 2147483647`);
  return priority;
}

function toTableAction(
  program: Program,
  table: Table,
  action: EntryAction,
  isDefault: boolean,
  what: string,
): TableAction {
  if ('name' in action === (table.implementationId !== 0) && !isDefault) {
    throw invalid(
      `${what} has ${table.implementationId === 0 ? 'no' : 'an'} action ` +
        `profile: ${'name' in action ? 'a member, a group or weighted actions' : 'an action'} expected`,
    );
  }
  if ('name' in action) return { type: { $case: 'action', value: allowed(program, table, action, isDefault, what) } };
  if ('member' in action) return { type: { $case: 'actionProfileMemberId', value: action.member } };
  if ('group' in action) return { type: { $case: 'actionProfileGroupId', value: action.group } };
  return {
    type: {
      $case: 'actionProfileActionSet',
      value: {
        actionProfileActions: action.oneShot.map((each) => {
          if (!Number.isInteger(each.weight) || each.weight < 1)
            throw invalid(`${what}: weight ${each.weight}, expected 1 or more`);
          return {
            action: allowed(program, table, each.action, false, what),
            weight: each.weight,
            watchKind: toWatchKind(each.watchPort),
          };
        }),
      },
    },
  };
}

function allowed(program: Program, table: Table, call: ActionCall, isDefault: boolean, what: string): Action {
  const id = program.find('action', call.name).preamble!.id;
  const ref = table.actionRefs.find((candidate) => candidate.id === id);
  const names = () =>
    table.actionRefs.map((each) => `'${program.nameOf(program.findById('action', each.id))}'`).join(', ');
  if (ref === undefined) throw invalid(`${what}: action '${call.name}' is not one of its actions: ${names()}`);
  if (isDefault && ref.scope === Scope.TABLE_ONLY)
    throw invalid(`${what}: action '${call.name}' cannot be the default action`);
  if (!isDefault && ref.scope === Scope.DEFAULT_ONLY)
    throw invalid(`${what}: action '${call.name}' can only be the default action`);
  return toAction(program, call, `${what}, action '${call.name}'`);
}

type WatchKind = { $case: 'watch'; value: number } | { $case: 'watchPort'; value: Buffer } | undefined;

export function toWatchKind(port: Uint8Array | undefined): WatchKind {
  return port === undefined ? undefined : { $case: 'watchPort', value: Buffer.from(port) };
}

/** Servers before 1.4 number ports in a field of their own. */
export function readWatchPort(kind: WatchKind): Uint8Array | undefined {
  if (kind === undefined) return undefined;
  return kind.$case === 'watchPort' ? kind.value : toByteString(kind.value, 32, 'watch port');
}

export function toMeterConfig(rates: MeterRates | undefined): MeterConfig | undefined {
  return rates && { ...rates, eburst: rates.eburst ?? 0n };
}

export function readMeterConfig(config: MeterConfig | undefined): MeterRates | undefined {
  if (config === undefined) return undefined;
  const { cir, cburst, pir, pburst, eburst } = config;
  return { cir, cburst, pir, pburst, ...(eburst !== 0n && { eburst }) };
}

function hasDirectMeter(program: Program, table: Table): boolean {
  return table.directResourceIds.some((id) => program.p4info.directMeters.some((meter) => meter.preamble?.id === id));
}

function hasDirectCounter(program: Program, table: Table): boolean {
  return table.directResourceIds.some((id) =>
    program.p4info.directCounters.some((counter) => counter.preamble?.id === id),
  );
}

/** Names are spelled as P4Info spells them, or it is a mistake. */
export function requireNames(given: readonly string[], known: readonly string[], what: string): void {
  const unknown = given.find((name) => !known.includes(name));
  if (unknown !== undefined)
    throw invalid(`${what} '${unknown}': expected ${known.map((name) => `'${name}'`).join(', ') || 'none'}`);
}

function entity(entry: Partial<TableEntry>): Entity {
  return { entity: { $case: 'tableEntry', value: TableEntry.fromPartial(entry) } };
}
