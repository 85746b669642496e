/** What a verbs device can be told when it is opened, and what it tells of its adapter. */

/** Something the adapter said of itself rather than of a connection. */
export interface AsyncEvent {
  /** The number of libibverbs's ibv_event_type. */
  readonly type: number;
  /** 0: the event is not of a port. */
  readonly port: number;
  /** As libibverbs says it, e.g. 'port error', 'local catastrophic error'. */
  readonly text: string;
}

export interface VerbsDeviceOptions {
  /** An RDMA device, e.g. 'rxe0'. Default: the first with an active port. */
  readonly device?: string;
  /** For messages and metrics. Default: the RDMA device's name. */
  readonly name?: string;
  /** A power of two. Default 4096. */
  readonly sendQueueEntries?: number;
  /** A power of two. Default 8192. */
  readonly completionQueueEntries?: number;
  /** Requests of one queue pair that the adapter has at a time; more wait in memory. Default 128. */
  readonly sendDepth?: number;
  /** Receives of one queue pair that the adapter has at a time; more wait in memory. Default 512. */
  readonly receiveDepth?: number;
  /** Requests up to this length are copied when posted. Default 64. */
  readonly inlineBytes?: number;
  /**
   * An unanswered packet is sent again after 4.096 µs · 2^ackTimeout, six times. Default 16: a dead peer shows in 2 s.
   */
  readonly ackTimeout?: number;
  /** How long to look for completions before sleeping, in microseconds. Default 0: sleep at once and be woken. */
  readonly busyPollMicros?: number;
  /** Entries of each of the adapter's completion queues, which several queue pairs share. Default 8192. */
  readonly adapterCompletions?: number;
  /**
   * Whether a queue pair reserves a completion's room for all that it can have outstanding: none overruns. Default
   * true. Without it more queue pairs share a queue; should it overrun all the same, each of them ends with an error.
   */
  readonly reserveCompletions?: boolean;
  /** Coding kernel, as of the soft device. */
  readonly kernel?: string;
}

/** @throws {RangeError} when an option is none */
export function powerOfTwo(name: string, entries: number): number {
  if (!Number.isInteger(entries) || entries < 2 || entries > 2 ** 20 || (entries & (entries - 1)) !== 0) {
    throw new RangeError(`Cannot open a verbs device: ${name} is ${entries}, a power of two up to 2^20 is expected`);
  }
  return entries;
}

/** @throws {RangeError} when an option is no whole number from `least` to `most` */
export function within(name: string, value: number, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most)
    throw new RangeError(`Cannot open a verbs device: ${name} is ${value}, ${least} to ${most} is expected`);
  return value;
}
