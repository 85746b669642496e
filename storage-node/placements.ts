/**
 * Which units of which files are this node's: file records from the cluster store, kept while the map stays the same.
 * A record's code, unit size, node list and moves never change under one map epoch, so what is kept can't be wrong.
 */
import type { ClusterStore } from '../cluster/cluster-store.js';
import { readFile } from '../cluster/files.js';
import type { FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutOf, NOBODY, scatteredLayout, unitOfNode, type Layout } from '../erasure/layout/index.js';
import { codeOf } from '../wire/errors.js';
import { Refusal } from '../wire/ring-messages.js';
import { headerK, headerM, headerStripe, headerUnit, headerUnitBytes, W } from '../wire/unit-header.js';

const MOST_FILES = 4096;

export class Placement {
  readonly layout: Layout;
  private readonly codeId: number;
  /** This node's index in the file's list, or the one that it is about to take; or −1. */
  private readonly index: number;
  /** Where units will be that are on their way: they may be stored there. */
  private readonly next: Layout | undefined;

  constructor(record: FileRecord, nodeId: string) {
    const code = parseCode(record.code);
    this.codeId = code.id;
    this.layout = layoutOf(record, code);
    const index = record.nodes.indexOf(nodeId);
    this.index = index >= 0 ? index : (record.moves?.find(({ to }) => to === nodeId)?.index ?? -1);
    const scattered = record.moves?.find(({ to }) => to === NOBODY),
      layout = scattered && scatteredLayout(record, scattered.index, code.k + code.m);
    this.next = layout === undefined ? undefined : layoutOf({ ...record, layout }, code);
  }

  /**
   * Whether a unit of this file belongs here.
   * @returns NONE, NOT_MINE, or MALFORMED when it isn't of the file's shape
   */
  judge(words: Uint32Array, w: number): number {
    const { k, m, unitBytes } = this.layout;
    const fits =
      headerK(words, w) === k &&
      headerM(words, w) === m &&
      headerUnitBytes(words, w) === unitBytes &&
      ((words[w + W.SHAPE]! >>> 8) & 0xff) === this.codeId;
    if (!fits) return Refusal.MALFORMED;
    if (this.index < 0) return Refusal.NOT_MINE;
    const stripe = headerStripe(words, w),
      unit = headerUnit(words, w);
    // Beyond this numbers are not exact, and who counts stripes would never get past one.
    if (stripe > Number.MAX_SAFE_INTEGER) return Refusal.MALFORMED;
    return unitOfNode(this.layout, stripe, this.index) === unit ||
      (this.next !== undefined && unitOfNode(this.next, stripe, this.index) === unit)
      ? Refusal.NONE
      : Refusal.NOT_MINE;
  }
}

export class Placements {
  private readonly kept = new Map<number, Placement>();
  private readonly fetching = new Map<number, Promise<Placement | number>>();
  /** Grows with each newer map: what was read before it may be older than it. */
  private generation = 0;

  /** @param onRecord each record read, before it is used */
  constructor(
    private readonly store: ClusterStore,
    private readonly nodeId: string,
    private readonly onRecord: (record: FileRecord) => void,
  ) {}

  get(fileId: number): Placement | undefined {
    return this.kept.get(fileId);
  }

  /**
   * Reads a file's record.
   * @returns its placement, or a refusal: NO_UNIT (no such file, or deleted), MAP_UNAVAILABLE
   */
  fetch(fileId: number): Promise<Placement | number> {
    let fetching = this.fetching.get(fileId);
    if (fetching === undefined) {
      fetching = this.read(fileId).finally(() => {
        this.fetching.delete(fileId);
      });
      this.fetching.set(fileId, fetching);
    }
    return fetching;
  }

  forget(fileId: number): void {
    this.kept.delete(fileId);
  }
  forgetAll(): void {
    this.generation++;
    this.kept.clear();
  }

  private async read(fileId: number): Promise<Placement | number> {
    let record: FileRecord, generation: number;
    try {
      do {
        generation = this.generation;
        record = await readFile(this.store, fileId);
      } while (generation !== this.generation);
    } catch (error) {
      return codeOf(error) === 'ERR_NOT_FOUND' ? Refusal.NO_UNIT : Refusal.MAP_UNAVAILABLE;
    }
    this.onRecord(record);
    if (record.state === 'deleted') return Refusal.NO_UNIT;
    let placement: Placement;
    try {
      placement = new Placement(record, this.nodeId);
    } catch {
      return Refusal.MALFORMED; // a code that this version does not know
    }
    if (this.kept.size >= MOST_FILES) this.kept.delete(this.kept.keys().next().value!);
    this.kept.set(fileId, placement);
    return placement;
  }
}
