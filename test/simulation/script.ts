/**
 * Plans of which every step and every fault is written down, each waiting for something that happens in the cluster and
 * never for a time: such a plan means the same whatever the code's timing is. Each deliberately broken variant has one.
 */
import { sleep, type Clock } from '../../wire/clock.js';
import type { Client, FileWriter } from '../../writer/index.js';
import { MAP_KEY } from '../../cluster/keys.js';
import type { ClusterMap } from '../../cluster/records.js';
import type { Load } from './load.js';
import type { Site } from './machines.js';
import { Violation, type Model, type Owner } from './model.js';
import type { Fault, Plan } from './plan.js';
import { destroyed, ended, recordOf, written } from './writers.js';

/** Something that has come about, and stays so. */
export type Moment =
  /** A node has taken so many units, over all its lives. */
  | { readonly units: number; readonly of: string }
  /** So many bytes of the file that a writer has open are acknowledged. */
  | { readonly acknowledged: number; readonly by: string }
  /** An actor has done so many of its steps. */
  | { readonly steps: number; readonly of: string }
  /** A reader has asked for its so manieth range. */
  | { readonly reads: number; readonly of: string }
  /** The map says so of a node. */
  | { readonly node: string; readonly is: 'up' | 'down' }
  /** A node has made so many units durable in its present life. */
  | { readonly stored: number; readonly at: string }
  /** A node has told so many times what it holds of a file, as those ask who take one over. */
  | { readonly listed: number; readonly by: string }
  /** A fault has struck; it has been undone. */
  | { readonly struck: number }
  | { readonly over: number }
  | { readonly all: readonly Moment[] };

/** What an actor does, one after the other. A step that fails as things may fail in trouble is over. */
export type Step =
  | readonly ['create', file: string, code: string, unitBytes: number]
  /** Takes a file over; again and again until it succeeds, at most 200 times. */
  | readonly ['append', file: string]
  | readonly ['write', bytes: number]
  /** So many writes of so many bytes, a flush after each. */
  | readonly ['trickle', writes: number, bytes: number]
  | readonly ['flush']
  | readonly ['end']
  | readonly ['destroy']
  /** Opens a file and reads all of it, so many times. */
  | readonly ['read', file: string, times: number]
  | readonly ['rebuild', file: string]
  | readonly ['wait', moment: Moment];

export type Script = Readonly<Record<string, readonly Step[]>>;

const TRIES = 200;

/** The plan of a small cluster in which nothing happens but what is written down. */
export function pinned(plan: Partial<Plan> & { readonly script: Script }): Plan {
  return {
    seed: 1,
    nodes: ['n1', 'n2', 'n3', 'n4'],
    switches: [],
    writers: Object.keys(plan.script).filter((host) => host.startsWith('w')),
    readers: Object.keys(plan.script).filter((host) => host.startsWith('r')),
    rebuilders: Object.keys(plan.script).filter((host) => host.startsWith('m')),
    codes: ['xor(2+1)'],
    fileNames: ['file1'],
    loadMs: 30_000,
    victim: '',
    faults: [],
    storeLatencyMs: 0.05,
    bytesPerMs: 20_000,
    drift: 0,
    flushOneIn: 1,
    isThorough: true,
    ...plan,
  };
}

/** A fault at a moment, until another; without one, until everything heals. */
export function fault(
  kind: Fault['kind'],
  a: string,
  after: Moment,
  more: Partial<Pick<Fault, 'b' | 'until' | 'forMs' | 'id' | 'unsynced'>> = {},
): Fault {
  return { id: 0, kind, a, b: '', atMs: 0, forMs: more.until === undefined ? Infinity : 0, after, ...more };
}

/** The actors of a script, and what has come about. */
export class Stage {
  /** Faults that have struck, and those that have been undone, by id. */
  readonly struck = new Set<number>();
  readonly over = new Set<number>();
  private readonly done = new Map<string, number>();
  private readonly reads = new Map<string, number>();
  private readonly owners = new Map<string, Owner>();

  constructor(
    private readonly site: Site,
    private readonly model: Model,
    private readonly load: Load,
  ) {}

  /** @returns whether this is the actor's first life: what has been killed does not begin its script again */
  begins(host: string): boolean {
    if (this.done.has(host)) return false;
    this.done.set(host, 0);
    return true;
  }

  hasCome(moment: Moment): boolean {
    if ('units' in moment) return (this.site.unitsTaken.get(moment.of) ?? 0) >= moment.units;
    if ('steps' in moment) return (this.done.get(moment.of) ?? 0) >= moment.steps;
    if ('reads' in moment) return (this.reads.get(moment.of) ?? 0) >= moment.reads;
    if ('stored' in moment)
      return (this.site.nodes.get(moment.at)?.node?.storeStats().unitsStored ?? 0) >= moment.stored;
    if ('listed' in moment) return (this.site.listed.get(moment.by) ?? 0) >= moment.listed;
    if ('struck' in moment) return this.struck.has(moment.struck);
    if ('over' in moment) return this.over.has(moment.over);
    if ('all' in moment) return moment.all.every((each) => this.hasCome(each));
    if ('acknowledged' in moment)
      return (this.owners.get(moment.by)?.writer.progress.acknowledgedBytes ?? 0) >= moment.acknowledged;
    const row = this.site.memory.engine.get(MAP_KEY);
    const { nodes } = JSON.parse(row?.value ?? '{"nodes":[]}') as ClusterMap;
    return nodes.some(({ id, state }) => id === moment.node && state === moment.is);
  }

  /** An actor's life: its steps, then its client is closed. */
  async act(host: string, steps: readonly Step[], state: { what: string }): Promise<void> {
    const clock = this.site.clock(host),
      client = await this.load.connected(host, clock);
    let writer: FileWriter | undefined;
    for (const step of steps) {
      if (this.load.stopping) break;
      await this.load.expecting(
        host,
        state,
        step.map((part) => (typeof part === 'object' ? JSON.stringify(part) : part)).join(' '),
        async () => {
          writer = (await this.step(host, client, clock, step, writer)) ?? writer;
        },
      );
      this.done.set(host, (this.done.get(host) ?? 0) + 1);
    }
    if (writer !== undefined && !writer.writableFinished) await destroyed(writer);
    state.what = 'closing the client';
    await client.close();
  }

  private async step(
    host: string,
    client: Client,
    clock: Clock,
    step: Step,
    writer: FileWriter | undefined,
  ): Promise<FileWriter | undefined> {
    const owner = this.owners.get(host)!;
    switch (step[0]) {
      case 'create':
        return this.owned(host, await client.create(step[1], { code: step[2], unitBytes: step[3] }));
      case 'append':
        for (let attempt = 1; ; attempt++)
          try {
            return this.owned(host, await client.append(step[1]));
          } catch (error) {
            if (attempt === TRIES || this.load.stopping || error instanceof Violation) throw error;
            this.site.world.note(`${host} tries again to take ${step[1]} over: ${(error as Error).message}`);
            await sleep(clock, 20);
          }
      case 'write':
        await written(writer!, this.model.next(owner, step[1]));
        return;
      case 'trickle':
        for (let i = 0; i < step[1] && !this.load.stopping; i++) {
          await written(writer!, this.model.next(owner, step[2]));
          this.load.flushed(owner, await writer!.flush());
        }
        return;
      case 'flush':
        this.load.flushed(owner, await writer!.flush());
        return;
      case 'end':
        await ended(writer!);
        this.load.flushed(owner, true);
        return;
      case 'destroy':
        await destroyed(writer!);
        return;
      case 'read': {
        const reader = await client.open(step[1]);
        const file = this.model.file(recordOf(reader));
        for (let i = 0; i < step[2] && !this.load.stopping; i++) {
          this.reads.set(host, (this.reads.get(host) ?? 0) + 1);
          this.model.read(file, 0, await reader.read(0, await reader.refresh()), host);
        }
        await reader.close();
        return;
      }
      case 'rebuild':
        await client.rebuild(step[1]);
        return;
      case 'wait':
        while (!this.hasCome(step[1]) && !this.load.stopping) await sleep(clock, 0.1);
    }
  }

  private owned(host: string, writer: FileWriter): FileWriter {
    this.load.watch(host, writer);
    this.owners.set(host, this.model.owned(host, writer));
    return writer;
  }
}
