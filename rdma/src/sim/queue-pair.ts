/**
 * One end of a simulated reliable connection.
 *
 *                fail()                        flush()                          destroy() and all delivered
 *     connected ────────▶ error, still moving ────────▶ error, at rest ─────────────────────────────────────▶ closed
 *
 * Between fail() and flush() what is on its way goes on being read and placed for a random while, as in a real device:
 * memory is free only when the flushed completions arrive, and whoever reuses it earlier shows in the simulation.
 *
 * A request goes out in 1 to 4 pieces, each read from source memory when it leaves; the peer places each when it
 * arrives. Order: requests leave one after the other, the channel keeps their order, completions wait for the head.
 */
import { Access, type CompletionHandler, type MemoryRegion, type QueuePair } from '../device.js';
import { Flag, Opcode, Status, opcodeName, statusName } from '../records.js';
import { copyOf } from './arena.js';
import type { SimDevice, Startable } from './device.js';
import { QUIET, type Fire, type Firing } from './event-queue.js';
import { NOTHING, placeGather, readGather, type Gather } from './gather.js';
import type { SimRegion } from './memory-region.js';
import type { Channel } from './network.js';
import { cutPieces } from './pieces.js';
import {
  FLUSH_MS,
  LONG_FLUSH_MS,
  LONG_FLUSH_ONE_IN,
  LATE_ONE_IN,
  LATE_MS,
  AT_ONCE_MS,
  BEGIN_MS,
} from './queue-pair-timing.js';

class SendRequest implements Startable, Firing {
  /** `status` not SUCCESS: fails with it, without leaving, once everything before it has completed. */
  isDone = false;
  constructor(
    readonly qp: SimQueuePair,
    readonly opcode: number,
    readonly flags: number,
    readonly wrId: number,
    readonly imm: number,
    readonly rkey: number,
    readonly remoteOffset: number,
    readonly gather: readonly Gather[],
    readonly length: number,
    readonly status: number,
  ) {}
  start(): void {
    this.qp.startSend(this);
  }
  /** Its acknowledgement arrives. */
  fire(): unknown {
    this.qp.acknowledged(this);
    return QUIET;
  }
}

class RecvRequest implements Startable {
  constructor(
    readonly qp: SimQueuePair,
    readonly wrId: number,
    readonly gather: Gather | undefined,
    readonly length: number,
    readonly isValid: boolean,
  ) {}
  start(): void {
    this.qp.startRecv(this);
  }
}

/** A piece of a request leaves: the bytes from bound `index` to bound `end`. */
class Departure implements Firing {
  constructor(
    readonly request: SendRequest,
    readonly bounds: readonly number[],
    readonly index: number,
    readonly end: number,
  ) {}
  fire(): unknown {
    return this.request.qp.depart(this);
  }
}

/** What arrives: a piece of a WRITE or SEND, or the whole of a READ request. */
class Message implements Firing {
  isPlaced = false;
  constructor(
    readonly request: SendRequest,
    readonly at: number,
    readonly bytes: Uint8Array | undefined,
  ) {}
  fire(): unknown {
    this.request.qp.peer.arrived(this);
    return QUIET;
  }
}

export class SimQueuePair implements QueuePair {
  readonly device: SimDevice;
  readonly qpn: number;
  readonly transport = 'sim';
  readonly remote: string;
  handler: CompletionHandler = () => {};
  onError: ((reason: string) => void) | undefined;
  peer!: SimQueuePair;
  /** Nothing will ever happen here again; `onGone` tells the connection. */
  isGone = false;
  onGone: (() => void) | undefined;

  readonly #out: Channel;
  #state: 'connected' | 'error' | 'closed' = 'connected';
  #isAtRest = false;
  /** Ended by its owner, not by a failure: after a request that was refused no byte of a later one may move. */
  #isLeft = false;
  #firstStatus: number = Status.FLUSHED;
  #culprit: SendRequest | undefined;
  #sends: SendRequest[] = [];
  /** Index in #sends of the first request that has not left. */
  #next = 0;
  #isTransmitting = false;
  #recvs: RecvRequest[] = [];
  /** Arrived, but waiting: its head needs a receive. */
  #inbound: Message[] = [];
  #destroyed: Promise<void> | undefined;
  #onRest: (() => void) | undefined;

  constructor(device: SimDevice, remote: string, out: Channel) {
    this.device = device;
    this.qpn = device.adoptQueuePair(this);
    this.remote = remote;
    this.#out = out;
  }

  get state(): 'connected' | 'error' | 'closed' {
    return this.#state;
  }

  // Posting.

  postRecv(wrId: number, region: MemoryRegion | undefined, offset: number, length: number): void {
    const gather = region === undefined ? undefined : this.#gather(region, offset, length);
    const isValid = region === undefined || gather !== undefined;
    gather?.region.hold();
    this.device.stage(new RecvRequest(this, wrId >>> 0, gather, region === undefined ? 0 : length, isValid));
  }

  postSend(wrId: number, region: MemoryRegion, offset: number, length: number, flags = 0): void {
    this.#postSend(Opcode.SEND, flags, wrId, 0, 0, 0, [[region, offset, length]]);
  }

  postWrite(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags = 0,
  ): void {
    this.#postSend(Opcode.WRITE, flags, wrId, 0, rkey, remoteOffset, [[region, offset, length]]);
  }

  postWriteWithImm(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
    flags = 0,
  ): void {
    this.#postSend(Opcode.WRITE_WITH_IMM, flags, wrId, imm, rkey, remoteOffset, [[region, offset, length]]);
  }

  postGatherWithImm(
    wrId: number,
    region: MemoryRegion,
    offset0: number,
    length0: number,
    offset1: number,
    length1: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
    flags = 0,
  ): void {
    this.#postSend(Opcode.WRITE_WITH_IMM, flags, wrId, imm, rkey, remoteOffset, [
      [region, offset0, length0],
      [region, offset1, length1],
    ]);
  }

  postRead(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags = 0,
  ): void {
    this.#postSend(Opcode.READ, flags, wrId, 0, rkey, remoteOffset, [[region, offset, length]]);
  }

  #postSend(
    opcode: number,
    flags: number,
    wrId: number,
    imm: number,
    rkey: number,
    remoteOffset: number,
    entries: readonly (readonly [MemoryRegion, number, number])[],
  ): void {
    const gather: Gather[] = [];
    let length = 0;
    for (const [region, offset, bytes] of entries) {
      const entry = this.#gather(region, offset, bytes);
      if (entry !== undefined) gather.push(entry);
      length += bytes;
    }
    const status = gather.length === entries.length ? Status.SUCCESS : Status.LOCAL_PROTECTION_ERROR;
    for (const entry of gather) entry.region.hold();
    const request = new SendRequest(
      this,
      opcode,
      flags,
      wrId >>> 0,
      imm >>> 0,
      rkey >>> 0,
      remoteOffset,
      gather,
      length,
      status,
    );
    this.device.stage(request);
  }

  #gather(region: MemoryRegion, offset: number, length: number): Gather | undefined {
    const own = this.device.ownRegion(region);
    return own?.contains(offset, length) === true ? { region: own, offset, length } : undefined;
  }

  /** For the device. */
  startRecv(recv: RecvRequest): void {
    if (this.#isAtRest) {
      this.#completeRecv(recv, Opcode.RECV, Status.FLUSHED, 0, 0);
    } else if (!recv.isValid && this.#state === 'connected') {
      this.#completeRecv(recv, Opcode.RECV, Status.LOCAL_PROTECTION_ERROR, 0, 0);
      this.fail(Status.FLUSHED, undefined, 'a receive named memory outside its region');
    } else {
      this.#recvs.push(recv);
      if (this.#inbound.length > 0) this.device.later(() => this.#takeInbound());
    }
  }

  /** For the device. */
  startSend(request: SendRequest): void {
    if (this.#isAtRest) {
      this.#completeSend(request, Status.FLUSHED);
      return;
    }
    this.#sends.push(request);
    this.#kick();
  }

  // The requester's side: transmission.

  #kick(): void {
    const request = this.#sends[this.#next];
    if (this.#isTransmitting || request === undefined) return;
    this.#isTransmitting = true;
    if (request.status === Status.SUCCESS && request.opcode !== Opcode.READ && this.#state === 'connected') {
      this.#transmitPiece(
        request,
        cutPieces(this.device.random, request.length),
        0,
        this.device.random.random() * BEGIN_MS,
        this.#isLate(),
      );
    } else {
      this.device.later(this.#transmitSoon);
    }
  }

  readonly #transmitSoon = (): unknown => this.#transmit();

  #transmit(): unknown {
    for (;;) {
      const request = this.#sends[this.#next];
      if (this.#isAtRest || this.#state !== 'connected' || request === undefined) {
        this.#isTransmitting = false;
      } else if (request.status !== Status.SUCCESS) {
        this.#isTransmitting = false;
        // Earlier requests complete first: acknowledged() kicks again when this one is the head.
        if (this.#next === 0) this.fail(request.status, request, 'a request named memory outside its region');
      } else if (request.opcode === Opcode.READ) {
        this.#note(request, 'asks');
        this.#out.send(new Message(request, 0, undefined));
        this.#next++;
        continue;
      } else {
        this.#transmitPiece(request, cutPieces(this.device.random, request.length), 0, 0, this.#isLate());
      }
      return QUIET;
    }
  }

  #transmitPiece(
    request: SendRequest,
    bounds: readonly number[],
    index: number,
    delayMs: number,
    isLate: boolean,
  ): void {
    const end = this.#endOfPiece(bounds, index);
    this.#atDeparture(bounds[end]! - bounds[index]!, delayMs, isLate, new Departure(request, bounds, index, end));
  }

  /** For the device's own event. */
  depart({ request, bounds, index, end }: Departure): unknown {
    if (this.#isAtRest) {
      this.#isTransmitting = false;
      return QUIET;
    }
    const from = bounds[index]!,
      to = bounds[end]!;
    const bytes = readGather(request.gather, from, to);
    if (request.opcode === Opcode.WRITE_WITH_IMM) this.#damage(bytes);
    this.device.counts.bytesSent += bytes.length;
    this.device.counts.bytesCopied += bytes.length;
    if (this.device.world.trace) this.#note(request, `reads ${from}..${to}`);
    this.#out.send(new Message(request, from, bytes));
    if (end + 1 < bounds.length) {
      this.#transmitPiece(request, bounds, end, 0, this.#isFast(bounds) || this.#isLate());
      return QUIET;
    }
    this.#next++;
    return this.#transmit();
  }

  /** A fault of the network: one bit flips on the way. */
  #damage(bytes: Uint8Array): void {
    const { damageRate } = this.#out.link.options;
    if (damageRate === 0 || bytes.length === 0 || this.device.world.networkRandom.random() >= damageRate) return;
    bytes[this.device.world.networkRandom.int(bytes.length)]! ^= 1 << this.device.world.networkRandom.int(8);
  }

  #isLate(): boolean {
    return this.device.random.int(LATE_ONE_IN) === 0;
  }

  #isFast(bounds: readonly number[]): boolean {
    return bounds[bounds.length - 1]! < AT_ONCE_MS * this.#out.link.options.bytesPerMs;
  }

  /** @returns index of the bound where the piece that begins at `index` ends: what leaves in one moment is one piece */
  #endOfPiece(bounds: readonly number[], index: number): number {
    let end = index + 1;
    if (bounds.length > 2 && this.#isFast(bounds)) while (end + 1 < bounds.length && !this.#isLate()) end++;
    return end;
  }

  #atDeparture(bytes: number, delayMs: number, isLate: boolean, depart: Fire): void {
    const { world, random, host } = this.device;
    const left = this.#out.link.occupy(world.now() + delayMs, bytes) - world.now();
    world.schedule(isLate ? left + random.random() * LATE_MS : left, host, depart);
  }

  /** For the device's own event. */
  acknowledged(request: SendRequest): void {
    if (this.#isAtRest) return;
    request.isDone = true;
    while (this.#sends[0]?.isDone === true) {
      this.#completeSend(this.#sends.shift()!, Status.SUCCESS);
      this.#next--;
    }
    this.#kick();
  }

  #readArrived(request: SendRequest, at: number, bytes: Uint8Array, isLast: boolean): void {
    if (this.#isAtRest) return;
    placeGather(request.gather, at, bytes);
    this.device.counts.bytesReceived += bytes.length;
    if (this.device.world.trace) this.#note(request, `placed ${at}..${at + bytes.length}`);
    if (isLast) this.acknowledged(request);
  }

  // The responder's side.

  /** For the device's own event. */
  arrived(message: Message): void {
    if (this.#state !== 'connected') {
      this.#straggle(message);
      return;
    }
    this.#inbound.push(message);
    if (this.#inbound.length === 1) this.#takeInbound();
  }

  /** Arrives between toError() and flush(): its bytes may still be placed, but nobody is told. */
  #straggle({ request, at, bytes }: Message): void {
    if (!this.#isLeft || this.#isAtRest || bytes === undefined || request.opcode === Opcode.SEND) return;
    const region = this.device.regionByKey(request.rkey, this);
    if (region?.allows(Access.REMOTE_WRITE, request.remoteOffset, request.length) === true)
      this.#place(request, region, request.remoteOffset + at, bytes, at);
  }

  #takeInbound(): void {
    while (this.#state === 'connected' && this.#inbound.length > 0) {
      if (!this.#take(this.#inbound[0]!)) return;
      this.#inbound.shift();
    }
  }

  /** @returns false when it must wait for a receive */
  #take(message: Message): boolean {
    const { request } = message;
    if (request.opcode === Opcode.READ) return this.#answerRead(request);
    return request.opcode === Opcode.SEND ? this.#takeSend(message) : this.#takeWrite(message);
  }

  #takeWrite(message: Message): boolean {
    const { request, at } = message;
    const bytes = message.bytes!;
    const isLast = at + bytes.length === request.length;
    if (!message.isPlaced) {
      // Checked again for every piece: the region may have been deregistered since the first.
      const region = this.device.regionByKey(request.rkey, this);
      if (region?.allows(Access.REMOTE_WRITE, request.remoteOffset, request.length) !== true) {
        this.#refuse(request, Status.REMOTE_ACCESS_ERROR);
        return true;
      }
      this.#place(request, region, request.remoteOffset + at, bytes, at);
      message.isPlaced = true;
    }
    if (isLast && request.opcode === Opcode.WRITE_WITH_IMM) {
      const recv = this.#recvs.shift();
      if (recv === undefined) return false;
      this.#completeRecv(recv, Opcode.RECV_WRITE_WITH_IMM, Status.SUCCESS, request.length, request.imm);
    }
    if (isLast) this.#acknowledge(request);
    return true;
  }

  #takeSend(message: Message): boolean {
    const { request, at } = message;
    const bytes = message.bytes!;
    const recv = this.#recvs[0];
    if (recv === undefined) return false;
    if (request.length > recv.length) {
      this.#recvs.shift();
      this.#completeRecv(recv, Opcode.RECV, Status.LENGTH_ERROR, 0, 0);
      this.#refuse(request, Status.REMOTE_INVALID_REQUEST);
      return true;
    }
    if (recv.gather !== undefined) this.#place(request, recv.gather.region, recv.gather.offset + at, bytes, at);
    if (at + bytes.length === request.length) {
      this.#recvs.shift();
      this.#completeRecv(recv, Opcode.RECV, Status.SUCCESS, request.length, 0);
      this.#acknowledge(request);
    }
    return true;
  }

  #place(request: SendRequest, region: SimRegion, offset: number, bytes: Uint8Array, at: number): void {
    region.all.set(bytes, offset);
    this.device.counts.bytesReceived += bytes.length;
    if (this.device.world.trace) this.#note(request, `places ${at}..${at + bytes.length}`);
  }

  #answerRead(request: SendRequest): boolean {
    const bounds = cutPieces(this.device.random, request.length);
    const answer = (index: number): void => {
      const [from, to] = [bounds[index]!, bounds[index + 1]!];
      this.#atDeparture(to - from, 0, this.#isLate(), () => {
        if (this.#state !== 'connected') return QUIET;
        const now = this.device.regionByKey(request.rkey, this);
        if (now?.allows(Access.REMOTE_READ, request.remoteOffset, request.length) !== true) {
          this.#refuse(request, Status.REMOTE_ACCESS_ERROR);
          return QUIET;
        }
        const bytes = copyOf(now.all, request.remoteOffset + from, request.remoteOffset + to);
        this.device.counts.bytesSent += bytes.length;
        this.device.counts.bytesCopied += bytes.length;
        if (this.device.world.trace) this.#note(request, `answers ${from}..${to}`);
        const isLast = index + 2 === bounds.length;
        this.#out.send(() => {
          this.peer.#readArrived(request, from, bytes, isLast);
          return QUIET;
        });
        if (!isLast) answer(index + 1);
        return QUIET;
      });
    };
    const region = this.device.regionByKey(request.rkey, this);
    if (region?.allows(Access.REMOTE_READ, request.remoteOffset, request.length) === true) answer(0);
    else this.#refuse(request, Status.REMOTE_ACCESS_ERROR);
    return true;
  }

  #acknowledge(request: SendRequest): void {
    this.#out.send(request);
  }

  /** Tells the peer which of its requests failed, and ends. */
  #refuse(request: SendRequest, status: number): void {
    if (status === Status.REMOTE_ACCESS_ERROR) this.device.counts.refusedAccesses++;
    this.#out.send(() => this.peer.fail(status, request, `the peer refused a request: ${statusName(status)}`));
    this.fail(Status.FLUSHED, undefined, `a request of the peer was refused: ${statusName(status)}`);
  }

  // Errors and the end.

  toError(reason: string): void {
    this.device.release(); // posted before: in its place among the flushed
    if (this.#state === 'connected') this.#isLeft = true;
    this.fail(Status.FLUSHED, undefined, reason);
  }

  /**
   * @param status   of the request that failed
   * @param culprit  that request; undefined: the oldest one outstanding
   */
  fail(status: number, culprit: SendRequest | undefined, reason: string): void {
    if (this.#state !== 'connected') return;
    this.#state = 'error';
    this.#firstStatus = status;
    this.#culprit = culprit;
    this.device.counts.errors++;
    this.device.world.note(`${this.device.name} qp${this.qpn} error: ${reason}`);
    this.device.deliver(() => this.onError?.(reason));
    this.#out.send(() => this.peer.fail(Status.RETRY_EXCEEDED, undefined, 'the peer is gone'));
    const { world, random, host } = this.device;
    world.schedule(random.random() * (random.int(LONG_FLUSH_ONE_IN) === 0 ? LONG_FLUSH_MS : FLUSH_MS), host, () =>
      this.#flush(),
    );
  }

  #flush(): void {
    this.#isAtRest = true;
    this.#inbound = [];
    const sends = this.#sends;
    const culprit = this.#culprit ?? sends[0];
    this.#sends = [];
    for (const request of sends) this.#completeSend(request, request === culprit ? this.#firstStatus : Status.FLUSHED);
    const recvs = this.#recvs;
    this.#recvs = [];
    for (const recv of recvs) this.#completeRecv(recv, Opcode.RECV, Status.FLUSHED, 0, 0);
    this.isGone = true;
    this.onGone?.();
    this.#onRest?.();
  }

  destroy(): Promise<void> {
    this.#destroyed ??= new Promise((resolve) => {
      this.toError('destroyed');
      const close = (): void => {
        // Behind the flushed completions in the device's queue of deliveries.
        this.device.deliver(() => {
          this.#state = 'closed';
          this.device.dropQueuePair(this);
          resolve();
        });
      };
      if (this.#isAtRest) close();
      else this.#onRest = close;
    });
    return this.#destroyed;
  }

  #completeSend(request: SendRequest, status: number): void {
    if (status === Status.SUCCESS && (request.flags & Flag.SIGNALED) === 0)
      for (const { region } of request.gather) region.release();
    else this.#complete(request.opcode, status, request.wrId, 0, 0, request.gather);
  }

  #completeRecv(recv: RecvRequest, opcode: number, status: number, byteLength: number, imm: number): void {
    this.#complete(opcode, status, recv.wrId, byteLength, imm, recv.gather === undefined ? NOTHING : [recv.gather]);
  }

  #complete(
    opcode: number,
    status: number,
    wrId: number,
    byteLength: number,
    imm: number,
    held: readonly Gather[],
  ): void {
    const { world, name } = this.device;
    if (world.trace) world.note(`${name} qp${this.qpn} ${opcodeName(opcode)} ${wrId} completes: ${statusName(status)}`);
    this.device.complete(this, opcode, status, wrId, byteLength, imm, 0, held);
  }

  #note(request: SendRequest, what: string): void {
    const { world, name } = this.device;
    if (world.trace) world.note(`${name} qp${this.qpn} ${opcodeName(request.opcode)} ${request.wrId} ${what}`);
  }
}
