/** What one seed means: the world's shape, the load and the schedule of faults. Plain data, so that a shrinker can cut it. */
import { SimRandom } from 'tartan-rdma';
import { faultKinds, type FaultKind, type FaultName } from './fault-kinds.js';

export interface Fault {
  readonly id: number;
  readonly kind: FaultName;
  readonly atMs: number;
  readonly forMs: number;
  /** The machine struck; of a pair, the first. */
  readonly a: string;
  readonly b: string;
}

export interface Plan {
  readonly seed: number;
  readonly nodes: readonly string[];
  readonly switches: readonly string[];
  readonly writers: readonly string[];
  readonly readers: readonly string[];
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
  /** The one node whose durable bytes may be damaged, or ''. */
  readonly victim: string;
  readonly faults: readonly Fault[];
}

const CODES = ['xor(2+1)', 'xor(3+1)', 'rs(2,2)', 'rs(3,2)', 'rs(4,2)', 'copies(1,1)', 'copies(1,2)', 'cauchy(2,3)', 'cauchy(4,1)'] as const;

function widthOf(code: string): number {
  const [k, m] = code.match(/\d+/g)!.map(Number) as [number, number];
  return k + m;
}

/** @param only  ids of the faults to keep; all by default */
export function makePlan(seed: number, only?: ReadonlySet<number>): Plan {
  const random = new SimRandom(`plan ${seed}`);
  const pick = <T>(list: readonly T[]): T => list[random.int(list.length)]!;
  const names = (prefix: string, count: number): string[] => Array.from({ length: count }, (_, i) => `${prefix}${i + 1}`);
  const codes = Array.from({ length: 1 + random.int(2) }, () => pick(CODES));
  const width = Math.max(...codes.map(widthOf));
  const nodes = names('n', width + random.int(2));
  const switches = names('s', pick([0, 1, 1, 1, 2]));
  const writers = names('w', 1 + random.int(3)), readers = names('r', 1 + random.int(2));
  const fileNames = names('file', 1 + random.int(3));
  const loadMs = pick([60, 120, 250, 250, 500, 1000]);
  const victim = random.int(5) === 0 ? pick(nodes) : '';
  const machines = { nodes, switches, writers, readers, victim };
  const count = pick([0, 1, 2, 3, 5, 8, 13]);
  // A run has a mood: a few kinds, often; so that coincidences of two kinds are not rare.
  const all = Object.keys(faultKinds) as FaultName[];
  const mood = random.int(3) === 0 ? all : Array.from({ length: 2 + random.int(3) }, () => pick(all));
  const faults: Fault[] = [];
  for (let id = 0; id < count; id++) {
    const kind = weighted(random, mood), spec: FaultKind = faultKinds[kind];
    const atMs = random.random() * loadMs, forMs = spec.longestMs === 0 ? 0 : 1 + random.random() * random.random() * spec.longestMs;
    const [a, b] = targetsOf(kind, machines, pick);
    if (a === undefined || b === undefined) continue;
    if (only === undefined || only.has(id)) faults.push({ id, kind, atMs, forMs, a, b });
  }
  return {
    seed, nodes, switches, writers, readers, codes, fileNames, loadMs, victim, faults,
    storeLatencyMs: pick([0.05, 0.5, 5]), bytesPerMs: pick([2_000, 20_000, 1_250_000]), drift: pick([0, 0, 0.01, 0.1]),
  };
}

interface Machines { readonly nodes: readonly string[]; readonly switches: readonly string[]; readonly writers: readonly string[]; readonly readers: readonly string[]; readonly victim: string }

/** Two names, '' where there is no second; undefined: nothing to strike. */
function targetsOf(kind: FaultName, { nodes, switches, writers, readers, victim }: Machines, pick: (list: readonly string[]) => string): [string?, string?] {
  const spec: FaultKind = faultKinds[kind];
  // Where a node's bytes may be lost for good, only that node may be lost in any other way: else nothing could be promised.
  const node = (): string => (victim === '' ? pick(nodes) : victim);
  const aSwitch = (): string | undefined => (switches.length === 0 ? undefined : pick(switches));
  if (spec.destroys === true && victim === '') return [];
  switch (spec.target) {
    case 'node': return [node(), ''];
    case 'node-disk': return [node(), ''];
    case 'switch': return [aSwitch(), ''];
    case 'writer': return [pick(writers), ''];
    case 'reader': return [pick(readers), ''];
    case 'all': return victim === '' ? ['', ''] : [];
    case 'writer-switch': return [pick(writers), aSwitch()];
    case 'switch-node': return [aSwitch(), node()];
    case 'writer-node': return [pick(writers), node()];
    case 'reader-node': return [pick(readers), node()];
    case 'store-client': return [pick([node(), ...switches, ...writers, ...readers]), ''];
  }
}

function weighted(random: SimRandom, kinds: readonly FaultName[]): FaultName {
  const total = kinds.reduce((sum, kind) => sum + faultKinds[kind].weight, 0);
  let at = random.random() * total;
  for (const kind of kinds) if ((at -= faultKinds[kind].weight) < 0) return kind;
  return kinds[kinds.length - 1]!;
}
