/**
 * Throws a bug where it ends the process: in a turn of its own.
 *
 * What a completion handler throws must not be thrown on into the native callback that called it: Node-API only warns
 * of it, and the process would live on with an invariant broken. Completions that have been polled are delivered
 * before.
 */
export function rethrow(error: unknown): void {
  setImmediate(() => {
    throw error;
  });
}

/** Lets work go on that nobody waits for: whatever it rejects with is a bug, and ends the process. */
export function detach(work: Promise<unknown>): void {
  work.catch(rethrow);
}
