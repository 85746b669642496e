/** What every experiment has: a name, a run, and the context it runs in. */
import { cpus, loadavg, release } from 'node:os';
import type { Result, Setting } from '../report/result.js';
import type { TestbedOptions } from '../testbed.js';
import { formatMbit } from '../topology.js';

export interface Experiment {
  readonly name: string;
  /** One line for `tartan experiment --help`. */
  readonly about: string;
  /** Mbit/s of every link unless told otherwise: [full, quick]. */
  readonly rateMbit: { readonly full: number; readonly quick: number };
  /** Mbit/s of every link with BMv2 as the switch; absent: it does not run on that. */
  readonly bmv2Mbit?: number;
  /** @throws {TestbedError | TartanError} ERR_MEASUREMENT when something else was measured than is claimed */
  run(context: ExperimentContext): Promise<Result>;
}

export interface ExperimentContext {
  /** A few points, each briefly: under two minutes. */
  readonly quick: boolean;
  /** Of every link. */
  readonly rateMbit: number;
  /** Only these codes, where an experiment compares several; undefined: all of its own. */
  readonly codes?: readonly string[] | undefined;
  /** As it was typed. */
  readonly command: string;
  readonly progress: Progress;
  /** A line for the person who waits. */
  readonly note: (line: string) => void;
  /** Default 'soft'. */
  readonly switchKind?: 'soft' | 'bmv2' | undefined;
  /** Where a testbed is kept while it runs; default: the one place of this machine. */
  readonly folder?: string;
}

/** Told of every step of a long run; makes an estimate of it. */
export interface Progress {
  /** @param steps  how many there will be in all */
  expect(steps: number): void;
  /** A step begins. */
  step(what: string): void;
}

/** What every testbed of an experiment is given. */
export function common({
  note,
  folder,
  switchKind,
}: ExperimentContext): Pick<TestbedOptions, 'note' | 'folder' | 'switchKind'> {
  return { note, ...(folder === undefined ? {} : { folder }), ...(switchKind === undefined ? {} : { switchKind }) };
}

export function settingOf(
  context: ExperimentContext,
  more: { readonly durability: string; readonly repetitions: number; readonly links?: string },
): Setting {
  return {
    command: context.command,
    date: new Date().toISOString(),
    kernel: `Linux ${release()}`,
    machine:
      `${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} CPUs, Node ${process.version}; writers, switch and ` +
      'nodes share them',
    links:
      (more.links ?? `${formatMbit(context.rateMbit)} each, htb, both directions`) +
      (context.switchKind === 'bmv2' ? '; the switch is BMv2' : ''),
    durability: more.durability,
    repetitions: more.repetitions,
    loadBefore: loadavg()[0]!,
  };
}

/** In a chart's subtitle. */
export const BMV2_CAPTION = 'through BMv2: it shows function, not the speed of a switch chip';
/** Under what runs on BMv2. */
export const BMV2_NOTE =
  'The switch is BMv2, a software model of a P4 switch: it shows that the program does what it should, not the ' +
  'speed of a switch chip.';

/** A figure in the few digits that mean something. */
export function digits(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
