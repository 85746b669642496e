/**
 * A program as its controller knows it: by names. Made from P4Info; every method checks what it is given and throws
 * ERR_P4_INVALID before anything is sent, saying what was expected.
 *
 * Names are full names, or aliases (the shortest unique suffix), as P4Info lists both.
 */
import type {
  Action,
  ActionProfile,
  ControllerPacketMetadata,
  Counter,
  Digest,
  DirectCounter,
  Meter,
  DirectMeter,
  P4Info,
  Preamble,
  Register,
  Table,
  ValueSet,
} from './generated/p4/config/v1/p4info.js';
import { P4RuntimeError, invalid } from './errors.js';
import { parseP4InfoText } from './p4info-text.js';

interface Kinds {
  table: Table;
  action: Action;
  'action profile': ActionProfile;
  counter: Counter;
  'direct counter': DirectCounter;
  meter: Meter;
  'direct meter': DirectMeter;
  register: Register;
  digest: Digest;
  'value set': ValueSet;
  'controller header': ControllerPacketMetadata;
}

export type ObjectKind = keyof Kinds;

export class Program {
  readonly p4info: P4Info;
  readonly #byName = new Map<string, { preamble?: Preamble | undefined }>();
  readonly #byId = new Map<number, { preamble?: Preamble | undefined }>();
  readonly #names = new Map<ObjectKind, string[]>();

  /** @throws {P4RuntimeError} ERR_P4_INFO when an id or a name occurs twice, or one is missing */
  constructor(p4info: P4Info) {
    this.p4info = p4info;
    this.#index('table', p4info.tables);
    this.#index('action', p4info.actions);
    this.#index('action profile', p4info.actionProfiles);
    this.#index('counter', p4info.counters);
    this.#index('direct counter', p4info.directCounters);
    this.#index('meter', p4info.meters);
    this.#index('direct meter', p4info.directMeters);
    this.#index('register', p4info.registers);
    this.#index('digest', p4info.digests);
    this.#index('value set', p4info.valueSets);
    this.#index('controller header', p4info.controllerPacketMetadata);
  }

  /** From protobuf's text format. */
  static fromText(text: string): Program {
    return new Program(parseP4InfoText(text));
  }

  /** @throws {P4RuntimeError} ERR_P4_INVALID naming what there is instead */
  find<K extends ObjectKind>(kind: K, name: string): Kinds[K] {
    const found = this.#byName.get(key(kind, name));
    if (found === undefined)
      throw invalid(
        `${kind} '${name}': the program has ${
          this.#names
            .get(kind)!
            .map((each) => `'${each}'`)
            .join(', ') || 'none'
        }`,
      );
    return found as Kinds[K];
  }

  has(kind: ObjectKind, name: string): boolean {
    return this.#byName.has(key(kind, name));
  }

  /** @throws {P4RuntimeError} ERR_P4_INVALID when the program has no such id: it is not the one that the device runs */
  findById<K extends ObjectKind>(kind: K, id: number): Kinds[K] {
    const found = this.#byId.get(id);
    if (found === undefined || !this.#byName.has(key(kind, found.preamble!.name)))
      throw invalid(`${kind} id ${id}: not in this program's P4Info`);
    return found as Kinds[K];
  }

  /** The alias: what a reader knows it by. */
  nameOf(object: { preamble?: Preamble | undefined }): string {
    return object.preamble?.alias || object.preamble?.name || '?';
  }

  #index(kind: ObjectKind, objects: readonly { preamble?: Preamble | undefined }[]): void {
    this.#names.set(
      kind,
      objects.map((object) => this.nameOf(object)),
    );
    for (const object of objects) {
      const { id = 0, name = '', alias = '' } = object.preamble ?? {};
      if (id === 0 || name === '')
        throw new P4RuntimeError('ERR_P4_INFO', `P4Info holds a ${kind} without ${id === 0 ? 'id' : 'name'}`);
      if (this.#byId.has(id)) throw new P4RuntimeError('ERR_P4_INFO', `P4Info holds id ${id} twice`);
      this.#byId.set(id, object);
      for (const each of new Set([name, alias].filter((text) => text !== ''))) {
        if (this.#byName.has(key(kind, each)))
          throw new P4RuntimeError('ERR_P4_INFO', `P4Info holds ${kind} '${each}' twice`);
        this.#byName.set(key(kind, each), object);
      }
    }
  }
}

function key(kind: ObjectKind, name: string): string {
  return `${kind}\0${name}`;
}
