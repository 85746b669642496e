/**
 * The software switch: accepts writers, runs the parity program for them while it is loaded, says what state it is in.
 *
 *   programmable ──unload──▶ forwarding ──load──▶ programmable
 *
 * Unloading ends every writer's session with its ring: a writer drives again what was under way, elsewhere. A writer
 * that connects while the switch only forwards is kept, without a ring, and told when a program is loaded.
 */
import type { Listener, QueuePair } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import { readFile } from '../cluster/files.js';
import { readMap, registerSwitch, setSwitchState, watchMap } from '../cluster/membership.js';
import type { ClusterMap } from '../cluster/records.js';
import type { MessageChannel } from '../pipeline/channel.js';
import { RingMemory } from '../pipeline/ring-memory.js';
import { acceptSession, answerProbe } from '../pipeline/session.js';
import type { SessionContext } from '../pipeline/session.js';
import type { TimerHandle } from '../wire/clock.js';
import { isOperating, TartanError } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import type { Grant, Hello } from '../wire/generated/ring.js';
import { DecoderSession } from './decoder-session.js';
import { WriterSession } from './writer-session.js';

export const PROGRAM = { name: 'parity', version: '1' } as const;

/** What the map says wrong of this switch is put right after so long. */
const CORRECT_MS = 1000;

export interface SwitchCoreOptions {
  readonly context: SessionContext;
  readonly store: ClusterStore;
  readonly id: string;
  readonly host: string;
  readonly port: number;
  readonly controlPort: number;
  /** Bytes all rings of this switch may take. */
  readonly ringMemoryBytes: number;
  readonly transport: 'auto' | 'tcp' | 'shm';
  readonly heartbeatMs: number;
  readonly deadlineMs: number;
  readonly log: (message: string) => void;
}

export type SwitchStateName = 'programmable' | 'forwarding' | 'down';

export interface SwitchTotals {
  stripes: number;
  bytes: number;
  refused: number;
  protocolErrors: number;
  rolledBack: number;
  unitsCopied: number;
  buffers: number;
  sessions: number;
  ringMemoryUsed: number;
  /** For readers and rebuilders. */
  unitsDecoded: number;
  bytesDecoded: number;
  decodesFailed: number;
  decoders: number;
}

export class SwitchCore {
  state: SwitchStateName = 'down';
  map: ClusterMap | undefined;
  port = 0;
  private readonly options: SwitchCoreOptions;
  private readonly sessions = new Map<MessageChannel, WriterSession>();
  private readonly decoders = new Map<MessageChannel, DecoderSession>();
  private readonly idle = new Set<MessageChannel>();
  /** Being torn down: their counts are not in the totals yet. */
  private readonly leaving = new Set<WriterSession | DecoderSession>();
  private readonly totals: SwitchTotals = {
    stripes: 0,
    bytes: 0,
    refused: 0,
    protocolErrors: 0,
    rolledBack: 0,
    unitsCopied: 0,
    buffers: 0,
    sessions: 0,
    ringMemoryUsed: 0,
    unitsDecoded: 0,
    bytesDecoded: 0,
    decodesFailed: 0,
    decoders: 0,
  };
  private listener: Listener | undefined;
  private watch: { close(): void } | undefined;
  private correcting: TimerHandle | undefined;
  private lastFailure = '';
  private readonly ending = new Set<Promise<void>>();

  private readonly memory: RingMemory;

  constructor(options: SwitchCoreOptions) {
    this.options = options;
    this.memory = new RingMemory(options.ringMemoryBytes);
  }

  async start(): Promise<void> {
    const { context, store, id, host, port, controlPort } = this.options;
    this.map = await readMap(store);
    this.listener = await context.device.listen(host, port, (qp) => {
      this.accept(qp);
    });
    this.port = this.listener.port;
    this.state = 'programmable';
    this.map = await registerSwitch(store, { id, host, port: this.port, state: this.state, controlPort });
    this.watch = watchMap(store, (map) => {
      if (this.map !== undefined && map.changes <= this.map.changes) return;
      this.map = map;
      for (const session of [...this.sessions.values(), ...this.decoders.values()]) session.adopt(map);
      this.correct(map);
    });
  }

  /**
   * The map says something else of this switch: it was marked down while it was paused or cut off, or its own word did
   * not get through. It says again what it is, after a while: not as fast as it can.
   */
  private correct(map: ClusterMap): void {
    const said = map.switches.find(({ id }) => id === this.options.id)?.state;
    if (said === this.state || this.correcting !== undefined || this.state === 'down') return;
    this.correcting = this.options.context.clock.setTimer(CORRECT_MS, () => {
      this.correcting = undefined;
      if (this.state !== 'down')
        detach(
          this.publishState().then(() => {
            this.correct(this.map!);
          }),
        );
    });
  }

  /** Loads the parity program. Idempotent. @throws {TartanError} ERR_ARGUMENT for a program it does not have */
  async load(program: string = PROGRAM.name): Promise<void> {
    if (program !== PROGRAM.name)
      throw new TartanError('ERR_ARGUMENT', `Cannot load program '${program}': this switch has '${PROGRAM.name}'`);
    if (this.state === 'programmable') return;
    this.state = 'programmable';
    this.announce(this.idle);
    await this.publishState();
  }

  /** Unloads the program: the switch forwards packets and computes nothing. Idempotent. */
  async unload(): Promise<void> {
    if (this.state === 'forwarding') return;
    this.state = 'forwarding';
    this.announce([...this.sessions.keys(), ...this.decoders.keys()]);
    // The notice leaves with the next ring; the connections end right after it.
    this.options.context.clock.setTimer(5, () => {
      for (const channel of [...this.sessions.keys(), ...this.decoders.keys()])
        this.end(channel, 'the switch lost its program');
    });
    await this.publishState();
  }

  counters(): SwitchTotals {
    const sum = {
      ...this.totals,
      sessions: this.sessions.size,
      decoders: this.decoders.size,
      ringMemoryUsed: this.memory.used,
    };
    for (const session of [...this.sessions.values(), ...this.decoders.values(), ...this.leaving])
      addCounters(sum, session);
    return sum;
  }

  async stop(): Promise<void> {
    this.state = 'down';
    this.options.context.clock.clearTimer(this.correcting);
    this.watch?.close();
    await this.listener?.close();
    for (const channel of [...this.sessions.keys(), ...this.decoders.keys(), ...this.idle])
      this.end(channel, 'the switch is stopping');
    await Promise.all(this.ending);
    await this.publishState();
  }

  private accept(qp: QueuePair): void {
    const { context, log } = this.options;
    acceptSession({ ...context, log }, qp, 64, (hello, channel) => this.decide(hello, channel));
  }

  private async decide(hello: Hello, channel: MessageChannel): Promise<Grant> {
    const { context, id, transport, heartbeatMs, deadlineMs, log } = this.options;
    const map = this.map!;
    channel.mapEpoch = map.epoch;
    channel.onControl = (message) => {
      if (message.kind?.$case === 'probe') answerProbe(channel, message.kind.value.id, PROGRAM);
    };
    channel.onClosed = (reason) => {
      this.end(channel, reason);
    };
    if (this.state === 'programmable' && hello.role === 'decoder') return await this.decodeFor(hello, channel, map);
    if (this.state !== 'programmable' || hello.role !== 'writer') {
      this.idle.add(channel);
      return { name: id, rkey: 0, slots: 0, slotBytes: 0, mapEpoch: map.epoch, state: this.state };
    }
    const wishes = hello.nodes.length > 0 ? hello : await this.withNodes(hello, channel);
    const session = new WriterSession(channel, {
      context,
      id,
      hello: wishes,
      map: this.map!,
      transport,
      heartbeatMs,
      deadlineMs,
      memory: this.memory,
      onProtocolError: log,
    });
    this.sessions.set(channel, session);
    try {
      await session.connect();
    } catch (error) {
      channel.onClosed = () => {};
      this.sessions.delete(channel);
      // The refusal must still leave: the channel is closed by the handshake, the rest here.
      context.clock.setTimer(300, () => {
        detach(session.destroy('refused'));
      });
      throw error;
    }
    if (!this.sessions.has(channel))
      throw new TartanError('ERR_NOT_PROGRAMMABLE', `Switch ${id} lost its program while '${hello.name}' connected`);
    session.serve();
    log(
      `serving writer '${hello.name}': ${hello.code}, ${session.slots} slots ` +
        `of ${session.layout.slotBytes} bytes, over ${channel.qp.transport}`,
    );
    return {
      name: id,
      rkey: session.region.rkey,
      slots: session.slots,
      slotBytes: session.layout.slotBytes,
      mapEpoch: map.epoch,
      state: this.state,
    };
  }

  /**
   * A peer that lacks units: reads it sends are answered with units decoded here.
   * @throws {TartanError} what its file or memory forbids
   */
  private async decodeFor(hello: Hello, channel: MessageChannel, map: ClusterMap): Promise<Grant> {
    const { context, store, id, transport, heartbeatMs, deadlineMs, log } = this.options;
    const file = await readFile(store, hello.fileId);
    this.checkStill(channel, hello);
    const session = new DecoderSession(
      channel,
      { ...context, store, name: `${id}/${hello.name}`, transport, heartbeatMs, deadlineMs, memory: this.memory },
      file,
      map,
      log,
    );
    this.decoders.set(channel, session);
    try {
      await session.connect();
    } catch (error) {
      channel.onClosed = () => {};
      this.decoders.delete(channel);
      // As for writers: the refusal must still leave.
      context.clock.setTimer(300, () => {
        detach(session.destroy('refused'));
      });
      throw error;
    }
    if (!this.decoders.has(channel))
      throw new TartanError('ERR_NOT_PROGRAMMABLE', `Switch ${id} lost its program while '${hello.name}' connected`);
    session.serve();
    return { name: id, rkey: 0, slots: 0, slotBytes: 0, mapEpoch: map.epoch, state: 'decoding' };
  }

  /** Of a file on more nodes than fit a Hello: as its record has them. @throws {TartanError} ERR_NOT_FOUND */
  private async withNodes(hello: Hello, channel: MessageChannel): Promise<Hello> {
    const { nodes } = await readFile(this.options.store, hello.fileId);
    this.checkStill(channel, hello);
    return { ...hello, nodes: [...nodes] };
  }

  /**
   * After a wait: a session that is registered on a channel which has closed meanwhile, or when the program has gone,
   * is never ended.
   * @throws {TartanError} ERR_CLOSED, ERR_NOT_PROGRAMMABLE
   */
  private checkStill(channel: MessageChannel, { name }: Hello): void {
    if (channel.closed) throw new TartanError('ERR_CLOSED', `Cannot serve '${name}': it has gone meanwhile`);
    if (this.state !== 'programmable')
      throw new TartanError(
        'ERR_NOT_PROGRAMMABLE',
        `Switch ${this.options.id} lost its program while '${name}' connected`,
      );
  }

  private announce(channels: Iterable<MessageChannel>): void {
    for (const channel of channels) {
      channel.sendControl({ kind: { $case: 'state', value: { state: this.state, mapEpoch: this.map?.epoch ?? 0 } } });
    }
  }

  private end(channel: MessageChannel, reason: string): void {
    this.idle.delete(channel);
    const session = this.sessions.get(channel) ?? this.decoders.get(channel);
    this.sessions.delete(channel);
    this.decoders.delete(channel);
    const end = (async () => {
      if (session === undefined) {
        await channel.destroy(reason);
        return;
      }
      this.leaving.add(session);
      await session.destroy(reason);
      this.leaving.delete(session);
      addCounters(this.totals, session);
    })().finally(() => this.ending.delete(end));
    this.ending.add(end);
    detach(end);
  }

  private async publishState(): Promise<void> {
    try {
      this.map = await setSwitchState(this.options.store, this.options.id, this.state);
      for (const session of [...this.sessions.values(), ...this.decoders.values()]) session.adopt(this.map);
    } catch (error) {
      if (!isOperating(error)) throw error;
      // Soft state: writers learn it in band; the map follows when the store is back.
      const why = `could not publish state '${this.state}': ${String(error)}`;
      if (why !== this.lastFailure) this.options.log(why);
      this.lastFailure = why;
    }
  }
}

function addCounters(sum: SwitchTotals, session: WriterSession | DecoderSession): void {
  if (session instanceof DecoderSession) {
    sum.unitsDecoded += session.counters.unitsDecoded;
    sum.bytesDecoded += session.counters.bytesDecoded;
    sum.decodesFailed += session.counters.decodesFailed;
    return;
  }
  sum.stripes += session.counters.stripes;
  sum.bytes += session.counters.bytes;
  sum.refused += session.counters.refused;
  sum.protocolErrors += session.counters.protocolErrors;
  sum.rolledBack += session.pipeline.counters.rolledBack;
  sum.unitsCopied += session.pipeline.counters.unitsCopied;
  sum.buffers += session.pipeline.counters.buffers;
}
