/**
 * A peer made of a bare socket: it speaks the frames of rdma/native/frame.h as wrongly as a test wants. What it
 * receives is kept and never answered.
 */
import { connect, type Socket } from 'node:net';

export const Frame = {
  WRITE: 1,
  WRITE_IMM: 2,
  SEND: 3,
  READ: 4,
  READ_DATA: 5,
  ACK: 6,
  NAK: 7,
  MAP: 8,
  MAP_FD: 9,
  UNMAP: 10,
  PLACED: 11,
  PLACED_IMM: 12,
} as const;

export interface FrameFields {
  readonly type: number;
  readonly follow?: number;
  readonly status?: number;
  readonly zero?: number;
  readonly seq?: number;
  readonly ack?: number;
  readonly rkey?: number;
  readonly offset?: number;
  readonly imm?: number;
  readonly length?: number;
  readonly recvs?: number;
}

export function frame(fields: FrameFields): Buffer {
  const { type, follow = 0, status = 0, zero = 0, seq = 0, ack = 0, rkey = 0, offset = 0 } = fields;
  const { imm = 0, length = 0, recvs = 0 } = fields;
  const bytes = Buffer.from([type, follow, status, zero, ...new Array<number>(28).fill(0)]);
  for (const [i, word] of [seq, ack, rkey, offset, imm, length, recvs].entries())
    bytes.writeUInt32LE(word >>> 0, 4 + 4 * i);
  return bytes;
}

const PREAMBLE = Buffer.alloc(32);
PREAMBLE.write('TARTNRDM');
PREAMBLE[8] = 1; // version
PREAMBLE[10] = 1; // TCP

export class RawPeer {
  received = Buffer.alloc(0);
  isClosed = false;
  #wake: () => void = () => undefined;

  private constructor(readonly socket: Socket) {
    socket.on('data', (chunk: Buffer) => {
      this.received = Buffer.concat([this.received, chunk]);
      this.#wake();
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.isClosed = true;
      this.#wake();
    });
  }

  /** Connects and says nothing. */
  static async silent(port: number): Promise<RawPeer> {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    const peer = new RawPeer(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    return peer;
  }

  /** Connects and exchanges preambles. */
  static async open(port: number): Promise<RawPeer> {
    const peer = await RawPeer.silent(port);
    peer.write(PREAMBLE);
    await peer.until(() => peer.received.length >= 32);
    return peer;
  }

  write(...parts: Buffer[]): void {
    if (!this.isClosed) this.socket.write(Buffer.concat(parts));
  }

  /** @throws {Error} when the connection closes before the condition holds */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.isClosed) throw new Error('the connection closed');
      await this.#news();
    }
  }

  async closed(): Promise<void> {
    while (!this.isClosed) await this.#news();
  }

  /** The frames that have come, without their payloads; `payloadBytes` of each by its type. */
  frames(): Buffer[] {
    const frames: Buffer[] = [];
    for (let at = 32; at + 32 <= this.received.length; ) {
      const head = this.received.subarray(at, at + 32);
      frames.push(head);
      const hasPayload = [Frame.WRITE, Frame.WRITE_IMM, Frame.SEND, Frame.READ_DATA].some((type) => type === head[0]);
      at += 32 + (hasPayload ? head.readUInt32LE(24) : 0);
    }
    return frames;
  }

  destroy(): void {
    this.socket.destroy();
  }

  #news(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
