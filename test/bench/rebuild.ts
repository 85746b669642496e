/**
 * How long a lost store takes to be filled again, against the number of nodes: one file of 2+1 with 64 KiB units,
 * spread, of the same length for all n, so that a node's share of it is 1/n; real processes on loopback, syncing
 * storage.
 *
 * All of them share the machine's CPUs: what is seen is work, not links. With links of their own the survivors' reads
 * are spread as the figures of each survivor say, and the new store's own link is the limit.
 */
import { randomFillSync } from 'node:crypto';
import { rmSync } from 'node:fs';
import { stopProcess } from '../../cli/child-process.js';
import { startCluster, startNode, stopCluster, type ClusterOptions } from '../../cli/cluster-processes.js';
import { StateDirectory } from '../../cli/state-directory.js';
import { NodeControl } from '../../wire/control.js';
import { connect } from '../../writer/index.js';
import { makeFolder } from './processes.js';
import type { Figure } from './report.js';
import { spread } from './report.js';

const PIECE = 1 << 20;

/**
 * @param counts  of nodes
 * @param bytes  of the file
 * @throws when a unit could not be restored, or a byte reads back wrong
 */
export async function rebuildFigures(
  counts: readonly number[],
  bytes: number,
  repetitions: number,
  note: (line: string) => void,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const nodes of counts) {
    note(`a store of one of ${nodes} nodes is filled again`);
    figures.push(...(await one(nodes, bytes, repetitions)));
  }
  return figures;
}

async function one(nodes: number, bytes: number, repetitions: number): Promise<Figure[]> {
  const state = new StateDirectory(makeFolder());
  const options: ClusterOptions = {
    nodes,
    host: '127.0.0.1',
    basePort: 0,
    durability: 'sync',
    transport: 'auto',
    ringMemoryBytes: 64 << 20,
    sizeBytes: Math.max(512 << 20, 4 * bytes),
    dependent: true,
  };
  await startCluster(state, options);
  const client = await connect({ cluster: state.cluster, parity: 'host', repairBytesPerSecond: 0 });
  try {
    const writer = await client.create('a', { code: 'xor(2+1)', layout: 'spread' }),
      piece = randomFillSync(Buffer.alloc(PIECE));
    for (let at = 0; at < bytes; at += PIECE)
      if (!writer.write(piece))
        await new Promise((resolve) => {
          writer.once('drain', resolve);
        });
    await new Promise<void>((resolve, reject) => {
      writer.once('error', reject);
      writer.once('close', resolve);
      writer.end();
    });
    const seconds: number[] = [],
      looks: number[] = [],
      rates: number[] = [],
      shares: number[] = [],
      least: number[] = [],
      most: number[] = [];
    for (let i = 0; i < repetitions; i++) {
      const id = `n${1 + (i % nodes)}`,
        record = state.processes().find((each) => each.id === id)!;
      await stopProcess(record.identity, 5000);
      rmSync(state.node(id), { recursive: true });
      await startNode(state, options, id);
      const before = await unitsRead(state),
        started = performance.now(),
        report = await client.rebuild('a');
      const elapsed = (performance.now() - started) / 1000;
      if (report.unitsMissing === 0 || report.unitsRestored !== report.unitsMissing || report.stripesLost > 0)
        throw new Error(`a rebuild over ${nodes} nodes: ${JSON.stringify(report)}`);
      const read = [...(await unitsRead(state))]
          .filter(([other]) => other !== id)
          .map(([other, units]) => units - (before.get(other) ?? 0)),
        mean = read.reduce((a, b) => a + b, 0) / read.length;
      // Once more, when nothing lacks: connections, memory, and what each node says that it holds.
      const again = performance.now(),
        idle = await client.rebuild('a');
      if (idle.unitsMissing > 0)
        throw new Error(`a second rebuild over ${nodes} nodes finds ${idle.unitsMissing} units missing`);
      looks.push((performance.now() - again) / 1000);
      seconds.push(elapsed);
      shares.push(report.bytesRestored / 1e6);
      rates.push(report.bytesRestored / 1e6 / elapsed);
      least.push(Math.min(...read) / mean);
      most.push(Math.max(...read) / mean);
    }
    const reader = await client.open('a');
    for (let at = 0; at < bytes; at += 16 * PIECE)
      if (!(await reader.read(at, PIECE)).equals(piece)) throw new Error(`${nodes} nodes: byte ${at} reads back wrong`);
    await reader.close();
    const figure = (name: string, unit: string, values: readonly number[]): Figure => ({
      section: 'rebuild',
      name: `${nodes} nodes: ${name}`,
      unit,
      ...spread(values),
    });
    return [
      figure('time', 's', seconds),
      figure('of it to look, when nothing lacks', 's', looks),
      figure('restored', 'MB', shares),
      figure('rate', 'MB/s', rates),
      figure('units read of the survivor that gives least ÷ mean', '×', least),
      figure('and most', '×', most),
    ];
  } finally {
    await client.close();
    await stopCluster(state);
  }
}

async function unitsRead(state: StateDirectory): Promise<Map<string, number>> {
  return new Map(
    await Promise.all(
      state
        .running()
        .filter((each) => each.role === 'node')
        .map(async (node): Promise<[string, number]> => {
          const control = new NodeControl(node.host, node.controlPort);
          try {
            return [node.id, (await control.status()).counters['tartan_node_units_read'] ?? NaN];
          } finally {
            control.close();
          }
        }),
    ),
  );
}
