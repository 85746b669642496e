/** A P4 switch as a target: artefacts, ports and probe, made ready for its agent. */
import { readFileSync } from 'node:fs';
import type { ClusterStore } from '../../cluster/cluster-store.js';
import { TartanError } from '../../wire/errors.js';
import { PROGRAM } from '../switch-core.js';
import type { Target } from '../target.js';
import { FORWARD, loadArtefact } from './artefact.js';
import { PacketSwitch } from './packet-switch.js';
import { parsePortMap, type PortMap } from './port-map.js';
import { SwitchProbe } from './switch-probe.js';

export interface PacketTargetOptions {
  readonly store: ClusterStore;
  readonly id: string;
  readonly host: string;
  readonly p4runtime: string;
  readonly deviceId: number;
  readonly artefact: string;
  /** File of the port map. */
  readonly ports: string;
  /** This machine's address on the switch's segment, to probe from; undefined: none. */
  readonly probeFrom: string | undefined;
  readonly deadlineMs: number;
  readonly log: (message: string) => void;
}

/** @throws {TartanError} ERR_ARGUMENT: an artefact or port map that cannot be used · ERR_LISTEN */
export async function packetTarget({
  store,
  id,
  host,
  p4runtime,
  deviceId,
  deadlineMs,
  log,
  ...options
}: PacketTargetOptions): Promise<Target> {
  if (options.artefact === FORWARD)
    throw new TartanError('ERR_ARGUMENT', `Cannot use '${FORWARD}' as the parity program: it only forwards`);
  const parity = loadArtefact(options.artefact),
    forward = loadArtefact(FORWARD),
    ports = readPortMap(options.ports);
  const probe =
    options.probeFrom === undefined ? undefined : await SwitchProbe.open(options.probeFrom, ports.service.host);
  let packetSwitch: PacketSwitch | undefined;
  const running = (): PacketSwitch => {
    if (packetSwitch === undefined) throw new TartanError('ERR_NOT_PROGRAMMABLE', `Switch ${id} is not ready yet`);
    return packetSwitch;
  };
  const counters = async (): Promise<Record<string, number>> => (await packetSwitch?.counters()) ?? {};
  return {
    async start(controlPort) {
      packetSwitch = new PacketSwitch({
        store,
        id,
        host,
        controlPort,
        p4runtime,
        deviceId,
        parity,
        forward,
        ports,
        probe,
        deadlineMs,
        log,
      });
      await packetSwitch.start();
      return controlPort;
    },
    async load(program) {
      if (program === FORWARD) await running().unload();
      else await running().load(program);
    },
    async unload() {
      await running().unload();
    },
    async status() {
      return {
        id,
        state: packetSwitch?.state ?? 'down',
        program: packetSwitch?.program ?? '',
        version: PROGRAM.version,
        mapEpoch: packetSwitch?.map?.epoch ?? 0,
        ringMemoryUsed: 0,
        ringMemoryLimit: 0,
        counters: await counters(),
      };
    },
    openGroups: (request) => running().openGroups(request),
    counters,
    samples: () => packetSwitch?.samples() ?? [],
    async stop() {
      await packetSwitch?.stop();
      probe?.close();
    },
  };
}

function readPortMap(path: string): PortMap {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new TartanError('ERR_ARGUMENT', `Cannot read the ports of ${path}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return parsePortMap(text, path);
}
