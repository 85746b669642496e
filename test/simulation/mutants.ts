/**
 * Deliberately broken variants of the code: a harness that cannot fail proves nothing, so each of these must be found.
 *
 * A mutant replaces methods of the running classes, for good: it is broken in a process or thread of its own. Methods
 * are reached by name, private ones too; a name that is gone makes breakIt() throw, so no mutant outlives its target.
 */
import { NodeLink } from '../../pipeline/node-link.js';
import { NodeSet } from '../../pipeline/node-set.js';
import { StripePipeline } from '../../pipeline/stripe-pipeline.js';
import type { Batch } from '../../storage-node/batch.js';
import { FileIndex } from '../../storage-node/file-index.js';
import { LogWriter } from '../../storage-node/log-writer.js';
import { StorageNode } from '../../storage-node/node-core.js';
import { UnitRing } from '../../storage-node/unit-ring.js';
import { UnitStore } from '../../storage-node/unit-store.js';
import { WriterSession } from '../../switch-agent/writer-session.js';
import { Refusal } from '../../wire/ring-messages.js';
import { W } from '../../wire/unit-header.js';
import { FileSession } from '../../writer/file-session.js';
import { StripeReader } from '../../pipeline/stripe-reader.js';
import { WriteWindow } from '../../writer/write-window.js';

export interface Mutant {
  readonly what: string;
  /** A seed that finds it, unless timing has changed since: then others below 1,000 do. */
  readonly seed: number;
  readonly make: () => void;
}

// Any method of any class, whatever its arguments: that is what a mutant needs.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Loose = any;
type Method = (this: Loose, ...args: Loose[]) => unknown;

/** Puts `wrap(the method)` in the method's place. */
function replace(
  owner: { readonly prototype: object; readonly name: string },
  method: string,
  wrap: (original: Method) => Method,
): void {
  const prototype = owner.prototype as Record<string, Method>;
  const original = prototype[method];
  if (typeof original !== 'function') throw new Error(`mutant: ${owner.name} has no method '${method}' any more`);
  prototype[method] = wrap(original);
}

export const mutants: Readonly<Record<string, Mutant>> = {
  'ack-before-sync': {
    what: 'a node reports a unit durable before the sync',
    seed: 1,
    make: () => {
      replace(
        LogWriter,
        'commit',
        () =>
          async function (batch: Batch) {
            this.batches++;
            try {
              await this.write(batch);
            } catch {
              return Refusal.DISK;
            }
            this.synced = this.sequence - 1;
            return Refusal.NONE;
          },
      );
    },
  },
  'refusal-taken-for-done': {
    what: 'a stripe of which one unit was refused counts as durable',
    seed: 1,
    make: () => {
      replace(
        StripePipeline,
        'ended',
        (original) =>
          function (op: number) {
            return original.call(this, op, Refusal.NONE, 0);
          },
      );
    },
  },
  'out-of-order': {
    what: 'a stripe is acknowledged while one before it is not',
    seed: 1,
    make: () => {
      replace(
        WriteWindow,
        'advance',
        (original) =>
          function () {
            // The durable stripes come forward in the queue.
            const tags: number[] = [];
            for (let i = 0; i < this.orderCount; i++) tags.push(this.order[(this.orderHead + i) % this.tags]);
            const durable = 6;
            tags.sort((a, b) => Number(this.state[b] === durable) - Number(this.state[a] === durable));
            tags.forEach((tag, i) => {
              this.order[(this.orderHead + i) % this.tags] = tag;
            });
            return original.call(this);
          },
      );
    },
  },
  'missing-not-recorded': {
    what: 'a node does not keep which units a header calls missing',
    seed: 3,
    make: () => {
      replace(
        UnitStore,
        'fieldsOf',
        (original) =>
          function (...args) {
            const fields = original.apply(this, args) as { missingLow: number; missingHigh: number };
            fields.missingLow = fields.missingHigh = 0;
            return fields;
          },
      );
      replace(
        UnitStore,
        'heldUnits',
        (original) =>
          function (...args) {
            return (original.apply(this, args) as object[]).map((unit) => ({ ...unit, missing: 0n }));
          },
      );
    },
  },
  'fence-ignored': {
    what: 'a node says that it fenced a writer epoch, and goes on taking older ones',
    seed: 4,
    make: () => {
      replace(
        UnitStore,
        'fence',
        () =>
          function (_fileId: number, writerEpoch: number) {
            return Promise.resolve(writerEpoch);
          },
      );
      replace(
        UnitStore,
        'adoptFence',
        () =>
          function () {
            /* forgotten */
          },
      );
    },
  },
  'nodes-not-fenced': {
    what: 'a takeover counts the units of nodes that it did not fence',
    seed: 4,
    make: () => {
      replace(
        NodeLink,
        'request',
        (original) =>
          function (op: { $case: string; value: { writerEpoch?: number } }, ...rest) {
            if (op.$case === 'fence' && this.index > 0) return Promise.resolve({ writerEpoch: op.value.writerEpoch });
            return original.call(this, op, ...rest);
          },
      );
    },
  },
  'commit-mark-early': {
    what: 'headers call a version committed when it is submitted',
    seed: 113,
    make: () => {
      replace(
        WriteWindow,
        'submit',
        (original) =>
          function (...args) {
            if (!this.undecided) this.identity.commitMark = this.nextCounter;
            return original.apply(this, args);
          },
      );
    },
  },
  'old-version-freed-early': {
    what: 'a node frees the old version of a unit when it takes the new one',
    seed: 16,
    make: () => {
      replace(
        FileIndex,
        'raiseMark',
        (original) =>
          function (epoch: number) {
            return original.call(this, epoch, 0xffff_ffff);
          },
      );
    },
  },
  'credit-twice': {
    what: 'the switch returns a slot twice',
    seed: 1,
    make: () => {
      replace(
        WriterSession,
        'credit',
        (original) =>
          function (tag: number) {
            original.call(this, tag);
            original.call(this, tag);
          },
      );
    },
  },
  'credit-early': {
    what: 'the switch returns a slot before its forwards have completed',
    seed: 1,
    make: () => {
      replace(
        WriterSession,
        'arrive',
        (original) =>
          function (imm: number, byteLength: number) {
            original.call(this, imm, byteLength);
            this.credit((imm >>> 12) & 0x7fff);
          },
      );
    },
  },
  'slot-before-acknowledgement': {
    what: 'a sender fills a unit slot again when its write has completed',
    seed: 1,
    make: () => {
      replace(
        NodeLink,
        'written',
        (original) =>
          function (slot: number, ok: boolean) {
            const waiting = 2,
              isWaiting = (this.slotState[slot] & waiting) !== 0;
            original.call(this, slot, ok);
            if (isWaiting && ok) {
              const op = this.slotOp[slot],
                unit = this.slotUnit[slot];
              this.slotState[slot] = 0;
              this.release(slot);
              this.owner.onAnswer(this, op, unit, 0, this.nodeMapEpoch);
            }
          },
      );
    },
  },
  'roll-back-forgets-a-slot': {
    what: 'a stripe that was refused never settles',
    seed: 4,
    make: () => {
      replace(
        StripePipeline,
        'ended',
        (original) =>
          function (op: number, refusal: number, unit: number) {
            if (refusal === Refusal.NONE) original.call(this, op, refusal, unit);
          },
      );
    },
  },
  'versions-mixed': {
    what: 'a reader puts units of two versions together',
    seed: 47,
    make: () => {
      replace(
        StripeReader,
        'newest',
        (original) =>
          function (...args) {
            return { ...(original.apply(this, args) as object), mixed: false };
          },
      );
    },
  },
  'checksum-unchecked': {
    what: 'a node stores units without looking at their checksums',
    seed: 106,
    make: () => {
      replace(
        StorageNode,
        'verified',
        (original) =>
          function (wrId: number) {
            return original.call(this, wrId, 0);
          },
      );
    },
  },
  'few-units-believed': {
    what: 'a takeover takes every fenced node for one that was up all the time',
    seed: 11,
    make: () => {
      replace(
        NodeSet,
        'entry',
        (original) =>
          function (...args) {
            const entry = original.apply(this, args) as object | undefined;
            return entry && { ...entry, since: -1 };
          },
      );
    },
  },
  'slot-read-before-flush': {
    what: 'a reader fills a slot again before the link that may still write to it is flushed',
    seed: 4,
    make: () => {
      replace(
        StripeReader,
        'linkDown',
        () =>
          function (link: Loose) {
            const ids = [...this.requestPlace]
              .filter(([, place]) => place.node === link.index && !place.verifying)
              .map(([id]) => id as number);
            void link.destroy('lost');
            for (const id of ids) this.answered(id, Refusal.UNREACHABLE);
          },
      );
    },
  },
  'old-map-taken': {
    what: 'a node takes units that were sent under an older map',
    seed: 2,
    make: () => {
      replace(
        UnitRing,
        'judge',
        (original) =>
          function (...args) {
            const { host } = this,
              { maps } = host;
            const epoch = Math.min(maps.epoch, this.words[this.wordOf(args[0]) + W.MAP_EPOCH]);
            this.host = { ...host, maps: { epoch, reach: (wanted: number) => maps.reach(wanted) } };
            try {
              original.apply(this, args);
            } finally {
              this.host = host;
            }
          },
      );
    },
  },
  'rebuilt-not-stored': {
    what: 'a node says that it has a rebuilt unit, and has not',
    seed: 4,
    make: () => {
      replace(
        UnitStore,
        'append',
        (original) =>
          function (...args) {
            return args[6] === true ? Refusal.NONE : original.apply(this, args);
          },
      );
    },
  },
  'flush-tells-early': {
    what: 'flush() resolves before everything is acknowledged',
    seed: 1,
    make: () => {
      replace(
        FileSession,
        'flush',
        () =>
          function () {
            this.window.flushTail();
            return Promise.resolve();
          },
      );
    },
  },
};

/** Breaks the code of this process. @throws when there is no such mutant, or its target is gone */
export function breakIt(name: string): void {
  const mutant = mutants[name];
  if (mutant === undefined) throw new Error(`there is no mutant '${name}', but ${Object.keys(mutants).join(', ')}`);
  mutant.make();
}
