/**
 * Calls to the members of one etcd cluster, each with a deadline: to one member until it does not answer, then to the
 * next.
 *
 * A change that was sent is never sent again, as it may have taken effect; a read is.
 */
import {
  Client,
  Metadata,
  credentials,
  status,
  type ClientDuplexStream,
  type MethodDefinition,
  type ServiceError,
} from '@grpc/grpc-js';
import { setTimeout as delay } from 'node:timers/promises';
import { TartanError, codeOf } from '../wire/errors.js';

export type Unary<Request, Response> = MethodDefinition<Request, Response> & {
  readonly requestStream: false;
  readonly responseStream: false;
};
export type Duplex<Request, Response> = MethodDefinition<Request, Response> & {
  readonly requestStream: true;
  readonly responseStream: true;
};

/** How long one member of several is waited for before the next is tried, milliseconds. */
const MEMBER_MS = 1_000;
const RETRY_MS = 50;
const OPTIONS = {
  'grpc.max_receive_message_length': -1,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1_000,
  // A member that vanished without a word is noticed; etcd takes offence at pings more often than every 5 s.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 3_000,
  // Its members are named, not found through a proxy.
  'grpc.enable_http_proxy': 0,
};
/** What says that the member, not the request, is the trouble. */
const UNANSWERED: readonly number[] = [status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED, status.INTERNAL];

export class EtcdConnection {
  readonly #clients: readonly Client[];
  readonly #deadlineMs: number;
  #at = 0;
  #isClosed = false;

  /** @param deadlineMs  of each call, waiting for a member included */
  constructor(endpoints: readonly string[], deadlineMs: number) {
    this.#clients = endpoints.map((endpoint) => new Client(endpoint, credentials.createInsecure(), OPTIONS));
    this.#deadlineMs = deadlineMs;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  close(): void {
    this.#isClosed = true;
    for (const client of this.#clients) client.close();
  }

  /**
   * One request, one answer.
   *
   * @param attempt  what a message says could not be done  @param again  whether it may be sent more than once
   * @throws {TartanError} ERR_MAP_UNAVAILABLE: no member answered; a change may have taken effect nevertheless ·
   *         ERR_NOT_FOUND · ERR_STORE
   */
  async call<Request, Response>(
    method: Unary<Request, Response>,
    request: Request,
    attempt: string,
    again: boolean,
  ): Promise<Response> {
    const until = Date.now() + this.#deadlineMs;
    for (;;) {
      const client = await this.ready(attempt, until);
      try {
        return await this.#once(client, method, request, again ? Math.min(until, Date.now() + this.memberMs) : until);
      } catch (error) {
        if (!UNANSWERED.includes((error as ServiceError).code)) throw refused(attempt, error as ServiceError);
        this.next(client);
        if (!again || Date.now() >= until) throw unavailable(attempt, error as ServiceError);
      }
      await delay(RETRY_MS);
    }
  }

  /** One request on a stream of its own, and the first answer to it. Safe to send again. */
  async exchange<Request, Response>(
    method: Duplex<Request, Response>,
    request: Request,
    attempt: string,
  ): Promise<Response> {
    const until = Date.now() + this.#deadlineMs;
    for (;;) {
      const client = await this.ready(attempt, until);
      try {
        return await new Promise<Response>((resolve, reject) => {
          const stream = this.open(client, method, Math.min(until, Date.now() + this.memberMs));
          stream.once('data', (response: Response) => {
            resolve(response);
            stream.end();
          });
          stream.once('end', () => {
            reject(Object.assign(new Error('the stream ended without an answer'), { code: status.UNAVAILABLE }));
          });
          stream.on('error', reject);
          stream.write(request);
        });
      } catch (error) {
        if (!UNANSWERED.includes((error as ServiceError).code)) throw refused(attempt, error as ServiceError);
        this.next(client);
        if (Date.now() >= until) throw unavailable(attempt, error as ServiceError);
      }
      await delay(RETRY_MS);
    }
  }

  /**
   * A member that can be talked to.
   *
   * @param until  milliseconds since 1970  @throws {TartanError} ERR_MAP_UNAVAILABLE when none can until then;
   *         ERR_CLOSED
   */
  async ready(attempt: string, until = Date.now() + this.#deadlineMs): Promise<Client> {
    for (;;) {
      if (this.#isClosed) throw closedError(attempt);
      const client = this.#clients[this.#at]!;
      try {
        await new Promise<void>((resolve, reject) => {
          client.waitForReady(Math.min(until, Date.now() + this.memberMs), (error) => {
            if (error) reject(error);
            else resolve();
          });
        });
        return client;
      } catch (error) {
        if (this.#isClosed) throw closedError(attempt);
        if (Date.now() >= until) throw unavailable(attempt, error as Error);
        this.next(client);
      }
    }
  }

  /** Waits for something that etcd must answer first. @throws {TartanError} ERR_MAP_UNAVAILABLE past the deadline */
  async within(settled: Promise<void>, attempt: string): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        reject(unavailable(attempt, new Error(`no answer within ${this.#deadlineMs} ms`)));
      }, this.#deadlineMs);
    });
    try {
      await Promise.race([settled, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Streams of requests and answers. @param until  milliseconds since 1970 */
  open<Request, Response>(
    client: Client,
    method: Duplex<Request, Response>,
    until?: number,
  ): ClientDuplexStream<Request, Response> {
    const metadata = new Metadata();
    // A member that has lost its leader ends the stream, instead of staying silent.
    metadata.set('hasleader', 'true');
    return client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      metadata,
      until === undefined ? {} : { deadline: until },
    );
  }

  /** Turns to the next member, unless another call has done so already. */
  next(from: Client): void {
    if (this.#clients[this.#at] === from) this.#at = (this.#at + 1) % this.#clients.length;
  }

  /** How long a member is given to answer, milliseconds. A single one is waited for to the end. */
  get memberMs(): number {
    return this.#clients.length > 1 ? Math.min(MEMBER_MS, this.#deadlineMs) : this.#deadlineMs;
  }

  #once<Request, Response>(
    client: Client,
    method: Unary<Request, Response>,
    request: Request,
    until: number,
  ): Promise<Response> {
    return new Promise((resolve, reject) => {
      client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        new Metadata(),
        { deadline: until },
        (error, response) => {
          if (error !== null) reject(error);
          else resolve(response!);
        },
      );
    });
  }
}

export function closedError(attempt: string): TartanError {
  return new TartanError('ERR_CLOSED', `Cannot ${attempt}: this client of the cluster store is closed`);
}

function unavailable(attempt: string, cause: Error): TartanError {
  return codeOf(cause) === 'ERR_CLOSED'
    ? (cause as TartanError)
    : new TartanError('ERR_MAP_UNAVAILABLE', `Cannot ${attempt}: etcd does not answer (${oneLine(cause)})`, { cause });
}

function refused(attempt: string, cause: ServiceError): TartanError {
  return new TartanError(
    cause.code === status.NOT_FOUND ? 'ERR_NOT_FOUND' : 'ERR_STORE',
    `Cannot ${attempt}: etcd says '${oneLine(cause)}'`,
    { cause },
  );
}

function oneLine(error: Error): string {
  return (('details' in error && typeof error.details === 'string' && error.details) || error.message).replace(
    /\s+/g,
    ' ',
  );
}
