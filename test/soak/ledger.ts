/**
 * What the load of a soak was promised, one JSON line each, outside of the cluster: a line is written after the cluster
 * has acknowledged, so that all it says must hold.
 */
import { appendFileSync, existsSync, readFileSync } from 'node:fs';

type Entry = { readonly file: string } & (
  | { readonly acknowledged: number }
  | { readonly removing: true }
  | { readonly closed: true }
);

export interface LedgerFile {
  /** Bytes from the start that must read back. */
  acknowledged: number;
  isClosed: boolean;
}

export class Ledger {
  /** Files that must be there; one whose removal has begun may be there or not. */
  readonly files = new Map<string, LedgerFile>();

  constructor(private readonly path: string) {
    if (!existsSync(path)) return;
    // The last line may be cut short: its writer was killed. What it would have said is not asked for.
    for (const line of readFileSync(path, 'utf8').split('\n').slice(0, -1)) this.take(JSON.parse(line) as Entry);
  }

  acknowledged(file: string, bytes: number): void {
    if (bytes > 0 && bytes !== this.files.get(file)?.acknowledged) this.write({ file, acknowledged: bytes });
  }
  closed(file: string): void {
    this.write({ file, closed: true });
  }
  /** To be called before. */
  removing(file: string): void {
    this.write({ file, removing: true });
  }

  private write(entry: Entry): void {
    appendFileSync(this.path, `${JSON.stringify(entry)}\n`);
    this.take(entry);
  }

  private take(entry: Entry): void {
    if ('removing' in entry) {
      this.files.delete(entry.file);
      return;
    }
    const file = this.files.get(entry.file) ?? { acknowledged: 0, isClosed: false };
    this.files.set(entry.file, file);
    if ('closed' in entry) {
      file.isClosed = true;
      return;
    }
    // Appended to: open again.
    if (entry.acknowledged > file.acknowledged) file.isClosed = false;
    file.acknowledged = Math.max(file.acknowledged, entry.acknowledged);
  }
}
