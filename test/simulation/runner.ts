/** A process that runs simulations for the test: an order in, an answer out. Broken by the first mutant it is given. */
import { breakIt } from './mutants.js';
import { simulate } from './run.js';

export interface Order {
  readonly seed: number;
  readonly mutant: string | undefined;
}

export interface Answer {
  readonly seed: number;
  readonly violation: { readonly kind: string; readonly message: string } | undefined;
  readonly operations: number;
  readonly virtualMs: number;
  readonly cpuMs: number;
  readonly kinds: string[];
}

let broken: string | undefined;

process.on('message', ({ seed, mutant }: Order) => {
  if (mutant !== undefined && mutant !== broken) {
    breakIt(mutant);
    broken = mutant;
  }
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
