/** The cluster's secret, as every command that talks to a cluster learns it: --secret-file, else TARTAN_SECRET. */
import { readFileSync } from 'node:fs';
import { TartanError } from '../wire/errors.js';

/**
 * @param file  holds the secret; white space around it is not part of it, as in the switch's and the nodes' own option
 * @returns undefined when there is none
 * @throws {TartanError} ERR_ARGUMENT when the file can't be read, or is empty: to go on without a secret is never what
 *         was meant
 */
export function readSecret(file: string | undefined): string | undefined {
  if (file === undefined) return process.env['TARTAN_SECRET'] || undefined;
  let secret: string;
  try {
    secret = readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new TartanError('ERR_ARGUMENT', `Cannot read the cluster secret from ${file}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (secret === '') throw new TartanError('ERR_ARGUMENT', `Cannot use ${file} as --secret-file: it is empty`);
  return secret;
}
