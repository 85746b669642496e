/**
 * How an open file gets its owner's next writer epoch when the versions of the present one are used up (2^31 of them,
 * see write-window.ts). Nothing is under way then, and the file ends with a full stripe.
 */
import { readFile, renewOwner } from '../cluster/files.js';
import type { FileRecord } from '../cluster/records.js';
import { sleep } from '../wire/clock.js';
import { TartanError, isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';
import type { WriteWindow } from './write-window.js';

const RETRY_MS = 250;
/** Whatever else the store says, it may say otherwise later. */
const FINAL: readonly string[] = ['ERR_FENCED', 'ERR_NOT_FOUND', 'ERR_CAPACITY'];

/**
 * @param isOver  the file has been closed, or has failed: nothing more is tried
 * @returns the record with the next epoch; undefined: the file goes on with the present one, or is over
 */
export async function renewEpoch(
  context: ClientContext,
  file: FileRecord,
  window: WriteWindow,
  owner: { onWaiting(reason: string): void },
  isOver: () => boolean,
): Promise<FileRecord | undefined> {
  const renewal = {
    writerEpoch: file.writerEpoch,
    length: window.acknowledgedBytes,
    stripes: window.stripesWritten,
    mapEpoch: window.identity.mapEpoch,
  };
  let isAsked = false;
  while (!isOver()) {
    try {
      // A store that can't be read changes nothing: then the file goes on without it. Once it has been asked for the
      // change it has to say what became of that: nodes that know of the new epoch refuse the old one.
      if (!isAsked) await readFile(context.store, file.id);
      isAsked = true;
      return await renewOwner(context.store, file.id, renewal);
    } catch (error) {
      if (!isOperating(error)) throw error;
      if (error instanceof TartanError && FINAL.includes(error.code)) {
        window.fatal(error.code, error.message);
        return undefined;
      }
      if (!isAsked && window.postponeRenewal()) return undefined;
      owner.onWaiting('the cluster store does not answer; the file needs its next writer epoch');
      await sleep(context.clock, RETRY_MS);
    }
  }
  return undefined;
}
