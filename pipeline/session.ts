/**
 * The handshake of the ring protocol, and the heartbeat of an established session.
 *
 *   client                                server
 *     Hello(nonce, what is wanted)  ───▶
 *                                   ◀───  Challenge(nonce, proof)      server knows the secret
 *     Proof(proof)                  ───▶                               client knows the secret
 *                                   ◀───  Grant(ring) or Refuse(code)
 *     Probe                         ───▶
 *                                   ◀───  ProbeReply                   at the server's pleasure: only a running program
 *                                         answers
 *
 * Without a cluster secret the proofs are over an empty key: they then prove only that both know the protocol.
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Device, QueuePair } from 'tartan-rdma';
import type { Clock, TimerHandle } from '../wire/clock.js';
import { codeOf, errorFromPeer, isOperating, isOutOfFiles, TartanError, TOO_MANY_FILES } from '../wire/errors.js';
import { answerOrRefuse, detach, refusalOf } from '../wire/front-door.js';
import { type Control, type Grant, Hello } from '../wire/generated/ring.js';
import { PROTOCOL_VERSION } from '../wire/ring-messages.js';
import { MessageChannel } from './channel.js';
import type { Hub } from './hub.js';

/** Receives beyond the ring's slots: the messages a peer may have under way. */
export const MESSAGE_RECEIVES = 40;
const HANDSHAKE_MS = 5000;
/** Connections over one transport that have not proved themselves; whoever comes when all are there ends the oldest. */
export const MAX_UNPROVEN = 64;
/** Of a refusal's message, which may quote what the peer said of itself: UTF-8 of it fits a message. */
const MAX_REFUSAL_CHARS = 1000;

export interface SessionContext {
  readonly device: Device;
  readonly hub: Hub;
  readonly clock: Clock;
  /** Shared by all of a cluster; undefined: loopback only. */
  readonly secret: string | undefined;
  readonly clusterId: number;
  /** One line for what an operator should know. */
  readonly log?: (message: string) => void;
}

/** An established connection to a node or switch, client side. */
export interface Session {
  readonly channel: MessageChannel;
  readonly grant: Grant;
}

/** Over all that the Hello says, so that nobody between the two changes what is asked for. */
export function proofOf(
  secret: string | undefined,
  side: 'server' | 'client',
  hello: Hello,
  serverNonce: Uint8Array,
): Uint8Array {
  const said = Hello.encode(hello).finish();
  return createHmac('sha256', secret ?? '')
    .update(`${side} ${said.length} `)
    .update(said)
    .update(serverNonce)
    .digest();
}

/** Channels of each device whose peers have not proved themselves, in the order of their coming. */
const unproven = new WeakMap<Device, Map<MessageChannel, (reason: string) => void>>();

/** Gives a newcomer a place among them: a crowd of one transport costs its own oldest member, nobody else. */
function admit(device: Device, channel: MessageChannel, close: (reason: string) => void): () => void {
  let waiting = unproven.get(device);
  if (waiting === undefined) unproven.set(device, (waiting = new Map()));
  const alike = [...waiting.keys()].filter((one) => one.qp.transport === channel.qp.transport);
  if (alike.length >= MAX_UNPROVEN) waiting.get(alike[0]!)!('it did not prove itself while many others came');
  waiting.set(channel, close);
  return () => {
    waiting.delete(channel);
  };
}

function sameProof(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}

function nonceFrom(context: SessionContext): Uint8Array {
  // With a secret the nonce must be unpredictable; without one it may come from the seed, for the simulation's sake.
  if (context.secret !== undefined) return randomBytes(16);
  return Uint8Array.from({ length: 16 }, () => Math.floor(context.clock.random() * 256));
}

export type HelloWishes = Partial<Omit<Hello, 'protocol' | 'clusterId' | 'nonce'>> & { role: string; name: string };

/**
 * Connects and shakes hands.
 *
 * @param receiveSlots slots of a ring this side will grant the peer (readers: answers under way), for receives
 * @throws {TartanError} ERR_CONNECT, ERR_DEVICE_KIND, ERR_AUTHENTICATION, ERR_VERSION, or what the server refused with
 */
export async function connectSession(
  context: SessionContext,
  host: string,
  port: number,
  wishes: HelloWishes,
  options: { transport?: 'auto' | 'tcp' | 'shm'; receiveSlots?: number; timeoutMs?: number } = {},
): Promise<Session> {
  const { device, hub, clock, secret } = context;
  const timeoutMs = options.timeoutMs ?? HANDSHAKE_MS;
  let qp: QueuePair;
  try {
    qp = await device.connect(host, port, { transport: options.transport ?? 'auto', timeoutMs });
  } catch (cause) {
    if (!isOperating(cause)) throw cause;
    if (isOutOfFiles(cause))
      throw new TartanError('ERR_TOO_MANY_FILES', `Cannot connect to ${host}:${port}: ${TOO_MANY_FILES}`, { cause });
    // Nobody is down then: a wish that must not look like a failure of the peer.
    const code = codeOf(cause) === 'ERR_DEVICE_KIND' ? 'ERR_DEVICE_KIND' : 'ERR_CONNECT';
    throw new TartanError(code, cause.message, { cause });
  }
  let channel: MessageChannel;
  try {
    channel = new MessageChannel(hub, device, qp, (options.receiveSlots ?? 0) + MESSAGE_RECEIVES);
  } catch (error) {
    await qp.destroy();
    throw error;
  }
  const hello: Hello = {
    protocol: PROTOCOL_VERSION,
    clusterId: context.clusterId,
    nonce: asBuffer(nonceFrom(context)),
    mapEpoch: 0,
    k: 0,
    m: 0,
    unitBytes: 0,
    slots: 0,
    fileId: 0,
    nodes: [],
    tags: 0,
    code: '',
    ...wishes,
  };
  return await new Promise<Session>((resolve, reject) => {
    const give = (code: string, message: string): void => {
      clock.clearTimer(timer);
      detach(channel.destroy(message));
      reject(errorFromPeer(code, message));
    };
    const timer = clock.setTimer(timeoutMs, () => {
      give(
        'ERR_CONNECT',
        `Cannot open a session with ${host}:${port}: no answer to the handshake within ${timeoutMs} ms`,
      );
    });
    channel.onClosed = (reason) => {
      give(
        'ERR_CONNECT',
        `Cannot open a session with ${host}:${port}: connection closed during the handshake (${reason})`,
      );
    };
    channel.onControl = (message) => {
      const kind = message.kind;
      if (kind?.$case === 'challenge') {
        if (!sameProof(kind.value.proof, proofOf(secret, 'server', hello, kind.value.nonce))) {
          give(
            'ERR_AUTHENTICATION',
            `Cannot open a session with ${host}:${port}: it does not know this cluster's secret`,
          );
          return;
        }
        channel.sendControl({
          kind: { $case: 'proof', value: { proof: asBuffer(proofOf(secret, 'client', hello, kind.value.nonce)) } },
        });
      } else if (kind?.$case === 'grant') {
        clock.clearTimer(timer);
        channel.onClosed = () => {};
        channel.onControl = () => {};
        channel.mapEpoch = kind.value.mapEpoch;
        resolve({ channel, grant: kind.value });
      } else if (kind?.$case === 'refuse') {
        give(kind.value.code, kind.value.message);
      } else {
        give(
          'ERR_MALFORMED',
          `Cannot open a session with ${host}:${port}: unexpected ${kind?.$case ?? 'empty'} message in the handshake`,
        );
      }
    };
    try {
      channel.sendControl({ kind: { $case: 'hello', value: hello } });
    } catch (error) {
      if (!isOperating(error)) throw error;
      give(error.code, error.message);
    }
  });
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Server side: shakes hands on a fresh queue pair.
 *
 * `decide` runs once the peer has proved itself: it allocates the ring and returns the grant, or throws a TartanError
 * that becomes a Refuse. It gets a channel whose handlers it may set; `receives` of it cover `maxSlots` ring slots.
 * A peer that fails, lies or is silent is closed; nothing was granted to it.
 */
export function acceptSession(
  context: SessionContext,
  qp: QueuePair,
  maxSlots: number,
  decide: (hello: Hello, channel: MessageChannel) => Promise<Grant> | Grant,
): void {
  const { clock, hub, device, secret } = context;
  let channel: MessageChannel;
  try {
    // A few buffers, until it has proved itself.
    channel = new MessageChannel(hub, device, qp, undefined);
  } catch (error) {
    const refusal = refusalOf(error);
    if (refusal === undefined) throw error;
    context.log?.(`cannot serve ${qp.remote}: ${refusal.message}`);
    detach(qp.destroy());
    return;
  }
  const close = (reason: string): void => {
    clock.clearTimer(timer);
    proven();
    detach(channel.destroy(reason));
  };
  const timer: TimerHandle = clock.setTimer(HANDSHAKE_MS, () => {
    close(`no handshake within ${HANDSHAKE_MS} ms`);
  });
  channel.onClosed = close;
  const proven = admit(device, channel, close);
  const refuse = (code: string, message: string): void => {
    clock.clearTimer(timer);
    channel.onControl = () => {};
    channel.sendControl({ kind: { $case: 'refuse', value: { code, message: message.slice(0, MAX_REFUSAL_CHARS) } } });
    clock.setTimer(200, () => {
      close(message);
    });
  };
  let hello: Hello | undefined;
  const nonce = nonceFrom(context);
  channel.onControl = (message: Control) => {
    const kind = message.kind;
    if (kind?.$case === 'hello' && hello === undefined) {
      hello = kind.value;
      if (hello.protocol !== PROTOCOL_VERSION) {
        refuse(
          'ERR_VERSION',
          `Cannot serve '${hello.name}': it speaks ring protocol ${hello.protocol}, this side ${PROTOCOL_VERSION}`,
        );
        return;
      }
      channel.sendControl({
        kind: {
          $case: 'challenge',
          value: { nonce: asBuffer(nonce), proof: asBuffer(proofOf(secret, 'server', hello, nonce)) },
        },
      });
    } else if (kind?.$case === 'proof' && hello !== undefined) {
      if (!sameProof(kind.value.proof, proofOf(secret, 'client', hello, nonce))) {
        refuse('ERR_AUTHENTICATION', `Cannot serve '${hello.name}': it does not know this cluster's secret`);
        return;
      }
      if (hello.clusterId !== context.clusterId) {
        refuse(
          'ERR_CLUSTER',
          `Cannot serve '${hello.name}': it belongs to cluster ${hello.clusterId.toString(16)}, this ` +
            `is ${context.clusterId.toString(16)}`,
        );
        return;
      }
      clock.clearTimer(timer);
      proven();
      channel.onControl = () => {};
      const asked = hello;
      detach(
        answerOrRefuse(
          async () => {
            channel.grow(device, maxSlots + MESSAGE_RECEIVES);
            channel.sendControl({ kind: { $case: 'grant', value: await decide(asked, channel) } });
          },
          ({ code, message }) => {
            refuse(code === 'ERR_REGISTRATION_REFUSED' ? 'ERR_RING_MEMORY' : code, message);
          },
        ),
      );
    } else {
      close(`unexpected ${kind?.$case ?? 'empty'} message in the handshake`);
    }
  };
}

/** Answers a probe when `program` names one that runs. */
export function answerProbe(
  channel: MessageChannel,
  id: number,
  program: { name: string; version: string } | undefined,
): void {
  if (program !== undefined)
    channel.sendControl({
      kind: { $case: 'probeReply', value: { id, program: program.name, version: program.version } },
    });
}

/**
 * Probes a peer; declares it gone when an answer is `deadlineMs` late.
 * One probe is under way at a time, so that a peer that wakes up finds no backlog.
 */
export class Heartbeat {
  private timer: TimerHandle | undefined;
  private sentAt = 0;
  private waiting = false;
  private id = 0;
  private readonly options: {
    clock: Clock;
    channel: MessageChannel;
    intervalMs: number;
    deadlineMs: number;
    onLate: (lateMs: number) => void;
  };

  constructor(options: {
    clock: Clock;
    channel: MessageChannel;
    intervalMs: number;
    deadlineMs: number;
    onLate: (lateMs: number) => void;
  }) {
    this.options = options;
    this.tick();
  }

  private tick(): void {
    const { clock, channel, intervalMs, deadlineMs, onLate } = this.options;
    if (channel.closed) return;
    const now = clock.now();
    // The peer answers within the deadline or it is gone; but if this process itself slept (SIGSTOP), ask once more.
    if (this.waiting && now - this.sentAt > deadlineMs && now - this.sentAt < deadlineMs + 4 * intervalMs) {
      this.stop();
      onLate(now - this.sentAt);
      return;
    }
    if (!this.waiting || now - this.sentAt >= deadlineMs + 4 * intervalMs) {
      this.waiting = true;
      this.sentAt = now;
      this.id = (this.id + 1) >>> 0;
      channel.sendControl({ kind: { $case: 'probe', value: { id: this.id } } });
    }
    this.timer = clock.setTimer(intervalMs, () => {
      this.tick();
    });
  }

  /** @returns milliseconds since the probe that `id` answers, or -1 for an old one */
  answered(id: number): number {
    if (id !== this.id) return -1;
    this.waiting = false;
    return this.options.clock.now() - this.sentAt;
  }

  /**
   * The peer said something else: it lives. On a slow link the probe waits behind megabytes of units, whose
   * acknowledgements arrive all the while; without this, such a link would be broken at every deadline.
   */
  heard(): void {
    if (this.waiting) this.sentAt = this.options.clock.now();
  }

  stop(): void {
    if (this.timer !== undefined) this.options.clock.clearTimer(this.timer);
    this.timer = undefined;
  }
}
