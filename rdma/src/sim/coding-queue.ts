/**
 * ENCODE and VERIFY in virtual time. Requests of one queue run one after the other; each walks its units in 1 to 4
 * pieces at random moments (reading inputs, writing outputs), and handles headers with the last. Its first piece comes
 * when all of its bytes would have been coded: the queue is busy for as long, and one event the less is needed.
 */
import type { Coder, CodingQueue, CompletionHandler, DigestLayout, MemoryRegion, StripePlace } from '../device.js';
import { Flag, Opcode, Status, statusName } from '../records.js';
import { headerBytes, SimCoder, unitBytes } from './coder.js';
import { Digest, multiplyAdd, readUint32, sealOf, writeUint32 } from './coding.js';
import type { SimDevice } from './device.js';
import type { SimRegion } from './memory-region.js';
import { QUIET } from './event-queue.js';
import { cutPieces } from './pieces.js';

/** 5 GB/s of input. */
const CODING_BYTES_PER_MS = 5_000_000;
const PAUSE_MS = 0.02;

const ANY_DIGEST = Flag.DIGEST_INPUTS_WRITE | Flag.DIGEST_INPUTS_CHECK | Flag.DIGEST_OUTPUTS_WRITE | Flag.DIGEST_OUTPUTS_STORE;

interface Outcome { readonly status: number; readonly detail: number }
const SUCCESS: Outcome = { status: Status.SUCCESS, detail: 0 };

/** A coding request under way: its bytes from … to, then its end. */
interface Work { readonly length: number; advance(from: number, to: number): void; finish(): Outcome }

interface CodingRequest {
  /** The region, as the device holds it until the completion is delivered. */
  readonly held: readonly { readonly region: SimRegion }[];
  readonly opcode: number;
  readonly wrId: number;
  readonly region: SimRegion | undefined;
  readonly inputBytes: number;
  begin(): Work | Outcome;
}

interface Unit { readonly position: number; readonly payload: Uint8Array; readonly digest: Digest }

export class SimCodingQueue implements CodingQueue {
  readonly qpn: number;
  handler: CompletionHandler;
  readonly #device: SimDevice;
  #requests: CodingRequest[] = [];
  #isBusy = false;
  #destroyed: Promise<void> | undefined;
  #onIdle: (() => void) | undefined;

  constructor(device: SimDevice, qpn: number, handler: CompletionHandler) {
    this.#device = device;
    this.qpn = qpn;
    this.handler = handler;
  }

  postEncode(wrId: number, coder: Coder, place: StripePlace, flags: number): void {
    const region = this.#device.ownRegion(place.region);
    const copy = { ...place }; // the caller may fill the same object for its next request
    this.#post({ opcode: Opcode.ENCODE, wrId, region, held: region === undefined ? [] : [{ region }], inputBytes: place.dataLength, begin: () => this.#beginEncode(coder, region, copy, flags) });
  }

  postVerify(
    wrId: number, coder: Coder, region: MemoryRegion, headerOffset: number, bytes: number, payloadOffset: number, payloadBytes: number,
  ): void {
    const own = this.#device.ownRegion(region);
    this.#post({
      opcode: Opcode.VERIFY, wrId, region: own, held: own === undefined ? [] : [{ region: own }], inputBytes: payloadBytes,
      begin: () => this.#beginVerify(coder, own, headerOffset, bytes, payloadOffset, payloadBytes),
    });
  }

  #post(request: CodingRequest): void {
    request.region?.hold();
    this.#device.stage({ start: () => this.#start(request) });
  }

  #start(request: CodingRequest): void {
    if (this.#destroyed !== undefined) {
      this.#complete(request, { status: Status.FLUSHED, detail: 0 });
      return;
    }
    this.#requests.push(request);
    this.#next();
  }

  #next(): void {
    if (this.#isBusy) return;
    const request = this.#requests.shift();
    if (request === undefined) {
      this.#onIdle?.();
      return;
    }
    this.#isBusy = true;
    const { world, random, host } = this.#device;
    const codingMs = request.inputBytes > 0 ? request.inputBytes / CODING_BYTES_PER_MS : 0; // nonsense is refused when it begins
    world.schedule(codingMs + random.random() * PAUSE_MS, host, () => {
      const work = request.begin();
      if ('status' in work) this.#end(request, work);
      else this.#step(request, work, cutPieces(random, work.length), 0);
      return QUIET;
    });
  }

  #step(request: CodingRequest, work: Work, bounds: readonly number[], index: number): void {
    const { world, random, host, name } = this.#device;
    const from = bounds[index]!, to = bounds[index + 1]!;
    work.advance(from, to);
    if (world.trace) world.note(`${name} cq${this.qpn} ${request.opcode === Opcode.ENCODE ? 'ENCODE' : 'VERIFY'} ${request.wrId} ${from}..${to}`);
    if (index + 2 === bounds.length) {
      this.#end(request, work.finish());
      return;
    }
    world.schedule(random.random() * PAUSE_MS, host, () => {
      this.#step(request, work, bounds, index + 1);
      return QUIET;
    });
  }

  #end(request: CodingRequest, outcome: Outcome): void {
    this.#complete(request, outcome);
    this.#isBusy = false;
    this.#next();
  }

  #complete(request: CodingRequest, { status, detail }: Outcome): void {
    const { world, name } = this.#device;
    if (world.trace) world.note(`${name} cq${this.qpn} ${request.wrId} completes: ${statusName(status)} ${detail}`);
    this.#device.complete(this, request.opcode, status, request.wrId >>> 0, 0, 0, detail, request.held);
  }

  #beginEncode(coder: Coder, region: SimRegion | undefined, place: StripePlace, flags: number): Work | Outcome {
    if (!(coder instanceof SimCoder) || !coder.isUsableBy(this.#device)) return failure(Status.INVALID_REQUEST);
    const { stride, dataLength } = place;
    const { k, inputUnits, outputUnits, matrix, digest: layout } = coder.spec;
    if (!(stride > 0) || stride % 64 !== 0 || stride >= 2 ** 31 || !(dataLength >= 0) || dataLength > k * stride) return failure(Status.INVALID_REQUEST);
    if (region === undefined || !isStripeInside(coder, region, place, flags)) return failure(Status.LOCAL_PROTECTION_ERROR);

    const unit = (position: number): Unit => {
      const length = unitBytes(k, position, stride, dataLength);
      const payload = length === 0 ? new Uint8Array(0) : region.bytes(place.unitsOffset + position * stride, length);
      return { position, payload, digest: new Digest() };
    };
    const header = (position: number): Uint8Array => region.bytes(headerOffset(place, k, position), headerBytes(layout, k, position));
    const inputs = inputUnits.map(unit);
    const outputs = outputUnits.map(unit);
    const inputBytes = inputs.reduce((sum, { payload }) => sum + payload.length, 0);

    const advance = (from: number, to: number): void => {
      const pieces = inputs.map(({ payload }) => payload.subarray(from, to));
      for (let row = 0; row < outputs.length; row++) {
        const out = outputs[row]!.payload.subarray(from, to);
        out.fill(0);
        for (let column = 0; column < pieces.length; column++) {
          const piece = pieces[column]!;
          multiplyAdd(matrix[row * inputs.length + column]!, piece.length > out.length ? piece.subarray(0, out.length) : piece, out);
        }
        outputs[row]!.digest.add(out);
      }
      for (let column = 0; column < pieces.length; column++) inputs[column]!.digest.add(pieces[column]!);
    };

    const finish = (): Outcome => {
      this.#device.counts.bytesEncoded += inputBytes;
      if (flags & Flag.DIGEST_INPUTS_CHECK) {
        for (const { position, digest } of inputs) {
          if (checkDigest(layout, header(position), digest) !== 0) return failure(Status.CHECKSUM_ERROR, position);
        }
      }
      if (flags & Flag.DIGEST_INPUTS_WRITE) {
        for (const { position, digest } of inputs) {
          storeDigest(layout, header(position), digest);
          seal(layout, header(position));
        }
      }
      for (const { position, digest } of outputs) {
        if (flags & (Flag.DIGEST_OUTPUTS_WRITE | Flag.DIGEST_OUTPUTS_STORE)) storeDigest(layout, header(position), digest);
      }
      if (flags & Flag.DIGEST_OUTPUTS_WRITE) {
        for (const { position } of outputs) {
          const own = header(position);
          for (let c = 0; position >= k && c < k; c++) {
            writeUint32(own, layout.crcListOffset + 4 * c, readUint32(header(c), layout.payloadCrcOffset));
          }
          seal(layout, own);
        }
      }
      return SUCCESS;
    };
    const length = [...inputs, ...outputs].reduce((most, { payload }) => Math.max(most, payload.length), 0);
    return { length, advance, finish };
  }

  #beginVerify(
    coder: Coder, region: SimRegion | undefined, headerAt: number, bytes: number, payloadAt: number, payloadBytes: number,
  ): Work | Outcome {
    if (!(coder instanceof SimCoder) || !coder.isUsableBy(this.#device)) return failure(Status.INVALID_REQUEST);
    const layout = coder.spec.digest;
    if (bytes < Math.max(layout.payloadCrcOffset + 4, layout.sealOffset + 4, layout.summaryOffset + 16)) return failure(Status.INVALID_REQUEST);
    if (region?.contains(headerAt, bytes) !== true || !region.contains(payloadAt, payloadBytes)) return failure(Status.LOCAL_PROTECTION_ERROR);
    const payload = region.bytes(payloadAt, payloadBytes);
    const digest = new Digest();
    return {
      length: payloadBytes,
      advance: (from, to) => digest.add(payload.subarray(from, to)),
      finish: () => {
        this.#device.counts.bytesVerified += payloadBytes;
        const fault = checkDigest(layout, region.bytes(headerAt, bytes), digest);
        return fault === 0 ? SUCCESS : failure(Status.CHECKSUM_ERROR, fault);
      },
    };
  }

  destroy(): Promise<void> {
    this.#destroyed ??= new Promise((resolve) => {
      this.#device.release();
      this.#onIdle = () => {
        this.#onIdle = undefined;
        this.#device.deliver(() => {
          this.#device.dropCodingQueue(this);
          resolve();
        });
      };
      if (!this.#isBusy) this.#onIdle();
    });
    return this.#destroyed;
  }
}

function failure(status: number, detail = 0): Outcome {
  return { status, detail };
}

function headerOffset(place: StripePlace, k: number, unit: number): number {
  return unit < k
    ? place.dataHeadersOffset + unit * place.dataHeaderStride
    : place.parityHeadersOffset + (unit - k) * place.parityHeaderStride;
}

/** Whether every payload, and every header that `flags` need, lies inside the region. */
function isStripeInside(coder: SimCoder, region: SimRegion, place: StripePlace, flags: number): boolean {
  const { k, inputUnits, outputUnits, digest } = coder.spec;
  const isPayloadInside = (unit: number): boolean => {
    const length = unitBytes(k, unit, place.stride, place.dataLength);
    return length === 0 || region.contains(place.unitsOffset + unit * place.stride, length);
  };
  const isHeaderInside = (unit: number): boolean => region.contains(headerOffset(place, k, unit), headerBytes(digest, k, unit));
  if (![...inputUnits, ...outputUnits].every(isPayloadInside)) return false;
  if ((flags & ANY_DIGEST) === 0) return true;
  const listed = flags & Flag.DIGEST_OUTPUTS_WRITE && outputUnits.some((unit) => unit >= k) ? Array.from({ length: k }, (_, c) => c) : [];
  const withInputs = flags & (Flag.DIGEST_INPUTS_WRITE | Flag.DIGEST_INPUTS_CHECK) ? inputUnits : [];
  const withOutputs = flags & (Flag.DIGEST_OUTPUTS_WRITE | Flag.DIGEST_OUTPUTS_STORE) ? outputUnits : [];
  return [...listed, ...withInputs, ...withOutputs].every(isHeaderInside);
}

/** @returns 0, or what differs: 1 the seal, 2 the payload CRC, 3 the summary */
function checkDigest(layout: DigestLayout, header: Uint8Array, digest: Digest): number {
  if (readUint32(header, layout.sealOffset) !== sealOf(header, layout.sealOffset)) return 1;
  if (readUint32(header, layout.payloadCrcOffset) !== digest.crc) return 2;
  return digest.hasSummary(header, layout.summaryOffset) ? 0 : 3;
}

function storeDigest(layout: DigestLayout, header: Uint8Array, digest: Digest): void {
  writeUint32(header, layout.payloadCrcOffset, digest.crc);
  digest.storeSummary(header, layout.summaryOffset);
}

function seal(layout: DigestLayout, header: Uint8Array): void {
  writeUint32(header, layout.sealOffset, sealOf(header, layout.sealOffset));
}
