/**
 * The thread in which an embedded cluster store changes: waiting for the write lock and for the disk stops nobody else.
 * It takes one operation after the other, each with a deadline, runs it in one transaction, and answers when that is on
 * disk. What an operation throws undoes it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { TartanError, isOperating } from '../wire/errors.js';
import type { Compare, Mutation } from './cluster-store.js';
import { monotonicMs } from './process-identity.js';
import {
  asStoreError,
  asUnavailable,
  engineOn,
  openDatabase,
  withReserve,
  type Connection,
} from './sqlite-database.js';
import type { StoreEngine } from './store-engine.js';

export type Operation =
  | { readonly kind: 'transact'; readonly compares: readonly Compare[]; readonly mutations: readonly Mutation[] }
  | { readonly kind: 'grantLease'; readonly ttlMs: number }
  | { readonly kind: 'keepLeaseAlive'; readonly lease: string }
  | { readonly kind: 'endLease'; readonly lease: string }
  | { readonly kind: 'endExpiredLeases' };

export interface Order {
  readonly id: number;
  readonly attempt: string;
  /** On the machine's monotonic clock, milliseconds; past it the operation is not begun. */
  readonly untilMs: number;
  readonly operation: Operation;
}

/** Either a result, or an operating error; a bug is thrown, and ends the process. */
export interface Answer {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: { readonly code: string; readonly message: string };
}

export interface WorkerOptions {
  readonly dir: string;
  readonly logRevisions: number | undefined;
}

const options = workerData as WorkerOptions;
const port = parentPort!;

let open: { readonly database: Connection; readonly engine: StoreEngine } | undefined;

function opened(): NonNullable<typeof open> {
  if (open === undefined) {
    const database = openDatabase(options.dir, false);
    open = { database, engine: engineOn(database, options.logRevisions) };
  }
  return open;
}

function perform(engine: StoreEngine, operation: Operation): unknown {
  switch (operation.kind) {
    case 'transact':
      return engine.transact(operation.compares, operation.mutations);
    case 'grantLease':
      return engine.grantLease(operation.ttlMs);
    case 'keepLeaseAlive':
      return engine.keepLeaseAlive(operation.lease);
    case 'endLease':
      return engine.endLease(operation.lease);
    case 'endExpiredLeases':
      return engine.endExpiredLeases();
  }
}

function run({ attempt, untilMs, operation }: Order): unknown {
  const { dir } = options;
  try {
    const { database, engine } = opened();
    return withReserve(dir, () => {
      const leftMs = Math.ceil(untilMs - monotonicMs());
      if (leftMs <= 0)
        throw new TartanError(
          'ERR_MAP_UNAVAILABLE',
          `Cannot ${attempt} in '${dir}': its deadline had passed before it was its turn`,
        );
      database.pragma(`busy_timeout = ${leftMs}`);
      return database.transaction(() => perform(engine, operation)).immediate();
    });
  } catch (error) {
    const told = asUnavailable(dir, attempt, error);
    // After an error of input or output the connection's own state is not to be trusted.
    if (told !== error) closeDatabase();
    throw told;
  }
}

function closeDatabase(): void {
  try {
    open?.database.close();
  } catch (error) {
    // Closing checkpoints, which needs the disk that has failed: the next to open goes on from the log.
    if (!isOperating(asStoreError(options.dir, error))) throw error;
  }
  open = undefined;
}

port.on('message', (order: Order | 'close') => {
  if (order === 'close') {
    closeDatabase();
    port.close();
    return;
  }
  let answer: Answer;
  try {
    answer = { id: order.id, result: run(order) };
  } catch (error) {
    if (!isOperating(error)) throw error;
    answer = { id: order.id, error: { code: error.code, message: error.message } };
  }
  port.postMessage(answer);
});
