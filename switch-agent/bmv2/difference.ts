/**
 * From what a switch holds to what it should hold, in an order that never lets a packet meet half a group: what leads
 * to others goes last when it comes, and first when it goes. Updates of one step may be applied in any order.
 */
import { v1, fromByteString, readReplicas, type Program } from 'tartan-p4runtime';

type Update = v1.Update;

/** Steps to write one after the other; empty ones are left out. */
export function difference(program: Program, present: readonly v1.Entity[], wanted: readonly v1.Entity[]): Update[][] {
  const there = new Map(present.filter(isOurs).map((entity) => [keyOf(entity), entity])),
    right = new Map(wanted.map((entity) => [keyOf(entity), entity]));
  const gone = [...there].filter(([key]) => !right.has(key)).map(([, entity]) => entity);
  const missing = [...right].filter(([key]) => !there.has(key)).map(([, entity]) => entity);
  const different = [...right]
    .filter(([key, entity]) => there.has(key) && contentOf(there.get(key)!) !== contentOf(entity))
    .map(([, entity]) => entity);
  return [
    ...removing(program, gone),
    ...byRank(program, different).map((entities) => updates(v1.Update_Type.MODIFY, entities)),
    ...entering(program, missing),
  ].filter((step) => step.length > 0);
}

/** Multicast groups, then replicas, then everything else. */
export function entering(program: Program, entities: readonly v1.Entity[]): Update[][] {
  return byRank(program, entities)
    .map((step) => updates(v1.Update_Type.INSERT, step))
    .filter((step) => step.length > 0);
}

export function removing(program: Program, entities: readonly v1.Entity[]): Update[][] {
  return byRank(program, entities)
    .reverse()
    .map((step) => updates(v1.Update_Type.DELETE, step))
    .filter((step) => step.length > 0);
}

function updates(type: v1.Update_Type, entities: readonly v1.Entity[]): Update[] {
  return entities.map((entity) => ({ type, entity }));
}

function byRank(program: Program, entities: readonly v1.Entity[]): v1.Entity[][] {
  const replica = program.has('table', 'replica') ? program.find('table', 'replica').preamble!.id : undefined;
  const ranks: v1.Entity[][] = [[], [], []];
  for (const each of entities)
    ranks[each.entity?.$case !== 'tableEntry' ? 0 : each.entity.value.tableId === replica ? 1 : 2]!.push(each);
  return ranks;
}

/** Default actions and constant entries are the program's. */
function isOurs({ entity }: v1.Entity): boolean {
  return entity?.$case !== 'tableEntry' || !(entity.value.isDefaultAction || entity.value.isConst);
}

/** What tells one entity from another. Values without leading zeros: not every server shortens them. */
function keyOf({ entity }: v1.Entity): string {
  if (entity?.$case === 'tableEntry') {
    const { tableId, match } = entity.value;
    const fields = match.map(({ fieldId, fieldMatchType }) => `${fieldId}:${plain(fieldMatchType)}`).sort();
    return `${tableId} ${fields.join(' ')}`;
  }
  const engine = entity?.$case === 'packetReplicationEngineEntry' ? entity.value.type : undefined;
  return `multicast ${engine?.$case === 'multicastGroupEntry' ? engine.value.multicastGroupId : ''}`;
}

function contentOf({ entity }: v1.Entity): string {
  if (entity?.$case === 'tableEntry') {
    const action = entity.value.action?.type;
    if (action?.$case !== 'action') return plain(action);
    return `${action.value.actionId} ${action.value.params
      .map(({ paramId, value }) => `${paramId}:${fromByteString(value)}`)
      .sort()
      .join(' ')}`;
  }
  const engine = entity?.$case === 'packetReplicationEngineEntry' ? entity.value.type : undefined;
  return engine?.$case === 'multicastGroupEntry'
    ? readReplicas(engine.value.replicas)
        .map(({ port, instance }) => `${port}/${instance}`)
        .sort()
        .join(' ')
    : '';
}

function plain(value: unknown): string {
  if (value instanceof Uint8Array) return String(fromByteString(value));
  if (typeof value !== 'object' || value === null) return String(value);
  return Object.values(value).map(plain).join('/');
}
