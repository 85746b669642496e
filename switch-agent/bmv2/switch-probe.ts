/**
 * Asks a packet switch, through its own data plane, which program it runs: only parity.p4 answers, with the cookie that
 * its controller entered (docs/wire-format.md, "A probe").
 */
import { randomBytes } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { TartanError } from '../../wire/errors.js';
import {
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  STRIPE_PORT,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  encodeProbeBody,
  type ProbeBody,
} from '../../wire/packet-header.js';

export class SwitchProbe {
  private readonly waiting = new Map<bigint, (answer: ProbeBody) => void>();

  private constructor(
    private readonly socket: Socket,
    private readonly service: string,
  ) {
    socket.on('message', (packet, from) => {
      if (from.address === service && from.port === STRIPE_PORT) this.answered(packet);
    });
    // What cannot be sent is not answered either.
    socket.on('error', () => undefined);
    socket.unref();
  }

  /**
   * @param from     this machine's address on the switch's segment
   * @param service  the switch's
   * @throws {TartanError} ERR_LISTEN
   */
  static async open(from: string, service: string): Promise<SwitchProbe> {
    const socket = createSocket('udp4');
    await new Promise<void>((resolve, reject) => {
      socket.once('error', (error) => {
        reject(
          new TartanError('ERR_LISTEN', `Cannot probe the switch from ${from}: ${error.message}`, { cause: error }),
        );
      });
      socket.bind(0, from, resolve);
    });
    return new SwitchProbe(socket, service);
  }

  /** @returns the answer; undefined when none came in time */
  ask(timeoutMs: number): Promise<ProbeBody | undefined> {
    const nonce = randomBytes(8).readBigUInt64BE(),
      packet = Buffer.alloc(PACKET_HEADER_BYTES + PROBE_BODY_BYTES);
    encodeProbeBody({ nonce, cookie: 0n, program: 0, k: 0, m: 0, chunkBytes: 0 }, packet);
    encodePacketHeader(
      { type: PacketType.PROBE, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
      packet,
      0,
    );
    return new Promise((resolve) => {
      const done = (answer: ProbeBody | undefined) => {
        clearTimeout(timer);
        this.waiting.delete(nonce);
        resolve(answer);
      };
      const timer = setTimeout(() => {
        done(undefined);
      }, timeoutMs);
      this.waiting.set(nonce, done);
      this.socket.send(packet, STRIPE_PORT, this.service, () => undefined);
    });
  }

  close(): void {
    this.socket.close();
  }

  private answered(packet: Buffer): void {
    const header = decodePacketHeader(packet);
    if (typeof header === 'string' || header.type !== PacketType.PROBE_ANSWER) return;
    const answer = decodeProbeBody(packet);
    this.waiting.get(answer.nonce)?.(answer);
  }
}
