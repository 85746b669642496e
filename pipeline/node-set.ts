/**
 * The links of one file's user (writer, reader or switch session) to the file's nodes, by their index in its list.
 *
 * A link is made on demand and again after a loss; the cluster map says who is meant to be reachable. Membership is not
 * decided here: who finds a node gone proposes it down through `cluster/membership.ts`.
 */
import type { ClusterMap } from '../cluster/records.js';
import type { NodeEntry } from '../cluster/records.js';
import { TartanError } from '../wire/errors.js';
import { detach, refusalOf } from '../wire/front-door.js';
import type { NodeLinkOwner } from './node-link.js';
import { NodeLink } from './node-link.js';
import type { PacketLanes } from './packet-lanes.js';
import type { SessionContext } from './session.js';
import { connectSession } from './session.js';

export interface NodeSetOptions {
  readonly context: SessionContext;
  /** Node ids in placement order. */
  readonly nodes: readonly string[];
  readonly role: 'writer' | 'switch' | 'reader' | 'rebuilder';
  readonly name: string;
  readonly fileId: number;
  /** Ring wanted of each node; 0: none. */
  readonly unitBytes: number;
  readonly slots: number;
  /** Answers a node may write to us at once (reads). */
  readonly receiveSlots: number;
  readonly transport: 'auto' | 'tcp' | 'shm';
  readonly heartbeatMs: number;
  readonly deadlineMs: number;
  readonly owner: NodeLinkOwner;
  /** Units go as packets to nodes that take them; opened by the owner, and closed after this set. */
  readonly packets?: PacketLanes | undefined;
  /** Of the owner, told to nodes with `packets`; renew() gives another. */
  readonly writerEpoch?: number;
}

export class NodeSet {
  private current: ClusterMap;
  private readonly options: NodeSetOptions;
  private readonly links: (NodeLink | undefined)[];
  private ids: readonly string[];
  private readonly connecting = new Map<number, Promise<NodeLink>>();
  private readonly dying = new Set<Promise<void>>();
  private closed = false;
  private writerEpoch: number | undefined;

  constructor(map: ClusterMap, options: NodeSetOptions) {
    this.current = map;
    this.writerEpoch = options.writerEpoch;
    this.options = options;
    this.ids = options.nodes;
    this.links = this.ids.map(() => undefined);
  }

  get map(): ClusterMap {
    return this.current;
  }

  /** Every link acts under the new map from now on. */
  set map(map: ClusterMap) {
    this.current = map;
    for (const link of this.links) link?.adoptMap(map.epoch);
  }

  /** Other nodes at some of the indexes, as the file's record has them now: links to those that went are dropped. */
  follow(ids: readonly string[]): void {
    for (const [index, id] of ids.entries()) if (id !== this.ids[index]) this.drop(index, `${id} has its share now`);
    this.ids = ids;
  }

  get count(): number {
    return this.ids.length;
  }

  entry(index: number): NodeEntry | undefined {
    return this.map.nodes.find((node) => node.id === this.ids[index]);
  }

  isDown(index: number): boolean {
    return this.entry(index)?.state !== 'up';
  }

  /** The usable link to a node, or undefined. */
  linkTo(index: number): NodeLink | undefined {
    const link = this.links[index];
    return link?.up === true ? link : undefined;
  }

  /** Indexes of nodes that the map calls up. */
  upIndexes(): number[] {
    return this.ids.map((_, i) => i).filter((i) => !this.isDown(i));
  }

  /**
   * The link to a node, connecting when there is none.
   * @throws {TartanError} ERR_CONNECT and what a node refuses with
   */
  connect(index: number, timeoutMs: number): Promise<NodeLink> {
    const present = this.linkTo(index);
    if (present !== undefined) return Promise.resolve(present);
    let attempt = this.connecting.get(index);
    if (attempt === undefined) {
      attempt = this.open(index, timeoutMs).finally(() => this.connecting.delete(index));
      this.connecting.set(index, attempt);
    }
    return attempt;
  }

  /** Connects to all nodes that the map calls up. @returns indexes that could not be reached, with the reason */
  async connectUp(timeoutMs: number): Promise<{ index: number; error: unknown }[]> {
    const failures: { index: number; error: unknown }[] = [];
    await Promise.all(
      this.upIndexes().map(async (index) => {
        try {
          await this.connect(index, timeoutMs);
        } catch (error) {
          if (refusalOf(error) === undefined) throw error;
          failures.push({ index, error });
        }
      }),
    );
    return failures;
  }

  /** Drops the links to nodes that the map does not call up: what is posted there settles, whatever holds it up. */
  dropDown(): void {
    for (let index = 0; index < this.links.length; index++)
      if (this.links[index] !== undefined && this.isDown(index)) this.drop(index, 'the map calls it down');
  }

  /** Drops the link to a node, if any; its units are answered with UNREACHABLE. */
  drop(index: number, reason: string): void {
    const link = this.links[index];
    this.links[index] = undefined;
    if (link !== undefined) this.bury(link, reason);
  }

  /**
   * The owner goes on under another writer epoch, and has nothing under way. Nodes take packets of the epoch alone that
   * they were told: those links are dropped.
   * @returns whether links have to be made again
   */
  async renew(writerEpoch: number): Promise<boolean> {
    this.writerEpoch = writerEpoch;
    if (this.options.packets === undefined) return false;
    await Promise.allSettled([...this.connecting.values()]);
    for (let i = 0; i < this.links.length; i++) this.drop(i, `goes on as writer epoch ${writerEpoch}`);
    return true;
  }

  async destroy(reason: string): Promise<void> {
    this.closed = true;
    for (let i = 0; i < this.links.length; i++) this.drop(i, reason);
    await Promise.allSettled([...this.connecting.values()]);
    for (let i = 0; i < this.links.length; i++) this.drop(i, reason);
    await Promise.all(this.dying);
  }

  private async open(index: number, timeoutMs: number): Promise<NodeLink> {
    const {
      context,
      role,
      name,
      fileId,
      unitBytes,
      slots,
      receiveSlots,
      transport,
      heartbeatMs,
      deadlineMs,
      owner,
      packets,
    } = this.options;
    const { writerEpoch } = this;
    const entry = this.entry(index);
    if (entry === undefined)
      throw new TartanError(
        'ERR_CONNECT',
        `Cannot reach node ${this.ids[index]}: it is not in the cluster map of epoch ${this.map.epoch}`,
      );
    const asPackets =
      packets !== undefined && entry.packets !== undefined
        ? { packetPort: packets.port, packetHost: packets.host, ...(writerEpoch !== undefined && { writerEpoch }) }
        : {};
    const session = await connectSession(
      context,
      entry.host,
      entry.port,
      { role, name, unitBytes, slots, fileId, mapEpoch: this.map.epoch, ...asPackets },
      { transport, timeoutMs, receiveSlots },
    );
    if (session.grant.name !== entry.id) {
      await session.channel.destroy('wrong node');
      throw new TartanError(
        'ERR_CONNECT',
        `Cannot reach node ${entry.id}: ${entry.host}:${entry.port} answers as '${session.grant.name}'`,
      );
    }
    if (entry.id !== this.ids[index]) {
      await session.channel.destroy('moved');
      throw new TartanError('ERR_CONNECT', `Cannot use node ${entry.id}: ${this.ids[index]} has its share now`);
    }
    if (this.closed) {
      await session.channel.destroy('closed');
      throw new TartanError('ERR_CLOSED', 'Closed while connecting');
    }
    this.drop(index, 'replaced by a new connection');
    const link = new NodeLink(entry.id, index, session, owner, {
      clock: context.clock,
      heartbeatMs,
      deadlineMs,
      packets,
      host: entry.packets?.host ?? entry.host,
    });
    link.adoptMap(this.current.epoch);
    this.links[index] = link;
    return link;
  }

  private bury(link: NodeLink, reason: string): void {
    const end = link.destroy(reason).finally(() => this.dying.delete(end));
    this.dying.add(end);
    detach(end);
  }
}
