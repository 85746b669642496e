/**
 * Looks at what the nodes' disks hold, without the cluster's help: every unit in its place, whole, and one stripe's
 * units of one version agreeing with each other by the reference coder; of every stripe that was acknowledged, enough.
 */
import type { FileRecord } from '../../cluster/records.js';
import type { Code } from '../../erasure/code/index.js';
import { crc32c, encode, parseCode, reconstruct } from '../../erasure/code/index.js';
import type { Layout } from '../../erasure/layout/index.js';
import { layoutOf, nodeOfUnit, stripeBytes, unitLength } from '../../erasure/layout/index.js';
import type { MemoryDisk } from '../../storage-node/memory-disk.js';
import { UnitStore, emptyLocation } from '../../storage-node/unit-store.js';
import { compareVersions, decodeHeader, type UnitHeader } from '../../wire/unit-header.js';
import type { Losses, LostUnit } from './losses.js';
import { Violation } from './model.js';

interface Unit {
  readonly node: string;
  readonly header: UnitHeader;
  readonly payload: Uint8Array;
  readonly missing: bigint;
}

/** One version of one stripe: its units by index, and which of them were recorded missing by a holder. */
interface StripeVersion {
  readonly stripe: number;
  readonly epoch: number;
  readonly counter: number;
  readonly units: Map<number, Unit>;
  missing: bigint;
  damaged: Set<number>;
}

export interface Checked {
  stripes: number;
  units: number;
  degraded: number;
  combinations: number;
}

/** Everything that the disks hold of all files. */
export class Evidence {
  /** By file id, then `stripe/epoch/counter`. */
  readonly files = new Map<number, Map<string, StripeVersion>>();
  units = 0;
  damaged = 0;

  /** Reads what a node would know after a loss of power now. The disk goes on. */
  async add(nodeId: string, disk: MemoryDisk, clusterUuid: string, clusterId: number): Promise<void> {
    const store = await UnitStore.open({ disk: disk.snapshot(), clusterUuid, clusterId, nodeId, random: () => 0.5 });
    const index = (store as unknown as { index: { fileIds(): Iterable<number>; isDeleted(id: number): boolean } })
      .index;
    const location = emptyLocation(),
      header = new Uint8Array(8192),
      payload = new Uint8Array(1 << 16);
    for (const fileId of index.fileIds()) {
      for (let from = 0, more = true; more; ) {
        const listed = store.inventory(fileId, from, 1000);
        more = listed.more;
        for (const held of listed.units) {
          from = held.stripe + 1;
          const version = this.version(fileId, held.stripe, held.writerEpoch, held.counter);
          version.missing |= held.missing;
          if (!store.lookupExact(fileId, held.stripe, held.unit, held.writerEpoch, held.counter, location)) continue;
          await store.read(location, header, payload);
          const decoded = decodeHeader(
            new Uint32Array(header.buffer, location.headerByte, location.headerBytes >> 2),
            0,
          );
          const bytes = payload.slice(0, location.unitLength);
          const isWhole =
            decoded.fileId === fileId &&
            decoded.stripe === held.stripe &&
            decoded.unit === held.unit &&
            crc32c(bytes) === decoded.payloadCrc;
          if (isWhole)
            version.units.set(held.unit, { node: nodeId, header: decoded, payload: bytes, missing: held.missing });
          else {
            version.damaged.add(held.unit);
            this.damaged++;
          }
          this.units++;
        }
      }
    }
    await store.close();
  }

  /** Versions of a stripe, newest first. */
  versionsOf(fileId: number, stripe: number): StripeVersion[] {
    return [...(this.files.get(fileId)?.values() ?? [])]
      .filter((version) => version.stripe === stripe)
      .sort((a, b) => compareVersions(b.epoch, b.counter, a.epoch, a.counter));
  }

  private version(fileId: number, stripe: number, epoch: number, counter: number): StripeVersion {
    let versions = this.files.get(fileId);
    if (versions === undefined) this.files.set(fileId, (versions = new Map()));
    const key = `${stripe}/${epoch}/${counter}`;
    let version = versions.get(key);
    if (version === undefined)
      versions.set(key, (version = { stripe, epoch, counter, units: new Map(), missing: 0n, damaged: new Set() }));
    return version;
  }
}

/** The whole units that one node's disk holds. @throws {TartanError} ERR_CHECKSUM when it can't be opened */
export async function wholeUnits(
  nodeId: string,
  disk: MemoryDisk,
  clusterUuid: string,
  clusterId: number,
): Promise<LostUnit[]> {
  const evidence = new Evidence(),
    whole: LostUnit[] = [];
  await evidence.add(nodeId, disk, clusterUuid, clusterId);
  for (const [fileId, versions] of evidence.files) {
    for (const { stripe, epoch, counter, units } of versions.values())
      for (const [unit, { missing }] of units) whole.push({ fileId, stripe, epoch, counter, unit, missing });
  }
  return whole;
}

/**
 * Checks one file.
 *
 * @param expected  its acknowledged bytes, from the start
 * @param losses    the units that may be gone: the run destroyed them
 * @param isRebuilt  a rebuild has completed since: what can be had has all its units
 * @param forgedNames  versions of which a unit was put there with other bytes: those need not agree
 * @returns stripes that cannot be had, because of what was destroyed; they may be refused by readers
 */
export function checkFile(
  record: FileRecord,
  evidence: Evidence,
  expected: Buffer,
  losses: Losses,
  isRebuilt: boolean,
  into: Checked,
  forgedNames: ReadonlySet<string>,
): Set<number> {
  const code = parseCode(record.code);
  const layout = layoutOf(record, code);
  for (const [name, version] of evidence.files.get(record.id) ?? [])
    if (!forgedNames.has(`${record.id}/${name}`)) checkVersion(record, code, layout, version, into);
  const full = stripeBytes(layout),
    lost = new Set<number>();
  const destroyed = new Map<number, LostUnit[]>();
  for (const unit of losses.of(record.id)) destroyed.set(unit.stripe, [...(destroyed.get(unit.stripe) ?? []), unit]);
  for (let stripe = 0; stripe * full < expected.length; stripe++) {
    const data = expected.subarray(stripe * full, Math.min(expected.length, (stripe + 1) * full));
    if (
      !checkAcknowledged(
        record,
        code,
        layout,
        evidence.versionsOf(record.id, stripe),
        stripe,
        data,
        losses,
        destroyed.get(stripe) ?? [],
        isRebuilt,
        into,
      )
    )
      lost.add(stripe);
  }
  return lost;
}

/** Of any version, acknowledged or not: units where they belong, and agreeing. */
function checkVersion(record: FileRecord, code: Code, layout: Layout, version: StripeVersion, into: Checked): void {
  const { k, m } = code;
  const name = nameOf(record, version);
  const [first] = version.units.values();
  if (first === undefined) return;
  const { stripeLength } = first.header;
  for (const [unit, { header, payload, node }] of version.units) {
    const place = record.nodes[nodeOfUnit(layout, version.stripe, unit)];
    if (node !== place)
      throw new Violation('unit out of place', `${name}: unit ${unit} is on ${node}, it belongs on ${place}`);
    if (
      header.k !== k ||
      header.m !== m ||
      header.unitBytes !== record.unitBytes ||
      header.stripeLength !== stripeLength
    )
      throw new Violation('mixed units', `${name}: unit ${unit} has another shape`);
    if (payload.length !== unitLength(stripeLength, record.unitBytes, unit, k))
      throw new Violation('mixed units', `${name}: unit ${unit} is ${payload.length} bytes long`);
  }
  into.units += version.units.size;
  if (version.units.size < k) return;
  const data = dataOf(code, version.units, stripeLength, record.unitBytes, [...version.units.keys()]);
  const parity = encode(code, data);
  for (const [unit, { payload, header }] of version.units) {
    const right = unit < k ? data[unit]! : parity[unit - k]!;
    if (!same(payload, right))
      throw new Violation('parity differs', `${name}: unit ${unit} does not agree with the others`);
    if (unit >= k)
      header.dataCrcs.forEach((crc, i) => {
        if (crc !== crc32c(data[i]!))
          throw new Violation('parity differs', `${name}: unit ${unit} lists another CRC for unit ${i}`);
      });
  }
  into.stripes++;
}

/**
 * @returns false when it can't be had, excusably: of a version more units than the code bears were destroyed, or
 *   recorded missing by holders
 */
function checkAcknowledged(
  record: FileRecord,
  code: Code,
  layout: Layout,
  versions: readonly StripeVersion[],
  stripe: number,
  data: Buffer,
  losses: Losses,
  destroyed: readonly LostUnit[],
  isRebuilt: boolean,
  into: Checked,
): boolean {
  const { k, m } = code;
  const isLost = ({ epoch, counter }: Pick<StripeVersion, 'epoch' | 'counter'>, unit: number): boolean =>
    losses.has(record.id, stripe, epoch, counter, unit, record.nodes[nodeOfUnit(layout, stripe, unit)]!);
  const version = versions.find(({ units }) => units.size >= k);
  const name = `file ${record.id} '${record.name}' (${code.name}), stripe ${stripe}`;
  if (version === undefined) {
    // What holders that were destroyed had recorded missing counts as well: that the others do not know it is no fault
    // now.
    const names = [...versions, ...destroyed];
    const isExplained = names.some((name) =>
      Array.from({ length: k + m }, (_, unit) => unit).every(
        (unit) =>
          isLost(name, unit) ||
          names.some(
            (holder) =>
              holder.epoch === name.epoch &&
              holder.counter === name.counter &&
              (('units' in holder && holder.units.has(unit)) || recorded(holder, unit)),
          ),
      ),
    );
    if (isExplained) return false;
    throw new Violation(
      'acknowledged stripe lost',
      `${name}: ${versions.length === 0 ? 'no unit is held' : versions.map(describe).join('; ')}, ${k} units ` +
        'are needed',
    );
  }
  const [first] = version.units.values();
  if (first!.header.stripeLength < data.length)
    throw new Violation(
      'acknowledged bytes lost',
      `${nameOf(record, version)}: ${first!.header.stripeLength} bytes long, ${data.length} were acknowledged`,
    );
  for (let unit = 0; unit < k + m; unit++) {
    if (version.units.has(unit) || (!isRebuilt && (recorded(version, unit) || isLost(version, unit)))) continue;
    if (isRebuilt)
      throw new Violation(
        'not rebuilt',
        `${nameOf(record, version)}: unit ${unit} is not held ` +
          `by ${record.nodes[nodeOfUnit(layout, stripe, unit)]} (${describe(version)}) though a rebuild has ` +
          'completed',
      );
    throw new Violation(
      'redundancy lost silently',
      `${nameOf(record, version)}: unit ${unit} is not held ` +
        `by ${record.nodes[nodeOfUnit(layout, stripe, unit)]}, and no holder records it missing ` +
        `(${describe(version)})`,
    );
  }
  if (version.units.size < k + m) into.degraded++;
  const held = [...version.units.keys()];
  for (const chosen of choices(held, k, stripe)) {
    into.combinations++;
    const restored = Buffer.concat(
      dataOf(code, version.units, first!.header.stripeLength, record.unitBytes, chosen),
    ).subarray(0, data.length);
    if (!restored.equals(data))
      throw new Violation(
        'wrong bytes stored',
        `${nameOf(record, version)}: units ${chosen.join(', ')} give other bytes than were written`,
      );
  }
  return true;
}

function recorded(version: { readonly missing: bigint }, unit: number): boolean {
  return ((version.missing >> BigInt(unit)) & 1n) === 1n;
}

/** The data units, from the first k of `chosen`. */
function dataOf(
  code: Code,
  units: ReadonlyMap<number, Unit>,
  stripeLength: number,
  unitBytes: number,
  chosen: readonly number[],
): Uint8Array[] {
  const given = Array.from({ length: code.k + code.m }, (_, unit) =>
    chosen.includes(unit) ? units.get(unit)!.payload : undefined,
  );
  const absent = Array.from({ length: code.k }, (_, unit) => unit).filter((unit) => given[unit] === undefined);
  const restored = absent.length === 0 ? [] : reconstruct(code, given, absent);
  return Array.from({ length: code.k }, (_, unit) =>
    (given[unit] ?? restored[absent.indexOf(unit)]!).subarray(0, unitLength(stripeLength, unitBytes, unit, code.k)),
  );
}

/**
 * Ways to choose `count` of the list: the first, the last, and one between that moves with `turn`; all, over many
 * stripes.
 */
function choices(list: readonly number[], count: number, turn: number): number[][] {
  const all: number[][] = [];
  const walk = (from: number, chosen: number[]): void => {
    if (chosen.length === count) {
      all.push(chosen);
      return;
    }
    for (let i = from; i < list.length; i++) walk(i + 1, [...chosen, list[i]!]);
  };
  walk(0, []);
  return all.length <= 3 ? all : [all[0]!, all[all.length - 1]!, all[1 + (turn % (all.length - 2))]!];
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function describe(version: StripeVersion): string {
  return (
    `version ${version.epoch}.${version.counter} has units ` +
    (`{${[...version.units.keys()].sort().join(' ')}}` +
      (version.damaged.size > 0 ? `, damaged {${[...version.damaged].join(' ')}}` : '') +
      ', ') +
    `missing mask ${version.missing.toString(2)}`
  );
}

function nameOf(record: FileRecord, version: StripeVersion): string {
  return (
    `file ${record.id} '${record.name}' (${record.code}), stripe ${version.stripe}, ` +
    `version ${version.epoch}.${version.counter}`
  );
}
