/** The golden vectors' shape, and how to read them. Bytes are hexadecimal; an empty unit is an empty string. */
import { readFileSync } from 'node:fs';

/** One encoded stripe. */
export interface CodeVector {
  code: string;
  wireId: number;
  unitBytes: number;
  dataLength: number;
  /** m rows of k coefficients. */
  matrix: string[];
  data: string[];
  parity: string[];
  /** Of k + m units, data first. */
  crc32c: string[];
  summary: string[];
}

/** Linux md's two syndromes of equally long disks. */
export interface Raid6Vector {
  method: string;
  data: string[];
  p: string;
  q: string;
}

export interface GoldenVectors {
  field: string;
  digests: string;
  codes: CodeVector[];
  raid6: Raid6Vector;
}

export function readVectors(): GoldenVectors {
  return JSON.parse(readFileSync(new URL('vectors.json', import.meta.url), 'utf8')) as GoldenVectors;
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

export function fromHex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'));
}

/**
 * P and Q of RAID 6, by a way of its own: no table and nothing of erasure/.
 *
 * Q = D0 + 2·D1 + 4·D2 + … is D0 + 2·(D1 + 2·(D2 + …)): from the last disk on, double and add. Doubling shifts a byte
 * and, where a bit falls out, adds 0x1d.
 * Source: Anvin, "The mathematics of RAID-6"
 */
export function raid6Syndrome(data: readonly Uint8Array[]): { p: Uint8Array; q: Uint8Array } {
  const bytes = data[0]!.length;
  const p = new Uint8Array(bytes);
  const q = new Uint8Array(bytes);
  for (const disk of [...data].reverse()) {
    for (let i = 0; i < bytes; i++) {
      p[i]! ^= disk[i]!;
      const doubled = q[i]! << 1;
      q[i] = (doubled & 0x100 ? doubled ^ 0x11d : doubled) ^ disk[i]!;
    }
  }
  return { p, q };
}
