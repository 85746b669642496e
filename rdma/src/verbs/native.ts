/** The verbs addon's face (native/verbs/binding.cc), typed. Nothing outside src/verbs/ imports this. */
import { createRequire } from 'node:module';
import { addonPath } from '../addon-path.js';
import { RdmaError } from '../device.js';

/** [type, id, qpn, number, 0, text]; see native/verbs/events.h for what each type fills. */
export type NativeEvent = readonly [type: number, id: number, qpn: number, value: number, unused: number, text: string];

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
  ASYNCHRONOUS: 10,
  RECEIVES_LOW: 11,
} as const;

export interface NativeAdapter {
  /** The adapter's own name, e.g. 'rxe0'. */
  readonly deviceName: string;
  /** Posts `count` work requests; returns the send queue's free entries: all. */
  ring(count: number): number;
  /**
   * Gives back the completions of the previous poll, looks for new ones for so many microseconds, returns their count.
   */
  poll(spinMicros: number): number;
  /** Asks to be woken by the next completion. */
  arm(): void;
  takeEvent(): NativeEvent | undefined;
  /** Registers memory. @throws {Error} what the kernel said */
  addRegion(lkey: number, memory: ArrayBuffer, access: number): number;
  /** A REGION_GONE event comes when nothing refers to it any more. */
  deregister(lkey: number): void;
  /** @param receives  the shared receive queue of the connections that come, 0: each has receives of its own */
  listen(id: number, host: string, port: number, receives: number): void;
  closeListener(id: number, fence: number): void;
  connect(id: number, host: string, port: number, timeoutMs: number, receives: number): void;
  /** Forgets a connect() that has not ended; no event comes of it. */
  abandon(id: number): void;
  toError(qpn: number, reason: string): void;
  destroyQueuePair(qpn: number): void;
  /** @returns its number, among those of queue pairs. @throws {Error} what the adapter said */
  createReceives(depth: number): number;
  /** @returns 0: refused */
  armReceives(number: number, limit: number): number;
  /** A QUEUE_PAIR_GONE event comes after its last completion. @returns 0: queue pairs use it */
  destroyReceives(number: number): number;
  /** A FENCE event comes back after the completions of everything released before. */
  fence(id: number): void;
  keepAlive(on: number): void;
  counters(into: Float64Array): void;
  close(): void;
}

interface Addon {
  open(
    name: string,
    limits: Uint32Array,
    sendQueue: Uint32Array,
    completionQueue: Uint32Array,
    wake: () => void,
  ): NativeAdapter;
  devices(): string;
}

let loaded: Addon | undefined;

/** @throws {RdmaError} ERR_NO_ADDON when it was never built, or can't run here */
export function loadVerbsAddon(): Addon {
  const path = addonPath('tartan_rdma_verbs');
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
