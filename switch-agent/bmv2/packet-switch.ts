/**
 * The agent of a P4 switch: its P4Runtime controller, and its voice in the cluster.
 *
 *   down ──connected──▶ forwarding ──our parity program, entries, probe answered──▶ programmable
 *     ◀──stream broken── (any)          ◀──unloaded · another's cookie · probes unanswered──
 *
 * One loop tends the switch: it connects, becomes primary, compares what the switch holds with what it should hold,
 * writes the difference, asks the program whether it is there, and publishes the state. What is entered follows from
 * the cluster map, the port map and the groups that writers asked for; so it is the same after a restart of the agent,
 * of the switch, or after another controller. All that is written goes through one queue.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { P4RuntimeError, type v1 } from 'tartan-p4runtime';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { readMap, registerSwitch, setSwitchState, watchMap } from '../../cluster/membership.js';
import type { ClusterMap, SwitchEntry } from '../../cluster/records.js';
import { TartanError, isOperating } from '../../wire/errors.js';
import type { OpenGroupsReply, OpenGroupsRequest } from '../../wire/generated/control.js';
import { MAX_PACKET_M, STRIPE_PORT, type ProbeBody } from '../../wire/packet-header.js';
import type { Artefact } from './artefact.js';
import { Controller } from './controller.js';
import { difference, entering, removing } from './difference.js';
import { forwardingEntries } from './forwarding.js';
import { BMV2_ROOM, GroupBook } from './group-book.js';
import { PacketCounters } from './packet-counters.js';
import type { PortMap } from './port-map.js';
import { serviceEntries } from './service.js';
import { groupEntries, readGroups, type Group } from './split.js';

export interface PacketSwitchOptions {
  readonly store: ClusterStore;
  readonly id: string;
  /** Where writers reach this agent. */
  readonly host: string;
  readonly controlPort: number;
  /** Of the P4Runtime server, host:port. */
  readonly p4runtime: string;
  readonly deviceId: number;
  readonly parity: Artefact;
  readonly forward: Artefact;
  readonly ports: PortMap;
  /** Asks the data plane; without it the cookie alone is believed. */
  readonly probe?: { ask(timeoutMs: number): Promise<ProbeBody | undefined> } | undefined;
  readonly deadlineMs: number;
  /** A call to the switch may take so long at least, a program four times. Default 5000. */
  readonly leastCallMs?: number | undefined;
  readonly log: (message: string) => void;
}

type State = SwitchEntry['state'];

/** Probes that may be under way at a time: a switch under load answers late. */
const MOST_PROBES = 4;
const RETRY_MS = 200;

export class PacketSwitch {
  state: State = 'down';
  map: ClusterMap | undefined;
  readonly #options: PacketSwitchOptions;
  readonly #book: GroupBook;
  readonly #counters = new PacketCounters();
  readonly #counts = { looks: 0, pipelinesPushed: 0, entriesWritten: 0, reconciliations: 0, sessions: 0 };
  /** What the switch should run, and what it was last seen to run. */
  #wanted: Artefact;
  #running: Artefact | undefined;
  #controller: Controller | undefined;
  /** Another controls the switch, as far as this agent has heard: what state it is in is the other's to say. */
  #isStandby = false;
  /** What the switch holds is what the book says. */
  #isReconciled = false;
  /** Of the controller, when its switch was looked at last. */
  #losses = 0;
  /** A restarted agent takes from the switch what it was doing, once. */
  #isFresh = true;
  /**
   * Whether the program, as it is since the last push, has answered; and when the first probe was sent that it has not,
   * on the clock of performance.now().
   */
  #hasAnswered = false;
  #silentSinceMs: number | undefined;
  #probesUnderWay = 0;
  /** Grows with every push and session: an answer from before says nothing of what is there now. */
  #generation = 0;
  /**
   * The session's program was there already when it began, at this time; undefined once it has answered, or was pushed.
   */
  #foundAtMs: number | undefined;
  #published: State | undefined;
  #lastNote = '';
  #watch: { close(): void } | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #loop: Promise<void> | undefined;
  #isStopping = false;
  #wake: () => void = () => undefined;

  constructor(options: PacketSwitchOptions) {
    this.#options = options;
    this.#wanted = options.parity;
    this.#book = new GroupBook(randomInt(1, 2 ** 31), BMV2_ROOM);
  }

  /** The program that the switch runs, as `tartan status` shows it; empty when it is not ours or not known. */
  get program(): string {
    return this.state === 'programmable' ? 'parity' : '';
  }

  /** Registers the switch as down, and begins to tend it. @throws {TartanError} what the cluster store throws */
  async start(): Promise<void> {
    const { store, id, host, controlPort, ports, parity } = this.#options;
    const packets = { host: ports.service.host, port: STRIPE_PORT, mtu: Math.min(parity.mtu, ports.mtu ?? parity.mtu) };
    // An agent that was restarted says nothing of the switch's state before it has looked: writers go on meanwhile.
    const known = (await readMap(store)).switches.find((each) => each.id === id);
    this.map = await registerSwitch(store, {
      id,
      host,
      port: controlPort,
      controlPort,
      packets,
      ...(known === undefined && { state: 'down' as const }),
    });
    this.#published = known?.state ?? 'down';
    this.#watch = watchMap(store, (map) => {
      this.#adopt(map);
    });
    this.#loop = this.#keep();
  }

  /**
   * @throws {TartanError} ERR_ARGUMENT · ERR_NOT_PROGRAMMABLE: the switch cannot be reached, or another is its
   *   controller
   */
  async load(program: string): Promise<void> {
    if (program !== 'parity')
      throw new TartanError('ERR_ARGUMENT', `Cannot load program '${program}': this switch has 'parity'`);
    await this.#change(this.#options.parity, 'load');
  }

  /** Only forwarding remains. @throws {TartanError} ERR_NOT_PROGRAMMABLE, as load() */
  async unload(): Promise<void> {
    await this.#change(this.#options.forward, 'unload');
  }

  /**
   * Serves OpenGroups: docs/p4.md.
   * @throws {TartanError} ERR_NOT_PROGRAMMABLE · ERR_STALE_MAP · ERR_ARGUMENT · ERR_CAPACITY
   */
  openGroups(request: OpenGroupsRequest): Promise<OpenGroupsReply> {
    return this.#exclusive(async () => {
      const { parity, ports, store, id } = this.#options,
        { k, m, mapEpoch, sets } = request;
      const controller = this.#controller;
      if (this.state !== 'programmable' || controller === undefined || !controller.primary || !this.#isReconciled)
        throw new TartanError('ERR_NOT_PROGRAMMABLE', `Cannot open groups in switch ${id}: it is ${this.state}`);
      // The watch may be late: a writer that knows a newer map is right.
      if (this.map!.epoch < mapEpoch) this.#adopt(await readMap(store));
      const map = this.map!;
      if (map.epoch !== mapEpoch)
        throw new TartanError(
          'ERR_STALE_MAP',
          `Cannot open groups in switch ${id} for map epoch ${mapEpoch}: its map is of epoch ${map.epoch}`,
        );
      if (k < 1 || k > parity.k || m < 1 || m > MAX_PACKET_M)
        throw new TartanError(
          'ERR_ARGUMENT',
          `Cannot open groups for k = ${k}, m = ${m}: program ${parity.name} takes k up to ${parity.k} and m ` +
            `up to ${MAX_PACKET_M}`,
        );
      const wrong = sets.find(({ nodes }) => nodes.length !== k + m);
      if (wrong !== undefined)
        throw new TartanError(
          'ERR_ARGUMENT',
          `Cannot open a group of ${wrong.nodes.length} nodes for k = ${k}, m = ${m}: expected ${k + m}`,
        );
      const fresh: Group[] = [],
        groups: number[] = [];
      try {
        for (const { nodes } of sets) {
          const { group, isNew } = this.#book.open(map, ports, k, m, nodes);
          groups.push(group.id);
          if (isNew) fresh.push(group);
        }
        await this.#write(
          controller,
          entering(
            parity.program,
            fresh.flatMap((group) => groupEntries(parity.program, ports, group)),
          ),
        );
      } catch (error) {
        for (const each of fresh) this.#book.remove(each.id);
        if (!(error instanceof P4RuntimeError)) throw error;
        this.#isReconciled = false;
        this.#wake();
        throw new TartanError('ERR_NOT_PROGRAMMABLE', `Cannot open groups in switch ${id}: ${oneLine(error)}`, {
          cause: error,
        });
      }
      return { groups, mapEpoch: map.epoch };
    });
  }

  /** By metric name; asks the switch for what it counted, as far as it answers. */
  async counters(): Promise<Record<string, number>> {
    await this.#exclusive(() => this.#readCounters());
    const { looks, pipelinesPushed, entriesWritten, reconciliations, sessions } = this.#counts;
    return {
      ...this.#counters.totals(),
      tartan_switch_groups: this.#book.size,
      tartan_switch_pipelines_pushed: pipelinesPushed,
      tartan_switch_entries_written: entriesWritten,
      tartan_switch_reconciliations: reconciliations,
      tartan_switch_controller_sessions: sessions,
      tartan_switch_looks: looks,
      tartan_switch_primary: this.#controller?.primary === true ? 1 : 0,
      tartan_switch_programmable: this.state === 'programmable' ? 1 : 0,
      tartan_switch_map_epoch: this.map?.epoch ?? 0,
    };
  }

  /** Of the last counters(). */
  samples() {
    return this.#counters.samples();
  }

  /**
   * Leaves the switch as it is: it goes on without its agent. Nobody watches its program then, so it counts as
   * forwarding.
   */
  async stop(): Promise<void> {
    this.#isStopping = true;
    const isOurs = this.#controller === undefined ? !this.#isStandby : this.#controller.primary;
    this.#wake();
    this.#watch?.close();
    await this.#loop;
    if (isOurs) await this.#become(this.state === 'down' ? 'down' : 'forwarding');
  }

  /** Ends as a crash does: connections close, nothing is told to anybody. For tests. */
  abandon(): void {
    this.#isStopping = true;
    this.#watch?.close();
    this.#controller?.close();
    this.#wake();
  }

  async #keep(): Promise<void> {
    const { p4runtime: address, deviceId, deadlineMs, leastCallMs } = this.#options;
    let isFirst = true,
      electionId = (BigInt(Date.now()) << 16n) | BigInt(randomInt(2 ** 16));
    while (!this.#isStopping) {
      try {
        const controller = await Controller.connect({
          address,
          deviceId,
          deadlineMs,
          electionId,
          takeOver: isFirst,
          leastCallMs,
        });
        isFirst = false;
        controller.onChange = () => {
          this.#wake();
        };
        this.#counts.sessions++;
        this.#controller = controller;
        this.#isReconciled = false;
        this.#running = undefined;
        this.#losses = controller.losses;
        this.#forgetAnswers();
        this.#note(`controls the switch at ${address}`);
        while (!this.#isStopping && controller.ended === undefined) {
          await this.#exclusive(() => this.#tend(controller));
          this.#counts.looks++;
          if (controller.electionId > electionId) electionId = controller.electionId;
          await this.#pause(deadlineMs / 4);
        }
        if (controller.ended !== undefined) throw controller.ended;
      } catch (error) {
        if (!isOperating(error)) throw error;
        this.#note(oneLine(error as Error));
      }
      // Of an attempt that failed nothing was heard: it stays as it was.
      this.#isStandby = this.#controller?.isStandby ?? this.#isStandby;
      this.#controller?.close();
      this.#controller = undefined;
      if (this.#isStopping) return;
      if (this.#isStandby) this.#see('down');
      else await this.#become('down');
      await this.#pause(RETRY_MS);
    }
  }

  async #tend(controller: Controller): Promise<void> {
    if (controller.isVacant) await controller.stand();
    if (controller.losses !== this.#losses) {
      // Also when another came and went since the last look.
      this.#losses = controller.losses;
      this.#isReconciled = false;
      this.#running = undefined;
    }
    if (!controller.primary) {
      // Another controls it, and says what state it is in.
      this.#note('another controller is primary');
      return;
    }
    const cookie = await controller.cookie();
    if (cookie !== this.#running?.cookie) this.#running = undefined;
    if (this.#isFresh && cookie === this.#options.forward.cookie) this.#wanted = this.#options.forward;
    if (cookie !== this.#wanted.cookie) {
      if (this.#isReconciled) this.#note('the switch lost its program');
      if (this.state !== 'forwarding') await this.#become('forwarding');
      await this.#install(controller);
    } else if (!this.#isReconciled) {
      await this.#reconcile(controller);
    }
    this.#isFresh = false;
    const expired = this.#book.expire(Date.now());
    if (expired.length > 0 && this.#wanted === this.#options.parity)
      await this.#write(
        controller,
        removing(
          this.#wanted.program,
          expired.flatMap((group) => this.#entriesOf(group)),
        ),
      );
    await this.#become(await this.#judge(controller));
  }

  /** What the data plane says of itself: it counts as silent when probes have gone unanswered for a deadline. */
  async #judge(controller: Controller): Promise<State> {
    const { parity, probe, deadlineMs } = this.#options;
    if (this.#wanted !== parity) return 'forwarding';
    if (probe === undefined) return 'programmable';
    await this.#probe(deadlineMs / 4);
    const now = performance.now();
    if (this.#hasAnswered && (this.#silentSinceMs === undefined || now - this.#silentSinceMs <= deadlineMs)) {
      this.#foundAtMs = undefined;
      return 'programmable';
    }
    // A server may show a program that was saved and never committed.
    if (this.#foundAtMs !== undefined && now - this.#foundAtMs > deadlineMs) {
      this.#note('the program that was there does not answer: pushing it anew');
      await this.#install(controller);
    }
    return 'forwarding';
  }

  /** Sends a probe, and waits a while; an answer that comes later counts too. */
  async #probe(waitMs: number): Promise<void> {
    const { parity, probe, deadlineMs } = this.#options,
      generation = this.#generation;
    if (this.#probesUnderWay >= MOST_PROBES) {
      await delay(waitMs);
      return;
    }
    this.#probesUnderWay++;
    this.#silentSinceMs ??= performance.now();
    const answered = probe!
      .ask(deadlineMs)
      .then((answer) => {
        if (answer?.cookie !== parity.cookie || generation !== this.#generation) return;
        this.#hasAnswered = true;
        this.#silentSinceMs = undefined;
      })
      .finally(() => {
        this.#probesUnderWay--;
      });
    await Promise.race([answered, delay(waitMs)]);
  }

  #forgetAnswers(): void {
    this.#generation++;
    this.#hasAnswered = false;
    this.#silentSinceMs = undefined;
    this.#foundAtMs = undefined;
  }

  async #change(wanted: Artefact, verb: string): Promise<void> {
    await this.#exclusive(async () => {
      const { id } = this.#options,
        controller = this.#controller;
      if (controller === undefined || !controller.primary)
        throw new TartanError(
          'ERR_NOT_PROGRAMMABLE',
          `Cannot ${verb} the program of switch ${id}: ` +
            (controller === undefined ? 'it is down' : 'another controller is primary'),
        );
      if (this.#wanted !== wanted || !this.#isReconciled) {
        this.#wanted = wanted;
        this.#isFresh = false;
        try {
          // Told before the program goes: writers then lose nothing that they have to find out by waiting.
          if (wanted !== this.#options.parity) await this.#become('forwarding');
          await this.#install(controller);
        } catch (error) {
          if (!(error instanceof P4RuntimeError)) throw error;
          throw new TartanError(
            'ERR_NOT_PROGRAMMABLE',
            `Cannot ${verb} the program of switch ${id}: ${oneLine(error)}`,
            { cause: error },
          );
        }
      }
      let state = await this.#judge(controller);
      for (let again = 1; again < MOST_PROBES && wanted === this.#options.parity && state !== 'programmable'; again++)
        state = await this.#judge(controller);
      await this.#become(state);
    });
    this.#wake();
  }

  /** Program and entries anew. */
  async #install(controller: Controller): Promise<void> {
    await this.#readCounters();
    this.#isReconciled = false;
    this.#running = undefined;
    const entities = this.#entities();
    await controller.install(this.#wanted, entities);
    this.#isReconciled = true;
    this.#running = this.#wanted;
    this.#forgetAnswers();
    this.#counts.pipelinesPushed++;
    this.#counts.entriesWritten += entities.length;
    this.#note(`pushed ${this.#wanted.name} with ${entities.length} entries`);
  }

  /** The program is right: only what differs is written. */
  async #reconcile(controller: Controller): Promise<void> {
    const { program } = this.#wanted;
    const present = await controller.present(program);
    if (this.#isFresh && this.#wanted === this.#options.parity)
      this.#book.restore(readGroups(program, present), this.map!);
    this.#adoptGroups();
    const steps = difference(program, present, this.#entities());
    const written = await this.#write(controller, steps);
    this.#isReconciled = true;
    this.#running = this.#wanted;
    this.#foundAtMs = performance.now();
    this.#counts.reconciliations++;
    this.#note(`compared ${present.length} entries of the switch, wrote ${written}`);
  }

  #entities(): v1.Entity[] {
    const { parity, ports } = this.#options,
      { program, cookie } = this.#wanted;
    const forwarding = forwardingEntries(program, ports);
    return this.#wanted !== parity
      ? forwarding
      : [
          ...forwarding,
          ...serviceEntries(program, ports, cookie),
          ...this.#book.groups().flatMap((group) => this.#entriesOf(group)),
        ];
  }

  #entriesOf(group: Group): v1.Entity[] {
    return groupEntries(this.#options.parity.program, this.#options.ports, group);
  }

  async #write(controller: Controller, steps: readonly (readonly v1.Update[])[]): Promise<number> {
    try {
      const written = await controller.write(steps);
      this.#counts.entriesWritten += written;
      return written;
    } catch (error) {
      this.#isReconciled = false;
      throw error;
    }
  }

  async #readCounters(): Promise<void> {
    const controller = this.#controller,
      running = this.#running;
    if (controller === undefined || running === undefined) return;
    try {
      await this.#counters.refresh(running.program, (...entities) => controller.read(...entities));
    } catch (error) {
      if (!(error instanceof P4RuntimeError)) throw error;
      this.#note(`its counters could not be read: ${oneLine(error)}`);
    }
  }

  #adopt(map: ClusterMap): void {
    if (this.map !== undefined && map.changes <= this.map.changes) return;
    this.map = map;
    this.#published = map.switches.find((each) => each.id === this.#options.id)?.state;
    this.#adoptGroups();
    this.#wake();
  }

  #adoptGroups(): void {
    this.#book.adopt(this.map!.epoch, Date.now(), 2 * this.#options.deadlineMs);
  }

  /** What this agent sees itself; the map does not hear of it. */
  #see(state: State): void {
    const { id, log } = this.#options;
    if (this.state !== state) log(`switch ${id} is ${state}`);
    this.state = state;
  }

  /** Publishes a state that is new, and one that could not be published before. */
  async #become(state: State): Promise<void> {
    const { store, id } = this.#options;
    this.#see(state);
    if (this.#published === state) return;
    try {
      const map = await setSwitchState(store, id, state);
      this.#published = state;
      this.#adopt(map);
    } catch (error) {
      if (!isOperating(error)) throw error;
      // Soft state: writers ask the data plane itself; the map follows when the store is back.
      this.#note(`could not publish state '${state}': ${oneLine(error as Error)}`);
    }
  }

  /** One after the other, in the order of asking. */
  #exclusive<T>(action: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(action);
    this.#queue = turn.catch(() => undefined); // whoever asked is told
    return turn;
  }

  async #pause(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** The same again says nothing new. */
  #note(message: string): void {
    if (message !== this.#lastNote) this.#options.log(message);
    this.#lastNote = message;
  }
}

function oneLine(error: Error): string {
  return error.message.split('\n')[0]!;
}
