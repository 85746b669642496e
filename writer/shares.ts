/**
 * Who holds how much of the files, and who may take a share over. Pure, but for what it is told.
 *
 * A file's share on one node is estimated: its units are dealt out about evenly by either layout.
 */
import { purposeOf } from '../cluster/membership.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { NOBODY, scatteredLayout } from '../erasure/layout/index.js';

export class Shares {
  private readonly bytes = new Map<string, number>();

  /** @param present  ids of the nodes that run */
  constructor(
    private readonly map: ClusterMap,
    private readonly present: ReadonlySet<string>,
    files: readonly FileRecord[],
  ) {
    for (const file of files) for (const id of file.nodes) if (id !== NOBODY) this.add(id, shareBytes(file));
  }

  /** Bytes of all shares that a node holds, planned moves counted. */
  of(id: string): number {
    return this.bytes.get(id) ?? 0;
  }

  /**
   * The node that should take a file's share at an index: where it is on its way already; the first spare; of the
   * others the one that holds least. Never one that the file uses, that leaves, or that is not there.
   *
   * @param to  this one, or none
   * @returns '-': the file's other nodes, for it is spread over more than it needs; undefined: there is none
   */
  target(file: FileRecord, index: number, to?: string): string | undefined {
    const begun = file.moves?.find((move) => move.index === index)?.to;
    const others = new Set((file.moves ?? []).filter((move) => move.index !== index).map((move) => move.to));
    const free = this.map.nodes.filter(
      (node) =>
        node.state === 'up' &&
        this.present.has(node.id) &&
        node.leaving !== true &&
        !file.nodes.includes(node.id) &&
        !others.has(node.id) &&
        (to === undefined || node.id === to),
    );
    const rank = (node: (typeof free)[number]): number => (node.id === begun ? 0 : purposeOf(node) === 'spare' ? 1 : 2);
    // One spare takes all that it can, so that the others stay spares.
    const held = (node: (typeof free)[number]): number => (rank(node) === 1 ? 0 : this.of(node.id));
    free.sort((a, b) => rank(a) - rank(b) || held(a) - held(b) || a.id.localeCompare(b.id, 'en', { numeric: true }));
    return free[0]?.id ?? (to === undefined && this.canScatter(file, index) ? NOBODY : undefined);
  }

  /** A share is planned to go from one node to another, or to all others. */
  move(file: FileRecord, from: string, to: string): void {
    const others = file.nodes.filter((id) => id !== from && id !== NOBODY),
      bytes = shareBytes(file);
    this.add(from, -bytes);
    if (to !== NOBODY) this.add(to, bytes);
    else for (const id of others) this.add(id, bytes / others.length);
  }

  /** Whether the other nodes, all of them there, are enough for the file. */
  private canScatter(file: FileRecord, index: number): boolean {
    const { k, m } = parseCode(file.code),
      isThere = (id: string): boolean =>
        this.present.has(id) && this.map.nodes.some((node) => node.id === id && node.state === 'up');
    return (
      scatteredLayout(file, index, k + m) !== undefined &&
      file.nodes.every((id, at) => at === index || id === NOBODY || isThere(id))
    );
  }

  private add(id: string, bytes: number): void {
    this.bytes.set(id, this.of(id) + bytes);
  }
}

/** Bytes of a file's units on each of its nodes, on average. */
export function shareBytes(file: FileRecord): number {
  const { k, m } = parseCode(file.code);
  return (file.length * (k + m)) / k / file.nodes.filter((id) => id !== NOBODY).length;
}
