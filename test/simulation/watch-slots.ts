/**
 * Watches the readers' first rule: a slot is filled again only when every request on it is answered, or its link is
 * flushed. Breaking it shows in the bytes only when a late write meets a slot in its next use, which no load brings
 * about often; so the rule itself is looked at, in every reader of the process.
 */
import { StripeReader } from '../../pipeline/stripe-reader.js';

interface Watched {
  linkDown(link: { readonly index: number; destroy(reason: string): Promise<void> }): void;
  begin(job: { readonly slot: number }): void;
  arrived(id: number): void;
  failed(id: number, ...rest: unknown[]): void;
  readonly requestPlace: ReadonlyMap<
    number,
    { readonly slot: number; readonly node: number; readonly verifying: boolean }
  >;
}

/**
 * From now on `report` is told of each break of the rule. A run has the whole process to itself.
 * @returns what ends the watch
 */
export function watchSlots(report: (message: string) => void): () => void {
  /** By reader: requests whose answer may still be written, and the slot of each. */
  const open = new WeakMap<Watched, Map<number, number>>();
  const prototype = StripeReader.prototype as unknown as Watched;
  const { linkDown, begin, arrived, failed } = prototype;
  prototype.linkDown = function (this: Watched, link) {
    const requests = open.get(this) ?? new Map<number, number>();
    open.set(this, requests);
    const ids = [...this.requestPlace]
      .filter(([, { node, verifying }]) => node === link.index && !verifying)
      .map(([id, { slot }]) => {
        requests.set(id, slot);
        return id;
      });
    // Asked for before the reader does, so that this comes before what the reader does when it is flushed.
    if (ids.length > 0)
      void link.destroy('lost').then(() => {
        for (const id of ids) requests.delete(id);
      });
    linkDown.call(this, link);
  };
  // An answer may have been on its way to the handlers when the link was lost: behind it nothing is written.
  prototype.arrived = function (this: Watched, id) {
    open.get(this)?.delete(id);
    arrived.call(this, id);
  };
  prototype.failed = function (this: Watched, id, ...rest) {
    open.get(this)?.delete(id);
    failed.call(this, id, ...rest);
  };
  prototype.begin = function (this: Watched, job) {
    for (const slot of open.get(this)?.values() ?? [])
      if (slot === job.slot) report(`a reader fills slot ${slot} while a link that may write to it is not flushed`);
    begin.call(this, job);
  };
  return () => {
    Object.assign(prototype, { linkDown, begin, arrived, failed });
  };
}
