/** `tartan up`, `down`, `status` and `switch`: the processes of this machine's cluster. */
import { listFiles } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { presentSince } from '../cluster/presence.js';
import { isRunning } from '../cluster/process-identity.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import { TartanError, isOperating } from '../wire/errors.js';
import { percentOf, readRepair } from '../cluster/repair-hold.js';
import { readScrub } from '../cluster/scrub-state.js';
import type { ClusterOptions } from './cluster-processes.js';
import {
  SWITCH_ID,
  againOptions,
  startCluster,
  startSwitch,
  startedWith,
  stopCluster,
  wipe,
} from './cluster-processes.js';
import { interruptible } from './interruption.js';
import { formatBytes, table } from './quantities.js';
import type { ProcessRecord, StartedWith, StateDirectory } from './state-directory.js';

export async function up(state: StateDirectory, options: ClusterOptions, json: boolean): Promise<void> {
  state.create();
  const before = state.startedWith();
  const processes = await interruptible(
    () => 'Starting the cluster was interrupted: what had been started is ended again',
    (signal) => state.locked(() => startCluster(state, options, () => {}, signal)),
  );
  const differences = before === undefined ? [] : differencesOf(before, startedWith(options));
  if (differences.length > 0) process.stderr.write(`other options than at the last start: ${differences.join(', ')}\n`);
  if (json) {
    print({ dir: state.path, processes });
    return;
  }
  process.stdout.write(`${processTable(processes)}\nkept in ${state.path}; \`tartan down\` ends it\n`);
}

/** The options that differ, as a command line has them. */
function differencesOf(before: StartedWith, now: StartedWith): string[] {
  const names = {
    host: '--host',
    basePort: '--base-port',
    durability: '--durability',
    transport: '--transport',
    device: '--device',
    ringMemoryBytes: '--ring-memory',
    sizeBytes: '--size',
  } as const;
  return (Object.keys(names) as (keyof StartedWith)[])
    .filter((key) => before[key] !== now[key])
    .map((key) => {
      const note = key === 'sizeBytes' ? '; stores that exist stay as they are' : '';
      return `${names[key]} ${now[key]} (before: ${before[key]}${note})`;
    });
}

export async function down(state: StateDirectory, wiping: boolean): Promise<void> {
  if (state.processes().length === 0 && !wiping) {
    process.stdout.write(`no cluster runs at ${state.path}\n`);
    return;
  }
  state.create();
  const stopped = await state.locked(async () => {
    const ended = await stopCluster(state);
    if (wiping) await wipe(state);
    return ended;
  });
  const words = { ended: 'ended', killed: 'did not end in time, killed', gone: 'was not running' };
  for (const each of stopped) process.stdout.write(`${each.id} ${words[each.how]}\n`);
}

export async function status(state: StateDirectory, secret: string | undefined, json: boolean): Promise<void> {
  state.requireRunning();
  const processes = state.processes();
  const store = await openClusterStore(state.cluster);
  const [map, records, present, repair, scrub] = await Promise.all([
    readMap(store),
    listFiles(store),
    presentSince(store),
    readRepair(store),
    readScrub(store),
  ]).finally(() => store.close());
  const files = records.filter(({ unnamed }) => unnamed !== true);
  const agent = await agentOf(state, secret);
  const bytes = files.reduce((sum, each) => sum + each.length, 0);
  if (json) {
    print({
      dir: state.path,
      mapEpoch: map.epoch,
      processes: processes.map((each) => ({ ...each, running: isRunning(each.identity) })),
      map,
      // Whose leases stand, and since when: what is not here does not run, whatever the map says.
      leases: Object.fromEntries(present),
      switch: agent,
      files: files.length,
      bytes,
      ...(repair && { repair }),
      ...(scrub && { scrub }),
    });
    return;
  }
  const entries = new Map([...map.nodes, ...map.switches].map((each) => [each.id, each]));
  const stateOf = ({ id, role }: ProcessRecord): string => {
    const entry = entries.get(id);
    if (role === 'repairer') return 'watches';
    if (entry === undefined) return 'not in the map';
    // The agents of a P4 switch may be several: the switch says which of them is heard, no lease.
    const isSilent = !present.has(id) && !(role === 'switch' && entry.packets !== undefined);
    return isSilent && entry.state !== 'down' ? `${entry.state}, silent` : entry.state;
  };
  const rows = processes.map((each) => [
    each.id,
    each.role,
    isRunning(each.identity) ? String(each.identity.pid) : 'ended',
    each.role === 'repairer' ? '-' : String(each.port),
    each.role === 'repairer' ? '-' : leaseOf(present.get(each.id)),
    stateOf(each),
  ]);
  process.stdout.write(`${table([['ID', 'ROLE', 'PID', 'PORT', 'LEASE', 'STATE'], ...rows])}\n`);
  process.stdout.write(
    `map epoch ${map.epoch}, ${files.length} file${files.length === 1 ? '' : 's'}, ` +
      `${formatBytes(bytes)}` +
      (agent ? `, switch ${agent.state}${agent.program === '' ? '' : ` (${agent.program})`}` : '') +
      '\n',
  );
  if (scrub) {
    const { last } = scrub,
      found = last.unitsDamaged + last.unitsMissing + last.parityMismatches;
    process.stdout.write(
      `last scrub ended ${last.endedAt}: ${last.unitsChecked} units checked, ${found} found damaged, missing ` +
        (`or unfit, ${last.unitsRestored} restored` +
          (last.stripesLost > 0 ? `, ${last.stripesLost} stripes lost` : '') +
          `; ${scrub.passes} in `) +
        `all\n`,
    );
  }
  if (repair) {
    const seconds = (Date.now() - Date.parse(repair.startedAt)) / 1000;
    const left =
      repair.stripesDone === 0
        ? 'time left unknown'
        : `about ${Math.ceil((seconds * (repair.stripes - repair.stripesDone)) / repair.stripesDone)} s left`;
    process.stdout.write(
      `${repair.what}: ${percentOf(repair)} % ` +
        (`(${repair.stripesDone} of ${repair.stripes} stripes, ` +
          `${formatBytes(repair.bytesRestored)} restored), ${left}; `) +
        `process ${repair.pid} on ${repair.host}\n`,
    );
  }
}

/** For how long it has been held. */
function leaseOf(since: string | undefined): string {
  if (since === undefined) return 'none';
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(since)) / 1000));
  if (Number.isNaN(seconds)) return 'held';
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/**
 * Starts the switch of this folder's cluster again, as `up` did.
 * @throws {TartanError} ERR_IN_USE: it runs · ERR_NOT_FOUND: there was none
 */
export async function startSwitchAgain(
  state: StateDirectory,
  secret: string | undefined,
  json: boolean,
): Promise<void> {
  againOptions(state, SWITCH_ID, secret); // may be refused before a folder is needed
  await state.locked(async () => {
    const record = await startSwitch(state, againOptions(state, SWITCH_ID, secret));
    if (json) print(record);
    else process.stdout.write(`${record.id} runs on port ${record.port}\n`);
  });
}

export async function switchProgram(
  state: StateDirectory,
  verb: 'load' | 'unload',
  secret: string | undefined,
  json: boolean,
): Promise<void> {
  const found = state.requireRunning().find((each) => each.role === 'switch');
  if (!found)
    throw new TartanError(
      'ERR_NOT_RUNNING',
      `Cannot ${verb} the switch's program: the switch of ${state.path} does not run`,
    );
  const { callSwitch } = await import('./switch-control.js');
  const result = await callSwitch(found, secret, (control) =>
    verb === 'load' ? control.load('parity') : control.unload(),
  );
  if (json) print(result);
  else process.stdout.write(`${result.id} is ${result.state}\n`);
}

/** The switch agent's own word, undefined when it doesn't run or doesn't answer. */
async function agentOf(state: StateDirectory, secret: string | undefined): Promise<SwitchStatus | undefined> {
  const found = state.running().find((each) => each.role === 'switch' && each.controlPort > 0);
  if (found === undefined) return undefined;
  const { callSwitch } = await import('./switch-control.js');
  return callSwitch(found, secret, (control) => control.status()).catch((error: unknown) => {
    if (!isOperating(error)) throw error;
    return undefined;
  });
}

function processTable(processes: readonly ProcessRecord[]): string {
  return table([
    ['ID', 'ROLE', 'PID', 'PORT', 'CONTROL', 'METRICS'],
    ...[...processes]
      .sort((a, b) => (a.id < b.id ? -1 : 1))
      .map((each) => [
        each.id,
        each.role,
        String(each.identity.pid),
        String(each.port),
        String(each.controlPort),
        each.metricsPort > 0 ? String(each.metricsPort) : '-',
      ]),
  ]);
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
