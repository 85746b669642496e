/** An erasure code as users name it and as headers carry it. */
import { CodeError } from './errors.js';
import { cauchy, copies, rs, xor } from './matrix.js';

export type CodeKind = 'xor' | 'rs' | 'copies' | 'cauchy';

export interface Code {
  /** Canonical: `xor(2+1)`, `rs(4,2)`, `copies(1,2)`, `cauchy(24,4)`. Equal names mean equal codes. */
  readonly name: string;
  readonly kind: CodeKind;
  /** The code's number in headers (uint8). */
  readonly id: number;
  /** Data units. */
  readonly k: number;
  /** Parity units alone. (ISA-L's m is k + parity.) */
  readonly m: number;
  /** m rows of k coefficients, row-major. Do not change it. */
  readonly matrix: Uint8Array;
}

interface Kind {
  readonly id: number;
  readonly matrix: (k: number, m: number) => Uint8Array;
}

// Ids are on disks and in packets: never change or reuse one, also not of a code that is dropped.
const kinds: Record<CodeKind, Kind> = {
  xor: { id: 1, matrix: xor },
  rs: { id: 2, matrix: rs },
  copies: { id: 3, matrix: copies },
  cauchy: { id: 4, matrix: cauchy },
};

const EXPECTED = 'xor(k+1), rs(k,m), copies(1,m) or cauchy(k,m)';

/**
 * Reads a code's name, for example from a command line. Whitespace and case do not matter.
 *
 * @throws {CodeError} ERR_UNKNOWN_CODE when the text names no code; ERR_CODE_OUT_OF_BOUNDS when k or m are outside its
 *         bounds
 */
export function parseCode(text: string): Code {
  const match = /^([a-z]+)\((\d{1,6})([+,])(\d{1,6})\)$/.exec(text.replace(/\s+/g, '').toLowerCase());
  const kind = match?.[1];
  const separatorFits = (match?.[3] === '+') === (kind === 'xor');
  if (!match || !isKind(kind) || !separatorFits) {
    throw new CodeError('ERR_UNKNOWN_CODE', `Cannot read code '${text}': expected ${EXPECTED}`);
  }
  return makeCode(kind, Number(match[2]), Number(match[4]));
}

/**
 * The code that a header names by number.
 *
 * @throws {CodeError} ERR_UNKNOWN_CODE when no code has this id; ERR_CODE_OUT_OF_BOUNDS when k or m are outside its
 *         bounds
 */
export function codeFromWire(id: number, k: number, m: number): Code {
  for (const kind of Object.keys(kinds) as CodeKind[]) {
    if (kinds[kind].id === id) return makeCode(kind, k, m);
  }
  throw new CodeError(
    'ERR_UNKNOWN_CODE',
    `Cannot use code id ${id} (k ${k}, m ${m}): expected 1 to 4, for ${EXPECTED}`,
  );
}

/** One code of a kind. Throws as {@link parseCode} does. */
export function makeCode(kind: CodeKind, k: number, m: number): Code {
  const { id, matrix } = kinds[kind];
  const name = kind === 'xor' ? `xor(${k}+${m})` : `${kind}(${k},${m})`;
  return { name, kind, id, k, m, matrix: matrix(k, m) };
}

function isKind(text: string | undefined): text is CodeKind {
  return text !== undefined && Object.hasOwn(kinds, text);
}
