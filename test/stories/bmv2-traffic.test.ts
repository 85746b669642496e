/**
 * What a real BMv2 with our program must not do: let damaged packets through to a store, or disturb traffic that isn't
 * ours. Files are written meanwhile, and read back equal.
 */
import { spawnSync } from 'node:child_process';
import t from 'tap';
import {
  DropReason,
  PACKET_HEADER_BYTES,
  PacketType,
  STRIPE_PORT,
  encodePacketHeader,
  type DropReasonName,
  type PacketHeader,
} from '../../wire/packet-header.js';
import { DATA_HEADER_BYTES } from '../../wire/unit-header.js';
import { expectedUnitPacket, makeStripe, stripePacket } from '../p4/stripe-packets.js';

// As built: it starts processes from files beside those it imports, which only the build has.
const { Bmv2Network, noStories } = (await import(
  new URL('../../dist/test/stories/bmv2-network.js', import.meta.url).href
)) as typeof import('./bmv2-network.js');

const noIperf =
  noStories !== false
    ? noStories
    : spawnSync('iperf3', ['--version'], { stdio: 'ignore' }).error === undefined
      ? false
      : 'iperf3 is not on PATH';
const SERVICE = { host: '10.5.0.254', port: STRIPE_PORT },
  AGENT = { host: '10.5.0.250', port: 7001 };
const NODES = ['10.5.0.11', '10.5.0.12', '10.5.0.13'];
const CHUNK_BYTES = 4096,
  UNIT_BYTES = 4096;
const ACCESS = { parity: 'switch', deadlineMs: 3000, holdMs: 300, ringMemoryBytes: 128 << 20 } as const;
const FILE = { code: 'xor(2+1)', unitBytes: 16_384 };
const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
/** A script that runs a command in its place. */
const running = (...[program, ...args]: string[]): string =>
  `require('node:child_process').spawn(${JSON.stringify(program)}, ${JSON.stringify(args)}, { stdio: ` +
  `['ignore', 'inherit', 'inherit'] }).on('exit', (code) => process.exit(code ?? 1));`;
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

t.test(
  'damaged packets are dropped, each with its reason counted, and none reaches a store',
  { skip: noStories },
  async (t) => {
    await Bmv2Network.use({ nodes: 3, artefact: 'parity-k2-9000' }, async (network) => {
      const worker = network.worker(),
        { epoch } = await network.map();
      const {
        groups: [group],
      } = await worker.call('openGroups', {
        at: AGENT,
        request: { mapEpoch: epoch, k: 2, m: 1, sets: [{ nodes: ['n1', 'n2', 'n3'] }] },
      });
      const stripe = makeStripe(
        2,
        1,
        UNIT_BYTES,
        Uint8Array.from({ length: 2 * UNIT_BYTES }, (_, i) => (i * 37) & 0xff),
      );
      const right: PacketHeader = {
        type: PacketType.STRIPE,
        k: 2,
        m: 1,
        group: group!,
        mapEpoch: epoch,
        offset: 0,
        chunkBytes: CHUNK_BYTES,
      };
      const made = (change: Partial<PacketHeader>, of = stripe): Uint8Array => {
        const packet = stripePacket(of, group!, 0, CHUNK_BYTES);
        encodePacketHeader({ ...right, ...change }, packet, DATA_HEADER_BYTES);
        return packet;
      };
      const damaged = (at: number, value: number): Uint8Array => {
        const packet = made({});
        packet[at] = value;
        return packet;
      };
      const longer = new Uint8Array(made({}).length + 4);
      longer.set(made({}));
      const wrong: [DropReasonName, Uint8Array][] = [
        ['short', made({}).subarray(0, 100)],
        ['short', made({}).subarray(0, PACKET_HEADER_BYTES - 4)],
        ['short', made({}).subarray(0, 5000)],
        ['version', damaged(4, 9)],
        ['version', damaged(PACKET_HEADER_BYTES + 4, 9)],
        ['version', damaged(PACKET_HEADER_BYTES, 0)],
        ['type', damaged(0, 0)],
        ['type', made({ type: PacketType.UNIT })],
        ['shape', made({ k: 0 })],
        ['shape', made({ k: 9 })],
        ['shape', made({ m: 0 })],
        ['shape', made({ m: 5 })],
        ['shape', made({ m: 2 })],
        ['class', made({ chunkBytes: 64 })],
        ['class', made({ k: 3, m: 1 }, makeStripe(3, 1, UNIT_BYTES, new Uint8Array(3 * UNIT_BYTES))).subarray(0, 8000)],
        ['length', longer],
        ['checksum', damaged(PACKET_HEADER_BYTES + 30, 1)],
        ['checksum', damaged(22, 0x5a)],
        ['group', made({ group: group! ^ 0x4000_0000 })],
        ['group', made({ group: 0 })],
        ['map_epoch', made({ mapEpoch: epoch - 1 })],
        ['map_epoch', made({ mapEpoch: epoch + 1 })],
        ['group_shape', made({ m: 2 }, makeStripe(2, 2, UNIT_BYTES, new Uint8Array(2 * UNIT_BYTES)))],
      ];
      const drops = async (): Promise<Record<string, number>> =>
        Object.fromEntries(
          Object.entries((await network.program('status')).counters).flatMap(([name, value]) => {
            const found = /^tartan_switch_ingress_drops_(.*)$/.exec(name);
            return found === null ? [] : [[found[1]!, value]];
          }),
        );
      const atNodes = () =>
        Promise.all(
          NODES.map(async (host) => (await worker.call('nodeStatus', { at: { host, port: 7001 } })).counters),
        );

      const before = await drops(),
        nodesBefore = await atNodes(),
        times = 5;
      await worker.call('sendDatagrams', {
        to: SERVICE,
        datagrams: wrong.flatMap(([, packet]) => Array.from({ length: times }, () => hex(packet))),
      });
      const after = await drops(),
        nodesAfter = await atNodes();
      for (const reason of Object.keys(DropReason) as DropReasonName[]) {
        t.equal(after[reason]! - before[reason]!, times * wrong.filter(([each]) => each === reason).length, reason);
      }
      const grew = (name: string): number[] =>
        nodesAfter.map((each, i) => each[`tartan_packets_${name}`]! - nodesBefore[i]![`tartan_packets_${name}`]!);
      t.same(grew('packets_received'), [0, 0, 0], 'no node was sent anything');

      // Right for the switch, of a file that nobody has open; then damaged ones straight to the nodes.
      await worker.call('sendDatagrams', { to: SERVICE, datagrams: [hex(made({}))] });
      const units = [0, 1, 2].map((unit) => expectedUnitPacket(stripe, unit, 0, 0, CHUNK_BYTES));
      for (const [i, host] of NODES.entries()) {
        const flipped = units[i]!.slice(),
          cut = units[i]!.subarray(0, 150);
        flipped[PACKET_HEADER_BYTES + 20]! ^= 1;
        await worker.call('sendDatagrams', {
          to: { host, port: 7002 },
          datagrams: [hex(units[i]!), hex(flipped), hex(cut), 'ff', hex(new Uint8Array(9000))],
        });
      }
      const nodesLast = await atNodes();
      for (const [i, last] of nodesLast.entries()) {
        const by = (name: string): number => last[name]! - nodesBefore[i]![name]!;
        t.equal(
          by('tartan_packets_malformed') +
            by('tartan_packets_unknown') +
            by('tartan_packets_mismatch') +
            by('tartan_packets_stale'),
          6,
          `n${i + 1} counted each of them`,
        );
        t.ok(by('tartan_packets_malformed') >= 3, `n${i + 1} calls what is damaged malformed`);
        t.equal(by('tartan_packets_units_placed'), 0, `n${i + 1} placed none`);
        t.equal(last['tartan_store_units'], nodesBefore[i]!['tartan_store_units'], `n${i + 1} stored none`);
      }

      // The same flood while a file is written.
      const access = { cluster: network.cluster, ...ACCESS },
        file = { name: 'beside', ...FILE },
        flood = wrong.map(([, packet]) => hex(packet));
      await worker.call('beginTimeline', { access, file, sampleMs: 50 });
      const flooding = network.worker('n3');
      for (let round = 0; round < 10; round++) {
        await flooding.call('sendDatagrams', { to: SERVICE, datagrams: flood });
        for (const host of NODES.slice(0, 2))
          await flooding.call('sendDatagrams', {
            to: { host, port: 7002 },
            datagrams: [...flood, ...units.map((each) => hex(each))],
          });
      }
      const result = await worker.call('endTimeline', { name: file.name });
      t.equal(result.modes[0]?.mode, 'switch');
      const read = await worker.call('read', { access, name: file.name });
      t.same(
        [read.bytes, read.sha256],
        [result.bytes, result.sha256],
        `${(result.bytes / 1e6).toFixed(1)} MB written in the midst of it read back`,
      );
      t.ok((await drops())['group']! > after['group']!, 'and the drops were counted');
    });
  },
);

t.test(
  'traffic that is not ours passes untouched while a file is written, stripe packets to other addresses included',
  { skip: noIperf },
  async (t) => {
    await Bmv2Network.use({ nodes: 3, artefact: 'parity-k2-9000' }, async (network) => {
      const worker = network.worker(),
        access = { cluster: network.cluster, ...ACCESS },
        file = { name: 'beside', ...FILE };
      const echo = network.spawn(
        'n2',
        `const s = require('node:dgram').createSocket('udp4'); s.on('message', (m, { port, address }) => ` +
          `s.send(m, port, address)); s.bind(${STRIPE_PORT});`,
      );
      const receiver = network.spawn('n3', running('iperf3', '--server', '--one-off', '--port', '5201'));
      receiver.stdout!.resume();
      try {
        await pause(500); // They print nothing when they are ready.
        await worker.call('beginTimeline', { access, file, sampleMs: 50 });
        const stripe = hex(
          stripePacket(makeStripe(2, 1, UNIT_BYTES, new Uint8Array(2 * UNIT_BYTES).fill(7)), 1, 0, CHUNK_BYTES),
        );
        const sender = network.spawn(
          'n1',
          running('iperf3', '--client', NODES[2]!, '--port', '5201', '--time', '3', '--json'),
        );
        let report = '';
        sender.stdout!.on('data', (chunk: Buffer) => {
          report += chunk.toString();
        });
        const ended = new Promise<number | null>((resolve) => {
          sender.once('close', resolve);
        });
        for (const datagram of [stripe, 'ff', hex(new TextEncoder().encode('TRTP and no more'))])
          t.equal(
            await worker.call('echoDatagram', { to: { host: NODES[1]!, port: STRIPE_PORT }, datagram }),
            datagram,
            'port 21586 of another host is as any other',
          );
        t.equal(await ended, 0, 'iperf3 between two nodes ends well');
        const { sum_received: received, sum_sent: sent } = (
          JSON.parse(report) as {
            end: { sum_received: { bytes: number; bits_per_second: number }; sum_sent: { retransmits: number } };
          }
        ).end;
        t.ok(
          received.bytes > 1e6,
          `${(received.bytes / 1e6).toFixed(0)} MB ` +
            `at ${(received.bits_per_second / 1e6).toFixed(0)} Mbit/s, ${sent.retransmits} segments sent again`,
        );
        const result = await worker.call('endTimeline', { name: file.name });
        t.equal(result.modes[0]?.mode, 'switch');
        const read = await worker.call('read', { access, name: file.name });
        t.same(
          [read.bytes, read.sha256],
          [result.bytes, result.sha256],
          `${(result.bytes / 1e6).toFixed(1)} MB written beside it read back`,
        );
      } finally {
        echo.kill('SIGKILL');
        receiver.kill('SIGKILL');
      }
    });
  },
);

t.test('traffic that is not ours does not notice that the program is swapped', { skip: noStories }, async (t) => {
  await Bmv2Network.use({ nodes: 3, artefact: 'parity-k2-9000' }, async (network) => {
    const echo = network.spawn(
      'n2',
      `const s = require('node:dgram').createSocket('udp4'); s.on('message', (m, { port, address }) => ` +
        's.send(m, port, address)); s.bind(9000);',
    );
    await pause(500); // They print nothing when they are ready.
    const client = network.spawn(
      'w1',
      `const s = require('node:dgram').createSocket('udp4'); let sent = 0, received = 0;
s.on('message', () => { received++; });
      const timer = setInterval(() => { s.send('not ours', 9000, '${NODES[1]}'); sent++; }, 2);
      process.stdin.resume().on('end', () => { clearInterval(timer);
  setTimeout(() => { console.log(JSON.stringify({ sent, received })); process.exit(); }, 1000); });`,
    );
    let text = '';
    client.stdout!.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    for (let round = 0; round < 10; round++) {
      await network.program('unload');
      await pause(50);
      t.match(await network.program('load'), { state: 'programmable' });
      await pause(50);
    }
    const over = new Promise((resolve) => {
      client.once('close', resolve);
    });
    client.stdin!.end();
    await over;
    echo.kill('SIGKILL');
    const { sent, received } = JSON.parse(text) as { sent: number; received: number };
    // The new program comes with its entries: pushed one after the other they cost 83 of 1871 here. BMv2 itself may
    // drop one.
    t.ok(sent > 300 && sent - received <= sent / 100, `${received} of ${sent} datagrams came back, through 20 swaps`);
  });
});
