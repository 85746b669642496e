/**
 * Who may be proposed down, and when. Pure: leases and clock readings come with the calls.
 *
 * What a node answers says whose fault it is that it can't be used (faultOf). Of one that does not answer the cluster
 * store gives a second opinion: its lease. Where that has expired the node is proposed down at once. While it stands,
 * the node is asked once more; and when more nodes are silent than the code can bear, most likely this process is cut
 * off from them: nothing would be won by proposing them down, and none is.
 *
 * A node that came back and is proposed down again waits longer each time, so that one which only this process can't
 * use does not go up and down for everybody as fast as it can.
 */
import { codeOf } from '../wire/errors.js';

/** gone: it does not answer · busy: it has no room now · ours: it answers, and what it says is about this process. */
export type Fault = 'gone' | 'busy' | 'ours';

const GONE: readonly string[] = ['ERR_CONNECT', 'ERR_CLOSED', 'ERR_DEADLINE'];
const BUSY: readonly string[] = [
  'ERR_RING_MEMORY',
  'ERR_CAPACITY',
  'ERR_MAP_UNAVAILABLE',
  'ERR_STALE_MAP',
  // This process has no room; it may have when it has closed something.
  'ERR_TOO_MANY_FILES',
];

/** Only a connection that fails or closes, and a deadline, speak of a node's death. */
export function faultOf(error: unknown): Fault {
  const code = codeOf(error) ?? '';
  return GONE.includes(code) ? 'gone' : BUSY.includes(code) ? 'busy' : 'ours';
}

/** Times that a node with a lease must be found silent, one after the other. */
const LOOKS = 2;
/** The wait before the n-th proposal of a node doubles from one deadline to so many. */
const MOST_DEADLINES = 8;
/** A node that has not been proposed down for so many deadlines is as one that never was. */
const FORGIVEN_DEADLINES = 60;

export interface Silence {
  /** Nodes that do not answer, or whose disk fails. */
  readonly silent: readonly string[];
  /** Those of them that say themselves that they can't be used: no second opinion is asked. */
  readonly certain: readonly string[];
  /** Ids of the nodes whose lease stands. */
  readonly present: ReadonlySet<string>;
  /** Of the file. */
  readonly nodes: number;
  /** Nodes of a stripe that may be down. */
  readonly m: number;
  readonly now: number;
}

/** What this process has proposed so far, whichever file it was for. */
export class ProposalHistory {
  private readonly made = new Map<string, { count: number; at: number }>();

  constructor(private readonly deadlineMs: number) {}

  /** The node has been proposed down. */
  proposed(id: string, now: number): void {
    this.made.set(id, { count: (this.recent(id, now)?.count ?? 0) + 1, at: now });
  }

  /** When the node may be proposed down again. */
  notBefore(id: string, now: number): number {
    const last = this.recent(id, now);
    return last === undefined ? -Infinity : last.at + this.deadlineMs * Math.min(2 ** last.count, MOST_DEADLINES);
  }

  private recent(id: string, now: number): { count: number; at: number } | undefined {
    const last = this.made.get(id);
    return last !== undefined && now - last.at <= FORGIVEN_DEADLINES * this.deadlineMs ? last : undefined;
  }
}

/** One file's judgements. */
export class Proposals {
  private readonly looks = new Map<string, number>();

  constructor(private readonly history: ProposalHistory) {}

  /** @returns ids of the nodes to be proposed down now; the others are to be asked again */
  judge({ silent, certain, present, nodes, m, now }: Silence): string[] {
    for (const id of this.looks.keys()) if (!silent.includes(id)) this.looks.delete(id);
    for (const id of silent) this.looks.set(id, (this.looks.get(id) ?? 0) + 1);
    const isOurs = silent.filter((id) => present.has(id)).length > Math.max(m, Math.floor(nodes / 3));
    return silent.filter((id) => {
      if (!present.has(id)) return true;
      const isSure = certain.includes(id) || this.looks.get(id)! >= LOOKS;
      return isSure && !isOurs && now >= this.history.notBefore(id, now);
    });
  }
}
