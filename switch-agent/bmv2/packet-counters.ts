/**
 * A P4 switch's counters, as ever growing sums: a switch that was restarted, or got another program, begins at 0 again.
 */
import { counterEntry, readCounterEntry, readTableEntry, tableWildcard, type Program, type v1 } from 'tartan-p4runtime';
import { DropReason } from '../../wire/packet-header.js';
import type { Sample } from '../metrics.js';

const REASONS = Object.entries(DropReason);

interface Sum {
  base: number;
  last: number;
}

export class PacketCounters {
  private readonly sums = new Map<string, Sum>();
  /** By group, and by group and unit; of groups that the switch has. */
  private cells: Sample[] = [];

  /** @param read  reads entities from the switch */
  async refresh(program: Program, read: (...entities: v1.Entity[]) => Promise<v1.Entity[]>): Promise<void> {
    for (const counter of ['ingress_drops', 'egress_drops']) {
      if (!program.has('counter', counter)) continue;
      for (const { entity } of await read(counterEntry(program, counter))) {
        if (entity?.$case !== 'counterEntry') continue;
        const { index, packets } = readCounterEntry(program, entity.value);
        const reason = REASONS.find(([, number]) => number === Number(index))?.[0];
        if (reason !== undefined) this.seen(`tartan_switch_${counter}_${reason}`, Number(packets));
      }
    }
    const cells: Sample[] = [];
    let stripes = 0,
      bytes = 0,
      units = 0;
    for (const table of ['group', 'replica']) {
      if (!program.has('table', table)) continue;
      for (const { entity } of await read(tableWildcard(program, table, { counters: true }))) {
        if (entity?.$case !== 'tableEntry' || entity.value.isDefaultAction) continue;
        const { match, counter } = readTableEntry(program, entity.value);
        if (counter === undefined) continue;
        const group = String(match['hdr.packet.group']),
          packets = Number(counter.packets);
        if (table === 'group') {
          cells.push({ name: 'tartan_switch_group_packets', labels: { group }, value: packets });
          stripes += this.seen(`group ${group}`, packets);
          bytes += this.seen(`group ${group} bytes`, Number(counter.bytes));
        } else {
          const unit = String(Number(match['sm.egress_rid']) - 1);
          cells.push({ name: 'tartan_switch_unit_packets', labels: { group, unit }, value: packets });
          units += this.seen(`unit ${group} ${unit}`, packets);
        }
      }
    }
    this.cells = cells;
    this.grow('tartan_switch_stripe_packets', stripes);
    this.grow('tartan_switch_stripe_packet_bytes', bytes);
    this.grow('tartan_switch_unit_packets_sum', units);
  }

  /** By metric name. */
  totals(): Record<string, number> {
    const out: Record<string, number> = {};
    for (const [name, { base, last }] of this.sums) if (name.startsWith('tartan_')) out[name] = base + last;
    return out;
  }

  samples(): readonly Sample[] {
    return this.cells;
  }

  /** @returns by how much the sum grew */
  private seen(name: string, value: number): number {
    const sum = this.sums.get(name) ?? { base: 0, last: 0 };
    this.sums.set(name, sum);
    const before = sum.base + sum.last;
    if (value < sum.last) sum.base += sum.last;
    sum.last = value;
    return sum.base + value - before;
  }

  private grow(name: string, by: number): void {
    const sum = this.sums.get(name) ?? { base: 0, last: 0 };
    this.sums.set(name, { base: sum.base + by, last: 0 });
  }
}
