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
import { QUIET, type Firing } from './event-queue.js';
import { cutPieces } from './pieces.js';

/** 5 GB/s of input. */
const CODING_BYTES_PER_MS = 5_000_000;
const PAUSE_MS = 0.02;

const ANY_DIGEST =
  Flag.DIGEST_INPUTS_WRITE | Flag.DIGEST_INPUTS_CHECK | Flag.DIGEST_OUTPUTS_WRITE | Flag.DIGEST_OUTPUTS_STORE;

interface Outcome {
  readonly status: number;
  readonly detail: number;
}
const SUCCESS: Outcome = { status: Status.SUCCESS, detail: 0 };

/** A coding request under way: its bytes from … to, then its end. */
interface Work {
  readonly length: number;
  advance(from: number, to: number): void;
  finish(): Outcome;
}

/** A request; as an event, the next of its pieces. */
abstract class CodingRequest implements Firing {
  /** The region, as the device holds it until the completion is delivered. */
  readonly held: readonly { readonly region: SimRegion }[];
  work: Work | undefined;
  bounds: readonly number[] = [];
  index = 0;
  constructor(
    readonly queue: SimCodingQueue,
    readonly opcode: number,
    readonly wrId: number,
    readonly region: SimRegion | undefined,
    readonly inputBytes: number,
  ) {
    this.held = region === undefined ? [] : [{ region }];
  }
  start(): void {
    this.queue.start(this);
  }
  fire(): unknown {
    this.queue.step(this);
    return QUIET;
  }
  abstract begin(device: SimDevice): Work | Outcome;
}

class EncodeRequest extends CodingRequest {
  constructor(
    queue: SimCodingQueue,
    wrId: number,
    region: SimRegion | undefined,
    readonly coder: Coder,
    readonly place: StripePlace,
    readonly flags: number,
  ) {
    super(queue, Opcode.ENCODE, wrId, region, place.dataLength);
  }
  begin(device: SimDevice): Work | Outcome {
    return beginEncode(device, this.coder, this.region, this.place, this.flags);
  }
}

class VerifyRequest extends CodingRequest {
  constructor(
    queue: SimCodingQueue,
    wrId: number,
    region: SimRegion | undefined,
    readonly coder: Coder,
    readonly headerAt: number,
    readonly headerBytes: number,
    readonly payloadAt: number,
    readonly payloadBytes: number,
  ) {
    super(queue, Opcode.VERIFY, wrId, region, payloadBytes);
  }
  begin(device: SimDevice): Work | Outcome {
    return beginVerify(
      device,
      this.coder,
      this.region,
      this.headerAt,
      this.headerBytes,
      this.payloadAt,
      this.payloadBytes,
    );
  }
}

interface Unit {
  readonly position: number;
  readonly payload: Uint8Array;
  readonly digest: Digest;
}

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
    // The caller may fill the same place for its next request.
    this.#post(new EncodeRequest(this, wrId, this.#device.ownRegion(place.region), coder, { ...place }, flags));
  }

  postVerify(
    wrId: number,
    coder: Coder,
    region: MemoryRegion,
    headerOffset: number,
    bytes: number,
    payloadOffset: number,
    payloadBytes: number,
  ): void {
    this.#post(
      new VerifyRequest(
        this,
        wrId,
        this.#device.ownRegion(region),
        coder,
        headerOffset,
        bytes,
        payloadOffset,
        payloadBytes,
      ),
    );
  }

  #post(request: CodingRequest): void {
    request.region?.hold();
    this.#device.stage(request);
  }

  /** For the device. */
  start(request: CodingRequest): void {
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
    // nonsense is refused when it begins
    const codingMs = request.inputBytes > 0 ? request.inputBytes / CODING_BYTES_PER_MS : 0;
    world.schedule(codingMs + random.random() * PAUSE_MS, host, request);
  }

  /** For the device's own event: the first piece, or the next. */
  step(request: CodingRequest): void {
    const { world, random, host, name } = this.#device;
    if (request.work === undefined) {
      const work = request.begin(this.#device);
      if ('status' in work) {
        this.#end(request, work);
        return;
      }
      request.work = work;
      request.bounds = cutPieces(random, work.length);
    }
    const { work, bounds } = request,
      from = bounds[request.index]!,
      to = bounds[request.index + 1]!;
    work.advance(from, to);
    if (world.trace)
      world.note(
        `${name} cq${this.qpn} ` +
          (request.opcode === Opcode.ENCODE ? 'ENCODE' : 'VERIFY') +
          ` ${request.wrId} ${from}..${to}`,
      );
    request.index++;
    if (request.index + 1 === bounds.length) this.#end(request, work.finish());
    else world.schedule(random.random() * PAUSE_MS, host, request);
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

function beginEncode(
  device: SimDevice,
  coder: Coder,
  region: SimRegion | undefined,
  place: StripePlace,
  flags: number,
): Work | Outcome {
  if (!(coder instanceof SimCoder) || !coder.isUsableBy(device)) return failure(Status.INVALID_REQUEST);
  const { stride, dataLength } = place;
  if (
    !(stride > 0) ||
    stride % 64 !== 0 ||
    stride >= 2 ** 31 ||
    !(dataLength >= 0) ||
    dataLength > coder.spec.k * stride
  )
    return failure(Status.INVALID_REQUEST);
  if (region === undefined || !isStripeInside(coder, region, place, flags))
    return failure(Status.LOCAL_PROTECTION_ERROR);
  return new Encoding(device, coder, region, place, flags);
}

class Encoding implements Work {
  readonly length: number;
  readonly #inputs: readonly Unit[];
  readonly #outputs: readonly Unit[];

  constructor(
    readonly device: SimDevice,
    readonly coder: SimCoder,
    readonly region: SimRegion,
    readonly place: StripePlace,
    readonly flags: number,
  ) {
    const { inputUnits, outputUnits } = coder.spec;
    this.#inputs = inputUnits.map(this.#unit, this);
    this.#outputs = outputUnits.map(this.#unit, this);
    let length = 0;
    for (const units of [this.#inputs, this.#outputs])
      for (const { payload } of units) length = Math.max(length, payload.length);
    this.length = length;
  }

  #unit(position: number): Unit {
    const { place, region, coder } = this,
      { stride, dataLength, unitsOffset } = place;
    const length = unitBytes(coder.spec.k, position, stride, dataLength);
    const payload = length === 0 ? new Uint8Array(0) : region.bytes(unitsOffset + position * stride, length);
    return { position, payload, digest: new Digest() };
  }

  #header(position: number): Uint8Array {
    const { k, digest: layout } = this.coder.spec;
    return this.region.bytes(headerOffset(this.place, k, position), headerBytes(layout, k, position));
  }

  advance(from: number, to: number): void {
    const inputs = this.#inputs,
      outputs = this.#outputs,
      { matrix } = this.coder.spec;
    const pieces: Uint8Array[] = [];
    for (const { payload } of inputs) pieces.push(payload.subarray(from, to));
    for (let row = 0; row < outputs.length; row++) {
      const out = outputs[row]!.payload.subarray(from, to);
      out.fill(0);
      for (let column = 0; column < pieces.length; column++) {
        const piece = pieces[column]!;
        multiplyAdd(
          matrix[row * inputs.length + column]!,
          piece.length > out.length ? piece.subarray(0, out.length) : piece,
          out,
        );
      }
      outputs[row]!.digest.add(out);
    }
    for (let column = 0; column < pieces.length; column++) inputs[column]!.digest.add(pieces[column]!);
  }

  finish(): Outcome {
    const inputs = this.#inputs,
      outputs = this.#outputs,
      { flags } = this,
      { k, digest: layout } = this.coder.spec;
    for (const { payload } of inputs) this.device.counts.bytesEncoded += payload.length;
    if (flags & Flag.DIGEST_INPUTS_CHECK) {
      for (const { position, digest } of inputs) {
        if (checkDigest(layout, this.#header(position), digest) !== 0) return failure(Status.CHECKSUM_ERROR, position);
      }
    }
    if (flags & Flag.DIGEST_INPUTS_WRITE) {
      for (const { position, digest } of inputs) {
        storeDigest(layout, this.#header(position), digest);
        seal(layout, this.#header(position));
      }
    }
    for (const { position, digest } of outputs) {
      if (flags & (Flag.DIGEST_OUTPUTS_WRITE | Flag.DIGEST_OUTPUTS_STORE))
        storeDigest(layout, this.#header(position), digest);
    }
    if (flags & Flag.DIGEST_OUTPUTS_WRITE) {
      for (const { position } of outputs) {
        const own = this.#header(position);
        for (let c = 0; position >= k && c < k; c++)
          writeUint32(own, layout.crcListOffset + 4 * c, readUint32(this.#header(c), layout.payloadCrcOffset));
        seal(layout, own);
      }
    }
    return SUCCESS;
  }
}

function beginVerify(
  device: SimDevice,
  coder: Coder,
  region: SimRegion | undefined,
  headerAt: number,
  bytes: number,
  payloadAt: number,
  payloadBytes: number,
): Work | Outcome {
  if (!(coder instanceof SimCoder) || !coder.isUsableBy(device)) return failure(Status.INVALID_REQUEST);
  const layout = coder.spec.digest;
  if (bytes < Math.max(layout.payloadCrcOffset + 4, layout.sealOffset + 4, layout.summaryOffset + 16))
    return failure(Status.INVALID_REQUEST);
  if (region?.contains(headerAt, bytes) !== true || !region.contains(payloadAt, payloadBytes))
    return failure(Status.LOCAL_PROTECTION_ERROR);
  return new Verifying(device, layout, region.bytes(headerAt, bytes), region.bytes(payloadAt, payloadBytes));
}

class Verifying implements Work {
  readonly length: number;
  readonly #digest = new Digest();
  constructor(
    readonly device: SimDevice,
    readonly layout: DigestLayout,
    readonly header: Uint8Array,
    readonly payload: Uint8Array,
  ) {
    this.length = payload.length;
  }
  advance(from: number, to: number): void {
    this.#digest.add(this.payload.subarray(from, to));
  }
  finish(): Outcome {
    this.device.counts.bytesVerified += this.length;
    const fault = checkDigest(this.layout, this.header, this.#digest);
    return fault === 0 ? SUCCESS : failure(Status.CHECKSUM_ERROR, fault);
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
  const isHeaderInside = (unit: number): boolean =>
    region.contains(headerOffset(place, k, unit), headerBytes(digest, k, unit));
  if (![...inputUnits, ...outputUnits].every(isPayloadInside)) return false;
  if ((flags & ANY_DIGEST) === 0) return true;
  const listed =
    flags & Flag.DIGEST_OUTPUTS_WRITE && outputUnits.some((unit) => unit >= k)
      ? Array.from({ length: k }, (_, c) => c)
      : [];
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
