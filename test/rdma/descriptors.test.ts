/** What the engine's descriptors owe to processes forked beside it, and what forked processes can't do to it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import t from 'tap';
import { Access, Flag, openSoftDevice, type QueuePair, Status } from 'tartan-rdma';
import { RawPeer } from './raw-peer.js';

const O_CLOEXEC = 0o2000000;

/** Descriptors of this process and where they lead; those closed meanwhile are left out. */
function descriptors(): Map<number, string> {
  const found = new Map<number, string>();
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      found.set(Number(name), readlinkSync(`/proc/self/fd/${name}`));
    } catch {
      // the directory's own, or one of another thread's
    }
  }
  return found;
}

/** Descriptors registered in an epoll set. */
function registered(epollFd: number): number[] {
  return [...readFileSync(`/proc/self/fdinfo/${epollFd}`, 'latin1').matchAll(/^tfd:\s*(\d+)/gm)].map((m) =>
    Number(m[1]),
  );
}

t.test('what is closed leaves the epoll set although a forked child holds a copy of it', async (t) => {
  const before = descriptors();
  const device = openSoftDevice();
  t.teardown(() => device.close());
  const [epollFd] = [...descriptors()].find(([fd, to]) => !before.has(fd) && to === 'anon_inode:[eventpoll]')!;
  let accepted!: (qp: QueuePair) => void;
  const accepting = new Promise<QueuePair>((resolve) => {
    accepted = resolve;
  });
  const listener = await device.listen('127.0.0.1', 0, accepted);
  const idle = registered(epollFd);
  const peer = await RawPeer.open(listener.port);
  const qp = await accepting;
  const [stream] = registered(epollFd).filter((fd) => !idle.includes(fd));
  const child = spawn('cat', { stdio: ['pipe', 'ignore', 'inherit', stream!] });
  await once(child, 'spawn');
  qp.toError('a test');
  await qp.destroy();
  t.strictSame(registered(epollFd), idle, 'the engine hears of that connection no more');
  peer.write(Buffer.alloc(1000));
  t.equal((await RawPeer.open(listener.port)).isClosed, false, 'and goes on serving');
  child.stdin!.end();
  await once(child, 'exit');
  await peer.closed();
});

t.test('every descriptor is closed by whatever this process executes', async (t) => {
  const before = descriptors();
  const a = openSoftDevice({ name: 'a' });
  const b = openSoftDevice({ name: 'b' });
  t.teardown(async () => {
    await a.close();
    await b.close();
  });
  const target = b.allocate(4096, Access.REMOTE_WRITE);
  const source = a.allocate(4096);
  const served: QueuePair[] = [];
  const listener = await b.listen('127.0.0.1', 0, (qp) => {
    served.push(qp);
  });
  await b.openPacketSocket!('127.0.0.1', 0);
  for (const transport of ['tcp', 'shm'] as const) {
    const qp = await a.connect('127.0.0.1', listener.port, { transport });
    const status = await new Promise<number>((resolve) => {
      qp.handler = (_opcode, got) => resolve(got);
      qp.postWrite(1, source, 0, 4096, target.rkey, 0, Flag.SIGNALED);
      a.ring();
    });
    t.equal(status, Status.SUCCESS);
  }
  const left: string[] = [];
  for (const [fd, to] of descriptors()) {
    if (before.has(fd)) continue;
    const flags = /^flags:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))![1]!;
    if ((Number.parseInt(flags, 8) & O_CLOEXEC) === 0) left.push(to);
  }
  t.strictSame(left, []);
});
