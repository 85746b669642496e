/**
 * Time and chance, passed in: every core takes a Clock, so that the whole cluster can run in virtual time.
 * Two implementations: `realClock` here, and the simulation's world.
 */
export interface Clock {
  /** Monotonic milliseconds (fractions allowed) since an arbitrary origin. */
  now(): number;
  /** Runs `fn` once after `ms`; the handle cancels it. */
  setTimer(ms: number, fn: () => void): TimerHandle;
  clearTimer(handle: TimerHandle): void;
  /** Uniform in [0, 1). */
  random(): number;
}

export type TimerHandle = unknown;

export const realClock: Clock = {
  now: () => performance.now(),
  setTimer: (ms, fn) => setTimeout(fn, ms),
  clearTimer: (handle) => {
    clearTimeout(handle as NodeJS.Timeout);
  },
  random: () => Math.random(),
};

/** Resolves after `ms` of the clock's time. */
export function sleep(clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => {
    clock.setTimer(ms, resolve);
  });
}
