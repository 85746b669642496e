/**
 * A TCP door beside a verbs listener, of the same address and port. Whoever knocks with another kind of device is told
 * so at once, instead of hearing nothing: a verbs device listens in a port space of its own, which TCP doesn't see.
 */
import { connect, createServer, type Server } from 'node:net';

const SIGN = 'tartan-rdma: a verbs device listens here, over RDMA only\n';
/** For a sign to arrive from whoever accepted. */
const KNOCK_MS = 500;

/** @throws {Error} with code EADDRINUSE when something else listens there */
export async function openDoor(host: string, port: number): Promise<Server> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.resume(); // what they say is not read, but its end must be
    socket.setTimeout(KNOCK_MS, () => {
      socket.destroy();
    });
    socket.end(SIGN);
  });
  server.unref();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  return server;
}

export function closeDoor(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => {
      resolve();
    });
  });
}

/** Who answers over TCP where nobody did over RDMA: a verbs device, something else, or nobody. */
export function knock(host: string, port: number): Promise<'verbs' | 'other' | 'nobody'> {
  return new Promise((resolve) => {
    let answered: 'other' | 'nobody' = 'nobody';
    let said = '';
    const socket = connect({ host, port });
    const end = (who: 'verbs' | 'other' | 'nobody'): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(who);
    };
    const timer = setTimeout(() => {
      end(answered);
    }, KNOCK_MS);
    socket.on('connect', () => {
      answered = 'other';
    });
    socket.on('data', (chunk: Buffer) => {
      said += chunk.toString('latin1');
      if (said.startsWith('tartan-rdma: a verbs device')) end('verbs');
    });
    socket.on('error', () => {
      end(answered);
    });
    socket.on('end', () => {
      end(answered);
    });
  });
}
