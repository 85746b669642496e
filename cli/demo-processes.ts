/** The demo's stage on one machine: the software switch and three nodes as processes, in a directory of their own. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TartanError } from '../wire/errors.js';
import type { Client } from '../writer/index.js';
import { connect } from '../writer/index.js';
import { stopProcess } from './child-process.js';
import type { ClusterOptions } from './cluster-processes.js';
import { SWITCH_ID, startCluster, startSwitch, stopCluster } from './cluster-processes.js';
import type { Stage } from './demo-stage.js';
import { RING_MEMORY_BYTES } from './demo-stage.js';
import { StateDirectory } from './state-directory.js';
import { callSwitch } from './switch-control.js';

export class ProcessStage implements Stage {
  readonly description =
    'one switch and three storage nodes run, each a process; a write is acknowledged when it is on the disks';
  private readonly state = new StateDirectory(mkdtempSync(join(tmpdir(), 'tartan-demo-')));
  private readonly options: ClusterOptions;

  /** @param fileBytes  of the file of which three copies will be stored */
  constructor(fileBytes: number) {
    this.options = {
      nodes: 3,
      host: '127.0.0.1',
      basePort: 0,
      durability: 'sync',
      transport: 'auto',
      dependent: true,
      // Three files, half of each on every node, twice over.
      ringMemoryBytes: RING_MEMORY_BYTES,
      sizeBytes: Math.max(256 << 20, 3 * fileBytes),
    };
  }

  async start(): Promise<void> {
    await startCluster(this.state, this.options);
  }

  connect(): Promise<Client> {
    return connect({ cluster: this.state.cluster, name: 'demo', ringMemoryBytes: RING_MEMORY_BYTES });
  }
  async unload(): Promise<void> {
    await callSwitch(this.record(SWITCH_ID), undefined, (control) => control.unload());
  }
  async load(): Promise<void> {
    await callSwitch(this.record(SWITCH_ID), undefined, (control) => control.load('parity'));
  }
  killSwitch(): Promise<void> {
    return this.kill(SWITCH_ID);
  }
  async startSwitch(): Promise<void> {
    await startSwitch(this.state, this.options);
  }
  killNode(id: string): Promise<void> {
    return this.kill(id);
  }

  /** Ends everything, removes everything. */
  async end(): Promise<void> {
    await stopCluster(this.state, 0);
    rmSync(this.state.path, { recursive: true, force: true });
  }

  /** It must run, or the fault does not strike. */
  private async kill(id: string): Promise<void> {
    if ((await stopProcess(this.record(id).identity, 0)) !== 'killed')
      throw new TartanError('ERR_NOT_RUNNING', `Cannot kill ${id}: it has ended before`);
  }

  private record(id: string) {
    const found = this.state.running().find((each) => each.id === id);
    if (!found) throw new TartanError('ERR_NOT_RUNNING', `Cannot reach ${id}: it has ended`);
    return found;
  }
}
