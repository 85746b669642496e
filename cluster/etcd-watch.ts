/**
 * A watch on etcd that goes on through everything: a lost member, a lost leader, a compaction.
 *
 *   stream ends              → another stream, from the revision after the last one delivered
 *   compacted beyond that    → what is there now, compared with the keys known before: their last changes, like a log
 *   that
 *                              was pruned (a key that came and went in between is not told)
 *
 * A watch that is given a start before the compacted revision knows no keys: deletions from before it are not told.
 */
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { setTimeout as delay } from 'node:timers/promises';
import { WatchService, type KeyValue, type WatchRequest, type WatchResponse } from '../wire/generated/etcd.js';
import type { WatchEvent } from './cluster-store.js';
import type { EtcdConnection } from './etcd-connection.js';
import { detach, tolerate } from '../wire/front-door.js';

/** Reads keys under a prefix at a revision (0: now). Revisions here are etcd's. */
export type ReadRange = (
  prefix: Buffer,
  revision: number,
  keysOnly: boolean,
) => Promise<{ rows: readonly KeyValue[]; revision: number }>;

export interface EtcdWatchOptions {
  /** Whole keys, as in etcd. */
  readonly prefix: Buffer;
  /** The first revision wanted; 0: what comes after now, which is asked first. */
  readonly start: number;
  /** etcd's revision now: everything acknowledged before is at or below it. */
  readonly readRevision: () => Promise<number>;
  readonly onEvents: (events: readonly WatchEvent[]) => void;
  /** As the events name them. */
  readonly keyOf: (key: Buffer) => string;
  readonly revisionOf: (revision: number) => number;
  readonly readRange: ReadRange;
}

const LEAST_BACKOFF_MS = 50;
const MOST_BACKOFF_MS = 1_000;
const DELETE = 1;
const PREFIX = Buffer.from([0]);

export class EtcdWatch {
  /** Settles when it is known from which revision on this watch tells changes, or when it is closed. */
  readonly opened: Promise<void>;
  readonly #connection: EtcdConnection;
  readonly #options: EtcdWatchOptions;
  #isClosed = false;
  /** 0: not known yet. */
  #next: number;
  /** Keys that exist as far as was told; undefined: not known yet. */
  #known: Set<string> | undefined;
  #stream: ClientDuplexStream<WatchRequest, WatchResponse> | undefined;
  #settleOpened: () => void = () => {};
  #hasAnswered = false;

  constructor(connection: EtcdConnection, options: EtcdWatchOptions) {
    this.#connection = connection;
    this.#options = options;
    this.#next = options.start;
    this.opened = new Promise((resolve) => {
      this.#settleOpened = resolve;
    });
    if (this.#next > 0) this.#settleOpened();
    detach(this.#run());
  }

  close(): void {
    this.#isClosed = true;
    this.#stream?.cancel();
    this.#settleOpened();
  }

  get #isOver(): boolean {
    return this.#isClosed || this.#connection.isClosed;
  }

  async #run(): Promise<void> {
    let backoffMs = LEAST_BACKOFF_MS;
    while (!this.#isOver) {
      this.#hasAnswered = false;
      try {
        // Were "now" the moment at which a stream begins, a stream lost at the start would lose changes with it.
        if (this.#next === 0) {
          this.#next = (await this.#options.readRevision()) + 1;
          this.#settleOpened();
        }
        const compacted = await this.#session();
        if (compacted && !this.#isOver) await this.#catchUp();
      } catch {
        // Whatever it was: again, with what is known. The watch says nothing meanwhile, as its contract allows.
      }
      if (this.#isOver) return;
      backoffMs = this.#hasAnswered ? LEAST_BACKOFF_MS : Math.min(MOST_BACKOFF_MS, backoffMs * 2);
      await delay(backoffMs, undefined, { ref: false });
    }
  }

  /** One stream, to its end. @returns whether etcd refuses to go on from here, having compacted */
  async #session(): Promise<boolean> {
    const client = await this.#connection.ready('watch');
    if (this.#isOver) return false;
    const stream = this.#connection.open(client, WatchService.watch);
    this.#stream = stream;
    // Alive, and yet silent: a member that was just started, or is cut off, may take the request and never answer it.
    const patience = setTimeout(() => {
      stream.cancel();
    }, this.#connection.memberMs);
    patience.unref();
    try {
      return await new Promise<boolean>((resolve, reject) => {
        stream.on('error', reject);
        stream.on('end', () => {
          resolve(false);
        });
        stream.on('data', (response: WatchResponse) => {
          if (this.#isOver) {
            stream.cancel();
            resolve(false);
            return;
          }
          this.#hasAnswered = true;
          clearTimeout(patience);
          if (response.canceled) {
            stream.cancel();
            resolve(response.compactRevision > 0);
            return;
          }
          try {
            this.#deliver(response);
          } catch (error) {
            stream.cancel();
            reject(error as Error);
          }
        });
        const { prefix } = this.#options;
        stream.write({
          request: {
            $case: 'createRequest',
            value: { key: startOf(prefix), rangeEnd: endOf(prefix), startRevision: this.#next, progressNotify: true },
          },
        });
      });
    } catch (error) {
      this.#connection.next(client);
      throw error;
    } finally {
      clearTimeout(patience);
      this.#stream = undefined;
    }
  }

  #deliver(response: WatchResponse): void {
    const revision = response.header?.revision ?? 0;
    if (response.created) {
      if (this.#known === undefined) detach(this.#learnKeys(this.#next - 1));
      return;
    }
    if (response.events.length === 0) {
      this.#next = Math.max(this.#next, revision + 1);
      return;
    }
    const events = response.events.flatMap(({ type, kv }): WatchEvent[] => {
      if (kv === undefined) return [];
      const key = this.#options.keyOf(kv.key),
        at = this.#options.revisionOf(kv.modRevision);
      this.#next = Math.max(this.#next, kv.modRevision + 1);
      if (type === DELETE) this.#known?.delete(key);
      else this.#known?.add(key);
      return [
        type === DELETE
          ? { type: 'delete', key, value: undefined, revision: at }
          : { type: 'put', key, value: kv.value.toString(), revision: at },
      ];
    });
    this.#options.onEvents(events);
  }

  /** Remembers which keys there were when the watch began, so that a compaction can't hide that they went. */
  async #learnKeys(revision: number): Promise<void> {
    const rows = (await this.#options.readRange(this.#options.prefix, revision, true).catch(tolerate))?.rows ?? [];
    if (this.#known !== undefined) return;
    // A key deleted while this was read stays in the set: should it be told once more, nobody is misled.
    this.#known = new Set(rows.map((row) => this.#options.keyOf(row.key)));
  }

  async #catchUp(): Promise<void> {
    const { prefix, readRange, keyOf, revisionOf, onEvents } = this.#options;
    const { rows, revision } = await readRange(prefix, 0, false);
    if (this.#isOver) return;
    const events: WatchEvent[] = rows
      .filter((row) => row.modRevision >= this.#next)
      .map((row) => ({
        type: 'put',
        key: keyOf(row.key),
        value: row.value.toString(),
        revision: revisionOf(row.modRevision),
      }));
    events.sort((a, b) => a.revision - b.revision);
    const present = new Set(rows.map((row) => keyOf(row.key)));
    // When they went is not known any more: at the latest now.
    for (const key of this.#known ?? [])
      if (!present.has(key)) events.push({ type: 'delete', key, value: undefined, revision: revisionOf(revision) });
    this.#known = present;
    this.#next = revision + 1;
    if (events.length > 0) onEvents(events);
  }
}

/** etcd takes no empty key: of all keys the first is a zero byte. */
export function startOf(prefix: Buffer): Buffer {
  return prefix.length === 0 ? PREFIX : prefix;
}

/** The first key after all that begin with `prefix`; a zero byte means no end. */
export function endOf(prefix: Buffer): Buffer {
  let length = prefix.length;
  while (length > 0 && prefix[length - 1] === 0xff) length--;
  if (length === 0) return PREFIX;
  const end = Buffer.from(prefix.subarray(0, length));
  end[length - 1]!++;
  return end;
}
