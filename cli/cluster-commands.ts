/** `tartan up`, `down`, `status` and `switch`: the processes of this machine's cluster. */
import { listFiles } from '../cluster/files.js';
import { readMap } from '../cluster/membership.js';
import { openClusterStore } from '../cluster/open-store.js';
import { isRunning } from '../cluster/process-identity.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import { TartanError } from '../wire/errors.js';
import { percentOf, readRepair } from '../cluster/repair-hold.js';
import { readScrub } from '../cluster/scrub-state.js';
import type { ClusterOptions } from './cluster-processes.js';
import { startCluster, stopCluster, wipe } from './cluster-processes.js';
import { formatBytes, table } from './quantities.js';
import type { ProcessRecord, StateDirectory } from './state-directory.js';
import { callSwitch } from './switch-control.js';

export async function up(state: StateDirectory, options: ClusterOptions, json: boolean): Promise<void> {
  state.create();
  const processes = await state.locked(() => startCluster(state, options));
  if (json) {
    print({ dir: state.path, processes });
    return;
  }
  process.stdout.write(`${processTable(processes)}\nkept in ${state.path}; \`tartan down\` ends it\n`);
}

export async function down(state: StateDirectory, wiping: boolean): Promise<void> {
  if (state.processes().length === 0 && !wiping) {
    process.stdout.write(`no cluster runs at ${state.path}\n`);
    return;
  }
  state.create();
  const stopped = await state.locked(() => stopCluster(state));
  if (wiping) await wipe(state);
  const words = { ended: 'ended', killed: 'did not end in time, killed', gone: 'was not running' };
  for (const each of stopped) process.stdout.write(`${each.id} ${words[each.how]}\n`);
}

export async function status(state: StateDirectory, secret: string | undefined, json: boolean): Promise<void> {
  state.requireRunning();
  const processes = state.processes();
  const store = await openClusterStore(state.cluster);
  const [map, files, repair, scrub] = await Promise.all([
    readMap(store),
    listFiles(store),
    readRepair(store),
    readScrub(store),
  ]).finally(() => store.close());
  const agent = await agentOf(state, secret);
  const bytes = files.reduce((sum, each) => sum + each.length, 0);
  if (json) {
    print({
      dir: state.path,
      mapEpoch: map.epoch,
      processes: processes.map((each) => ({ ...each, running: isRunning(each.identity) })),
      map,
      switch: agent,
      files: files.length,
      bytes,
      ...(repair && { repair }),
      ...(scrub && { scrub }),
    });
    return;
  }
  const states = new Map([...map.nodes, ...map.switches].map((each) => [each.id, each.state]));
  const rows = processes.map((each) => [
    each.id,
    each.role,
    isRunning(each.identity) ? String(each.identity.pid) : 'ended',
    each.role === 'repairer' ? '-' : String(each.port),
    each.role === 'repairer' ? 'watches' : (states.get(each.id) ?? 'not in the map'),
  ]);
  process.stdout.write(`${table([['ID', 'ROLE', 'PID', 'PORT', 'STATE'], ...rows])}\n`);
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
  const result = await callSwitch(found, secret, (control) =>
    verb === 'load' ? control.load('parity') : control.unload(),
  );
  if (json) print(result);
  else process.stdout.write(`${result.id} is ${result.state}\n`);
}

/** The switch agent's own word, undefined when it doesn't run or doesn't answer. */
async function agentOf(state: StateDirectory, secret: string | undefined): Promise<SwitchStatus | undefined> {
  const found = state.running().find((each) => each.role === 'switch' && each.controlPort > 0);
  return found && callSwitch(found, secret, (control) => control.status()).catch(() => undefined);
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
