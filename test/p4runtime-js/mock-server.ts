/**
 * A device in memory that follows the P4Runtime specification 1.4 to the letter: what the client is tested against
 * where no switch is. Section numbers are the specification's.
 */
import {
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServiceError,
  type sendUnaryData,
} from '@grpc/grpc-js';
import { Status, isCanonical, rpc, v1, type config } from 'tartan-p4runtime';
import { MockDevice, StatusError, fail } from './mock-device.js';

type Stream = ServerDuplexStream<v1.StreamMessageRequest, v1.StreamMessageResponse>;

interface Controller {
  readonly stream: Stream;
  readonly deviceId: bigint;
  readonly role: string;
  electionId: bigint | undefined;
}

/** Details in trailers, as gRPC's rich errors travel. */
function rich(code: number, message: string, details: v1.Error[]): ServiceError {
  const metadata = new Metadata();
  const status = {
    code,
    message,
    details: details.map((each) => ({
      typeUrl: 'type.googleapis.com/p4.v1.Error',
      value: Buffer.from(v1.Error.encode(each).finish()),
    })),
  };
  metadata.set('grpc-status-details-bin', Buffer.from(rpc.Status.encode(status).finish()));
  return Object.assign(new Error(message), { code, details: message, metadata });
}

function plain(error: unknown): ServiceError {
  const status = error instanceof StatusError ? error.status : Status.INTERNAL;
  return Object.assign(new Error((error as Error).message), {
    code: status,
    details: (error as Error).message,
    metadata: new Metadata(),
  });
}

export class MockServer {
  readonly device = new MockDevice();
  /** Packets that controllers have sent, newest last. */
  readonly packetsOut: v1.PacketOut[] = [];
  readonly digestAcks: v1.DigestListAck[] = [];
  /** A read sends its first message and then nothing, for ever. */
  isStuck = false;
  /** Calls of read that the client has cancelled. */
  cancelledReads = 0;
  readonly #server: Server;
  readonly #deviceId: bigint;
  #controllers: Controller[] = [];
  /** The highest election id ever seen, by role: section 5.3. */
  readonly #highest = new Map<string, bigint>();
  /** A push with this action is never answered, as BMv2 does at times. */
  hangsOn: v1.SetForwardingPipelineConfigRequest_Action | undefined;
  /** What asks for the pipeline is answered when this is. */
  holding: Promise<void> | undefined;
  /** Actions of the pushes so far. */
  readonly pushes: v1.SetForwardingPipelineConfigRequest_Action[] = [];
  /** How often the pipeline was asked for. */
  asked = 0;
  port = 0;

  /** @param maxReceiveBytes  of one request; −1: any */
  constructor(deviceId = 1n, maxReceiveBytes = -1) {
    this.#deviceId = deviceId;
    this.#server = new Server({ 'grpc.max_receive_message_length': maxReceiveBytes });
    this.#server.addService(v1.P4RuntimeService, {
      write: this.#unary((request: v1.WriteRequest) => this.#write(request)),
      read: (call: {
        request: v1.ReadRequest;
        write(response: v1.ReadResponse): void;
        end(): void;
        emit(event: 'error', error: Error): void;
        on(event: 'cancelled', listener: () => void): void;
      }) => {
        call.on('cancelled', () => this.cancelledReads++);
        try {
          this.#requireDevice(call.request.deviceId);
          // In several messages: a client must not count on one.
          for (const entity of this.device.read(call.request.entities)) {
            call.write({ entities: [entity] });
            if (this.isStuck) return;
          }
          call.end();
        } catch (error) {
          call.emit('error', plain(error));
        }
      },
      setForwardingPipelineConfig: (
        call: { request: v1.SetForwardingPipelineConfigRequest },
        done: sendUnaryData<object>,
      ) => {
        this.pushes.push(call.request.action);
        if (call.request.action === this.hangsOn) return;
        this.#unary((request: v1.SetForwardingPipelineConfigRequest) => {
          this.#requirePrimary(request);
          this.device.setPipeline(request.action, request.config);
          return {};
        })(call, done);
      },
      getForwardingPipelineConfig: (
        call: { request: v1.GetForwardingPipelineConfigRequest },
        done: sendUnaryData<object>,
      ) => {
        const answer = this.#unary((request: v1.GetForwardingPipelineConfigRequest) => {
          this.#requireDevice(request.deviceId);
          return { config: this.device.getPipeline(request.responseType) };
        });
        this.asked++;
        if (this.holding === undefined) answer(call, done);
        else
          void this.holding.then(() => {
            answer(call, done);
          });
      },
      streamChannel: (stream: Stream) => this.#streamChannel(stream),
      capabilities: this.#unary(() => ({ p4runtimeApiVersion: '1.4.1' })),
    });
  }

  /** Whether one of the controllers is primary. */
  get hasPrimary(): boolean {
    return this.#primaryOf('') !== undefined;
  }

  /** @param port  0: any free one */
  async listen(credentials = ServerCredentials.createInsecure(), port = 0): Promise<string> {
    this.port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(`127.0.0.1:${port}`, credentials, (error, bound) => {
        if (error) reject(error);
        else resolve(bound);
      });
    });
    return `127.0.0.1:${this.port}`;
  }

  /** Ends at once, streams included. */
  stop(): void {
    this.#server.forceShutdown();
  }

  /** To every controller of the default role that is primary. */
  injectPacket(packet: v1.PacketIn): void {
    this.#toPrimary({ update: { $case: 'packet', value: packet } });
  }
  injectDigest(list: v1.DigestList): void {
    this.#toPrimary({ update: { $case: 'digest', value: list } });
  }
  get p4info(): config.P4Info | undefined {
    return this.device.p4info;
  }

  #toPrimary(message: v1.StreamMessageResponse): void {
    this.#primaryOf('')?.stream.write(message);
  }

  #unary<Request, Response>(handle: (request: Request) => Response) {
    return (call: { request: Request }, done: sendUnaryData<Response>) => {
      try {
        done(null, handle(call.request));
      } catch (error) {
        done(error instanceof StatusError ? plain(error) : (error as ServiceError));
      }
    };
  }

  #write(request: v1.WriteRequest): v1.WriteResponse {
    this.#requirePrimary(request);
    if (request.atomicity !== v1.WriteRequest_Atomicity.CONTINUE_ON_ERROR)
      fail(Status.UNIMPLEMENTED, 'only CONTINUE_ON_ERROR');
    if (this.p4info === undefined) fail(Status.FAILED_PRECONDITION, 'no pipeline');
    const errors = request.updates.map((update): v1.Error => {
      try {
        this.device.apply(update);
        return { canonicalCode: 0, message: '', space: '', code: 0, details: undefined };
      } catch (error) {
        if (!(error instanceof StatusError)) throw error;
        return { canonicalCode: error.status, message: error.message, space: 'mock', code: 7, details: undefined };
      }
    });
    // Section 12.3: one error per update in order, successes included, under UNKNOWN.
    if (errors.some((error) => error.canonicalCode !== 0)) throw rich(Status.UNKNOWN, 'some updates failed', errors);
    return {};
  }

  #requireDevice(deviceId: bigint): void {
    if (deviceId !== this.#deviceId) fail(Status.NOT_FOUND, `no device ${deviceId}`);
  }

  #requirePrimary(request: { deviceId: bigint; role: string; electionId: v1.Uint128 | undefined }): void {
    this.#requireDevice(request.deviceId);
    const id = fromWire(request.electionId),
      primary = this.#primaryOf(request.role);
    if (id === undefined || primary === undefined || primary.electionId !== id)
      fail(Status.PERMISSION_DENIED, 'not primary');
  }

  /** Section 5.3: the live controller whose id is the highest ever seen, or none. */
  #primaryOf(role: string): Controller | undefined {
    const highest = this.#highest.get(role);
    return highest === undefined
      ? undefined
      : this.#controllers.find((each) => each.role === role && each.electionId === highest);
  }

  #streamChannel(stream: Stream): void {
    let controller: Controller | undefined;
    const leave = () => {
      if (controller === undefined || !this.#controllers.includes(controller)) return;
      const wasPrimary = this.#primaryOf(controller.role) === controller;
      this.#controllers = this.#controllers.filter((each) => each !== controller);
      // Nobody is promoted in its place; the others learn that there is no primary.
      if (wasPrimary) this.#tellAll(controller.role);
    };
    const refuse = (error: unknown) => {
      leave();
      stream.emit('error', plain(error));
    };
    stream.on('data', (request: v1.StreamMessageRequest) => {
      try {
        if (request.update?.$case === 'arbitration')
          controller = this.#arbitrate(stream, controller, request.update.value);
        else if (controller === undefined) fail(Status.FAILED_PRECONDITION, 'arbitration first');
        else this.#streamMessage(controller, request);
      } catch (error) {
        refuse(error);
      }
    });
    stream.on('end', () => {
      leave();
      stream.end();
    });
    stream.on('cancelled', leave);
    stream.on('close', leave);
  }

  #arbitrate(stream: Stream, before: Controller | undefined, update: v1.MasterArbitrationUpdate): Controller {
    const role = update.role?.name ?? '',
      electionId = fromWire(update.electionId);
    if (before !== undefined && (before.deviceId !== update.deviceId || before.role !== role))
      fail(Status.FAILED_PRECONDITION, 'device and role of a stream do not change');
    this.#requireDevice(update.deviceId);
    if (
      electionId !== undefined &&
      this.#controllers.some((each) => each !== before && each.role === role && each.electionId === electionId)
    )
      fail(Status.INVALID_ARGUMENT, `election id ${electionId} is in use`);
    const primaryBefore = this.#primaryOf(role);
    const controller = before ?? { stream, deviceId: update.deviceId, role, electionId };
    if (before === undefined) this.#controllers.push(controller);
    controller.electionId = electionId;
    if (electionId !== undefined && electionId >= (this.#highest.get(role) ?? 0n)) this.#highest.set(role, electionId);
    const primaryNow = this.#primaryOf(role);
    // Section 16.1: all hear of a change of the primary, else only the one who asked.
    if (primaryNow !== primaryBefore || primaryNow === controller) this.#tellAll(role);
    else this.#tell(controller);
    return controller;
  }

  #tellAll(role: string): void {
    for (const each of this.#controllers.filter((one) => one.role === role)) this.#tell(each);
  }

  #tell(controller: Controller): void {
    const primary = this.#primaryOf(controller.role),
      highest = this.#highest.get(controller.role);
    const code = primary === undefined ? Status.NOT_FOUND : primary === controller ? Status.OK : Status.ALREADY_EXISTS;
    controller.stream.write({
      update: {
        $case: 'arbitration',
        value: {
          deviceId: controller.deviceId,
          role: controller.role === '' ? undefined : { id: 0n, name: controller.role, config: undefined },
          electionId:
            highest === undefined ? undefined : { high: highest >> 64n, low: highest & 0xffff_ffff_ffff_ffffn },
          status: { code, message: '', details: [] },
        },
      },
    });
  }

  #streamMessage(controller: Controller, { update }: v1.StreamMessageRequest): void {
    const primary = this.#primaryOf(controller.role) === controller;
    const refuse = (status: number, message: string, details: v1.StreamError['details']) => {
      controller.stream.write({
        update: { $case: 'error', value: { canonicalCode: status, message, space: 'mock', code: 0, details } },
      });
    };
    if (update?.$case === 'packet') {
      const details = { $case: 'packetOut' as const, value: { packetOut: update.value } };
      if (!primary) return refuse(Status.PERMISSION_DENIED, 'not primary', details);
      const known =
        this.p4info?.controllerPacketMetadata.find((each) => each.preamble?.name === 'packet_out')?.metadata ?? [];
      const right =
        update.value.metadata.length === known.length &&
        update.value.metadata.every(
          (each) => isCanonical(each.value) && known.some((field) => field.id === each.metadataId),
        );
      if (!right) return refuse(Status.INVALID_ARGUMENT, 'metadata does not fit', details);
      this.packetsOut.push(update.value);
      this.device.packetOut(update.value, this);
    } else if (update?.$case === 'digestAck') {
      this.digestAcks.push(update.value);
    }
  }
}

function fromWire(id: v1.Uint128 | undefined): bigint | undefined {
  const value = id === undefined ? 0n : (id.high << 64n) | id.low;
  return value === 0n ? undefined : value;
}
