/**
 * A topology with BMv2 as its switch: one segment, every frame of which passes the P4 program.
 *
 *     w1 ──p1┐                       ┌p3── n1       10.5.0.i    host i: writers, then nodes
 *            ├─ simple_switch_grpc ──┤              10.5.0.250  the agent, beside BMv2, on a port of its own
 *     agent ─┘                       └p4── n2       10.5.0.254  the service address of the program
 *
 * Jumbo frames throughout; no offloads, because BMv2 takes frames as they are: their checksums have to be there.
 */
import type { NetworkSpec } from './addressing.js';
import { TestbedError } from './errors.js';
import type { Topology } from './topology.js';
import { hostsOf } from './topology.js';

const SERVICE = { host: '10.5.0.254', mac: '02:00:00:00:05:fe' };
const AGENT = '10.5.0.250';
const AGENT_MAC = '02:00:00:00:05:fa';
/** Of IP packets, and of the interfaces: a switch may add a header of its own. */
const MTU = 9000,
  INTERFACE_MTU = 9500;

export interface Bmv2Plan {
  readonly network: NetworkSpec;
  /** By host; the switch's is its agent's. */
  readonly addresses: ReadonlyMap<string, string>;
  /** What the agent is told with --ports. */
  readonly ports: string;
  /** Interfaces of the switch host, by port number less 1. */
  readonly interfaces: readonly string[];
  /** The class of program that takes every code which this many nodes can hold. */
  readonly artefact: string;
}

/**
 * @param topology  a valid one
 * @throws {TestbedError} ERR_TOPOLOGY: not one switch with links to all others and no bridge
 */
export function bmv2Plan(topology: Topology): Bmv2Plan {
  const [switchHost, ...more] = hostsOf(topology, 'switch');
  if (switchHost === undefined || more.length > 0 || hostsOf(topology, 'bridge').length > 0)
    throw new TestbedError('ERR_TOPOLOGY', 'Cannot build this network with BMv2: expected one switch, and no bridge');
  const others = [...hostsOf(topology, 'writer'), ...hostsOf(topology, 'node')];
  const members = others.map(({ name }, index) => {
    const link = topology.links.find(({ ends }) => ends.includes(name) && ends.includes(switchHost.name))!;
    return {
      name,
      rateMbit: link.rateMbit,
      host: `10.5.0.${index + 1}`,
      mac: macOf(index + 1),
      port: index + 1,
      interface: 'eth0',
    };
  });
  const agent = {
    name: switchHost.name,
    rateMbit: undefined,
    host: AGENT,
    mac: AGENT_MAC,
    port: members.length + 1,
    interface: 'agent',
  };
  const all = [...members, agent],
    nodes = hostsOf(topology, 'node').length;
  return {
    network: {
      hosts: [...others, switchHost].map(({ name }) => ({ name, forwards: false, addresses: [], routes: [] })),
      bridges: [],
      links: all.map((each) => ({
        ends: [
          { host: each.name, interface: each.interface, address: `${each.host}/24`, mac: each.mac },
          { host: switchHost.name, interface: `p${each.port}`, address: null },
        ] as const,
        ...(each.rateMbit !== undefined && { rateMbit: each.rateMbit }),
        mtu: INTERFACE_MTU,
        plain: true,
      })),
    },
    addresses: new Map(all.map(({ name, host }) => [name, host])),
    ports: JSON.stringify({
      service: SERVICE,
      hosts: all.map(({ host, mac, port }) => ({ host, mac, port })),
      mtu: MTU,
    }),
    interfaces: all.map(({ port }) => `p${port}`),
    artefact: `parity-k${nodes <= 3 ? 2 : nodes <= 5 ? 4 : 8}-9000`,
  };
}

function macOf(number: number): string {
  return `02:00:00:00:05:${number.toString(16).padStart(2, '0')}`;
}
