/** Where a process that serves others writes its log: standard error, which may lie on a disk that fills up. */
import { fstatSync, writeSync } from 'node:fs';

const STDERR = 2;

/**
 * A log that never fails: a line that can't be written is lost and counted, and the next one that can says how many
 * were. Nor does this process end any more because its standard output or error can't be written.
 */
export function logOutput(): { write(line: string): void } {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  // A stream that has failed once takes nothing more, though its disk has room again; only files fill up and empty.
  return isFile(STDERR) ? new LogFile(STDERR) : process.stderr;
}

function isFile(descriptor: number): boolean {
  try {
    return fstatSync(descriptor).isFile();
  } catch {
    return false; // closed
  }
}

/** Written at once, as Node does with files itself. */
export class LogFile {
  private lost = 0;

  constructor(
    private readonly descriptor: number,
    private readonly append: typeof writeSync = writeSync,
  ) {}

  write(line: string): void {
    // The last line may have been cut off.
    const said =
      this.lost === 0 ? line : `\n{"level":40,"msg":"${this.lost} lines before this could not be written"}\n${line}`;
    try {
      if (this.append(this.descriptor, said) === Buffer.byteLength(said)) this.lost = 0;
      else this.lost++;
    } catch {
      this.lost++;
    }
  }
}
