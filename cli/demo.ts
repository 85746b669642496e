/**
 * The whole story on one machine, in a directory of its own: a switch and three storage nodes as processes, a real file
 * through them while the switch loses its program, then its life, then a node goes. Every byte is compared.
 *
 * It must not pass vacuously: a fault that did not strike in the middle of a transfer, a switch that never computed
 * parity, or a mode that did not change is a failure as much as a wrong byte.
 */
import { statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Client } from '../writer/index.js';
import { TartanError, codeOf } from '../wire/errors.js';
import { ProcessStage } from './demo-processes.js';
import type { Stage } from './demo-stage.js';
import type { Source, Stored } from './demo-transfer.js';
import { percent, readBack, sha256Of, store } from './demo-transfer.js';
import { formatBytes, formatRate, table } from './quantities.js';
import { detach } from '../wire/front-door.js';

const MIDDLE = { from: 0.2, to: 0.8 };
/** 16 stripes of 2 × 64 KiB: fewer have no middle. */
const LEAST_BYTES = 2 << 20;

/**
 * On this machine, with the software switch.
 *
 * @param path  the file to store; default: the node binary
 * @returns the exit status
 */
export async function demo(path = process.execPath): Promise<number> {
  const source = await openSource(path);
  const stage = new ProcessStage(source.bytes);
  let interrupted = false;
  const interrupt = (signal: NodeJS.Signals): void => {
    if (interrupted) return;
    interrupted = true;
    // Ends by the signal itself: exit() would wait for the store's threads, and those may wait for this one.
    detach(
      stage.end().finally(() => {
        process.removeAllListeners(signal);
        process.kill(process.pid, signal);
      }),
    );
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, interrupt);
  try {
    return await new Story(stage, source).tell(() => stage.start());
  } catch (error) {
    // Once interrupted, everything fails because it was ended.
    if (interrupted) await new Promise(() => {});
    throw error;
  } finally {
    if (!interrupted) await stage.end();
  }
}

/** The same story on a stage that stands already. @returns the exit status */
export async function demoOn(stage: Stage, path = process.execPath): Promise<number> {
  return new Story(stage, await openSource(path)).tell(() => Promise.resolve());
}

class Story {
  private readonly rows: string[][] = [
    ['story', 'bytes', 'rate', 'parity moved', 'stripes re-driven', 'degraded', 'sha256'],
  ];
  private readonly wrong: string[] = [];
  private readonly started = performance.now();

  constructor(
    private readonly stage: Stage,
    private readonly source: Source,
  ) {}

  /** @returns the exit status */
  async tell(start: () => Promise<void>): Promise<number> {
    const { source, stage } = this;
    say(`the file: ${basename(source.path)}, ${formatBytes(source.bytes)}, sha256 ${source.sha256.slice(0, 16)}…`);
    await start();
    say(stage.description);
    const client = await stage.connect();
    try {
      say('\n1. store it; each byte is sent once, the switch computes the parity');
      const first = await this.put(client, 'first');
      if (first.modeChanges.length > 0) this.fail('first: the parity moved, though nothing happened to the switch');
      await this.get(client, 'first', false);

      say("\n2. store it again, and take the switch's program away in the middle");
      await this.put(client, 'unloaded', () => stage.unload());
      await stage.load();
      say('the switch has its program back');
      await this.get(client, 'unloaded', false);

      say('\n3. store it again, and kill the switch in the middle');
      await this.put(client, 'switch-killed', () => stage.killSwitch());
      await stage.startSwitch();
      say('a new switch runs');
      await this.get(client, 'switch-killed', false);

      say('\n4. kill a storage node, and read everything from the other two');
      await stage.killNode('n3');
      for (const name of ['first', 'unloaded', 'switch-killed']) await this.get(client, name, true);
    } finally {
      await client.close();
    }
    return this.close();
  }

  /** Prints the table. @returns the exit status */
  private close(): number {
    say(`\n${table(this.rows)}\n`);
    for (const line of this.wrong) say(`wrong: ${line}`);
    const seconds = ((performance.now() - this.started) / 1000).toFixed(1);
    say(this.wrong.length === 0 ? `every byte came back (${seconds} s)` : `the demo failed (${seconds} s)`);
    return this.wrong.length === 0 ? 0 : 1;
  }

  private async put(client: Client, name: string, strike?: () => Promise<void>): Promise<Stored> {
    const stored = await store(
      client,
      this.source,
      name,
      (line) => {
        say(`   ${line}`);
      },
      strike,
    );
    say(
      `   stored ${name}: ${formatRate(stored.bytes, stored.ms)}` +
        (stored.struck ? `, the fault struck at ${percent(stored.struck.before)}` : ''),
    );
    this.rows.push([
      `store ${name}`,
      String(stored.bytes),
      formatRate(stored.bytes, stored.ms),
      String(stored.modeChanges.length),
      String(stored.stripesRedriven),
      '-',
      '-',
    ]);
    if (stored.bytes !== this.source.bytes)
      this.fail(`${name}: ${stored.bytes} of ${this.source.bytes} bytes acknowledged`);
    if (!stored.beganInSwitch) this.fail(`${name}: the switch did not compute the parity at the start`);
    if (strike) {
      const { before, after } = stored.struck ?? { before: 0, after: 0 };
      if (before < MIDDLE.from || after > MIDDLE.to)
        this.fail(
          `${name}: the fault struck at ${percent(before)} to ${percent(after)} acknowledged, not in the middle`,
        );
      if (!stored.modeChanges.some((each) => each.mode === 'host'))
        this.fail(`${name}: the writer did not take over the parity`);
    }
    return stored;
  }

  private async get(client: Client, name: string, degraded: boolean): Promise<void> {
    const read = await readBack(client, name, this.source.bytes);
    const equal = read.sha256 === this.source.sha256;
    say(
      `   read ${name}: ${formatRate(read.bytes, read.ms)}` +
        (degraded ? `, ${read.degradedStripes} stripes restored from parity` : '') +
        ', ' +
        `sha256 ${equal ? 'equal' : 'DIFFERENT'}`,
    );
    this.rows.push([
      `read ${name}`,
      String(read.bytes),
      formatRate(read.bytes, read.ms),
      '-',
      '-',
      String(read.degradedStripes),
      equal ? 'equal' : 'DIFFERENT',
    ]);
    if (!equal) this.fail(`${name}: ${read.bytes} bytes came back, and they are not the file's`);
    if (degraded && read.degradedStripes === 0)
      this.fail(`${name}: no stripe was read degraded, though a node is gone`);
  }

  private fail(line: string): void {
    this.wrong.push(line);
  }
}

/** @throws {TartanError} ERR_NOT_FOUND, ERR_IS_DIRECTORY; ERR_ARGUMENT when it is too short to have a middle */
async function openSource(path: string): Promise<Source> {
  let bytes: number;
  try {
    const found = statSync(path);
    if (found.isDirectory())
      throw new TartanError(
        'ERR_IS_DIRECTORY',
        `Cannot tell the story with ${path}: it is a directory, expected a file`,
      );
    bytes = found.size;
  } catch (error) {
    if (codeOf(error) === 'ENOENT')
      throw new TartanError('ERR_NOT_FOUND', `Cannot tell the story with ${path}: there is no such file`, {
        cause: error,
      });
    throw error;
  }
  if (bytes < LEAST_BYTES)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot tell the story with ${path}: it has ${bytes} bytes, expected at least ${LEAST_BYTES}, so that ` +
        'there is a middle',
    );
  return { path, bytes, sha256: await sha256Of(path) };
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
