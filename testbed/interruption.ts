import { TestbedError } from './errors.js';

/** Ctrl-C and SIGTERM, while a testbed stands: what it does is given up, and it is taken down. */
export class Interruption {
  private readonly signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  private reject: (error: Error) => void = () => {};
  private readonly interrupted = new Promise<never>((_, reject) => {
    this.reject = reject;
  });
  private readonly handle = (signal: NodeJS.Signals): void => {
    this.reject(new TestbedError('ERR_INTERRUPTED', `Interrupted by ${signal}; the network is taken down`));
  };

  constructor() {
    this.interrupted.catch(() => {}); // nobody may be waiting for a signal yet
    for (const signal of this.signals) process.on(signal, this.handle);
  }

  orDone<T>(work: Promise<T>): Promise<T> {
    work.catch(() => {}); // when it fails because everything is taken down, the signal is what is told
    return Promise.race([work, this.interrupted]);
  }

  over(): void {
    for (const signal of this.signals) process.off(signal, this.handle);
  }
}
