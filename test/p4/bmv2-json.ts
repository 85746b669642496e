/**
 * What p4c writes for BMv2, as far as our programs use it, and a check that they use nothing else: a program with a
 * construct that the executor does not know is refused when it is loaded, not misunderstood when it runs.
 *
 * Source: the JSON format of BMv2 as its documentation describes it, version 2.x; what p4c 1.2.5 writes
 */

export type FieldRef = readonly [header: string, field: string];

export type Expression =
  | { readonly type: 'field'; readonly value: FieldRef }
  | { readonly type: 'hexstr'; readonly value: string }
  | { readonly type: 'bool'; readonly value: boolean }
  /** A parameter of the action: `runtime_data` alone, `local` within an expression. */
  | { readonly type: 'runtime_data' | 'local'; readonly value: number }
  | { readonly type: 'header'; readonly value: string }
  | { readonly type: 'counter_array'; readonly value: string }
  | { readonly type: 'expression'; readonly value: Operation | Expression };

export interface Operation {
  readonly op: string;
  readonly left: Expression | null;
  readonly right: Expression | null;
  readonly cond?: Expression;
}

export interface Primitive {
  readonly op: string;
  readonly parameters: readonly Expression[];
}

export interface HeaderType {
  readonly name: string;
  readonly fields: readonly (readonly [name: string, bits: number, signed: boolean])[];
}

export interface ParseState {
  readonly name: string;
  readonly parser_ops: readonly {
    readonly op: string;
    readonly parameters: readonly { readonly type: string; readonly value: unknown }[];
  }[];
  readonly transitions: readonly {
    readonly type: string;
    readonly value: string | null;
    readonly mask: string | null;
    readonly next_state: string | null;
  }[];
  readonly transition_key: readonly {
    readonly type: string;
    readonly value: readonly [string | number, string | number];
  }[];
}

export interface Table {
  readonly name: string;
  readonly key: readonly {
    readonly match_type: string;
    readonly name: string;
    readonly target: FieldRef;
    readonly mask: string | null;
  }[];
  readonly type: string;
  readonly with_counters: boolean;
  readonly actions: readonly string[];
  readonly action_ids: readonly number[];
  readonly base_default_next: string | null;
  readonly next_tables: Readonly<Record<string, string | null>>;
  readonly default_entry?: { readonly action_id: number; readonly action_data: readonly string[] };
  readonly entries?: readonly unknown[];
}

export interface Conditional {
  readonly name: string;
  readonly expression: Expression;
  readonly true_next: string | null;
  readonly false_next: string | null;
}

export interface Pipeline {
  readonly name: string;
  readonly init_table: string | null;
  readonly tables: readonly Table[];
  readonly conditionals: readonly Conditional[];
  readonly action_profiles: readonly unknown[];
}

export interface Checksum {
  readonly name: string;
  readonly target: FieldRef;
  readonly type: string;
  readonly calculation: string;
  readonly verify: boolean;
  readonly update: boolean;
  readonly if_cond: Expression | null;
}

export interface Bmv2Json {
  readonly header_types: readonly HeaderType[];
  readonly headers: readonly { readonly name: string; readonly header_type: string; readonly metadata: boolean }[];
  readonly header_stacks: readonly {
    readonly name: string;
    readonly header_ids: readonly number[];
    readonly size: number;
  }[];
  readonly errors: readonly (readonly [string, number])[];
  readonly parsers: readonly { readonly init_state: string; readonly parse_states: readonly ParseState[] }[];
  readonly deparsers: readonly { readonly order: readonly string[]; readonly primitives?: readonly unknown[] }[];
  readonly counter_arrays: readonly {
    readonly name: string;
    readonly is_direct?: boolean;
    readonly size?: number;
    readonly binding?: string;
  }[];
  readonly calculations: readonly {
    readonly name: string;
    readonly algo: string;
    readonly input: readonly { readonly type: string; readonly value: unknown; readonly bitwidth?: number }[];
  }[];
  readonly actions: readonly {
    readonly name: string;
    readonly id: number;
    readonly runtime_data: readonly { readonly name: string; readonly bitwidth: number }[];
    readonly primitives: readonly Primitive[];
  }[];
  readonly pipelines: readonly Pipeline[];
  readonly checksums: readonly Checksum[];
}

const KNOWN = {
  sections: new Set([
    'program',
    '__meta__',
    'header_types',
    'headers',
    'header_stacks',
    'errors',
    'enums',
    'parsers',
    'deparsers',
    'counter_arrays',
    'calculations',
    'actions',
    'pipelines',
    'checksums',
    'force_arith',
    'field_lists',
    'field_aliases',
    'extern_instances',
  ]),
  parserOps: new Set(['extract', 'set']),
  primitives: new Set(['assign', 'assign_header', 'add_header', 'remove_header', 'count', 'mark_to_drop']),
  operators: new Set([
    '+',
    '-',
    '*',
    '<<',
    '>>',
    '==',
    '!=',
    '<',
    '<=',
    '>',
    '>=',
    'and',
    'or',
    'not',
    '&',
    '|',
    '^',
    '~',
    'd2b',
    'b2d',
    '?',
  ]),
  operands: new Set(['field', 'hexstr', 'bool', 'runtime_data', 'local', 'header', 'counter_array', 'expression']),
  matches: new Set(['exact', 'lpm']),
};

/** @throws {Error} naming the first construct that the executor does not know */
export function loadBmv2Json(text: string): Bmv2Json {
  const program = JSON.parse(text) as Bmv2Json;
  for (const [name, value] of Object.entries(program)) {
    const empty = Array.isArray(value) && value.length === 0;
    if (!KNOWN.sections.has(name) && !empty) refuse(`section ${name}`);
  }
  for (const name of ['extern_instances'] as const)
    if (((program as unknown as Record<string, unknown[]>)[name] ?? []).length > 0) refuse(name);
  for (const { parse_states } of program.parsers) for (const state of parse_states) checkState(state);
  for (const deparser of program.deparsers) if ((deparser.primitives ?? []).length > 0) refuse('deparser primitives');
  for (const action of program.actions)
    for (const primitive of action.primitives) {
      requireKnown(KNOWN.primitives, primitive.op, `primitive in ${action.name}`);
      primitive.parameters.forEach(checkExpression);
    }
  for (const { algo, name, input } of program.calculations) {
    if (algo !== 'csum16') refuse(`checksum algorithm ${algo}`);
    for (const { type } of input) if (type !== 'field' && type !== 'hexstr') refuse(`input ${type} of ${name}`);
  }
  for (const checksum of program.checksums) {
    if (checksum.type !== 'generic') refuse(`checksum type ${checksum.type}`);
    if (checksum.if_cond !== null) checkExpression(checksum.if_cond);
  }
  for (const pipeline of program.pipelines) {
    if (pipeline.action_profiles.length > 0) refuse('action profiles');
    for (const table of pipeline.tables) {
      if (table.type !== 'simple') refuse(`table type ${table.type}`);
      if ((table.entries ?? []).length > 0) refuse(`constant entries of ${table.name}`);
      for (const key of table.key) {
        requireKnown(KNOWN.matches, key.match_type, `match in ${table.name}`);
        if (key.mask !== null) refuse(`a masked key of ${table.name}`);
      }
    }
    for (const { expression } of pipeline.conditionals) checkExpression(expression);
  }
  return program;
}

function checkState(state: ParseState): void {
  for (const { op, parameters } of state.parser_ops) {
    requireKnown(KNOWN.parserOps, op, `parser operation in ${state.name}`);
    if (op === 'extract' && parameters[0]!.type !== 'regular' && parameters[0]!.type !== 'stack')
      refuse(`extract ${parameters[0]!.type} in ${state.name}`);
    if (op === 'set' && parameters[1]!.type !== 'lookahead') checkExpression(parameters[1] as Expression);
  }
  for (const { type } of state.transition_key)
    if (type !== 'field' && type !== 'lookahead') refuse(`transition key ${type} in ${state.name}`);
  for (const { type } of state.transitions)
    if (type !== 'default' && type !== 'hexstr') refuse(`transition ${type} in ${state.name}`);
}

function checkExpression(expression: Expression): void {
  requireKnown(KNOWN.operands, expression.type, 'operand');
  if (expression.type !== 'expression') return;
  const { value } = expression;
  if (!('op' in value)) return checkExpression(value);
  requireKnown(KNOWN.operators, value.op, 'operator');
  for (const operand of [value.left, value.right, value.cond]) if (operand) checkExpression(operand);
}

function requireKnown(known: ReadonlySet<string>, name: string, what: string): void {
  if (!known.has(name)) refuse(`${what}: ${name}`);
}

function refuse(what: string): never {
  throw new Error(`the executor does not know ${what}`);
}
