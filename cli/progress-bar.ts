/** One transfer's line on a terminal: a bar, the rate, where the parity is made. Draws nothing elsewhere. */
import { formatBytes, formatRate, printable } from './quantities.js';

const WIDTH = 30;
const REDRAW_MS = 80;

export class ProgressBar {
  private readonly started = performance.now();
  private drawn = 0;
  private bytes = 0;
  private note = '';

  /**
   * @param label   what is transferred
   * @param total   bytes; 0: unknown, only counts
   * @param stream  drawn on only when it is a terminal
   */
  constructor(
    private readonly label: string,
    private readonly total: number,
    private readonly stream: NodeJS.WriteStream = process.stderr,
  ) {}

  /** @param note  a few words, e.g. where the parity is computed */
  update(bytes: number, note = this.note): void {
    const changed = note !== this.note;
    this.bytes = bytes;
    this.note = note;
    const now = performance.now();
    if (!this.stream.isTTY || (!changed && now - this.drawn < REDRAW_MS)) return;
    this.drawn = now;
    this.stream.write(`\r${this.line(now)}\x1b[K`);
  }

  /** Takes the bar away; what stays is the caller's closing line. */
  finish(): void {
    if (this.stream.isTTY) this.stream.write('\r\x1b[K');
  }

  private line(now: number): string {
    const fraction = this.total > 0 ? Math.min(this.bytes / this.total, 1) : 0;
    const filled = Math.round(fraction * WIDTH);
    const bar =
      this.total > 0
        ? `${'━'.repeat(filled)}${'─'.repeat(WIDTH - filled)} ${(fraction * 100).toFixed(0).padStart(3)} %`
        : formatBytes(this.bytes);
    const line = `${printable(this.label)}  ${bar}  ${formatRate(this.bytes, now - this.started)}  ${this.note}`;
    return line.slice(0, Math.max(20, (this.stream.columns ?? 80) - 1));
  }
}
