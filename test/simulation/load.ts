/** The load of a random run: writers and readers that live on machines which may die under them. */
import type { SimRandom } from 'tartan-rdma';
import { sleep, type Clock } from '../../wire/clock.js';
import { codeOf } from '../../wire/errors.js';
import { isCommitted } from '../../cluster/files.js';
import type { Client, FileReader, FileWriter } from '../../writer/index.js';
import type { RebuildReport } from '../../writer/rebuild.js';
import { forgeUnit } from './forge.js';
import type { Site } from './machines.js';
import { Violation, type Model, type Owner } from './model.js';
import { Stage } from './script.js';
import { destroyed, ended, recordOf, written } from './writers.js';

/** What an application must expect of a cluster in trouble. Anything else is a fault of the program. */
const EXPECTED = new Set([
  'ERR_FENCED',
  'ERR_MAP_UNAVAILABLE',
  'ERR_CONNECT',
  'ERR_DEADLINE',
  'ERR_TOO_MANY_LOST',
  'ERR_UNDECIDED',
  'ERR_DISK_FULL',
  'ERR_NOT_FOUND',
  'ERR_EXISTS',
  'ERR_STALE_MAP',
]);
/** Where nothing fails there are only other owners, and files that come and go. */
const EXPECTED_IN_PEACE = new Set(['ERR_FENCED', 'ERR_NOT_FOUND', 'ERR_EXISTS']);
/** A little larger than the units, so that stripes are short. */
const UNIT_BYTES = [512, 512, 1024, 4096];
const MOST_BYTES = 400_000;

export class Load {
  stopping = false;
  /** Errors met, by code. */
  readonly errors = new Map<string, number>();
  /** The first time that a writer accused its switch of breaking the protocol. */
  misconduct: string | undefined;
  private readonly alive = new Map<string, { what: string }>();
  private readonly owners = new Map<string, Owner>();
  /** Where the plan says what each actor does. */
  readonly stage: Stage | undefined;

  /** @param fail  told of what breaks a promise */
  constructor(
    private readonly site: Site,
    private readonly model: Model,
    private readonly fail: (error: unknown) => void,
  ) {
    if (site.plan.script !== undefined) this.stage = new Stage(site, model, this);
  }

  /** Starts an actor's process; it must not be running. One that follows a script is not started a second time. */
  start(host: string): void {
    if (this.stage?.begins(host) === false) return;
    const state = { what: 'connecting' };
    this.alive.set(host, state);
    const random = this.site.fork(`actor ${host}`);
    const { writers, rebuilders } = this.site.plan;
    const steps = this.site.plan.script?.[host];
    const act = steps
      ? this.stage!.act(host, steps, state)
      : writers.includes(host)
        ? this.write(host, random, state)
        : rebuilders.includes(host)
          ? this.rebuild(host, random, state)
          : this.read(host, random, state);
    act.then(() => {
      if (this.alive.get(host) === state) this.alive.delete(host);
    }, this.fail);
  }

  kill(host: string): void {
    this.site.world.killHost(host);
    this.alive.delete(host);
  }

  /** Takes the name that a writer would use next. @returns false when it owns nothing now, or is amid a flush */
  takeName(host: string, random: SimRandom): boolean {
    const owner = this.owners.get(host);
    return owner !== undefined && this.alive.has(host) && forgeUnit(this.site, this.model, owner, random);
  }

  isAlive(host: string): boolean {
    return this.alive.has(host);
  }

  /** What the actors that have not ended are waiting for. */
  get waiting(): string[] {
    return [...this.alive].map(([host, { what }]) => `${host}: ${what}`);
  }

  private async write(host: string, random: SimRandom, state: { what: string }): Promise<void> {
    const clock = this.site.clock(host);
    const client = await this.connected(host, clock);
    const { fileNames } = this.site.plan;
    while (!this.stopping) {
      const name = fileNames[random.int(fileNames.length)]!;
      if (random.int(25) === 0) await this.expecting(host, state, `removing ${name}`, () => this.remove(client, name));
      state.what = `opening ${name}`;
      const writer = await this.open(host, state, client, name, random);
      if (writer === undefined) {
        await sleep(clock, 5 + random.random() * 20);
        continue;
      }
      const owner = this.model.owned(host, writer);
      if (owner.isSecond) this.site.see('second-owner');
      this.owners.set(host, owner);
      await this.expecting(host, state, `writing ${name}`, () => this.append(owner, state, random, clock));
      const isLarge = owner.written >= MOST_BYTES;
      if (!writer.destroyed && random.int(3) !== 0)
        await this.expecting(host, state, `closing ${name}`, async () => {
          await ended(writer);
          this.flushed(owner, true);
        });
      else {
        state.what = `destroying ${name}`;
        await destroyed(writer);
      }
      if (isLarge) await this.expecting(host, state, `removing ${name}`, () => this.remove(client, name));
    }
    state.what = 'closing the client';
    await client.close();
  }

  private async open(
    host: string,
    state: { what: string },
    client: Client,
    name: string,
    random: SimRandom,
  ): Promise<FileWriter | undefined> {
    const { codes } = this.site.plan;
    let writer = await this.expecting(host, state, `taking over ${name}`, () => client.append(name));
    writer ??= await this.expecting(host, state, `creating ${name}`, () =>
      client.create(name, {
        code: codes[random.int(codes.length)]!,
        unitBytes: UNIT_BYTES[random.int(UNIT_BYTES.length)]!,
      }),
    );
    if (writer !== undefined) this.watch(host, writer);
    return writer;
  }

  /** Its errors are met where it is used; what it says of its switch counts. */
  watch(host: string, writer: FileWriter): void {
    writer.on('error', () => {});
    writer.on('mode', ({ reason }: { reason: string }) => {
      if (/credit|unexpected|malformed/i.test(reason)) this.misconduct ??= `${host} left its switch: ${reason}`;
    });
  }

  private async append(owner: Owner, state: { what: string }, random: SimRandom, clock: Clock): Promise<void> {
    const { writer } = owner;
    // Half of the owners are short, for takeovers; the others stay, so that stripes follow each other closely.
    const rounds = 1 + random.int(random.int(2) === 0 ? 6 : 240);
    for (let round = 0; round < rounds && !this.stopping && owner.written < MOST_BYTES; round++) {
      const style = random.int(5);
      const length = style === 0 ? 1 + random.int(100) : 1 + random.int(style < 3 ? 20_000 : 4000);
      const doing = state.what;
      await written(writer, this.model.next(owner, length));
      if (random.int(this.site.plan.flushOneIn) === 0) {
        state.what = `${doing}: flush`;
        this.flushed(owner, await writer.flush());
        this.model.counts.flushes++;
        state.what = doing;
      }
      if (random.int(24) === 0) await sleep(clock, random.random() * 20);
    }
  }

  /** A flush has resolved: nothing is lost; when it is published, whoever opens the file from now on sees it all. */
  flushed({ writer, written }: Owner, isPublished: boolean): void {
    const file = this.model.file(writer.internals.file);
    if (writer.progress.acknowledgedBytes !== written) {
      throw new Violation(
        'flush told too early',
        `file ${file.id} '${file.name}': ${writer.progress.acknowledgedBytes} of ${written} bytes are acknowledged`,
      );
    }
    if (isPublished) file.published = Math.max(file.published, written);
  }

  private async remove(client: Client, name: string): Promise<void> {
    const { id } = await client.stat(name);
    await client.remove(name);
    const file = this.model.files.get(id);
    if (file !== undefined) file.removed = true;
    this.site.see('file-removed');
  }

  private async read(host: string, random: SimRandom, state: { what: string }): Promise<void> {
    const clock = this.site.clock(host);
    const client = await this.connected(host, clock);
    const { fileNames } = this.site.plan;
    while (!this.stopping) {
      const name = fileNames[random.int(fileNames.length)]!;
      const floors = new Map([...this.model.files].map(([id, file]) => [id, file.published]));
      const reader = await this.expecting(host, state, `opening ${name} to read`, () => client.open(name));
      if (reader === undefined) {
        await sleep(clock, 5 + random.random() * 20);
        continue;
      }
      await this.expecting(host, state, `reading ${name}`, () => this.readParts(host, reader, random, clock, floors));
      this.model.counts.stripesRead += reader.progress.stripes;
      state.what = 'closing a reader';
      await reader.close();
      await sleep(clock, random.random() * 10);
    }
    state.what = 'closing the client';
    await client.close();
  }

  private async readParts(
    host: string,
    reader: FileReader,
    random: SimRandom,
    clock: Clock,
    floors: ReadonlyMap<number, number>,
  ): Promise<void> {
    const record = recordOf(reader),
      file = this.model.file(record);
    if (!file.isTainted && reader.length < (floors.get(record.id) ?? 0)) {
      throw new Violation(
        'published bytes not seen',
        `file ${file.id} '${file.name}': ${host} sees ${reader.length} bytes, ${floors.get(record.id)} had ` +
          'been flushed before it opened the file',
      );
    }
    for (let round = 1 + random.int(random.int(2) === 0 ? 6 : 40); round > 0 && !this.stopping; round--) {
      const from = random.int(3) === 0 ? 0 : random.int(reader.length + 1),
        length = random.int(3) === 0 ? reader.length : random.int(10_000);
      this.model.read(file, from, await reader.read(from, length), host);
      if (random.int(3) === 0) {
        if (random.int(3) === 0) await sleep(clock, random.random() * 20);
        const before = reader.length;
        if ((await reader.refresh()) < before)
          throw new Violation(
            'file became shorter',
            `file ${file.id}: ${before} bytes were committed, then ${reader.length}`,
          );
      }
    }
  }

  /** Somebody who looks after the nodes: rebuilds and scrubs what there is, for as long as the load lasts. */
  private async rebuild(host: string, random: SimRandom, state: { what: string }): Promise<void> {
    const clock = this.site.clock(host),
      { losses } = this.site;
    const client = await this.connected(host, clock);
    while (!this.stopping) {
      const name = this.site.plan.fileNames[random.int(this.site.plan.fileNames.length)]!,
        isScrub = random.int(3) === 0,
        { moment } = losses;
      await this.expecting(host, state, `${isScrub ? 'scrubbing' : 'rebuilding'} ${name}`, async () => {
        const record = await client.stat(name),
          options = { ...(random.int(3) === 0 && { bytesPerSecond: 2_000_000 }) };
        const report = await (isScrub ? client.scrub(name, options) : client.rebuild(name, options));
        if (!isComplete(report)) return;
        this.site.see('rebuilt');
        losses.rebuilt(
          record.id,
          ({ stripe, epoch, counter }) => stripe < report.stripes && isCommitted(record, stripe, epoch, counter),
          moment,
          isScrub,
        );
      });
      await sleep(clock, random.random() * 30);
    }
    state.what = 'closing the client';
    await client.close();
  }

  async connected(host: string, clock: Clock): Promise<Client> {
    for (;;) {
      try {
        return await this.site.connect(host);
      } catch (error) {
        if (!EXPECTED.has(codeOf(error) ?? '')) throw error;
        await sleep(clock, 20);
      }
    }
  }

  /** @returns undefined when it failed as things may fail */
  async expecting<T>(
    host: string,
    state: { what: string },
    what: string,
    run: () => Promise<T>,
  ): Promise<T | undefined> {
    state.what = what;
    this.site.world.note(`${host} is ${what}`);
    try {
      return await run();
    } catch (error) {
      const code = codeOf(error);
      if (
        error instanceof Violation ||
        code === undefined ||
        !(this.site.plan.faults.length === 0 ? EXPECTED_IN_PEACE : EXPECTED).has(code)
      ) {
        throw error instanceof Violation
          ? error
          : new Violation(
              'unexpected error',
              `${host}, ${what}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
              { cause: error },
            );
      }
      this.errors.set(code, (this.errors.get(code) ?? 0) + 1);
      this.site.world.note(`${host}, ${what}: ${(error as Error).message}`);
      return undefined;
    }
  }
}

/** Whether everything that a file's nodes lacked has been restored. */
export function isComplete({ stripes, stripesDone, stripesLost, unitsFailed, nodesDown }: RebuildReport): boolean {
  return stripesDone === stripes && stripesLost === 0 && unitsFailed === 0 && nodesDown.length === 0;
}
