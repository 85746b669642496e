/** A P4Runtime 1.4 client. README.md shows its use. */
export {
  connect,
  P4RuntimeClient,
  MAX_BATCH,
  MAX_BATCH_BYTES,
  type ClientEvents,
  type ConnectOptions,
  type Mastership,
  type Pipeline,
  type TlsOptions,
} from './client.js';
export {
  P4RuntimeError,
  Status,
  WriteError,
  statusName,
  type P4RuntimeErrorCode,
  type UpdateFailure,
} from './errors.js';
export { Program, type ObjectKind } from './program.js';
export { parseP4InfoText } from './p4info-text.js';
export {
  tableEntry,
  tableWildcard,
  readTableEntry,
  toAction,
  readAction,
  type ActionCall,
  type EntryAction,
  type EntryFields,
  type MeterRates,
  type ReadEntry,
} from './table-entry.js';
export { lpm, optional, range, ternary, type Match, type ReadMatch } from './match.js';
export {
  actionProfileGroup,
  actionProfileMember,
  allMulticastGroups,
  cloneSession,
  counterEntry,
  digestEntry,
  directCounterEntry,
  meterEntry,
  multicastGroup,
  readActionProfileGroup,
  readActionProfileMember,
  readCounterEntry,
  readDigestList,
  readMeterEntry,
  readReplicas,
  registerEntry,
  type CounterValue,
  type GroupMember,
  type Replica,
} from './externs.js';
export { packetOut, readPacketIn } from './packet-io.js';
export { fromByteString, isCanonical, toByteString, type Value } from './byte-string.js';
/** The wire's own messages, for what the layer above does not cover, and for writing servers. */
export * as v1 from './generated/p4/v1/p4runtime.js';
export * as data from './generated/p4/v1/p4data.js';
export * as config from './generated/p4/config/v1/p4info.js';
export * as types from './generated/p4/config/v1/p4types.js';
export * as rpc from './generated/google/rpc/status.js';
export * as any from './generated/google/protobuf/any.js';
