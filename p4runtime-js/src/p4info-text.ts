/**
 * Reads P4Info in protobuf's text format, as `p4c --p4runtime-files program.p4info.txt` writes it.
 *
 *     message := (name ':' scalar | name ':'? '{' message '}' | name ':' '[' scalar, … ']')*
 *     scalar  := string+ | number | word
 *
 * The text becomes the JSON form of the same message, and that is read by the generated code, which knows the types.
 */
import { P4Info } from './generated/p4/config/v1/p4info.js';
import { P4RuntimeError } from './errors.js';

/**
 * Fields of P4Info that may come more than once, or are maps. All other names are single fields wherever they occur.
 */
const REPEATED = new Set([
  'tables',
  'actions',
  'action_profiles',
  'counters',
  'direct_counters',
  'meters',
  'direct_meters',
  'controller_packet_metadata',
  'value_sets',
  'registers',
  'digests',
  'externs',
  'instances',
  'annotations',
  'annotation_locations',
  'structured_annotations',
  'match_fields',
  'match',
  'action_refs',
  'direct_resource_ids',
  'table_ids',
  'arguments',
  'params',
  'metadata',
  'members',
  'kv_pairs',
  'expressions',
]);
const MAPS = new Set(['structs', 'headers', 'header_unions', 'enums', 'serializable_enums', 'new_types']);
/**
 * Of type bytes: JSON wants base64. In P4Info, `value` is bytes in arguments and enum members, a message in key-value
 * pairs.
 */
const BYTES = new Set(['value']);

type Json = string | number | boolean | Json[] | { [name: string]: Json };

/** @throws {P4RuntimeError} ERR_P4_INFO with line and column */
export function parseP4InfoText(text: string): P4Info {
  const message = new TextReader(text).message(undefined);
  try {
    return P4Info.fromJSON(message);
  } catch (error) {
    throw new P4RuntimeError('ERR_P4_INFO', `Cannot read P4Info: ${(error as Error).message}`, { cause: error });
  }
}

class TextReader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
    this.#skip();
  }

  message(close: string | undefined): { [name: string]: Json } {
    const fields: { [name: string]: Json } = {};
    for (;;) {
      if (close !== undefined && this.#take(close)) return fields;
      if (this.#at >= this.#text.length) {
        if (close === undefined) return fields;
        throw this.#error(`'${close}' is missing`);
      }
      const name = this.#match(/[A-Za-z_]\w*/y) ?? this.#fail('a field name');
      const colon = this.#take(':');
      if (this.#peek() === '{' || this.#peek() === '<') this.#add(fields, name, this.#submessage());
      else if (!colon) throw this.#error(`':' or '{' after ${name}`);
      else if (this.#take('[')) this.#list(fields, name);
      else this.#add(fields, name, this.#scalar(name));
      if (!this.#take(',')) this.#take(';');
    }
  }

  #submessage(): Json {
    return this.message(this.#take('{') ? '}' : (this.#take('<'), '>'));
  }

  #list(fields: { [name: string]: Json }, name: string): void {
    while (!this.#take(']')) {
      this.#add(fields, name, this.#peek() === '{' ? this.#submessage() : this.#scalar(name));
      this.#take(',');
    }
  }

  #add(fields: { [name: string]: Json }, name: string, value: Json): void {
    if (MAPS.has(name)) {
      const entry = value as { key?: Json; value?: Json };
      const map = (fields[name] ??= {}) as { [key: string]: Json };
      map[String(entry.key ?? '')] = entry.value ?? {};
    } else if (REPEATED.has(name)) {
      ((fields[name] ??= []) as Json[]).push(value);
    } else if (Object.hasOwn(fields, name)) {
      throw this.#error(`${name} twice`);
    } else {
      fields[name] = value;
    }
  }

  #scalar(name: string): Json {
    const bytes: number[] = [];
    if (this.#peek() !== '"' && this.#peek() !== "'") {
      const word = this.#match(/[-+.\w]+/y) ?? this.#fail(`a value of ${name}`);
      if (word === 'true' || word === 'false') return word === 'true';
      if (/^[-+.\d]/.test(word)) return Number.isSafeInteger(Number(word)) ? Number(word) : word;
      return word;
    }
    while (this.#peek() === '"' || this.#peek() === "'") this.#string(bytes);
    return BYTES.has(name) ? Buffer.from(bytes).toString('base64') : Buffer.from(bytes).toString('utf8');
  }

  /** Adjacent strings join; escapes are C's, and stand for bytes. */
  #string(bytes: number[]): void {
    const raw = this.#match(/"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*'/y) ?? this.#fail('the end of a string');
    const single: { [letter: string]: number } = { a: 7, b: 8, f: 12, n: 10, r: 13, t: 9, v: 11 };
    for (const [part, hex, octal, letter] of raw
      .slice(1, -1)
      .matchAll(/\\x([0-9a-fA-F]{1,2})|\\([0-7]{1,3})|\\(.)|[^\\]+/g)) {
      if (hex !== undefined) bytes.push(parseInt(hex, 16));
      else if (octal !== undefined) bytes.push(parseInt(octal, 8) & 0xff);
      else if (letter !== undefined)
        bytes.push(...(single[letter] === undefined ? Buffer.from(letter) : [single[letter]]));
      else bytes.push(...Buffer.from(part));
    }
  }

  #peek(): string | undefined {
    return this.#text[this.#at];
  }

  #take(token: string): boolean {
    if (this.#peek() !== token) return false;
    this.#at++;
    this.#skip();
    return true;
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined) return undefined;
    this.#at += found.length;
    this.#skip();
    return found;
  }

  #skip(): void {
    const blank = /(?:\s|#[^\n]*)*/y;
    blank.lastIndex = this.#at;
    this.#at += blank.exec(this.#text)![0].length;
  }

  #fail(expected: string): never {
    throw this.#error(`expected ${expected}`);
  }

  #error(what: string): P4RuntimeError {
    const before = this.#text.slice(0, this.#at).split('\n');
    return new P4RuntimeError(
      'ERR_P4_INFO',
      `Cannot read P4Info at line ${before.length}, column ${before.at(-1)!.length + 1}: ${what}`,
    );
  }
}
