/**
 * Who is behind which port of a packet switch: what `--ports FILE` holds, and a testbed or an operator writes.
 *
 *     {
 *       "service": { "host": "10.5.0.254", "mac": "02:00:00:00:05:fe" },
 *       "hosts":   [{ "host": "10.5.0.1", "mac": "02:00:00:00:05:01", "port": 1 }, …],
 *       "routes":  [{ "prefix": "10.6.0.0/16", "mac": "02:00:00:00:05:07", "port": 7 }, …],
 *       "mtu":     9000
 *     }
 *
 * `service` is the switch's own address, of stripe packets and probes. `hosts` share its segment and are bridged by
 * MAC. `routes` (may be left out) are networks behind a router of the segment: the router's MAC and port. `mtu` (may be
 * left out) is the links', in bytes of an IP packet, where it is less than the program's.
 */
import { isIPv4 } from 'node:net';
import { TartanError } from '../../wire/errors.js';

export interface Neighbour {
  readonly mac: bigint;
  readonly port: number;
}
export interface PortMap {
  readonly service: { readonly host: string; readonly ip: number; readonly mac: bigint };
  readonly hosts: readonly (Neighbour & { readonly host: string; readonly ip: number })[];
  readonly routes: readonly (Neighbour & { readonly ip: number; readonly prefixLength: number })[];
  readonly mtu: number | undefined;
}

/** v1model numbers ports in 9 bits; the last is its drop port, 0 is left to whoever means "none". */
const MOST_PORT = 510;

/**
 * @param text  JSON
 * @param from  where it comes from, for the message
 * @throws {TartanError} ERR_ARGUMENT
 */
export function parsePortMap(text: string, from: string): PortMap {
  const fail = (why: string): never => {
    throw new TartanError('ERR_ARGUMENT', `Cannot read the ports of ${from}: ${why}`);
  };
  let raw: { service?: unknown; hosts?: unknown; routes?: unknown; mtu?: unknown };
  try {
    raw = JSON.parse(text) as typeof raw;
  } catch (error) {
    return fail(`it is not JSON (${(error as Error).message.split('\n')[0]!})`);
  }
  if (typeof raw !== 'object' || raw === null) return fail('expected an object');
  const mac = (value: unknown, whose: string): bigint =>
    typeof value === 'string' && /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(value)
      ? BigInt(`0x${value.replaceAll(':', '')}`)
      : fail(`the MAC of ${whose} is ${JSON.stringify(value)}`);
  const ip = (value: unknown, whose: string): string =>
    typeof value === 'string' && isIPv4(value)
      ? value
      : fail(`the address of ${whose} is ${JSON.stringify(value)}, expected IPv4`);
  const port = (value: unknown, whose: string): number =>
    Number.isInteger(value) && (value as number) > 0 && (value as number) <= MOST_PORT
      ? (value as number)
      : fail(`the port of ${whose} is ${JSON.stringify(value)}, expected 1 to ${MOST_PORT}`);
  const list = (value: unknown, name: string): Record<string, unknown>[] =>
    Array.isArray(value) && value.every((each) => typeof each === 'object' && each !== null)
      ? (value as Record<string, unknown>[])
      : fail(`"${name}" is not a list of objects`);

  const given =
    typeof raw.service === 'object' && raw.service !== null
      ? (raw.service as Record<string, unknown>)
      : fail('"service" is missing');
  const host = ip(given['host'], 'the service');
  const service = { host, ip: ipNumber(host), mac: mac(given['mac'], 'the service') };
  const hosts = list(raw.hosts, 'hosts').map((each) => {
    const address = ip(each['host'], 'a host');
    return { host: address, ip: ipNumber(address), mac: mac(each['mac'], address), port: port(each['port'], address) };
  });
  const routes =
    raw.routes === undefined
      ? []
      : list(raw.routes, 'routes').map((each) => {
          const [, address, length] =
            /^([\d.]+)\/(\d{1,2})$/.exec(String(each['prefix'])) ??
            fail(`${JSON.stringify(each['prefix'])} is not a prefix`);
          const prefixLength = Number(length),
            number = ipNumber(ip(address, 'a route'));
          if (prefixLength < 1 || prefixLength > 32 || (number & ~maskOf(prefixLength)) !== 0)
            fail(`${String(each['prefix'])} is not a prefix`);
          return {
            ip: number,
            prefixLength,
            mac: mac(each['mac'], String(each['prefix'])),
            port: port(each['port'], String(each['prefix'])),
          };
        });
  const mtu =
    raw.mtu === undefined
      ? undefined
      : Number.isInteger(raw.mtu) && (raw.mtu as number) >= 576 && (raw.mtu as number) <= 65_535
        ? (raw.mtu as number)
        : fail(`the MTU is ${JSON.stringify(raw.mtu)}`);
  const macs = [service.mac, ...hosts.map((each) => each.mac)],
    ips = [service.ip, ...hosts.map((each) => each.ip)];
  if (new Set(macs).size !== macs.length || new Set(ips).size !== ips.length)
    fail('two members have the same MAC or address');
  return { service, hosts, routes, mtu };
}

/** Where packets for an address leave; undefined when no port leads there. */
export function neighbourOf(ports: PortMap, host: string): Neighbour | undefined {
  if (!isIPv4(host)) return undefined;
  const ip = ipNumber(host);
  return (
    ports.hosts.find((each) => each.ip === ip) ??
    [...ports.routes]
      .sort((a, b) => b.prefixLength - a.prefixLength)
      .find((each) => (ip & maskOf(each.prefixLength)) >>> 0 === each.ip)
  );
}

/** @param address  dotted */
export function ipNumber(address: string): number {
  return address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
}

function maskOf(prefixLength: number): number {
  return (0xffff_ffff << (32 - prefixLength)) >>> 0;
}
