/** simple_switch_grpc in the switch host's network: started blank, for its agent to program; ends with this process. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { TestbedError } from './errors.js';

/** Where its agent reaches it, inside the switch host's network. */
export const P4RUNTIME = '127.0.0.1:9559';
const PROGRAM = 'simple_switch_grpc';
/** What cannot be started shows it within this time. */
const START_MS = 200;

/** @throws {TestbedError} ERR_MISSING_PACKAGE */
export function requireBmv2(): void {
  if (spawnSync(PROGRAM, ['--version'], { stdio: 'ignore' }).error !== undefined) {
    throw new TestbedError(
      'ERR_MISSING_PACKAGE',
      `Cannot build a network with BMv2: ${PROGRAM} is not on PATH; the P4 consortium's packages have it (p4lang-bmv2)`,
    );
  }
}

export class Bmv2Process {
  private child: ChildProcess | undefined;

  /**
   * @param enter       what a command begins with to run on the switch host
   * @param interfaces  those of ports 1, 2, …
   * @param folder      for its log and its notification socket
   */
  constructor(
    private readonly enter: readonly string[],
    private readonly interfaces: readonly string[],
    private readonly folder: string,
  ) {}

  get isRunning(): boolean {
    return this.child !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }
  get pid(): number | undefined {
    return this.isRunning ? this.child?.pid : undefined;
  }

  /** @throws {TestbedError} ERR_TESTBED when it ends at once */
  async start(): Promise<void> {
    const log = openSync(join(this.folder, 'bmv2.log'), 'a');
    const command = [
      'setpriv',
      '--pdeathsig',
      'KILL',
      ...this.enter,
      PROGRAM,
      '--no-p4',
      '--device-id',
      '1',
      ...this.interfaces.flatMap((name, index) => ['-i', `${index + 1}@${name}`]),
      // Its default is one path for every BMv2 of a machine.
      '--notifications-addr',
      `ipc://${join(this.folder, 'bmv2.ipc')}`,
      '--log-level',
      'error',
      '--',
      '--grpc-server-addr',
      P4RUNTIME,
    ];
    const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    let failure = '';
    child.once('error', (error) => {
      failure = error.message;
    });
    this.child = child;
    await delay(START_MS);
    if (!this.isRunning)
      throw new TestbedError(
        'ERR_TESTBED',
        `Cannot start BMv2: it ended at once (${failure || (child.exitCode ?? child.signalCode)}), ` +
          `see ${join(this.folder, 'bmv2.log')}`,
      );
  }

  /** Ends it at once, as a crash does. Idempotent. */
  async kill(): Promise<void> {
    const { child } = this;
    if (child === undefined || !this.isRunning) return;
    const gone = new Promise<void>((resolve) => {
      child.once('exit', () => {
        resolve();
      });
    });
    child.kill('SIGKILL');
    await gone;
  }
}
