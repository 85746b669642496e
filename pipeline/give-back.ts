/** What was taken for something that is being built: when the building fails, all of it is given back, last first. */
import { detach } from '../wire/front-door.js';

export class GiveBack {
  private readonly steps: (() => Promise<void> | void)[] = [];

  /** Something was taken; `step` gives it back. */
  add(step: () => Promise<void> | void): void {
    this.steps.push(step);
  }

  /** The building failed. Nothing that was taken is in use yet, so that nobody has to wait for it. */
  run(): void {
    for (let step = this.steps.pop(); step !== undefined; step = this.steps.pop()) detach(Promise.resolve(step()));
  }
}
