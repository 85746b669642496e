/**
 * Runs a program that p4c compiled for BMv2, packet by packet: parser, checksums, ingress, multicast, egress, deparser,
 * as BMv2's simple_switch goes through them. It knows what our programs use and refuses the rest (bmv2-json.ts); it is
 * stricter than BMv2 in that reading an invalid header throws.
 *
 * It takes the entries that a controller would send over P4Runtime, so both are driven by the same code.
 */
import { internetChecksum } from '../../wire/packet-header.js';
import { Program, fromByteString, readReplicas, readTableEntry, type ReadMatch, type v1 } from 'tartan-p4runtime';
import {
  loadBmv2Json,
  type Bmv2Json,
  type Checksum,
  type Expression,
  type ParseState,
  type Pipeline,
  type Primitive,
  type Table,
} from './bmv2-json.js';
import { PacketState, evaluate, toBytes, toInteger } from './bmv2-state.js';

export interface SentPacket {
  readonly port: number;
  readonly bytes: Uint8Array;
}

const DROP_PORT = 511n;
const META = 'standard_metadata';

/** Actions go by id: p4c copies an action for each place that calls it, under one name. */
interface Call {
  readonly actionId: number;
  readonly locals: readonly bigint[];
}
interface Entry extends Call {
  readonly key: readonly ReadMatch[];
  packets: bigint;
  bytes: bigint;
}

export class Bmv2Executor {
  readonly #json: Bmv2Json;
  readonly #program: Program;
  readonly #states: ReadonlyMap<string, ParseState>;
  readonly #actionById: ReadonlyMap<number, Bmv2Json['actions'][number]>;
  readonly #entries = new Map<string, Entry[]>();
  readonly #defaults = new Map<string, Call>();
  readonly #multicast = new Map<number, { port: bigint; instance: number }[]>();
  readonly #counters = new Map<string, bigint[]>();

  /** @param json  what p4c wrote, as text */
  constructor(json: string, program: Program) {
    this.#json = loadBmv2Json(json);
    this.#program = program;
    this.#states = new Map(this.#json.parsers[0]!.parse_states.map((state) => [state.name, state]));
    this.#actionById = new Map(this.#json.actions.map((action) => [action.id, action]));
    for (const { name, size, is_direct } of this.#json.counter_arrays)
      if (is_direct !== true) this.#counters.set(name, new Array<bigint>(size ?? 0).fill(0n));
  }

  /** Inserts or replaces what a controller writes: table entries, default actions, multicast groups. */
  write(...entities: v1.Entity[]): void {
    for (const { entity } of entities) {
      if (entity?.$case === 'tableEntry') this.#writeEntry(entity.value);
      else if (entity?.$case === 'packetReplicationEngineEntry' && entity.value.type?.$case === 'multicastGroupEntry')
        this.#multicast.set(entity.value.type.value.multicastGroupId, readReplicas(entity.value.type.value.replicas));
      else throw new Error(`the executor takes no ${entity?.$case}`);
    }
  }

  /** Packets counted in a cell of an indirect counter. */
  counter(name: string, index: number): bigint {
    return this.#counters.get(this.#program.find('counter', name).preamble!.name)![index]!;
  }

  /** Packets and bytes that the entries of a table have seen, in the order they were written. */
  directCounters(table: string): { packets: bigint; bytes: bigint }[] {
    return (this.#entries.get(this.#program.find('table', table).preamble!.name) ?? []).map(({ packets, bytes }) => ({
      packets,
      bytes,
    }));
  }

  /** @returns what leaves, in the order of the multicast group */
  process(port: number, bytes: Uint8Array): SentPacket[] {
    const state = new PacketState(this.#json);
    const setMeta = (field: string, value: bigint) => {
      if (state.has([META, field])) state.set([META, field], value);
    };
    setMeta('ingress_port', BigInt(port));
    setMeta('packet_length', BigInt(bytes.length));
    const { payload, error } = this.#parse(state, bytes);
    setMeta('parser_error', BigInt(this.#json.errors.find(([name]) => name === error)?.[1] ?? 0));
    if (
      !this.#json.checksums.every(
        (checksum) =>
          !checksum.verify ||
          !this.#applies(checksum, state) ||
          this.#sum(checksum, state) === state.get(checksum.target),
      )
    )
      setMeta('checksum_error', 1n);
    this.#run('ingress', state, bytes.length);

    const group = Number(state.get([META, 'mcast_grp']));
    const copies =
      group !== 0
        ? (this.#multicast.get(group) ?? [])
        : state.get([META, 'egress_spec']) === DROP_PORT
          ? []
          : [{ port: state.get([META, 'egress_spec']), instance: 0 }];
    return copies.flatMap((copy) => {
      const own = state.clone();
      own.set([META, 'egress_port'], copy.port);
      own.set([META, 'egress_rid'], BigInt(copy.instance));
      own.set([META, 'egress_spec'], 0n);
      this.#run('egress', own, bytes.length);
      if (own.get([META, 'egress_spec']) === DROP_PORT) return [];
      for (const checksum of this.#json.checksums)
        if (checksum.update && this.#applies(checksum, own)) own.set(checksum.target, this.#sum(checksum, own));
      const headers = this.#json.deparsers[0]!.order.filter((name) => own.isValid(name)).map((name) => own.emit(name));
      return [{ port: Number(copy.port), bytes: Uint8Array.from(Buffer.concat([...headers, payload])) }];
    });
  }

  /**
   * What is not taken apart stays payload. Running out of bytes ends the parser with an error, and keeps what there is.
   */
  #parse(state: PacketState, bytes: Uint8Array): { payload: Uint8Array; error: string } {
    let at = 0;
    for (let name: string | null = this.#json.parsers[0]!.init_state; name !== null; ) {
      const here: ParseState = this.#states.get(name)!;
      for (const { op, parameters } of here.parser_ops) {
        if (op === 'set') {
          const value =
            parameters[1]!.type === 'lookahead'
              ? lookahead(bytes, at, parameters[1]!.value)
              : evaluate(parameters[1] as Expression, state, []);
          if (value === undefined) return { payload: bytes.subarray(at), error: 'PacketTooShort' };
          state.set(parameters[0]!.value as [string, string], value);
          continue;
        }
        const { type, value } = parameters[0] as { type: string; value: string };
        const header = type === 'stack' ? state.nextOf(value) : value;
        if (header === undefined) return { payload: bytes.subarray(at), error: 'StackOutOfBounds' };
        const end = at + state.headerBits(header) / 8;
        if (end > bytes.length) return { payload: bytes.subarray(at), error: 'PacketTooShort' };
        state.extract(header, bytes.subarray(at, end));
        at = end;
      }
      let key = 0n;
      for (const { type, value } of here.transition_key) {
        if (type === 'field') {
          const ref = value as [string, string];
          // BMv2 joins keys as whole bytes.
          key = (key << BigInt(8 * Math.ceil(state.bitsOf(ref) / 8))) | state.get(ref);
        } else {
          const ahead = lookahead(bytes, at, value);
          if (ahead === undefined) return { payload: bytes.subarray(at), error: 'PacketTooShort' };
          key = (key << BigInt((value as [number, number])[1])) | ahead;
        }
      }
      const next = here.transitions.find(({ type, value, mask }) => {
        if (type === 'default') return true;
        const bits = mask === null ? key : key & BigInt(mask);
        return bits === (mask === null ? BigInt(value!) : BigInt(value!) & BigInt(mask));
      });
      if (next === undefined) return { payload: bytes.subarray(at), error: 'NoMatch' };
      name = next.next_state;
    }
    return { payload: bytes.subarray(at), error: 'NoError' };
  }

  #run(pipelineName: string, state: PacketState, packetBytes: number): void {
    const pipeline: Pipeline = this.#json.pipelines.find((each) => each.name === pipelineName)!;
    for (let name = pipeline.init_table; name !== null; ) {
      const conditional = pipeline.conditionals.find((each) => each.name === name);
      if (conditional !== undefined) {
        name = evaluate(conditional.expression, state, []) !== 0n ? conditional.true_next : conditional.false_next;
        continue;
      }
      name = this.#applyTable(pipeline.tables.find((each) => each.name === name)!, state, packetBytes);
    }
  }

  #applyTable(table: Table, state: PacketState, packetBytes: number): string | null {
    const entry = this.#lookup(table, state);
    if (entry !== undefined) {
      entry.packets++;
      entry.bytes += BigInt(packetBytes);
    }
    const fallback = this.#defaults.get(table.name) ?? this.#programDefault(table);
    const chosen = entry ?? fallback;
    if (chosen !== undefined)
      for (const primitive of this.#actionById.get(chosen.actionId)!.primitives)
        this.#perform(primitive, state, chosen.locals);
    const byHit = entry === undefined ? '__MISS__' : '__HIT__';
    const next =
      byHit in table.next_tables
        ? table.next_tables[byHit]
        : chosen === undefined
          ? undefined
          : table.next_tables[this.#actionById.get(chosen.actionId)!.name];
    return next === undefined ? table.base_default_next : next;
  }

  #programDefault(table: Table): Call | undefined {
    const { default_entry: entry } = table;
    return entry === undefined
      ? undefined
      : { actionId: entry.action_id, locals: entry.action_data.map((value) => BigInt(value)) };
  }

  #lookup(table: Table, state: PacketState): Entry | undefined {
    if (table.key.length === 0) return undefined;
    const values = table.key.map((key) => state.get(key.target));
    const prefix = (entry: Entry) =>
      entry.key.reduce<number>(
        (sum, match) => sum + (typeof match === 'object' && match.kind === 'lpm' ? match.prefixLength : 0),
        0,
      );
    const hits = (this.#entries.get(table.name) ?? []).filter((entry) =>
      table.key.every((key, index) => {
        const match = entry.key[index]!;
        if (typeof match !== 'object') return match === values[index];
        if (match.kind !== 'lpm') throw new Error(`match ${match.kind}`);
        const shift = BigInt(state.bitsOf(key.target) - match.prefixLength);
        return values[index]! >> shift === match.value >> shift;
      }),
    );
    return hits.sort((a, b) => prefix(b) - prefix(a))[0];
  }

  #perform({ op, parameters }: Primitive, state: PacketState, locals: readonly bigint[]): void {
    const target = parameters[0];
    switch (op) {
      case 'assign':
        if (target?.type !== 'field') throw new Error(`assign to ${target?.type}`);
        return state.set(target.value, evaluate(parameters[1]!, state, locals));
      case 'assign_header':
        return state.copy(String(target!.value), String(parameters[1]!.value));
      case 'add_header':
        return state.setValid(String(target!.value), true);
      case 'remove_header':
        return state.setValid(String(target!.value), false);
      case 'mark_to_drop':
        state.set([META, 'egress_spec'], DROP_PORT);
        return state.set([META, 'mcast_grp'], 0n);
      case 'count': {
        const cells = this.#counters.get(String(target!.value))!,
          index = Number(evaluate(parameters[1]!, state, locals));
        if (index < cells.length) cells[index]!++;
        return;
      }
      default:
        throw new Error(`primitive ${op}`);
    }
  }

  #applies(checksum: Checksum, state: PacketState): boolean {
    return checksum.if_cond === null || evaluate(checksum.if_cond, state, []) !== 0n;
  }

  #sum(checksum: Checksum, state: PacketState): bigint {
    let all = 0n,
      total = 0;
    for (const { type, value, bitwidth } of this.#json.calculations.find((each) => each.name === checksum.calculation)!
      .input) {
      const bits = type === 'field' ? state.bitsOf(value as [string, string]) : bitwidth!;
      all = (all << BigInt(bits)) | (type === 'field' ? state.get(value as [string, string]) : BigInt(value as string));
      total += bits;
    }
    return BigInt(internetChecksum(toBytes(all, total / 8)));
  }

  #writeEntry(wire: v1.TableEntry): void {
    const info = this.#program.findById('table', wire.tableId),
      name = info.preamble!.name;
    const read = readTableEntry(this.#program, wire);
    if (wire.action?.type?.$case !== 'action') throw new Error(`an entry of ${name} without an action`);
    const { actionId, params } = wire.action.type.value;
    const action = this.#program.findById('action', actionId);
    const table = this.#json.pipelines.flatMap((pipeline) => pipeline.tables).find((each) => each.name === name)!;
    const chosen: Call = {
      actionId: table.action_ids[table.actions.indexOf(action.preamble!.name)]!,
      locals: action.params.map((param) => fromByteString(params.find((each) => each.paramId === param.id)!.value)),
    };
    if (wire.isDefaultAction) {
      this.#defaults.set(name, chosen);
      return;
    }
    const key = info.matchFields.map(
      (field) => read.match[field.name] ?? { kind: 'lpm' as const, value: 0n, prefixLength: 0 },
    );
    const same = (entry: Entry) => JSON.stringify(entry.key, bigintText) === JSON.stringify(key, bigintText);
    const entries = this.#entries.get(name) ?? [];
    this.#entries.set(name, [...entries.filter((entry) => !same(entry)), { key, ...chosen, packets: 0n, bytes: 0n }]);
  }
}

function bigintText(_name: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value;
}

/** @param range  offset and length in bits, whole bytes; undefined when the packet ends before */
function lookahead(bytes: Uint8Array, at: number, range: unknown): bigint | undefined {
  const [offset, bits] = range as [number, number];
  const end = at + (offset + bits) / 8;
  return end > bytes.length ? undefined : toInteger(bytes.subarray(at + offset / 8, end));
}
