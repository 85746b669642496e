/**
 * A session with a switch that decodes: a unit that lacks comes over this client's link once, instead of k others.
 *
 *     want(slot place) ─ READ ─▶ switch ─ k units ─ decode ─▶ header and payload in this client's ring ─▶ resolves
 *
 * Never needed: without a switch that can, when it refuses, or when its connection breaks, the caller reads k units
 * itself. Invariant: want() settles once nothing can be written into its place any more.
 */
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import type { Code } from '../erasure/code/index.js';
import { NodeLink, type ReadWish } from '../pipeline/node-link.js';
import { connectSession } from '../pipeline/session.js';
import { isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import { detach } from '../wire/front-door.js';

export class Decoder {
  readonly counters = { units: 0, failed: 0 };
  private link!: NodeLink;
  private nextRequest = 1;
  private readonly wanted = new Map<number, (ok: boolean) => void>();

  private constructor() {
    /* find() makes them */
  }

  /** @returns undefined: no switch decodes @param most  units wanted at once, at most */
  static async find(
    context: ClientContext,
    file: FileRecord,
    code: Code,
    map: ClusterMap,
    most: number,
  ): Promise<Decoder | undefined> {
    if (context.parity === 'host') return undefined;
    for (const entry of map.switches.filter(({ state }) => state === 'programmable')) {
      try {
        const session = await connectSession(
          context,
          entry.host,
          entry.port,
          {
            role: 'decoder',
            name: context.name,
            mapEpoch: map.epoch,
            k: code.k,
            m: code.m,
            unitBytes: file.unitBytes,
            fileId: file.id,
            code: file.code,
          },
          { transport: context.transport, timeoutMs: context.deadlineMs, receiveSlots: most },
        );
        if (session.grant.state !== 'decoding') {
          await session.channel.destroy('it does not decode');
          continue;
        }
        const decoder = new Decoder();
        decoder.link = new NodeLink(
          entry.id,
          -1,
          session,
          {
            locate: () => {
              throw new Error('a decoder is sent no units');
            },
            onWritten: () => {},
            onAnswer: () => {},
            onRead: (_link, id) => {
              decoder.settle(id, true);
            },
            onReadFailed: (_link, id) => {
              decoder.settle(id, false);
            },
            // Its writes may still land: only when the connection is flushed are the places the caller's again.
            onLinkDown: (link) => {
              detach(
                link.destroy('lost').then(() => {
                  for (const id of [...decoder.wanted.keys()]) decoder.settle(id, false);
                }),
              );
            },
          },
          { clock: context.clock, heartbeatMs: context.heartbeatMs, deadlineMs: context.deadlineMs },
        );
        return decoder;
      } catch (error) {
        if (!isOperating(error)) throw error;
      }
    }
    return undefined;
  }

  get usable(): boolean {
    return this.link.up;
  }

  /** @returns whether header and payload of the unit lie in its place; nothing of them is verified yet */
  want(wish: Omit<ReadWish, 'requestId'>): Promise<boolean> {
    if (!this.link.up) return Promise.resolve(false);
    const requestId = this.nextRequest;
    this.nextRequest = requestId === 0xffff_ffff ? 1 : requestId + 1;
    return new Promise((resolve) => {
      this.wanted.set(requestId, resolve);
      this.link.read({ ...wish, requestId });
    });
  }

  adopt(map: ClusterMap): void {
    this.link.adoptMap(map.epoch);
  }

  async destroy(): Promise<void> {
    await this.link.destroy('done');
  }

  private settle(id: number, ok: boolean): void {
    const resolve = this.wanted.get(id);
    this.wanted.delete(id);
    if (resolve === undefined) return;
    if (ok) this.counters.units++;
    else this.counters.failed++;
    resolve(ok);
  }
}
