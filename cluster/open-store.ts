/** The cluster store at a location that a user names: a directory (SQLite), or etcd://… */
import { resolve } from 'node:path';
import type { ClusterStore } from './cluster-store.js';
import { isEtcdLocation, parseEtcdLocation } from './etcd-location.js';

/**
 * @param location  a directory, or `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`  @param options.create  makes a missing
 *         directory
 * @throws {TartanError} as openSqliteStore() and openEtcdStore() do
 */
export async function openClusterStore(
  location: string,
  options: { readonly create?: boolean } = {},
): Promise<ClusterStore> {
  // Loading either takes a command longer than most of what it does, and none needs both.
  if (isEtcdLocation(location)) return (await import('./etcd-store.js')).openEtcdStore(location);
  return (await import('./sqlite-store.js')).openSqliteStore(location, options);
}

/**
 * Lays bytes aside for a store in a directory, so that a full file system still lets nodes be marked down and files be
 * removed; what is there already counts. An etcd looks after itself.
 *
 * @throws {TartanError} ERR_DISK_FULL: there is no room for them
 */
export async function reserveStore(location: string, bytes: number): Promise<void> {
  if (isEtcdLocation(location)) return;
  (await import('./sqlite-database.js')).reserve(location, bytes);
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
