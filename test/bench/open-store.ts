/**
 * How long it takes to open a unit store of so many bytes: from its log alone, and from a checkpoint and the log's
 * tail. Only headers are written: payloads stay holes of a sparse file, because opening reads none.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openFileDisk, type Disk } from '../../storage-node/disk.js';
import { unitSeal } from '../../storage-node/log-format.js';
import { UnitStore, type AppendClient } from '../../storage-node/unit-store.js';
import { Refusal } from '../../wire/ring-messages.js';
import { DATA_HEADER_BYTES, digestLayout, encodeHeader, W } from '../../wire/unit-header.js';
import type { Figure } from './report.js';
import { spread } from './report.js';

const UNIT_BYTES = 65536,
  AT_ONCE = 2048;
const IDENTITY = {
  clusterUuid: '00112233445566778899aabbccddeeff',
  clusterId: 1,
  nodeId: 'bench',
  random: Math.random,
};

/** @param sizes  bytes of units held */
export async function openFigures(
  sizes: readonly number[],
  repetitions: number,
  note: (line: string) => void,
): Promise<Figure[]> {
  const figures: Figure[] = [],
    folder = await mkdtemp(join(tmpdir(), 'tartan-open-'));
  try {
    for (const bytes of sizes) {
      for (const [how, checkpointBytes] of [
        ['from the log alone', Number.MAX_SAFE_INTEGER],
        ['from a checkpoint', undefined],
      ] as const) {
        const path = join(folder, 'store'),
          gigabytes = bytes / 1e9;
        note(`a store of ${gigabytes} GB, opened ${how}`);
        const units = await fill(path, bytes, checkpointBytes);
        const seconds: number[] = [];
        let read = 0;
        for (let i = 0; i < repetitions; i++) {
          const disk = await openFileDisk(path),
            started = performance.now();
          const store = await UnitStore.open({
            ...IDENTITY,
            disk,
            checkpointBytes: Number.MAX_SAFE_INTEGER,
            durability: 'volatile',
          });
          seconds.push((performance.now() - started) / 1000);
          if (store.stats().units !== units)
            throw new Error(`${store.stats().units} units were found, ${units} are there`);
          read = store.recovery.batches;
          await store.close();
        }
        figures.push({
          section: 'open',
          name: `${gigabytes} GB, ${units} units, ${how} (${read} batches read)`,
          unit: 's',
          ...spread(seconds),
        });
        await rm(path);
      }
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return figures;
}

/** Makes a store as if units had been appended; closed in good order, so that no payload is checked. @returns units */
async function fill(path: string, bytes: number, checkpointBytes: number | undefined): Promise<number> {
  const disk = withoutPayloads(await openFileDisk(path, { create: true, sizeBytes: bytes * 1.25 + (1 << 30) }));
  const store = await UnitStore.open({
    ...IDENTITY,
    disk,
    durability: 'volatile',
    ...(checkpointBytes === undefined ? {} : { checkpointBytes }),
  });
  const units = Math.floor(bytes / UNIT_BYTES),
    payload = new Uint8Array(UNIT_BYTES),
    words = new Uint32Array(DATA_HEADER_BYTES >> 2);
  encodeHeader(
    {
      codeId: 1,
      k: 2,
      m: 1,
      unit: 0,
      unitBytes: UNIT_BYTES,
      flags: 0,
      clusterId: 1,
      fileId: 1,
      stripe: 0,
      unitLength: UNIT_BYTES,
      stripeLength: 2 * UNIT_BYTES,
      mapEpoch: 1,
      writerEpoch: 1,
      counter: 1,
      commitMark: 0,
      payloadCrc: 1,
      seal: 0,
      missing: 0n,
      summary: new Uint8Array(16),
      dataCrcs: [],
    },
    words,
    0,
  );
  const header = new Uint8Array(words.buffer);
  let answered = 0,
    refused = 0,
    more = (): void => undefined;
  const client: AppendClient = {
    onAppended: (_, refusal) => {
      answered++;
      if (refusal !== Refusal.NONE) refused++;
      more();
    },
  };
  for (let stripe = 0; stripe < units; ) {
    for (let i = 0; i < AT_ONCE && stripe < units; i++, stripe++) {
      words[W.STRIPE_LO] = stripe;
      words[W.COUNTER] = stripe + 1;
      words[W.SEAL] = unitSeal(header, digestLayout.sealOffset);
      store.append(client, 0, words, 0, DATA_HEADER_BYTES, payload);
    }
    const upTo = stripe;
    await new Promise<void>((resolve) => {
      more = () => {
        if (answered === upTo) resolve();
      };
      more();
    });
  }
  if (refused > 0) throw new Error(`${refused} units were refused`);
  await store.drained();
  await store.close();
  return units;
}

/** A disk that writes the first view of each call, and leaves holes for the rest. */
function withoutPayloads(disk: Disk): Disk {
  return {
    size: disk.size,
    read: (into, position) => disk.read(into, position),
    writev: (views, position) => disk.writev(views.slice(0, 1), position),
    sync: () => disk.sync(),
    close: () => disk.close(),
  };
}
