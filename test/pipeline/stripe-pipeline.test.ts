/**
 * The stripe pipeline between a device and links whose answers the test gives by hand: in every order, a slot is given
 * back only when nobody reads or writes it any more, and each operation ends once.
 */
import t from 'tap';
import type { CompletionHandler, Device, MemoryRegion } from 'tartan-rdma';
import { Opcode, Status } from 'tartan-rdma';
import { parseCode } from '../../erasure/code/index.js';
import { makeLayout } from '../../erasure/layout/index.js';
import { Hub } from '../../pipeline/hub.js';
import type { NodeLink } from '../../pipeline/node-link.js';
import { writeDataHeaders } from '../../pipeline/stripe-headers.js';
import { StripePipeline } from '../../pipeline/stripe-pipeline.js';
import { Refusal } from '../../wire/ring-messages.js';
import { stripeSlotLayout } from '../../wire/slot-layout.js';

interface Step {
  readonly name: string;
  run(): void;
}

/** One operation of 2+1 in a slot, with every event still to come as a step that the test takes when it likes. */
class Bench {
  readonly events: string[] = [];
  readonly steps: Step[] = [];
  /** Device requests that read or write the slot now: the pending encode, writes under way. */
  inUse = 0;
  readonly pipeline: StripePipeline;

  constructor(sealed: boolean, refuse: readonly number[]) {
    const code = parseCode('xor(2+1)'),
      layout = makeLayout({ nodes: 3, k: 2, m: 1, unitBytes: 512 });
    const slots = stripeSlotLayout(2, 1, 512);
    const region = {
      buffer: new ArrayBuffer(slots.slotBytes),
      byteLength: slots.slotBytes,
      lkey: 1,
      rkey: 1,
      grant: () => {},
      deregister: () => Promise.resolve(),
    } satisfies MemoryRegion;
    let coded: CompletionHandler = () => {};
    const device = {
      ring: () => {},
      onBatchEnd: undefined,
      createCoder: () => ({ destroy: () => {} }),
      createCodingQueue: (handler: CompletionHandler) => {
        coded = handler;
        return {
          qpn: 1,
          handler,
          destroy: () => Promise.resolve(),
          postVerify: () => {},
          postEncode: (wrId: number) => {
            this.inUse++;
            this.steps.push({
              name: 'encode',
              run: () => {
                this.inUse--;
                coded(Opcode.ENCODE, Status.SUCCESS, wrId, 0, 0, 0);
              },
            });
          },
        };
      },
    } as unknown as Device;
    const place = {
      region,
      headerOffset: 0,
      headerBytes: 0,
      payloadOffset: 0,
      payloadBytes: 0,
      writerEpoch: 0,
      counter: 0,
      stripe: 0,
      mapEpoch: 0,
    };
    const link = {
      send: (op: number, unit: number) => {
        this.pipeline.locate(op, unit, place);
        this.inUse++;
        this.events.push(`send ${unit}`);
        this.steps.push({
          name: `written ${unit}`,
          run: () => {
            this.inUse--;
            this.pipeline.onWritten(link, op, unit, true);
          },
        });
        this.steps.push({
          name: `answer ${unit}`,
          run: () => {
            this.pipeline.onAnswer(link, op, unit, refuse.includes(unit) ? Refusal.DISK : Refusal.NONE, 1);
          },
        });
      },
    } as unknown as NodeLink;
    this.pipeline = new StripePipeline({
      hub: new Hub(device),
      code,
      layout,
      slots,
      region,
      maxOps: 1,
      sealed,
      linkTo: () => link,
      owner: {
        onReleased: () => {
          this.events.push(this.inUse === 0 ? 'released' : `released while ${this.inUse} requests use the slot`);
        },
        onSettled: (_op, refusal) => {
          this.events.push(refusal === Refusal.NONE ? 'settled' : `refused ${refusal}`);
        },
      },
    });
    writeDataHeaders(
      new Uint32Array(region.buffer),
      0,
      slots,
      { codeId: code.id, clusterId: 1, fileId: 1, mapEpoch: 1, writerEpoch: 1, commitMark: 0 },
      0,
      1024,
      1,
      0,
      0,
    );
    this.pipeline.start(0, 0, 0, 1024, 0, 0);
  }
}

/** Takes the steps in every possible order; `visit` sees each end. */
function everyOrder(make: () => Bench, visit: (bench: Bench, order: string) => void): number {
  let count = 0;
  const explore = (path: readonly number[]): void => {
    const bench = make();
    const order: string[] = [];
    for (const choice of path) {
      const [step] = bench.steps.splice(choice, 1);
      order.push(step!.name);
      step!.run();
    }
    if (bench.steps.length === 0) {
      count++;
      visit(bench, order.join(', '));
      return;
    }
    for (let choice = 0; choice < bench.steps.length; choice++) explore([...path, choice]);
  };
  explore([]);
  return count;
}

for (const sealed of [true, false]) {
  const where = sealed ? 'in the switch' : 'in host mode';
  for (const refuse of [[], [0], [1], [2], [0, 2]]) {
    void t.test(
      `${where}, ${refuse.length === 0 ? 'nothing refused' : `unit ${refuse.join(' and ')} refused`}: no slot ` +
        'is reused under a pending encode or write, in any order',
      (t) => {
        const wrong: string[] = [];
        const orders = everyOrder(
          () => new Bench(sealed, refuse),
          (bench, order) => {
            const ends = bench.events.filter((each) => !each.startsWith('send'));
            const expected = refuse.length === 0 ? ['released', 'settled'] : ['released', `refused ${Refusal.DISK}`];
            if (ends.join() !== expected.join() || bench.pipeline.busy(0)) wrong.push(`${order}: ${ends.join(', ')}`);
          },
        );
        t.same(wrong.slice(0, 3), []);
        t.ok(orders >= 90, `${orders} orders`);
        t.end();
      },
    );
  }
}
