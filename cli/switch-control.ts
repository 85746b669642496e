/** One control call to the switch agent of this machine's cluster. */
import { SwitchControl } from '../wire/control.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import type { ProcessRecord } from './state-directory.js';

/** @throws {TartanError} what wire/control.ts's SwitchControl throws */
export async function callSwitch(entry: ProcessRecord, action: (control: SwitchControl) => Promise<SwitchStatus>): Promise<SwitchStatus> {
  const secret = process.env['TARTAN_SECRET'];
  const control = new SwitchControl(entry.host, entry.controlPort, secret === undefined ? {} : { secret });
  try {
    return await action(control);
  } finally {
    control.close();
  }
}
