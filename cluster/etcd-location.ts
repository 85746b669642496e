/** Where an etcd-backed cluster store is: `etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`. */
import { TartanError } from '../wire/errors.js';

export interface EtcdLocation {
  /** `host:port` of the members, at least one. */
  readonly endpoints: readonly string[];
  /** Begins all of this cluster's keys in etcd, and ends with '/': several clusters may share one etcd. */
  readonly prefix: string;
}

const SCHEME = 'etcd://';
const DEFAULT_PORT = 2379;
const DEFAULT_PREFIX = 'tartan';

export function isEtcdLocation(location: string): boolean {
  return location.startsWith(SCHEME);
}

/** @throws {TartanError} ERR_ARGUMENT when it is not of that form */
export function parseEtcdLocation(location: string): EtcdLocation {
  const malformed = (why: string): TartanError =>
    new TartanError(
      'ERR_ARGUMENT',
      `Cannot use '${location}' as a cluster store: ${why}; expected etcd://HOST:PORT[,HOST:PORT …][/PREFIX]`,
    );
  if (!isEtcdLocation(location)) throw malformed('it does not begin with etcd://');
  const [, hosts = '', prefix = ''] = /^([^/]*)\/?(.*)$/.exec(location.slice(SCHEME.length)) ?? [];
  const endpoints = hosts.split(',').map((host) => {
    const [, name, port] = /^(\[[0-9a-fA-F:.]+\]|[^\s:[\]]+)(?::(\d{1,5}))?$/.exec(host) ?? [];
    if (name === undefined || Number(port ?? DEFAULT_PORT) > 65_535 || Number(port ?? DEFAULT_PORT) === 0)
      throw malformed(`'${host}' is not a host and a port`);
    return `${name}:${port ?? DEFAULT_PORT}`;
  });
  if (/[?#\s]/.test(prefix)) throw malformed(`'${prefix}' is not a prefix`);
  return { endpoints, prefix: `${prefix.replace(/\/+$/, '') || DEFAULT_PREFIX}/` };
}
