/** What is read from /proc beside every measurement: bytes of interfaces, and how idle the CPUs were. */
import { readFileSync } from 'node:fs';
import type { Network } from './network.js';

/**
 * Bytes since the interface was made, as the host that owns it counts them: Ethernet frames without preamble and gap.
 */
export interface LinkBytes {
  readonly sent: number;
  readonly received: number;
}

/** @returns by interface, as HOST-NAME, for every link end of a host */
export function linkBytes(network: Network): Map<string, LinkBytes> {
  const all = new Map<string, LinkBytes>();
  for (const { name } of network.spec.hosts) {
    for (const line of readFileSync(`/proc/${network.pidOf(name)}/net/dev`, 'latin1')
      .split('\n')
      .slice(2)) {
      const [label, rest] = line.split(':');
      if (rest === undefined || label!.trim() === 'lo') continue;
      const fields = rest.trim().split(/\s+/).map(Number);
      const own = label!.trim();
      all.set(own.startsWith(`${name}-`) ? own : `${name}-${own}`, { received: fields[0]!, sent: fields[8]! });
    }
  }
  return all;
}

/** What was added between two readings, summed over the interfaces that `wanted` picks. */
export function bytesBetween(
  before: ReadonlyMap<string, LinkBytes>,
  after: ReadonlyMap<string, LinkBytes>,
  wanted: (name: string) => boolean,
): LinkBytes {
  let sent = 0,
    received = 0;
  for (const [name, now] of after) {
    if (!wanted(name)) continue;
    const then = before.get(name) ?? { sent: 0, received: 0 };
    sent += now.sent - then.sent;
    received += now.received - then.received;
  }
  return { sent, received };
}

export interface CpuTimes {
  readonly idle: number;
  readonly total: number;
}

/** Ticks of all CPUs together; waiting for a disk counts as idle. */
export function cpuTimes(): CpuTimes {
  const fields = readFileSync('/proc/stat', 'latin1').split('\n')[0]!.trim().split(/\s+/).slice(1).map(Number);
  // user nice system idle iowait irq softirq steal; guest times are in user already.
  const total = fields.slice(0, 8).reduce((sum, each) => sum + each, 0);
  return { idle: fields[3]! + fields[4]!, total };
}

/** Share of CPU time that was idle, 0 to 1. */
export function idleShare(before: CpuTimes, after: CpuTimes): number {
  return after.total > before.total ? (after.idle - before.idle) / (after.total - before.total) : 0;
}
