/**
 * Ctrl-C and its kin while a command is at work: it cleans up, says what became of it, and ends by the signal, as
 * shells expect. A second signal ends it at once.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { TartanError, isOperating } from '../wire/errors.js';

const SIGNAL_MS = 1000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** What main() prints; then the process ends by the signal. */
export class Interruption extends TartanError {
  readonly signal: NodeJS.Signals;

  constructor(signal: NodeJS.Signals, message: string) {
    super('ERR_INTERRUPTED', message);
    this.signal = signal;
  }
}

/**
 * @param work  ends early, its traces removed, when its signal is aborted; when it comes to its end all the same, that
 *              counts
 * @param outcome  what is said of work that was given up: "Storing 'a' was interrupted: nothing was stored"
 * @throws {Interruption} when it was given up
 */
export async function interruptible<T>(outcome: () => string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stopper = new AbortController();
  let came: NodeJS.Signals | undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    for (const each of SIGNALS) process.off(each, onSignal); // the next one has its ordinary effect
    came = signal;
    stopper.abort();
  };
  for (const each of SIGNALS) process.on(each, onSignal);
  try {
    return await work(stopper.signal);
  } catch (error) {
    const isEnd = isOperating(error) || (error instanceof Error && error.name === 'AbortError');
    if (came === undefined || !isEnd) throw error;
    throw new Interruption(came, outcome());
  } finally {
    for (const each of SIGNALS) process.off(each, onSignal);
  }
}

/**
 * Ends this process by a signal, as if nobody had listened to it: who started it learns what ended it. Another listener
 * in this process may end it only a moment later; meanwhile exit() would wait for a pipe that a thread is opening.
 */
export async function endBy(signal: NodeJS.Signals): Promise<void> {
  process.kill(process.pid, signal);
  await delay(SIGNAL_MS);
}

/**
 * Waits for what can't be ended itself and leaves nothing behind: a pipe that nobody opens at its other end, a store
 * that does not answer.
 *
 * @throws the signal's reason when it is aborted first
 */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let onAbort = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => {
      reject(signal.reason as Error);
    };
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort);
  });
  work.catch(() => {}); // when it comes too late
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
