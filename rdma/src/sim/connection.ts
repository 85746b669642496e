import { Status } from '../records.js';
import type { SimDevice } from './device.js';
import type { SimHost } from './host.js';
import { Channel } from './network.js';
import { SimQueuePair } from './queue-pair.js';
import type { SimWorld } from './world.js';

/** Two queue pairs and the two channels between them: the client's at index 0, the server's at index 1. */
export class Connection {
  readonly client: SimQueuePair;
  readonly server: SimQueuePair;
  readonly #world: SimWorld;
  readonly #toServer: Channel;
  readonly #toClient: Channel;

  constructor(world: SimWorld, client: SimDevice, clientPort: number, server: SimDevice, serverPort: number) {
    this.#world = world;
    this.#toServer = new Channel(world, client.host, server.host);
    this.#toClient = new Channel(world, server.host, client.host);
    this.client = new SimQueuePair(client, `${server.host.name}:${serverPort}`, this.#toServer);
    this.server = new SimQueuePair(server, `${client.host.name}:${clientPort}`, this.#toClient);
    this.client.peer = this.server;
    this.server.peer = this.client;
    world.connections.add(this);
    this.client.onGone = this.server.onGone = () => {
      if (this.client.isGone && this.server.isGone) world.connections.delete(this);
    };
    if (!client.host.isAlive) this.hostDied(client.host, world.detectMs);
  }

  /** The first message to the client: whatever the server posts comes behind it. */
  accepted(tell: () => void): void {
    this.#toClient.send(tell);
  }

  joins(a: string, b: string): boolean {
    const from = this.client.device.host.name;
    const to = this.server.device.host.name;
    return (from === a && to === b) || (from === b && to === a);
  }

  has(host: SimHost): boolean {
    return this.client.device.host === host || this.server.device.host === host;
  }

  resume(): void {
    this.#toServer.resume();
    this.#toClient.resume();
  }

  /** Both ends find out, each in its own time; nothing more arrives. */
  break(reason: string): void {
    this.#toServer.close();
    this.#toClient.close();
    for (const end of [this.client, this.server]) {
      const { host } = end.device;
      this.#world.schedule(this.#world.networkRandom.random(), host, () =>
        end.fail(Status.RETRY_EXCEEDED, undefined, reason),
      );
    }
  }

  hostDied(host: SimHost, detectMs: number): void {
    for (const end of [this.client, this.server]) {
      if (end.device.host === host) {
        end.isGone = true;
        continue;
      }
      this.#world.schedule(detectMs, end.device.host, () =>
        end.fail(Status.RETRY_EXCEEDED, undefined, `host ${host.name} is gone`),
      );
    }
  }
}
