/**
 * Units read as they are, header and all, from the nodes that have them: what moves to another node is copied, not
 * decoded.
 *
 * As a Decoder, of a node: nothing of what comes is verified yet. Invariant: want() settles once nothing can be written
 * into its place any more.
 */
import type { NodeLink, ReadWish } from '../pipeline/node-link.js';
import { detach } from '../wire/front-door.js';

export class UnitCopies {
  private readonly wanted = new Map<
    number,
    { readonly link: NodeLink; readonly resolve: (isThere: boolean) => void }
  >();
  private nextRequest = 1;

  /** @returns whether header and payload lie in their place */
  want(link: NodeLink, wish: Omit<ReadWish, 'requestId'>): Promise<boolean> {
    if (!link.up) return Promise.resolve(false);
    const requestId = this.nextRequest;
    this.nextRequest = requestId === 0xffff_ffff ? 1 : requestId + 1;
    return new Promise((resolve) => {
      this.wanted.set(requestId, { link, resolve });
      link.read({ ...wish, requestId });
    });
  }

  /** For the links' owner: a node has placed what was asked for, or has refused. */
  answered(id: number, isThere: boolean): void {
    const wanted = this.wanted.get(id);
    this.wanted.delete(id);
    wanted?.resolve(isThere);
  }

  /**
   * For the links' owner. The node may still be writing: only when the connection is flushed are the places free again.
   */
  lost(link: NodeLink): void {
    const ids = [...this.wanted].filter(([, wanted]) => wanted.link === link).map(([id]) => id);
    if (ids.length > 0)
      detach(
        link.destroy('lost').then(() => {
          for (const id of ids) this.answered(id, false);
        }),
      );
  }
}
