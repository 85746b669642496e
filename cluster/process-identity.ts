/**
 * Which process, beyond doubt: a pid is reused, a (boot, pid, start time) is not. Linux only. All parties share one pid
 * namespace (network namespaces may differ).
 */
import { readFileSync } from 'node:fs';

export interface ProcessIdentity {
  readonly bootId: string;
  readonly pid: number;
  /** Clock ticks since boot, as /proc/PID/stat prints them. */
  readonly startTime: string;
}

let own: ProcessIdentity | undefined;

export function ownIdentity(): ProcessIdentity {
  own ??= {
    bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
    pid: process.pid,
    startTime: startTimeOf(process.pid) ?? '',
  };
  return own;
}

/** Whether that very process runs still (a stopped one does; a zombie does not). */
export function isRunning(identity: ProcessIdentity): boolean {
  return identity.bootId === ownIdentity().bootId && startTimeOf(identity.pid) === identity.startTime;
}

/** Milliseconds of CLOCK_MONOTONIC: comparable between the processes of one boot. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1_000_000n);
}

/** Field 22 of /proc/PID/stat; undefined when there is no such process, or only its zombie. */
function startTimeOf(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The command's name, field 2, is in parentheses and may itself hold spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const state = fields[0];
  return state === 'Z' || state === 'X' ? undefined : fields[19];
}
