/** A node's counters by metric name: its own, its store's, its device's. */
import type { Device } from 'tartan-rdma';
import type { StorageNode } from './node-core.js';

export function nodeCounters(node: StorageNode, device: Device): Record<string, number> {
  const out: Record<string, number> = {};
  const add = (prefix: string, values: object): void => {
    for (const [name, value] of Object.entries(values))
      if (typeof value === 'number')
        out[`tartan_${prefix}_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`] = value;
  };
  add('node', node.counters);
  add('node', {
    openConnections: node.connectionCount,
    mapEpoch: node.mapEpoch,
    up: node.state === 'up' ? 1 : 0,
    ringMemoryUsedBytes: node.memory.used,
  });
  const store = node.storeStats();
  add('store', store);
  add('store', { failed: store.failed ? 1 : 0, recoveredUnits: store.recovery.units, tornUnits: store.recovery.torn });
  add('device', device.counters());
  add('packets', node.packetCounters() ?? {});
  return out;
}
