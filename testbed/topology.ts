/**
 * A network as data: hosts with one role each, and shaped links between them.
 *
 *   w1 ──┐            ┌── n1        every writer has one link to its switch host, every node one to each switch host,
 *   w2 ──┤── s1 ──────┼── n2        as the reference prototype had one adapter per link; switch hosts forward IP, so
 *        │            └── n3        that a writer in host mode reaches the nodes over the same links
 *
 * A bridge is a plain Ethernet switch: hosts linked to the same one share a segment. It is the other path to the nodes.
 */
import { parseCode } from '../erasure/code/index.js';
import { TartanError } from '../wire/errors.js';
import { TestbedError } from './errors.js';

const ROLES = ['writer', 'switch', 'node', 'bridge'] as const;
export type Role = (typeof ROLES)[number];

export interface Host {
  readonly name: string;
  readonly role: Role;
}
/** Both directions are shaped to the rate, each by itself. */
export interface Link {
  readonly ends: readonly [string, string];
  readonly rateMbit: number;
}
export interface Topology {
  readonly hosts: readonly Host[];
  readonly links: readonly Link[];
}

export interface StarOptions {
  readonly nodes: number;
  readonly rateMbit: number;
  /** Default 1. Writer i is linked to switch (i modulo switches) alone. */
  readonly writers?: number;
  /** Default 1. */
  readonly switches?: number;
  /** A bridge beside the switches, with a link from every writer and node. Default false. */
  readonly bypass?: boolean;
}

/** Interface names are "a-b", at most 15 characters in Linux. */
const MOST_NAME = 7;
const MOST_RATE_MBIT = 100_000;
const MOST_HOSTS = 64;

export function starTopology({ nodes, rateMbit, writers = 1, switches = 1, bypass = false }: StarOptions): Topology {
  const named = (role: Exclude<Role, 'bridge'>, count: number): Host[] =>
    Array.from({ length: count }, (_, i) => ({ name: `${role[0]}${i + 1}`, role }));
  const writerHosts = named('writer', writers),
    switchHosts = named('switch', switches),
    nodeHosts = named('node', nodes);
  const links: Link[] = [
    ...writerHosts.map((writer, i): Link => ({ ends: [writer.name, switchHosts[i % switches]?.name ?? ''], rateMbit })),
    ...nodeHosts.flatMap((node) => switchHosts.map((each): Link => ({ ends: [node.name, each.name], rateMbit }))),
    ...(bypass ? [...writerHosts, ...nodeHosts].map((host): Link => ({ ends: [host.name, 'b1'], rateMbit })) : []),
  ];
  return {
    hosts: [...writerHosts, ...switchHosts, ...nodeHosts, ...(bypass ? [{ name: 'b1', role: 'bridge' } as const] : [])],
    links,
  };
}

export function hostsOf(topology: Topology, role: Role): Host[] {
  return topology.hosts.filter((host) => host.role === role);
}

/**
 * @param code  that files of this network will have
 * @throws {TestbedError} ERR_TOPOLOGY  @throws {TartanError} ERR_NOT_ENOUGH_NODES, ERR_UNKNOWN_CODE
 */
export function validateTopology(topology: Topology, code?: string): void {
  const fail = (why: string): never => {
    throw new TestbedError('ERR_TOPOLOGY', `Cannot build this network: ${why}`);
  };
  const names = new Set<string>();
  for (const { name, role } of topology.hosts) {
    if (!ROLES.includes(role)) fail(`${name} has the role '${String(role)}', expected one of ${ROLES.join(', ')}`);
    if (!/^[a-z][a-z0-9]*$/.test(name) || name.length > MOST_NAME)
      fail(`a host is called '${name}', expected at most ${MOST_NAME} small letters and digits`);
    if (names.has(name)) fail(`two hosts are called ${name}`);
    names.add(name);
  }
  if (topology.hosts.length > MOST_HOSTS)
    fail(`it has ${topology.hosts.length} hosts, at most ${MOST_HOSTS} are supported`);
  const pairs = new Set<string>();
  for (const { ends, rateMbit } of topology.links) {
    const said = ends.join('–');
    for (const end of ends) if (!names.has(end)) fail(`the link ${said} leads to '${end}', which is no host`);
    if (ends[0] === ends[1]) fail(`the link ${said} leads back to where it comes from`);
    if (!(rateMbit > 0) || rateMbit > MOST_RATE_MBIT)
      fail(`the link ${said} has a rate of ${rateMbit} Mbit/s, expected more than 0 and at most ${MOST_RATE_MBIT}`);
    const pair = [...ends].sort().join('–');
    if (pairs.has(pair)) fail(`there are two links ${pair}`);
    pairs.add(pair);
  }
  const linked = (a: string, b: string): boolean => pairs.has([a, b].sort().join('–'));
  const switches = hostsOf(topology, 'switch');
  for (const role of ['switch', 'node'] as const) if (hostsOf(topology, role).length === 0) fail(`it has no ${role}`);
  for (const { name } of hostsOf(topology, 'writer'))
    if (!switches.some((each) => linked(name, each.name))) fail(`${name} is linked to no switch`);
  for (const { name } of hostsOf(topology, 'node'))
    for (const each of switches) if (!linked(name, each.name)) fail(`${name} is not linked to ${each.name}`);
  if (code !== undefined) {
    const { k, m, name } = parseCode(code);
    const nodes = hostsOf(topology, 'node').length;
    if (k + m > nodes)
      throw new TartanError(
        'ERR_NOT_ENOUGH_NODES',
        `Cannot use ${name} on this network: it wants ${k + m} storage nodes, there are ${nodes}`,
      );
  }
}

/**
 * Reads `100mbit`, `1gbit`, `2.5gbit`, `500` (Mbit/s).
 *
 * @throws {TartanError} ERR_ARGUMENT
 */
export function parseRate(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(mbit|gbit)?$/i.exec(text.trim());
  const mbit = match ? Number(match[1]) * (match[2]?.toLowerCase() === 'gbit' ? 1000 : 1) : NaN;
  if (!(mbit > 0) || mbit > MOST_RATE_MBIT)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot use '${text}' as a link's rate: expected more than 0 and at ` +
        `most ${MOST_RATE_MBIT / 1000} Gbit/s, such as 200mbit or 1gbit`,
    );
  return mbit;
}

export function formatMbit(mbit: number): string {
  return mbit >= 1000 ? `${mbit / 1000} Gbit/s` : `${mbit} Mbit/s`;
}
