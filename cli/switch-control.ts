/** The switch agent's control calls, as promises. An address is `host:port`. */
import type { ServiceError } from '@grpc/grpc-js';
import { Metadata, credentials } from '@grpc/grpc-js';
import { TartanError } from '../wire/errors.js';
import type { SwitchStatus } from '../wire/generated/control.js';
import { SwitchControlClient } from '../wire/generated/control.js';

const CALL_MS = 10_000;

/** Makes the switch compute parity. */
export function loadSwitch(address: string): Promise<SwitchStatus> {
  return call(address, 'load the program of', (client, ...rest) => client.load({ program: 'parity' }, ...rest));
}

/** Makes the switch forward packets only. */
export function unloadSwitch(address: string): Promise<SwitchStatus> {
  return call(address, 'unload the program of', (client, ...rest) => client.unload({}, ...rest));
}

export function switchStatus(address: string): Promise<SwitchStatus> {
  return call(address, 'ask', (client, ...rest) => client.status({}, ...rest));
}

type Done = (error: ServiceError | null, status: SwitchStatus) => void;

/** @throws {TartanError} ERR_CONNECT when the agent does not answer or refuses */
function call(address: string, attempt: string, method: (client: SwitchControlClient, metadata: Metadata, options: { deadline: number }, done: Done) => unknown): Promise<SwitchStatus> {
  const client = new SwitchControlClient(address, credentials.createInsecure());
  return new Promise<SwitchStatus>((resolve, reject) => {
    method(client, new Metadata(), { deadline: Date.now() + CALL_MS }, (error, status) => {
      if (error) reject(new TartanError('ERR_CONNECT', `Cannot ${attempt} the switch at ${address}: ${error.details === '' ? error.message : error.details}`, { cause: error }));
      else resolve(status);
    });
  }).finally(() => { client.close(); });
}
