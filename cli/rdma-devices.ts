/** `tartan rdma devices`: what `--device verbs:NAME` could name. */
import { verbsDevices } from 'tartan-rdma';
import { table } from './quantities.js';

export function rdmaDevices(json: boolean): void {
  const devices = verbsDevices();
  if (json) {
    process.stdout.write(`${JSON.stringify(devices)}\n`);
    return;
  }
  if (devices.length === 0) {
    process.stdout.write(
      'no RDMA devices; on an ordinary network card, as root: modprobe rdma_rxe && rdma link add rxe0 type rxe ' +
        'netdev eth0\n',
    );
    return;
  }
  const rows = devices.flatMap((device) =>
    device.ports.map((port) => [
      device.name,
      String(port.port),
      port.state,
      port.linkLayer ?? '-',
      port.activeMtu === undefined ? '-' : String(port.activeMtu),
      device.transport === 'ib' ? 'yes' : 'no (iWARP)',
      (port.gids ?? [])
        .filter((gid) => gid.startsWith('::ffff:'))
        .map((gid) => gid.slice(7))
        .join(' ') ||
        (port.gids ?? [])[0] ||
        '-',
    ]),
  );
  process.stdout.write(`${table([['DEVICE', 'PORT', 'STATE', 'LINK', 'MTU', 'USABLE', 'ADDRESSES'], ...rows])}\n`);
}
