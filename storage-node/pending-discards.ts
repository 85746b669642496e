/**
 * Discards that are queued and not settled yet. What a discard is about waits for it: a unit of an older owner that a
 * rebuilder brings meanwhile must be neither taken for a duplicate of what is about to go, nor go with it.
 */
export interface PendingDiscard {
  readonly fileId: number;
  readonly fromStripe: number;
  readonly writerEpoch: number;
  /** Settled, durable or refused. */
  readonly settled: Promise<void>;
  end(): void;
}

export class PendingDiscards {
  private readonly all = new Set<PendingDiscard>();

  /** Versions of writer epochs below `writerEpoch` in stripes from `fromStripe` on are about to go, until end(). */
  begin(fileId: number, fromStripe: number, writerEpoch: number): PendingDiscard {
    let tell = (): void => undefined;
    const settled = new Promise<void>((resolve) => {
      tell = resolve;
    });
    const discard: PendingDiscard = {
      fileId,
      fromStripe,
      writerEpoch,
      settled,
      end: () => {
        this.all.delete(discard);
        tell();
      },
    };
    this.all.add(discard);
    return discard;
  }

  /** Whether some pending discard is about this version. */
  covers(fileId: number, stripe: number, writerEpoch: number): boolean {
    if (this.all.size === 0) return false;
    for (const discard of this.all)
      if (discard.fileId === fileId && stripe >= discard.fromStripe && writerEpoch < discard.writerEpoch) return true;
    return false;
  }

  /** Resolves when the discards of a file that are pending now have settled. */
  async settled(fileId: number): Promise<void> {
    for (const discard of [...this.all]) if (discard.fileId === fileId) await discard.settled;
  }
}
