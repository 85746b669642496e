/**
 * Addresses and routes for a topology: what build_network.py is told.
 *
 *   10.255.0.i     node i, on its loopback interface: one address, over whatever link it is reached
 *   10.254.0.i     switch host i, likewise
 *   10.1.L.0/30    link number L of two hosts: .1 and .2
 *   10.2.B.h       host h on the segment of bridge B
 *
 * A writer has a route to the switch hosts that it is linked to and to no others: with several, each serves its own.
 */
import type { Topology } from './topology.js';
import { hostsOf } from './topology.js';

export interface NetworkEnd {
  readonly host: string;
  readonly interface: string;
  readonly address: string | null /** default: whatever it gets */;
  readonly mac?: string;
}
export interface NetworkLink {
  readonly ends: readonly [NetworkEnd, NetworkEnd];
  /** Default: not shaped. */
  readonly rateMbit?: number;
  readonly mtu?: number;
  /** Frames are on the link as IP wants them: no offloads, no IPv6 of the kernel's own. */
  readonly plain?: boolean;
}
export interface NetworkSpec {
  readonly hosts: readonly {
    readonly name: string;
    readonly forwards: boolean;
    readonly addresses: readonly string[];
    readonly routes: readonly string[];
  }[];
  readonly bridges: readonly string[];
  /** In the order of the topology's. */
  readonly links: readonly NetworkLink[];
}

/** Of two routes to the same place the lower metric is taken while its link has a carrier. */
const BY_SWITCH = 10,
  BY_BRIDGE = 20;

/** @param topology  a valid one */
export function networkSpec(topology: Topology): NetworkSpec {
  const roleOf = new Map(topology.hosts.map((host) => [host.name, host.role]));
  const bridges = hostsOf(topology, 'bridge').map((host) => host.name);
  const members = new Map(
    bridges.map((bridge) => [
      bridge,
      topology.links.filter(({ ends }) => ends.includes(bridge)).map(({ ends }) => other(ends, bridge)),
    ]),
  );
  const end = (host: string, peer: string, link: number): NetworkEnd => {
    const bridge = bridges.indexOf(peer);
    const address =
      roleOf.get(host) === 'bridge'
        ? null
        : bridge >= 0
          ? `10.2.${bridge}.${members.get(peer)!.indexOf(host) + 1}/24`
          : `10.1.${link}.${topology.links[link]!.ends[0] === host ? 1 : 2}/30`;
    return { host, interface: `${host}-${peer}`, address };
  };
  const links = topology.links.map(({ ends: [a, b], rateMbit }, i) => ({
    ends: [end(a, b, i), end(b, a, i)] as const,
    rateMbit,
  }));

  /** Who is linked to `host` directly, and the address of its end of that link. */
  const neighbours = (host: string): { name: string; link: number; address: string }[] =>
    links.flatMap(({ ends }, link) => {
      const at = ends.findIndex((each) => each.host === host);
      const far = ends[1 - at];
      return at < 0 || far === undefined || far.address === null
        ? []
        : [{ name: far.host, link, address: bare(far.address) }];
    });
  const routesOf = (host: string): string[] => {
    const role = roleOf.get(host)!;
    const near = neighbours(host);
    const routes: string[] = [];
    for (const { name, address } of near)
      if (roleOf.get(name) !== 'writer')
        routes.push(`${serviceAddress(topology, name)}/32 via ${address} metric ${BY_SWITCH}`);
    for (const { name: via, address } of near.filter(({ name }) => roleOf.get(name) === 'switch')) {
      // Through a switch host: a writer reaches the nodes, a node the writers' links.
      for (const beyond of neighbours(via)) {
        if (role === 'writer' && roleOf.get(beyond.name) === 'node')
          routes.push(
            `${serviceAddress(topology, beyond.name)}/32 via ${address} metric ${BY_SWITCH + beyondIndex(near, via)}`,
          );
        if (role === 'node' && roleOf.get(beyond.name) === 'writer')
          routes.push(`10.1.${beyond.link}.0/30 via ${address}`);
        // Between nodes, for systems whose nodes talk to each other; from the address that there is a way back to.
        if (role === 'node' && roleOf.get(beyond.name) === 'node' && beyond.name !== host)
          routes.push(
            `${serviceAddress(topology, beyond.name)}/32 ` +
              `via ${address} src ${serviceAddress(topology, host)} metric ${BY_SWITCH + beyondIndex(near, via)}`,
          );
      }
    }
    for (const bridge of bridges) {
      for (const node of hostsOf(topology, 'node')) {
        const at = members.get(bridge)!.indexOf(node.name);
        if (role === 'writer' && at >= 0 && members.get(bridge)!.includes(host))
          routes.push(
            `${serviceAddress(topology, node.name)}/32 via ` +
              `10.2.${bridges.indexOf(bridge)}.${at + 1} metric ${BY_BRIDGE}`,
          );
      }
    }
    return routes;
  };
  return {
    hosts: topology.hosts
      .filter((host) => host.role !== 'bridge')
      .map(({ name, role }) => ({
        name,
        forwards: role === 'switch',
        routes: routesOf(name),
        addresses: role === 'writer' ? [] : [`${serviceAddress(topology, name)}/32`],
      })),
    bridges,
    links,
  };
}

/** Where a node or a switch agent listens. */
export function serviceAddress(topology: Topology, name: string): string {
  const role = topology.hosts.find((host) => host.name === name)?.role;
  const index = topology.hosts.filter((host) => host.role === role).findIndex((host) => host.name === name) + 1;
  return `10.${role === 'node' ? 255 : 254}.0.${index}`;
}

function other([a, b]: readonly [string, string], one: string): string {
  return a === one ? b : a;
}
function bare(address: string): string {
  return address.slice(0, address.indexOf('/'));
}
/** Several switches to the same node: the first is preferred. */
function beyondIndex(near: readonly { name: string }[], via: string): number {
  return near.findIndex(({ name }) => name === via);
}
