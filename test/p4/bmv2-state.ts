/** The headers and metadata of one packet on its way: what BMv2 calls a PHV. Fields are unsigned, of any width. */
import type { Bmv2Json, Expression, FieldRef, Operation } from './bmv2-json.js';

interface Header {
  valid: boolean;
  readonly metadata: boolean;
  readonly bits: ReadonlyMap<string, number>;
  values: Map<string, bigint>;
}

export class PacketState {
  readonly #headers: Map<string, Header>;
  readonly #json: Bmv2Json;
  readonly #nextOfStack: Map<string, number>;

  constructor(json: Bmv2Json, from?: PacketState) {
    this.#json = json;
    this.#nextOfStack = new Map(from === undefined ? [] : from.#nextOfStack);
    if (from !== undefined) {
      this.#headers = new Map(
        [...from.#headers].map(([name, header]) => [name, { ...header, values: new Map(header.values) }]),
      );
      return;
    }
    const types = new Map(json.header_types.map((type) => [type.name, type]));
    this.#headers = new Map(
      json.headers.map(({ name, header_type, metadata }) => {
        const { fields } = types.get(header_type)!;
        return [
          name,
          {
            valid: metadata,
            metadata,
            bits: new Map(fields.map(([field, bits]) => [field, bits])),
            values: new Map(metadata ? fields.map(([field]) => [field, 0n]) : []),
          },
        ];
      }),
    );
  }

  /** For a copy that goes its own way from here. */
  clone(): PacketState {
    return new PacketState(this.#json, this);
  }

  isValid(header: string): boolean {
    return this.#header(header).valid;
  }

  setValid(name: string, valid: boolean): void {
    const header = this.#header(name);
    // What a header held is gone with it: a program that counts on old values is wrong.
    if (!valid || !header.valid) header.values = new Map();
    header.valid = valid;
  }

  /**
   * @throws {Error} when the header is invalid or the field was never set: undefined in P4, so a mistake of the program
   */
  get([name, field]: FieldRef): bigint {
    const header = this.#header(name);
    if (field === '$valid$') return header.valid ? 1n : 0n;
    const value = header.values.get(field);
    if (!header.valid || value === undefined)
      throw new Error(`${name}.${field} is read, but ${header.valid ? 'was never set' : `${name} is not valid`}`);
    return value;
  }

  set([name, field]: FieldRef, value: bigint): void {
    const header = this.#header(name),
      bits = header.bits.get(field);
    if (bits === undefined) throw new Error(`no field ${name}.${field}`);
    if (header.valid) header.values.set(field, BigInt.asUintN(bits, value));
  }

  bitsOf([name, field]: FieldRef): number {
    return this.#header(name).bits.get(field)!;
  }

  has([name, field]: FieldRef): boolean {
    return this.#headers.get(name)?.bits.has(field) ?? false;
  }

  headerBits(name: string): number {
    return [...this.#header(name).bits.values()].reduce((sum, bits) => sum + bits, 0);
  }

  /** Header assignment: validity goes along. */
  copy(to: string, from: string): void {
    const source = this.#header(from),
      target = this.#header(to);
    target.valid = source.valid;
    target.values = new Map(source.values);
  }

  /** The element that `extract(stack.next)` fills; undefined when the stack is full. */
  nextOf(stack: string): string | undefined {
    const size = this.#json.header_stacks.find((each) => each.name === stack)!.size,
      next = this.#nextOfStack.get(stack) ?? 0;
    if (next >= size) return undefined;
    this.#nextOfStack.set(stack, next + 1);
    return `${stack}[${next}]`;
  }

  /** Fills a header from bytes. */
  extract(name: string, bytes: Uint8Array): void {
    const header = this.#header(name);
    let left = BigInt(8 * bytes.length);
    const all = toInteger(bytes);
    header.valid = true;
    for (const [field, bits] of header.bits) {
      left -= BigInt(bits);
      header.values.set(field, BigInt.asUintN(bits, all >> left));
    }
  }

  /** The bytes of a valid header. */
  emit(name: string): Uint8Array {
    let all = 0n,
      total = 0;
    for (const [field, bits] of this.#header(name).bits) {
      all = (all << BigInt(bits)) | this.get([name, field]);
      total += bits;
    }
    return toBytes(all, total / 8);
  }

  #header(name: string): Header {
    const header = this.#headers.get(name);
    if (header === undefined) throw new Error(`no header ${name}`);
    return header;
  }
}

export function toInteger(bytes: Uint8Array): bigint {
  return bytes.length === 0
    ? 0n
    : BigInt(`0x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')}`);
}

export function toBytes(value: bigint, length: number): Uint8Array {
  return Uint8Array.from(Buffer.from(value.toString(16).padStart(2 * length, '0'), 'hex'));
}

/** @param locals  the action's parameters */
export function evaluate(expression: Expression, state: PacketState, locals: readonly bigint[]): bigint {
  switch (expression.type) {
    case 'field':
      return state.get(expression.value);
    case 'hexstr':
      return expression.value.startsWith('-') ? -BigInt(expression.value.slice(1)) : BigInt(expression.value);
    case 'bool':
      return expression.value ? 1n : 0n;
    case 'runtime_data':
    case 'local':
      return locals[expression.value]!;
    case 'expression':
      return 'op' in expression.value
        ? operate(expression.value, state, locals)
        : evaluate(expression.value, state, locals);
    case 'header':
    case 'counter_array':
      throw new Error(`${expression.type} ${expression.value} is no value`);
  }
}

/** Unbounded integers: p4c writes a mask wherever a result may be wider than its type. */
function operate({ op, left, right, cond }: Operation, state: PacketState, locals: readonly bigint[]): bigint {
  const a = () => evaluate(left!, state, locals),
    b = () => evaluate(right!, state, locals);
  const truth = (value: boolean) => (value ? 1n : 0n);
  switch (op) {
    case '+':
      return a() + b();
    case '-':
      return a() - b();
    case '*':
      return a() * b();
    case '<<':
      return a() << b();
    case '>>':
      return a() >> b();
    case '&':
      return a() & b();
    case '|':
      return a() | b();
    case '^':
      return a() ^ b();
    case '~':
      return ~b();
    case '==':
      return truth(a() === b());
    case '!=':
      return truth(a() !== b());
    case '<':
      return truth(a() < b());
    case '<=':
      return truth(a() <= b());
    case '>':
      return truth(a() > b());
    case '>=':
      return truth(a() >= b());
    case 'and':
      return a() === 0n ? 0n : b();
    case 'or':
      return a() !== 0n ? 1n : b();
    case 'not':
      return truth(b() === 0n);
    case 'd2b':
      return truth(b() !== 0n);
    case 'b2d':
      return b();
    case '?':
      return evaluate(cond!, state, locals) !== 0n ? a() : b();
    default:
      throw new Error(`operator ${op}`);
  }
}
