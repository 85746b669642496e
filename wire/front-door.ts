/**
 * The front door of whatever serves others: a session's Hello, its messages, control calls, requests, HTTP.
 *
 *     request ─▶ handler ─▶ answer
 *                   │ raises
 *                   ├── an operating error, or no memory ─▶ refused with a code; this request ends, nothing else
 *                   └── anything else: a bug ─▶ thrown again in a turn of its own: the process ends, with its stack
 *
 * No remote input may reach the last line: whatever decodes what came from outside refuses with an operating error.
 */
import { isOperating, TartanError } from './errors.js';

/** What a failed allocation looks like: of V8, of Node, of the native engine. */
const NO_MEMORY_CODES = new Set(['ERR_MEMORY_ALLOCATION_FAILED', 'ERR_NO_MEMORY']);

/**
 * What a request raised, as the error it is refused with; undefined: it is a bug.
 *
 * That memory could not be allocated is no bug: a peer may have asked for much, or others hold it.
 */
export function refusalOf(error: unknown): (Error & { readonly code: string }) | undefined {
  if (isOperating(error)) return error;
  if (!(error instanceof Error)) return undefined;
  const isNoMemory =
    (error instanceof RangeError && error.message === 'Array buffer allocation failed') ||
    ('code' in error && typeof error.code === 'string' && NO_MEMORY_CODES.has(error.code));
  if (!isNoMemory) return undefined;
  return new TartanError('ERR_CAPACITY', `Cannot serve this request: ${error.message}`, { cause: error });
}

/**
 * Ends the process because of a bug: throws it in a turn of its own, where nobody on the way can catch it. What the
 * process does with it is for {@link endOnBugs}; by default Node prints the stack and exits.
 */
function raise(error: unknown): void {
  setImmediate(() => {
    throw error;
  });
}

/**
 * Runs the handler of one request.
 *
 * @param refuse  makes the answer from what an operating error said
 * @returns the handler's answer or the refusal; after a bug it never settles, and the process ends
 */
export async function answerOrRefuse<T>(
  handle: () => T | Promise<T>,
  refuse: (error: Error & { readonly code: string }) => T | Promise<T>,
): Promise<T> {
  try {
    return await handle();
  } catch (error) {
    const refusal = refusalOf(error);
    if (refusal !== undefined) return await refuse(refusal);
    raise(error);
    return await new Promise<never>(() => undefined);
  }
}

/**
 * Lets work go on that nobody waits for. It handles its own operating errors: whatever it rejects with is a bug, and
 * ends the process on purpose.
 */
export function detach(work: Promise<unknown> | undefined): void {
  work?.catch(raise);
}

/** For `.catch(tolerate)`: an operating error is of no consequence here, a bug stays one. */
export function tolerate(error: unknown): undefined {
  if (refusalOf(error) === undefined) throw error;
  return undefined;
}

/** For a process's main file: a bug is logged with its stack, then the process ends. */
export function endOnBugs(log: (message: string) => void): void {
  process.on('uncaughtException', (error: unknown) => {
    log(`a bug, this process ends: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    process.exit(1);
  });
}
