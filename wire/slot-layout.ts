/**
 * Where things lie in a stripe slot (writer's staging ring, switch ring, reader's ring) and in a unit slot (node's
 * ring).
 *
 *   stripe slot                                                    unit slot
 *   ┌──────────────┬──────────────┬────────────┬────────────────┐  ┌───────────────────┬─────────────────┐
 *   │ …k data      │ k data units │ m parity   │ m parity       │  │ …header, ending   │ payload         │
 *   │ headers, 88 B│ × unitBytes  │ units      │ headers, 256 B │  │ at 4096           │ (page-aligned)  │
 *   └──────────────┴──────────────┴────────────┴────────────────┘  └───────────────────┴─────────────────┘
 *     right-aligned  unitsOffset = roundup(88·k, 4096)
 *
 * So [headers][data] of a stripe, and [header][payload] of a unit, are one contiguous write.
 */
import { DATA_HEADER_BYTES, PARITY_HEADER_STRIDE } from './unit-header.js';

export const PAGE_BYTES = 4096;

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

export interface StripeSlotLayout {
  readonly k: number;
  readonly m: number;
  readonly unitBytes: number;
  /** First data header, from the slot's start; they are DATA_HEADER_BYTES apart. */
  readonly dataHeadersOffset: number;
  /** Unit u (data, then parity) is at unitsOffset + u · unitBytes. */
  readonly unitsOffset: number;
  /** Parity headers, PARITY_HEADER_STRIDE apart. */
  readonly parityHeadersOffset: number;
  /** Whole slot, a multiple of 4096. */
  readonly slotBytes: number;
}

/** Layout of a stripe slot; all sizes in bytes. */
export function stripeSlotLayout(k: number, m: number, unitBytes: number): StripeSlotLayout {
  const unitsOffset = roundUp(k * DATA_HEADER_BYTES, PAGE_BYTES);
  const parityHeadersOffset = unitsOffset + (k + m) * unitBytes;
  return {
    k,
    m,
    unitBytes,
    unitsOffset,
    parityHeadersOffset,
    dataHeadersOffset: unitsOffset - k * DATA_HEADER_BYTES,
    slotBytes: roundUp(parityHeadersOffset + m * PARITY_HEADER_STRIDE, PAGE_BYTES),
  };
}

/** Offset of unit u's header inside the slot. */
export function headerOffsetIn(layout: StripeSlotLayout, unit: number): number {
  return unit < layout.k
    ? layout.dataHeadersOffset + unit * DATA_HEADER_BYTES
    : layout.parityHeadersOffset + (unit - layout.k) * PARITY_HEADER_STRIDE;
}

/** A unit slot's size: a page for the header, then the payload rounded up to pages. */
export function unitSlotBytes(unitBytes: number): number {
  return PAGE_BYTES + roundUp(unitBytes, PAGE_BYTES);
}
