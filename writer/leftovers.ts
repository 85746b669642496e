/**
 * Units that a node keeps of files that have no share on it any more, because it has moved, or was about to come, or of
 * files that were removed while the node was down: nobody asks for them, and their room is wanted.
 *
 * What frees them must not come late: the share may be on its way back. So each order is given under the map's epoch
 * under which the record was read; moves raise the epoch, and a node that was sent anything since refuses an older one.
 */
import { readFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import type { FileRecord } from '../cluster/records.js';
import { NodeSet } from '../pipeline/node-set.js';
import { codeOf, isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';

const ATTEMPTS = 5;

/** @returns of how many of these files the node has freed something; a node that is down, or goes, is left alone */
export async function freeLeftovers(context: ClientContext, id: string, fileIds: readonly number[]): Promise<number> {
  const nodes = new NodeSet(await readMap(context.store), {
    context,
    nodes: [id],
    role: 'reader',
    name: context.name,
    fileId: 0,
    unitBytes: 0,
    slots: 0,
    receiveSlots: 0,
    transport: context.transport,
    heartbeatMs: context.heartbeatMs,
    deadlineMs: context.deadlineMs,
    owner: { locate: () => {}, onWritten: () => {}, onAnswer: () => {}, onLinkDown: () => {} },
  });
  let freed = 0;
  try {
    if (nodes.isDown(0)) return 0;
    await nodes.connect(0, context.deadlineMs);
    for (const fileId of fileIds) if (await freeOne(context, nodes, id, fileId)) freed++;
  } catch (error) {
    if (!isOperating(error)) throw error;
  } finally {
    await nodes.destroy('done');
  }
  return freed;
}

async function freeOne(context: ClientContext, nodes: NodeSet, id: string, fileId: number): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    nodes.map = await readMap(context.store);
    const file = await find(context, fileId),
      link = nodes.linkTo(0);
    if (file === undefined || link === undefined) return false;
    try {
      const held = await link.request({
        $case: 'inventory',
        value: { fileId, fromStripe: 0, limit: 1, verify: false },
      });
      if (held.units.length === 0) return false;
      // The id is never given again.
      if (file.state === 'deleted') {
        await link.request({ $case: 'deleteFile', value: { fileId } });
        return true;
      }
      if (file.nodes.includes(id) || file.moves?.some(({ to }) => to === id) === true) return false;
      // All owners so far: were the share to come back, the next one's units are taken.
      await link.request({ $case: 'discard', value: { fileId, fromStripe: 0, writerEpoch: file.writerEpoch + 1 } });
      return true;
    } catch (error) {
      if (codeOf(error) !== 'ERR_STALE_MAP' || attempt === ATTEMPTS) throw error;
    }
  }
}

async function find(context: ClientContext, fileId: number): Promise<FileRecord | undefined> {
  try {
    return await readFile(context.store, fileId);
  } catch (error) {
    if (codeOf(error) !== 'ERR_NOT_FOUND') throw error;
    return undefined;
  }
}
