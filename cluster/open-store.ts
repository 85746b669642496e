/** The cluster store at a location that a user names: a directory (LMDB), or etcd://… */
import { resolve } from 'node:path';
import type { ClusterStore } from './cluster-store.js';
import { isEtcdLocation, parseEtcdLocation } from './etcd-location.js';
import { openEtcdStore } from './etcd-store.js';
import { openLmdbStore } from './lmdb-store.js';

/**
 * @param location  a directory, or `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`  @param options.create  makes a missing
 *         directory
 * @throws {TartanError} as openLmdbStore() and openEtcdStore() do
 */
export function openClusterStore(location: string, options: { readonly create?: boolean } = {}): Promise<ClusterStore> {
  return isEtcdLocation(location) ? openEtcdStore(location) : openLmdbStore(location, options);
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
