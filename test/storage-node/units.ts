/** Units made by hand, digests included, and a client that remembers what it was told. */
import { crc32c, summary } from '../../erasure/code/index.js';
import type { AppendClient, UnitStore } from '../../storage-node/unit-store.js';
import { QUEUED } from '../../storage-node/unit-store.js';
import { unitSeal } from '../../storage-node/log-format.js';
import { roundUp } from '../../wire/slot-layout.js';
import { digestLayout, encodeHeader, type UnitHeader, W } from '../../wire/unit-header.js';

const CLUSTER_ID = 0xc0ffee;
export const IDENTITY = {
  clusterUuid: '00112233-4455-6677-8899-aabbccddeeff',
  clusterId: CLUSTER_ID,
  nodeId: 'n1',
} as const;

export interface UnitSpec {
  fileId?: number;
  stripe?: number;
  unit?: number;
  k?: number;
  m?: number;
  unitBytes?: number;
  stripeLength?: number;
  epoch?: number;
  counter?: number;
  mark?: number;
  missing?: bigint;
  mapEpoch?: number;
  clusterId?: number;
  /** Decides the payload. */
  seed?: number;
  payload?: Uint8Array;
}

export interface TestUnit {
  words: Uint32Array;
  headerBytes: number;
  payload: Uint8Array;
  padded: Uint8Array;
  header: UnitHeader;
}

/** Bytes that depend on `seed` alone. */
function bytesFrom(seed: number, length: number): Uint8Array {
  let x = (seed * 2654435761 + 1) >>> 0;
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x >>> 24;
  });
}

/** A unit as a sender would make it: k = 2, m = 1, 4 KiB units unless told otherwise. */
export function makeUnit(spec: UnitSpec = {}): TestUnit {
  const {
    fileId = 1,
    stripe = 0,
    unit = 0,
    k = 2,
    m = 1,
    unitBytes = 4096,
    epoch = 1,
    counter = 1,
    mark = 0,
    missing = 0n,
    mapEpoch = 1,
    clusterId = CLUSTER_ID,
  } = spec;
  const stripeLength = spec.stripeLength ?? k * unitBytes;
  const unitLength =
    unit < k ? Math.min(unitBytes, Math.max(0, stripeLength - unit * unitBytes)) : Math.min(unitBytes, stripeLength);
  const payload = spec.payload ?? bytesFrom(spec.seed ?? fileId * 1000 + stripe * 10 + unit, unitLength);
  const header: UnitHeader = {
    codeId: 1,
    k,
    m,
    unit,
    unitBytes,
    flags: 0,
    clusterId,
    fileId,
    stripe,
    unitLength,
    stripeLength,
    mapEpoch,
    writerEpoch: epoch,
    counter,
    commitMark: mark,
    payloadCrc: crc32c(payload),
    seal: 0,
    missing,
    summary: summary(payload),
    dataCrcs: unit < k ? [] : Array.from({ length: k }, () => 0),
  };
  const words = new Uint32Array(64);
  const headerBytes = encodeHeader(header, words, 0);
  words[W.SEAL] = unitSeal(new Uint8Array(words.buffer, 0, headerBytes), digestLayout.sealOffset);
  const padded = new Uint8Array(roundUp(payload.length, 4096));
  padded.set(payload);
  return { words, headerBytes, payload, padded, header };
}

/** Remembers refusals by token. */
export class Client implements AppendClient {
  readonly answers = new Map<number, number>();
  private waiting = new Map<number, (refusal: number) => void>();
  private next = 1;
  onAppended(token: number, refusal: number): void {
    if (this.answers.has(token)) throw new Error(`token ${token} was answered twice`);
    this.answers.set(token, refusal);
    this.waiting.get(token)?.(refusal);
  }
  /** Appends; resolves with the refusal, whether it came at once or later. */
  append(store: UnitStore, unit: TestUnit, rebuilt = false): Promise<number> {
    const token = this.next++;
    const now = store.append(this, token, unit.words, 0, unit.headerBytes, unit.padded, rebuilt);
    if (now !== QUEUED) return Promise.resolve(now);
    return new Promise((resolve) => {
      this.waiting.set(token, resolve);
    });
  }
}

/** A generator of numbers in [0, 1) from a seed. */
export function randomFrom(seed: number): () => number {
  let x = seed >>> 0;
  return () => {
    x = (Math.imul(x ^ (x >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
    return ((x ^ (x >>> 13)) >>> 0) / 0x1_0000_0000;
  };
}
