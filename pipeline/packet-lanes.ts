/**
 * A writer's packet socket, shared by what sends on it: a lane for each link to a node, which sends units, and one for
 * the path through a packet switch, which sends stripes. Work request ids tell the device's completions apart:
 *
 *   top bit: a stripe · lane (16 bits) << 15 · slot of the node, or tag (15 bits)
 *
 * Invariant: a lane hears of every request exactly once, also of those that were given up; a new link has a lane of its
 * own, so that what an old one left behind is never taken for its own.
 */
import type { MemoryRegion, PacketCounters, PacketSender, PacketSocket } from 'tartan-rdma';
import { Status, ipv4Of } from 'tartan-rdma';
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { createSocket } from 'node:dgram';
import { isOutOfFiles, TartanError } from '../wire/errors.js';
import { IP_UDP_BYTES, PACKET_HEADER_BYTES } from '../wire/packet-header.js';
import { DATA_HEADER_BYTES } from '../wire/unit-header.js';
import type { SessionContext } from './session.js';
import type { UnitPlace } from './node-link.js';

const STRIPE = 0x8000_0000;
const SLOT_BITS = 15;
const LANES = 1 << 16;
/** UDP payload that the device makes and takes at most. */
const MOST_BYTES = 9216;
/** Room for the longest unit header in a packet. */
const HEADERS = PACKET_HEADER_BYTES + DATA_HEADER_BYTES + 4 * 8;

/** The device no longer reads the unit's memory. @param ok  every chunk lies in the node's slot */
type OnWritten = (slot: number, ok: boolean) => void;

export interface PacketLane {
  post(slot: number, place: UnitPlace): void;
  cancel(slot: number): void;
  /** Nothing is under way any more, and nothing will be posted. */
  retire(): void;
}

/** Of stripes: requests are named by their tags. */
export interface StripeLane {
  /** As PacketSender.postStripe. */
  post(
    tag: number,
    region: MemoryRegion,
    headersOffset: number,
    unitsOffset: number,
    stride: number,
    group: number,
    chunkBytes: number,
    units: number,
    address: number,
    port: number,
  ): void;
  cancel(tag: number): void;
}

export class PacketLanes {
  readonly host: string;
  readonly port: number;
  /** Largest IP packet that leaves here. */
  readonly mtu: number;
  /** Most payload bytes in a unit packet. */
  readonly chunkBytes: number;
  private readonly socket: PacketSocket;
  private readonly sender: PacketSender;
  private readonly lanes = new Map<number, OnWritten>();
  private nextLane = 0;

  private constructor(socket: PacketSocket, mtu: number) {
    this.socket = socket;
    this.host = socket.address;
    this.port = socket.port;
    this.mtu = mtu;
    this.chunkBytes = Math.floor((Math.min(mtu - IP_UDP_BYTES, MOST_BYTES) - HEADERS) / 64) * 64;
    this.sender = socket.createSender((_opcode, status, wrId) => {
      this.written(wrId, status === Status.SUCCESS);
    });
  }

  /**
   * Opens a socket at the address from which `peer` is reached.
   *
   * @param mtu  of the path, where it is less than the interface's
   * @throws {TartanError} ERR_DEVICE_KIND: the device has no packet sockets · ERR_CONNECT: no way to the peer
   */
  static async open({ device }: SessionContext, peer: string, mtu = Infinity): Promise<PacketLanes> {
    if (device.openPacketSocket === undefined)
      throw new TartanError(
        'ERR_DEVICE_KIND',
        `Cannot send packets: a ${device.kind} device has no packet sockets, a soft one has`,
      );
    const address = await localAddressFor(peer);
    try {
      return new PacketLanes(await device.openPacketSocket(address, 0), Math.min(mtu, mtuOf(address)));
    } catch (cause) {
      const code = isOutOfFiles(cause) ? 'ERR_TOO_MANY_FILES' : 'ERR_CONNECT';
      throw new TartanError(code, `Cannot send packets to ${peer}: ${(cause as Error).message}`, { cause });
    }
  }

  counters(): PacketCounters {
    return this.socket.counters();
  }

  /** A new lane to a node. */
  open(host: string, port: number, onWritten: OnWritten): PacketLane {
    const lane = this.takeLane(onWritten),
      base = lane << SLOT_BITS,
      address = ipv4Of(host);
    return {
      post: (slot, place) => {
        this.sender.postUnit(
          base | slot,
          place.region,
          place.headerOffset,
          place.headerBytes,
          place.payloadOffset,
          place.payloadBytes,
          this.chunkBytes,
          address,
          port,
        );
      },
      cancel: (slot) => {
        this.sender.cancel(base | slot);
      },
      retire: () => {
        this.lanes.delete(lane);
      },
    };
  }

  /** A new lane for the stripes of one path through a switch. */
  openStripes(onWritten: OnWritten): StripeLane {
    const base = (STRIPE | (this.takeLane(onWritten) << SLOT_BITS)) >>> 0;
    return {
      post: (tag, region, headersOffset, unitsOffset, stride, group, chunkBytes, units, address, port) => {
        this.sender.postStripe(
          (base | tag) >>> 0,
          region,
          headersOffset,
          unitsOffset,
          stride,
          group,
          chunkBytes,
          units,
          address,
          port,
        );
      },
      cancel: (tag) => {
        this.sender.cancel((base | tag) >>> 0);
      },
    };
  }

  /** Everything under way is reported as given up. */
  close(): Promise<void> {
    return this.socket.close();
  }

  private takeLane(onWritten: OnWritten): number {
    do this.nextLane = (this.nextLane + 1) % LANES;
    while (this.lanes.has(this.nextLane));
    this.lanes.set(this.nextLane, onWritten);
    return this.nextLane;
  }

  private written(wrId: number, ok: boolean): void {
    this.lanes.get((wrId >>> SLOT_BITS) & (LANES - 1))?.(wrId & ((1 << SLOT_BITS) - 1), ok);
  }
}

/** The address that the system would send from; no packet leaves. */
function localAddressFor(peer: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createSocket('udp4');
    const fail = (cause: Error): void => {
      socket.close();
      reject(new TartanError('ERR_CONNECT', `Cannot send packets to ${peer}: ${cause.message}`, { cause }));
    };
    socket.once('error', fail);
    socket.connect(9, peer, (...[error]: unknown[]) => {
      if (error instanceof Error) {
        fail(error);
        return;
      }
      const { address } = socket.address();
      socket.close();
      resolve(address);
    });
  });
}

/** Largest IP packet of the interface that has an address; 1500 where the system does not tell. */
function mtuOf(address: string): number {
  const name = Object.entries(networkInterfaces()).find(([, addresses]) =>
    addresses?.some((each) => each.address === address),
  )?.[0];
  try {
    return Number(readFileSync(`/sys/class/net/${name}/mtu`, 'utf8'));
  } catch {
    return 1500;
  }
}
