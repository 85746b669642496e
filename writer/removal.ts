/** A file goes: its record says so first, then its nodes are told to free its units. */
import { deleteFile } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import type { FileRecord } from '../cluster/records.js';
import { NodeSet } from '../pipeline/node-set.js';
import { isOperating } from '../wire/errors.js';
import type { ClientContext } from './context.js';

/**
 * Deletes a file by id: this file or none, whoever has its name now.
 *
 * @param options.onlyUnnamed  not when it has got its name meanwhile
 * @throws {TartanError} as deleteFile() does
 */
export async function removeFile(
  context: ClientContext,
  id: number,
  options: { readonly onlyUnnamed?: boolean } = {},
): Promise<void> {
  await freeUnits(context, await deleteFile(context.store, id, options));
}

/** Tells the nodes of a deleted file; one that is down, or does not answer, frees its units when it is back. */
export async function freeUnits(context: ClientContext, file: FileRecord): Promise<void> {
  const nodes = new NodeSet(await readMap(context.store), {
    context,
    nodes: [...file.nodes, ...(file.moves ?? []).map(({ to }) => to)],
    role: 'reader',
    name: context.name,
    fileId: file.id,
    unitBytes: 0,
    slots: 0,
    receiveSlots: 0,
    transport: context.transport,
    heartbeatMs: context.heartbeatMs,
    deadlineMs: context.deadlineMs,
    owner: { locate: () => {}, onWritten: () => {}, onAnswer: () => {}, onLinkDown: () => {} },
  });
  try {
    await nodes.connectUp(context.deadlineMs);
    await Promise.all(
      nodes.upIndexes().map(async (index) => {
        try {
          await nodes.linkTo(index)?.request({ $case: 'deleteFile', value: { fileId: file.id } });
        } catch (error) {
          if (!isOperating(error)) throw error;
        }
      }),
    );
  } finally {
    await nodes.destroy('done');
  }
}
