/** Memory and descriptors of processes over time, and whether they grow. */
import { readFileSync, readdirSync } from 'node:fs';
import { spread } from '../../testbed/report/result.js';

export interface Sample {
  readonly minutes: number;
  readonly id: string;
  readonly pid: number;
  /** Resident memory, MiB. */
  readonly rssMib: number;
  readonly descriptors: number;
}

/** @returns undefined when the process is gone */
export function sampleOf(id: string, pid: number, minutes: number): Sample | undefined {
  try {
    const kib = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    if (kib === undefined) return undefined;
    return { minutes, id, pid, rssMib: Number(kib) / 1024, descriptors: readdirSync(`/proc/${pid}/fd`).length };
  } catch {
    return undefined;
  }
}

export interface Growth {
  readonly id: string;
  readonly pid: number;
  readonly minutes: number;
  /** Medians of the second (in a life of less than ten minutes the third) and of the last quarter of its life. */
  readonly rssMib: readonly [number, number];
  readonly descriptors: readonly [number, number];
  readonly isFlat: boolean;
}

/** Fewer samples say nothing. */
const LEAST_SAMPLES = 40;
/** In a shorter life youth lasts until its half: on a busy machine a process opens its first sessions then. */
const LONG_MINUTES = 10;
/** What a heap may have moved by without a leak: garbage that has not been collected yet. */
const SLACK_MIB = 24;
const SLACK_SHARE = 0.15;
const SLACK_DESCRIPTORS = 12;

/** Of each process that lived long enough to tell. */
export function growths(samples: readonly Sample[]): Growth[] {
  const lives = new Map<string, Sample[]>();
  for (const sample of samples) {
    const key = `${sample.id} ${sample.pid}`;
    lives.set(key, [...(lives.get(key) ?? []), sample]);
  }
  return [...lives.values()]
    .filter((life) => life.length >= LEAST_SAMPLES)
    .map((life) => {
      const quarter = Math.floor(life.length / 4),
        minutes = life.at(-1)!.minutes - life[0]!.minutes,
        from = minutes < LONG_MINUTES ? 2 * quarter : quarter;
      const early = life.slice(from, from + quarter),
        late = life.slice(-quarter);
      const rssMib = [
        spread(early.map((each) => each.rssMib)).median,
        spread(late.map((each) => each.rssMib)).median,
      ] as const;
      const descriptors = [
        spread(early.map((each) => each.descriptors)).median,
        spread(late.map((each) => each.descriptors)).median,
      ] as const;
      return {
        id: life[0]!.id,
        pid: life[0]!.pid,
        minutes,
        rssMib,
        descriptors,
        isFlat:
          rssMib[1] <= rssMib[0] * (1 + SLACK_SHARE) + SLACK_MIB &&
          descriptors[1] <= descriptors[0] + SLACK_DESCRIPTORS,
      };
    });
}
