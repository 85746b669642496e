/**
 * Puts other bytes under a name that a writer is about to use, as a writer or switch gone wrong might have: the node
 * must refuse the writer's own unit (ERR_NAME_CONFLICT), and the writer take the next version.
 */
import type { SimRandom } from 'tartan-rdma';
import { parseCode } from '../../erasure/code/index.js';
import { makeLayout, nodeOfUnit } from '../../erasure/layout/index.js';
import type { UnitStore } from '../../storage-node/unit-store.js';
import { Client, makeUnit } from '../storage-node/units.js';
import type { Site } from './machines.js';
import type { Model, Owner } from './model.js';

/** @returns whether a node was given it */
export function forgeUnit(site: Site, model: Model, { writer }: Owner, random: SimRandom): boolean {
  const { file: record, window } = writer.internals,
    file = model.file(record);
  if (writer.destroyed || record.writerEpoch !== file.newestEpoch) return false;
  const {
    nextCounter: counter,
    fillStripe: stripe,
    tailBusy,
  } = window as unknown as { nextCounter: number; fillStripe: number; tailBusy: boolean };
  if (tailBusy) return false; // a version above one that is under way would be another matter: ERR_STALE_VERSION
  const { k, m } = parseCode(record.code),
    { unitBytes, writerEpoch: epoch } = record;
  const unit = random.int(k + m);
  const machine = site.nodes.get(
    record.nodes[nodeOfUnit(makeLayout({ nodes: record.nodes.length, k, m, unitBytes }), stripe, unit)]!,
  )!;
  const { node } = machine;
  if (!machine.isUp || node === undefined) return false;
  const { store } = node as unknown as { store: UnitStore };
  const made = makeUnit({
    fileId: record.id,
    stripe,
    unit,
    k,
    m,
    unitBytes,
    epoch,
    counter,
    mapEpoch: node.mapEpoch,
    clusterId: site.clusterId,
    seed: random.int(1 << 30),
  });
  file.forged = { epoch, counter };
  model.forgedNames.add(`${record.id}/${stripe}/${epoch}/${counter}`);
  // A node that dies before its disk has it never answers.
  void new Client().append(store, made);
  return true;
}
