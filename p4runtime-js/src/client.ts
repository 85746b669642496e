/**
 * A controller's connection to one device.
 *
 *     connect()   channel ready; reads, capabilities and pipeline reads work
 *     arbitrate() stream open, election id sent; with the highest id ever seen, this client is primary and may write
 *     'closed'    the stream ended: not primary any more, nothing is reopened behind the caller's back
 *
 * Every promise is rejected with a {@link P4RuntimeError}.
 */
import { EventEmitter } from 'node:events';
import { Metadata, credentials, type ChannelOptions, type ClientDuplexStream, type ServiceError } from '@grpc/grpc-js';
import {
  ForwardingPipelineConfig,
  GetForwardingPipelineConfigRequest_ResponseType as ResponseType,
  P4RuntimeClient as Stub,
  SetForwardingPipelineConfigRequest_Action as PipelineAction,
  Update_Type as UpdateType,
  WriteRequest_Atomicity as Atomicity,
  type DigestList,
  type Entity,
  type IdleTimeoutNotification,
  type MasterArbitrationUpdate,
  type PacketIn,
  type PacketOut,
  type StreamError,
  type StreamMessageRequest,
  type StreamMessageResponse,
  type Uint128,
  Update,
} from './generated/p4/v1/p4runtime.js';
import type { P4Info } from './generated/p4/config/v1/p4info.js';
import type { Any } from './generated/google/protobuf/any.js';
import { joined, rpcError, writeError } from './batch-errors.js';
import { P4RuntimeError, Status, invalid, statusName } from './errors.js';

export interface TlsOptions {
  /** PEM; the system's when absent. */
  rootCertificates?: Buffer;
  /** PEM, both or neither: this client's own. */
  privateKey?: Buffer;
  certificateChain?: Buffer;
  /** The name to expect in the server's certificate, if it is not the address's. */
  serverName?: string;
}

export interface ConnectOptions {
  /** host:port, or unix:path. */
  address: string;
  /** Never 0: the specification reserves it. */
  deviceId: bigint | number;
  /** Plain TCP when absent. */
  tls?: TlsOptions;
  /** The default role, with full access, when absent. */
  role?: string;
  /** Of every call but the stream, and of each message of a read, in milliseconds; 5000 when absent. */
  deadlineMs?: number;
  /**
   * Between pings of an idle connection, in milliseconds; 5 minutes when absent. By default a gRPC server, BMv2's too,
   * closes the connection of a client that pings more often.
   */
  keepaliveMs?: number;
}

/** Whether this client is primary, by the server's last word. */
export interface Mastership {
  readonly primary: boolean;
  /** The primary's, where there is one; 128 bits. */
  readonly electionId: bigint | undefined;
}

export interface Pipeline {
  p4info?: P4Info;
  /** For BMv2, the JSON that p4c wrote. */
  deviceConfig?: Uint8Array;
  cookie?: bigint;
}

export interface ClientEvents {
  /** After every arbitration message of the server. */
  mastership: [Mastership];
  packet: [PacketIn];
  digest: [DigestList];
  idle: [IdleTimeoutNotification];
  /** The server refused something sent on the stream, for example a packet. */
  'stream-error': [StreamError];
  /** The stream has ended; the error says why. Not emitted by close(). */
  closed: [P4RuntimeError];
}

/**
 * Most updates in one request. The errors of a batch come in gRPC trailers, about 100 bytes an update beside 8192, and
 * Node's HTTP/2 takes 64 KiB of headers. A longer batch is sent in several requests.
 */
export const MAX_BATCH = 400;
/** Most bytes of updates in one request, unless one update alone has more: a gRPC server takes 4 MiB by default. */
export const MAX_BATCH_BYTES = 1 << 20;

const KEEPALIVE_MS = 300_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * @throws {P4RuntimeError} ERR_P4_CONNECT when no server answers within the deadline, ERR_P4_INVALID for a device id or
 *         a time that cannot be
 */
export async function connect(options: ConnectOptions): Promise<P4RuntimeClient> {
  const { deadlineMs = 5000, keepaliveMs = KEEPALIVE_MS } = options;
  const deviceId = integer(options.deviceId, 'device id', 64);
  if (deviceId === 0n) throw invalid('device id 0 is reserved: expected 1 or more');
  for (const [name, ms] of Object.entries({ deadlineMs, keepaliveMs }))
    if (!Number.isInteger(ms) || ms < 1 || ms > MAX_TIMER_MS)
      throw invalid(`${name} ${ms}: expected a whole number of milliseconds, 1 to ${MAX_TIMER_MS}`);
  const { tls } = options;
  const secure =
    tls === undefined
      ? credentials.createInsecure()
      : credentials.createSsl(tls.rootCertificates ?? null, tls.privateKey ?? null, tls.certificateChain ?? null);
  const channelOptions: ChannelOptions = {
    // Pipelines are megabytes.
    'grpc.max_send_message_length': -1,
    'grpc.max_receive_message_length': -1,
    'grpc.keepalive_time_ms': keepaliveMs,
    'grpc.keepalive_timeout_ms': 5000,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
    // A proxy of the environment is for the web, not for switches.
    'grpc.enable_http_proxy': 0,
    // Two clients of one process are two controllers.
    'grpc.use_local_subchannel_pool': 1,
    ...(tls?.serverName === undefined ? {} : { 'grpc.ssl_target_name_override': tls.serverName }),
  };
  const stub = new Stub(options.address, secure, channelOptions);
  await new Promise<void>((resolve, reject) => {
    stub.waitForReady(Date.now() + deadlineMs, (error) => {
      if (!error) return resolve();
      stub.close();
      reject(
        new P4RuntimeError(
          'ERR_P4_CONNECT',
          `Cannot connect to ${options.address}: no answer within ${deadlineMs} ms`,
          { cause: error },
        ),
      );
    });
  });
  return new P4RuntimeClient(stub, options.address, deviceId, options.role ?? '', deadlineMs);
}

interface Waiting {
  resolve(mastership: Mastership): void;
  reject(error: Error): void;
}

export class P4RuntimeClient extends EventEmitter<ClientEvents> {
  readonly deviceId: bigint;
  readonly role: string;
  /** Of the last arbitration. */
  mastership: Mastership = { primary: false, electionId: undefined };
  /** The highest that the server has named, also of one that is gone: who wants to be primary has to reach it. */
  highestElectionId: bigint | undefined;
  readonly #stub: Stub;
  readonly #address: string;
  readonly #deadlineMs: number;
  #stream: ClientDuplexStream<StreamMessageRequest, StreamMessageResponse> | undefined;
  #electionId: bigint | undefined;
  #waiting: Waiting[] = [];
  #closed = false;

  /** Use {@link connect}. */
  constructor(stub: Stub, address: string, deviceId: bigint, role: string, deadlineMs: number) {
    super();
    this.#stub = stub;
    this.#address = address;
    this.deviceId = deviceId;
    this.role = role;
    this.#deadlineMs = deadlineMs;
  }

  get primary(): boolean {
    return this.mastership.primary;
  }
  /** What this client last sent; undefined before, or as a backup that never wants to be primary. */
  get electionId(): bigint | undefined {
    return this.#electionId;
  }

  /**
   * Opens the stream if it is not open, and says under which id this client stands for election. Call it again with a
   * higher id to take over.
   *
   * @param electionId  1 … 2^128 − 1; undefined: never primary, only listening
   * @returns the server's answer: primary, or backup to whom
   * @throws {P4RuntimeError} ERR_P4_ARBITRATION when the server refuses and ends the stream (the id is another
   *         client's, the
   *         device is unknown), ERR_P4_CLOSED when it ends otherwise, ERR_P4_CONNECT when no answer comes within the
   *         deadline
   */
  async arbitrate(electionId: bigint | number | undefined, options: { roleConfig?: Any } = {}): Promise<Mastership> {
    const id = electionId === undefined ? undefined : integer(electionId, 'election id', 128);
    if (id === 0n) throw invalid('election id 0: expected 1 to 2^128 - 1');
    if (this.#closed) throw closedError(this.#address);
    this.#openStream();
    this.#electionId = id;
    const role = this.role === '' ? undefined : { id: 0n, name: this.role, config: options.roleConfig };
    return new Promise<Mastership>((resolve, reject) => {
      const timer = setTimeout(
        () =>
          waiting.reject(
            new P4RuntimeError(
              'ERR_P4_CONNECT',
              `Cannot arbitrate at ${this.#address}: no answer within ${this.#deadlineMs} ms`,
            ),
          ),
        this.#deadlineMs,
      );
      const done = () => {
        clearTimeout(timer);
        this.#waiting = this.#waiting.filter((each) => each !== waiting);
      };
      const waiting: Waiting = {
        resolve: (value) => {
          done();
          resolve(value);
        },
        reject: (error) => {
          done();
          reject(error);
        },
      };
      this.#waiting.push(waiting);
      this.#send({
        update: {
          $case: 'arbitration',
          value: {
            deviceId: this.deviceId,
            role,
            electionId: id === undefined ? undefined : toUint128(id),
            status: undefined,
          },
        },
      });
    });
  }

  /**
   * Inserts, modifies or deletes. Updates of one batch may be applied in any order.
   *
   * @throws {WriteError} naming every update that failed
   * @throws {P4RuntimeError} ERR_P4_NOT_PRIMARY, before anything is sent when this client knows it
   */
  async write(
    updates: readonly Update[],
    { atomicity = Atomicity.CONTINUE_ON_ERROR }: { atomicity?: Atomicity } = {},
  ): Promise<void> {
    const electionId = this.#requirePrimary('write');
    const parts = batches(updates);
    if (parts.length > 1 && atomicity !== Atomicity.CONTINUE_ON_ERROR)
      throw invalid(
        `an atomic batch of ${updates.length} updates: expected at most ${MAX_BATCH}, of ${MAX_BATCH_BYTES} bytes`,
      );
    const failures: P4RuntimeError[] = [];
    for (const [first, end] of parts) {
      const part = updates.slice(first, end);
      const request = { deviceId: this.deviceId, roleId: 0n, role: this.role, electionId, updates: part, atomicity };
      try {
        await this.#unary((done) => this.#stub.write(request, new Metadata(), { deadline: this.#deadline() }, done));
      } catch (error) {
        const failure = writeError(error as ServiceError, part, first);
        // Of a request that failed as a whole nobody knows what was done: the rest would not help.
        if (failure.code !== 'ERR_P4_WRITE') throw failure;
        failures.push(failure);
      }
    }
    if (failures.length > 0) throw joined(failures, updates.length);
  }

  insert(...entities: Entity[]): Promise<void> {
    return this.write(entities.map((entity) => ({ type: UpdateType.INSERT, entity })));
  }
  modify(...entities: Entity[]): Promise<void> {
    return this.write(entities.map((entity) => ({ type: UpdateType.MODIFY, entity })));
  }
  delete(...entities: Entity[]): Promise<void> {
    return this.write(entities.map((entity) => ({ type: UpdateType.DELETE, entity })));
  }

  /**
   * Reads entities; fields left at their default are wildcards. Leaving the loop early cancels the call.
   * The deadline is each message's; what the caller does with an entity may take any time.
   *
   * @throws {P4RuntimeError} ERR_P4_RPC
   */
  async *read(...entities: Entity[]): AsyncGenerator<Entity, void, void> {
    const call = this.#stub.read({ deviceId: this.deviceId, role: this.role, entities }, new Metadata());
    const messages = (call as AsyncIterable<{ entities: Entity[] }>)[Symbol.asyncIterator]();
    let isComplete = false,
      isSilent = false;
    try {
      for (;;) {
        const timer = setTimeout(() => {
          isSilent = true;
          call.cancel();
        }, this.#deadlineMs);
        let next: IteratorResult<{ entities: Entity[] }, unknown>;
        try {
          next = await messages.next();
        } catch (error) {
          isComplete = true;
          if (isSilent)
            throw new P4RuntimeError('ERR_P4_RPC', `Cannot read: no message within ${this.#deadlineMs} ms`, {
              cause: error,
              status: Status.DEADLINE_EXCEEDED,
            });
          throw rpcError('Cannot read', error as ServiceError);
        } finally {
          clearTimeout(timer);
        }
        if (next.done === true) {
          isComplete = true;
          return;
        }
        yield* next.value.entities;
      }
    } finally {
      if (!isComplete) {
        // What the cancelled call still says concerns nobody.
        call.on('error', () => undefined);
        call.cancel();
      }
    }
  }

  async readAll(...entities: Entity[]): Promise<Entity[]> {
    const found: Entity[] = [];
    for await (const entity of this.read(...entities)) found.push(entity);
    return found;
  }

  /**
   * @param action  VERIFY, VERIFY_AND_SAVE, VERIFY_AND_COMMIT, COMMIT (without a pipeline) or RECONCILE_AND_COMMIT
   * @throws {P4RuntimeError} ERR_P4_NOT_PRIMARY, ERR_P4_RPC
   */
  async setPipeline(
    pipeline: Pipeline | undefined,
    action: PipelineAction = PipelineAction.VERIFY_AND_COMMIT,
  ): Promise<void> {
    const electionId = this.#requirePrimary('set the pipeline');
    if ((action === PipelineAction.COMMIT) !== (pipeline === undefined))
      throw invalid(`${PipelineAction[action]} ${pipeline ? 'takes no' : 'needs a'} pipeline`);
    const config =
      pipeline === undefined
        ? undefined
        : {
            p4info: pipeline.p4info,
            p4DeviceConfig: Buffer.from(pipeline.deviceConfig ?? []),
            cookie: pipeline.cookie === undefined ? undefined : { cookie: pipeline.cookie },
          };
    const request = { deviceId: this.deviceId, roleId: 0n, role: this.role, electionId, action, config };
    await this.#unary((done) =>
      this.#stub.setForwardingPipelineConfig(request, new Metadata(), { deadline: this.#deadline(4) }, done),
    ).catch((error: ServiceError) => {
      throw rpcError('Cannot set the pipeline', error);
    });
  }

  /** @throws {P4RuntimeError} ERR_P4_RPC with status FAILED_PRECONDITION when no pipeline was ever set */
  async getPipeline(responseType: ResponseType = ResponseType.ALL): Promise<Pipeline> {
    const response = await this.#unary<{ config?: ForwardingPipelineConfig | undefined }>((done) =>
      this.#stub.getForwardingPipelineConfig(
        { deviceId: this.deviceId, responseType },
        new Metadata(),
        { deadline: this.#deadline(4) },
        done,
      ),
    ).catch((error: ServiceError) => {
      throw rpcError('Cannot get the pipeline', error);
    });
    const { config } = response;
    return {
      ...(config?.p4info === undefined ? {} : { p4info: config.p4info }),
      ...(config === undefined || config.p4DeviceConfig.length === 0 ? {} : { deviceConfig: config.p4DeviceConfig }),
      ...(config?.cookie === undefined ? {} : { cookie: config.cookie.cookie }),
    };
  }

  /** The version of the specification that the server implements, for example '1.4.1'. */
  async capabilities(): Promise<string> {
    const response = await this.#unary<{ p4runtimeApiVersion: string }>((done) =>
      this.#stub.capabilities({}, new Metadata(), { deadline: this.#deadline() }, done),
    ).catch((error: ServiceError) => {
      throw rpcError('Cannot ask for capabilities', error);
    });
    return response.p4runtimeApiVersion;
  }

  /** Hands a packet to the device. Refusals come as 'stream-error'. */
  sendPacket(packet: PacketOut): void {
    this.#requirePrimary('send a packet');
    this.#send({ update: { $case: 'packet', value: packet } });
  }

  /** Without it the device withholds further digests of the list's entries until its timeout. */
  acknowledgeDigest(list: DigestList): void {
    this.#requirePrimary('acknowledge a digest');
    this.#send({ update: { $case: 'digestAck', value: { digestId: list.digestId, listId: list.listId } } });
  }

  /** Ends the stream and the channel. Nothing is emitted; what is still waiting is rejected with ERR_P4_CLOSED. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const stream = this.#stream;
    this.#stream = undefined;
    this.#lose(closedError(this.#address));
    stream?.cancel();
    this.#stub.close();
  }

  #openStream(): void {
    if (this.#stream !== undefined) return;
    const stream = this.#stub.streamChannel();
    this.#stream = stream;
    stream.on('data', (message: StreamMessageResponse) => {
      if (this.#stream === stream) this.#receive(message);
    });
    stream.on('error', (error: ServiceError) => this.#ended(stream, error));
    stream.on('end', () => this.#ended(stream, undefined));
  }

  /** 'error' carries the status, and comes after 'end': only then is the reason known. */
  #ended(
    stream: ClientDuplexStream<StreamMessageRequest, StreamMessageResponse>,
    error: ServiceError | undefined,
  ): void {
    if (this.#stream !== stream) return;
    if (error === undefined) {
      setImmediate(() =>
        this.#ended(
          stream,
          Object.assign(new Error('the server ended the stream'), {
            code: Status.OK,
            details: 'the server ended the stream',
          }) as ServiceError,
        ),
      );
      return;
    }
    this.#stream = undefined;
    const refused = this.#waiting.length > 0 && error.code !== Status.UNAVAILABLE && error.code !== Status.OK;
    const failure = new P4RuntimeError(
      refused ? 'ERR_P4_ARBITRATION' : 'ERR_P4_CLOSED',
      `The stream to ${this.#address} ended: ${statusName(error.code)} ${error.details}`,
      { cause: error, status: error.code },
    );
    this.#lose(failure);
    this.emit('closed', failure);
  }

  #lose(error: P4RuntimeError): void {
    this.mastership = { primary: false, electionId: undefined };
    for (const waiting of this.#waiting.slice()) waiting.reject(error);
  }

  #receive({ update }: StreamMessageResponse): void {
    switch (update?.$case) {
      case 'arbitration':
        return this.#arbitrated(update.value);
      case 'packet':
        this.emit('packet', update.value);
        return;
      case 'digest':
        this.emit('digest', update.value);
        return;
      case 'idleTimeoutNotification':
        this.emit('idle', update.value);
        return;
      case 'error':
        this.emit('stream-error', update.value);
        return;
      case 'other':
      case undefined:
        return; // of a later version: nothing to do with it
    }
  }

  #arbitrated(update: MasterArbitrationUpdate): void {
    const primaryId = update.electionId === undefined ? undefined : fromUint128(update.electionId);
    const noPrimary = update.status?.code === Status.NOT_FOUND;
    if (primaryId !== undefined && primaryId > (this.highestElectionId ?? 0n)) this.highestElectionId = primaryId;
    this.mastership = {
      primary: (update.status?.code ?? Status.OK) === Status.OK,
      electionId: noPrimary ? undefined : primaryId,
    };
    for (const waiting of this.#waiting.slice()) waiting.resolve(this.mastership);
    this.emit('mastership', this.mastership);
  }

  #requirePrimary(what: string): Uint128 {
    if (this.#closed) throw closedError(this.#address);
    if (!this.mastership.primary || this.#electionId === undefined) {
      const who =
        this.mastership.electionId === undefined ? 'there is none' : `election id ${this.mastership.electionId} is`;
      throw new P4RuntimeError(
        'ERR_P4_NOT_PRIMARY',
        `Cannot ${what}: this client (election id ${this.#electionId ?? 'none'}) is not primary, ${who}`,
      );
    }
    return toUint128(this.#electionId);
  }

  #send(message: StreamMessageRequest): void {
    if (this.#stream === undefined) throw closedError(this.#address);
    this.#stream.write(message);
  }

  #unary<T>(call: (done: (error: ServiceError | null, response: T) => void) => unknown): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      call((error, response) => {
        if (error) reject(error);
        else resolve(response);
      });
    });
  }

  #deadline(factor = 1): number {
    return Date.now() + factor * this.#deadlineMs;
  }
}

function closedError(address: string): P4RuntimeError {
  return new P4RuntimeError('ERR_P4_CLOSED', `The connection to ${address} is closed`);
}

/** Of updates sent in several requests, where each begins and ends. */
function batches(updates: readonly Update[]): [first: number, end: number][] {
  const parts: [number, number][] = [];
  let first = 0,
    bytes = 0;
  for (const [i, update] of updates.entries()) {
    const size = Update.encode(update).finish().length;
    if (i > first && (i - first >= MAX_BATCH || bytes + size > MAX_BATCH_BYTES)) {
      parts.push([first, i]);
      first = i;
      bytes = 0;
    }
    bytes += size;
  }
  if (updates.length > 0) parts.push([first, updates.length]);
  return parts;
}

/** @throws {P4RuntimeError} ERR_P4_INVALID */
function integer(value: bigint | number, what: string, bits: number): bigint {
  if (typeof value !== 'bigint' && !Number.isSafeInteger(value))
    throw invalid(`${what} ${value}: expected a whole number (a bigint from 2^53 on)`);
  const whole = BigInt(value);
  if (whole < 0n || whole >> BigInt(bits) !== 0n)
    throw invalid(`${what} ${whole}: expected at least 1, and less than 2^${bits}`);
  return whole;
}

function toUint128(id: bigint): Uint128 {
  return { high: id >> 64n, low: id & 0xffff_ffff_ffff_ffffn };
}
function fromUint128({ high, low }: Uint128): bigint {
  return (high << 64n) | low;
}
