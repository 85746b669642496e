/**
 * A timeline of acknowledged throughput while the switch loses its program, regains it, is killed, returns, is stopped,
 * goes on, and while the writer's link to it is cut.
 *
 * Two runs of the same schedule: nodes that discard, for the times; nodes that keep, to read everything back. Beside
 * the switch stands a plain bridge, the other path to the nodes: when the writer's link to the switch loses its
 * carrier, the kernel's second route leads over it.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { TestbedError } from '../errors.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import { COLOURS } from '../report/draw.js';
import type { Goal, Result, Row } from '../report/result.js';
import { percentile } from '../report/result.js';
import { Testbed } from '../testbed.js';
import type { TimelineResult } from '../timeline.js';
import { formatMbit, starTopology } from '../topology.js';
import type { Experiment, ExperimentContext } from './experiment.js';
import { BMV2_CAPTION, BMV2_NOTE, common, digits, settingOf } from './experiment.js';
import { LEAST_IDLE, measureStreams } from './measure-stream.js';

export interface FallbackPlan {
  /** Between one event and the next. */
  readonly phaseMs: number;
  readonly unitBytes: number;
  readonly deadlineMs: number;
  readonly holdMs: number;
  /** Of the host-mode figure that the fallback is compared with. */
  readonly naiveSeconds: number;
  readonly repetitions: number;
}

const CODE = 'xor(2+1)';
const SAMPLE_MS = 10;
const FULL: FallbackPlan = {
  phaseMs: 4000,
  unitBytes: 16384,
  deadlineMs: 1000,
  holdMs: 500,
  naiveSeconds: 5,
  repetitions: 3,
};
const QUICK: FallbackPlan = {
  phaseMs: 2500,
  unitBytes: 16384,
  deadlineMs: 1000,
  holdMs: 500,
  naiveSeconds: 2,
  repetitions: 1,
};

export const fallback: Experiment = {
  name: 'fallback',
  about: 'acknowledged throughput every 10 ms while the switch loses its program, is killed, stopped and cut off',
  rateMbit: { full: 200, quick: 100 },
  bmv2Mbit: 50,
  run: (context) => runFallback(context, context.quick ? QUICK : FULL),
};

interface Step {
  readonly event: string;
  /**
   * Longest time without an acknowledged byte that is hoped for; undefined: the switch comes back, nothing should be
   * felt.
   */
  readonly goalMs: (plan: FallbackPlan) => number | undefined;
  readonly act: (testbed: Testbed) => Promise<unknown>;
}

const STEPS: readonly Step[] = [
  { event: 'program lost', goalMs: () => 50, act: (testbed) => testbed.switch('s1', 'unload') },
  { event: 'program back', goalMs: () => undefined, act: (testbed) => testbed.switch('s1', 'load') },
  { event: 'killed', goalMs: () => 250, act: (testbed) => testbed.kill('s1') },
  { event: 'started again', goalMs: () => undefined, act: (testbed) => testbed.start('s1') },
  {
    event: 'stopped',
    goalMs: (plan) => plan.deadlineMs + 250,
    act: async (testbed) => {
      testbed.signal('s1', 'SIGSTOP');
    },
  },
  {
    event: 'goes on',
    goalMs: () => undefined,
    act: async (testbed) => {
      testbed.signal('s1', 'SIGCONT');
    },
  },
  { event: 'link cut', goalMs: (plan) => plan.deadlineMs + 250, act: (testbed) => testbed.setLink('w1', 's1', false) },
  { event: 'link back', goalMs: () => undefined, act: (testbed) => testbed.setLink('w1', 's1', true) },
];

/** With BMv2 all frames pass the switch: while it is gone nothing moves, so that gap has no goal but to end. */
const BMV2_STEPS: readonly Step[] = [
  ...STEPS.slice(0, 2),
  { event: 'agent killed', goalMs: () => 50, act: (testbed) => testbed.kill('s1') },
  {
    event: 'agent started',
    goalMs: () => undefined,
    act: async (testbed) => {
      await testbed.start('s1');
      await testbed.untilProgrammable();
    },
  },
  {
    event: 'switch killed and started',
    goalMs: () => undefined,
    act: async (testbed) => {
      await testbed.killBmv2();
      await testbed.startBmv2();
    },
  },
];

const stepsOf = ({ switchKind }: Pick<ExperimentContext, 'switchKind'>): readonly Step[] =>
  switchKind === 'bmv2' ? BMV2_STEPS : STEPS;

export interface EventFigures {
  readonly event: string;
  /** Milliseconds into the timeline. */
  readonly atMs: number;
  /** Until the writer changed its mode; undefined when it did not. */
  readonly detectionMs: number | undefined;
  /** Longest time without a newly acknowledged byte before the next event; at most 20 ms counts as none: 0. */
  readonly gapMs: number;
  /** Acknowledged bytes a second in the phase's last third, when things have settled. */
  readonly settledBytesPerSecond: number;
  /** The writer's mode at the phase's end. */
  readonly mode: string;
}

export async function runFallback(context: ExperimentContext, plan: FallbackPlan): Promise<Result> {
  const { rateMbit, progress } = context;
  const steps = stepsOf(context),
    isBmv2 = context.switchKind === 'bmv2';
  const setting = settingOf(context, {
    durability: 'discard for the times; volatile for reading back',
    repetitions: plan.repetitions,
    links:
      `${formatMbit(rateMbit)} each, htb, both ` +
      `directions${isBmv2 ? '' : '; a bridge of the same rate beside the switch'}`,
  });
  progress.expect(plan.repetitions * (steps.length + 2) + steps.length + 1);
  const runs: { timeline: TimelineResult; events: EventFigures[] }[] = [];
  let naive = 0,
    idle = 1;
  const use = <T>(durability: 'discard' | 'volatile', action: (testbed: Testbed) => Promise<T>): Promise<T> =>
    Testbed.use(
      {
        topology: starTopology({ nodes: 3, rateMbit, bypass: !isBmv2 }),
        code: CODE,
        durability,
        deadlineMs: plan.deadlineMs,
        ...common(context),
      },
      action,
    );
  await use('discard', async (testbed) => {
    progress.step('parity on the host, undisturbed');
    const figures = await measureStreams(testbed, [
      {
        writer: 'w1',
        name: 'naive',
        code: CODE,
        unitBytes: plan.unitBytes,
        parity: 'host',
        warmupSeconds: 1,
        seconds: plan.naiveSeconds,
      },
    ]);
    naive = figures.bytesPerSecond;
    for (let round = 0; round < plan.repetitions; round++) {
      const cpu = cpuTimes();
      runs.push(
        await runSchedule(testbed, plan, steps, `timeline-${round}`, (what) => {
          progress.step(`round ${round + 1}: ${what}`);
        }),
      );
      idle = Math.min(idle, idleShare(cpu, cpuTimes()));
    }
  });
  const kept = await use('volatile', async (testbed) => {
    const run = await runSchedule(testbed, plan, steps, 'kept', (what) => {
      progress.step(`to be read back: ${what}`);
    });
    progress.step('reading everything back');
    const read = await testbed
      .worker('w1')
      .call('read', { access: { cluster: testbed.cluster, parity: 'host' }, name: 'kept' });
    return { ...run, read };
  });
  const { read, timeline } = kept;
  const isWhole = read.bytes === timeline.bytes && read.sha256 === timeline.sha256;
  return resultOf({
    setting,
    plan,
    steps,
    isBmv2,
    rateMbit,
    runs,
    naive,
    idle,
    kept: { bytes: timeline.bytes, readBytes: read.bytes, isWhole, stripesRedriven: timeline.stripesRedriven },
  });
}

/** One timeline with all events; throws unless its bytes went over the shaped links. */
async function runSchedule(
  testbed: Testbed,
  plan: FallbackPlan,
  steps: readonly Step[],
  name: string,
  step: (what: string) => void,
): Promise<{ timeline: TimelineResult; events: EventFigures[] }> {
  const before = linkBytes(testbed.network);
  // A window of a quarter of a second: what lies in it has to be sent again when the path is lost.
  const rateBytes = testbed.topology.links[0]!.rateMbit * 125_000;
  const writer = testbed.worker('w1');
  step('parity in the switch');
  await writer.call('beginTimeline', {
    access: {
      cluster: testbed.cluster,
      parity: 'switch',
      deadlineMs: plan.deadlineMs,
      holdMs: plan.holdMs,
      ringMemoryBytes: 2 * rateBytes,
    },
    file: { name, code: CODE, unitBytes: plan.unitBytes },
    sampleMs: SAMPLE_MS,
  });
  // The first call starts a process there: that is no part of an event's time.
  await testbed.switch('s1', 'status');
  const times: number[] = [];
  let timeline: TimelineResult;
  try {
    await delay(plan.phaseMs);
    for (const { event, act } of steps) {
      step(event);
      times.push(Date.now());
      await act(testbed);
      await delay(Math.max(0, times.at(-1)! + plan.phaseMs - Date.now()));
    }
  } finally {
    timeline = await writer.call('endTimeline', { name });
  }
  const carried = bytesBetween(before, linkBytes(testbed.network), (each) => each.startsWith('n'));
  if (carried.received < timeline.bytes * 1.5)
    throw new TestbedError(
      'ERR_MEASUREMENT',
      `Cannot count this timeline: the nodes' links carried ${carried.received} bytes ` +
        `for ${timeline.bytes} acknowledged, expected at least half as many again`,
    );
  return {
    timeline,
    events: eventFigures(
      timeline,
      steps.map(({ event }, i) => ({ event, atMs: times[i]! - timeline.startedAt })),
    ),
  };
}

/** @param events  in order; the last one's phase ends with the timeline */
export function eventFigures(
  timeline: TimelineResult,
  events: readonly { readonly event: string; readonly atMs: number }[],
): EventFigures[] {
  const end = timeline.samples.at(-1)?.ms ?? 0;
  const bytesAt = (ms: number): number => timeline.samples.findLast((each) => each.ms <= ms)?.bytes ?? 0;
  return events.map(({ event, atMs }, i) => {
    const until = events[i + 1]?.atMs ?? end;
    const change = timeline.modes.find(({ ms }) => ms >= atMs && ms < until);
    // A gap belongs to the phase in which it ends: what began just before the event is its doing when it outlasts it.
    const gapMs = Math.max(
      0,
      ...timeline.gaps
        .filter(({ fromMs, toMs }) => toMs > atMs && fromMs < until && toMs <= until + 1)
        .map(({ fromMs, toMs }) => toMs - Math.max(fromMs, atMs - 20)),
    );
    const from = until - (until - atMs) / 3;
    return {
      event,
      atMs,
      gapMs,
      detectionMs: change === undefined ? undefined : change.ms - atMs,
      settledBytesPerSecond: ((bytesAt(until) - bytesAt(from)) / (until - from)) * 1000,
      mode: timeline.modes.findLast(({ ms }) => ms < until)?.mode ?? 'host',
    };
  });
}

interface Findings {
  readonly setting: Result['setting'];
  readonly plan: FallbackPlan;
  readonly steps: readonly Step[];
  readonly isBmv2: boolean;
  readonly rateMbit: number;
  readonly naive: number;
  readonly idle: number;
  readonly runs: readonly { readonly timeline: TimelineResult; readonly events: readonly EventFigures[] }[];
  readonly kept: {
    readonly bytes: number;
    readonly readBytes: number;
    readonly isWhole: boolean;
    readonly stripesRedriven: number;
  };
}

function resultOf({ setting, plan, steps, isBmv2, rateMbit, naive, idle, runs, kept }: Findings): Result {
  const longest = (event: string): number =>
    Math.max(...runs.map(({ events }) => events.find((each) => each.event === event)!.gapMs));
  const goals: Goal[] = steps.flatMap((step): Goal[] => {
    const most = step.goalMs(plan);
    if (most === undefined) return [];
    const found = runs.map(({ events }) => events.find((each) => each.event === step.event)!);
    const seen = found.map((each) => each.detectionMs).filter((each) => each !== undefined);
    return [
      {
        goal: `${step.event}: longest gap without an acknowledged byte ≤ ${most} ms`,
        met: longest(step.event) <= most,
        reached:
          `${longest(step.event).toFixed(0)} ms (seen by the writer ` +
          `after ${seen.length === 0 ? '–' : Math.max(...seen).toFixed(0)} ms)`,
      },
    ];
  });
  const inHost = runs.flatMap(({ events }) =>
    events.filter((each) => each.event === 'program lost').map((each) => each.settledBytesPerSecond),
  );
  const share = Math.min(...inHost) / naive;
  goals.push(
    {
      goal: 'host mode after the loss of the program ≥ 0.95 × the naive figure of the same run',
      reached: `${digits(share)} (${digits(Math.min(...inHost) / 1e6)} of ${digits(naive / 1e6)} MB/s)`,
      met: share >= 0.95,
    },
    {
      goal: 'acknowledged bytes lost: none',
      reached: kept.isWhole
        ? `none of ${kept.bytes} (${kept.stripesRedriven} stripes driven again); SHA-256 of all read back is equal`
        : `${kept.readBytes} of ${kept.bytes} bytes read back, or others`,
      met: kept.isWhole,
    },
  );
  const { timeline, events } = runs[0]!;
  const rows: Row[] = timeline.samples.slice(1).map(({ ms, bytes }, i): Row => {
    const before = timeline.samples[i]!;
    const event = events.find(({ atMs }) => atMs >= before.ms && atMs < ms);
    return {
      ms: Math.round(ms * 10) / 10,
      mbPerS: (bytes - before.bytes) / (ms - before.ms) / 1000,
      mode: timeline.modes.findLast((each) => each.ms <= ms)?.mode ?? 'host',
      event: event?.event ?? null,
      detectionMs: event?.detectionMs ?? null,
      gapMs: event === undefined ? null : event.gapMs,
    };
  });
  return {
    name: isBmv2 ? 'fallback-bmv2' : 'fallback',
    title: `Fallback: acknowledged throughput while the switch fails${isBmv2 ? ', BMv2' : ''}`,
    setting,
    rows,
    goals,
    summary:
      'fallback: longest gap ' +
      steps
        .filter((step) => step.goalMs(plan) !== undefined || isBmv2)
        .map(({ event }) => `${longest(event).toFixed(0)} ms (${event})`)
        .join(', ') +
      `; deadline ${plan.deadlineMs} ms; ` +
      (kept.isWhole ? `all ${(kept.bytes / 1e6).toFixed(0)} MB read back` : 'BYTES WERE LOST'),
    columns: [
      { name: 'ms', unit: 'ms', about: 'time into the first round' },
      { name: 'mbPerS', unit: 'MB/s', about: 'acknowledged since the row before' },
      { name: 'mode', unit: '', about: "where new stripes' parity is computed" },
      { name: 'event', unit: '', about: 'what happened in this interval' },
      { name: 'detectionMs', unit: 'ms', about: 'until the writer changed its mode' },
      {
        name: 'gapMs',
        unit: 'ms',
        about: 'longest time without an acknowledged byte until the next event; 20 ms and less counts as none',
      },
    ],
    references: [
      {
        figure: 'fallback when the switch loses its programmability',
        value: 'the writer computes the parity, at the naive rate',
        ours: `${digits(share)} × the naive rate`,
        source: 'the reference prototype; no times given',
      },
    ],
    notes: [
      ...(isBmv2 ? [BMV2_NOTE] : []),
      `Gaps are the longest of ${plan.repetitions} round${plan.repetitions === 1 ? '' : 's'}; the chart and ` +
        'the rows show the first.',
      `Detection by silence takes the deadline, ${plan.deadlineMs} ms; after a return the writer ` +
        `waits ${plan.holdMs} ms before it goes back.`,
      `${(idle * 100).toFixed(0)} % of the CPUs were idle during the rounds that are ` +
        `shown${idle < LEAST_IDLE ? ': less than the 20 % that make times trustworthy' : ''}.`,
    ],
    chart: chartOf(rows, events, rateMbit, isBmv2 ? [BMV2_CAPTION] : []),
  };
}

export function chartOf(
  rows: readonly Row[],
  events: readonly EventFigures[],
  rateMbit: number,
  captions: readonly string[] = [],
): Result['chart'] {
  const isLoss = (event: string): boolean =>
    [...STEPS, ...BMV2_STEPS].find((step) => step.event === event)?.goalMs({ ...QUICK }) !== undefined;
  // Smoothed for the eye over 100 ms; the dots are the 10 ms figures themselves.
  let segment = 0;
  const values = rows.flatMap((row, i) => {
    const near = rows.slice(Math.max(0, i - 5), i + 5);
    const value = {
      s: Number(row['ms']) / 1000,
      mbPerS: row['mbPerS'],
      smooth: near.reduce((sum, each) => sum + Number(each['mbPerS']), 0) / near.length,
      mode: row['mode'] === 'switch' ? 'parity in the switch' : 'parity on the host',
      segment,
    };
    if (i === 0 || rows[i - 1]!['mode'] === row['mode']) return [value];
    // The line goes on to the first sample of the next mode, and that begins there.
    return [
      { ...value, mode: rows[i - 1]!['mode'] === 'switch' ? 'parity in the switch' : 'parity on the host' },
      { ...value, segment: ++segment },
    ];
  });
  const most =
    1.9 *
    percentile(
      values.map((each) => each.smooth),
      0.95,
    );
  const marks = events.map(({ event, atMs, gapMs }, i) => ({
    s: atMs / 1000,
    label: gapMs > 0 ? `${event}: gap ${gapMs.toFixed(0)} ms` : event,
    loss: isLoss(event),
    y: most * (1 - 0.05 * (i % 4)),
  }));
  const x = {
    field: 's',
    type: 'quantitative' as const,
    title: 'time (s)',
    axis: { grid: false },
    scale: { nice: false },
  };
  return {
    title: {
      text: 'Acknowledged throughput of one writer while its switch fails',
      subtitle: [
        `xor(2+1), links of ${formatMbit(rateMbit)}, nodes that discard; dots: every 10 ms; line: mean over 100 ms`,
        ...captions,
      ],
    },
    width: 760,
    height: 280,
    layer: [
      {
        data: { values: values.filter((each) => Number(each.mbPerS) <= most) },
        mark: { type: 'circle', size: 5, opacity: 0.3, color: '#555' },
        encoding: {
          x,
          y: {
            field: 'mbPerS',
            type: 'quantitative',
            title: 'acknowledged (MB/s)',
            scale: { domain: [0, most], nice: false },
          },
        },
      },
      {
        data: { values },
        mark: { type: 'line', clip: true, strokeWidth: 2, interpolate: 'linear' },
        encoding: {
          x,
          y: { field: 'smooth', type: 'quantitative' },
          detail: { field: 'segment' },
          color: {
            field: 'mode',
            type: 'nominal',
            title: null,
            scale: { domain: ['parity in the switch', 'parity on the host'], range: [COLOURS.switch, COLOURS.host] },
            legend: { orient: 'bottom', symbolType: 'stroke', symbolStrokeWidth: 3 },
          },
        },
      },
      {
        data: { values: marks },
        mark: { type: 'rule', strokeDash: [3, 3] },
        encoding: { x, stroke: { condition: { test: 'datum.loss', value: '#a00' }, value: '#666' } },
      },
      {
        data: { values: marks },
        mark: { type: 'text', align: 'left', dx: 4, fontSize: 10 },
        encoding: {
          x,
          y: { field: 'y', type: 'quantitative' },
          text: { field: 'label' },
          color: { condition: { test: 'datum.loss', value: '#a00' }, value: '#444' },
        },
      },
    ],
  } as Result['chart'];
}
