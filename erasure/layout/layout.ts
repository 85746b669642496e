/**
 * Where the bytes of a file lie: file offset ↔ (stripe, unit, offset in the unit) ↔ node. Pure arithmetic.
 *
 * Intuition: data units are dealt to the nodes one after the other, without regard to stripes, so a sequential read
 * uses all nodes; a stripe's parity follows its last data unit. Where k and n share a divisor g that alone would give
 * some nodes all the parity, so after every n / g stripes the deal is shifted by one node.
 *
 *     n = 4, k = 2, m = 1 (g = 2)      node 0   1   2   3
 *                           stripe 0        0   1   P   .
 *                           stripe 1        P   .   0   1
 *                           stripe 2        .   0   1   P        shifted
 *                           stripe 3        1   P   .   0
 *
 * Invariants: the units of a stripe are on k + m different nodes; over any n consecutive stripes every node holds every
 * unit index exactly once (so k data and m parity units). With n = k + 1 and m = 1 this is RAID 5's left-symmetric
 * layout.
 *
 * That is the layout 'rotated', in which a node shares stripes with its neighbours only. The other, 'spread'
 * (spread.ts), is for many more nodes than a stripe is wide; there the invariant is the first one, and the counts hold
 * on average.
 */
import { LayoutError } from './errors.js';
import { Spread } from './spread.js';

/** How a file is spread. `nodes` counts them: a node here is an index 0 … nodes − 1 into a list kept elsewhere. */
export interface Layout {
  readonly nodes: number;
  /** Data units in a stripe. */
  readonly k: number;
  /** Parity units in a stripe. */
  readonly m: number;
  readonly unitBytes: number;
  /** Which node holds which unit; undefined: rotated. */
  readonly spread?: Spread;
}

/** The ways of placing units, by the names that file records give them. */
export const LAYOUTS = ['rotated', 'spread'] as const;
export type LayoutName = (typeof LAYOUTS)[number];

const NAMED = 'spread:';

/**
 * What a file's record says of its placement. No `layout`: 'rotated'. 'spread:NAME NAME …': spread by these names,
 * whoever is at their indexes now.
 */
export interface PlacedFile {
  readonly id: number;
  readonly nodes: readonly string[];
  readonly unitBytes: number;
  readonly layout?: string;
}

/** From so many nodes on, in stripes' widths, a new file is spread: below, two nodes share stripes anyway. */
const SPREAD_FROM = 2;

/** The layout that suits a new file. */
export function layoutFor(nodes: number, width: number): LayoutName {
  return nodes > SPREAD_FROM * width ? 'spread' : 'rotated';
}

/**
 * The layout of a file as its record describes it.
 *
 * @throws {LayoutError} as makeLayout(), and ERR_UNKNOWN_LAYOUT
 */
export function layoutOf(file: PlacedFile, { k, m }: { readonly k: number; readonly m: number }): Layout {
  const layout = makeLayout({ nodes: file.nodes.length, k, m, unitBytes: file.unitBytes });
  if (file.layout === undefined || file.layout === 'rotated') return layout;
  const names = namesOf(file) ?? [];
  if (names.length !== file.nodes.length)
    throw new LayoutError(
      'ERR_UNKNOWN_LAYOUT',
      `Cannot lay out file ${file.id}: its layout is '${file.layout}', this version ` +
        `knows ${LAYOUTS.join(' and ')}, on ${file.nodes.length} nodes`,
    );
  const left = names.filter((name) => !name.startsWith('-')).length;
  if (left < k + m)
    throw new LayoutError(
      'ERR_NOT_ENOUGH_NODES',
      `Cannot lay out k = ${k}, m = ${m} over the ${left} nodes that file ${file.id} has left: at ` +
        `least ${k + m} are required`,
    );
  return { ...layout, spread: new Spread(names, k + m, file.id) };
}

/** The names that a spread file's lots are drawn by; undefined: it is not spread. */
function namesOf({ layout, nodes }: PlacedFile): readonly string[] | undefined {
  return layout === 'spread'
    ? nodes
    : layout?.startsWith(NAMED) === true
      ? layout.slice(NAMED.length).split(' ')
      : undefined;
}

/**
 * The layout's name for a file whose nodes are about to be exchanged: every unit keeps its index in the list.
 *
 * Lots are drawn by name, so a spread file remembers the names that it was made with.
 */
export function lastingLayout({ layout, nodes }: PlacedFile): string | undefined {
  return layout === 'spread' ? `${NAMED}${nodes.join(' ')}` : layout;
}

/** What a node list has at an index whose node left without a successor. */
export const NOBODY = '-';

/**
 * The layout's name without one of the nodes: what it had is spread over the others.
 *
 * @returns undefined: the file is not spread, or has no node to spare
 */
export function scatteredLayout(file: PlacedFile, index: number, width: number): string | undefined {
  const names = namesOf(file);
  if (
    names === undefined ||
    names[index]!.startsWith('-') ||
    names.filter((name) => !name.startsWith('-')).length <= width
  )
    return undefined;
  return `${NAMED}${names.map((name, at) => (at === index ? `-${name}` : name)).join(' ')}`;
}

/** A byte's place in a file's stripes. */
export interface Place {
  readonly stripe: number;
  /** Data unit, 0 … k − 1. */
  readonly unit: number;
  /** Bytes from the beginning of the unit. */
  readonly offset: number;
}

export const MIN_UNIT_BYTES = 512;
export const MAX_UNIT_BYTES = 4 * 1024 * 1024;

/**
 * A layout whose numbers fit together.
 *
 * @throws {LayoutError} ERR_NOT_ENOUGH_NODES when nodes < k + m; ERR_UNIT_BYTES unless unitBytes is a power of two from
 *         512 to 4 MiB
 */
export function makeLayout({ nodes, k, m, unitBytes }: Layout): Layout {
  if (!Number.isInteger(nodes) || nodes < k + m) {
    throw new LayoutError(
      'ERR_NOT_ENOUGH_NODES',
      `Cannot lay out k = ${k}, m = ${m} over ${nodes} nodes: at least ${k + m} are required`,
    );
  }
  const powerOfTwo = Number.isInteger(unitBytes) && Number.isInteger(Math.log2(unitBytes));
  if (!powerOfTwo || unitBytes < MIN_UNIT_BYTES || unitBytes > MAX_UNIT_BYTES) {
    throw new LayoutError(
      'ERR_UNIT_BYTES',
      `Cannot use units of ${unitBytes} bytes: expected a power of two from ${MIN_UNIT_BYTES} to ${MAX_UNIT_BYTES}`,
    );
  }
  return { nodes, k, m, unitBytes };
}

/** The node that holds a unit of a stripe. `stripe`: a safe integer ≥ 0; `unit`: 0 … k + m − 1. */
export function nodeOfUnit(layout: Layout, stripe: number, unit: number): number {
  return layout.spread === undefined
    ? (firstNode(layout, stripe) + unit) % layout.nodes
    : layout.spread.nodeOf(stripe, unit);
}

/** The unit of a stripe that a node holds, or −1: it holds none. */
export function unitOfNode(layout: Layout, stripe: number, node: number): number {
  if (layout.spread !== undefined) return layout.spread.unitOf(stripe, node);
  const { nodes, k, m } = layout;
  const unit = (node - firstNode(layout, stripe) + nodes) % nodes;
  return unit < k + m ? unit : -1;
}

/** Where a file's byte lies. `fileOffset`: a safe integer ≥ 0, bytes. */
export function placeOfOffset({ k, unitBytes }: Layout, fileOffset: number): Place {
  const dataUnit = Math.floor(fileOffset / unitBytes);
  return { stripe: Math.floor(dataUnit / k), unit: dataUnit % k, offset: fileOffset % unitBytes };
}

/** The inverse of {@link placeOfOffset}. `unit` must be a data unit: parity has no place in the file. */
export function offsetOfPlace({ k, unitBytes }: Layout, { stripe, unit, offset }: Place): number {
  return (stripe * k + unit) * unitBytes + offset;
}

/** Data bytes in a full stripe. */
export function stripeBytes({ k, unitBytes }: Layout): number {
  return k * unitBytes;
}

/** Stripes of a file, a short last one included. 0 for an empty file. */
export function stripeCount(layout: Layout, fileLength: number): number {
  return Math.ceil(fileLength / stripeBytes(layout));
}

/** Data bytes in one stripe of a file: 0 for a stripe beyond its end. */
export function stripeDataLength(layout: Layout, fileLength: number, stripe: number): number {
  return clamp(fileLength - stripe * stripeBytes(layout), 0, stripeBytes(layout));
}

/**
 * Bytes in a unit of a stripe. A short stripe fills its data units in order; its parity is as long as its first data
 * unit.
 *
 * @param dataLength  data bytes in the stripe
 * @param unit        0 … k − 1: data; from k on: parity
 */
export function unitLength(dataLength: number, unitBytes: number, unit: number, k: number): number {
  return unit < k ? clamp(dataLength - unit * unitBytes, 0, unitBytes) : Math.min(unitBytes, dataLength);
}

/** The node of a stripe's unit 0. The pattern repeats after n stripes, so all products stay below n². */
function firstNode({ nodes, k }: Layout, stripe: number): number {
  const row = stripe % nodes;
  const shift = Math.floor(row / (nodes / gcd(k, nodes)));
  return (row * k + shift) % nodes;
}

function gcd(a: number, b: number): number {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}
