/**
 * One open file of a writer: its staging window, its links to nodes and switch, and what is done when something breaks.
 *
 * Repair, the one place that reacts to trouble with nodes: stop dispatching; read the map; connect to every node it
 * calls up; propose down what can't be reached; have every node adopt the map; go on. What was refused is then driven
 * again, under the same names, with headers that say what is missing.
 */
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { answerPresence, publishCommit, publishFile } from '../cluster/files.js';
import { presentNodes, readMap, setNodeState, watchMap } from '../cluster/membership.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutOf } from '../erasure/layout/index.js';
import { NodeSet } from '../pipeline/node-set.js';
import type { PacketLanes } from '../pipeline/packet-lanes.js';
import { sleep } from '../wire/clock.js';
import { type ErrorCode, TartanError, codeOf, isOperating } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import { Refusal } from '../wire/ring-messages.js';
import { unitSlotBytes } from '../wire/slot-layout.js';
import type { ClientContext } from './context.js';
import { SwitchFinder } from './switch-finder.js';
import { openLanes, PacketPath } from './packet-path.js';
import { faultOf, Proposals } from './proposals.js';
import type { StripePath, StripePathOwner } from './stripe-path.js';
import { WriteWindow } from './write-window.js';
import { renewEpoch } from './renewal.js';

export type ParityMode = 'switch' | 'host';

/** An unnamed file gets its name when it is complete. */
export interface Naming {
  /** A file of that name goes in the same moment. */
  readonly replace: boolean;
}

/** Unit slots asked of a node: at most this many, at most so many bytes, at least two. */
const NODE_SLOTS = 256;
const NODE_RING_BYTES = 16 << 20;
const PUBLISH_MS = 500;
/** How long a write waits for nodes to come back when more are down than the code can bear. */
const PATIENCE_MS = 30_000;
const REPAIR_PAUSE_MS = 20;
const MAX_REPAIR_PAUSE_MS = 500;

export interface FileSessionOwner {
  onAcknowledged(): void;
  onMode(mode: ParityMode, reason: string): void;
  /** The cluster store can't be asked, and a write needs it. */
  onWaiting(reason: string): void;
  onFatal(error: TartanError): void;
}

export class FileSession {
  readonly window: WriteWindow;
  readonly nodes: NodeSet;
  mode: ParityMode = 'host';
  modeChanges = 0;
  file: FileRecord;
  error: TartanError | undefined;
  /** Of a file that is still to get its name, by this session. */
  naming: Naming | undefined;
  /** The file that had the name before: its units are to be freed. */
  replaced: FileRecord | undefined;

  private readonly context: ClientContext;
  private readonly owner: FileSessionOwner;
  private readonly finder: SwitchFinder;
  private readonly mapWatch: { close(): void };
  private readonly suspects = new Set<number>();
  private readonly condemned = new Set<number>();
  /** Nodes that could not read the cluster store when they were last asked, and since when there was no progress. */
  private readonly blind = new Set<number>();
  private readonly blindSince = new Map<number, number>();
  private readonly proposals: Proposals;
  /** Nodes of a stripe that may be down. */
  private readonly m: number;
  private repairing: Promise<void> | undefined;
  private repairPauseMs = REPAIR_PAUSE_MS;
  private progressAtRepair = -1;
  private patience: unknown;
  private isStarved = false;
  private publishTimer: unknown;
  private publishing: Promise<void> = Promise.resolve();
  private published = -1;
  private renewing = false;
  private closed = false;
  private waiters: (() => void)[] = [];
  /** Asked so far whether owners are there (ClusterMap.questions). */
  private questions: number;

  private constructor(
    context: ClientContext,
    file: FileRecord,
    map: ClusterMap,
    owner: FileSessionOwner,
    private readonly lanes: PacketLanes | undefined,
  ) {
    this.context = context;
    this.questions = map.questions ?? 0;
    this.file = file;
    this.owner = owner;
    const code = parseCode(file.code);
    this.m = code.m;
    this.proposals = new Proposals(context.proposals);
    const layout = layoutOf(file, code);
    let window: WriteWindow | undefined;
    this.nodes = new NodeSet(map, {
      context,
      nodes: file.nodes,
      role: 'writer',
      name: context.name,
      fileId: file.id,
      unitBytes: file.unitBytes,
      slots: Math.max(2, Math.min(NODE_SLOTS, Math.floor(NODE_RING_BYTES / unitSlotBytes(file.unitBytes)))),
      receiveSlots: 0,
      transport: context.transport,
      heartbeatMs: context.heartbeatMs,
      deadlineMs: context.deadlineMs,
      packets: lanes,
      writerEpoch: file.writerEpoch,
      owner: {
        locate: (op, unit, place) => {
          window!.pipeline.locate(op, unit, place);
        },
        onWritten: (link, op, unit, ok) => {
          window!.pipeline.onWritten(link, op, unit, ok);
        },
        onAnswer: (link, op, unit, refusal, epoch) => {
          window!.pipeline.onAnswer(link, op, unit, refusal, epoch);
        },
        onStripeAnswer: (...answer) => {
          this.packetPath?.answered(...answer);
        },
        onLinkDown: (link) => {
          this.packetPath?.nodeLost(link.index);
          this.disturbed(link.index, Refusal.UNREACHABLE, false);
        },
      },
    });
    window = new WriteWindow(context, file, code, layout, this.nodes, {
      onAcknowledged: () => {
        this.acknowledged();
      },
      onDisturbed: (index, refusal, viaSwitch) => {
        this.disturbed(index, refusal, viaSwitch);
      },
      onStarved: (message) => {
        this.starved(message);
      },
      onUsedUp: () => {
        this.renew();
      },
      onFatal: (error) => {
        this.fatal(error);
      },
    });
    this.window = window;
    const pathOwner: StripePathOwner = {
      onSettled: (tag, refusal, unit, epoch) => {
        this.window.pathSettled(tag, refusal, unit, epoch);
      },
      onLost: (path, reason) => {
        this.pathLost(path, reason);
      },
      onState: (path, state) => {
        this.pathState(path, state);
      },
    };
    this.finder = new SwitchFinder({
      context,
      file,
      window,
      map: () => this.nodes.map,
      owner: pathOwner,
      openPackets:
        lanes &&
        ((entry) =>
          PacketPath.open(entry, {
            context,
            file,
            layout,
            slots: this.window.slots,
            region: this.window.region,
            tags: this.window.tags,
            lanes,
            nodes: this.nodes,
            owner: pathOwner,
          })),
      onPath: (path) => {
        this.window.setPath(path);
        this.changeMode('switch', `switch ${path.id} is programmable`);
      },
    });
    this.mapWatch = watchMap(context.store, (map) => {
      if (this.closed) return;
      if ((map.questions ?? 0) > this.questions) this.answerPresence(map.questions ?? 0);
      if (map.epoch > this.nodes.map.epoch) detach(this.repair());
      else if (map.changes > this.nodes.map.changes) {
        this.nodes.map = map;
        this.heedSwitches(map);
      }
    });
  }

  /** Connects to all nodes of the file and, if there is one, a switch. */
  static async open(context: ClientContext, file: FileRecord, owner: FileSessionOwner): Promise<FileSession> {
    const map = await readMap(context.store);
    const session = new FileSession(context, file, map, owner, await openLanes(context, file, map));
    try {
      const failures = await session.nodes.connectUp(context.deadlineMs);
      const refused = failures.find(({ error }) => faultOf(error) !== 'gone');
      if (refused !== undefined) throw refused.error;
      if (failures.length > 0) await session.repair();
      if (session.error !== undefined) throw session.error;
      await session.finder.start();
      return session;
    } catch (error) {
      await session.destroy();
      throw error;
    }
  }

  /** Resolves when everything appended so far is acknowledged. Rejects with the session's error. */
  async flush(): Promise<void> {
    while (!this.window.idle) {
      if (this.error !== undefined) throw this.error;
      if (this.closed)
        throw new TartanError(
          'ERR_CLOSED',
          `Cannot flush '${this.file.name}': it was closed before everything written was acknowledged`,
        );
      this.window.flushTail();
      // What is sent may end the file at once: then nobody wakes who begins to wait only now.
      if (this.window.idle || this.error !== undefined) break;
      await new Promise<void>((resolve) => {
        this.waiters.push(resolve);
      });
    }
    if (this.error !== undefined) throw this.error;
  }

  /**
   * Publishes length and commit mark; 'closed': also the name of a file that has none yet.
   * @throws {TartanError} ERR_FENCED, ERR_EXISTS, ERR_MAP_UNAVAILABLE
   */
  publish(state?: 'open' | 'closed'): Promise<void> {
    if (this.publishTimer !== undefined) {
      this.context.clock.clearTimer(this.publishTimer);
      this.publishTimer = undefined;
    }
    const run = this.publishing.then(async () => {
      const { acknowledgedBytes, acknowledgedCounter } = this.window;
      if (state === undefined && acknowledgedCounter === this.published) return;
      const commit = {
        writerEpoch: this.file.writerEpoch,
        length: acknowledgedBytes,
        commitEpoch: this.file.writerEpoch,
        commitCounter: acknowledgedCounter,
      };
      if (state === 'closed' && this.naming !== undefined) {
        const { replace } = this.naming;
        this.replaced = (await publishFile(this.context.store, this.file.id, { ...commit, replace })).replaced;
        this.naming = undefined;
      } else {
        await publishCommit(this.context.store, this.file.id, { ...commit, ...(state === undefined ? {} : { state }) });
      }
      this.published = acknowledgedCounter;
    });
    this.publishing = run.catch(() => {}); // whoever asked is told
    return run;
  }

  /** The mark is published lazily: when the store is away, as soon as it is back. */
  publishLater(): void {
    this.publishTimer ??= this.context.clock.setTimer(PUBLISH_MS, () => {
      this.publishTimer = undefined;
      if (this.closed || this.error !== undefined) return;
      this.publish().catch((error: unknown) => {
        if (!isOperating(error)) throw error;
        if (codeOf(error) === 'ERR_FENCED') this.fatal(error as TartanError);
        else if (!this.closed) this.publishLater();
      });
    });
  }

  async destroy(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.mapWatch.close();
    this.endPatience();
    if (this.publishTimer !== undefined) this.context.clock.clearTimer(this.publishTimer);
    this.wakeAll();
    await this.publishing;
    await this.finder.stop();
    await this.nodes.destroy('closed');
    await this.lanes?.close();
    await this.repairing;
    await this.window.destroy();
  }

  // --- what happens

  private acknowledged(): void {
    this.repairPauseMs = REPAIR_PAUSE_MS;
    this.blindSince.clear();
    this.endPatience();
    this.publishLater();
    this.owner.onAcknowledged();
    this.wakeAll();
  }

  /** The next writer epoch, between two publications: each goes by one. */
  private renew(): void {
    if (this.renewing || this.closed || this.error !== undefined) return;
    this.renewing = true;
    const run = this.publishing.then(async () => {
      const isOver = () => this.closed || this.error !== undefined;
      const renewed = await renewEpoch(this.context, this.file, this.window, this.owner, isOver);
      if (renewed !== undefined) {
        this.file = renewed;
        this.published = 0;
        this.window.renew(renewed.writerEpoch);
        await this.repairing;
        if (await this.nodes.renew(renewed.writerEpoch)) detach(this.repair());
      }
      this.renewing = false;
      if (!isOver()) this.acknowledged();
    });
    this.publishing = run;
    detach(run);
  }

  /** Somebody wants to know which files have owners that live. */
  private answerPresence(questions: number): void {
    this.questions = questions;
    answerPresence(this.context.store, this.file.id, this.file.writerEpoch).catch((error: unknown) => {
      if (!isOperating(error)) throw error;
    });
  }

  private endPatience(): void {
    if (this.patience !== undefined) this.context.clock.clearTimer(this.patience);
    this.patience = undefined;
  }

  private wakeAll(): void {
    const waiters = this.waiters;
    this.waiters = [];
    for (const resolve of waiters) resolve();
  }

  private get packetPath(): PacketPath | undefined {
    return this.window.currentPath instanceof PacketPath ? this.window.currentPath : undefined;
  }

  /**
   * A packet switch says nothing itself when it loses its program: its agent says so in the map, sooner than probes
   * find out.
   */
  private heedSwitches(map: ClusterMap): void {
    const path = this.packetPath,
      state = map.switches.find(({ id }) => id === path?.id)?.state;
    if (path !== undefined && state !== 'programmable') path.close(`switch ${path.id} is ${state ?? 'gone'}`);
    if (this.lanes !== undefined) this.finder.nudge();
  }

  private pathState(path: StripePath, state: string): void {
    if (path === this.window.currentPath) {
      if (state !== 'programmable') path.close(`switch ${path.id} is ${state}`);
    } else {
      this.finder.changed(path);
    }
  }

  private pathLost(path: StripePath, reason: string): void {
    if (this.closed) return;
    if (path === this.window.currentPath) {
      this.window.setPath(undefined);
      this.changeMode('host', reason);
    }
    this.context.clock.setTimer(0, () => {
      if (!this.closed) this.finder.lost(path);
    });
  }

  private changeMode(mode: ParityMode, reason: string): void {
    if (mode === this.mode) return;
    this.mode = mode;
    this.modeChanges++;
    this.owner.onMode(mode, reason);
  }

  private disturbed(index: number, refusal: number, viaSwitch: boolean): void {
    if (this.closed || this.error !== undefined) return;
    if (refusal === Refusal.DISK || (viaSwitch && refusal === Refusal.UNREACHABLE)) this.suspects.add(index);
    if (refusal === Refusal.DISK) this.nodes.drop(index, 'its disk fails');
    if (refusal === Refusal.MAP_UNAVAILABLE) this.sawBlind(index);
    detach(this.repair(refusal === Refusal.DISK ? index : undefined));
  }

  /** Nodes that were slow, not dead, come up again by themselves; the map's watch then goes on. */
  private starved(message: string, code: ErrorCode = 'ERR_TOO_MANY_LOST'): void {
    this.window.halt();
    this.isStarved = true;
    if (this.patience !== undefined || this.closed) return;
    this.owner.onWaiting(message);
    this.patience = this.context.clock.setTimer(PATIENCE_MS, () => {
      this.window.fatal(code, `${message}, for ${PATIENCE_MS / 1000} s`);
    });
  }

  /** Goes on; what waited for nodes waits no longer when none of it is starved still. */
  private resume(): void {
    this.isStarved = false;
    this.window.resume();
    if (!this.isStarved) this.endPatience();
  }

  private fatal(error: TartanError): void {
    if (this.error !== undefined) return;
    this.error = error;
    this.owner.onFatal(error);
    this.wakeAll();
  }

  /**
   * Brings map and links up to date; nothing is sent meanwhile.
   * @param condemned  a node that is to be proposed down though it answers
   */
  repair(condemned?: number): Promise<void> {
    this.window.halt();
    if (condemned !== undefined) this.condemned.add(condemned);
    this.repairing ??= this.runRepair().finally(() => {
      this.repairing = undefined;
    });
    return this.repairing;
  }

  private async runRepair(): Promise<void> {
    const { context, window } = this;
    // Trouble again without progress: wait a little longer each time.
    if (window.acknowledgedCounter === this.progressAtRepair) {
      await sleep(context.clock, this.repairPauseMs);
      this.repairPauseMs = Math.min(this.repairPauseMs * 2, MAX_REPAIR_PAUSE_MS);
    }
    this.progressAtRepair = window.acknowledgedCounter;
    while (!this.closed && this.error === undefined) {
      try {
        if (await this.align()) break;
      } catch (error) {
        if (!isOperating(error)) throw error;
        if (error.code === 'ERR_MAP_UNAVAILABLE')
          this.owner.onWaiting('the cluster store does not answer; a node must be declared down or the map read');
        await sleep(context.clock, MAX_REPAIR_PAUSE_MS / 2);
      }
    }
    if (!this.closed && this.error === undefined) this.resume();
  }

  /**
   * One round of a repair: a map, a connection to each node that it calls up, and that map at all of them.
   * @returns whether that has been reached; else it is to be tried again
   * @throws {TartanError} ERR_MAP_UNAVAILABLE: the cluster store does not answer · ERR_STALE_MAP: the map was changed
   */
  private async align(): Promise<boolean> {
    const { context, nodes } = this;
    nodes.map = await readMap(context.store);
    nodes.dropDown();
    for (const index of [...this.condemned, ...this.blind]) if (nodes.isDown(index)) this.acquit(index);
    const failures = await nodes.connectUp(context.deadlineMs);
    const silent = failures.filter(({ error }) => faultOf(error) === 'gone').map(({ index }) => index);
    const refused = failures.filter(({ index }) => !silent.includes(index));
    const certain = [...this.condemned];
    if (failures.length === 0) {
      const { behind, mute } = await this.adopt();
      silent.push(...mute);
      for (const index of behind) this.sawBlind(index);
      const now = context.clock.now();
      for (const index of this.blind)
        if (now - (this.blindSince.get(index) ?? now) >= context.deadlineMs) certain.push(index);
      if (silent.length + certain.length + behind.length === 0) {
        await this.checkSuspects();
        this.packetPath?.remap(nodes.map);
        this.blind.clear();
        return true;
      }
    }
    if (await this.proposeDown(silent, certain, refused)) return false;
    await sleep(context.clock, this.repairPauseMs);
    this.repairPauseMs = Math.min(this.repairPauseMs * 2, MAX_REPAIR_PAUSE_MS);
    return false;
  }

  /**
   * Proposes down the nodes that can't be used and are to blame for it.
   *
   * @param silent  indexes of nodes that don't answer  @param certain  of those that say that they are no use
   * @param refused  of those that answer, with what they refuse: when something here is to blame, that ends the file;
   *         when they have no room, that is waited for
   * @returns whether any was proposed
   */
  private async proposeDown(
    silent: readonly number[],
    certain: readonly number[],
    refused: readonly { index: number; error: unknown }[],
  ): Promise<boolean> {
    const { context, nodes } = this;
    const idOf = (index: number): string => nodes.entry(index)!.id;
    const present = await presentNodes(context.store),
      now = context.clock.now();
    // Whoever answers at the address of a node whose lease is over, as a stranger does, is not that node.
    const isStranger = ({ index, error }: { index: number; error: unknown }): boolean =>
      faultOf(error) === 'ours' && !present.has(idOf(index));
    const gone = [...silent, ...refused.filter(isStranger).map(({ index }) => index)];
    const suspects = [...new Set([...gone, ...certain])];
    const blamed = this.proposals.judge({
      silent: suspects.map(idOf),
      certain: certain.map(idOf),
      present,
      nodes: nodes.count,
      m: this.m,
      now,
    });
    for (const index of suspects.filter((each) => blamed.includes(idOf(each)))) {
      const id = idOf(index);
      nodes.map = await setNodeState(context.store, id, 'down', { ifEpoch: nodes.map.epoch });
      context.proposals.proposed(id, now);
      this.acquit(index);
    }
    if (blamed.length > 0) return true;
    for (const each of refused) {
      const { code, message } = each.error as TartanError;
      if (faultOf(each.error) === 'busy') this.starved(`Cannot write '${this.file.name}': ${message}`, code);
      else if (!isStranger(each)) this.fatal(each.error as TartanError);
    }
    if (gone.length > this.m)
      this.starved(
        `Cannot write '${this.file.name}': nodes ${gone.map(idOf).join(', ')} can't be reached from here, ` +
          'though they are present in the cluster',
      );
    return false;
  }

  /** A node says that it can't read the cluster store, which can be read here. */
  private sawBlind(index: number): void {
    this.blind.add(index);
    if (!this.blindSince.has(index)) this.blindSince.set(index, this.context.clock.now());
  }

  /** What was said against a node is settled: the map calls it down. */
  private acquit(index: number): void {
    this.condemned.delete(index);
    this.blind.delete(index);
    this.blindSince.delete(index);
  }

  /** The switch could not reach a node: when we can, it is the switch that is cut off. */
  private async checkSuspects(): Promise<void> {
    const path = this.window.currentPath;
    for (const index of this.suspects) {
      this.suspects.delete(index);
      const link = this.nodes.linkTo(index);
      if (this.nodes.isDown(index) || link === undefined) continue;
      await link.request({ $case: 'adoptMap', value: { mapEpoch: this.nodes.map.epoch } }, this.context.deadlineMs);
      path?.close(`switch ${path.id} cannot reach node ${link.nodeId}`);
    }
  }

  /**
   * Every node that is up holds this map before anything is sent under it.
   * @returns nodes that can't read it, though this process has; and those that do not answer
   */
  private async adopt(): Promise<{ behind: number[]; mute: number[] }> {
    const behind: number[] = [],
      mute: number[] = [];
    await Promise.all(
      this.nodes.upIndexes().map(async (index) => {
        const link = this.nodes.linkTo(index);
        if (link === undefined || link.nodeMapEpoch >= this.nodes.map.epoch) return;
        try {
          await link.request({ $case: 'adoptMap', value: { mapEpoch: this.nodes.map.epoch } }, this.context.deadlineMs);
        } catch (error) {
          if (!isOperating(error)) throw error;
          if (faultOf(error) === 'ours') throw error;
          (faultOf(error) === 'busy' ? behind : mute).push(index);
        }
      }),
    );
    return { behind, mute };
  }
}
