/** What a P4 switch counts, as its agent tells it. */
import t from 'tap';
import { TartanError } from '../../wire/errors.js';
import { counterEntry, tableEntry, type v1 } from 'tartan-p4runtime';
import { loadArtefact } from '../../switch-agent/bmv2/artefact.js';
import { PacketCounters } from '../../switch-agent/bmv2/packet-counters.js';
import { serveMetrics, type Sample } from '../../switch-agent/metrics.js';
import { DropReason } from '../../wire/packet-header.js';

const parity = loadArtefact('parity-k2-1500').program,
  forward = loadArtefact('forward').program;

/** A switch that has counted so much. */
function holding(program: typeof parity, drops: number, groups: Record<number, number>) {
  return (...[wanted]: v1.Entity[]): Promise<v1.Entity[]> => {
    const { entity } = wanted!;
    if (entity?.$case === 'counterEntry')
      return Promise.resolve([
        counterEntry(program, program.nameOf(program.findById('counter', entity.value.counterId)), DropReason.group, {
          packets: BigInt(drops),
          bytes: 0n,
        }),
      ]);
    if (entity?.$case !== 'tableEntry') return Promise.resolve([]);
    const isGroup = program.nameOf(program.findById('table', entity.value.tableId)) === 'group';
    const counter = (packets: number) => ({ packets: BigInt(packets), bytes: BigInt(1000 * packets) });
    return Promise.resolve(
      Object.entries(groups).flatMap(([group, packets]) =>
        isGroup
          ? [
              tableEntry(program, {
                table: 'group',
                match: { 'hdr.packet.group': Number(group) },
                action: { name: 'stripe_group', params: { multicast_group: 2, map_epoch: 1, k: 2, m: 1 } },
                counter: counter(packets),
              }),
            ]
          : [1, 2, 3].map((rid) =>
              tableEntry(program, {
                table: 'replica',
                match: { 'hdr.packet.group': Number(group), 'sm.egress_rid': rid },
                action: { name: 'parity_row', params: { row: 0, src_mac: 1, dst_mac: 2, dst_ip: 3, dst_port: 4 } },
                counter: counter(packets),
              }),
            ),
      ),
    );
  };
}

t.test('sums never step back: not when the switch begins anew, nor when groups go', async (t) => {
  const counters = new PacketCounters();
  const look = async (program: typeof parity, drops: number, groups: Record<number, number>) => {
    await counters.refresh(program, holding(program, drops, groups));
    const all = counters.totals();
    return [
      all['tartan_switch_ingress_drops_group'],
      all['tartan_switch_stripe_packets'],
      all['tartan_switch_stripe_packet_bytes'],
      all['tartan_switch_unit_packets_sum'],
    ];
  };
  t.same(await look(parity, 3, { 7: 10 }), [3, 10, 10_000, 30]);
  t.same(await look(parity, 5, { 7: 12, 8: 1 }), [5, 13, 13_000, 39]);
  t.same(
    counters.samples().filter((each) => each.labels?.['unit'] === undefined),
    [
      { name: 'tartan_switch_group_packets', labels: { group: '7' }, value: 12 },
      { name: 'tartan_switch_group_packets', labels: { group: '8' }, value: 1 },
    ],
  );
  t.equal(counters.samples().filter((each) => each.name === 'tartan_switch_unit_packets').length, 6);
  t.same(await look(parity, 1, { 7: 2 }), [6, 15, 15_000, 45], 'the switch was restarted');
  t.same(await look(forward, 4, {}), [9, 15, 15_000, 45], 'a program without groups');
  t.same(counters.samples(), []);
  t.same(await look(parity, 0, { 9: 1 }), [9, 16, 16_000, 48]);
});

t.test('metrics are read at each request; a cell that is gone does not show any more', async (t) => {
  let count = 1,
    cells: Sample[] = [
      { name: 'cells', labels: { group: '7', unit: '0' }, value: 5 },
      { name: 'cells', labels: { group: '7', unit: '1' }, value: 6 },
    ];
  const server = await serveMetrics(
    () => Promise.resolve({ plain: count++ }),
    '127.0.0.1',
    0,
    () => cells,
  );
  t.teardown(() => server.close());
  const get = async () =>
    (await (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text())
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'));
  t.same(await get(), ['plain 1', 'cells{group="7",unit="0"} 5', 'cells{group="7",unit="1"} 6']);
  cells = cells.slice(1);
  t.same(await get(), ['plain 2', 'cells{group="7",unit="1"} 6']);
  const away = new TartanError('ERR_CONNECT', 'no switch');
  const silent = await serveMetrics(() => Promise.reject(away), '127.0.0.1', 0);
  t.teardown(() => silent.close());
  const answer = await fetch(`http://127.0.0.1:${silent.port}/metrics`);
  t.equal(answer.status, 503);
  t.equal(await answer.text(), 'ERR_CONNECT: no switch\n');
});
