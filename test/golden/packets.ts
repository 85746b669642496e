/**
 * Golden packets: what goes into the switch program, and what must leave, as frames a person can take apart with
 * docs/wire-format.md.
 */
import { makeStripe, stripePacket } from '../p4/stripe-packets.js';
import { TO_SWITCH, udpFrame } from '../p4/frames.js';
import { expectedFrame } from '../p4/parity-entries.js';
import { toHex } from './vectors.js';

export interface GoldenPacket {
  readonly what: string;
  /** Artefact in p4/artefacts/ that takes it. */
  readonly program: string;
  readonly group: number;
  readonly k: number;
  readonly m: number;
  /** Ethernet frame that comes in. */
  readonly frame: string;
  /** Frames that leave, by unit: k data units, m parity units. */
  readonly units: readonly { readonly port: number; readonly frame: string }[];
}

const CASES: readonly [
  program: string,
  chunkBytes: number,
  k: number,
  m: number,
  unitBytes: number,
  length: number,
  offset: number,
][] = [
  ['parity-k2-1500', 640, 2, 1, 1024, 2048, 0],
  ['parity-k2-1500', 640, 1, 1, 1024, 1000, 640],
  ['parity-k2-1500', 640, 2, 2, 1024, 1100, 0],
  ['parity-k4-1500', 304, 4, 2, 512, 2048, 304],
  ['parity-k4-1500', 304, 3, 3, 512, 1025, 0],
  ['parity-k8-1500', 128, 8, 4, 512, 4096, 384],
  ['parity-k8-1500', 128, 8, 3, 512, 700, 128],
  ['parity-k8-1500', 128, 5, 1, 512, 1, 0],
];

/** Bytes that look random: x ← 1664525·x + 1013904223 modulo 2^32, its top byte each time. */
export function goldenPackets(): GoldenPacket[] {
  return CASES.map(([program, chunkBytes, k, m, unitBytes, length, offset], index) => {
    let x = index + 1;
    const data = Uint8Array.from({ length }, () => (x = (Math.imul(x, 1664525) + 1013904223) >>> 0) >>> 24);
    const stripe = makeStripe(k, m, unitBytes, data),
      group = 1000 + index;
    return {
      what: `${stripe.code.name}, units of ${unitBytes}, ${length} bytes, range from ${offset}`,
      program,
      group,
      k,
      m,
      frame: toHex(udpFrame(TO_SWITCH, stripePacket(stripe, group, offset, chunkBytes))),
      units: stripe.units.map((_, unit) => {
        const { port, bytes } = expectedFrame(stripe, unit, group, offset, chunkBytes);
        return { port, frame: toHex(bytes) };
      }),
    };
  });
}
