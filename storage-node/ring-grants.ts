/** Rings of unit slots for those who connect: how many slots, of which memory, and whether packets fill them. */
import { Access, RdmaError, ipv4Of, type Device, type MemoryRegion, type PacketSocket } from 'tartan-rdma';
import type { FileRecord } from '../cluster/records.js';
import type { MessageChannel } from '../pipeline/channel.js';
import type { RingMemory } from '../pipeline/ring-memory.js';
import { TartanError } from '../wire/errors.js';
import type { Hello } from '../wire/generated/ring.js';
import { unitImm } from '../wire/ring-messages.js';
import { unitSlotBytes } from '../wire/slot-layout.js';
import { MAX_UNIT_BYTES, MIN_UNIT_BYTES } from '../wire/unit-header.js';
import { UnitRing, type RingHost } from './unit-ring.js';

const RING_BYTES = 16 << 20;
const MAX_RINGS = 1 << 15;

export class RingGrants {
  private readonly rings = new Map<number, UnitRing>();
  private nextRing = 0;

  /**
   * @param memory    what all rings take together comes from here
   * @param maxSlots  most slots of one ring
   * @param packets   undefined: units come in writes only
   */
  constructor(
    private readonly nodeId: string,
    private readonly device: Device,
    private readonly memory: RingMemory,
    private readonly maxSlots: number,
    private readonly host: RingHost,
    private readonly packets: PacketSocket | undefined,
  ) {}

  /** The ring with this id, as VERIFY completions name it. */
  ring(id: number): UnitRing {
    return this.rings.get(id)!;
  }

  /** @throws {TartanError} ERR_RING_MEMORY, ERR_UNIT_BYTES */
  grant(
    channel: MessageChannel,
    { name, unitBytes, slots: wanted }: Hello,
    rebuilds: FileRecord | undefined,
  ): UnitRing {
    const attempt = `grant '${name}' a ring on node ${this.nodeId}`;
    if (unitBytes < MIN_UNIT_BYTES || unitBytes > MAX_UNIT_BYTES || !Number.isInteger(Math.log2(unitBytes))) {
      throw new TartanError(
        'ERR_UNIT_BYTES',
        `Cannot ${attempt}: units of ${unitBytes} bytes, expected a power of two ` +
          `from ${MIN_UNIT_BYTES} to ${MAX_UNIT_BYTES}`,
      );
    }
    const slotBytes = unitSlotBytes(unitBytes);
    const most = Math.max(
      2,
      Math.min(wanted === 0 ? this.maxSlots : wanted, this.maxSlots, Math.floor(RING_BYTES / slotBytes)),
    );
    if (this.rings.size >= MAX_RINGS)
      throw new TartanError(
        'ERR_CAPACITY',
        `Cannot ${attempt}: it has granted ${MAX_RINGS}, as many as it has numbers`,
      );
    const bytes = this.memory.take(most * slotBytes, slotBytes, 2 * slotBytes, attempt);
    let region: MemoryRegion;
    try {
      region = this.device.allocate(bytes, Access.REMOTE_WRITE);
      region.grant(channel.qp);
    } catch (cause) {
      this.memory.give(bytes);
      throw cause instanceof RdmaError
        ? new TartanError('ERR_RING_MEMORY', `Cannot ${attempt}: ${cause.message}`, { cause })
        : cause;
    }
    do this.nextRing = (this.nextRing + 1) % MAX_RINGS;
    while (this.rings.has(this.nextRing));
    const ring = new UnitRing(this.host, this.nextRing, channel, region, bytes / slotBytes, unitBytes, rebuilds);
    this.rings.set(ring.id, ring);
    return ring;
  }

  /**
   * Where packets of this session will come from; undefined: there are none, or this node takes none.
   * @throws {TartanError} ERR_ARGUMENT
   */
  packetPeer({ name, packetPort, packetHost }: Hello, { qp }: MessageChannel): number | undefined {
    if (packetPort === undefined || this.packets === undefined) return undefined;
    const host = packetHost ?? qp.remote.slice(0, qp.remote.lastIndexOf(':'));
    try {
      return ipv4Of(host);
    } catch {
      throw new TartanError(
        'ERR_ARGUMENT',
        `Cannot take packets of '${name}' on node ${this.nodeId}: its address is '${host}', expected an IPv4 address`,
      );
    }
  }

  /** Units of this writer come as packets: the packet socket fills the ring's memory, no longer the peer. */
  takePackets(ring: UnitRing, hello: Hello, peerAddress: number): { rkey: number; packetPort: number } {
    const socket = this.packets!;
    ring.packets = socket.createReceiver(
      {
        peerAddress,
        peerPort: hello.packetPort!,
        fileId: hello.fileId,
        writerEpoch: hello.writerEpoch ?? 0,
        region: ring.region,
        slots: ring.slots,
        slotBytes: ring.slotBytes,
        unitBytes: hello.unitBytes,
      },
      (slot, headerBytes, byteLength) => {
        ring.arrive(unitImm(slot, headerBytes), byteLength);
      },
      (unit, stripe, counter, mapEpoch) => {
        ring.repeat(unit, stripe, hello.writerEpoch ?? 0, counter, mapEpoch);
      },
    );
    return { rkey: 0, packetPort: socket.port };
  }

  /**
   * The ring's memory goes when nobody here reads it any more: checks, disk writes.
   * @param idle  what its close() returned
   */
  async takeBack(ring: UnitRing, idle: Promise<void> | undefined): Promise<void> {
    await idle;
    await ring.region.deregister();
    this.rings.delete(ring.id);
    this.memory.give(ring.slots * ring.slotBytes);
  }
}
