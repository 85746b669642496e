/** The state of the mock: pipeline, entities, and what the specification says an update may not do. */
import { Status, config, fromByteString, toByteString, v1 } from 'tartan-p4runtime';
import type { MockServer } from './mock-server.js';

export class StatusError extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export function fail(status: number, message: string): never {
  throw new StatusError(status, message);
}

const Action = v1.SetForwardingPipelineConfigRequest_Action;
const MatchType = config.MatchField_MatchType;

export class MockDevice {
  #config: v1.ForwardingPipelineConfig | undefined;
  #saved: v1.ForwardingPipelineConfig | undefined;
  #entities = new Map<string, v1.Entity>();
  /** Written since a pipeline was saved: for that one, and in effect with it (section 7.2). */
  #savedEntities = new Map<string, v1.Entity>();
  readonly #counters = new Map<string, v1.CounterData>();
  /** Ports by multicast group, one for each copy. As BMv2 does, a push forgets the groups and keeps their copies. */
  readonly #copies = new Map<number, bigint[]>();

  get p4info(): config.P4Info | undefined {
    return (this.#saved ?? this.#config)?.p4info;
  }

  setPipeline(action: number, wanted: v1.ForwardingPipelineConfig | undefined): void {
    if (action === Action.COMMIT) {
      if (wanted !== undefined) fail(Status.INVALID_ARGUMENT, 'COMMIT takes no config');
      if (this.#saved === undefined) fail(Status.FAILED_PRECONDITION, 'nothing was saved');
      this.#commit(this.#saved, false);
      this.#entities = this.#savedEntities;
      return;
    }
    if (wanted?.p4info === undefined) fail(Status.INVALID_ARGUMENT, 'P4Info is missing');
    if (wanted.p4DeviceConfig.length === 0) fail(Status.INVALID_ARGUMENT, 'the device config is empty');
    switch (action) {
      case Action.VERIFY:
        return;
      case Action.VERIFY_AND_SAVE:
        this.#saved = wanted;
        this.#savedEntities = new Map();
        return;
      case Action.VERIFY_AND_COMMIT:
        return this.#commit(wanted, false);
      case Action.RECONCILE_AND_COMMIT:
        return this.#commit(wanted, true);
      default:
        fail(Status.INVALID_ARGUMENT, `action ${action}`);
    }
  }

  #commit(wanted: v1.ForwardingPipelineConfig, keep: boolean): void {
    this.#config = wanted;
    this.#saved = undefined;
    if (!keep) {
      this.#entities.clear();
      this.#counters.clear();
    }
  }

  getPipeline(type: number): v1.ForwardingPipelineConfig {
    const now = this.#config ?? fail(Status.FAILED_PRECONDITION, 'no pipeline');
    const Type = v1.GetForwardingPipelineConfigRequest_ResponseType;
    return {
      cookie: now.cookie,
      p4info: type === Type.ALL || type === Type.P4INFO_AND_COOKIE ? now.p4info : undefined,
      p4DeviceConfig:
        type === Type.ALL || type === Type.DEVICE_CONFIG_AND_COOKIE ? now.p4DeviceConfig : Buffer.alloc(0),
    };
  }

  apply({ type, entity }: v1.Update): void {
    if (entity?.entity === undefined || type === v1.Update_Type.UNSPECIFIED)
      fail(Status.INVALID_ARGUMENT, 'type or entity is missing');
    if (entity.entity.$case === 'counterEntry') return this.#writeCounter(type, entity.entity.value);
    this.#check(entity, type);
    const entities = this.#saved === undefined ? this.#entities : this.#savedEntities;
    const key = entityKey(entity),
      exists = entities.has(key);
    const isDefault = entity.entity.$case === 'tableEntry' && entity.entity.value.isDefaultAction;
    if (isDefault && type !== v1.Update_Type.MODIFY) fail(Status.INVALID_ARGUMENT, 'default actions are modified');
    if (type === v1.Update_Type.INSERT && exists) fail(Status.ALREADY_EXISTS, 'exists');
    if (type !== v1.Update_Type.INSERT && !exists && !isDefault) fail(Status.NOT_FOUND, 'no such entity');
    this.#replaceCopies(entities.get(key), type === v1.Update_Type.DELETE ? undefined : entity);
    if (type === v1.Update_Type.DELETE) entities.delete(key);
    else entities.set(key, canonicalEntity(entity));
  }

  /** The ports that a packet to a multicast group leaves by, one for each packet. */
  multicast(groupId: number): bigint[] {
    return [...(this.#copies.get(groupId) ?? [])];
  }

  #replaceCopies(before: v1.Entity | undefined, after: v1.Entity | undefined): void {
    for (const [entity, isAdded] of [
      [before, false],
      [after, true],
    ] as const) {
      if (entity?.entity?.$case !== 'packetReplicationEngineEntry') continue;
      const engine = entity.entity.value.type;
      if (engine?.$case !== 'multicastGroupEntry') continue;
      const copies = this.multicast(engine.value.multicastGroupId);
      for (const port of engine.value.replicas.map(portOf)) {
        if (isAdded) copies.push(port);
        else copies.splice(copies.indexOf(port), 1);
      }
      this.#copies.set(engine.value.multicastGroupId, copies);
    }
  }

  #check({ entity }: v1.Entity, type: v1.Update_Type): void {
    if (entity?.$case === 'tableEntry') return this.#checkTableEntry(entity.value, type);
    if (entity?.$case !== 'packetReplicationEngineEntry') return;
    const { type: engine } = entity.value;
    const id = engine?.$case === 'multicastGroupEntry' ? engine.value.multicastGroupId : (engine?.value.sessionId ?? 0);
    if (id === 0) fail(Status.INVALID_ARGUMENT, 'id 0');
    const names = (engine?.value.replicas ?? []).map((replica) => `${portOf(replica)} ${replica.instance}`);
    if (new Set(names).size !== names.length) fail(Status.INVALID_ARGUMENT, 'the same replica twice');
  }

  #checkTableEntry(entry: v1.TableEntry, type: v1.Update_Type): void {
    const table =
      this.p4info!.tables.find((each) => each.preamble?.id === entry.tableId) ??
      fail(Status.NOT_FOUND, `no table ${entry.tableId}`);
    if (table.isConstTable) fail(Status.INVALID_ARGUMENT, 'the table is constant');
    if (entry.isDefaultAction) {
      if (entry.match.length > 0 || entry.priority !== 0)
        fail(Status.INVALID_ARGUMENT, 'a default action has neither match nor priority');
      return;
    }
    for (const field of table.matchFields) {
      const given = entry.match.filter((each) => each.fieldId === field.id);
      const kind = field.match?.$case === 'matchType' ? field.match.value : MatchType.UNSPECIFIED;
      if (given.length > 1) fail(Status.INVALID_ARGUMENT, `field ${field.name} twice`);
      if (given.length === 0 && kind === MatchType.EXACT)
        fail(Status.INVALID_ARGUMENT, `field ${field.name} is missing`);
      if (given[0] !== undefined) checkMatch(field, kind, given[0]);
    }
    if (entry.match.some((each) => !table.matchFields.some((field) => field.id === each.fieldId)))
      fail(Status.INVALID_ARGUMENT, 'an unknown field');
    const ordered = table.matchFields.some(
      (field) =>
        field.match?.$case === 'matchType' &&
        [MatchType.TERNARY, MatchType.RANGE, MatchType.OPTIONAL].includes(field.match.value),
    );
    if (ordered !== entry.priority > 0) fail(Status.INVALID_ARGUMENT, `priority ${entry.priority}`);
    if (type === v1.Update_Type.DELETE) return;
    const action =
      entry.action?.type?.$case === 'action' ? entry.action.type.value : fail(Status.INVALID_ARGUMENT, 'no action');
    const info = this.p4info!.actions.find((each) => each.preamble?.id === action.actionId);
    const ref = table.actionRefs.find((each) => each.id === action.actionId);
    if (info === undefined || ref === undefined || ref.scope === config.ActionRef_Scope.DEFAULT_ONLY)
      fail(Status.INVALID_ARGUMENT, 'the action is not for this table');
    if (action.params.length !== info.params.length) fail(Status.INVALID_ARGUMENT, 'parameters');
    for (const param of info.params) {
      const value =
        action.params.find((each) => each.paramId === param.id)?.value ??
        fail(Status.INVALID_ARGUMENT, `parameter ${param.name} is missing`);
      requireWidth(value, param.bitwidth);
    }
  }

  #writeCounter(type: v1.Update_Type, entry: v1.CounterEntry): void {
    if (type !== v1.Update_Type.MODIFY) fail(Status.INVALID_ARGUMENT, 'counters are modified');
    const info = this.#counterInfo(entry);
    this.#counters.set(
      `${info.preamble!.id} ${entry.index?.index ?? 0n}`,
      entry.data ?? { byteCount: 0n, packetCount: 0n },
    );
  }

  #counterInfo(entry: v1.CounterEntry): config.Counter {
    const info =
      this.p4info!.counters.find((each) => each.preamble?.id === entry.counterId) ??
      fail(Status.NOT_FOUND, `no counter ${entry.counterId}`);
    const index = entry.index?.index ?? 0n;
    if (index < 0n || index >= info.size) fail(Status.OUT_OF_RANGE, `index ${index}`);
    return info;
  }

  count(counterId: number, index: bigint, bytes: number): void {
    const key = `${counterId} ${index}`,
      now = this.#counters.get(key) ?? { byteCount: 0n, packetCount: 0n };
    this.#counters.set(key, { byteCount: now.byteCount + BigInt(bytes), packetCount: now.packetCount + 1n });
  }

  /** Fields at their default are wildcards. */
  *read(wanted: readonly v1.Entity[]): Generator<v1.Entity> {
    if (this.p4info === undefined) fail(Status.FAILED_PRECONDITION, 'no pipeline');
    for (const { entity: pattern } of wanted) {
      if (pattern?.$case === 'counterEntry') yield* this.#readCounters(pattern.value);
      else if (pattern !== undefined)
        for (const entity of this.#entities.values()) if (fits(pattern, entity)) yield shown(pattern, entity);
    }
  }

  *#readCounters(pattern: v1.CounterEntry): Generator<v1.Entity> {
    for (const info of this.p4info!.counters) {
      if (pattern.counterId !== 0 && info.preamble!.id !== pattern.counterId) continue;
      if (pattern.index !== undefined) this.#counterInfo(pattern);
      for (let index = 0n; index < info.size; index++) {
        if (pattern.index !== undefined && pattern.index.index !== index) continue;
        const data = this.#counters.get(`${info.preamble!.id} ${index}`) ?? { byteCount: 0n, packetCount: 0n };
        yield { entity: { $case: 'counterEntry', value: { counterId: info.preamble!.id, index: { index }, data } } };
      }
    }
  }

  /** What conformance_program.p4 would do with a packet from the controller, as far as the suite looks. */
  packetOut(packet: v1.PacketOut, server: MockServer): void {
    const from = fromByteString(packet.metadata[0]!.value),
      { payload } = packet;
    const info = this.p4info!,
      named = (name: string) => info.actions.find((each) => each.preamble?.alias === name)!.preamble!.id;
    this.count(info.counters[0]!.preamble!.id, from & 15n, payload.length);
    const tables = [...this.#entities.values()].flatMap(({ entity }) =>
      entity?.$case === 'tableEntry' ? [entity.value] : [],
    );
    const station = tables.find(
      (each) =>
        each.tableId === info.tables.find((table) => table.preamble?.alias === 'station')!.preamble!.id &&
        each.match[0]?.fieldMatchType?.$case === 'exact' &&
        fromByteString(each.match[0].fieldMatchType.value.value) === fromByteString(payload.subarray(0, 6)),
    );
    const action = station?.action?.type?.$case === 'action' ? station.action.type.value : undefined;
    if (action?.actionId === named('to_controller')) {
      server.injectPacket({
        payload,
        metadata: [
          { metadataId: 1, value: toByteString(from, 16, 'port') },
          { metadataId: 2, value: action.params[0]!.value },
        ],
      });
    }
    if (
      tables.some((each) => each.action?.type?.$case === 'action' && each.action.type.value.actionId === named('learn'))
    ) {
      const members = [payload.subarray(6, 12), toByteString(from, 16, 'port')].map((value) => ({
        data: { $case: 'bitstring' as const, value: toByteString(value, 48, 'member') },
      }));
      server.injectDigest({
        digestId: info.digests[0]!.preamble!.id,
        listId: 1n,
        timestamp: 0n,
        data: [{ data: { $case: 'struct', value: { members } } }],
      });
    }
  }
}

function portOf(replica: v1.Replica): bigint {
  return replica.portKind?.$case === 'port'
    ? fromByteString(replica.portKind.value)
    : BigInt(replica.portKind?.value ?? 0);
}

function requireWidth(value: Uint8Array, bits: number): void {
  if (value.length === 0) fail(Status.INVALID_ARGUMENT, 'an empty byte string');
  if (fromByteString(value) >> BigInt(bits) !== 0n) fail(Status.OUT_OF_RANGE, `a value wider than ${bits} bits`);
}

/** Section 9.1.1. */
function checkMatch(field: config.MatchField, kind: number, { fieldMatchType: type }: v1.FieldMatch): void {
  const bits = field.bitwidth,
    all = (1n << BigInt(bits)) - 1n;
  const named = {
    exact: MatchType.EXACT,
    lpm: MatchType.LPM,
    ternary: MatchType.TERNARY,
    range: MatchType.RANGE,
    optional: MatchType.OPTIONAL,
    other: -1,
  };
  if (type === undefined || named[type.$case] !== kind || type.$case === 'other')
    fail(Status.INVALID_ARGUMENT, `field ${field.name}: another kind`);
  const outside = (value: Uint8Array, mask: bigint) => (fromByteString(value) & ~mask) !== 0n;
  switch (type.$case) {
    case 'exact':
    case 'optional':
      return requireWidth(type.value.value, bits);
    case 'lpm': {
      requireWidth(type.value.value, bits);
      const length = type.value.prefixLen;
      if (length < 1 || length > bits)
        fail(Status.INVALID_ARGUMENT, `prefix length ${length}: what does not care is left out`);
      if (outside(type.value.value, all ^ ((1n << BigInt(bits - length)) - 1n)))
        fail(Status.INVALID_ARGUMENT, 'bits outside the prefix');
      return;
    }
    case 'ternary': {
      requireWidth(type.value.value, bits);
      const mask = fromByteString(type.value.mask);
      if (mask === 0n) fail(Status.INVALID_ARGUMENT, 'mask 0: what does not care is left out');
      if (outside(type.value.value, mask)) fail(Status.INVALID_ARGUMENT, 'bits outside the mask');
      return;
    }
    case 'range': {
      const low = fromByteString(type.value.low),
        high = fromByteString(type.value.high);
      if (low > high || (low === 0n && high === all)) fail(Status.INVALID_ARGUMENT, 'range');
    }
  }
}

/** What tells one entity from another. */
function entityKey({ entity }: v1.Entity): string {
  switch (entity?.$case) {
    case 'tableEntry': {
      const { tableId, isDefaultAction, priority, match } = entity.value;
      const fields = match
        .map(
          (each) =>
            `${each.fieldId}:${Object.values(each.fieldMatchType?.value ?? {})
              .map((part) => (part instanceof Uint8Array ? fromByteString(part) : String(part)))
              .join('/')}`,
        )
        .sort();
      return `table ${tableId} ${isDefaultAction} ${priority} ${fields.join(' ')}`;
    }
    case 'packetReplicationEngineEntry': {
      const { type } = entity.value;
      return type?.$case === 'multicastGroupEntry'
        ? `multicast ${type.value.multicastGroupId}`
        : `clone ${type?.value.sessionId}`;
    }
    case 'digestEntry':
      return `digest ${entity.value.digestId}`;
    case 'actionProfileMember':
      return `member ${entity.value.actionProfileId} ${entity.value.memberId}`;
    case 'actionProfileGroup':
      return `group ${entity.value.actionProfileId} ${entity.value.groupId}`;
    default:
      fail(Status.UNIMPLEMENTED, `${entity?.$case} is not written`);
  }
}

function fits(pattern: NonNullable<v1.Entity['entity']>, { entity }: v1.Entity): boolean {
  if (entity?.$case !== pattern.$case) return false;
  if (pattern.$case === 'tableEntry' && entity.$case === 'tableEntry') {
    const wanted = pattern.value,
      entry = entity.value;
    if (wanted.tableId !== 0 && wanted.tableId !== entry.tableId) return false;
    if (wanted.isDefaultAction !== entry.isDefaultAction) return false;
    return wanted.match.length === 0 || entityKey({ entity: pattern }) === entityKey({ entity });
  }
  if (pattern.$case === 'packetReplicationEngineEntry' && entity.$case === 'packetReplicationEngineEntry') {
    if (pattern.value.type?.$case !== entity.value.type?.$case) return false;
    const id =
      pattern.value.type?.$case === 'multicastGroupEntry'
        ? pattern.value.type.value.multicastGroupId
        : pattern.value.type?.value.sessionId;
    return id === 0 || entityKey({ entity: pattern }) === entityKey({ entity });
  }
  return true;
}

/** Direct counters only where they were asked for. */
function shown(pattern: NonNullable<v1.Entity['entity']>, entity: v1.Entity): v1.Entity {
  if (pattern.$case !== 'tableEntry' || entity.entity?.$case !== 'tableEntry') return entity;
  const counterData =
    pattern.value.counterData === undefined
      ? undefined
      : (entity.entity.value.counterData ?? { byteCount: 0n, packetCount: 0n });
  return { entity: { $case: 'tableEntry', value: { ...entity.entity.value, counterData } } };
}

/** Byte strings come back in the shortest form: section 8.4. */
function canonicalEntity(entity: v1.Entity): v1.Entity {
  const shorten = (value: unknown): unknown => {
    if (value instanceof Uint8Array) return value.length === 0 ? value : toByteString(value, 8 * value.length, 'value');
    if (Array.isArray(value)) return value.map(shorten);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, each]) => [name, name === 'metadata' ? each : shorten(each)]),
    );
  };
  return shorten(entity) as v1.Entity;
}
