/**
 * Loaded into a process: each SIGUSR2 moves its wall clock, a day ahead, then two days back, and so on. Monotonic
 * clocks stay.
 */
const DAY_MS = 86_400_000,
  RealDate = Date;
let shift = 0;

globalThis.Date = class extends RealDate {
  constructor(...args) {
    super(...(args.length === 0 ? [RealDate.now() + shift] : args));
  }
  static now() {
    return RealDate.now() + shift;
  }
};

export function jump() {
  shift = shift > 0 ? -DAY_MS : DAY_MS;
}
process.on('SIGUSR2', jump);
