/**
 * A long run's line on standard error: step, how far, how long it will still take; a new line each where it is no
 * terminal.
 */
import type { Progress } from './experiments/experiment.js';

export class ProgressLine implements Progress {
  private steps = 0;
  private done = -1;
  private readonly begun = performance.now();

  constructor(
    private readonly name: string,
    private readonly stream: NodeJS.WriteStream = process.stderr,
  ) {}

  expect(steps: number): void {
    this.steps = steps;
  }

  step(what: string): void {
    this.done++;
    const left = this.done > 0 ? (((performance.now() - this.begun) / this.done) * (this.steps - this.done)) / 1000 : 0;
    const line =
      `${this.name} ${this.done + 1}/${this.steps}` +
      (this.done > 0 ? `, about ${duration(left)} left` : '') +
      `: ${what}`;
    this.stream.write(this.stream.isTTY ? `\r${line.slice(0, (this.stream.columns ?? 80) - 1)}\x1b[K` : `${line}\n`);
  }

  finish(): void {
    if (this.stream.isTTY) this.stream.write('\r\x1b[K');
  }
}

function duration(seconds: number): string {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}
