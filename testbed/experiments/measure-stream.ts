/**
 * One measured point: a writer writes for a while, and what the interfaces and the CPUs say of it.
 *
 * Asserts that the bytes went over TCP on the shaped links: what was acknowledged must have left the writer's interface
 * (once with parity in the switch, (k+m)/k times with parity on the host) and must have come to the nodes' interfaces
 * (k+m)/k times. Bytes through shared memory would be missing there.
 */
import { parseCode } from '../../erasure/code/index.js';
import { TestbedError } from '../errors.js';
import type { LinkBytes } from '../probes.js';
import { bytesBetween, cpuTimes, idleShare, linkBytes } from '../probes.js';
import type { Testbed } from '../testbed.js';
import { hostsOf } from '../topology.js';

/** Below this share of idle CPU a point says more of the machine than of the network. */
export const LEAST_IDLE = 0.2;
/** Headers, TCP, IP, Ethernet, acknowledgements of the other direction: 4 KiB units have the most. */
const MOST_OVERHEAD = 0.12;
/** Packets carry a stripe header each, and some are sent twice. */
const MOST_PACKET_OVERHEAD = 0.3;

/** Processes start and connect on a busy machine within this. */
const START_MS = 1500,
  START_EACH_MS = 250;

export interface StreamPoint {
  readonly writer: string;
  readonly name: string;
  readonly code: string;
  readonly unitBytes: number;
  readonly parity: 'switch' | 'host';
  readonly warmupSeconds: number;
  readonly seconds: number;
}

export interface StreamFigures {
  readonly bytesPerSecond: number;
  readonly idle: number;
  /** Bytes on the writers' links, and on the nodes', for each byte acknowledged. */
  readonly writerBytesPerByte: number;
  readonly nodeBytesPerByte: number;
  readonly totalBytes: number;
  readonly stripesRedriven: number;
}

/** Several points at once are several writers: their rates add up. */
export async function measureStreams(testbed: Testbed, points: readonly StreamPoint[]): Promise<StreamFigures> {
  const before = linkBytes(testbed.network),
    cpuBefore = cpuTimes();
  // Who measures while others are still starting has the links to itself: all begin together, when the last should be
  // ready.
  const startAtMs = points.length > 1 ? Date.now() + START_MS + START_EACH_MS * points.length : 0;
  const results = await Promise.all(
    points.map(({ writer, name, code, unitBytes, parity, warmupSeconds, seconds }) =>
      testbed.worker(writer).call('stream', {
        access: {
          cluster: testbed.cluster,
          parity,
          ringMemoryBytes: ringMemory(testbed, code, unitBytes, seconds / points.length),
          deadlineMs: testbed.deadlineMs,
        },
        file: { name, code, unitBytes },
        warmupSeconds,
        seconds,
        startAtMs,
      }),
    ),
  );
  const idle = idleShare(cpuBefore, cpuTimes());
  const after = linkBytes(testbed.network);
  const totalBytes = results.reduce((sum, each) => sum + each.totalBytes, 0);
  const nodes = new Set(hostsOf(testbed.topology, 'node').map((host) => host.name));
  const writers = new Set(points.map((each) => each.writer));
  const atWriters = bytesBetween(before, after, (name) => writers.has(hostOf(name)));
  const atNodes = bytesBetween(before, after, (name) => nodes.has(hostOf(name)));
  const { code, parity } = points[0]!;
  for (const each of results) {
    const wanted = parity === 'switch' ? 1 : 0;
    if (each.modeChanges !== wanted)
      throw new TestbedError(
        'ERR_MEASUREMENT',
        `Cannot count this point (${code}, ${points[0]!.unitBytes}-byte units, parity ${parity}): the writer ` +
          `changed its mode ${each.modeChanges} times, expected ${wanted}`,
      );
  }
  requireShapedLinks({
    code,
    parity,
    totalBytes,
    atWriters,
    atNodes,
    mostOverhead: testbed.takesPackets ? MOST_PACKET_OVERHEAD : MOST_OVERHEAD,
  });
  return {
    bytesPerSecond: results.reduce((sum, each) => sum + each.bytesPerSecond, 0),
    idle,
    totalBytes,
    writerBytesPerByte: atWriters.sent / totalBytes,
    nodeBytesPerByte: atNodes.received / totalBytes,
    stripesRedriven: results.reduce((sum, each) => sum + each.stripesRedriven, 0),
  };
}

/**
 * @param totalBytes  acknowledged
 * @throws {TestbedError} ERR_MEASUREMENT when the links did not carry what they must have, or carried more than can be
 */
export function requireShapedLinks({
  code,
  parity,
  totalBytes,
  atWriters,
  atNodes,
  mostOverhead = MOST_OVERHEAD,
}: {
  code: string;
  parity: 'switch' | 'host';
  totalBytes: number;
  atWriters: LinkBytes;
  atNodes: LinkBytes;
  mostOverhead?: number;
}): void {
  const { k, m } = parseCode(code);
  const all = (k + m) / k;
  const check = (what: string, carried: number, factor: number): void => {
    const ratio = carried / totalBytes;
    if (!(ratio >= factor && ratio <= factor * (1 + mostOverhead))) {
      throw new TestbedError(
        'ERR_MEASUREMENT',
        `Cannot count this point (${code}, parity ${parity}): ${what} carried ${ratio.toFixed(3)} bytes for ` +
          `each byte acknowledged, expected ${factor.toFixed(3)} and at most ${mostOverhead * 100} % more`,
      );
    }
  };
  check("the writers' links", atWriters.sent, parity === 'switch' ? 1 : all);
  check("the nodes' links", atNodes.received, all);
}

/**
 * A writer's window for this link. Bytes wait in it for the link: with the default a slow link's window would take
 * longer to pass than the whole measurement. An eighth of it, at least 8 stripes; the library gives a ring an eighth of
 * its memory.
 *
 * @param seconds  of the measurement, divided by the writers that share links
 */
function ringMemory(testbed: Testbed, code: string, unitBytes: number, seconds: number): number {
  const { k, m } = parseCode(code);
  const linkBytesPerSecond = Math.max(...testbed.topology.links.map((link) => link.rateMbit)) * 125_000;
  return (
    8 * Math.min(32 << 20, Math.max((linkBytesPerSecond * seconds) / 8, 8 * (k + m) * (unitBytes + 4096), 1 << 20))
  );
}

function hostOf(interfaceName: string): string {
  return interfaceName.slice(0, interfaceName.indexOf('-'));
}
