/**
 * What the conformance cases of coding compare with: a stripe in memory, and an independent scalar computation of what
 * ENCODE must make of it, written to be obvious.
 */
import assert from 'node:assert/strict';
import { type CoderSpec, type Device, type DigestLayout, type StripePlace } from '../../rdma/dist/index.js';
import { assertSame, bytesOf, fill, Log, until, type World } from './conformance-world.js';

/** Fields in no natural order, with gaps, so that nothing fits by chance. */
export const LAYOUT: DigestLayout = {
  payloadCrcOffset: 20,
  sealOffset: 44,
  summaryOffset: 52,
  crcListOffset: 72,
  dataHeaderBytes: 70,
};

type Outcome = { status: number; detail: number };

export async function encode(w: World, stripe: Stripe, spec: CoderSpec, flags: number): Promise<Outcome> {
  return coded(w, spec, (queue, coder) => queue.postEncode(7, coder, stripe.place, flags));
}

export async function verify(w: World, stripe: Stripe, unit: number): Promise<Outcome> {
  return coded(w, stripe.encodeSpec(), (queue, coder) => {
    queue.postVerify(
      7,
      coder,
      stripe.place.region,
      stripe.headerAt(unit),
      stripe.headerBytes(unit),
      stripe.unitAt(unit),
      stripe.length(unit),
    );
  });
}

/** Runs one coding request on a queue of its own. */
async function coded(
  w: World,
  spec: CoderSpec,
  post: (queue: ReturnType<Device['createCodingQueue']>, coder: ReturnType<Device['createCoder']>) => void,
): Promise<Outcome> {
  const log = new Log();
  const queue = w.a.createCodingQueue(log.handler);
  const coder = w.a.createCoder(spec);
  post(queue, coder);
  w.a.ring();
  await until(w, () => log.entries.length > 0, 'the coding request completes');
  await w.drive(queue.destroy());
  coder.destroy();
  assert.equal(log.entries.length, 1);
  const [{ status, detail, wrId }] = log.entries as [Log['entries'][number]];
  assert.equal(wrId, 7);
  return { status, detail };
}

/** A stripe in a region of its own, full of bytes that nobody should change, and what ENCODE must make of it. */
export class Stripe {
  readonly place: StripePlace;

  constructor(
    device: Device,
    readonly k: number,
    readonly m: number,
    stride: number,
    dataLength: number,
  ) {
    const dataHeaderStride = LAYOUT.dataHeaderBytes + 26;
    const parityHeaderStride = LAYOUT.crcListOffset + 4 * k + 8;
    const dataHeadersOffset = 33;
    const parityHeadersOffset = dataHeadersOffset + k * dataHeaderStride + 5;
    const unitsOffset = Math.ceil((parityHeadersOffset + m * parityHeaderStride + 1) / 64) * 64;
    const region = device.allocate(unitsOffset + (k + m) * stride + 100);
    fill(bytesOf(region), k * 1000 + m * 100 + dataLength);
    this.place = {
      region,
      unitsOffset,
      stride,
      dataLength,
      dataHeadersOffset,
      dataHeaderStride,
      parityHeadersOffset,
      parityHeaderStride,
    };
  }

  unitAt(unit: number): number {
    return this.place.unitsOffset + unit * this.place.stride;
  }

  headerAt(unit: number): number {
    const { dataHeadersOffset, dataHeaderStride, parityHeadersOffset, parityHeaderStride } = this.place;
    return unit < this.k
      ? dataHeadersOffset + unit * dataHeaderStride
      : parityHeadersOffset + (unit - this.k) * parityHeaderStride;
  }

  headerBytes(unit: number): number {
    return unit < this.k ? LAYOUT.dataHeaderBytes : LAYOUT.crcListOffset + 4 * this.k;
  }

  length(unit: number): number {
    const { stride, dataLength } = this.place;
    if (unit >= this.k) return Math.min(stride, dataLength);
    return Math.max(0, Math.min(stride, dataLength - unit * stride));
  }

  encodeSpec(): CoderSpec {
    const { k, m } = this;
    const matrix = new Uint8Array(k * m);
    for (let r = 0; r < m; r++) for (let c = 0; c < k; c++) matrix[r * k + c] = generator(k, k + r, c);
    return { k, inputUnits: range(0, k), outputUnits: range(k, m), matrix, digest: LAYOUT };
  }

  /** Σ coefficients[c] · data unit c, as long as a parity unit. */
  combination(coefficients: Uint8Array): Uint8Array {
    const out = new Uint8Array(this.length(this.k));
    for (let c = 0; c < this.k; c++) {
      const unit = bytesOf(this.place.region, this.unitAt(c), this.length(c));
      for (let i = 0; i < unit.length; i++) out[i]! ^= multiply(coefficients[c]!, unit[i]!);
    }
    return out;
  }

  parity(row: number): Uint8Array {
    return this.combination(Uint8Array.from({ length: this.k }, (_, c) => generator(this.k, this.k + row, c)));
  }

  /** @returns the region as ENCODE with both WRITE flags must leave it, from its data as it is now */
  encoded(): Uint8Array {
    const bytes = bytesOf(this.place.region).slice();
    for (let r = 0; r < this.m; r++) bytes.set(this.parity(r), this.unitAt(this.k + r));
    for (let unit = 0; unit < this.k + this.m; unit++) {
      this.digest(bytes, unit);
      for (let c = 0; unit >= this.k && c < this.k; c++) {
        const crc = bytes.subarray(this.headerAt(c) + LAYOUT.payloadCrcOffset).subarray(0, 4);
        bytes.set(crc, this.headerAt(unit) + LAYOUT.crcListOffset + 4 * c);
      }
      this.seal(bytes, unit);
    }
    return bytes;
  }

  digest(bytes: Uint8Array, unit: number): void {
    const payload = bytes.subarray(this.unitAt(unit), this.unitAt(unit) + this.length(unit));
    const summary = new Uint8Array(16);
    payload.forEach((byte, i) => {
      summary[i % 16]! ^= byte;
    });
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(
      this.headerAt(unit) + LAYOUT.payloadCrcOffset,
      crc32c(payload),
      true,
    );
    bytes.set(summary, this.headerAt(unit) + LAYOUT.summaryOffset);
  }

  seal(bytes: Uint8Array, unit: number): void {
    const header = bytes.slice(this.headerAt(unit), this.headerAt(unit) + this.headerBytes(unit));
    const sealed = [...header.subarray(0, LAYOUT.sealOffset), ...header.subarray(LAYOUT.sealOffset + 4)];
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(
      this.headerAt(unit) + LAYOUT.sealOffset,
      crc32c(Uint8Array.from(sealed)),
      true,
    );
  }

  /** A decoder may clear a short data unit's room behind its bytes: that belongs to the unit. */
  assertSameButPadding(actual: Uint8Array, expected: Uint8Array, what: string): void {
    const [a, e] = [actual.slice(), expected.slice()];
    for (let unit = 0; unit < this.k; unit++) {
      for (const bytes of [a, e]) bytes.fill(0, this.unitAt(unit) + this.length(unit), this.unitAt(unit + 1));
    }
    assertSame(a, e, what);
  }
}

function range(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => from + i);
}

// The scalar computation, bit by bit and without tables: it shares nothing with any device.

function multiply(a: number, b: number): number {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = product & 0x80 ? ((product << 1) ^ 0x11d) & 0xff : product << 1;
    if (b & (1 << bit)) product ^= a;
  }
  return product;
}

function power(base: number, exponent: number): number {
  let result = 1;
  for (let i = 0; i < exponent; i++) result = multiply(result, base);
  return result;
}

/** Row `unit` of the generator: the identity, then 2^(r·c). */
function generator(k: number, unit: number, column: number): number {
  return unit < k ? Number(unit === column) : power(2, (unit - k) * column);
}

function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc >>> 0;
}

/** Rows that make the lost units from the survivors: generator rows of the lost × inverse of the survivors' rows. */
export function decodeMatrix(k: number, survivors: readonly number[], lost: readonly number[]): Uint8Array {
  const rows = survivors.map((unit, i) => [
    ...range(0, k).map((c) => generator(k, unit, c)),
    ...range(0, k).map((c) => Number(c === i)),
  ]);
  for (let column = 0; column < k; column++) {
    const pivot = rows.findIndex((row, i) => i >= column && row[column] !== 0);
    [rows[column], rows[pivot]] = [rows[pivot]!, rows[column]!];
    const inverse = power(rows[column]![column]!, 254);
    rows[column] = rows[column]!.map((value) => multiply(value, inverse));
    for (let i = 0; i < k; i++) {
      const factor = rows[i]![column]!;
      if (i !== column) rows[i] = rows[i]!.map((value, c) => value ^ multiply(factor, rows[column]![c]!));
    }
  }
  const matrix = new Uint8Array(lost.length * k);
  lost.forEach((unit, r) => {
    for (let c = 0; c < k; c++) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum ^= multiply(generator(k, unit, i), rows[i]![k + c]!);
      matrix[r * k + c] = sum;
    }
  });
  return matrix;
}
