/** One control call to the switch agent of this machine's cluster. */
import { SwitchControl } from '../wire/control.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import type { ProcessRecord } from './state-directory.js';

/**
 * @param secret  the cluster's; undefined when it has none
 * @throws {TartanError} what wire/control.ts's SwitchControl throws
 */
export async function callSwitch(
  entry: ProcessRecord,
  secret: string | undefined,
  action: (control: SwitchControl) => Promise<SwitchStatus>,
): Promise<SwitchStatus> {
  const control = new SwitchControl(entry.host, entry.controlPort, secret === undefined ? {} : { secret });
  try {
    return await action(control);
  } finally {
    control.close();
  }
}
