/**
 * A writer's way through a packet switch, without the switch: probes and groups are answered here, lanes and nodes are
 * counted.
 */
import { createSocket, type Socket } from 'node:dgram';
import t, { type Test } from 'tap';
import type { ClusterMap, FileRecord, SwitchEntry } from '../../cluster/records.js';
import { parseCode } from '../../erasure/code/index.js';
import { layoutOf, nodeOfUnit } from '../../erasure/layout/index.js';
import type { NodeLink } from '../../pipeline/node-link.js';
import type { NodeSet } from '../../pipeline/node-set.js';
import type { PacketLanes } from '../../pipeline/packet-lanes.js';
import { writeDataHeaders } from '../../pipeline/stripe-headers.js';
import { realClock } from '../../wire/clock.js';
import { serveControl, type ControlServer } from '../../wire/control.js';
import { TartanError, codeOf } from '../../wire/errors.js';
import { PacketType, decodeProbeBody, encodePacketHeader, encodeProbeBody } from '../../wire/packet-header.js';
import { Refusal } from '../../wire/ring-messages.js';
import { stripeSlotLayout } from '../../wire/slot-layout.js';
import type { ClientContext } from '../../writer/context.js';
import { PacketPath } from '../../writer/packet-path.js';
import { until } from '../until.js';

const HOST = '127.0.0.1',
  TAGS = 8,
  UNIT_BYTES = 1024,
  EPOCH = 5,
  WRITER_EPOCH = 3;

interface Settled {
  tag: number;
  refusal: number;
  unit: number;
  mapEpoch: number;
}

/** Everything around a path. */
class Rig {
  code = parseCode('rs(4,2)');
  file = {
    id: 7,
    name: 'f',
    code: 'rs(4,2)',
    unitBytes: UNIT_BYTES,
    nodes: ['n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7'],
  } as unknown as FileRecord;
  readonly layout = layoutOf(this.file, this.code);
  readonly slots = stripeSlotLayout(4, 2, UNIT_BYTES);
  readonly region = { buffer: new ArrayBuffer(TAGS * this.slots.slotBytes) };
  map = { epoch: EPOCH, changes: 1, nodes: [], switches: [] } as unknown as ClusterMap;
  slotsAtNodes = 4;
  takesPackets = true;
  /** Longer than any machine is slow; short where silence is waited for. */
  deadlineMs = 60_000;
  askedInVain = 0;
  readonly posted: { tag: number; group: number; units: number; chunkBytes: number }[] = [];
  readonly cancelled: number[] = [];
  readonly settled: Settled[] = [];
  readonly lost: string[] = [];
  /** Sets asked for, by map epoch. */
  readonly asked: { mapEpoch: number; sets: string[][] }[] = [];
  answersProbes = true;
  cookie = 77n;
  k = 4;
  agentEpoch = EPOCH;
  refuses: TartanError | undefined;
  written: (tag: number, ok?: boolean) => void = () => undefined;
  mtu = 1500;
  path!: PacketPath;
  private service!: Socket;
  private control!: ControlServer;
  private nextGroup = 100;

  async start(): Promise<void> {
    this.service = createSocket('udp4');
    this.service.on('message', (packet, from) => {
      if (!this.answersProbes || packet[5] !== PacketType.PROBE) return;
      const answer = Uint8Array.from(packet);
      encodePacketHeader(
        { type: PacketType.PROBE_ANSWER, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
        answer,
        0,
      );
      encodeProbeBody(
        { ...decodeProbeBody(answer), cookie: this.cookie, program: 1, k: this.k, m: 4, chunkBytes: 304 },
        answer,
      );
      this.service.send(answer, from.port, from.address);
    });
    await new Promise<void>((resolve) => {
      this.service.bind(0, HOST, resolve);
    });
    const no = (): never => {
      throw new TartanError('ERR_ARGUMENT', 'not here');
    };
    this.control = await serveControl({
      host: HOST,
      port: 0,
      services: {
        switch: {
          load: no,
          unload: no,
          status: no,
          openGroups: ({ mapEpoch, sets }) => {
            if (this.refuses !== undefined) throw this.refuses;
            if (mapEpoch !== this.agentEpoch) {
              this.askedInVain++;
              throw new TartanError('ERR_STALE_MAP', `the agent is at ${this.agentEpoch}`);
            }
            this.asked.push({ mapEpoch, sets: sets.map(({ nodes }) => nodes) });
            return { groups: sets.map(() => this.nextGroup++), mapEpoch };
          },
        },
      },
    });
  }

  async open(): Promise<PacketPath> {
    const entry: SwitchEntry = {
      id: 's1',
      host: HOST,
      port: 0,
      state: 'programmable',
      controlPort: this.control.port,
      packets: { host: HOST, port: this.service.address().port, mtu: 1500 },
    };
    const link = { takesPackets: this.takesPackets, slots: this.slotsAtNodes, nodeId: 'n1' };
    const currentMap = (): ClusterMap => this.map;
    const nodes = {
      get map() {
        return currentMap();
      },
      count: 7,
      upIndexes: () => [0, 1, 2, 3, 4, 5, 6],
      linkTo: () => link,
    } as unknown as NodeSet;
    const lanes = {
      host: HOST,
      mtu: this.mtu,
      openStripes: (onWritten: (tag: number, ok: boolean) => void) => {
        this.written = (tag, ok = true) => {
          onWritten(tag, ok);
        };
        return {
          post: (
            tag: number,
            _region: unknown,
            _headers: number,
            _units: number,
            _stride: number,
            group: number,
            chunkBytes: number,
            units: number,
          ) => {
            this.posted.push({ tag, group, units, chunkBytes });
          },
          cancel: (tag: number) => {
            this.cancelled.push(tag);
          },
        };
      },
    } as unknown as PacketLanes;
    const deadlineMs = (): number => this.deadlineMs;
    const context = {
      clock: realClock,
      hub: { wake: () => undefined },
      heartbeatMs: 20,
      get deadlineMs() {
        return deadlineMs();
      },
      secret: undefined,
    } as unknown as ClientContext;
    this.path = await PacketPath.open(entry, {
      context,
      file: this.file,
      layout: this.layout,
      slots: this.slots,
      region: this.region as never,
      tags: TAGS,
      lanes,
      nodes,
      owner: {
        onSettled: (tag, refusal, unit, mapEpoch) => {
          this.settled.push({ tag, refusal, unit, mapEpoch });
        },
        onLost: (_path, reason) => {
          this.lost.push(reason);
        },
        onState: () => undefined,
      },
    });
    return this.path;
  }

  /** Fills a staging slot's headers and sends it. */
  send(tag: number, stripe: number, missing = 0): void {
    const words = new Uint32Array(this.region.buffer);
    writeDataHeaders(
      words,
      tag * this.slots.slotBytes,
      this.slots,
      {
        codeId: this.code.id,
        clusterId: 1,
        fileId: 7,
        mapEpoch: this.map.epoch,
        writerEpoch: WRITER_EPOCH,
        commitMark: 0,
      },
      stripe,
      4 * UNIT_BYTES,
      10 + stripe,
      missing,
      0,
    );
    this.path.send(tag, 4 * UNIT_BYTES, 10 + stripe);
  }

  answer(unit: number, stripe: number, refusal: number = Refusal.NONE, mapEpoch = this.map.epoch): void {
    this.path.answered({} as NodeLink, unit, refusal, stripe, WRITER_EPOCH, 10 + stripe, mapEpoch, mapEpoch);
  }

  async end(): Promise<void> {
    await (this.path as PacketPath | undefined)?.destroy('over');
    this.service.close();
    await this.control.close();
  }
}

async function withRig(body: (rig: Rig) => Promise<void>): Promise<void> {
  const rig = new Rig();
  await rig.start();
  try {
    await body(rig);
  } finally {
    await rig.end();
  }
}

void t.test(
  'a stripe goes to the group of its nodes, and is settled once all units are durable and its memory is free',
  (t) =>
    withRig(async (rig) => {
      const path = await rig.open();
      t.equal(path.usable, true);
      t.same(
        rig.asked,
        [
          {
            mapEpoch: EPOCH,
            sets: Array.from({ length: 7 }, (_, row) =>
              Array.from({ length: 6 }, (__, unit) => `n${nodeOfUnit(rig.layout, row, unit) + 1}`),
            ),
          },
        ],
        'every set of the rotation is opened',
      );
      rig.send(0, 3);
      rig.send(1, 10, 0b100010);
      t.same(rig.posted, [
        { tag: 0, group: 103, units: 0b111111, chunkBytes: 304 },
        { tag: 1, group: 103, units: 0b011101, chunkBytes: 304 },
      ]);
      for (const unit of [0, 1, 2, 3, 4]) rig.answer(unit, 3);
      rig.answer(4, 3);
      rig.answer(5, 3, Refusal.NONE, EPOCH - 1);
      t.same(
        rig.settled,
        [],
        'one is still not durable: repeated answers and those about an older header do not count',
      );
      rig.answer(5, 3);
      t.same(rig.settled, [], 'its memory is still read');
      t.same(rig.cancelled, [0], 'what is left of it need not be sent');
      rig.written(0);
      t.same(rig.settled, [{ tag: 0, refusal: 0, unit: 0, mapEpoch: EPOCH }]);
      rig.written(1);
      for (const unit of [0, 2, 3, 4]) rig.answer(unit, 10);
      t.same(
        rig.settled.slice(1),
        [{ tag: 1, refusal: 0, unit: 0, mapEpoch: EPOCH }],
        'missing units are not waited for',
      );
    }),
);

void t.test('no more stripes are under way than nodes have slots', (t) =>
  withRig(async (rig) => {
    rig.slotsAtNodes = 2;
    await rig.open();
    for (const tag of [0, 1, 2, 3]) rig.send(tag, tag);
    t.same(
      rig.posted.map(({ tag }) => tag),
      [0, 1],
    );
    rig.answer(2, 1, Refusal.CHECKSUM);
    t.same(
      rig.posted.map(({ tag }) => tag),
      [0, 1, 2],
      'a refusal makes room too',
    );
    rig.written(1);
    t.same(rig.settled, [{ tag: 1, refusal: Refusal.CHECKSUM, unit: 2, mapEpoch: EPOCH }]);
  }),
);

void t.test('a lost node, a new map and a lost path settle what waits for them', (t) =>
  withRig(async (rig) => {
    const path = await rig.open();
    rig.send(0, 0);
    rig.send(1, 1);
    const alone = [0, 1, 2, 3, 4, 5, 6].find(
      (index) => ![0, 1, 2, 3, 4, 5].some((unit) => nodeOfUnit(rig.layout, 0, unit) === index),
    )!;
    const unit = [0, 1, 2, 3, 4, 5].find((each) => nodeOfUnit(rig.layout, 1, each) === alone)!;
    path.nodeLost(alone);
    rig.written(1);
    t.same(
      rig.settled,
      [{ tag: 1, refusal: Refusal.UNREACHABLE, unit, mapEpoch: 0 }],
      'only the stripe that has a unit there',
    );
    rig.agentEpoch = EPOCH; // hears of the map later
    rig.map = { ...rig.map, epoch: EPOCH + 1 };
    t.equal(path.usable, false, 'its groups are of the old map');
    path.remap(rig.map);
    rig.written(0);
    t.same(rig.settled.slice(1), [{ tag: 0, refusal: Refusal.STALE_MAP, unit: 0, mapEpoch: EPOCH + 1 }]);
    await until(() => rig.askedInVain > 1, 'the agent to be asked too early');
    rig.agentEpoch = EPOCH + 1;
    await until(() => path.usable, 'a usable path');
    rig.send(2, 4);
    t.equal(rig.posted.at(-1)!.group, 111, 'a group of the new map');
    path.close('for the test');
    rig.written(2);
    t.same([rig.settled.at(-1)!.refusal, rig.lost], [Refusal.UNREACHABLE, ['for the test']]);
    rig.send(3, 5);
    t.same(rig.settled.at(-1), { tag: 3, refusal: Refusal.UNREACHABLE, unit: 0, mapEpoch: 0 });
  }),
);

void t.test('a program that falls silent, or is changed for another, loses the path', (t) =>
  withRig(async (rig) => {
    await rig.open();
    rig.answersProbes = false;
    rig.deadlineMs = 400;
    await until(() => rig.lost.length > 0, 'the loss');
    t.match(rig.lost[0], /has not answered a probe/);
    rig.answersProbes = true;
    rig.deadlineMs = 60_000;
    await rig.path.destroy('again');
    await rig.open();
    rig.cookie = 78n;
    await until(() => rig.lost.length > 1, 'the second loss');
    t.match(rig.lost[1], /changed for another/);
    await rig.path.destroy('again');
    await rig.open();
    rig.send(0, 0);
    rig.written(0, false);
    t.same(
      [rig.settled.at(-1)!.refusal, rig.lost.length],
      [Refusal.UNREACHABLE, 3],
      'so does one whose packets cannot be sent',
    );
  }),
);

void t.test('what cannot be served is refused with its reason', (t) =>
  withRig(async (rig) => {
    const refusal = async (t: Test, code: string, about: string): Promise<void> => {
      try {
        await rig.open();
        t.fail(`${about}: it opened`);
      } catch (error) {
        t.equal(codeOf(error), code, about);
      }
    };
    rig.k = 2;
    await refusal(t, 'ERR_CAPACITY', 'more data units than the program takes');
    rig.k = 8;
    rig.mtu = 1400;
    await refusal(t, 'ERR_CAPACITY', 'packets larger than the MTU');
    rig.mtu = 1500;
    rig.takesPackets = false;
    await refusal(t, 'ERR_DEVICE_KIND', 'a node that takes no packets');
    rig.takesPackets = true;
    rig.refuses = new TartanError('ERR_CAPACITY', 'no room for more groups');
    await refusal(t, 'ERR_CAPACITY', 'no room for groups');
    rig.refuses = undefined;
    rig.file = { ...rig.file, code: 'cauchy(4,2)' };
    await refusal(t, 'ERR_CAPACITY', 'a code that the program does not compute');
    rig.file = { ...rig.file, code: 'rs(4,2)' };
    rig.answersProbes = false;
    rig.deadlineMs = 400;
    await refusal(t, 'ERR_CONNECT', 'nobody answers');
  }),
);
