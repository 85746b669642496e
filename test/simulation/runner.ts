/** A process that runs simulations for the test: an order in, an answer out. */
import { simulate } from './run.js';

export interface Order {
  readonly seed: number;
}

export interface Answer {
  readonly seed: number;
  readonly violation: { readonly kind: string; readonly message: string } | undefined;
  readonly operations: number;
  readonly virtualMs: number;
  readonly cpuMs: number;
  readonly kinds: string[];
}

process.on('message', ({ seed }: Order) => {
  const before = process.cpuUsage();
  void simulate({ seed }).then(({ violation, operations, virtualMs, struck, seen }) => {
    const { user, system } = process.cpuUsage(before);
    process.send!({
      seed,
      violation,
      operations,
      virtualMs,
      cpuMs: (user + system) / 1000,
      kinds: [...struck.keys(), ...seen.keys()],
    } satisfies Answer);
  });
});
