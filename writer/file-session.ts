/**
 * One open file of a writer: its staging window, its links to nodes and switch, and what is done when something breaks.
 *
 * Repair, the one place that reacts to trouble with nodes: stop dispatching; read the map; connect to every node it
 * calls up; propose down what can't be reached; have every node adopt the map; go on. What was refused is then driven
 * again, under the same names, with headers that say what is missing.
 */
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { answerPresence, publishCommit, publishFile } from '../cluster/files.js';
import { readMap, setNodeState, watchMap } from '../cluster/membership.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutOf } from '../erasure/layout/index.js';
import { NodeSet } from '../pipeline/node-set.js';
import { PacketLanes } from '../pipeline/packet-lanes.js';
import { sleep } from '../wire/clock.js';
import { TartanError, codeOf, isOperating } from '../wire/errors.js';
import { MAX_PACKET_K, MAX_PACKET_M } from '../wire/packet-header.js';
import { Refusal } from '../wire/ring-messages.js';
import { unitSlotBytes } from '../wire/slot-layout.js';
import type { ClientContext } from './context.js';
import { SwitchFinder } from './switch-finder.js';
import { PacketPath } from './packet-path.js';
import type { StripePath, StripePathOwner } from './stripe-path.js';
import { WriteWindow } from './write-window.js';

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
  private repairing: Promise<void> | undefined;
  private repairPauseMs = REPAIR_PAUSE_MS;
  private progressAtRepair = -1;
  private patience: unknown;
  private publishTimer: unknown;
  private publishing: Promise<void> = Promise.resolve();
  private published = -1;
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
      if (map.epoch > this.nodes.map.epoch) void this.repair();
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
      const refused = failures.find(({ error }) => !['ERR_CONNECT', 'ERR_CLOSED'].includes(codeOf(error) ?? ''));
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
      if (this.window.idle) break;
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
    this.publishing = run.catch(() => {});
    return run;
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
    this.endPatience();
    this.publishTimer ??= this.context.clock.setTimer(PUBLISH_MS, () => {
      this.publishTimer = undefined;
      if (this.closed || this.error !== undefined) return;
      this.publish().catch((error: unknown) => {
        if (codeOf(error) === 'ERR_FENCED') this.fatal(error as TartanError);
        // Otherwise the store is away: the mark is published lazily anyhow, next time.
      });
    });
    this.owner.onAcknowledged();
    this.wakeAll();
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
    void this.repair(refusal === Refusal.DISK ? index : undefined);
  }

  /** Nodes that were slow, not dead, come up again by themselves; the map's watch then goes on. */
  private starved(message: string): void {
    this.window.halt();
    if (this.patience !== undefined || this.closed) return;
    this.owner.onWaiting(message);
    this.patience = this.context.clock.setTimer(PATIENCE_MS, () => {
      this.window.fatal('ERR_TOO_MANY_LOST', `${message}, for ${PATIENCE_MS / 1000} s`);
    });
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
    const { context, nodes, window } = this;
    // Trouble again without progress: wait a little longer each time.
    if (window.acknowledgedCounter === this.progressAtRepair) {
      await sleep(context.clock, this.repairPauseMs);
      this.repairPauseMs = Math.min(this.repairPauseMs * 2, MAX_REPAIR_PAUSE_MS);
    }
    this.progressAtRepair = window.acknowledgedCounter;
    while (!this.closed && this.error === undefined) {
      try {
        nodes.map = await readMap(context.store);
        const gone = (await nodes.connectUp(context.deadlineMs)).map(({ index }) => index);
        for (const index of this.condemned) if (!gone.includes(index)) gone.push(index);
        for (const index of gone) {
          await this.proposeDown(index);
          this.condemned.delete(index);
        }
        if (gone.length > 0) continue;
        await this.checkSuspects();
        await this.adopt();
        this.packetPath?.remap(nodes.map);
        break;
      } catch (error) {
        if (!isOperating(error)) throw error;
        const { code } = error;
        if (code === 'ERR_MAP_UNAVAILABLE')
          this.owner.onWaiting('the cluster store does not answer; a node must be declared down or the map read');
        await sleep(context.clock, MAX_REPAIR_PAUSE_MS / 2);
      }
    }
    if (!this.closed && this.error === undefined) window.resume();
  }

  private async proposeDown(index: number): Promise<void> {
    const entry = this.nodes.entry(index);
    if (entry === undefined || entry.state === 'down') return;
    this.nodes.map = await setNodeState(this.context.store, entry.id, 'down', { ifEpoch: this.nodes.map.epoch });
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

  /** Every node that is up holds this map before anything is sent under it. */
  private async adopt(): Promise<void> {
    await Promise.all(
      this.nodes.upIndexes().map(async (index) => {
        const link = this.nodes.linkTo(index);
        if (link === undefined || link.nodeMapEpoch >= this.nodes.map.epoch) return;
        await link.request({ $case: 'adoptMap', value: { mapEpoch: this.nodes.map.epoch } }, this.context.deadlineMs);
      }),
    );
  }
}

/** Where packets are wanted, the device has them, and the code fits them; undefined: rings. */
async function openLanes(context: ClientContext, file: FileRecord, map: ClusterMap): Promise<PacketLanes | undefined> {
  const { k, m } = parseCode(file.code);
  if (context.dataPath === 'ring' || k > MAX_PACKET_K || m > MAX_PACKET_M) return undefined;
  const packetSwitch = map.switches.find(({ packets }) => packets !== undefined)?.packets;
  if (context.dataPath === 'auto' && (packetSwitch === undefined || context.device.openPacketSocket === undefined))
    return undefined;
  const taking = map.nodes.find(({ id, packets }) => packets !== undefined && file.nodes.includes(id));
  return taking && PacketLanes.open(context, taking.packets!.host, packetSwitch?.mtu);
}
