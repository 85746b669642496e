/**
 * Raw device writes between two hosts: no codes, no storage, no cluster. One side listens, the other connects and says
 * in its first message (two uint32: its key, and whether it wants writes back) where it may be written to.
 */
import type { Device, MemoryRegion, QueuePair } from 'tartan-rdma';
import { Access, Flag, Opcode, Status, openSoftDevice } from 'tartan-rdma';
import { detach } from '../wire/front-door.js';

const WINDOW = 32;
const RECEIVES = 2 * WINDOW;
const HELLO_BYTES = 8;
const RING_BYTES = 4 << 20;

export interface Endpoint {
  readonly host: string;
  readonly port: number;
}
export interface ExchangeResult {
  /** Both directions, between warm-up and end. */ readonly bytesPerSecond: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
}
export interface RegistrationResult {
  readonly transfersPerSecond: number;
  readonly bytesPerSecond: number;
  readonly totalBytes: number;
}

const accepting = new Map<number, Device>();

/** Takes connections until the process ends. */
export async function acceptWrites({ host, port }: Endpoint): Promise<void> {
  if (accepting.has(port)) return;
  const device = openSoftDevice({ name: 'accept' });
  accepting.set(port, device);
  await device.listen(host, port, (qp) => {
    new RawPeer(device, qp, undefined);
  });
}

/** Writes to the listening side and is written to, both as fast as the link allows. */
export async function exchangeWrites({
  host,
  port,
  writeBytes,
  warmupSeconds,
  seconds,
}: Endpoint & { writeBytes: number; warmupSeconds: number; seconds: number }): Promise<ExchangeResult> {
  const device = openSoftDevice({ name: 'exchange' });
  try {
    const peer = new RawPeer(device, await device.connect(host, port, { transport: 'tcp' }), {
      writeBytes,
      isAnswered: true,
    });
    device.ring();
    await sleep(warmupSeconds * 1000);
    const from = { at: performance.now(), bytes: peer.sent + peer.received };
    await sleep(seconds * 1000);
    const bytesPerSecond = ((peer.sent + peer.received - from.bytes) / (performance.now() - from.at)) * 1000;
    if (peer.failure !== undefined) throw new Error(peer.failure);
    await peer.close();
    return { bytesPerSecond, sentBytes: peer.sent, receivedBytes: peer.received };
  } finally {
    await device.close();
  }
}

/**
 * Transfers one after the other, each written and completed: from memory registered for it and released after it, or
 * from a ring that stays registered.
 */
export async function registerOrReuse({
  host,
  port,
  transferBytes,
  mode,
  seconds,
}: Endpoint & { transferBytes: number; mode: 'each' | 'ring'; seconds: number }): Promise<RegistrationResult> {
  const device = openSoftDevice({ name: 'register' });
  try {
    const peer = new RawPeer(device, await device.connect(host, port, { transport: 'tcp' }), {
      writeBytes: transferBytes,
      isAnswered: false,
    });
    device.ring();
    await peer.ready;
    const ring = device.allocate(RING_BYTES);
    const slots = RING_BYTES / transferBytes;
    let transfers = 0;
    const begun = performance.now();
    while (performance.now() - begun < seconds * 1000) {
      if (mode === 'ring') await peer.write(ring, (transfers % slots) * transferBytes, transferBytes);
      else {
        const region = device.allocate(transferBytes);
        // Memory that is not touched is not there: a sender fills what it sends.
        new Uint8Array(region.buffer).fill(transfers & 0xff);
        await peer.write(region, 0, transferBytes);
        await region.deregister();
      }
      if (mode === 'ring')
        new Uint8Array(ring.buffer, (transfers % slots) * transferBytes, transferBytes).fill(transfers & 0xff);
      transfers++;
    }
    const elapsed = (performance.now() - begun) / 1000;
    await peer.close();
    return {
      transfersPerSecond: transfers / elapsed,
      bytesPerSecond: (transfers * transferBytes) / elapsed,
      totalBytes: transfers * transferBytes,
    };
  } finally {
    await device.close();
  }
}

/** One end of a connection. The one that connected says hello, the other answers with its own key. */
class RawPeer {
  sent = 0;
  received = 0;
  failure: string | undefined;
  readonly ready: Promise<void>;
  private isReady: () => void = () => {};
  private readonly memory: MemoryRegion;
  private readonly words: Uint32Array;
  private rkey = 0;
  private writeBytes = 0;
  private streaming = false;
  private closing = false;
  private waiting: { resolve(): void; reject(error: Error): void } | undefined;

  constructor(
    private readonly device: Device,
    private readonly qp: QueuePair,
    private readonly wish: { writeBytes: number; isAnswered: boolean } | undefined,
  ) {
    this.ready = new Promise((resolve) => {
      this.isReady = resolve;
    });
    // The ring that is written to, then a page of hellos: received ones, and the own one at its end.
    this.memory = device.allocate(RING_BYTES + 4096, Access.REMOTE_WRITE);
    this.words = new Uint32Array(this.memory.buffer);
    qp.handler = (opcode, status, wrId, byteLength) => {
      this.completed(opcode, status, wrId, byteLength);
    };
    qp.onError = (reason) => {
      if (!this.closing) this.failure = reason;
      this.waiting?.reject(new Error(reason));
      if (wish === undefined) detach(this.qp.destroy().then(() => this.memory.deregister()));
    };
    for (let i = 0; i < RECEIVES; i++) qp.postRecv(i, this.memory, RING_BYTES + i * HELLO_BYTES, HELLO_BYTES);
    if (wish !== undefined) this.hello(wish.isAnswered ? wish.writeBytes : 0);
  }

  /** Writes once; resolves when the bytes are in the peer's memory. */
  write(region: MemoryRegion, offset: number, bytes: number): Promise<void> {
    const done = new Promise<void>((resolve, reject) => {
      this.waiting = { resolve, reject };
    });
    this.qp.postWrite(0, region, offset, bytes, this.rkey, 0, Flag.SIGNALED);
    this.device.ring();
    return done;
  }

  async close(): Promise<void> {
    this.closing = true;
    await this.qp.destroy();
    await this.memory.deregister();
  }

  private hello(wanted: number): void {
    const at = RING_BYTES + RECEIVES * HELLO_BYTES;
    this.words[at >> 2] = this.memory.rkey;
    this.words[(at >> 2) + 1] = wanted;
    this.qp.postSend(0, this.memory, at, HELLO_BYTES, Flag.SIGNALED);
  }

  private completed(opcode: number, status: number, wrId: number, byteLength: number): void {
    if (status !== Status.SUCCESS) return;
    if (opcode === Opcode.RECV) {
      const at = (RING_BYTES + wrId * HELLO_BYTES) >> 2;
      this.rkey = this.words[at]!;
      if (this.wish === undefined) {
        this.writeBytes = this.words[at + 1]!;
        this.hello(0);
      } else {
        this.writeBytes = this.wish.isAnswered ? this.wish.writeBytes : 0;
      }
      this.streaming = this.writeBytes > 0;
      this.isReady();
      this.qp.postRecv(wrId, this.memory, RING_BYTES + wrId * HELLO_BYTES, HELLO_BYTES);
      if (this.streaming) for (let i = 0; i < WINDOW; i++) this.stream(i);
    } else if (opcode === Opcode.RECV_WRITE_WITH_IMM) {
      this.received += byteLength;
      this.qp.postRecv(wrId, this.memory, RING_BYTES + wrId * HELLO_BYTES, HELLO_BYTES);
    } else if (opcode === Opcode.WRITE_WITH_IMM) {
      this.sent += this.writeBytes;
      if (!this.closing) this.stream(wrId);
    } else if (opcode === Opcode.WRITE) {
      const waiting = this.waiting;
      this.waiting = undefined;
      waiting?.resolve();
    }
  }

  private stream(slot: number): void {
    const at = slot * this.writeBytes;
    this.qp.postWriteWithImm(slot, this.memory, at, this.writeBytes, this.rkey, at, slot, Flag.SIGNALED);
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
