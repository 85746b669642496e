/**
 * One application of a soak, a process of its own so that it can be killed at any moment: it creates, appends to, reads
 * and removes files of its own, keeps a ledger of what was acknowledged, and compares every byte that it reads.
 *
 * Exit status 0: asked to end · 1: a bug, with its stack · 2: a byte was wrong, or an acknowledged one is not there.
 * What a cluster in trouble may answer (operating errors) is counted, and tried again with another file.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { isOperating } from '../../wire/errors.js';
import { connect, type Client, type FileWriter } from '../../writer/index.js';
import { SimRandom } from 'tartan-rdma';
import { contentOf } from './content.js';
import { Ledger } from './ledger.js';

export interface LoadOptions {
  readonly id: string;
  /** How often it was started before. */
  readonly life: number;
  readonly cluster: string;
  readonly ledger: string;
  readonly seed: number;
}

/** To the parent, every second. */
export interface LoadReport {
  readonly operations: number;
  readonly bytesWritten: number;
  readonly bytesRead: number;
  readonly errors: Readonly<Record<string, number>>;
}

const MOST_FILES = 12;
const LARGEST_BYTES = 4 << 20;
const CODES = [
  ['xor(2+1)', 65_536],
  ['xor(2+1)', 4096],
  ['rs(3,2)', 16_384],
  ['copies(1,2)', 8192],
] as const;
const READ_BYTES = 256 << 10;
const REPORT_MS = 1000;

class Load {
  private readonly random: SimRandom;
  private readonly ledger: Ledger;
  private readonly errors: Record<string, number> = {};
  private made = 0;
  private operations = 0;
  private bytesWritten = 0;
  private bytesRead = 0;
  isEnding = false;

  constructor(
    private readonly options: LoadOptions,
    private readonly client: Client,
  ) {
    this.random = new SimRandom(options.seed);
    this.ledger = new Ledger(options.ledger);
  }

  get report(): LoadReport {
    const { operations, bytesWritten, bytesRead, errors } = this;
    return { operations, bytesWritten, bytesRead, errors };
  }

  async run(): Promise<void> {
    while (!this.isEnding) {
      try {
        await this.step();
        this.operations++;
      } catch (error) {
        if (!isOperating(error)) throw error;
        this.errors[error.code] = (this.errors[error.code] ?? 0) + 1;
        await delay(100);
      }
    }
  }

  private async step(): Promise<void> {
    const { files } = this.ledger,
      names = [...files.keys()];
    // What an earlier life left open is taken over first: only then is it known what it holds.
    const open = names.find((name) => !files.get(name)!.isClosed);
    if (open !== undefined) return this.append(open, 0);
    const dice = this.random.int(100);
    if (names.length > MOST_FILES) return this.remove(names[0]!);
    if (names.length < 3 || dice < 35) return this.create();
    const name = names[this.random.int(names.length)]!;
    return dice < 50 ? this.append(name, this.bytes()) : this.read(name);
  }

  /** As many small files as large ones. */
  private bytes(): number {
    return this.random.int(2 ** (4 + this.random.int(Math.log2(LARGEST_BYTES) - 3)));
  }

  private async create(): Promise<void> {
    const name = `${this.options.id}-${this.options.life}-${this.made++}`;
    const [code, unitBytes] = CODES[this.random.int(CODES.length)]!;
    await this.fill(await this.client.create(name, { code, unitBytes }), name, 0, this.bytes());
  }

  private async append(name: string, bytes: number): Promise<void> {
    const writer = await this.client.append(name);
    const from = writer.progress.acknowledgedBytes,
      { acknowledged } = this.ledger.files.get(name)!;
    if (from < acknowledged) throw new Wrong(`'${name}' is ${from} bytes long, ${acknowledged} were acknowledged`);
    await this.fill(writer, name, from, bytes);
  }

  private async fill(writer: FileWriter, name: string, from: number, bytes: number): Promise<void> {
    // An error of the stream also comes by way of the promises below.
    writer.on('error', () => {});
    const note = () => {
      this.ledger.acknowledged(name, writer.progress.acknowledgedBytes);
    };
    try {
      for (let at = 0; at < bytes; ) {
        const count = Math.min(bytes - at, 1 + this.random.int(READ_BYTES));
        const chunk = contentOf(name, from + at, count);
        await new Promise<void>((resolve, reject) => {
          writer.write(chunk, (error) => {
            if (error) reject(error);
            else resolve();
          });
        });
        at += count;
        note();
        if (this.random.int(4) === 0) {
          await writer.flush();
          note();
        }
      }
      await new Promise<void>((resolve, reject) => {
        writer.once('error', reject);
        writer.end(() => {
          resolve();
        });
      });
      this.ledger.acknowledged(name, from + bytes);
      this.ledger.closed(name);
      this.bytesWritten += bytes;
    } catch (error) {
      note();
      writer.destroy();
      throw error;
    }
  }

  private async read(name: string): Promise<void> {
    const { acknowledged } = this.ledger.files.get(name)!;
    if (acknowledged === 0) return;
    const from = this.random.int(acknowledged),
      bytes = Math.min(acknowledged - from, READ_BYTES);
    const reader = await this.client.open(name);
    try {
      const seen = await reader.read(from, bytes);
      if (!contentOf(name, from, bytes).equals(seen))
        throw new Wrong(`'${name}' reads back ${seen.length} other bytes at ${from}, expected ${bytes}`);
    } finally {
      await reader.close();
    }
    this.bytesRead += bytes;
  }

  private async remove(name: string): Promise<void> {
    this.ledger.removing(name);
    await this.client.remove(name);
  }
}

/** The promise is broken. */
class Wrong extends Error {}

const options = JSON.parse(process.argv[2]!) as LoadOptions;
const client = await connect({ cluster: options.cluster, name: options.id, ringMemoryBytes: 64 << 20 });
const load = new Load(options, client);
process.on('SIGTERM', () => {
  load.isEnding = true;
});
// The parent is gone: nobody would end this.
process.on('disconnect', () => {
  process.exit(0);
});
const reporting = setInterval(() => {
  process.send?.(load.report);
}, REPORT_MS);
try {
  await load.run();
  await client.close();
  process.send?.(load.report);
} catch (error) {
  if (!(error instanceof Wrong)) throw error;
  process.stderr.write(`wrong: ${error.message}\n`);
  process.exitCode = 2;
} finally {
  clearInterval(reporting);
  process.disconnect();
}
