/** Random and adversarial stripes, from a seed. */
import type { ProgramClass } from './artefacts.js';
import { makeStripe, stripePacket, type Stripe } from './stripe-packets.js';
import { TO_SWITCH, udpFrame } from './frames.js';
import { expectedFrame } from './parity-entries.js';

export type Random = () => number;

/** @returns numbers in [0, 1), the same for the same seed (mulberry32) */
export function seeded(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

export interface Trial {
  readonly stripe: Stripe;
  readonly offset: number;
  readonly frame: Uint8Array;
  readonly expected: readonly { port: number; bytes: Uint8Array }[];
  readonly what: string;
}

/** Bytes that break doubling, carries and masks first: all ones, the top bit, the polynomial. */
const FILLS: readonly ((random: Random, index: number) => number)[] = [
  (random) => Math.floor(random() * 256),
  (random) => Math.floor(random() * 256),
  () => 0xff,
  () => 0x80,
  () => 0x00,
  (_random, index) => (index % 2 === 0 ? 0x80 : 0x7f),
  () => 0x1d,
  (_random, index) => index & 0xff,
];

/** One packet of a random stripe: any legal stripe length, any chunk of it. */
export function trial(random: Random, { chunkBytes }: ProgramClass, k: number, m: number, group: number): Trial {
  const unitBytes = 512 << Math.floor(random() * 4);
  const lengths = [
    1,
    unitBytes - 1,
    unitBytes,
    k * unitBytes,
    k * unitBytes - 1,
    1 + Math.floor(random() * k * unitBytes),
    1 + Math.floor(random() * k * unitBytes),
  ];
  const length = Math.max(1, lengths[Math.floor(random() * lengths.length)]!);
  const fill = FILLS[Math.floor(random() * FILLS.length)]!;
  const stripe = makeStripe(
    k,
    m,
    unitBytes,
    Uint8Array.from({ length }, (_, index) => fill(random, index)),
  );
  const offset = chunkBytes * Math.floor(random() * Math.ceil(stripe.units[0]!.length / chunkBytes));
  const from = {
    ...TO_SWITCH,
    srcPort: 1024 + Math.floor(random() * 60000),
    identification: Math.floor(random() * 65536),
    ttl: 1 + Math.floor(random() * 255),
  };
  return {
    stripe,
    offset,
    frame: udpFrame(from, stripePacket(stripe, group, offset, chunkBytes)),
    expected: stripe.units.map((_, unit) => expectedFrame(stripe, unit, group, offset, chunkBytes, from)),
    what: `${stripe.code.name}, units of ${unitBytes}, ${length} bytes, offset ${offset}`,
  };
}
