/** The native addon's face (native/binding.cc), typed. Nothing outside src/soft/ imports this. */
import { createRequire } from 'node:module';
import { addonPath } from '../addon-path.js';
import { type DeviceCounters, RdmaError } from '../device.js';

/** [type, id, qpn, number, transport, text]; see native/mailbox.h for what each type fills. */
export type NativeEvent = readonly [
  type: number,
  id: number,
  qpn: number,
  value: number,
  transport: number,
  text: string,
];

export const EventType = {
  LISTENING: 1,
  LISTEN_FAILED: 2,
  CONNECTED: 3,
  CONNECT_FAILED: 4,
  ACCEPTED: 5,
  QUEUE_PAIR_ERROR: 6,
  QUEUE_PAIR_GONE: 7,
  REGION_GONE: 8,
  FENCE: 9,
} as const;

/** A completion with this opcode stands for one event, so that events keep their place among completions. */
export const OPCODE_EVENT = 255;

export const ConnectMode = { auto: 0, tcp: 1, shm: 2 } as const;

export interface NativeDevice {
  /** Releases `count` work requests; returns the send queue's free entries. */
  ring(count: number): number;
  /** Gives back the completions of the previous poll and returns how many new ones there are. */
  poll(): number;
  /** Asks to be woken by the next completion. */
  arm(): void;
  takeEvent(): NativeEvent | undefined;
  /** @throws {Error} what the kernel said */
  allocate(byteLength: number, access: number): [lkey: number, rkey: number, buffer: ArrayBuffer];
  /** From the first call on only the queue pairs named reach it. */
  grant(lkey: number, qpn: number): void;
  deregister(lkey: number): void;
  /** Detaches the buffer, then unmaps it. */
  release(lkey: number, buffer: ArrayBuffer): void;
  createCoder(spec: Uint32Array, matrix: Uint8Array, kernel: string): number;
  removeCoder(id: number): void;
  createCodingQueue(): number;
  destroyCodingQueue(qpn: number, fence: number): void;
  listen(id: number, host: string, port: number): void;
  closeListener(id: number, fence: number): void;
  connect(id: number, host: string, port: number, timeoutMs: number, mode: number): void;
  toError(qpn: number, reason: string): void;
  destroyQueuePair(qpn: number): void;
  /** A FENCE event comes back after the completions of everything released before. */
  fence(id: number, fence: number): void;
  /** @param impairment  seed, loss and reordering of 1000; LISTENING or LISTEN_FAILED comes back */
  openPacketSocket(id: number, host: string, port: number, impairment: Uint32Array): void;
  addPacketSender(socket: number, words: Uint32Array): number;
  addPacketReceiver(socket: number, words: Uint32Array): number;
  removePacketReceiver(socket: number, qpn: number, fence: number): void;
  closePacketSocket(socket: number, fence: number): void;
  packetCounters(socket: number, into: Float64Array, isLast: number): void;
  keepAlive(on: number): void;
  counters(into: Float64Array): void;
  /** Stops and joins the engine's thread. */
  close(): void;
}

interface Addon {
  open(sendQueue: Uint32Array, completionQueue: Uint32Array, wake: () => void): NativeDevice;
  kernels(): string;
}

/** The order of `Counters` in native/counters.h. */
export const COUNTER_NAMES: readonly (keyof DeviceCounters)[] = [
  'requests',
  'completions',
  'rings',
  'wakeups',
  'bytesSent',
  'bytesReceived',
  'bytesEncoded',
  'bytesVerified',
  'bytesCopied',
  'allocations',
  'errors',
  'refusedAccesses',
];

let loaded: Addon | undefined;

/** @throws {RdmaError} ERR_NO_ADDON when it was never built, or can't run here */
export function loadAddon(): Addon {
  const path = addonPath('tartan_rdma');
  try {
    loaded ??= createRequire(import.meta.url)(path) as Addon;
    return loaded;
  } catch (cause) {
    throw new RdmaError(
      'ERR_NO_ADDON',
      `Cannot load the native addon ${path}: ${(cause as Error).message}; build it with \`node rdma/build-addon.mjs\``,
      { cause },
    );
  }
}
