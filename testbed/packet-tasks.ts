/**
 * What a worker can be told to do with packets and agents, beside writing files: for tests of what a switch must not
 * do.
 */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { NodeControl, SwitchControl } from '../wire/control.js';
import type { NodeStatus, OpenGroupsReply, OpenGroupsRequest } from '../wire/generated/control.js';

const secret = (): string | undefined => process.env['TARTAN_SECRET'];

export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

/** Sends datagrams one after the other, each as hexadecimal digits, so far apart that no queue on the way overflows. */
export async function sendDatagrams({
  to,
  datagrams,
  apartMs = 2,
}: {
  to: Endpoint;
  datagrams: readonly string[];
  apartMs?: number;
}): Promise<void> {
  const socket = createSocket('udp4');
  try {
    for (const each of datagrams) {
      await new Promise<void>((resolve, reject) => {
        socket.send(Buffer.from(each, 'hex'), to.port, to.host, (error) => {
          if (error) reject(error);
          else resolve();
        });
      });
      await new Promise((resolve) => {
        setTimeout(resolve, apartMs);
      });
    }
  } finally {
    socket.close();
  }
}

/** Sends a datagram to somebody who answers. @returns the answer, as hexadecimal digits */
export async function echoDatagram({ to, datagram }: { to: Endpoint; datagram: string }): Promise<string> {
  const socket = createSocket('udp4');
  try {
    socket.send(Buffer.from(datagram, 'hex'), to.port, to.host);
    const [answer] = (await once(socket, 'message', { signal: AbortSignal.timeout(5000) })) as [Buffer];
    return answer.toString('hex');
  } finally {
    socket.close();
  }
}

export async function openGroups({
  at,
  request,
}: {
  at: Endpoint;
  request: OpenGroupsRequest;
}): Promise<OpenGroupsReply> {
  const control = new SwitchControl(at.host, at.port, { secret: secret() });
  try {
    return await control.openGroups(request);
  } finally {
    control.close();
  }
}

export async function nodeStatus({ at }: { at: Endpoint }): Promise<NodeStatus> {
  const control = new NodeControl(at.host, at.port, { secret: secret() });
  try {
    return await control.status();
  } finally {
    control.close();
  }
}
