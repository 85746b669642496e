/**
 * What a run destroyed for good, unit by unit: the only excuse for bytes that can't be had.
 *
 * Intuition: a disk is looked at before and after something happened to it; units that were whole before and aren't
 * after are lost, until a rebuild that began later has completed. A stripe may be missing only when more of its units
 * than its code bears are lost here, or were never there and its holders said so (checker.ts counts them).
 */
import type { MemoryDisk } from '../../storage-node/memory-disk.js';
import { codeOf } from '../../wire/errors.js';

/** A unit as a disk held it, with what its holder recorded missing beside it. */
export interface LostUnit {
  readonly fileId: number;
  readonly stripe: number;
  readonly epoch: number;
  readonly counter: number;
  readonly unit: number;
  readonly missing: bigint;
}

export class Losses {
  /** Something was destroyed on these nodes. */
  readonly nodes = new Set<string>();
  /** Their stores could not be opened any more: all they held is lost, whatever that was. */
  readonly whole = new Set<string>();
  private readonly units = new Map<
    number,
    Map<string, LostUnit & { readonly node: string; readonly isSilent: boolean }>
  >();
  /** Counts destructions. */
  private count = 0;

  /** @param list  the whole units of a disk; throws ERR_CHECKSUM when it can't be opened */
  constructor(private readonly list: (node: string, disk: MemoryDisk) => Promise<LostUnit[]>) {}

  /**
   * @param destroy  does it at once, and returns the disk that the node has then
   * @param isSilent  only who reads everything back finds it
   */
  async destroying(node: string, disk: MemoryDisk, destroy: () => MemoryDisk, isSilent = false): Promise<void> {
    // What was written and not synced was not acknowledged.
    const before = await this.wholeUnits(node, disk.snapshot());
    const after = await this.wholeUnits(node, destroy().snapshot());
    this.nodes.add(node);
    this.count++;
    if (before === undefined || after === undefined) this.whole.add(node);
    for (const [name, unit] of before ?? [])
      if (after?.has(name) !== true) this.lose(nameOf(unit), { ...unit, node, isSilent });
  }

  /** A store refuses to open, as it knows that it was damaged. */
  destroyed(node: string): void {
    this.nodes.add(node);
    this.whole.add(node);
    this.count++;
  }

  /** To be taken before a rebuild, for `rebuilt()`. */
  get moment(): number {
    return this.count;
  }

  /**
   * A rebuild (`isScrub`: that read everything back) has completed of what `isCovered`: what was lost of it before it
   * began is there again.
   */
  rebuilt(fileId: number, isCovered: (unit: LostUnit) => boolean, began: number, isScrub: boolean): void {
    const units = this.units.get(fileId);
    // A node that was lost meanwhile may have lost what had just been restored.
    if (units === undefined || began !== this.count) return;
    for (const [name, unit] of units) if (isCovered(unit) && (isScrub || !unit.isSilent)) units.delete(name);
  }

  /** Whether the unit of this version was destroyed on that node, and not restored since. */
  has(fileId: number, stripe: number, epoch: number, counter: number, unit: number, node: string): boolean {
    return this.whole.has(node) || this.units.get(fileId)?.has(nameOf({ stripe, epoch, counter, unit })) === true;
  }

  /** The lost units of a file. */
  *of(fileId: number): Generator<LostUnit> {
    yield* this.units.get(fileId)?.values() ?? [];
  }

  private lose(name: string, unit: LostUnit & { readonly node: string; readonly isSilent: boolean }): void {
    let units = this.units.get(unit.fileId);
    if (units === undefined) this.units.set(unit.fileId, (units = new Map()));
    units.set(name, unit);
  }

  private async wholeUnits(node: string, disk: MemoryDisk): Promise<Map<string, LostUnit> | undefined> {
    try {
      return new Map((await this.list(node, disk)).map((unit) => [`${unit.fileId}/${nameOf(unit)}`, unit]));
    } catch (error) {
      if (codeOf(error) === 'ERR_CHECKSUM') return undefined;
      throw error;
    }
  }
}

function nameOf({ stripe, epoch, counter, unit }: Pick<LostUnit, 'stripe' | 'epoch' | 'counter' | 'unit'>): string {
  return `${stripe}/${epoch}/${counter}/${unit}`;
}
