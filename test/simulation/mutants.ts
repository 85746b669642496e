/**
 * Deliberately broken variants of the code: a harness that cannot fail proves nothing, so each of these must be found.
 *
 * A mutant replaces methods of the running classes until it is mended: no other run may go on meanwhile. Methods are
 * reached by name, private ones too; a name that is gone makes breakIt() throw, so no mutant outlives its target.
 *
 * Each comes with the plan that finds it: explicit steps and faults that wait for each other (script.ts), so that it is
 * found whatever the code's timing is.
 */
import { NodeLink } from '../../pipeline/node-link.js';
import { NodeSet } from '../../pipeline/node-set.js';
import { StripePipeline } from '../../pipeline/stripe-pipeline.js';
import type { Batch } from '../../storage-node/batch.js';
import { FileIndex } from '../../storage-node/file-index.js';
import { Appender } from '../../storage-node/appender.js';
import { IndexView } from '../../storage-node/index-view.js';
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
import { fullDisk, halfRewrite, lateStripe, throughSwitch } from './mutant-plans.js';
import type { Plan } from './plan.js';
import { fault, pinned } from './script.js';

export interface Mutant {
  readonly what: string;
  /** What happens so that it shows, as little as can be; the honest code stands it. */
  readonly plan: Plan;
  /** The kinds of violation that it then shows as; any of them. */
  readonly finds: readonly string[];
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
  mends.push(() => {
    prototype[method] = original;
  });
}

/** What undoes the breaking of this process. */
let mends: (() => void)[] = [];

export const mutants: Readonly<Record<string, Mutant>> = {
  'ack-before-sync': {
    what: 'a node reports a unit durable before the sync',
    plan: pinned({
      script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 9000], ['flush']] },
      faults: [
        fault(
          'power-loss-everywhere',
          '',
          { acknowledged: 1024, by: 'w1' },
          { until: { struck: 0 }, unsynced: 'lost' },
        ),
      ],
    }),
    finds: ['acknowledged bytes lost', 'acknowledged stripe lost', 'file lost'],
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
    plan: fullDisk,
    finds: ['redundancy lost silently'],
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
    plan: pinned({
      // The first stripe lies on the two slow nodes, the second on the others.
      codes: ['copies(1,1)'],
      script: {
        w1: [['create', 'file1', 'copies(1,1)', 512], ['wait', { struck: 2 }], ['write', 4096], ['flush']],
        w2: [
          ['wait', { over: 3 }],
          ['append', 'file1'],
        ],
      },
      faults: [
        fault('disk-slow', 'n1', { steps: 1, of: 'w1' }, { id: 1 }),
        fault('disk-slow', 'n2', { steps: 1, of: 'w1' }, { id: 2 }),
        fault('writer-kill', 'w1', { acknowledged: 512, by: 'w1' }, { id: 3, until: { struck: 3 } }),
        fault(
          'node-power-loss',
          'n1',
          { acknowledged: 512, by: 'w1' },
          { id: 4, unsynced: 'lost', until: { struck: 4 } },
        ),
        fault(
          'node-power-loss',
          'n2',
          { acknowledged: 512, by: 'w1' },
          { id: 5, unsynced: 'lost', until: { struck: 5 } },
        ),
      ],
    }),
    finds: ['acknowledged bytes lost'],
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
    plan: pinned({
      script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 20_000], ['end']] },
      faults: [fault('node-kill', 'n1', { units: 2, of: 'n1' })],
    }),
    finds: ['redundancy lost silently'],
    make: () => {
      replace(
        Appender,
        'fieldsOf',
        (original) =>
          function (...args) {
            const fields = original.apply(this, args) as { missingLow: number; missingHigh: number };
            fields.missingLow = fields.missingHigh = 0;
            return fields;
          },
      );
      replace(
        IndexView,
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
    plan: lateStripe,
    finds: ['fenced writer acknowledged', 'acknowledged bytes lost'],
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
    plan: lateStripe,
    finds: ['fenced writer acknowledged', 'acknowledged bytes lost'],
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
    plan: halfRewrite,
    finds: ['acknowledged stripe lost'],
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
    plan: halfRewrite,
    finds: ['acknowledged stripe lost'],
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
    plan: throughSwitch,
    finds: ['misconduct'],
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
    plan: throughSwitch,
    finds: ['misconduct'],
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
    plan: pinned({
      script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 60_000], ['end']] },
    }),
    finds: ['misconduct'],
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
    plan: fullDisk,
    finds: ['stuck'],
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
    plan: pinned({
      // n2 has a unit of the tail's first version, and was away when the second, which is longer, was written.
      script: {
        w1: [
          ['create', 'file1', 'xor(2+1)', 512],
          ['write', 600],
          ['flush'],
          ['wait', { struck: 0 }],
          ['write', 400],
          ['flush'],
        ],
      },
      faults: [fault('node-kill', 'n2', { steps: 3, of: 'w1' }, { until: { steps: 6, of: 'w1' } })],
    }),
    finds: ['wrong bytes read'],
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
    plan: pinned({
      switches: ['s1'],
      script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 60_000], ['end']] },
      faults: [fault('damaged-packets', 'w1', { units: 1, of: 'n1' }, { b: 's1' })],
    }),
    finds: ['redundancy lost silently', 'wrong bytes read', 'parity differs'],
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
    plan: pinned({
      // The first stripe is on n1 and n2, and only n1 has it and knows that; its writer told nobody.
      nodes: ['n1', 'n2', 'n3'],
      codes: ['copies(1,1)'],
      script: {
        w1: [['create', 'file1', 'copies(1,1)', 512], ['wait', { struck: 1 }], ['write', 512], ['flush']],
        w2: [
          ['wait', { struck: 2 }],
          ['append', 'file1'],
        ],
      },
      faults: [
        fault('node-kill', 'n2', { steps: 1, of: 'w1' }, { id: 1, until: { struck: 2 } }),
        fault('writer-kill', 'w1', { acknowledged: 512, by: 'w1' }, { id: 2 }),
        fault('node-kill', 'n1', { struck: 2 }, { id: 3 }),
      ],
    }),
    finds: ['acknowledged bytes lost'],
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
    plan: pinned({
      script: {
        w1: [['create', 'file1', 'xor(2+1)', 16_384], ['write', 1_000_000], ['end']],
        r1: [
          ['wait', { steps: 3, of: 'w1' }],
          ['read', 'file1', 2],
        ],
      },
      faults: [fault('node-pause', 'n1', { reads: 1, of: 'r1' })],
    }),
    finds: ['misconduct'],
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
    plan: pinned({
      // The map changes without concerning the writer's file, and the writer does not hear of it.
      fileNames: ['file1', 'file2', 'file3'],
      script: {
        w1: [
          ['create', 'file2', 'xor(2+1)', 512],
          ['wait', { struck: 1 }],
          ['write', 4096],
          ['end'],
          ['create', 'file1', 'xor(2+1)', 512],
          ['wait', { struck: 2 }],
          ['wait', { node: 'n4', is: 'up' }],
          ['write', 4096],
          ['flush'],
        ],
        w2: [['wait', { steps: 8, of: 'w1' }], ['create', 'file3', 'xor(2+1)', 512], ['write', 4096], ['end']],
      },
      faults: [
        fault('node-kill', 'n4', { steps: 1, of: 'w1' }, { id: 1, until: { struck: 2 } }),
        fault('store-cut-off', 'w1', { steps: 5, of: 'w1' }, { id: 2, until: { steps: 4, of: 'w2' } }),
      ],
    }),
    finds: ['misconduct'],
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
    plan: pinned({
      script: {
        w1: [['create', 'file1', 'xor(2+1)', 512], ['wait', { struck: 0 }], ['write', 20_000], ['end']],
      },
      faults: [fault('node-kill', 'n1', { steps: 1, of: 'w1' }, { until: { steps: 4, of: 'w1' } })],
    }),
    finds: ['not rebuilt'],
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
    plan: pinned({
      script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 9000], ['flush']] },
    }),
    finds: ['flush told too early'],
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

/**
 * Breaks the code of this process.
 * @returns what mends it
 * @throws when there is no such mutant, or its target is gone
 */
export function breakIt(name: string): () => void {
  const mutant = mutants[name];
  if (mutant === undefined) throw new Error(`there is no mutant '${name}', but ${Object.keys(mutants).join(', ')}`);
  mends = [];
  mutant.make();
  const undo = mends.reverse();
  return () => {
    for (const mend of undo) mend();
  };
}
