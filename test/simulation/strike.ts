/** Makes the faults of a plan happen, and undoes all of them at the end. */
import type { Load } from './load.js';
import type { Site } from './machines.js';
import type { Fault, Plan } from './plan.js';
import type { Moment } from './script.js';

export class Faults {
  readonly struck = new Map<string, number>();
  private readonly pairs = new Set<string>();
  private over = false;
  /** What waits for a moment of the plan's: faults to strike, and what undoes those that have. */
  private waiting: { readonly moment: Moment; readonly go: () => void }[] = [];

  constructor(
    private readonly site: Site,
    private readonly load: Load,
    private readonly plan: Plan,
  ) {}

  /** Puts every fault into the world's queue of events, or among those that wait for a moment. */
  schedule(): void {
    for (const fault of this.plan.faults) {
      if (fault.after === undefined) this.soon(fault);
      else
        this.waiting.push({
          moment: fault.after,
          go: () => {
            this.soon(fault);
          },
        });
    }
  }

  /** To be called between any two events: has a moment come that something waits for? */
  look(): void {
    if (this.waiting.length === 0 || this.over) return;
    const come = this.waiting.filter(({ moment }) => this.load.stage!.hasCome(moment));
    if (come.length === 0) return;
    this.waiting = this.waiting.filter((each) => !come.includes(each));
    for (const { go } of come) go();
  }

  /** What a plan's faults still wait for. */
  get awaited(): string[] {
    return this.waiting.map(({ moment }) => JSON.stringify(moment));
  }

  private soon(fault: Fault): void {
    const { world } = this.site;
    world.schedule(fault.atMs, undefined, () => {
      if (this.over) return;
      this.struck.set(fault.kind, (this.struck.get(fault.kind) ?? 0) + 1);
      world.note(`fault ${fault.id}: ${fault.kind} ${fault.a} ${fault.b} for ${fault.forMs.toFixed(3)} ms`);
      const undo = this.strike(fault);
      this.load.stage?.struck.add(fault.id);
      const end = (): void => {
        if (this.over) return;
        world.note(`fault ${fault.id} is over`);
        undo();
        this.load.stage?.over.add(fault.id);
      };
      if (fault.until !== undefined) this.waiting.push({ moment: fault.until, go: end });
      else if (fault.forMs < Infinity) world.schedule(fault.forMs, undefined, end);
    });
  }

  /** Everything works again: from now on nothing more goes wrong. */
  heal(): void {
    this.over = true;
    const { world, nodes, switches } = this.site;
    world.note('everything heals');
    for (const pair of this.pairs) this.mend(pair);
    for (const host of [
      ...nodes.keys(),
      ...switches.keys(),
      ...this.plan.writers,
      ...this.plan.readers,
      ...this.plan.rebuilders,
    ]) {
      if (world.findHost(host) !== undefined) world.resumeHost(host);
      this.site.healStore(host);
    }
    for (const machine of nodes.values()) {
      Object.assign(machine.trouble, {
        failsReads: false,
        failsWrites: false,
        failsSyncs: false,
        full: false,
        slowMs: 0,
      });
      // A store whose sync failed writes nothing any more until it is opened again: somebody replaces the cable, and
      // starts the node.
      if (machine.isLeaving || (machine.isUp && machine.node?.storeStats().failed === true)) machine.restart(1);
      machine.start();
    }
    for (const machine of switches.values()) {
      if (machine.isLeaving) machine.restart(1);
      machine.start();
      if (machine.isUp) void machine.core?.load();
    }
    for (const host of [...this.plan.writers, ...this.plan.readers, ...this.plan.rebuilders])
      if (!this.load.isAlive(host)) this.load.start(host);
  }

  /** @returns what undoes it */
  private strike({ kind, a, b, forMs, unsynced }: Fault): () => void {
    const { world, nodes, switches } = this.site;
    const node = nodes.get(a),
      aSwitch = switches.get(a),
      trouble = node?.trouble;
    const link = (options: Parameters<typeof world.setLink>[2]) => {
      this.pairs.add(`${a} ${b}`);
      world.setLink(a, b, options);
      return () => {
        this.mend(`${a} ${b}`);
      };
    };
    const cut = (oneWay: boolean) => {
      this.pairs.add(`${a} ${b}`);
      world.partition(a, b, oneWay);
      return () => {
        world.heal(a, b);
      };
    };
    const nothing = (): void => {};
    switch (kind) {
      case 'switch-unload':
        void aSwitch!.core?.unload();
        return () => {
          if (aSwitch!.isUp) void aSwitch!.core?.load();
        };
      case 'switch-kill':
        aSwitch!.kill();
        return () => {
          aSwitch!.start();
        };
      case 'switch-stop':
        void aSwitch!.stop(forMs);
        return nothing;
      case 'switch-pause':
      case 'node-pause':
      case 'writer-pause':
        if (world.findHost(a) === undefined) return nothing;
        world.pauseHost(a);
        return () => {
          if (world.findHost(a) !== undefined) world.resumeHost(a);
        };
      case 'node-kill':
        node!.kill();
        return () => {
          node!.start();
        };
      case 'node-power-loss':
        node!.powerLoss(unsynced);
        return () => {
          node!.start();
        };
      case 'node-stop':
        void node!.stop(forMs);
        return nothing;
      case 'power-loss-everywhere':
        for (const machine of nodes.values()) machine.powerLoss(unsynced);
        for (const machine of switches.values()) machine.kill();
        return () => {
          for (const machine of [...nodes.values(), ...switches.values()]) machine.start();
        };
      case 'writer-kill':
      case 'reader-kill':
      case 'rebuilder-kill':
        this.load.kill(a);
        return () => {
          if (!this.load.isAlive(a)) this.load.start(a);
        };
      case 'cut-writer-switch':
      case 'cut-switch-node':
      case 'cut-writer-node':
      case 'cut-reader-node':
        return cut(false);
      case 'cut-one-way':
        return cut(true);
      case 'break-writer-switch':
      case 'break-switch-node':
      case 'break-writer-node':
        world.breakConnections(a, b);
        return nothing;
      case 'slow-link':
        return link({
          latencyMs: 0.2 + Math.min(500, forMs) / 50,
          jitterMs: Math.min(500, forMs) / 20,
          bytesPerMs: 500,
        });
      case 'lossy-link':
        return link({ lossRate: 0.1 });
      case 'damaged-packets':
        return link({ damageRate: 0.2 });
      case 'store-cut-off':
        this.site.cutOffStore(a);
        return () => {
          this.site.healStore(a);
        };
      case 'disk-write-errors':
        trouble!.failsWrites = true;
        return () => {
          trouble!.failsWrites = false;
        };
      case 'disk-sync-errors':
        trouble!.failsSyncs = true;
        return () => {
          trouble!.failsSyncs = false;
        };
      case 'disk-read-errors':
        trouble!.failsReads = true;
        return () => {
          trouble!.failsReads = false;
        };
      case 'disk-full':
        trouble!.full = true;
        return () => {
          trouble!.full = false;
        };
      case 'disk-slow':
        trouble!.slowMs = 20;
        return () => {
          trouble!.slowMs = 0;
        };
      case 'name-taken':
        this.takeName(a, 60);
        return nothing;
      case 'disk-lost':
        void this.site.losses.destroying(a, node!.disk, () => node!.loseDisk());
        return () => {
          node!.start();
        };
      case 'disk-corrupt':
        this.corrupt(a);
        return nothing;
    }
  }

  private takeName(host: string, tries: number): void {
    if (this.over || tries === 0 || this.load.takeName(host, this.site.fork(`name ${host}`))) return;
    this.site.world.schedule(0.5, undefined, () => {
      this.takeName(host, tries - 1);
    });
  }

  /**
   * Flips bits in blocks that are on the disk for good: never in the superblock, which has a copy, nor the log's first.
   */
  private corrupt(id: string): void {
    const machine = this.site.nodes.get(id)!,
      random = this.site.fork(`corruption ${id}`);
    const blocks = machine.disk.syncedBlocks().filter((block) => block >= 18);
    if (blocks.length === 0) return;
    void this.site.losses.destroying(
      id,
      machine.disk,
      () => {
        for (let i = 0; i < 3; i++) {
          const block = blocks[random.int(blocks.length)]!;
          machine.disk.corrupt(block * 4096 + random.int(4096), (bytes) => {
            bytes[0]! ^= 1 << random.int(8);
          });
        }
        return machine.disk;
      },
      true,
    );
  }

  private mend(pair: string): void {
    const [a, b] = pair.split(' ') as [string, string];
    this.site.world.heal(a, b);
    this.site.world.setLink(a, b, {
      latencyMs: 0.02,
      jitterMs: 0.01,
      bytesPerMs: this.plan.bytesPerMs,
      lossRate: 0,
      damageRate: 0,
    });
  }
}
