import { RdmaError, type MemoryRegion, type QueuePair } from '../device.js';
import type { SimDevice } from './device.js';

const MAX_BYTES = 2 ** 31;

/**
 * Memory of regions that are gone, by size: making large ArrayBuffers anew costs more than the rest of a simulation.
 */
const pool = new Map<number, ArrayBuffer[]>();
const MAX_POOLED = 64;

function zeroedMemory(byteLength: number): ArrayBuffer {
  const buffer = pool.get(byteLength)?.pop();
  if (buffer === undefined) return new ArrayBuffer(byteLength);
  new Uint8Array(buffer).fill(0);
  return buffer;
}

function recycle(buffer: ArrayBuffer): void {
  let list = pool.get(buffer.byteLength);
  if (list === undefined) pool.set(buffer.byteLength, (list = []));
  if (list.length < MAX_POOLED) list.push(buffer);
}

/**
 * An ordinary ArrayBuffer that counts the requests outstanding on it.
 *
 *     registered ── deregister() ──▶ revoked ── last request completed ──▶ detached
 */
export class SimRegion implements MemoryRegion {
  readonly lkey: number;
  readonly rkey: number;
  readonly buffer: ArrayBuffer;
  /** All of it. */
  readonly all: Uint8Array;
  readonly byteLength: number;
  readonly access: number;
  isRevoked = false;
  readonly #device: SimDevice;
  #outstanding = 0;
  /** Undefined: it is reachable with its key alone. */
  #granted: WeakSet<QueuePair> | undefined;
  #deregistered: Promise<void> | undefined;
  #onIdle: (() => void) | undefined;

  constructor(device: SimDevice, lkey: number, rkey: number, byteLength: number, access: number) {
    if (!Number.isInteger(byteLength) || byteLength < 1 || byteLength > MAX_BYTES) {
      throw new RdmaError(
        'ERR_REGISTRATION_REFUSED',
        `Cannot register ${byteLength} bytes: 1 to ${MAX_BYTES} are possible`,
      );
    }
    try {
      this.buffer = zeroedMemory(byteLength);
    } catch (cause) {
      throw new RdmaError('ERR_REGISTRATION_REFUSED', `Cannot register ${byteLength} bytes: no memory`, { cause });
    }
    this.all = new Uint8Array(this.buffer);
    this.#device = device;
    this.lkey = lkey;
    this.rkey = rkey;
    this.byteLength = byteLength;
    this.access = access;
  }

  isUsableBy(device: SimDevice): boolean {
    return this.#device === device && !this.isRevoked;
  }

  contains(offset: number, length: number): boolean {
    return offset >= 0 && length >= 0 && offset + length <= this.byteLength;
  }

  /** @param access the bit of `Access` that the peer needs */
  allows(access: number, offset: number, length: number): boolean {
    return !this.isRevoked && (this.access & access) !== 0 && this.contains(offset, length);
  }

  bytes(offset: number, length: number): Uint8Array {
    return new Uint8Array(this.buffer, offset, length);
  }

  grant(qp: QueuePair): void {
    (this.#granted ??= new WeakSet()).add(qp);
  }

  isGrantedTo(qp: QueuePair): boolean {
    return this.#granted === undefined || this.#granted.has(qp);
  }

  hold(): void {
    this.#outstanding++;
  }

  release(): void {
    this.#outstanding--;
    if (this.#outstanding === 0) this.#onIdle?.();
  }

  deregister(): Promise<void> {
    this.#deregistered ??= new Promise((resolve) => {
      this.isRevoked = true;
      this.#device.forgetKey(this.rkey);
      this.#onIdle = () => {
        this.#onIdle = undefined;
        this.#device.later(() => {
          // detaches; ArrayBuffer.transfer() is newer than Node 20
          recycle(structuredClone(this.buffer, { transfer: [this.buffer] }));
          this.#device.forgetRegion(this);
          resolve();
        });
      };
      this.#device.release(); // what was posted but not rung would otherwise hold the region for ever
      if (this.#outstanding === 0) this.#onIdle();
    });
    return this.#deregistered;
  }
}
