/** What a store tells of the units and files it holds. */

/** One line of an inventory. */
export interface HeldUnit {
  readonly stripe: number;
  readonly unit: number;
  readonly writerEpoch: number;
  readonly counter: number;
  readonly stripeLength: number;
  readonly payloadCrc: number;
  readonly mapEpoch: number;
  /** A read found its checksum wrong. */
  readonly damaged: boolean;
  /** Bit u: unit u of this version is known missing. */
  readonly missing: bigint;
}

export interface FileMark {
  readonly writerEpoch: number;
  readonly commitEpoch: number;
  readonly commitCounter: number;
}
