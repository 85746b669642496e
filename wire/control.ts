/**
 * The control protocol (proto/control.proto) over gRPC: serving it, and calling it with deadlines and one-line errors.
 * Without a secret it is served on loopback only; with one every call and every answer is authenticated
 * (control-token.ts).
 */
import {
  Client,
  Metadata,
  Server,
  ServerCredentials,
  credentials,
  logVerbosity,
  setLogVerbosity,
  status,
  type ChannelOptions,
  type ServiceDefinition,
  type ServiceError,
  type handleUnaryCall,
} from '@grpc/grpc-js';
import type { EventEmitter } from 'node:events';
import { isIPv6 } from 'node:net';
import { PROOF_KEY, TOKEN_KEY, TokenChecker, isProof, makeProof, makeToken, type Token } from './control-token.js';
import { isOutOfFiles, TartanError, TOO_MANY_FILES, errorFromPeer, type ErrorCode } from './errors.js';
import { answerOrRefuse, detach } from './front-door.js';
import {
  NodeControlService,
  SwitchControlService,
  type NodeStatus,
  type OpenGroupsReply,
  type OpenGroupsRequest,
  type SwitchStatus,
} from './generated/control.js';
import { isLoopback } from './loopback.js';

// Every error is thrown or answered; gRPC would print some of them too. Its own variable turns that on.
if (process.env['GRPC_VERBOSITY'] === undefined) setLogVerbosity(logVerbosity.NONE);

/** Largest message either way, bytes. */
export const MAX_CONTROL_BYTES = 64 << 10;
const DEADLINE_MS = 5_000;
/** How long close() lets calls under way finish. */
const GRACE_MS = 1_000;
/** An error's stable code, in an answer's trailer. */
const CODE_KEY = 'tartan-code';

type Awaitable<T> = T | Promise<T>;

/** What a switch agent does; an operating error it throws reaches the caller as it is, a bug ends the process. */
export interface SwitchControlHandlers {
  /** @param program  "parity" or "forward" */
  load(program: string): Awaitable<SwitchStatus>;
  unload(): Awaitable<SwitchStatus>;
  status(): Awaitable<SwitchStatus>;
  /** Only of a packet switch. */
  openGroups?(request: OpenGroupsRequest): Awaitable<OpenGroupsReply>;
}

export interface NodeControlHandlers {
  status(): Awaitable<NodeStatus>;
}

export interface ServeControlOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** The cluster's; needed beyond loopback. */
  readonly secret?: string | undefined;
  readonly services: { readonly switch?: SwitchControlHandlers; readonly node?: NodeControlHandlers };
}

export interface ControlServer {
  readonly port: number;
  /** Calls under way get a second to finish. */
  close(): Promise<void>;
}

/**
 * Serves the control protocol.
 *
 * @throws {TartanError} ERR_SECRET_REQUIRED: beyond loopback without a secret · ERR_IN_USE: the port is taken ·
 * ERR_LISTEN: the address cannot be listened on
 */
export async function serveControl({ host, port, secret, services }: ServeControlOptions): Promise<ControlServer> {
  const address = addressOf(host, port);
  if (!secret && !isLoopback(host)) {
    throw new TartanError(
      'ERR_SECRET_REQUIRED',
      `Cannot listen for control on ${address}: beyond loopback a cluster secret is required`,
    );
  }
  const server = new Server({
    'grpc.max_receive_message_length': MAX_CONTROL_BYTES,
    'grpc.max_send_message_length': MAX_CONTROL_BYTES,
    'grpc.max_concurrent_streams': 64,
  });
  const checker = secret ? { secret, tokens: new TokenChecker(secret) } : undefined;
  const { switch: onSwitch, node } = services;
  if (onSwitch) {
    addService(server, checker, [
      serving(SwitchControlService.load, (request) => onSwitch.load(request.program)),
      serving(SwitchControlService.unload, () => onSwitch.unload()),
      serving(SwitchControlService.status, () => onSwitch.status()),
      serving(SwitchControlService.openGroups, (request) => {
        if (onSwitch.openGroups === undefined)
          throw new TartanError(
            'ERR_ARGUMENT',
            'Cannot open groups: this switch takes stripes over rings, not as packets',
          );
        return onSwitch.openGroups(request);
      }),
    ]);
  }
  if (node) addService(server, checker, [serving(NodeControlService.status, () => node.status())]);
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, boundPort) => {
      if (!error) {
        resolve(boundPort);
        return;
      }
      const code = /EADDRINUSE/.test(error.message) ? 'ERR_IN_USE' : 'ERR_LISTEN';
      reject(
        new TartanError(code, `Cannot listen for control on ${address}: ${oneLine(error.message)}`, { cause: error }),
      );
    });
  });
  // gRPC listens for errors of its servers only until they are bound; later ones are connections that could not be
  // accepted because no descriptor was left: who comes again may be served.
  for (const http2Server of (server as unknown as { http2Servers: Map<EventEmitter, unknown> }).http2Servers.keys())
    http2Server.on('error', () => undefined);
  return {
    port: bound,
    close: () =>
      new Promise((resolve) => {
        const force = setTimeout(() => {
          server.forceShutdown();
        }, GRACE_MS);
        server.tryShutdown(() => {
          clearTimeout(force);
          resolve();
        });
      }),
  };
}

export interface ControlClientOptions {
  readonly secret?: string | undefined;
  /** For each call; default 5,000. */
  readonly deadlineMs?: number;
}

/**
 * Calls one switch agent. All methods
 * @throws {TartanError} ERR_CONNECT: nobody there who serves this · ERR_DEADLINE · ERR_AUTHENTICATION · ERR_MALFORMED:
 * a message over 64 KiB or unreadable · and what the agent throws
 */
export class SwitchControl {
  readonly #caller: Caller;
  constructor(host: string, port: number, options: ControlClientOptions = {}) {
    this.#caller = new Caller('switch', host, port, options);
  }
  load(program: string): Promise<SwitchStatus> {
    return this.#caller.call(SwitchControlService.load, `load '${program}' into`, { program });
  }
  unload(): Promise<SwitchStatus> {
    return this.#caller.call(SwitchControlService.unload, 'unload the program of', {});
  }
  status(): Promise<SwitchStatus> {
    return this.#caller.call(SwitchControlService.status, 'ask the status of', {});
  }
  /**
   * Numbers for ordered sets of nodes, entered in a packet switch; at most a few hundred sets a call (64 KiB).
   *
   * @throws {TartanError} ERR_STALE_MAP: the agent's map is of another epoch · ERR_CAPACITY: no room for more groups ·
   * ERR_NOT_PROGRAMMABLE: it has no parity program now · ERR_ARGUMENT: not a packet switch, or k, m or a set that it
   * cannot serve
   */
  openGroups(request: OpenGroupsRequest): Promise<OpenGroupsReply> {
    return this.#caller.call(SwitchControlService.openGroups, 'open groups in', request);
  }
  close(): void {
    this.#caller.close();
  }
}

/** Calls one storage node; errors as SwitchControl's. */
export class NodeControl {
  readonly #caller: Caller;
  constructor(host: string, port: number, options: ControlClientOptions = {}) {
    this.#caller = new Caller('node', host, port, options);
  }
  status(): Promise<NodeStatus> {
    return this.#caller.call(NodeControlService.status, 'ask the status of', {});
  }
  close(): void {
    this.#caller.close();
  }
}

/** One rpc of a generated service. */
interface Method<Request, Response> {
  readonly path: string;
  readonly requestSerialize: (value: Request) => Buffer;
  readonly requestDeserialize: (value: Buffer) => Request;
  readonly responseSerialize: (value: Response) => Buffer;
  readonly responseDeserialize: (value: Buffer) => Response;
}

/** A method with what answers it: bytes to bytes. */
interface Serving {
  readonly path: string;
  readonly answer: (request: Buffer) => Promise<Buffer>;
}

function serving<Request, Response>(
  method: Method<Request, Response>,
  handler: (request: Request) => Awaitable<Response>,
): Serving {
  return {
    path: method.path,
    answer: async (bytes) => {
      let request: Request;
      try {
        request = method.requestDeserialize(bytes);
      } catch (cause) {
        throw new TartanError('ERR_MALFORMED', `Cannot serve ${method.path}: the request cannot be read`, { cause });
      }
      return method.responseSerialize(await handler(request));
    },
  };
}

interface Checker {
  readonly secret: string;
  readonly tokens: TokenChecker;
}

/** The server's side of each call: the token over the very bytes that came, then the handler, then the proof. */
function addService(server: Server, checker: Checker | undefined, methods: readonly Serving[]): void {
  const asIs = (bytes: Buffer) => bytes;
  const definition: ServiceDefinition = Object.fromEntries(
    methods.map(({ path }) => [
      path,
      {
        path,
        requestStream: false,
        responseStream: false,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      },
    ]),
  );
  const implementation: Record<string, handleUnaryCall<Buffer, Buffer>> = {};
  for (const { path, answer } of methods) {
    implementation[path] = (call, done) => {
      const token = call.metadata.get(TOKEN_KEY)[0];
      const nonce = checker?.tokens.accept(typeof token === 'string' ? token : undefined, path, call.request);
      if (checker && nonce === undefined) {
        done({
          code: status.UNAUTHENTICATED,
          details: 'the call does not prove that it knows the cluster secret, or the clocks differ by more than 30 s',
        });
        return;
      }
      const serve = async (): Promise<void> => {
        const response = await answer(call.request);
        if (checker && nonce !== undefined) {
          const metadata = new Metadata();
          metadata.set(PROOF_KEY, makeProof(checker.secret, path, nonce, response));
          call.sendMetadata(metadata);
        }
        done(null, response);
      };
      detach(
        answerOrRefuse(serve, (error) => {
          done(toServiceError(error));
        }),
      );
    };
  }
  server.addService(definition, implementation);
}

function toServiceError(error: Error & { readonly code: string }): Partial<ServiceError> {
  const details = oneLine(error.message);
  const metadata = new Metadata();
  metadata.set(CODE_KEY, error.code);
  return { code: status.FAILED_PRECONDITION, details, metadata };
}

/** The client's side of each call. */
class Caller {
  readonly #client: Client;
  readonly #kind: string;
  readonly #address: string;
  readonly #secret: string | undefined;
  readonly #deadlineMs: number;

  constructor(kind: string, host: string, port: number, options: ControlClientOptions) {
    this.#kind = kind;
    this.#address = addressOf(host, port);
    this.#secret = options.secret;
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    this.#client = new Client(this.#address, credentials.createInsecure(), channelOptions);
  }

  close(): void {
    this.#client.close();
  }

  call<Request, Response>(method: Method<Request, Response>, verb: string, request: Request): Promise<Response> {
    const attempt = `${verb} the ${this.#kind} at ${this.#address}`;
    return new Promise((resolve, reject) => {
      const metadata = new Metadata();
      const token: Token | undefined = this.#secret
        ? makeToken(this.#secret, method.path, method.requestSerialize(request))
        : undefined;
      if (token) metadata.set(TOKEN_KEY, token.text);
      let proof: string | undefined;
      const call = this.#client.makeUnaryRequest<Request, Buffer>(
        method.path,
        method.requestSerialize,
        (bytes) => bytes,
        request,
        metadata,
        { deadline: Date.now() + this.#deadlineMs },
        (error, bytes) => {
          if (error || !bytes) {
            reject(this.#toError(attempt, error));
            return;
          }
          if (token && !isProof(proof ?? '', this.#secret ?? '', method.path, token.nonce, bytes)) {
            reject(
              new TartanError(
                'ERR_AUTHENTICATION',
                `Cannot ${attempt}: its answer does not prove that it knows the cluster secret`,
              ),
            );
            return;
          }
          try {
            resolve(method.responseDeserialize(bytes));
          } catch (cause) {
            reject(new TartanError('ERR_MALFORMED', `Cannot ${attempt}: its answer cannot be read`, { cause }));
          }
        },
      );
      call.on('metadata', (answer) => {
        const value = answer.get(PROOF_KEY)[0];
        if (typeof value === 'string') proof = value;
      });
    });
  }

  #toError(attempt: string, error: ServiceError | null): TartanError {
    const code = error?.metadata?.get(CODE_KEY)[0];
    const details = oneLine(error?.details || error?.message || 'there was no answer');
    if (typeof code === 'string' && code.startsWith('ERR_')) return errorFromPeer(code, details, { cause: error });
    // gRPC wraps what the system said in a sentence of its own.
    const refused = /connect E[A-Z]+ \S+?(?=\.? |$)/.exec(details)?.[0];
    const observation =
      error?.code === status.UNIMPLEMENTED
        ? `it does not serve ${this.#kind} control`
        : error?.code === status.DEADLINE_EXCEEDED
          ? `no answer within ${this.#deadlineMs} ms`
          : (refused ?? details);
    // Only of a connection that could not be made: what a peer says of its own files comes with another status.
    if (error?.code === status.UNAVAILABLE && isOutOfFiles(error))
      return new TartanError('ERR_TOO_MANY_FILES', `Cannot ${attempt}: ${TOO_MANY_FILES}`, { cause: error });
    return new TartanError(codeOfStatus(error?.code), `Cannot ${attempt}: ${observation}`, { cause: error });
  }
}

const channelOptions: ChannelOptions = {
  'grpc.max_receive_message_length': MAX_CONTROL_BYTES,
  'grpc.max_send_message_length': MAX_CONTROL_BYTES,
  // A proxy of the environment is for the web, not for the cluster.
  'grpc.enable_http_proxy': 0,
  // Else clients of one process share a failed connection's back-off, and a server just started seems absent.
  'grpc.use_local_subchannel_pool': 1,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1_000,
};

function codeOfStatus(code: status | undefined): ErrorCode {
  switch (code) {
    case status.DEADLINE_EXCEEDED:
      return 'ERR_DEADLINE';
    case status.UNAUTHENTICATED:
      return 'ERR_AUTHENTICATION';
    case status.RESOURCE_EXHAUSTED:
      return 'ERR_MALFORMED';
    default:
      return 'ERR_CONNECT';
  }
}

function addressOf(host: string, port: number): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}
function oneLine(text: string): string {
  return text.split('\n')[0]!;
}
