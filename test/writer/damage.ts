/**
 * Damage done to store images under the nodes' noses, of every kind that a disk, a controller or a faulty generator
 * does.
 */
import { crc32c, summary } from '../../erasure/code/index.js';
import type { Layout } from '../../erasure/layout/index.js';
import { nodeOfUnit } from '../../erasure/layout/index.js';
import { BLOCK_BYTES } from '../../storage-node/disk.js';
import { unitSeal } from '../../storage-node/log-format.js';
import { SECTOR_BYTES } from '../../storage-node/memory-disk.js';
import { emptyLocation, type UnitLocation, type UnitStore } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { decodeHeader, digestLayout, encodeHeader, type UnitHeader, W } from '../../wire/unit-header.js';
import type { SimCluster, SimNode } from '../simulation/cluster.js';
import { Client } from '../storage-node/units.js';

/** A unit that a node holds, and where. */
export interface Target {
  readonly node: SimNode;
  readonly fileId: number;
  readonly stripe: number;
  readonly unit: number;
  readonly location: UnitLocation;
}

/** What is done to a unit whose payload is whole blocks; `other`: another one of the same node, as long. */
export interface Damage {
  readonly what: string /** Both units are damaged. */;
  readonly both?: boolean;
  do(target: Target, other: Target, random: () => number): Promise<void>;
}

function storeOf(node: SimNode): UnitStore {
  return node.node!['store'];
}

/** The newest version that is held of a unit. */
export function find(cluster: SimCluster, layout: Layout, fileId: number, stripe: number, unit: number): Target {
  const node = cluster.nodes[nodeOfUnit(layout, stripe, unit)]!,
    location = emptyLocation();
  if (!storeOf(node).lookup(fileId, stripe, unit, 0xffffffff, 0xffffffff, location))
    throw new Error(`unit ${unit} of stripe ${stripe} is not held by ${node.id}`);
  return { node, fileId, stripe, unit, location };
}

export const damages: readonly Damage[] = [
  {
    what: 'a bit of the payload flips',
    do: async ({ node, location }, _, random) => {
      const bit = Math.floor(random() * location.unitLength * 8);
      change(node, location.payloadBlock * BLOCK_BYTES + (bit >> 3), (at) => {
        at[0]! ^= 1 << (bit & 7);
      });
    },
  },
  {
    what: 'a bit of the header flips',
    do: async ({ node, location }, _, random) => {
      const bit = Math.floor(random() * location.headerBytes * 8),
        byte = location.headerByte + (bit >> 3);
      change(node, location.headerBlock * BLOCK_BYTES + byte, (at) => {
        at[0]! ^= 1 << (bit & 7);
      });
    },
  },
  {
    what: 'a sector turns to garbage',
    do: async ({ node, location }, _, random) => {
      const sector = Math.floor((random() * location.unitLength) / SECTOR_BYTES);
      change(node, location.payloadBlock * BLOCK_BYTES + sector * SECTOR_BYTES, (at) => {
        for (let i = 0; i < SECTOR_BYTES; i++) at[i]! ^= 1 + Math.floor(random() * 255);
      });
    },
  },
  {
    what: 'a write is lost: what lay there before is there',
    do: async ({ node, location }) => {
      for (let at = 0; at < location.unitLength; at += BLOCK_BYTES)
        change(node, location.payloadBlock * BLOCK_BYTES + at, (bytes) => {
          bytes.subarray(0, BLOCK_BYTES).fill(0);
        });
    },
  },
  {
    what: 'a write goes astray, onto this unit',
    do: async ({ node, location }, other) => {
      const bytes = await payloadOf(other);
      put(node, location, bytes);
    },
  },
  {
    what: 'two units are swapped',
    both: true,
    do: async (target, other) => {
      const [a, b] = [await payloadOf(target), await payloadOf(other)];
      put(target.node, target.location, b);
      put(other.node, other.location, a);
    },
  },
  {
    what: 'a write is torn: its last sectors never came',
    do: async ({ node, location }, _, random) => {
      const sectors = location.unitLength / SECTOR_BYTES,
        whole = Math.floor(random() * sectors);
      for (let sector = whole; sector < sectors; sector++)
        change(node, location.payloadBlock * BLOCK_BYTES + sector * SECTOR_BYTES, (at) => {
          at.subarray(0, SECTOR_BYTES).fill(0);
        });
    },
  },
];

/**
 * Replaces a unit by another one of the same name whose own checksums hold: what a faulty generator would have stored.
 */
export async function forge(
  cluster: SimCluster,
  layout: Layout,
  fileId: number,
  stripe: number,
  unit: number,
  alter: (header: UnitHeader, payload: Uint8Array) => void,
): Promise<void> {
  const { node, location } = find(cluster, layout, fileId, stripe, unit),
    store = storeOf(node);
  const area = new Uint8Array(2 * BLOCK_BYTES),
    padded = new Uint8Array(Math.ceil(location.unitLength / BLOCK_BYTES) * BLOCK_BYTES);
  await store.read(location, area, padded);
  const header = decodeHeader(new Uint32Array(area.buffer, location.headerByte, location.headerBytes >> 2), 0),
    payload = padded.subarray(0, location.unitLength);
  alter(header, payload);
  const words = new Uint32Array(64),
    headerBytes = encodeHeader({ ...header, payloadCrc: crc32c(payload), summary: summary(payload) }, words, 0);
  words[W.SEAL] = unitSeal(new Uint8Array(words.buffer, 0, headerBytes), digestLayout.sealOffset);
  store.condemn(fileId, stripe, unit, location.writerEpoch, location.counter, location.payloadCrc);
  const client = new Client();
  const refusal = await new Promise<number>((resolve) => {
    client.onAppended = (_token, given) => {
      resolve(given);
    };
    const now = store.append(client, 1, words, 0, headerBytes, padded, true);
    if (now !== -1) resolve(now);
  });
  if (refusal !== Refusal.NONE) throw new Error(`the forged unit was refused: ${refusal}`);
}

async function payloadOf({ node, location }: Target): Promise<Uint8Array> {
  const bytes = new Uint8Array(location.unitLength);
  await node.disk.read(bytes, location.payloadBlock * BLOCK_BYTES);
  return bytes;
}

function put(node: SimNode, location: UnitLocation, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += BLOCK_BYTES)
    change(node, location.payloadBlock * BLOCK_BYTES + at, (into) => {
      into.set(bytes.subarray(at, at + BLOCK_BYTES));
    });
}

function change(node: SimNode, position: number, how: (bytes: Uint8Array) => void): void {
  node.disk.corrupt(position, how);
}
