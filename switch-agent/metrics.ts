/** Prometheus metrics of a switch, served on loopback: GET /metrics. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Device } from 'tartan-rdma';
import { Gauge, Registry } from 'prom-client';
import { answerOrRefuse, detach } from '../wire/front-door.js';
import type { SwitchCore } from './switch-core.js';

/** Who collects metrics, and a few that look. */
const MOST_CONNECTIONS = 64;

export interface MetricsServer {
  readonly port: number;
  close(): Promise<void>;
}

/** All counters of a switch, by metric name: its own, then its device's. */
export function switchCounters(core: SwitchCore, device: Device): Record<string, number> {
  const out: Record<string, number> = {};
  for (const [name, value] of Object.entries(core.counters())) out[`tartan_switch_${snake(name)}`] = value;
  for (const [name, value] of Object.entries(device.counters())) out[`tartan_device_${snake(name)}`] = value as number;
  out['tartan_switch_programmable'] = core.state === 'programmable' ? 1 : 0;
  out['tartan_switch_map_epoch'] = core.map?.epoch ?? 0;
  return out;
}

export interface Sample {
  readonly name: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly value: number;
}

/**
 * @param counters  by metric name, asked for at every request
 * @param labelled  more, of those that come in several: each name always with the same labels
 * @param port      0: any free one
 */
export async function serveMetrics(
  counters: () => Record<string, number> | Promise<Record<string, number>>,
  host: string,
  port: number,
  labelled: () => readonly Sample[] = () => [],
): Promise<MetricsServer> {
  const registry = new Registry();
  const gauges = new Map<string, Gauge>();
  const answer = async (): Promise<string> => {
    const samples: Sample[] = [
      ...Object.entries(await counters()).map(([name, value]) => ({ name, value })),
      ...labelled(),
    ];
    // Of what comes with labels, what is gone must not show.
    for (const each of gauges.values()) each.reset();
    for (const { name, labels, value } of samples) {
      let gauge = gauges.get(name);
      if (gauge === undefined)
        gauges.set(
          name,
          (gauge = new Gauge({
            name,
            help: name.replaceAll('_', ' '),
            registers: [registry],
            labelNames: Object.keys(labels ?? {}),
          })),
        );
      gauge.set(labels ?? {}, value);
    }
    return registry.metrics();
  };
  const server = createServer((request, response) => {
    if (request.url !== '/metrics' || request.method !== 'GET') {
      response.writeHead(404).end();
      return;
    }
    const serve = async (): Promise<void> => {
      const text = await answer();
      response.writeHead(200, { 'content-type': registry.contentType }).end(text);
    };
    detach(
      answerOrRefuse(serve, ({ code, message }) => {
        response.writeHead(503, { 'content-type': 'text/plain' }).end(`${code}: ${message}\n`);
      }),
    );
  });
  server.maxConnections = MOST_CONNECTIONS;
  // After it listens: a connection could not be accepted (no descriptor is left, perhaps). Whoever asks again may be.
  server.on('error', () => undefined);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
        server.closeAllConnections();
      }),
  };
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
