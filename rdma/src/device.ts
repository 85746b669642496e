/**
 * The verbs-shaped interface behind which every device stands: `verbs`, `soft` and `sim`.
 *
 * Intuition: JavaScript is the brain, the device moves and codes the bytes. JavaScript fills fixed-size work
 * requests (see records.ts) in a ring and calls `ring()` once for a batch; the device delivers completions in
 * batches to the handler of the queue they were posted on.
 *
 * Invariants every device keeps (test/rdma/conformance.ts checks them):
 * 1. Every work request posted gets exactly one completion, also RECV, also unsuccessful ones; unless it is a
 *    send-side request posted without `Flag.SIGNALED` that succeeds: then none.
 * 2. Send-side completions of one queue pair come in the order of posting. Coding requests of one coding queue too.
 * 3. A WRITE, WRITE_WITH_IMM or SEND completes with SUCCESS only after the bytes are placed in the peer's memory.
 * 4. Bytes are placed in order on one queue pair; the completion of a RECV consumed by WRITE_WITH_IMM or SEND comes
 *    after its bytes and after those of every earlier request are in place.
 * 5. A remote access outside the region, with a wrong key, or without the region's permission moves no byte,
 *    completes at the requester with REMOTE_ACCESS_ERROR and puts both queue pairs into the error state.
 * 6. In the error state everything outstanding, and everything posted later, completes with FLUSHED (the first
 *    failing one with its own status). After the last of them, and only then, is source memory free for reuse.
 * 7. Memory of a region may be read by the device at any moment between post and completion.
 * 8. A region deregistered while requests on it are outstanding: those complete or flush first. Its ArrayBuffer is
 *    then detached, and only then is the memory unmapped. No byte is written to it afterwards.
 * 9. One device belongs to one JavaScript thread; handlers run on it, never from within a post or `ring()`.
 */

import type { PacketSocket, PacketSocketOptions } from './packets.js';

export type DeviceKind = 'soft' | 'sim' | 'verbs';

/** What a remote peer may do with a region. Local access is always granted. */
export const Access = { LOCAL: 0, REMOTE_WRITE: 1, REMOTE_READ: 2 } as const;

/** How bytes travel between two connected queue pairs. */
export type Transport = 'tcp' | 'shm' | 'sim' | 'rdma';

/**
 * Called once for each completion, on the device's JavaScript thread, in batches.
 *
 * @param opcode      one of `Opcode`: the request's own; RECV_WRITE_WITH_IMM for a RECV that a write with immediate
 *         consumed
 * @param status      one of `Status`
 * @param wrId        the number given when posting (uint32)
 * @param byteLength  RECV: bytes placed by the peer; otherwise 0
 * @param imm         RECV consumed by an operation with immediate: its uint32; otherwise 0
 * @param detail      CHECKSUM_ERROR: the index of the unit that failed; otherwise a device's own syndrome
 */
export type CompletionHandler = (
  opcode: number,
  status: number,
  wrId: number,
  byteLength: number,
  imm: number,
  detail: number,
) => void;

/** Registered memory. Offsets into it, not addresses, name bytes in work requests. At most 2 GiB. */
export interface MemoryRegion {
  /** Names the region in local gather entries (uint32, never reused by this device). */
  readonly lkey: number;
  /** Names the region for a peer (uint32, random, never reused by this device). */
  readonly rkey: number;
  /** The memory itself, page-aligned and zeroed; detached (byteLength 0) once deregistration is done. */
  readonly buffer: ArrayBuffer;
  readonly byteLength: number;
  /**
   * Makes the region reachable through a queue pair. From the first call on it is reachable through those it was
   * granted to alone: to the peers of all others its key is a wrong one. Never granted to any, its key opens it to
   * every peer. Verbs devices have one protection domain: theirs stays reachable with its key.
   */
  grant(qp: QueuePair): void;
  /** Revokes both keys at once, waits for outstanding requests on it, then unmaps. Idempotent. */
  deregister(): Promise<void>;
}

export interface QueuePair {
  readonly qpn: number;
  readonly transport: Transport;
  /** The peer as `address:port`. */
  readonly remote: string;
  /** 'connected' until an error, `toError()`, the peer's going or `destroy()`. */
  readonly state: 'connected' | 'error' | 'closed';
  /** Receives this queue pair's completions; set it before posting. */
  handler: CompletionHandler;
  /** Called once when the state leaves 'connected', before the flushed completions are delivered. */
  onError: ((reason: string) => void) | undefined;

  /**
   * Posts a receive. `region` undefined: for WRITE_WITH_IMM only (no buffer; a SEND then fails with a length error).
   */
  postRecv(wrId: number, region: MemoryRegion | undefined, offset: number, length: number): void;
  postSend(wrId: number, region: MemoryRegion, offset: number, length: number, flags?: number): void;
  /** One gather entry. `length` 0 is legal. */
  postWrite(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags?: number,
  ): void;
  postWriteWithImm(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    imm: number,
    flags?: number,
  ): void;
  /** Two gather entries of one region, placed one after the other at `remoteOffset`: a header, then its payload. */
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
    flags?: number,
  ): void;
  postRead(
    wrId: number,
    region: MemoryRegion,
    offset: number,
    length: number,
    rkey: number,
    remoteOffset: number,
    flags?: number,
  ): void;

  /** Moves to the error state; everything outstanding completes (FLUSHED, or what it already was). */
  toError(reason: string): void;
  /** `toError()`, then resolves when every completion has been delivered and the connection is gone. */
  destroy(): Promise<void>;
}

/** Where the digests of units lie in their headers, and which header bytes the seal (a CRC32C) covers. Bytes. */
export interface DigestLayout {
  /** uint32 CRC32C of the unit's payload. */
  readonly payloadCrcOffset: number;
  /** uint32 CRC32C over header bytes [0, sealOffset) and [sealOffset + 4, headerBytes). */
  readonly sealOffset: number;
  /** 16 bytes: lengthwise XOR of the payload, zero-padded to a multiple of 16. */
  readonly summaryOffset: number;
  /** Parity headers only: k × uint32, the payload CRC of each data unit. */
  readonly crcListOffset: number;
  /** Length of a data unit's header. A parity header is `crcListOffset + 4 * k` long. */
  readonly dataHeaderBytes: number;
}

/** A linear map over GF(2^8), 0x11d, from input units to output units of one stripe. */
export interface CoderSpec {
  /** Data units in a stripe: units below k are data, the others parity. */
  readonly k: number;
  /** Positions of the input units in the stripe, 0 … k+m-1. At most 32. */
  readonly inputUnits: readonly number[];
  /** Positions of the output units. At most 32. May be empty: then ENCODE only computes or checks digests. */
  readonly outputUnits: readonly number[];
  /** outputUnits.length rows of inputUnits.length coefficients, row-major. */
  readonly matrix: Uint8Array;
  readonly digest: DigestLayout;
}

export interface Coder {
  readonly id: number;
  readonly spec: CoderSpec;
  destroy(): void;
}

/** Where a stripe lies in one region. Unit u is at unitsOffset + u·stride; data and parity headers likewise. Bytes. */
export interface StripePlace {
  region: MemoryRegion;
  unitsOffset: number;
  /** Multiple of 64, less than 2^31. */
  stride: number;
  /**
   * The stripe's data length: data unit c is clamp(dataLength − c·stride, 0, stride) long, parity min(stride,
   * dataLength).
   */
  dataLength: number;
  dataHeadersOffset: number;
  dataHeaderStride: number;
  parityHeadersOffset: number;
  parityHeaderStride: number;
}

export interface CodingQueue {
  readonly qpn: number;
  handler: CompletionHandler;
  /**
   * Reads the input units, writes the output units, and handles digests as `flags` say (`Flag.DIGEST_*`).
   * Completes with CHECKSUM_ERROR and the unit's position in `detail` when a checked digest differs.
   */
  postEncode(wrId: number, coder: Coder, place: StripePlace, flags: number): void;
  /** Checks one unit: header seal, payload CRC and summary. `detail`: 1 seal, 2 payload CRC, 3 summary. */
  postVerify(
    wrId: number,
    coder: Coder,
    region: MemoryRegion,
    headerOffset: number,
    headerBytes: number,
    payloadOffset: number,
    payloadBytes: number,
  ): void;
  destroy(): Promise<void>;
}

export interface Listener {
  readonly address: string;
  readonly port: number;
  close(): Promise<void>;
}

export interface ConnectOptions {
  /** 'auto' (default): shared memory between processes of one network namespace, else TCP. */
  readonly transport?: 'auto' | 'tcp' | 'shm';
  /** Default 5000. */
  readonly timeoutMs?: number;
}

/** Monotonic counts since the device was opened; bytes and requests as unsigned integers. */
export interface DeviceCounters {
  requests: number;
  completions: number;
  rings: number;
  wakeups: number;
  bytesSent: number;
  bytesReceived: number;
  bytesEncoded: number;
  bytesVerified: number;
  /** Payload bytes the device copied through memory of its own (bounce buffers); 0 is the promise for units. */
  bytesCopied: number;
  /** Allocations made on the data path after set-up. */
  allocations: number;
  errors: number;
  /** Accesses of peers that were refused: a wrong key, one that was not granted to them, bounds or permission. */
  refusedAccesses: number;
  regions: number;
  queuePairs: number;
}

export interface Device {
  readonly kind: DeviceKind;
  readonly name: string;
  /** Allocates and registers page-aligned memory. @throws {RdmaError} ERR_REGISTRATION_REFUSED */
  allocate(byteLength: number, access?: number): MemoryRegion;
  createCoder(spec: CoderSpec): Coder;
  createCodingQueue(handler: CompletionHandler): CodingQueue;
  /**
   * @throws {RdmaError} ERR_CONNECT when nobody answers at host:port within the time; ERR_DEVICE_KIND when another kind
   *   of device does
   */
  connect(host: string, port: number, options?: ConnectOptions): Promise<QueuePair>;
  /** `onConnection` gets each new queue pair before any completion of it; it must set `handler` and post receives. */
  listen(host: string, port: number, onConnection: (qp: QueuePair) => void): Promise<Listener>;
  /**
   * A UDP socket for packets that a switch computes on. Absent where the device has none.
   * @throws {RdmaError} ERR_LISTEN
   */
  openPacketSocket?(host: string, port: number, options?: PacketSocketOptions): Promise<PacketSocket>;
  /**
   * Releases everything posted since the last call to the device. Called by the device itself after a batch of
   * handlers.
   */
  ring(): void;
  /** Runs at the end of every batch of completions, before the device's own `ring()`. */
  onBatchEnd: (() => void) | undefined;
  /**
   * True while the handlers of a batch run: `onBatchEnd` and a ring are sure to follow. Absent where that is not known.
   */
  readonly isDispatching?: boolean;
  counters(): DeviceCounters;
  /** Destroys what is left (queue pairs, listeners, regions), stops the thread. Idempotent. */
  close(): Promise<void>;
}

/** An expected failure of the device, never a bug. */
export class RdmaError extends Error {
  /** Tells an expected error from a bug: every error of this class is one. */
  readonly isOperating = true;
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'RdmaError';
    this.code = code;
  }
}
