/** The cluster store at a location that a user names: a directory (LMDB), or etcd://… */
import { resolve } from 'node:path';
import type { ClusterStore } from './cluster-store.js';
import { isEtcdLocation, parseEtcdLocation } from './etcd-location.js';

/**
 * @param location  a directory, or `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`  @param options.create  makes a missing
 *         directory
 * @throws {TartanError} as openLmdbStore() and openEtcdStore() do
 */
export async function openClusterStore(
  location: string,
  options: { readonly create?: boolean } = {},
): Promise<ClusterStore> {
  // Loading either takes a command longer than most of what it does, and none needs both.
  if (isEtcdLocation(location)) return (await import('./etcd-store.js')).openEtcdStore(location);
  return (await import('./lmdb-store.js')).openLmdbStore(location, options);
}

/**
 * The same location, meant from any working directory.
 * @throws {TartanError} ERR_ARGUMENT: a malformed etcd:// location
 */
export function absoluteLocation(location: string): string {
  if (!isEtcdLocation(location)) return resolve(location);
  parseEtcdLocation(location);
  return location;
}
