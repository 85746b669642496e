/** The writer library: what applications import. */
export { connect, Client, DEFAULT_RING_MEMORY } from './client.js';
export type { ConnectOptions, CreateOptions } from './client.js';
export { FileWriter } from './file-writer.js';
export type { WriterProgress } from './file-writer.js';
export { FileReader } from './file-reader.js';
export type { DrainOptions, DrainReport } from './drain.js';
export type { MoveOptions, MoveReport } from './mover.js';
export type { PatrolOptions, PatrolReport } from './patrol.js';
export type { ReadRepairCounts } from './read-repair.js';
export type { Balance, RebalanceOptions, RebalanceReport } from './rebalance.js';
export type { RebuildOptions, RebuildReport } from './rebuild.js';
export type { RepairerOptions } from './repairer.js';
export type { ReadProgress } from '../pipeline/stripe-reader.js';
export type { ParityMode } from './file-session.js';
export { isOperating, OperatingError, TartanError } from '../wire/errors.js';
export type { ErrorCode } from '../wire/errors.js';
// What other rooms throw through this one, and the types of what is passed in and handed out.
export { CodeError, TooManyErasuresError } from '../erasure/code/index.js';
export { LayoutError, type LayoutName } from '../erasure/layout/index.js';
export { RdmaError, openDevice, type Device } from 'tartan-rdma';
export type { ClusterStore } from '../cluster/cluster-store.js';
export type {
  ClusterMap,
  EpochFloor,
  FileRecord,
  NodeEntry,
  PacketAddress,
  ShareMove,
  SwitchEntry,
} from '../cluster/records.js';
export type { Clock } from '../wire/clock.js';
