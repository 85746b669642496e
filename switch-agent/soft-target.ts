/** The software switch as a target: its device, its core. */
import { openDevice } from 'tartan-rdma';
import type { ClusterStore } from '../cluster/cluster-store.js';
import { readIdentity } from '../cluster/membership.js';
import { SwitchPresence } from '../cluster/presence.js';
import { Hub } from '../pipeline/hub.js';
import { realClock } from '../wire/clock.js';
import { switchCounters } from './metrics.js';
import { PROGRAM, SwitchCore } from './switch-core.js';
import type { Target } from './target.js';

export interface SoftTargetOptions {
  readonly store: ClusterStore;
  readonly id: string;
  readonly host: string;
  readonly port: number;
  readonly ringMemoryBytes: number;
  readonly transport: 'auto' | 'tcp' | 'shm';
  readonly device: string;
  readonly deadlineMs: number;
  readonly secret: string | undefined;
  readonly log: (message: string) => void;
  /** The switch has stopped by itself: another process took its id. */
  readonly onDisplaced: () => void;
}

export async function softTarget({
  store,
  id,
  host,
  port,
  ringMemoryBytes,
  transport,
  deadlineMs,
  secret,
  log,
  onDisplaced,
  ...options
}: SoftTargetOptions): Promise<Target> {
  const device = openDevice(options.device, { name: id, host, log });
  const { clusterId } = await readIdentity(store);
  // The control port must be known before the switch registers itself.
  let core: SwitchCore | undefined, presence: SwitchPresence | undefined;
  const counters = (): Record<string, number> => (core === undefined ? {} : switchCounters(core, device));
  return {
    async start(controlPort) {
      presence = await SwitchPresence.take(store, id, { onDisplaced });
      core = new SwitchCore({
        context: { device, hub: new Hub(device), clock: realClock, secret, clusterId },
        store,
        id,
        host,
        port,
        controlPort,
        ringMemoryBytes,
        transport,
        heartbeatMs: deadlineMs / 10,
        deadlineMs,
        log,
      });
      await core.start();
      return core.port;
    },
    async load(program) {
      if (program === 'forward') await core?.unload();
      else await core?.load(program);
    },
    async unload() {
      await core?.unload();
    },
    status() {
      return Promise.resolve({
        id,
        state: core?.state ?? 'down',
        program: core?.state === 'programmable' ? PROGRAM.name : '',
        version: PROGRAM.version,
        mapEpoch: core?.map?.epoch ?? 0,
        ringMemoryUsed: core?.counters().ringMemoryUsed ?? 0,
        ringMemoryLimit: ringMemoryBytes,
        counters: counters(),
      });
    },
    counters: () => Promise.resolve(counters()),
    samples: () => [],
    async stop() {
      await core?.stop();
      await presence?.release();
      await device.close();
    },
  };
}
