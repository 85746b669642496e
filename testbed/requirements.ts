/** What the testbed needs from the machine, told in one line when it is not there. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { TestbedError } from './errors.js';

/** Mininet is Debian's: its modules are not those of a Python that a user has put before it in the path. */
export const PYTHON = '/usr/bin/python3';

const TOOLS: readonly { readonly tool: string; readonly package: string }[] = [
  { tool: 'mnexec', package: 'mininet' },
  { tool: 'brctl', package: 'bridge-utils' },
  { tool: 'tc', package: 'iproute2' },
  { tool: 'ip', package: 'iproute2' },
  { tool: 'ifconfig', package: 'net-tools' },
  { tool: 'ethtool', package: 'ethtool' },
  { tool: 'nsenter', package: 'util-linux' },
  { tool: 'iperf3', package: 'iperf3' },
];

export interface Machine {
  readonly uid: number;
  /** Whether a program is found. */
  readonly has: (tool: string) => boolean;
  readonly hasMininet: () => boolean;
}

const thisMachine: Machine = {
  uid: process.getuid?.() ?? -1,
  has: (tool) =>
    ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'].some((folder) =>
      existsSync(`${folder}/${tool}`),
    ),
  hasMininet: () => spawnSync(PYTHON, ['-c', 'import mininet.net'], { stdio: 'ignore' }).status === 0,
};

const VERBS_TOOLS: typeof TOOLS = [
  { tool: 'rdma', package: 'iproute2' },
  { tool: 'ip', package: 'iproute2' },
  { tool: 'modprobe', package: 'kmod' },
];

/**
 * What a testbed over verbs needs, but for the kernel's modules.
 * @throws {TestbedError} ERR_NOT_ROOT, ERR_MISSING_PACKAGE
 */
export function requireVerbsMachine(machine: Machine = thisMachine): void {
  if (machine.uid !== 0)
    throw new TestbedError('ERR_NOT_ROOT', 'Cannot make RDMA devices: that needs root; run it with sudo');
  const missing = new Set(VERBS_TOOLS.filter(({ tool }) => !machine.has(tool)).map((each) => each.package));
  if (missing.size > 0)
    throw new TestbedError(
      'ERR_MISSING_PACKAGE',
      `Cannot make RDMA devices: ${[...missing].join(', ')} missing; run \`apt-get install ` +
        `--no-install-recommends ${[...missing].join(' ')}\``,
    );
}

/** @throws {TestbedError} ERR_NOT_ROOT, ERR_MISSING_PACKAGE: naming all packages that are missing */
export function requireMachine(machine: Machine = thisMachine): void {
  if (machine.uid !== 0)
    throw new TestbedError(
      'ERR_NOT_ROOT',
      'Cannot build a network: namespaces and shaped links need root; run it with sudo',
    );
  const missing = new Set(TOOLS.filter(({ tool }) => !machine.has(tool)).map((each) => each.package));
  if (!missing.has('mininet') && !machine.hasMininet()) missing.add('mininet');
  if (missing.size > 0)
    throw new TestbedError(
      'ERR_MISSING_PACKAGE',
      `Cannot build a network: ${[...missing].join(', ')} missing; run \`apt-get install ` +
        `--no-install-recommends ${[...missing].join(' ')}\``,
    );
}
