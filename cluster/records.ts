/**
 * What the cluster store holds: the map and the files, as JSON under fixed keys.
 *
 *   cluster              ClusterIdentity
 *   map                  ClusterMap
 *   file-id              the last file id given, decimal (never reused)
 *   files/by-name/NAME   file id
 *   files/by-id/ID       FileRecord (ID: 16 hex digits, so that ranges ascend)
 *   files/unnamed/ID     the id again, while the file has no name
 *   leases/node/ID, leases/switch/ID   presence, under a lease
 *   scrub                ScrubState: what the last scrubs by themselves found (scrub-state.ts)
 *   leases/repair        who rebuilds or scrubs, under a lease (repair-hold.ts)
 *   leases/repair-wish   an operator's command that waits for it, under its lease
 */
export interface ClusterIdentity {
  readonly uuid: string /** low 32 bits of the uuid; carried in headers */;
  readonly clusterId: number;
  readonly formatVersion: number;
}

export interface NodeEntry {
  readonly id: string;
  readonly host: string;
  readonly port: number;
  readonly state: 'up' | 'down' /** control (gRPC) and metrics port, 0: none */;
  readonly controlPort: number;
  /** Map epoch with which its present state began: from then on an 'up' node was recorded missing by nobody. */
  readonly since?: number;
  /** Uuid of its unit store: another one under the same id is a disk that holds nothing of what was written before. */
  readonly store?: string;
  /** Map epoch with which that store came: what it lacks of older units proves nothing. */
  readonly storeSince?: number;
  /**
   * IPv4 address and UDP port on which it takes unit and parity packets (docs/wire-format.md); absent: it takes none.
   */
  readonly packets?: PacketAddress;
  /** Waits to take the share of a node that is lost, or leaves: new files don't use it. Ends when it has. */
  readonly spare?: true;
  /** Being drained: new files don't use it, and nothing is moved to it. */
  readonly leaving?: true;
}
export interface SwitchEntry {
  readonly id: string;
  readonly host: string;
  readonly port: number;
  readonly state: 'programmable' | 'forwarding' | 'down';
  readonly controlPort: number;
  /**
   * Where a packet switch takes stripe packets and probes, and the largest IP packet it takes; absent: a software
   * switch, which grants rings at host and port.
   */
  readonly packets?: PacketAddress & { readonly mtu: number };
}

/** Of UDP over IPv4. */
export interface PacketAddress {
  readonly host: string;
  readonly port: number;
}

export interface ClusterMap {
  /** Grows by one with every change of the nodes: who they are, where, in which state. Units and requests carry it. */
  readonly epoch: number;
  /** Grows by one with every change, also of switches: those are soft state, and disturb no unit under way. */
  readonly changes: number;
  readonly nodes: readonly NodeEntry[];
  readonly switches: readonly SwitchEntry[];
  /** The last epoch with which files' shares began to move or moved: who read a file's record before looks again. */
  readonly moved?: number;
  /** Grows by one whenever the owners of files are asked whether they are there (FileRecord.asked). */
  readonly questions?: number;
}

/** A file's share at one index on its way to another node, or ('-') to all the others of a spread file. */
export interface ShareMove {
  readonly index: number;
  readonly to: string;
}

export interface EpochFloor {
  readonly stripe: number;
  readonly epoch: number;
}

export interface FileRecord {
  readonly id: number;
  readonly name: string;
  /** Nobody finds it under its name: it gets that when it is complete (publishFile), or is collected. */
  readonly unnamed?: true;
  /** e.g. 'rs(4,2)' */
  readonly code: string;
  readonly unitBytes: number;
  /**
   * Node ids in placement order (layout/ maps a unit to an index in this list); '-': its node left, and no unit is
   * there.
   */
  readonly nodes: readonly string[];
  /**
   * Map epochs with which each index came to its present node; 0, or absent: with the file. What a node lacks of older
   * units proves nothing.
   */
  readonly nodesSince?: readonly number[];
  /**
   * Nodes that are being filled with the units of an index, to take it then (moves.ts): they store what a rebuilder
   * sends.
   */
  readonly moves?: readonly ShareMove[];
  /** The owner's presence was asked for so many times, and by the last owner answered. */
  readonly asked?: number;
  readonly answered?: number;
  /**
   * How units are placed on them: 'rotated' (also when absent) or 'spread', as erasure/layout/ knows it. The places
   * never change.
   */
  readonly layout?: string;
  /** Owner's epoch; 0: never opened for writing. */
  readonly writerEpoch: number;
  /** The owner of this epoch itself went on to the next one (files.ts, renewOwner). */
  readonly renewedFrom?: number;
  /** Acknowledged bytes as last published; the units' headers may know more. */
  readonly length: number;
  /** Commit mark as last published: versions up to (epoch, counter) are committed. */
  readonly commitEpoch: number;
  readonly commitCounter: number;
  /**
   * The last takeover's decision: versions of epochs below `decidedEpoch` exist only in stripes below `decidedStripes`.
   */
  readonly decidedEpoch: number;
  readonly decidedStripes: number;
  /**
   * Everything written since that decision, or since the file was made, was written under this map epoch or a later
   * one.
   */
  readonly decidedMapEpoch?: number;
  /**
   * What earlier takeovers settled, ascending: from `stripe` on, every committed version is of writer epoch `epoch` or
   * a later one. A unit of an older epoch there was rolled back, on a node that was down then and never heard of it.
   */
  readonly floors?: readonly EpochFloor[];
  /**
   * An owner that had decided closed the file as this epoch, and no newer owner has decided since: whatever is not
   * covered by length and commit mark was never acknowledged.
   */
  readonly closedEpoch?: number;
  readonly state: 'open' | 'closed' | 'deleted';
  /** ISO time of the last publication. */
  readonly modified: string;
}
