/** One random run: a world from a seed, load and faults, then peace, then everything that was promised is checked. */
import { createHash } from 'node:crypto';
import type { FileRecord } from '../../cluster/records.js';
import { listFiles } from '../../cluster/files.js';
import { readIdentity } from '../../cluster/membership.js';
import { codeOf } from '../../wire/errors.js';
import type { Client } from '../../writer/index.js';
import { parseCode } from '../../erasure/code/index.js';
import { Evidence, checkFile, type Checked } from './checker.js';
import { Load, isComplete } from './load.js';
import { Site } from './machines.js';
import { Model, Violation, type FileModel } from './model.js';
import { makePlan, type Plan } from './plan.js';
import { Faults } from './strike.js';
import { watchSlots } from './watch-slots.js';
import { ended } from './writers.js';

/** Once faults have stopped, everything outstanding completes within so much virtual time. */
const PEACE_MS = 60_000;
const MAX_RUN_MS = 600_000;
/** Tries of a rebuild when everything works: a node may just be taking its lease again. */
const REBUILDS = 4;

export interface RunOptions {
  readonly seed: number;
  /** What is to happen; by default what the seed says. The seed then gives only the world's chances. */
  readonly plan?: Plan;
  /** Ids of the faults to keep; all by default. */
  readonly only?: ReadonlySet<number>;
  readonly trace?: (line: string) => void;
  /** Computes a hash over the whole trace. */
  readonly hash?: boolean;
}

export interface RunResult {
  readonly seed: number;
  readonly plan: Plan;
  readonly violation: { readonly kind: string; readonly message: string } | undefined;
  readonly virtualMs: number;
  readonly struck: ReadonlyMap<string, number>;
  /** Events seen, by name. */
  readonly seen: ReadonlyMap<string, number>;
  readonly errors: ReadonlyMap<string, number>;
  readonly checked: Checked;
  /** Stripes written and read by clients. */
  readonly operations: number;
  readonly takeovers: number;
  /** Steps and faults of a script that never had their turn, or ''. */
  readonly unfinished: string;
  readonly hash: string;
}

export async function simulate(options: RunOptions): Promise<RunResult> {
  const plan = options.plan ? { ...options.plan, seed: options.seed } : makePlan(options.seed, options.only);
  const run = new Run(plan);
  const digest = createHash('sha256');
  if (options.trace !== undefined || options.hash === true) {
    run.site.world.trace = (line) => {
      options.trace?.(line);
      if (options.hash === true) digest.update(line).update('\n');
    };
  }
  const violation = await run.go();
  return {
    seed: options.seed,
    plan,
    violation: violation && { kind: violation.kind, message: violation.message },
    virtualMs: run.site.world.now(),
    struck: run.faults.struck,
    seen: run.site.seen,
    errors: run.load.errors,
    checked: run.checked,
    operations: run.operations,
    unfinished: run.unfinished,
    takeovers: run.model.counts.takeovers,
    hash: digest.digest('hex'),
  };
}

class Run {
  readonly site: Site;
  readonly model: Model;
  readonly load: Load;
  readonly faults: Faults;
  readonly checked: Checked = { stripes: 0, units: 0, degraded: 0, combinations: 0 };
  private failure: unknown;
  private phase = 'starting';
  /** Steps and faults of a script that never had their turn. */
  unfinished = '';
  private readonly lost = new Map<number, Set<number>>();
  /** Files that a reader or a next owner was told is lost, with what was flushed of them: the disks must show why. */
  private readonly suspects = new Map<number, { readonly record: FileRecord; readonly length: number }>();

  constructor(private readonly plan: Plan) {
    this.site = new Site(plan);
    this.model = new Model();
    this.load = new Load(this.site, this.model, (error) => {
      this.failed(error);
    });
    this.faults = new Faults(this.site, this.load, plan);
  }

  get operations(): number {
    let sum = this.model.counts.stripesRead;
    for (const file of this.model.files.values()) for (const { writer } of file.owners) sum += writer.progress.stripes;
    return sum;
  }

  async go(): Promise<Violation | undefined> {
    const unhandled = (error: unknown): void => {
      this.failed(error);
    };
    process.on('unhandledRejection', unhandled);
    const unwatch = watchSlots((message) => {
      this.site.misconduct ??= message;
    });
    try {
      let isOver = false;
      this.story().then(
        () => {
          isOver = true;
        },
        (error: unknown) => {
          this.failed(error);
        },
      );
      const { world } = this.site;
      while (!isOver && this.failure === undefined) {
        await world.run(() => {
          this.faults.look();
          return isOver || this.failure !== undefined;
        }, 20);
        this.model.check();
        this.checkConduct();
        if (world.now() > MAX_RUN_MS)
          throw new Violation('stuck', `${this.phase} takes more than ${MAX_RUN_MS} virtual ms`);
      }
    } catch (error) {
      this.failed(error);
    } finally {
      unwatch();
      process.off('unhandledRejection', unhandled);
    }
    if (this.failure === undefined || this.failure instanceof Violation) return this.failure;
    const { failure } = this;
    return new Violation(
      'crash',
      `while ${this.phase}: ${failure instanceof Error ? (failure.stack ?? failure.message) : String(failure)}`,
    );
  }

  private failed(error: unknown): void {
    this.failure ??= error ?? new Error('rejected with nothing');
  }

  private async story(): Promise<void> {
    const { site, plan, load, faults } = this;
    await site.start();
    this.phase = 'under load';
    for (const host of [...plan.writers, ...plan.readers, ...plan.rebuilders]) load.start(host);
    faults.schedule();
    if (plan.script === undefined) await site.pause(plan.loadMs);
    else await this.scriptEnds();
    this.phase = 'healing';
    load.stopping = true;
    faults.heal();
    await this.within(
      'what was outstanding',
      () => load.waiting.length === 0,
      () => load.waiting.join('; '),
    );
    await this.within(
      'all nodes are up',
      () => [...site.nodes.values()].every(({ isUp, node }) => isUp && node?.state === 'up'),
      () =>
        [...site.nodes.values()]
          .map(({ id, isUp, node }) => `${id} ${isUp ? (node?.state ?? 'gone') : 'not started'}`)
          .join(', '),
    );
    this.model.check();
    const client = await site.connect('final');
    const records = await listFiles(site.memory.client());
    this.phase = 'reading what is published';
    for (const record of records) if (!this.model.file(record).isTainted) await this.readPublished(client, record);
    this.phase = 'settling the files';
    const settled: { record: FileRecord; file: FileModel }[] = [];
    for (const record of records) {
      const file = this.model.file(record);
      if (!file.isTainted && (await this.settle(client, record)) && !file.isTainted) settled.push({ record, file });
    }
    this.phase = 'checking the disks';
    await this.inspect(settled, false);
    this.phase = 'reading everything';
    for (const { record, file } of settled) await this.readWhole(client, record, file, 0);
    const isRebuilt = site.losses.nodes.size > 0 || plan.isThorough === true || plan.seed % 4 === 0;
    if (isRebuilt) {
      this.phase = 'rebuilding everything';
      for (const { record, file } of settled) await this.rebuild(client, record, file);
      await this.inspect(settled, true);
    }
    this.phase = 'working on';
    await this.workOn(client);
    this.phase = 'reading what is left';
    if (isRebuilt || plan.seed % 3 === 0) await this.readDegraded(settled, isRebuilt);
    await client.close();
    this.phase = 'looking for leaks';
    await this.within(
      'sessions end',
      () =>
        [...site.nodes.values()].every(({ node }) => node === undefined || node.connectionCount === 0) &&
        [...site.switches.values()].every(
          ({ core }) => core === undefined || (core.counters().sessions === 0 && core.counters().ringMemoryUsed === 0),
        ),
      () =>
        [...site.nodes.values()]
          .map(({ id, node }) => `${id} has ${node?.connectionCount ?? 0} connections`)
          .join(', '),
    );
    this.model.check();
  }

  /** Actors have done all their steps, and nothing waits for a moment; or for one that does not come. */
  private async scriptEnds(): Promise<void> {
    const { site, plan, load, faults } = this;
    const end = site.world.now() + plan.loadMs;
    while (load.waiting.length > 0 && site.world.now() < end) await site.pause(1);
    if (load.waiting.length === 0 && faults.awaited.length === 0) return;
    this.unfinished = [...load.waiting, ...faults.awaited].join('; ');
    site.world.note(`the script does not end: ${this.unfinished}`);
  }

  /**
   * Takes a file over as a next writer would, and closes it.
   * @returns false when what was destroyed excuses a failure
   */
  private async settle(client: Client, record: FileRecord): Promise<boolean> {
    try {
      const writer = await this.timely(`taking over '${record.name}'`, client.append(record.name));
      const owner = this.model.owned('final', writer);
      writer.on('error', () => {});
      await this.timely(`closing '${record.name}'`, ended(writer));
      if (writer.progress.acknowledgedBytes !== owner.written)
        throw new Violation('flush told too early', `'${record.name}' at the end`);
      return true;
    } catch (error) {
      if (this.model.file(record).lose()) return false;
      if (this.mayBeUndecided(record) && codeOf(error) === 'ERR_UNDECIDED') return false;
      if (codeOf(error) === 'ERR_TOO_MANY_LOST') {
        this.suspects.set(record.id, { record, length: this.model.file(record).written });
        return false;
      }
      if (error instanceof Violation) throw error;
      throw new Violation(
        'file lost',
        `taking over '${record.name}' when everything ` +
          `works: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      );
    }
  }

  /** @param isRebuilt  a rebuild of all files has completed */
  private async inspect(
    settled: readonly { record: FileRecord; file: FileModel }[],
    isRebuilt: boolean,
  ): Promise<void> {
    const { uuid, clusterId } = await readIdentity(this.site.memory.client());
    const { losses } = this.site;
    const evidence = new Evidence();
    for (const machine of this.site.nodes.values()) {
      try {
        await evidence.add(machine.id, machine.disk, uuid, clusterId);
      } catch (error) {
        // A store that knows that it was damaged refuses to open: the node is lost as a whole.
        if (codeOf(error) !== 'ERR_CHECKSUM' || !losses.nodes.has(machine.id)) throw error;
        losses.destroyed(machine.id);
        machine.loseDisk();
        machine.start();
        await this.within(
          'a node with a new disk is up',
          () => machine.isUp && machine.node?.state === 'up',
          () => machine.id,
        );
      }
    }
    const check = (record: FileRecord, length: number): Set<number> => {
      const file = this.model.file(record);
      return checkFile(
        record,
        evidence,
        this.model.content(file, 0, length),
        losses,
        isRebuilt,
        this.checked,
        this.model.forgedNames,
      );
    };
    for (const { record, file } of settled) this.lost.set(record.id, check(record, file.written));
    for (const { record, length } of this.suspects.values()) {
      if (check(record, length).size === 0)
        throw new Violation(
          'file lost',
          `'${record.name}' was called lost, but no stripe of it lacks more units than its code bears`,
        );
    }
    this.suspects.clear();
  }

  /** Until a rebuild finds nothing that lacks, and nothing that it can't have but what was destroyed. */
  private async rebuild(client: Client, record: FileRecord, file: FileModel): Promise<void> {
    const lost = this.lost.get(record.id)!.size;
    for (let attempt = 1; ; attempt++) {
      const report = await this.timely(
        `rebuilding '${record.name}'`,
        attempt % 2 === 1 ? client.scrub(record.name) : client.rebuild(record.name),
      );
      if (isComplete({ ...report, stripesLost: Math.max(0, report.stripesLost - lost) })) return;
      if (attempt === REBUILDS)
        throw new Violation(
          'not rebuilt',
          `file ${file.id} '${record.name}', ${lost} stripes are lost: ${JSON.stringify(report)}`,
        );
      await this.site.pause(500);
    }
  }

  /** The cluster goes on working: a new file is written, read and removed. */
  private async workOn(client: Client): Promise<void> {
    const name = 'made at the end',
      code = this.plan.codes[0]!;
    const writer = await this.timely('creating a file', client.create(name, { code, unitBytes: 512 }));
    writer.on('error', () => {});
    const owner = this.model.owned('final', writer),
      file = this.model.file(writer.internals.file);
    writer.write(this.model.next(owner, 5_000));
    await this.timely('flushing a new file', writer.flush());
    writer.write(this.model.next(owner, 10_001));
    await this.timely('closing a new file', ended(writer));
    const reader = await this.timely('opening a new file', client.open(name));
    if (reader.length !== 15_001)
      throw new Violation('acknowledged bytes lost', `a new file has ${reader.length} bytes, 15001 were acknowledged`);
    this.model.read(file, 0, await this.timely('reading a new file', reader.read(0, reader.length)), 'final');
    await this.timely('closing a reader', reader.close());
    await this.timely('removing a new file', client.remove(name));
    file.removed = true;
    const isGone = await client.open(name).then(
      () => false,
      (error: unknown) => codeOf(error) === 'ERR_NOT_FOUND',
    );
    if (!isGone) throw new Violation('removed file read', `'${name}' can be opened after it was removed`);
  }

  /** Whatever became of their writers: what was flushed is there for readers, before anybody takes a file over. */
  private async readPublished(client: Client, record: FileRecord): Promise<void> {
    const file = this.model.file(record);
    try {
      const reader = await this.timely(`opening '${record.name}'`, client.open(record.name));
      if (reader.length < file.published)
        throw new Violation(
          'published bytes not seen',
          `'${record.name}' has ${reader.length} bytes, ${file.published} were flushed`,
        );
      this.model.read(file, 0, await this.timely(`reading '${record.name}'`, reader.read(0, reader.length)), 'final');
      await reader.close();
    } catch (error) {
      if (codeOf(error) === 'ERR_TOO_MANY_LOST') {
        this.suspects.set(record.id, { record, length: file.published });
        return;
      }
      if (error instanceof Violation) throw error;
      throw new Violation(
        'file lost',
        `reading what is published of '${record.name}' when everything ` +
          `works: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      );
    }
  }

  /** @param degraded  how many nodes are gone: a stripe that has fewer units to lose may be refused */
  private async readWhole(client: Client, record: FileRecord, file: FileModel, degraded: number): Promise<void> {
    const excusable = degraded > 0 || this.lost.get(record.id)!.size > 0;
    try {
      const reader = await this.timely(`opening '${record.name}'`, client.open(record.name));
      if (reader.length !== file.written)
        throw new Violation(
          'acknowledged bytes lost',
          `'${record.name}' has ${reader.length} bytes, ${file.written} were acknowledged`,
        );
      this.model.read(file, 0, await this.timely(`reading '${record.name}'`, reader.read(0, reader.length)), 'final');
      this.model.counts.stripesRead += reader.progress.stripes;
      await reader.close();
    } catch (error) {
      if (excusable && codeOf(error) === 'ERR_TOO_MANY_LOST') return;
      if (error instanceof Violation) throw error;
      throw new Violation(
        'file lost',
        `reading '${record.name}' when ` +
          (degraded === 0 ? 'everything works' : `${degraded} nodes are gone`) +
          ': ' +
          (error instanceof Error ? (error.stack ?? error.message) : String(error)),
      );
    }
  }

  /** Kills as many nodes as every code bears, and reads on. */
  private async readDegraded(
    settled: readonly { record: FileRecord; file: FileModel }[],
    isRebuilt: boolean,
  ): Promise<void> {
    const bearable = Math.min(...this.plan.codes.map((code) => parseCode(code).m));
    const random = this.site.fork('final losses');
    const hosts = [...this.site.nodes.keys()];
    for (let i = 0; i < bearable; i++) this.site.nodes.get(hosts.splice(random.int(hosts.length), 1)[0]!)!.kill();
    const client = await this.site.connect('final degraded');
    const wholeBefore = isRebuilt || this.checked.degraded === 0;
    for (const { record, file } of settled) await this.readWhole(client, record, file, wholeBefore ? 0 : bearable);
    await client.close();
    for (const machine of this.site.nodes.values()) machine.start();
    await this.within(
      'all nodes are up',
      () => [...this.site.nodes.values()].every(({ isUp }) => isUp),
      () => 'after the final losses',
    );
  }

  /** Where no fault damages bytes, no checksum fails, and nobody finds that a peer breaks the protocol. */
  private checkConduct(): void {
    if (this.site.misconduct !== undefined) throw new Violation('misconduct', this.site.misconduct);
    const { struck } = this.faults;
    if (struck.has('damaged-packets') || struck.has('disk-corrupt')) return;
    for (const { id, node } of this.site.nodes.values()) {
      if (node === undefined) continue;
      const { protocolErrors, checksumFailures } = node.counters;
      if (protocolErrors + checksumFailures > 0)
        throw new Violation(
          'misconduct',
          `${id} counts ${protocolErrors} protocol errors and ${checksumFailures} checksum failures, though ` +
            'nothing damaged a byte',
        );
    }
    for (const { id, core } of this.site.switches.values()) {
      const errors = core?.counters().protocolErrors ?? 0;
      if (errors > 0)
        throw new Violation('misconduct', `${id} counts ${errors} protocol errors, though nothing damaged a byte`);
    }
    if (this.load.misconduct !== undefined) throw new Violation('misconduct', this.load.misconduct);
  }

  /**
   * A node with a blank or damaged store proves nothing: who takes a file over may then not know what became of its
   * end.
   */
  private mayBeUndecided(record: FileRecord): boolean {
    return record.nodes.some((id) => this.site.losses.nodes.has(id));
  }

  private async within(what: string, holds: () => boolean, observed: () => string): Promise<void> {
    const end = this.site.world.now() + PEACE_MS;
    while (!holds()) {
      if (this.site.world.now() > end)
        throw new Violation(
          'stuck',
          `${PEACE_MS} virtual ms after everything healed, ${what} has not come to its end: ${observed()}`,
        );
      await this.site.pause(5);
    }
  }

  private async timely<T>(what: string, promise: Promise<T>): Promise<T> {
    let isOver = false;
    const mark = (): void => {
      isOver = true;
    };
    promise.then(mark, mark);
    await this.within(
      what,
      () => isOver,
      () => 'no answer',
    );
    return promise;
  }
}
