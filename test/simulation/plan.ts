/**
 * What one seed means: the world's shape, the load and the schedule of faults. Plain data, so that a shrinker can cut
 * it.
 */
import { SimRandom } from 'tartan-rdma';
import type { Moment, Script } from './script.js';
import { faultKinds, type FaultKind, type FaultName } from './fault-kinds.js';

export interface Fault {
  readonly id: number;
  readonly kind: FaultName;
  readonly atMs: number;
  readonly forMs: number;
  /** The machine struck; of a pair, the first. */
  readonly a: string;
  readonly b: string;
  /** Strikes `atMs` after this has come about; from the beginning otherwise. */
  readonly after?: Moment;
  /** Is undone when this has come about, instead of after `forMs`. */
  readonly until?: Moment;
  /** Of a loss of power: nothing that was not synced is left, or what chance leaves. */
  readonly unsynced?: 'lost';
}

export interface Plan {
  readonly seed: number;
  readonly nodes: readonly string[];
  readonly switches: readonly string[];
  readonly writers: readonly string[];
  readonly readers: readonly string[];
  /** They rebuild and scrub all files, again and again; where nothing is destroyed there are none. */
  readonly rebuilders: readonly string[];
  /** Codes that files are made with; every one fits the nodes. */
  readonly codes: readonly string[];
  readonly fileNames: readonly string[];
  /** Faults strike and load is made for so long; then everything heals. */
  readonly loadMs: number;
  /** Most milliseconds one way to the cluster store. */
  readonly storeLatencyMs: number;
  readonly bytesPerMs: number;
  /** Clocks run up to this fraction fast or slow. */
  readonly drift: number;
  /** The one node whose durable bytes are destroyed, once or more often, or ''. */
  readonly victim: string;
  readonly faults: readonly Fault[];
  /**
   * A writer flushes after one of so many writes, on average: what is flushed is published while the cluster store
   * answers, and no takeover can miss it.
   */
  readonly flushOneIn: number;
  /** At the end everything is rebuilt and read with nodes missing, whatever the seed. */
  readonly isThorough?: true;
  /** What each actor does; without it, they do what comes to their minds until `loadMs` are over. */
  readonly script?: Script;
}

/** One run of so many is a seesaw: see there. */
const SEESAW_ONE_IN = 6;
const SEESAW_CODES = ['copies(1,1)', 'copies(1,1)', 'copies(1,2)', 'xor(2+1)', 'rs(2,2)', 'cauchy(2,3)'] as const;

const CODES = [
  'xor(2+1)',
  'xor(3+1)',
  'rs(2,2)',
  'rs(3,2)',
  'rs(4,2)',
  'copies(1,1)',
  'copies(1,2)',
  'cauchy(2,3)',
  'cauchy(4,1)',
] as const;

function widthOf(code: string): number {
  const [k, m] = code.match(/\d+/g)!.map(Number) as [number, number];
  return k + m;
}

/** @param only  ids of the faults to keep; all by default */
export function makePlan(seed: number, only?: ReadonlySet<number>): Plan {
  const random = new SimRandom(`plan ${seed}`);
  const plan = random.int(SEESAW_ONE_IN) === 0 ? seesaw(seed, random) : mixed(seed, random);
  return only === undefined ? plan : { ...plan, faults: plan.faults.filter(({ id }) => only.has(id)) };
}

/**
 * First some nodes are away, and are written around; when they are back, others that have what was written go, and the
 * file is taken over; and so on. What nodes that were away believe of a stripe is what such a run asks.
 */
function seesaw(seed: number, random: SimRandom): Plan {
  const pick = <T>(list: readonly T[]): T => list[random.int(list.length)]!;
  const code = pick(SEESAW_CODES),
    [k, m] = code.match(/\d+/g)!.map(Number) as [number, number];
  // One node more than a stripe has: enough are left to fence when k are away.
  const nodes = names('n', k + m + 1),
    writers = names('w', 2 + random.int(2)),
    readers = names('r', 1);
  const shuffled = nodes
    .map((id) => ({ id, at: random.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ id }) => id);
  // Not more than m at a time, or nothing could be written; then those that remained, as many as hold a stripe.
  const groups = [shuffled.slice(0, m), shuffled.slice(m, m + k)];
  const faults: Fault[] = [];
  let atMs = 5 + random.random() * 40;
  for (let round = 0; round < 8; round++) {
    // A node that is asked to leave is marked down at once and up again soon; one that is killed or stopped needs its
    // lease, or a deadline.
    const kind = pick(['node-stop', 'node-stop', 'node-stop', 'node-kill', 'node-pause'] as const);
    const forMs = kind === 'node-stop' ? 20 + random.random() * 60 : 200 + random.random() * 300;
    for (const a of groups[round % 2]!)
      faults.push({ id: faults.length, kind, atMs: atMs + random.random() * 3, forMs, a, b: '' });
    if (random.int(2) === 0)
      faults.push({
        id: faults.length,
        kind: 'writer-kill',
        atMs: atMs + random.random() * forMs,
        forMs: random.random() * 20,
        a: pick(writers),
        b: '',
      });
    atMs += forMs + (kind === 'node-stop' ? 5 + random.random() * 30 : random.random() * 300);
  }
  return {
    seed,
    nodes,
    switches: names('s', random.int(2)),
    writers,
    readers,
    rebuilders: [],
    codes: [code],
    fileNames: names('file', 1),
    loadMs: atMs,
    victim: '',
    faults,
    storeLatencyMs: 0.05,
    bytesPerMs: pick([20_000, 1_250_000]),
    drift: pick([0, 0.01]),
    flushOneIn: 60,
  };
}

function names(prefix: string, count: number): string[] {
  return Array.from({ length: count }, (_, i) => `${prefix}${i + 1}`);
}

function mixed(seed: number, random: SimRandom): Plan {
  const pick = <T>(list: readonly T[]): T => list[random.int(list.length)]!;
  const codes = Array.from({ length: 1 + random.int(2) }, () => pick(CODES));
  const width = Math.max(...codes.map(widthOf));
  const nodes = names('n', width + random.int(2));
  const switches = names('s', pick([0, 1, 1, 1, 2]));
  const writers = names('w', 1 + random.int(3)),
    readers = names('r', 1 + random.int(2));
  const fileNames = names('file', 1 + random.int(3));
  const loadMs = pick([60, 120, 250, 250, 500, 1000]);
  const victim = random.int(4) === 0 ? pick(nodes) : '',
    rebuilders = names('m', victim === '' ? 0 : 1);
  const machines = { nodes, switches, writers, readers, rebuilders, victim };
  const count = pick([0, 1, 2, 3, 5, 8, 13]);
  // A run has a mood: a few kinds, often; so that coincidences of two kinds are not rare.
  const all = Object.keys(faultKinds) as FaultName[];
  const mood = random.int(3) === 0 ? all : Array.from({ length: 2 + random.int(3) }, () => pick(all));
  const faults: Fault[] = [];
  for (let id = 0; id < count; id++) {
    const kind = weighted(random, mood),
      spec: FaultKind = faultKinds[kind];
    const atMs = random.random() * loadMs,
      forMs = spec.longestMs === 0 ? 0 : 1 + random.random() * random.random() * spec.longestMs;
    const [a, b] = targetsOf(kind, machines, pick);
    if (a === undefined || b === undefined) continue;
    faults.push({ id, kind, atMs, forMs, a, b });
  }
  if (victim !== '') {
    const kind = pick(['disk-lost', 'disk-lost', 'disk-corrupt'] as const);
    const lostMs = (0.1 + 0.7 * random.random()) * loadMs,
      forMs = random.random() * faultKinds[kind].longestMs;
    faults.push({ id: count, kind, atMs: lostMs, forMs, a: victim, b: '' });
    if (random.int(2) === 0)
      faults.push({
        id: count + 1,
        kind: 'rebuilder-kill',
        atMs: lostMs + forMs + random.random() * 60,
        forMs: random.random() * 20,
        a: rebuilders[0]!,
        b: '',
      });
  }
  return {
    seed,
    nodes,
    switches,
    writers,
    readers,
    rebuilders,
    codes,
    fileNames,
    loadMs,
    victim,
    faults,
    storeLatencyMs: pick([0.05, 0.5, 5]),
    bytesPerMs: pick([2_000, 20_000, 1_250_000]),
    drift: pick([0, 0, 0.01, 0.1]),
    flushOneIn: 4,
  };
}

interface Machines {
  readonly nodes: readonly string[];
  readonly switches: readonly string[];
  readonly writers: readonly string[];
  readonly readers: readonly string[];
  readonly rebuilders: readonly string[];
  readonly victim: string;
}

/** Two names, '' where there is no second; undefined: nothing to strike. */
function targetsOf(
  kind: FaultName,
  { nodes, switches, writers, readers, rebuilders, victim }: Machines,
  pick: (list: readonly string[]) => string,
): [string?, string?] {
  const spec: FaultKind = faultKinds[kind];
  const node = (): string => pick(nodes);
  const aSwitch = (): string | undefined => (switches.length === 0 ? undefined : pick(switches));
  if (spec.destroys === true && victim === '') return [];
  switch (spec.target) {
    case 'node':
      return [node(), ''];
    case 'node-disk':
      return [spec.destroys === true ? victim : node(), ''];
    case 'rebuilder':
      return rebuilders.length === 0 ? [] : [pick(rebuilders), ''];
    case 'switch':
      return [aSwitch(), ''];
    case 'writer':
      return [pick(writers), ''];
    case 'reader':
      return [pick(readers), ''];
    case 'all':
      return ['', ''];
    case 'writer-switch':
      return [pick(writers), aSwitch()];
    case 'switch-node':
      return [aSwitch(), node()];
    case 'writer-node':
      return [pick(writers), node()];
    case 'reader-node':
      return [pick(readers), node()];
    case 'store-client':
      return [pick([node(), ...switches, ...writers, ...readers, ...rebuilders]), ''];
  }
}

function weighted(random: SimRandom, kinds: readonly FaultName[]): FaultName {
  const total = kinds.reduce((sum, kind) => sum + faultKinds[kind].weight, 0);
  let at = random.random() * total;
  for (const kind of kinds) if ((at -= faultKinds[kind].weight) < 0) return kind;
  return kinds[kinds.length - 1]!;
}
